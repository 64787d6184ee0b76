//! Operations of registry clients that Trunkline itself does not need: deletions, listings with deleted versions, and modes.

use crate::{Error, Level, Registered, Result, Version};
use std::fmt;
use std::str::FromStr;

/// Which versions a listing contains. Deleted versions are those that can be restored by registering their schema again
/// (soft delete).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Deleted {
    /// Only versions that are not deleted.
    #[default]
    Exclude,
    /// All versions.
    Include,
    /// Only deleted versions.
    Only,
}

impl Deleted {
    /// Whether the listing contains a version.
    pub fn contains(self, is_deleted: bool) -> bool {
        match self {
            Deleted::Exclude => !is_deleted,
            Deleted::Include => true,
            Deleted::Only => is_deleted,
        }
    }
}

/// How a deletion works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// The id remains valid, and the schema can be registered again.
    Soft,
    /// The version is removed. It must have been deleted softly before.
    Permanent,
}

/// Whether schemas can be registered and deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// They can.
    #[default]
    ReadWrite,
    /// They cannot.
    ReadOnly,
    /// They cannot, whatever the modes of subjects.
    ReadOnlyOverride,
}

impl Mode {
    /// Confluent's name of the mode.
    pub fn name(self) -> &'static str {
        match self {
            Mode::ReadWrite => "READWRITE",
            Mode::ReadOnly => "READONLY",
            Mode::ReadOnlyOverride => "READONLY_OVERRIDE",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Mode::ReadWrite, Mode::ReadOnly, Mode::ReadOnlyOverride];
        let found = all.into_iter().find(|mode| mode.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| Error::InvalidMode {
            mode: text.chars().take(64).collect(),
        })
    }
}

/// Listings, deletions and modes. All calls block.
pub trait Manage {
    /// Subjects with at least one such version, sorted.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    fn list_subjects(&self, deleted: Deleted) -> Result<Vec<String>>;

    /// Such versions of a subject, in ascending order.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::Unavailable`].
    fn list_versions(&self, subject: &str, deleted: Deleted) -> Result<Vec<u32>>;

    /// One version of a subject, which may be deleted.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::VersionNotFound`], [`Error::Unavailable`].
    fn any_version(&self, subject: &str, version: Version) -> Result<Registered>;

    /// Deletes all versions of a subject and returns them.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::SubjectDeleted`], [`Error::SubjectNotDeleted`], [`Error::ReadOnly`],
    /// [`Error::Unavailable`].
    fn delete_subject(&self, subject: &str, deletion: Deletion) -> Result<Vec<u32>>;

    /// Deletes a version of a subject and returns its number.
    ///
    /// # Errors
    /// As for [`Manage::delete_subject`], and the same for the version.
    fn delete_version(&self, subject: &str, version: Version, deletion: Deletion) -> Result<u32>;

    /// Removes the compatibility level of a subject, or resets the global level for `None`. Returns the previous level.
    ///
    /// # Errors
    /// [`Error::NoLevel`], [`Error::Unavailable`].
    fn remove_level(&self, subject: Option<&str>) -> Result<Level>;

    /// The mode of a subject, or the global mode for `None`. Returns `None` if no mode is set for the subject.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    fn mode(&self, subject: Option<&str>) -> Result<Option<Mode>>;

    /// Sets the mode of a subject, or the global mode for `None`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    fn set_mode(&self, subject: Option<&str>, mode: Mode) -> Result<()>;

    /// Removes the mode of a subject and returns it.
    ///
    /// # Errors
    /// [`Error::NoMode`], [`Error::Unavailable`].
    fn remove_mode(&self, subject: &str) -> Result<Mode>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_parse_in_any_case() {
        for word in ["READWRITE", "readonly", "ReadOnly_Override"] {
            assert!(word.parse::<Mode>().unwrap().name().eq_ignore_ascii_case(word));
        }
        assert_eq!("IMPORT".parse::<Mode>().unwrap_err().code(), 42204);
    }
}
