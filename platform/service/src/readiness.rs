//! Readiness: which component of a process is not ready, why, and the fix.
//!
//! Components report their state; nothing polls them. A new component is not ready until it reports. Reporting an
//! unchanged state costs one atomic load, so a loop may do it in every iteration.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a component that was never ready counts as starting: its first cause is logged as information instead of a
/// warning. Also the minimum time between two log lines when the cause changes.
const STARTING: Duration = Duration::from_secs(1);

/// The components of a process; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    components: Arc<Mutex<Components>>,
}

#[derive(Debug, Default)]
struct Components {
    next: u64,
    states: BTreeMap<(String, u64), Entry>,
}

#[derive(Debug)]
struct Entry {
    not_ready: Option<NotReady>,
    detail: Option<String>,
    since: Instant,
    was_ready: bool,
    /// The cause that was logged last, and when.
    logged: Option<(String, Instant)>,
}

/// Which log line a change of state causes.
#[derive(Debug, PartialEq, Eq)]
enum LogEvent {
    None,
    Ready,
    Starting,
    NotReady,
}

impl Entry {
    fn set(&mut self, state: Option<NotReady>, now: Instant) -> LogEvent {
        let was_not_ready = self.not_ready.is_some();
        self.not_ready = state;
        let Some(reason) = &self.not_ready else {
            (self.was_ready, self.logged) = (true, None);
            return if was_not_ready { LogEvent::Ready } else { LogEvent::None };
        };
        let quiet = match &self.logged {
            Some((cause, at)) => *cause == reason.cause || now.duration_since(*at) < STARTING,
            None => false,
        };
        if quiet {
            return LogEvent::None;
        }
        self.logged = Some((reason.cause.clone(), now));
        if self.was_ready || now.duration_since(self.since) >= STARTING {
            LogEvent::NotReady
        } else {
            LogEvent::Starting
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct NotReady {
    cause: String,
    fix: String,
}

/// Handle with which a component reports its state. Dropping it removes the component.
#[derive(Debug)]
pub struct Component {
    name: String,
    id: u64,
    ready: AtomicBool,
    components: Arc<Mutex<Components>>,
}

/// The states of all components.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether all are ready.
    pub ready: bool,
    /// Each component, ordered by name.
    pub components: Vec<State>,
}

/// The state of one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// Its name.
    pub name: String,
    /// Whether the component is ready.
    pub ready: bool,
    /// Why the component is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The fix: a command, or what to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// A notice for operators, which is also shown while the component is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

fn lock(components: &Mutex<Components>) -> MutexGuard<'_, Components> {
    components.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Readiness {
    /// Creates an empty list of components, which counts as ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a component in the state "starting". Components with the same name are separate.
    pub fn register(&self, name: impl Into<String>) -> Component {
        let name = name.into();
        let mut components = lock(&self.components);
        let id = components.next;
        components.next += 1;
        let reason = NotReady {
            cause: "starting".to_owned(),
            fix: "wait; see the log for what it waits for".to_owned(),
        };
        let entry = Entry {
            not_ready: Some(reason),
            detail: None,
            since: Instant::now(),
            was_ready: false,
            logged: None,
        };
        components.states.insert((name.clone(), id), entry);
        drop(components);
        gauge(&name, false);
        Component {
            name,
            id,
            ready: AtomicBool::new(false),
            components: Arc::clone(&self.components),
        }
    }

    /// The states of all components.
    pub fn report(&self) -> Report {
        let components = lock(&self.components);
        let state = |((name, _), entry): (&(String, u64), &Entry)| State {
            name: name.clone(),
            ready: entry.not_ready.is_none(),
            cause: entry.not_ready.as_ref().map(|reason| reason.cause.clone()),
            fix: entry.not_ready.as_ref().map(|reason| reason.fix.clone()),
            detail: entry.detail.clone(),
        };
        let components: Vec<State> = components.states.iter().map(state).collect();
        Report {
            ready: components.iter().all(|state| state.ready),
            components,
        }
    }
}

impl Component {
    /// Reports the component as ready.
    pub fn ready(&self) {
        if self.ready.load(Ordering::Acquire) {
            return;
        }
        self.set(None);
    }

    /// Reports the component as not ready, with the cause and the fix.
    pub fn not_ready(&self, cause: impl Into<String>, fix: impl Into<String>) {
        self.set(Some(NotReady {
            cause: cause.into(),
            fix: fix.into(),
        }));
    }

    /// Sets the notice for operators, which is also shown while the component is ready.
    pub fn set_detail(&self, detail: Option<String>) {
        let mut components = lock(&self.components);
        if let Some(entry) = components.states.get_mut(&(self.name.clone(), self.id)) {
            entry.detail = detail;
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn set(&self, state: Option<NotReady>) {
        let mut components = lock(&self.components);
        let ready = state.is_none();
        // Under the lock, so that the flag and the list cannot disagree.
        let was_ready = self.ready.swap(ready, Ordering::AcqRel);
        let (cause, fix) = state
            .as_ref()
            .map(|reason| (reason.cause.clone(), reason.fix.clone()))
            .unwrap_or_default();
        let event = match components.states.get_mut(&(self.name.clone(), self.id)) {
            Some(entry) => entry.set(state, Instant::now()),
            None => LogEvent::None,
        };
        drop(components);
        if was_ready != ready {
            gauge(&self.name, ready);
        }
        match event {
            LogEvent::None => {}
            LogEvent::Ready => tracing::info!(component = self.name, "component ready"),
            LogEvent::Starting => tracing::info!(component = self.name, cause, "component starting"),
            LogEvent::NotReady => tracing::warn!(component = self.name, cause, fix, "component not ready"),
        }
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        lock(&self.components)
            .states
            .remove(&(std::mem::take(&mut self.name), self.id));
    }
}

fn gauge(name: &str, ready: bool) {
    metrics::gauge!("trunkline_component_ready", "component" => name.to_owned()).set(if ready { 1.0 } else { 0.0 });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_ready_when_all_components_are() {
        let readiness = Readiness::new();
        assert!(readiness.report().ready);
        let (log, edge) = (readiness.register("log"), readiness.register("edge"));
        edge.ready();
        let report = readiness.report();
        assert!(!report.ready);
        assert_eq!(
            report
                .components
                .iter()
                .map(|c| (&*c.name, c.ready))
                .collect::<Vec<_>>(),
            [("edge", true), ("log", false)]
        );
        log.ready();
        assert!(readiness.report().ready);
        log.not_ready("no broker answers", "trunkline doctor");
        let state = &readiness.report().components[1];
        assert_eq!(state.cause.as_deref(), Some("no broker answers"));
        assert_eq!(state.fix.as_deref(), Some("trunkline doctor"));
        log.ready();
        log.set_detail(Some("cut 12 bytes".to_owned()));
        let state = &readiness.report().components[1];
        assert_eq!((state.ready, state.detail.as_deref()), (true, Some("cut 12 bytes")));
        drop(log);
        assert!(readiness.report().ready, "a dropped component does not count");
    }

    #[test]
    fn changing_cause_is_logged_once_per_second() {
        let start = Instant::now();
        let not_ready = |cause: &str| {
            Some(NotReady {
                cause: cause.to_owned(),
                fix: "wait".to_owned(),
            })
        };
        let mut entry = Entry {
            not_ready: not_ready("starting"),
            detail: None,
            since: start,
            was_ready: false,
            logged: None,
        };
        let second = start + STARTING;
        assert_eq!(entry.set(not_ready("task 0 recovers"), start), LogEvent::Starting);
        assert_eq!(entry.set(not_ready("task 1 recovers"), start), LogEvent::None);
        assert_eq!(entry.set(not_ready("task 1 recovers"), second), LogEvent::NotReady);
        assert_eq!(
            entry.set(not_ready("task 1 recovers"), second + STARTING),
            LogEvent::None
        );
        assert_eq!(entry.set(None, second), LogEvent::Ready);
        assert_eq!(entry.set(None, second), LogEvent::None);
        assert_eq!(entry.set(not_ready("no broker answers"), second), LogEvent::NotReady);
    }

    #[test]
    fn components_with_the_same_name_are_separate() {
        let readiness = Readiness::new();
        let (one, other) = (readiness.register("task"), readiness.register("task"));
        one.ready();
        assert!(!readiness.report().ready);
        drop(other);
        assert!(readiness.report().ready);
    }
}
