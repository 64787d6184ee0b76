//! What stands between an application and work, for readiness and for people.
//!
//! Guarantees: a red readiness names the cause and the next command; what does not change costs a comparison.
//! Never: a value from data.

use service::Component;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Causes shown at once; more are counted.
const SHOWN: usize = 3;

/// Why a part does not work, and what people do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub text: String,
    pub next: &'static str,
}

impl Cause {
    /// It mends itself.
    pub(crate) fn passing(text: impl Into<String>) -> Self {
        Cause {
            text: text.into(),
            next: "wait; `trunkline lag` shows how far it is",
        }
    }

    /// The log or its surroundings must come back.
    pub(crate) fn outside(text: impl Into<String>) -> Self {
        Cause {
            text: text.into(),
            next: "trunkline doctor",
        }
    }

    /// People must act as the text says.
    pub(crate) fn people(text: impl Into<String>) -> Self {
        Cause {
            text: text.into(),
            next: "mend what the cause names; the task looks again by itself or after a restart",
        }
    }
}

/// Causes by thread and task.
#[derive(Debug, Default)]
pub(crate) struct Status {
    parts: Mutex<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    causes: BTreeMap<String, Cause>,
    component: Option<Component>,
}

impl Status {
    /// A status that is told to a process's readiness.
    pub(crate) fn told_to(component: Component) -> Self {
        Status {
            parts: Mutex::new(Parts {
                causes: BTreeMap::new(),
                component: Some(component),
            }),
        }
    }

    /// Says what a part waits for; `None` when it works.
    pub(crate) fn set(&self, part: &str, cause: Option<Cause>) {
        let mut parts = self.lock();
        if parts.causes.get(part) == cause.as_ref() {
            return;
        }
        match cause {
            Some(cause) => parts.causes.insert(part.to_owned(), cause),
            None => parts.causes.remove(part),
        };
        parts.tell();
    }

    /// The causes, as `part: cause`; empty when everything works.
    pub(crate) fn causes(&self) -> Vec<String> {
        self.lock()
            .causes
            .iter()
            .map(|(part, cause)| format!("{part}: {}", cause.text))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parts {
    fn tell(&self) {
        let Some(component) = &self.component else { return };
        let Some(first) = self.causes.values().next() else {
            return component.ready();
        };
        let shown = self
            .causes
            .iter()
            .take(SHOWN)
            .map(|(part, cause)| format!("{part}: {}", cause.text));
        let mut text = shown.collect::<Vec<_>>().join("; ");
        if self.causes.len() > SHOWN {
            text.push_str(&format!("; and {} more", self.causes.len() - SHOWN));
        }
        component.not_ready(text, first.next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::Readiness;

    #[test]
    fn readiness_names_what_does_not_work_and_turns_green_after_the_last_cause() {
        let readiness = Readiness::new();
        let status = Status::told_to(readiness.register("sync"));
        status.set("task a/0", Some(Cause::passing("restoring")));
        status.set("thread", Some(Cause::outside("log is out of reach")));
        let report = readiness.report();
        assert!(!report.ready);
        assert_eq!(
            report.components[0].cause.as_deref(),
            Some("task a/0: restoring; thread: log is out of reach")
        );
        status.set("task a/0", None);
        assert_eq!(
            readiness.report().components[0].next_command.as_deref(),
            Some("trunkline doctor")
        );
        status.set("thread", None);
        assert!(readiness.report().ready);
    }
}
