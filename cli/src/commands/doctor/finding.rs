//! Result of a check.

use crate::connectors_client::Level;
use serde::Serialize;

/// Result of one check.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: &'static str,
    /// Whether it is not a problem; a warning is none.
    pub ok: bool,
    /// How serious it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// The command or statement that helps.
    pub fix: String,
}

/// A check that found what is expected.
pub fn good(check: &'static str, found: impl Into<String>) -> Finding {
    new(check, Level::Ok, found, "")
}

/// A state that is intended, temporary, or not a problem yet.
pub fn warning(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    new(check, Level::Warn, found, fix)
}

/// A problem.
pub fn bad(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    new(check, Level::Bad, found, fix)
}

/// A finding of any level.
pub fn new(check: &'static str, level: Level, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        check,
        ok: level < Level::Bad,
        level,
        found: found.into(),
        fix: fix.into(),
    }
}
