//! kill -9 between and during commits.
//!
//! The child is this test binary. It is killed at random moments, several times on one directory, while write buffers are
//! flushed and compacted.

use super::{ENGINES, ON_DISK, Random, options, rows};
use crate::support::wait_for;
use state_store::{Batch, Direction, Engine, KeyRange, Space, Store};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Set only in the child, to `ENGINE DIRECTORY`.
const CHILD: &str = "TRUNKLINE_TEST_STORE_CHILD";
/// Few keys, which are overwritten often, so that compaction has something to do.
const KEYS: u64 = 5_000;

/// The child's main function. In the test run, where the variable is not set, it does nothing.
#[test]
fn child_commits_batches_until_killed() {
    #[expect(clippy::disallowed_methods, reason = "how a test configures its child")]
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let (engine, dir) = arguments.split_once(' ').expect("engine and directory");
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

/// Name of a directory whose store the child writes with loads instead of batches.
const LOADS: &str = "loads";

/// Load `n` writes the number `n` to every key. If `n` is odd, it deletes every third key.
fn loaded(n: u64) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let keeps = |key: u64| n.is_multiple_of(2) || !key.is_multiple_of(3);
    // The keys are not in key order, because the store must sort them.
    let keys = (0..KEYS).map(|at| at * 2_003 % KEYS);
    keys.map(|key| {
        let value = keeps(key).then(|| [&n.to_be_bytes()[..], &[b'x'; 100]].concat());
        (format!("[\"row\",{key}]").into_bytes(), value)
    })
    .collect()
}

#[test]
fn load_is_atomic_after_kill_9() {
    for engine in ON_DISK {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join(LOADS);
        for loads in [1, 7, 12] {
            let mut child = child(engine, &dir);
            let output = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut committed =
                output.filter_map(|line| line.unwrap().strip_prefix("child committed ")?.parse::<u64>().ok());
            let acknowledged = committed.nth(loads - 1).expect("the child loads until it is killed");
            child.kill().unwrap();
            child.wait().unwrap();
            let store = state_store::open(&options(engine, &dir)).unwrap();
            let got = rows(&*store, Space(1), KeyRange::ALL, Direction::Forward);
            let Some((_, value)) = got.first() else {
                assert_eq!(engine, Engine::Sled, "all acknowledged loads are lost");
                continue;
            };
            let n = u64::from_be_bytes(value[..8].try_into().unwrap());
            if engine == Engine::Fjall {
                assert!(
                    n >= acknowledged,
                    "load {acknowledged} was acknowledged, the store has {n}"
                );
            }
            let mut want: Vec<_> = loaded(n)
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?)))
                .collect();
            want.sort();
            assert!(got == want, "{engine:?}: differs from the state after load {n}");
        }
    }
}

/// A load overwrites rows of earlier batches, and later batches overwrite its rows.
#[test]
fn load_keeps_its_order_among_batches() {
    for engine in ENGINES {
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
    }
}

/// Batch `n` writes its number to the keyspace `meta`, and rows to `rows` and `index`.
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
    let path = concat!(module_path!(), "::child_commits_batches_until_killed");
    let (_, test) = path.split_once("::").expect("the path begins with the crate");
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, format!("{engine:?} {}", dir.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

#[test]
fn store_is_a_prefix_of_the_batches_after_kill_9() {
    let mut random = Random::of_test("store kill -9");
    for engine in ON_DISK {
        let dir = tempfile::tempdir().unwrap();
        let mut model = super::Rows::new();
        let mut applied = 0;
        for round in 0..8 {
            let mut child = child(engine, dir.path());
            let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
            // A few batches remain in the write buffer; many batches cause several flushes.
            let batches = 1 + random.below(if round % 2 == 0 { 200 } else { 4_000 });
            let mut acknowledged = 0;
            let mut committed = output.by_ref().filter_map(|line| {
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
                reached >= applied,
                "{engine:?}: the store had batch {applied}, after the kill only {reached}"
            );
            if engine == Engine::Fjall {
                assert!(
                    reached >= acknowledged,
                    "{engine:?}: batch {acknowledged} was acknowledged, the store has {reached}"
                );
            }
            for n in applied + 1..=reached {
                for (space, key, value) in numbered(n).into_writes() {
                    match value {
                        _ if space != Space(1) => {}
                        Some(value) => drop(model.insert(key, value)),
                        None => drop(model.remove(&key)),
                    }
                }
            }
            applied = reached;
            let expected: Vec<_> = model.clone().into_iter().collect();
            for space in [Space(1), Space(2)] {
                let got = rows(&*store, space, KeyRange::ALL, Direction::Forward);
                assert!(
                    got == expected,
                    "{engine:?}, round {round}: {space:?} differs from the state after batch {reached}"
                );
            }
        }
        assert!(applied > 0, "{engine:?}: no batch of any child survived");
        write_after_kill(engine, dir.path());
    }
}

/// Writes to a store must not block forever after a kill, as they do in fjall issue 257.
fn write_after_kill(engine: Engine, dir: &Path) {
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
        wait_for("the commits after kill -9", Duration::from_secs(60), || {
            ended.try_recv().ok()
        });
    });
}
