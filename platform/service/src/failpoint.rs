//! Failpoints: named places where a crash test makes the process die as by kill -9, or wait.
//!
//! `TRUNKLINE_FAILPOINTS` lists them, separated by commas: `name=kill` dies at the first hit, `name=kill@3` at the
//! third, `name=pause:250` waits 250 ms at each hit, `name=pause:250@3` at the third only.
//! A simulation, whose processes are threads, watches its threads' points instead ([`watch`]).
//! Guarantees: without the variable a hit costs three loads; a list that cannot be read is an error at the start
//! ([`check`]), so that no crash test passes because of a typing mistake.
//! Never: a clean-up before the death.

use crate::config;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The environment variable with the list.
pub const VARIABLE: &str = "TRUNKLINE_FAILPOINTS";

/// The list cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE} holds `{entry}`; an entry is NAME=kill, NAME=kill@HIT, NAME=pause:MS or NAME=pause:MS@HIT")]
pub struct Unreadable {
    /// The entry that is wrong.
    pub entry: String,
}

#[derive(Debug)]
struct Armed {
    action: Action,
    /// The hit at which it acts, from 1; `None` = at each.
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

/// Reads the list. A process calls it once when it starts.
///
/// # Errors
/// The entry that cannot be read.
pub fn check() -> Result<(), &'static Unreadable> {
    armed().as_ref().map(|_| ())
}

/// What a thread does at its failpoints.
type Watch = Rc<dyn Fn(&'static str)>;

/// Whether any thread of this process watches.
static WATCHED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// From now on this thread calls `at_point` with the name of every failpoint that it passes: a simulation lets the
/// thread's process die there by unwinding.
pub fn watch(at_point: impl Fn(&'static str) + 'static) {
    WATCH.with_borrow_mut(|watch| *watch = Some(Rc::new(at_point)));
    WATCHED.store(true, Ordering::Relaxed);
}

/// Passes a failpoint, waits there, or dies there.
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
            // Not through the logger: it may hold its lines in a buffer, and this is the last chance.
            eprintln!("failpoint {name}: dying here");
            std::process::abort();
        }
    }
}

impl Armed {
    /// Counts a hit; what it is to do.
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
    fn a_point_acts_at_the_hit_that_was_named() {
        let armed = parse("a=kill, b=kill@3,c=pause:250,d=pause:1@2").unwrap();
        let due = |name: &str| (0..4).map(|_| armed[name].due()).collect::<Vec<_>>();
        let (kill, pause) = (Some(Action::Kill), |ms| Some(Action::Pause(Duration::from_millis(ms))));
        assert_eq!(due("a"), [kill, None, None, None]);
        assert_eq!(due("b"), [None, None, kill, None]);
        assert_eq!(due("c"), [pause(250); 4]);
        assert_eq!(due("d"), [None, pause(1), None, None]);
    }

    #[test]
    fn a_thread_that_watches_hears_of_its_own_points_only() {
        let heard = Rc::new(RefCell::new(Vec::new()));
        let own = heard.clone();
        watch(move |name| own.borrow_mut().push(name));
        hit("here");
        std::thread::scope(|scope| drop(scope.spawn(|| hit("elsewhere"))));
        assert_eq!(*heard.borrow(), ["here"]);
    }

    #[test]
    fn a_mistyped_entry_is_an_error_that_shows_it() {
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
