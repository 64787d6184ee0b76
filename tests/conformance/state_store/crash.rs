//! kill -9 in the middle of commits.
//!
//! Guarantees: the child is this test binary in a mode of its own; it is killed at random moments, several times on one
//! directory, while buffers are flushed and compacted.
//! Never: a child that outlives its test.

use super::child_process::on_each;
use super::{ON_DISK, Random, options, rows};
use crate::support::wait_for;
use state_store::{Batch, Direction, Engine, Space, Store};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Set in the child only: `engine directory`.
const CHILD: &str = "TRUNKLINE_TEST_STORE_CHILD";
/// Keys that batches overwrite again and again, so that flushes and compactions have work.
const KEYS: u64 = 5_000;

/// Not a test of its own: the child's body. Without the variable it has nothing to do.
#[test]
fn child_commits_numbered_batches_until_it_is_killed() {
    #[expect(clippy::disallowed_methods, reason = "how a test tells its child what to do")]
    let Ok(order) = std::env::var(CHILD) else { return };
    let (engine, dir) = order.split_once(' ').expect("engine and directory");
    let engine = if engine == "Sled" { Engine::Sled } else { Engine::Fjall };
    let store = state_store::open(&options(engine, Path::new(dir))).unwrap();
    let mut next = last(&*store) + 1;
    println!("child open at {next}");
    while dir.ends_with(LOADS) {
        store.load(Space(1), loaded(next)).unwrap();
        println!("child committed {next}");
        next += 1;
    }
    loop {
        store.commit(numbered(next)).unwrap();
        println!("child committed {next}");
        next += 1;
    }
}

/// A store in a directory of this name is loaded, not committed to.
const LOADS: &str = "loads";

/// Load `n`: every key with this number, but in an odd one every third key is deleted.
fn loaded(n: u64) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let keeps = |key: u64| n.is_multiple_of(2) || !key.is_multiple_of(3);
    // Out of order: the store sorts.
    let keys = (0..KEYS).map(|at| at * 2_003 % KEYS);
    keys.map(|key| {
        let value = keeps(key).then(|| [&n.to_be_bytes()[..], &[b'x'; 100]].concat());
        (format!("[\"row\",{key}]").into_bytes(), value)
    })
    .collect()
}

#[test]
fn after_kill_9_a_load_is_there_whole_or_not_at_all() {
    on_each(&ON_DISK, |engine| {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join(LOADS);
        for loads in [1, 7, 12] {
            let mut child = child(engine, &dir);
            let said = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut committed =
                said.filter_map(|line| line.unwrap().strip_prefix("child committed ")?.parse::<u64>().ok());
            let acknowledged = committed.nth(loads - 1).expect("the child loads until it is killed");
            child.kill().unwrap();
            child.wait().unwrap();
            let store = state_store::open(&options(engine, &dir)).unwrap();
            let got = rows(&*store, Space(1), b"", None, Direction::Forward);
            let Some((_, value)) = got.first() else {
                assert_eq!(engine, Engine::Sled, "everything is gone that was acknowledged");
                continue;
            };
            let n = u64::from_be_bytes(value[..8].try_into().unwrap());
            if engine == Engine::Fjall {
                assert!(n >= acknowledged, "{n} < {acknowledged}, which was acknowledged");
            }
            let mut want: Vec<_> = loaded(n)
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?)))
                .collect();
            want.sort();
            assert!(got == want, "{engine:?}: not the state after load {n}");
        }
    });
}

/// Rows of a load and of batches before and after it are told apart by their order alone.
#[test]
fn a_load_takes_its_place_among_batches() {
    on_each(&[Engine::Fjall, Engine::Sled, Engine::Memory], |engine| {
        let dir = tempfile::tempdir().unwrap();
        let store = state_store::open(&options(engine, dir.path())).unwrap();
        let mut batch = Batch::default();
        batch.put(Space(1), b"[\"row\",0]", b"before");
        batch.put(Space(1), b"[\"row\",5]", b"before");
        batch.put(Space(1), b"[\"roe\"]", b"before");
        store.commit(batch).unwrap();
        store.load(Space(1), loaded(1)).unwrap();
        let mut batch = Batch::default();
        batch.put(Space(1), b"[\"row\",3]", b"after");
        batch.delete(Space(1), b"[\"row\",4]");
        store.commit(batch).unwrap();
        let store = if engine == Engine::Memory {
            store
        } else {
            drop(store);
            state_store::open(&options(engine, dir.path())).unwrap()
        };
        let text = |key: &[u8]| {
            let value = store.get(Space(1), key).unwrap();
            value.map(|value| if value.len() > 8 { b"loaded".to_vec() } else { value })
        };
        assert_eq!(text(b"[\"roe\"]").as_deref(), Some(&b"before"[..]), "{engine:?}");
        assert_eq!(text(b"[\"row\",0]"), None);
        assert_eq!(text(b"[\"row\",3]").as_deref(), Some(&b"after"[..]));
        assert_eq!(text(b"[\"row\",4]"), None);
        assert_eq!(text(b"[\"row\",5]").as_deref(), Some(&b"loaded"[..]));
    });
}

