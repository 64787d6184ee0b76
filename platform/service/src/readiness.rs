//! Readiness: which component of a process is not ready, why, and which command an operator runs next.
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
    red: Option<Red>,
    since: Instant,
    was_ready: bool,
    /// The cause that was logged last, and the time.
    said: Option<(String, Instant)>,
}

/// How a change of state is logged.
#[derive(Debug, PartialEq, Eq)]
enum Say {
    Nothing,
    Ready,
    Starting,
    Red,
}

impl Entry {
    fn put(&mut self, state: Option<Red>, now: Instant) -> Say {
        let was_red = self.red.is_some();
        self.red = state;
        let Some(red) = &self.red else {
            (self.was_ready, self.said) = (true, None);
            return if was_red { Say::Ready } else { Say::Nothing };
        };
        let quiet = match &self.said {
            Some((cause, at)) => *cause == red.cause || now.duration_since(*at) < STARTING,
            None => false,
        };
        if quiet {
            return Say::Nothing;
        }
        self.said = Some((red.cause.clone(), now));
        if self.was_ready || now.duration_since(self.since) >= STARTING {
            Say::Red
        } else {
            Say::Starting
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Red {
    cause: String,
    next_command: String,
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
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The command that an operator runs next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_command: Option<String>,
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
        let red = Red {
            cause: "starting".to_owned(),
            next_command: "wait; see the log for what it waits for".to_owned(),
        };
        let entry = Entry {
            red: Some(red),
            since: Instant::now(),
            was_ready: false,
            said: None,
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
            ready: entry.red.is_none(),
            cause: entry.red.as_ref().map(|red| red.cause.clone()),
            next_command: entry.red.as_ref().map(|red| red.next_command.clone()),
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
        self.put(None);
    }

    /// Reports the component as not ready, with the cause and the command that an operator runs next.
    pub fn not_ready(&self, cause: impl Into<String>, next_command: impl Into<String>) {
        self.put(Some(Red {
            cause: cause.into(),
            next_command: next_command.into(),
        }));
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn put(&self, state: Option<Red>) {
        let mut components = lock(&self.components);
        let ready = state.is_none();
        // Under the lock, so that the flag and the list cannot disagree.
        let was_ready = self.ready.swap(ready, Ordering::AcqRel);
        let (cause, next_command) = state
            .as_ref()
            .map(|red| (red.cause.clone(), red.next_command.clone()))
            .unwrap_or_default();
        let say = match components.states.get_mut(&(self.name.clone(), self.id)) {
            Some(entry) => entry.put(state, Instant::now()),
            None => Say::Nothing,
        };
        drop(components);
        if was_ready != ready {
            gauge(&self.name, ready);
        }
        match say {
            Say::Nothing => {}
            Say::Ready => tracing::info!(component = self.name, "component ready"),
            Say::Starting => tracing::info!(component = self.name, cause, "component starting"),
            Say::Red => tracing::warn!(component = self.name, cause, next_command, "component not ready"),
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
        let red = &readiness.report().components[1];
        assert_eq!(red.cause.as_deref(), Some("no broker answers"));
        assert_eq!(red.next_command.as_deref(), Some("trunkline doctor"));
        drop(log);
        assert!(readiness.report().ready, "a dropped component does not count");
    }

    #[test]
    fn changing_cause_is_logged_once_per_second() {
        let start = Instant::now();
        let red = |cause: &str| {
            Some(Red {
                cause: cause.to_owned(),
                next_command: "wait".to_owned(),
            })
        };
        let mut entry = Entry {
            red: red("starting"),
            since: start,
            was_ready: false,
            said: None,
        };
        let second = start + STARTING;
        assert_eq!(entry.put(red("task 0 recovers"), start), Say::Starting);
        assert_eq!(entry.put(red("task 1 recovers"), start), Say::Nothing);
        assert_eq!(entry.put(red("task 1 recovers"), second), Say::Red);
        assert_eq!(entry.put(red("task 1 recovers"), second + STARTING), Say::Nothing);
        assert_eq!(entry.put(None, second), Say::Ready);
        assert_eq!(entry.put(None, second), Say::Nothing);
        assert_eq!(entry.put(red("no broker answers"), second), Say::Red);
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
