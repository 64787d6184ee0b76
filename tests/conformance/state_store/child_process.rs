//! The engines of a test, sled's part in a process of its own with a limit.
//!
//! sled 0.34 may stand still for ever: a thread that holds the lock over its segments waits for a truncation, which is
//! queued behind a write that wants that lock. Every other sled store of the process then stands still with it, so a
//! part that does is ended and begun anew.
//! Guarantees: a part that fails fails its test at once; only one that stands still is tried again, at most twice.
//! Never: a process that outlives its test.

use state_store::Engine;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Set in the child only: it plays sled's part.
const CHILD: &str = "TRUNKLINE_TEST_STORE_SLED";
const LIMIT: Duration = Duration::from_secs(180);
const TRIES: usize = 3;

/// Plays a test's part for each engine. The part must be a closure written in the test itself: its name is the test's.
pub fn on_each<P: FnMut(Engine)>(engines: &[Engine], mut part: P) {
    #[expect(clippy::disallowed_methods, reason = "how a test tells its child what to do")]
    let is_child = std::env::var_os(CHILD).is_some();
    if is_child {
        return part(Engine::Sled);
    }
    for &engine in engines {
        if engine == Engine::Sled {
            apart(&test_of::<P>());
        } else {
            part(engine);
        }
    }
}

/// The test that a closure was written in.
fn test_of<P>() -> String {
    let name = std::any::type_name::<P>();
    let name = name.split_once("::").map_or(name, |(_, inside)| inside);
    name.trim_end_matches("::{{closure}}").to_owned()
}

fn apart(test: &str) {
    for attempt in 1..=TRIES {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let began = Instant::now();
        let said = child.stdout.take().unwrap();
        let said = std::thread::Builder::new()
            .name("said".to_owned())
            .spawn(move || std::io::read_to_string(said).unwrap_or_default())
            .unwrap();
        while began.elapsed() < LIMIT {
            if let Some(ended) = child.try_wait().unwrap() {
                let said = said.join().unwrap();
                println!("{said}");
                assert!(ended.success(), "sled's part of {test}: {ended}");
                assert!(said.contains("1 passed"), "no test is called {test}");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // The whole group: a child of the child stands still with it, or waits for it.
        crate::support::kill_group(child.id());
        child.wait().unwrap();
        println!("sled stood still for {LIMIT:?} in {test}, attempt {attempt} of {TRIES}");
    }
    panic!("sled stood still in {test} {TRIES} times");
}
