//! Conformance suite of the state store engines: comparison with a model, snapshots, kill -9, corrupt and locked
//! directories.
//!
//! Each test runs with each engine. Random tests print their seed; `TRUNKLINE_TEST_SEED` repeats a run.

mod crash;
mod damage;
mod model;

use state_store::{Direction, Engine, KeyRange, Options, Snapshot, Space, Store, Visit};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

const ENGINES: [Engine; 3] = [Engine::Fjall, Engine::Sled, Engine::Memory];
/// The engines that write files.
const ON_DISK: [Engine; 2] = [Engine::Fjall, Engine::Sled];
/// Keyspaces of the stores under test.
const SPACES: [&str; 3] = ["meta", "rows", "index"];

/// Rows of one keyspace in the model.
type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Options with so little memory that write buffers are flushed during a test.
fn options(engine: Engine, dir: &Path) -> Options {
    Options {
        engine,
        dir: dir.to_owned(),
        spaces: SPACES.to_vec(),
        memory_bytes: 8 << 20,
    }
}

/// The rows that a scan of the store visits.
fn rows(store: &dyn Store, space: Space, keys: KeyRange<'_>, order: Direction) -> Vec<(Vec<u8>, Vec<u8>)> {
    collect(|visit| store.scan(space, keys, order, visit))
}

/// The rows that a scan of the snapshot visits.
fn snapshot_rows(
    snapshot: &dyn Snapshot,
    space: Space,
    keys: KeyRange<'_>,
    order: Direction,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    collect(|visit| snapshot.scan(space, keys, order, visit))
}

fn collect(scan: impl FnOnce(Visit<'_>) -> state_store::Result<()>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    scan(&mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    rows
}

/// Seeded random numbers (xorshift64*).
struct Random(u64);

impl Random {
    /// Uses the seed in `TRUNKLINE_TEST_SEED`, or a new seed, and prints it.
    fn of_test(name: &str) -> Self {
        #[expect(clippy::disallowed_methods, reason = "repeats a random run")]
        let repeated = std::env::var("TRUNKLINE_TEST_SEED")
            .ok()
            .map(|seed| seed.parse().expect("a seed is a number"));
        let seed: u64 = repeated.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        println!("{name}: TRUNKLINE_TEST_SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}
