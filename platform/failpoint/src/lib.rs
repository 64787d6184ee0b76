//! Failpoints: named places at which a crash test aborts the process, as kill -9 would, or delays it.
//!
//! Code calls [`hit`] at a failpoint. A process arms failpoints with [`arm`]. If no failpoint is armed and no thread
//! has a [`watch`], a call of [`hit`] costs two atomic loads. A test in which threads of one process simulate several
//! processes watches the failpoints of its threads instead.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// An entry of a list of failpoints is invalid.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidEntry {
    /// The entry.
    pub entry: String,
}

impl fmt::Display for InvalidEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "invalid failpoint `{}`; use NAME=kill, NAME=kill@HIT, NAME=pause:MS or NAME=pause:MS@HIT",
            self.entry
        )
    }
}

impl std::error::Error for InvalidEntry {}

#[derive(Debug)]
struct Armed {
    action: Action,
    /// The pass at which the failpoint acts, counted from 1; `None` for every pass.
    at: Option<u64>,
    hits: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Pause(Duration),
}

static ARMED: RwLock<Option<HashMap<String, Armed>>> = RwLock::new(None);
/// Whether a failpoint is armed. If not, [`hit`] returns immediately.
static IS_ARMED: AtomicBool = AtomicBool::new(false);

/// Arms the failpoints in a list, and no others. The entries are separated by commas: `name=kill` aborts when the
/// failpoint is passed for the first time, `name=kill@3` for the third time; `name=pause:250` sleeps 250 ms each time,
/// `name=pause:250@3` only the third time.
///
/// # Errors
/// The first invalid entry. A process must not start with an invalid list, because its crash test would
/// succeed without a crash.
pub fn arm(list: &str) -> Result<(), InvalidEntry> {
    let armed = parse(list)?;
    IS_ARMED.store(!armed.is_empty(), Ordering::Relaxed);
    *ARMED.write().unwrap_or_else(PoisonError::into_inner) = Some(armed);
    Ok(())
}

/// Called at every failpoint that the thread passes.
type Watch = Rc<dyn Fn(&'static str)>;

/// Whether any thread of this process has a watch. If not, [`hit`] returns immediately.
static WATCHED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// Makes this thread call `at_point` with the name of every failpoint that it passes. A simulation can end a simulated
/// process there by unwinding.
pub fn watch(at_point: impl Fn(&'static str) + 'static) {
    WATCH.with_borrow_mut(|watch| *watch = Some(Rc::new(at_point)));
    WATCHED.store(true, Ordering::Relaxed);
}

/// Passes the failpoint with this name: does nothing, sleeps, or aborts the process.
pub fn hit(name: &'static str) {
    if WATCHED.load(Ordering::Relaxed)
        && let Some(watch) = WATCH.with_borrow(Option::clone)
    {
        watch(name);
    }
    if !IS_ARMED.load(Ordering::Relaxed) {
        return;
    }
    let due = {
        let armed = ARMED.read().unwrap_or_else(PoisonError::into_inner);
        armed.as_ref().and_then(|armed| armed.get(name)?.due())
    };
    match due {
        None => {}
        Some(Action::Pause(time)) => std::thread::sleep(time),
        Some(Action::Kill) => {
            // Not written through the logger, which may buffer its lines, because the process ends here.
            eprintln!("failpoint {name}: aborting");
            std::process::abort();
        }
    }
}

impl Armed {
    /// Counts a pass and returns the action that must be performed.
    fn due(&self) -> Option<Action> {
        let hit = self.hits.fetch_add(1, Ordering::SeqCst) + 1;
        self.at.is_none_or(|at| at == hit).then_some(self.action)
    }
}

fn parse(list: &str) -> Result<HashMap<String, Armed>, InvalidEntry> {
    let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            parse_entry(entry).ok_or_else(|| InvalidEntry {
                entry: entry.to_owned(),
            })
        })
        .collect()
}

fn parse_entry(entry: &str) -> Option<(String, Armed)> {
    let (name, action) = entry.split_once('=')?;
    let (action, at) = match action.split_once('@') {
        Some((action, at)) => (action, Some(at.parse().ok().filter(|at| *at > 0)?)),
        None => (action, None),
    };
    let (action, at) = match action.strip_prefix("pause:") {
        Some(ms) => (Action::Pause(Duration::from_millis(ms.parse().ok()?)), at),
        None if action == "kill" => (Action::Kill, at.or(Some(1))),
        None => return None,
    };
    let hits = AtomicU64::new(0);
    Some((name.to_owned(), Armed { action, at, hits }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failpoint_acts_at_the_configured_hit() {
        let armed = parse("a=kill, b=kill@3,c=pause:250,d=pause:1@2").unwrap();
        let due = |name: &str| (0..4).map(|_| armed[name].due()).collect::<Vec<_>>();
        let (kill, pause) = (Some(Action::Kill), |ms| Some(Action::Pause(Duration::from_millis(ms))));
        assert_eq!(due("a"), [kill, None, None, None]);
        assert_eq!(due("b"), [None, None, kill, None]);
        assert_eq!(due("c"), [pause(250); 4]);
        assert_eq!(due("d"), [None, pause(1), None, None]);
    }

    #[test]
    fn hit_counts_armed_failpoints() {
        let hits = || {
            let armed = ARMED.read().unwrap();
            armed.as_ref().unwrap()["counted"].hits.load(Ordering::SeqCst)
        };
        arm("counted=pause:0@9").unwrap();
        hit("counted");
        hit("other");
        assert_eq!(hits(), 1);
        assert!(arm("counted=kil").is_err());
        hit("counted");
        assert_eq!(hits(), 2, "an invalid list changes nothing");
    }

    #[test]
    fn watch_sees_the_failpoints_of_its_thread_only() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let own = seen.clone();
        watch(move |name| own.borrow_mut().push(name));
        hit("here");
        std::thread::scope(|scope| drop(scope.spawn(|| hit("elsewhere"))));
        assert_eq!(*seen.borrow(), ["here"]);
    }

    #[test]
    fn invalid_entry_is_named_in_the_error() {
        for wrong in [
            "commit",
            "a=die",
            "a=kill@",
            "a=kill@0",
            "a=pause",
            "a=pause:x",
            "ok=kill,b=kil",
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(wrong.ends_with(&error.entry), "{error}");
        }
        assert!(parse("").unwrap().is_empty());
    }
}
