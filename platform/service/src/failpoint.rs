//! Failpoints: named places at which a crash test aborts the process, as kill -9 would, or delays it.
//!
//! The environment variable `TRUNKLINE_FAILPOINTS` lists them, separated by commas: `name=kill` aborts at the first hit,
//! `name=kill@3` at the third, `name=pause:250` sleeps 250 ms at each hit, `name=pause:250@3` at the third only. An
//! invalid list is an error at startup ([`check`]), so that no crash test passes because of a typing mistake. Without
//! the variable a hit costs three atomic loads. A simulation, whose processes are threads, observes the failpoints of
//! its threads instead ([`watch`]).

use crate::config;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The environment variable that lists the failpoints.
pub const VARIABLE: &str = "TRUNKLINE_FAILPOINTS";

/// The list of failpoints is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid entry `{entry}` in {VARIABLE}; use NAME=kill, NAME=kill@HIT, NAME=pause:MS or NAME=pause:MS@HIT")]
pub struct Unreadable {
    /// The invalid entry.
    pub entry: String,
}

#[derive(Debug)]
struct Armed {
    action: Action,
    /// The hit at which it acts, counted from 1; `None`: at every hit.
    at: Option<u64>,
    hits: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Pause(Duration),
}

static ARMED: OnceLock<Result<HashMap<String, Armed>, Unreadable>> = OnceLock::new();

fn armed() -> &'static Result<HashMap<String, Armed>, Unreadable> {
    ARMED.get_or_init(|| parse(&config::env(VARIABLE).unwrap_or_default()))
}

/// Parses the list. A process calls this once at startup.
///
/// # Errors
/// The first invalid entry.
pub fn check() -> Result<(), &'static Unreadable> {
    armed().as_ref().map(|_| ())
}

/// Called at every failpoint of a thread.
type Watch = Rc<dyn Fn(&'static str)>;

/// Whether any thread of this process has a watch. Keeps [`hit`] cheap without one.
static WATCHED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// Makes this thread call `at_point` with the name of every failpoint that it passes. A simulation ends the simulated
/// process there by unwinding.
pub fn watch(at_point: impl Fn(&'static str) + 'static) {
    WATCH.with_borrow_mut(|watch| *watch = Some(Rc::new(at_point)));
    WATCHED.store(true, Ordering::Relaxed);
}

/// Passes the failpoint of this name: does nothing, sleeps, or aborts the process.
pub fn hit(name: &'static str) {
    if WATCHED.load(Ordering::Relaxed)
        && let Some(watch) = WATCH.with_borrow(Option::clone)
    {
        watch(name);
    }
    let Ok(armed) = armed() else { return };
    if armed.is_empty() {
        return;
    }
    match armed.get(name).and_then(Armed::due) {
        None => {}
        Some(Action::Pause(time)) => std::thread::sleep(time),
        Some(Action::Kill) => {
            // Not through the logger, which may buffer its lines: the process ends here.
            eprintln!("failpoint {name}: aborting");
            std::process::abort();
        }
    }
}

impl Armed {
    /// Counts a hit and returns the action that is due.
    fn due(&self) -> Option<Action> {
        let hit = self.hits.fetch_add(1, Ordering::SeqCst) + 1;
        self.at.is_none_or(|at| at == hit).then_some(self.action)
    }
}

fn parse(text: &str) -> Result<HashMap<String, Armed>, Unreadable> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            parse_entry(entry).ok_or_else(|| Unreadable {
                entry: entry.to_owned(),
            })
        })
        .collect()
}

fn parse_entry(entry: &str) -> Option<(String, Armed)> {
    let (name, what) = entry.split_once('=')?;
    let (what, at) = match what.split_once('@') {
        Some((what, at)) => (what, Some(at.parse().ok().filter(|at| *at > 0)?)),
        None => (what, None),
    };
    let (action, at) = match what.strip_prefix("pause:") {
        Some(ms) => (Action::Pause(Duration::from_millis(ms.parse().ok()?)), at),
        None if what == "kill" => (Action::Kill, at.or(Some(1))),
        None => return None,
    };
    Some((
        name.to_owned(),
        Armed {
            action,
            at,
            hits: AtomicU64::new(0),
        },
    ))
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
    fn watch_sees_the_failpoints_of_its_thread_only() {
        let heard = Rc::new(RefCell::new(Vec::new()));
        let own = heard.clone();
        watch(move |name| own.borrow_mut().push(name));
        hit("here");
        std::thread::scope(|scope| drop(scope.spawn(|| hit("elsewhere"))));
        assert_eq!(*heard.borrow(), ["here"]);
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
