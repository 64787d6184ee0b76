//! Readiness: which component of a process is not ready, why, and what an operator does about it.
//!
//! Guarantees: a component that has not said otherwise is not ready; a red one has a cause and a next command; a state
//! that does not change costs one atomic load, so threads may set it in every round.
//! Never: asks a component. Components tell.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a component that was never ready is starting: until then what it waits for is no warning, and only its first
/// cause is logged. A cause that changes is logged once in this time.
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
    /// The cause that was logged last, and when.
    said: Option<(String, Instant)>,
}

/// What a change of state is worth to the log.
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

/// One component's own word. It leaves the list when it is dropped.
#[derive(Debug)]
pub struct Component {
    name: String,
    id: u64,
    ready: AtomicBool,
    components: Arc<Mutex<Components>>,
}

/// All components at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether all are ready.
    pub ready: bool,
    /// Each of them, by name.
    pub components: Vec<State>,
}

/// One component at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// Its name.
    pub name: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What an operator runs next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_command: Option<String>,
}

fn lock(components: &Mutex<Components>) -> MutexGuard<'_, Components> {
    components.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Readiness {
    /// No components: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a component, which is not ready because it starts. Two of one name are two.
    pub fn register(&self, name: impl Into<String>) -> Component {
        let name = name.into();
        let mut components = lock(&self.components);
        let id = components.next;
        components.next += 1;
        let red = Red {
            cause: "starting".to_owned(),
            next_command: "wait; the log says what it waits for".to_owned(),
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

    /// How all of them are.
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
    /// It is ready.
    pub fn ready(&self) {
        if self.ready.load(Ordering::Acquire) {
            return;
        }
        self.put(None);
    }

    /// It is not ready: why, and what an operator runs next.
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
        // Under the lock, so that the flag and the list never disagree.
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
            Say::Ready => tracing::info!(component = self.name, "ready"),
            Say::Starting => tracing::info!(component = self.name, "not ready yet: {cause}"),
            Say::Red => tracing::warn!(component = self.name, next_command, "not ready: {cause}"),
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
    fn a_process_is_ready_when_all_its_components_say_so() {
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
        assert!(readiness.report().ready, "who is gone is not waited for");
    }

    #[test]
    fn a_start_is_not_a_warning_and_a_cause_that_changes_all_the_time_is_said_once_a_second() {
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
    fn two_components_of_one_name_are_two() {
        let readiness = Readiness::new();
        let (one, other) = (readiness.register("task"), readiness.register("task"));
        one.ready();
        assert!(!readiness.report().ready);
        drop(other);
        assert!(readiness.report().ready);
    }
}
