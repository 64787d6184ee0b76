//! Listings, deletions and modes of a registry with Confluent's REST API.

use super::attempt::About;
use super::{Remote, encoded, numbers, registered_json, texts};
use crate::{Deleted, Deletion, Error, Level, Manage, Mode, Registered, Result, Version};
use reqwest::Method;
use serde_json::{Value, json};

fn flags(deleted: Deleted) -> &'static str {
    match deleted {
        Deleted::Exclude => "",
        Deleted::Include => "?deleted=true",
        Deleted::Only => "?deletedOnly=true",
    }
}

fn permanent(deletion: Deletion) -> &'static str {
    match deletion {
        Deletion::Soft => "",
        Deletion::Permanent => "?permanent=true",
    }
}

/// `/config` or `/mode`, of a subject or global.
fn setting(name: &str, subject: Option<&str>) -> String {
    match subject {
        Some(subject) => format!("/{name}/{}", encoded(subject)),
        None => format!("/{name}"),
    }
}

fn mode_in(answer: &Value) -> Option<Mode> {
    answer.get("mode")?.as_str()?.parse().ok()
}

impl Manage for Remote {
    fn list_subjects(&self, deleted: Deleted) -> Result<Vec<String>> {
        let about = About::subject("list subjects", "");
        let answer = self.request(&about, Method::GET, format!("/subjects{}", flags(deleted)), None)?;
        let mut subjects = texts(&answer).ok_or_else(|| self.unexpected_response(&about, &answer))?;
        subjects.sort();
        Ok(subjects)
    }

    fn list_versions(&self, subject: &str, deleted: Deleted) -> Result<Vec<u32>> {
        let about = About::subject("list the versions of a subject", subject);
        let path = format!("/subjects/{}/versions{}", encoded(subject), flags(deleted));
        let answer = self.request(&about, Method::GET, path, None)?;
        numbers(&answer).ok_or_else(|| self.unexpected_response(&about, &answer))
    }

    fn any_version(&self, subject: &str, version: Version) -> Result<Registered> {
        let mut about = About::subject("get a version of a subject", subject);
        about.version = version.to_string();
        let path = format!("/subjects/{}/versions/{version}?deleted=true", encoded(subject));
        let answer = self.request(&about, Method::GET, path, None)?;
        registered_json(subject, &answer).ok_or_else(|| self.unexpected_response(&about, &answer))
    }

    fn delete_subject(&self, subject: &str, deletion: Deletion) -> Result<Vec<u32>> {
        let about = About::subject("delete a subject", subject);
        let path = format!("/subjects/{}{}", encoded(subject), permanent(deletion));
        let answer = self.request(&about, Method::DELETE, path, None)?;
        numbers(&answer).ok_or_else(|| self.unexpected_response(&about, &answer))
    }

    fn delete_version(&self, subject: &str, version: Version, deletion: Deletion) -> Result<u32> {
        let mut about = About::subject("delete a version", subject);
        about.version = version.to_string();
        let path = format!(
            "/subjects/{}/versions/{version}{}",
            encoded(subject),
            permanent(deletion)
        );
        let answer = self.request(&about, Method::DELETE, path, None)?;
        let number = answer.as_u64().and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| self.unexpected_response(&about, &answer))
    }

    fn remove_level(&self, subject: Option<&str>) -> Result<Level> {
        let about = About::subject("remove a compatibility level", subject.unwrap_or_default());
        let answer = self.request(&about, Method::DELETE, setting("config", subject), None)?;
        let word = answer.get("compatibilityLevel").or_else(|| answer.get("compatibility"));
        let word = word.unwrap_or(&answer).as_str();
        word.ok_or_else(|| self.unexpected_response(&about, &answer))?.parse()
    }

    fn mode(&self, subject: Option<&str>) -> Result<Option<Mode>> {
        let about = About::subject("read a mode", subject.unwrap_or_default());
        match self.request(&about, Method::GET, setting("mode", subject), None) {
            Ok(answer) => match mode_in(&answer) {
                Some(mode) => Ok(Some(mode)),
                None => Err(self.unexpected_response(&about, &answer)),
            },
            Err(Error::NoMode { .. } | Error::SubjectNotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn set_mode(&self, subject: Option<&str>, mode: Mode) -> Result<()> {
        let about = About::subject("set a mode", subject.unwrap_or_default());
        let body = json!({ "mode": mode.name() });
        self.request(&about, Method::PUT, setting("mode", subject), Some(body))
            .map(drop)
    }

    fn remove_mode(&self, subject: &str) -> Result<Mode> {
        let about = About::subject("remove a mode", subject);
        let answer = self.request(&about, Method::DELETE, setting("mode", Some(subject)), None)?;
        mode_in(&answer).ok_or_else(|| self.unexpected_response(&about, &answer))
    }
}
