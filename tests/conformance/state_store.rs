//! One suite for every state store engine: a model, snapshots, kill -9, broken and locked directories.
//!
//! Guarantees: each case runs against each engine; random cases print their seed, and `TRUNKLINE_TEST_SEED` repeats one.
//! Never: knows an engine's files; lets sled's standing still hold up the rest.

mod child_process;
mod crash;
mod damage;
mod model;

use state_store::{Direction, Engine, Options, Snapshot, Space, Store};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// The engines that keep something on disk.
const ON_DISK: [Engine; 2] = [Engine::Fjall, Engine::Sled];
/// Spaces of the suite's stores.
const SPACES: [&str; 3] = ["meta", "rows", "index"];

/// One space's rows, as the model keeps them.
type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Options with so little memory that buffers are flushed while a test runs.
fn options(engine: Engine, dir: &Path) -> Options {
    Options {
        engine,
        dir: dir.to_owned(),
        spaces: SPACES.to_vec(),
        memory_bytes: 8 << 20,
    }
}

/// All rows of a space in the order of a scan.
fn rows(store: &dyn Store, space: Space, from: &[u8], to: Option<&[u8]>, order: Direction) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut out = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        out.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    };
    store.scan(space, from, to, order, &mut visit).unwrap();
    out
}

/// The same of a snapshot.
fn old_rows(
    store: &dyn Snapshot,
    space: Space,
    from: &[u8],
    to: Option<&[u8]>,
    order: Direction,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut out = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        out.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    };
    store.scan(space, from, to, order, &mut visit).unwrap();
    out
}

/// Seeded random numbers (xorshift64*).
struct Random(u64);

impl Random {
    /// Prints its seed, and takes it from `TRUNKLINE_TEST_SEED` to repeat a run.
    fn of_test(name: &str) -> Self {
        #[expect(clippy::disallowed_methods, reason = "how a person repeats a random run")]
        let given = std::env::var("TRUNKLINE_TEST_SEED")
            .ok()
            .map(|seed| seed.parse().expect("a seed is a number"));
        let seed: u64 = given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
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
