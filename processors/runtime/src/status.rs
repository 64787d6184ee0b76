//! What stands between an application and work, for readiness and for people.
//!
//! Guarantees: a red readiness names the cause and, where people must act, the next command.
//! Never: a value from data.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Causes why an application is not ready, by thread or task. Shared.
#[derive(Debug, Default)]
pub struct Status {
    causes: Mutex<BTreeMap<String, String>>,
}

impl Status {
    /// Says what a part waits for; `None` when it works.
    pub fn set(&self, part: &str, cause: Option<String>) {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        match cause {
            Some(cause) => {
                causes.insert(part.to_owned(), cause);
            }
            None => {
                causes.remove(part);
            }
        }
    }

    /// The causes, as `part: cause`; empty when everything works.
    pub fn causes(&self) -> Vec<String> {
        let causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        causes.iter().map(|(part, cause)| format!("{part}: {cause}")).collect()
    }
}
