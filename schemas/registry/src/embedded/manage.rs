//! Listings, deletions and modes of the embedded registry.

use super::Embedded;
use super::record::Record;
use super::state::Decision;
use crate::{Deleted, Deletion, Error, Level, Manage, Mode, Registered, Result, Version};

impl Manage for Embedded {
    fn list_subjects(&self, deleted: Deleted) -> Result<Vec<String>> {
        let mut inner = self.locked();
        self.catch_up(&mut inner)?;
        Ok(inner.state.subjects(deleted))
    }

    fn list_versions(&self, subject: &str, deleted: Deleted) -> Result<Vec<u32>> {
        let mut inner = self.locked();
        self.catch_up(&mut inner)?;
        inner.state.versions(subject, deleted)
    }

    fn any_version(&self, subject: &str, version: Version) -> Result<Registered> {
        let mut inner = self.locked();
        self.catch_up(&mut inner)?;
        inner.state.version(subject, version, Deleted::Include)
    }

    fn delete_subject(&self, subject: &str, deletion: Deletion) -> Result<Vec<u32>> {
        self.write("delete a subject", |state| state.delete_subject(subject, deletion))
    }

    fn delete_version(&self, subject: &str, version: Version, deletion: Deletion) -> Result<u32> {
        self.write("delete a version", |state| {
            state.delete_version(subject, version, deletion)
        })
    }

    fn remove_level(&self, subject: Option<&str>) -> Result<Level> {
        self.write("remove a compatibility level", |state| {
            let result = state.own_level(subject).ok_or_else(|| Error::NoLevel {
                subject: subject.unwrap_or_default().to_owned(),
            })?;
            let (subject, level) = (subject.map(str::to_owned), None);
            let records = vec![Record::Config { subject, level }];
            Ok(Decision { records, result })
        })
    }

    fn mode(&self, subject: Option<&str>) -> Result<Option<Mode>> {
        let mut inner = self.locked();
        self.catch_up(&mut inner)?;
        Ok(inner.state.own_mode(subject))
    }

    fn set_mode(&self, subject: Option<&str>, mode: Mode) -> Result<()> {
        self.write("set a mode", |_| {
            let (subject, mode) = (subject.map(str::to_owned), Some(mode));
            let records = vec![Record::Mode { subject, mode }];
            Ok(Decision { records, result: () })
        })
    }

    fn remove_mode(&self, subject: &str) -> Result<Mode> {
        self.write("remove a mode", |state| {
            let result = state.own_mode(Some(subject)).ok_or_else(|| Error::NoMode {
                subject: subject.to_owned(),
            })?;
            let (subject, mode) = (Some(subject.to_owned()), None);
            let records = vec![Record::Mode { subject, mode }];
            Ok(Decision { records, result })
        })
    }
}
