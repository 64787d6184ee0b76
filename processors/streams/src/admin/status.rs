//! The reasons why an application is not ready, for readiness: one cause per thread and task, with the command to run
//! next.

use service::Component;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Maximum number of causes in the text; the others are counted.
const CAUSES_MAX: usize = 3;

/// Why a thread or task does not work, and what an operator can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub text: String,
    pub fix: &'static str,
}

impl Cause {
    /// A cause that disappears without intervention.
    pub(crate) fn transient(text: impl Into<String>) -> Self {
        Cause {
            text: text.into(),
            fix: "wait; `trunkline lag` shows the progress",
        }
    }

    /// The log is unavailable, or a service that the processor depends on.
    pub(crate) fn unavailable(text: impl Into<String>) -> Self {
        Cause {
            text: text.into(),
            fix: "trunkline doctor",
        }
    }

    /// A cause that an operator must resolve, as the text says.
    pub(crate) fn operator(text: impl Into<String>) -> Self {
        Cause {
            text: text.into(),
            fix: "fix the named cause; the task retries automatically or after a restart",
        }
    }
}

/// Causes of an application.
#[derive(Debug, Default)]
pub(crate) struct Status {
    inner: Mutex<Causes>,
}

#[derive(Debug, Default)]
struct Causes {
    /// Causes by the name of the thread or task.
    causes: BTreeMap<String, Cause>,
    component: Option<Component>,
}

impl Status {
    /// A status that updates a component of the process's readiness.
    pub(crate) fn for_component(component: Component) -> Self {
        Status {
            inner: Mutex::new(Causes {
                causes: BTreeMap::new(),
                component: Some(component),
            }),
        }
    }

    /// Sets the cause of a thread or task; `None` if it works.
    pub(crate) fn set(&self, name: &str, cause: Option<Cause>) {
        let mut inner = self.lock();
        if inner.causes.get(name) == cause.as_ref() {
            return;
        }
        match cause {
            Some(cause) => inner.causes.insert(name.to_owned(), cause),
            None => inner.causes.remove(name),
        };
        inner.publish();
    }

    /// All causes, as `name: cause`; empty if everything works.
    pub(crate) fn causes(&self) -> Vec<String> {
        self.lock()
            .causes
            .iter()
            .map(|(name, cause)| format!("{name}: {}", cause.text))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Causes> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Causes {
    fn publish(&self) {
        let Some(component) = &self.component else { return };
        let Some(first) = self.causes.values().next() else {
            return component.ready();
        };
        let shown = self
            .causes
            .iter()
            .take(CAUSES_MAX)
            .map(|(name, cause)| format!("{name}: {}", cause.text));
        let mut text = shown.collect::<Vec<_>>().join("; ");
        if self.causes.len() > CAUSES_MAX {
            text.push_str(&format!("; and {} more", self.causes.len() - CAUSES_MAX));
        }
        component.not_ready(text, first.fix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::Readiness;

    #[test]
    fn readiness_lists_causes_until_the_last_is_cleared() {
        let readiness = Readiness::new();
        let status = Status::for_component(readiness.register("sync"));
        status.set("task a/0", Some(Cause::transient("restoring")));
        status.set("thread", Some(Cause::unavailable("log is unavailable")));
        let report = readiness.report();
        assert!(!report.ready);
        assert_eq!(
            report.components[0].cause.as_deref(),
            Some("task a/0: restoring; thread: log is unavailable")
        );
        status.set("task a/0", None);
        assert_eq!(
            readiness.report().components[0].fix.as_deref(),
            Some("trunkline doctor")
        );
        status.set("thread", None);
        assert!(readiness.report().ready);
    }
}
