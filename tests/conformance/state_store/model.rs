//! Random batches, scans, snapshots and reopened stores, compared with ordered maps after each step.

use super::{ENGINES, ON_DISK, Random, Rows, SPACES, options, rows, snapshot_rows};
use state_store::{Batch, Direction, Engine, Error, KeyRange, SharedStore, Snapshot, Space};
use std::ops::ControlFlow;

const ORDERS: [Direction; 2] = [Direction::Forward, Direction::Backward];

#[test]
fn store_matches_an_ordered_map() {
    let mut random = Random::of_test("store model");
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut harness = Harness {
            store: Some(state_store::open(&options(engine, dir.path())).unwrap()),
            model: vec![Rows::new(); SPACES.len()],
            snapshots: Vec::new(),
        };
        for _ in 0..400 {
            match random.below(20) {
                0..8 => harness.commit(&mut random),
                8..14 => harness.scan(&mut random),
                14..16 => harness.get(&mut random),
                16..18 => harness.snapshot(&mut random),
                18 if engine != Engine::Memory => {
                    harness.snapshots.clear();
                    harness.store = None;
                    harness.store = Some(state_store::open(&options(engine, dir.path())).unwrap());
                }
                _ => harness.store().persist().unwrap(),
            }
        }
        for space in 0..SPACES.len() {
            let all = rows(
                &**harness.store(),
                Space(u8::try_from(space).unwrap()),
                KeyRange::ALL,
                Direction::Forward,
            );
            assert_eq!(
                all,
                harness.model[space].clone().into_iter().collect::<Vec<_>>(),
                "{engine:?}"
            );
        }
    }
}

/// A store, its expected rows, and snapshots with theirs.
struct Harness {
    store: Option<SharedStore>,
    model: Vec<Rows>,
    snapshots: Vec<(Box<dyn Snapshot>, Vec<Rows>)>,
}

/// A short key with few different bytes, so that batches overwrite each other's keys; in some cases, the longest
/// possible key.
fn key(random: &mut Random) -> Vec<u8> {
    let len = if random.below(50) == 0 {
        state_store::KEY_BYTES_MAX
    } else {
        usize::try_from(random.below(3)).unwrap() + 1
    };
    (0..len)
        .map(|_| [0, b'a', b'b', b'~', 255][usize::try_from(random.below(5)).unwrap()])
        .collect()
}

impl Harness {
    fn store(&self) -> &SharedStore {
        self.store.as_ref().expect("the store is open between steps")
    }

    fn commit(&mut self, random: &mut Random) {
        let mut batch = Batch::default();
        // A batch may write a key several times: the last write wins.
        for _ in 0..random.below(600) {
            let space = usize::try_from(random.below(3)).unwrap();
            let (at, key) = (Space(u8::try_from(space).unwrap()), key(random));
            if random.below(4) == 0 {
                batch.delete(at, key.clone());
                self.model[space].remove(&key);
            } else {
                let value = vec![random.byte(); usize::try_from(random.below(300)).unwrap()];
                batch.put(at, key.clone(), value.clone());
                self.model[space].insert(key, value);
            }
        }
        self.store().commit(batch).unwrap();
    }

    fn get(&self, random: &mut Random) {
        for _ in 0..50 {
            let (space, key) = (usize::try_from(random.below(3)).unwrap(), key(random));
            let got = self.store().get(Space(u8::try_from(space).unwrap()), &key).unwrap();
            assert_eq!(got.as_ref(), self.model[space].get(&key));
        }
        assert_eq!(
            self.store().get(Space(0), b"").unwrap(),
            None,
            "an empty key does not exist"
        );
    }