/// Batch `n`: its number in `meta`, rows in `rows`, and their copies in `index`.
fn numbered(n: u64) -> Batch {
    let mut batch = Batch::default();
    batch.put(Space(0), b"last", n.to_be_bytes());
    for i in 0..20 {
        let (key, value) = ((n * 31 + i * 7) % KEYS, [&n.to_be_bytes()[..], &[b'x'; 200]].concat());
        if (n + i).is_multiple_of(5) {
            batch.delete(Space(1), key.to_be_bytes());
            batch.delete(Space(2), key.to_be_bytes());
        } else {
            batch.put(Space(1), key.to_be_bytes(), value.clone());
            batch.put(Space(2), key.to_be_bytes(), value);
        }
    }
    batch
}

fn last(store: &dyn Store) -> u64 {
    store
        .get(Space(0), b"last")
        .unwrap()
        .map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()))
}

fn child(engine: Engine, dir: &Path) -> Child {
    let binary = std::env::current_exe().unwrap();
    Command::new(binary)
        .args([
            "--exact",
            "store::crash::child_commits_numbered_batches_until_it_is_killed",
            "--nocapture",
        ])
        .env(CHILD, format!("{engine:?} {}", dir.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

#[test]
fn after_kill_9_a_store_holds_a_prefix_of_the_batches() {
    let mut random = Random::of_test("store kill -9");
    on_each(&ON_DISK, |engine| {
        let dir = tempfile::tempdir().unwrap();
        let mut model = super::Rows::new();
        let mut modelled = 0;
        for round in 0..8 {
            let mut child = child(engine, dir.path());
            let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
            // Killed after some batches; rounds differ between mid-buffer and several flushes later.
            let batches = 1 + random.below(if round % 2 == 0 { 200 } else { 4_000 });
            let mut acknowledged = 0;
            let mut committed = said.by_ref().filter_map(|line| {
                line.unwrap()
                    .strip_prefix("child committed ")
                    .map(|n| n.parse::<u64>().unwrap())
            });
            for _ in 0..batches {
                acknowledged = committed.next().expect("the child commits until it is killed");
            }
            child.kill().unwrap();
            child.wait().unwrap();

            let store = state_store::open(&options(engine, dir.path())).unwrap();
            let reached = last(&*store);
            assert!(
                reached >= modelled,
                "{engine:?}: batches of an earlier life are gone: {reached} < {modelled}"
            );
            if engine == Engine::Fjall {
                assert!(
                    reached >= acknowledged,
                    "{engine:?}: {reached} < {acknowledged}, which was acknowledged"
                );
            }
            for n in modelled + 1..=reached {
                for (space, key, value) in numbered(n).into_writes() {
                    match value {
                        _ if space != Space(1) => {}
                        Some(value) => drop(model.insert(key, value)),
                        None => drop(model.remove(&key)),
                    }
                }
            }
            modelled = reached;
            let expected: Vec<_> = model.clone().into_iter().collect();
            for space in [Space(1), Space(2)] {
                let got = rows(&*store, space, b"", None, Direction::Forward);
                assert!(
                    got == expected,
                    "{engine:?}, round {round}: {space:?} is not the state after batch {reached}"
                );
            }
        }
        assert!(modelled > 0, "{engine:?}: no batch of any child survived");
        write_on(engine, dir.path());
    });
}

/// fjall issue 257: writes once stood still for ever on a store that had been killed. Here they must go on.
fn write_on(engine: Engine, dir: &Path) {
    let store = state_store::open(&options(engine, dir)).unwrap();
    let from = last(&*store) + 1;
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in from..from + 2_000 {
                store.commit(numbered(n)).unwrap();
            }
            done.send(()).unwrap();
        });
        wait_for("writes go on after kill -9", Duration::from_secs(60), || {
            ended.try_recv().ok()
        });
    });
}
