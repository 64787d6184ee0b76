//! Random batches, scans and reopenings, compared with ordered maps.
//!
//! Guarantees: every read of an engine is compared with the model's at the same moment.
//! Never: needs more than a temporary directory.

use super::child_process::on_each;
use super::{ON_DISK, Random, Rows, SPACES, old_rows, options, rows};
use state_store::{Batch, Direction, Engine, Error, SharedStore, Snapshot, Space};
use std::ops::ControlFlow;

const ORDERS: [Direction; 2] = [Direction::Forward, Direction::Backward];

#[test]
fn an_engine_is_an_ordered_map_with_atomic_batches() {
    let mut random = Random::of_test("store model");
    on_each(&[Engine::Fjall, Engine::Sled, Engine::Memory], |engine| {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World {
            store: Some(state_store::open(&options(engine, dir.path())).unwrap()),
            model: vec![Rows::new(); SPACES.len()],
            old: Vec::new(),
        };
        for _ in 0..400 {
            match random.below(20) {
                0..8 => world.commit(&mut random),
                8..14 => world.scan(&mut random),
                14..16 => world.get(&mut random),
                16..18 => world.old(&mut random),
                18 if engine != Engine::Memory => {
                    world.old.clear();
                    world.store = None;
                    world.store = Some(state_store::open(&options(engine, dir.path())).unwrap());
                }
                _ => world.store().persist().unwrap(),
            }
        }
        for space in 0..SPACES.len() {
            let all = rows(
                &**world.store(),
                Space(u8::try_from(space).unwrap()),
                b"",
                None,
                Direction::Forward,
            );
            assert_eq!(
                all,
                world.model[space].clone().into_iter().collect::<Vec<_>>(),
                "{engine:?}"
            );
        }
    });
}

/// A store, what it must hold, and snapshots with what they must hold.
struct World {
    store: Option<SharedStore>,
    model: Vec<Rows>,
    old: Vec<(Box<dyn Snapshot>, Vec<Rows>)>,
}

/// A key of one to a few bytes out of few, so that batches meet; now and then a long one.
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

impl World {
    fn store(&self) -> &SharedStore {
        self.store.as_ref().expect("open between steps")
    }

    fn commit(&mut self, random: &mut Random) {
        let mut batch = Batch::default();
        // One key may be written several times: the last write wins.
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
        assert_eq!(self.store().get(Space(0), b"").unwrap(), None, "no key is empty");
    }

    fn scan(&self, random: &mut Random) {
        let space = usize::try_from(random.below(3)).unwrap();
        let (from, to) = bounds(random);
        for order in ORDERS {
            let got = rows(
                &**self.store(),
                Space(u8::try_from(space).unwrap()),
                &from,
                to.as_deref(),
                order,
            );
            assert_eq!(got, expected(&self.model[space], &from, to.as_deref(), order));
        }
        // A scan that is broken off has visited what it was shown and no more.
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
            .scan(Space(1), b"", None, Direction::Forward, &mut visit)
            .unwrap();
        assert_eq!(visited, (stop + 1).min(u64::try_from(self.model[1].len()).unwrap()));
    }

    /// Takes a snapshot, or compares one that was taken before with what held then.
    fn old(&mut self, random: &mut Random) {
        if self.old.len() < 4 {
            self.old.push((self.store().snapshot().unwrap(), self.model.clone()));
            return;
        }
        let at = usize::try_from(random.below(4)).unwrap();
        let (snapshot, model) = self.old.swap_remove(at);
        for (space, model) in model.iter().enumerate() {
            let at = Space(u8::try_from(space).unwrap());
            let (from, to) = bounds(random);
            for order in ORDERS {
                assert_eq!(
                    old_rows(&*snapshot, at, b"", None, order),
                    expected(model, b"", None, order)
                );
                let got = old_rows(&*snapshot, at, &from, to.as_deref(), order);
                assert_eq!(got, expected(model, &from, to.as_deref(), order));
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

fn expected(model: &Rows, from: &[u8], to: Option<&[u8]>, order: Direction) -> Vec<(Vec<u8>, Vec<u8>)> {
    let inside = |key: &[u8]| key >= from && to.is_none_or(|to| key < to);
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
fn a_key_that_one_engine_cannot_hold_is_refused_by_all_and_nothing_of_its_batch_is_written() {
    on_each(&[Engine::Fjall, Engine::Sled, Engine::Memory], |engine| {
        let dir = tempfile::tempdir().unwrap();
        let store = state_store::open(&options(engine, dir.path())).unwrap();
        for bad in [Vec::new(), vec![b'k'; state_store::KEY_BYTES_MAX + 1]] {
            let mut batch = Batch::default();
            batch.put(Space(0), b"good", b"1");
            batch.put(Space(1), bad.clone(), b"2");
            let refused = store.commit(batch);
            assert!(
                matches!(refused, Err(Error::Key { bytes }) if bytes == bad.len()),
                "{engine:?}: {refused:?}"
            );
            assert_eq!(store.get(Space(0), b"good").unwrap(), None);
        }
    });
}

/// A writer moves one token through the keys of two spaces, a batch a move. Whoever scans, live or in a snapshot, sees
/// it exactly once in each.
#[test]
fn a_scan_beside_a_writer_sees_whole_batches_only() {
    const KEYS: u64 = 1_000;
    on_each(&[Engine::Fjall, Engine::Sled, Engine::Memory], |engine| {
        let dir = tempfile::tempdir().unwrap();
        let store = state_store::open(&options(engine, dir.path())).unwrap();
        let mut first = Batch::default();
        for key in 0..KEYS {
            // Fillers, so that a scan takes long enough to be overtaken.
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
            let mut looks = 0;
            while !writer.is_finished() || looks < 3 {
                looks += 1;
                let tokens = |rows: Vec<(Vec<u8>, Vec<u8>)>| {
                    rows.into_iter()
                        .filter(|(_, value)| value == b"token")
                        .map(|(key, _)| key)
                        .collect::<Vec<_>>()
                };
                for order in ORDERS {
                    let seen = tokens(rows(&*store, Space(1), b"", None, order));
                    assert_eq!(seen.len(), 1, "{engine:?} {order:?}");
                }
                let snapshot = store.snapshot().unwrap();
                let one = tokens(old_rows(&*snapshot, Space(1), b"", None, Direction::Forward));
                let other = tokens(old_rows(&*snapshot, Space(2), b"", None, Direction::Backward));
                assert_eq!((one.len(), &one), (1, &other), "{engine:?}");
            }
            writer.join().unwrap();
        });
    });
}

#[test]
fn spaces_are_found_by_name_whatever_their_order() {
    on_each(&ON_DISK, |engine| {
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
        assert_eq!(rows(&*store, Space(1), b"", None, Direction::Forward), []);
    });
}