    fn scan(&self, random: &mut Random) {
        let space = usize::try_from(random.below(3)).unwrap();
        let (from, to) = bounds(random);
        let keys = KeyRange::new(&from, to.as_deref());
        for order in ORDERS {
            let got = rows(&**self.store(), Space(u8::try_from(space).unwrap()), keys, order);
            assert_eq!(got, expected(&self.model[space], keys, order));
        }
        // A scan must end as soon as its visitor breaks.
        let stop = random.below(5);
        let mut visited = 0;
        let mut visit = |_: &[u8], _: &[u8]| {
            visited += 1;
            if visited > stop {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        self.store()
            .scan(Space(1), KeyRange::ALL, Direction::Forward, &mut visit)
            .unwrap();
        assert_eq!(visited, (stop + 1).min(u64::try_from(self.model[1].len()).unwrap()));
    }

    /// Takes a snapshot, or compares an earlier snapshot with the model as of that snapshot.
    fn snapshot(&mut self, random: &mut Random) {
        if self.snapshots.len() < 4 {
            self.snapshots
                .push((self.store().snapshot().unwrap(), self.model.clone()));
            return;
        }
        let at = usize::try_from(random.below(4)).unwrap();
        let (snapshot, model) = self.snapshots.swap_remove(at);
        for (space, model) in model.iter().enumerate() {
            let at = Space(u8::try_from(space).unwrap());
            let (from, to) = bounds(random);
            let keys = KeyRange::new(&from, to.as_deref());
            for order in ORDERS {
                assert_eq!(
                    snapshot_rows(&*snapshot, at, KeyRange::ALL, order),
                    expected(model, KeyRange::ALL, order)
                );
                let got = snapshot_rows(&*snapshot, at, keys, order);
                assert_eq!(got, expected(model, keys, order));
            }
            for _ in 0..20 {
                let key = key(random);
                assert_eq!(snapshot.get(at, &key).unwrap().as_ref(), model.get(&key));
            }
        }
    }
}

fn bounds(random: &mut Random) -> (Vec<u8>, Option<Vec<u8>>) {
    let from = if random.below(4) == 0 { Vec::new() } else { key(random) };
    let to = (random.below(3) > 0).then(|| key(random));
    (from, to)
}

fn expected(model: &Rows, keys: KeyRange<'_>, order: Direction) -> Vec<(Vec<u8>, Vec<u8>)> {
    let inside = |key: &[u8]| key >= keys.from && keys.to.is_none_or(|to| key < to);
    let mut out: Vec<_> = model
        .iter()
        .filter(|(key, _)| inside(key))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    if order == Direction::Backward {
        out.reverse();
    }
    out
}

#[test]
fn batch_with_an_invalid_key_is_rejected_whole() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let store = state_store::open(&options(engine, dir.path())).unwrap();
        for bad in [Vec::new(), vec![b'k'; state_store::KEY_BYTES_MAX + 1]] {
            let mut batch = Batch::default();
            batch.put(Space(0), b"good", b"1");
            batch.put(Space(1), bad.clone(), b"2");
            let rejected = store.commit(batch);
            assert!(
                matches!(rejected, Err(Error::KeyLength { bytes }) if bytes == bad.len()),
                "{engine:?}: {rejected:?}"
            );
            assert_eq!(store.get(Space(0), b"good").unwrap(), None);
        }
    }
}

/// Each batch moves one token to another key in two keyspaces. Every scan of the store and of a snapshot must find it
/// exactly once in each keyspace.
#[test]
fn concurrent_scan_sees_whole_batches() {
    const KEYS: u64 = 1_000;
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let store = state_store::open(&options(engine, dir.path())).unwrap();
        let mut first = Batch::default();
        for key in 0..KEYS {
            // More rows, so that batches are committed during a scan.
            first.put(Space(1), [&key.to_be_bytes()[..], b"filler"].concat(), b"-");
            first.put(Space(2), [&key.to_be_bytes()[..], b"filler"].concat(), b"-");
        }
        first.put(Space(1), 0_u64.to_be_bytes(), b"token");
        first.put(Space(2), 0_u64.to_be_bytes(), b"token");
        store.commit(first).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for step in 0..3_000_u64 {
                    let mut batch = Batch::default();
                    let (from, to) = (step * 37 % KEYS, (step + 1) * 37 % KEYS);
                    for space in [Space(1), Space(2)] {
                        batch.delete(space, from.to_be_bytes());
                        batch.put(space, to.to_be_bytes(), b"token");
                    }
                    store.commit(batch).unwrap();
                }
            });
            let mut rounds = 0;
            while !writer.is_finished() || rounds < 3 {
                rounds += 1;
                let tokens = |rows: Vec<(Vec<u8>, Vec<u8>)>| {
                    rows.into_iter()
                        .filter(|(_, value)| value == b"token")
                        .map(|(key, _)| key)
                        .collect::<Vec<_>>()
                };
                for order in ORDERS {
                    let found = tokens(rows(&*store, Space(1), KeyRange::ALL, order));
                    assert_eq!(found.len(), 1, "{engine:?} {order:?}");
                }
                let snapshot = store.snapshot().unwrap();
                let one = tokens(snapshot_rows(&*snapshot, Space(1), KeyRange::ALL, Direction::Forward));
                let other = tokens(snapshot_rows(&*snapshot, Space(2), KeyRange::ALL, Direction::Backward));
                assert_eq!((one.len(), &one), (1, &other), "{engine:?}");
            }
            writer.join().unwrap();
        });
    }
}

#[test]
fn spaces_are_matched_by_name() {
    for engine in ON_DISK {
        let dir = tempfile::tempdir().unwrap();
        let mut declared = options(engine, dir.path());
        let store = state_store::open(&declared).unwrap();
        let mut batch = Batch::default();
        batch.put(Space(1), b"k", b"of rows");
        store.commit(batch).unwrap();
        drop(store);
        declared.spaces = vec!["rows", "later", "meta"];
        let store = state_store::open(&declared).unwrap();
        assert_eq!(
            store.get(Space(0), b"k").unwrap().as_deref(),
            Some(&b"of rows"[..]),
            "{engine:?}"
        );
        assert_eq!(rows(&*store, Space(1), KeyRange::ALL, Direction::Forward), []);
    }
}
