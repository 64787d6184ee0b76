//! The pgbench database with a topology and configured nodes, and marker rows (marks) that show the progress of the
//! pipeline.
//!
//! A mark updates one row in each of 160 buckets, so that every partition of `view.log` has at least one of the
//! buckets. When a device has received all of them, the replica has everything that was committed before the mark.

use crate::postgres::harness::Database;
use crate::support::{self, Broker, Fleet, Phone, Polled, Postgres};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Limit of every wait.
pub const LIMIT: Duration = Duration::from_secs(600);
/// The branches whose rows a mark updates.
const MARKS: std::ops::RangeInclusive<i64> = 20_001..=20_160;
/// Branches of the devices that measure latency; one each.
pub const DEVICES: std::ops::RangeInclusive<i64> = 10_001..=10_020;
const SLOT: &str = "trunkline_bank";

pub struct Bank {
    pub fleet: Fleet,
    pub broker: Broker,
    // Declared before `postgres`, because its drop connects to PostgreSQL to drop slots and the database.
    pub database: Database,
    pub postgres: Postgres,
    watcher: Phone,
    round: i64,
}

impl Bank {
    pub fn new(scale: usize) -> Bank {
        let (postgres, broker) = (Postgres::start(), Broker::start_in_full());
        let database = Database::at(&postgres.url());
        support::make_bank(&database.url, scale);
        database.sql(&format!(
            "INSERT INTO pgbench_branches SELECT n, 0, '' FROM generate_series({}, {}) n;
             CREATE PROCEDURE trade(n int) LANGUAGE plpgsql AS $$
             BEGIN FOR i IN 1..n LOOP
                UPDATE pgbench_accounts SET abalance = abalance + 7 WHERE aid = 1 + (i * 7919) % {};
                UPDATE pgbench_tellers SET tbalance = tbalance + 7 WHERE tid = 1 + i % {};
                UPDATE pgbench_branches SET bbalance = bbalance + 7 WHERE bid = 1 + i % {scale};
                INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
                VALUES (1 + i % {}, 1 + i % {scale}, 1 + (i * 7919) % {}, 7, now());
                COMMIT;
             END LOOP; END $$",
            MARKS.start(),
            MARKS.end(),
            scale * 100_000,
            scale * 10,
            scale * 10,
            scale * 100_000,
        ));
        let url = &database.url;
        let more = format!("[connectors.bank]\nurl = \"{url}\"\nslot = \"{SLOT}\"\npublication = \"{SLOT}\"\n");
        let fleet = Fleet::new(topology::samples::PGBENCH.text, &broker.bootstrap(), &more);
        let claims: Vec<i64> = MARKS.collect();
        let token = fleet.token("watcher", &[("branch", Value::from(claims))]);
        Bank {
            fleet,
            broker,
            database,
            postgres,
            watcher: Phone::new("watcher", &token),
            round: 0,
        }
    }

    /// Updates the rows of the mark.
    pub fn mark(&mut self) {
        self.round += 1;
        let sql = format!(
            "UPDATE pgbench_branches SET bbalance = {} WHERE bid >= {}",
            self.round,
            MARKS.start()
        );
        self.database.sql(&sql);
    }

    /// Waits until a device has received the latest mark in all buckets, after the first snapshots of all tables.
    pub fn wait_for_mark(&mut self) {
        let edge = self.fleet.edge("edge-1");
        let until = Instant::now() + LIMIT;
        while !self.marked() {
            assert!(Instant::now() < until, "the mark did not arrive: {}", self.watcher.last);
            if self.watcher.poll(&edge, 5) == Polled::Later {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn marked(&self) -> bool {
        let round = Value::from(self.round);
        let here = self.watcher.view("branches").filter(|row| row["bbalance"] == round);
        here.count() == MARKS.count() && self.watcher.complete > 0
    }

    pub fn mark_and_wait(&mut self) {
        self.mark();
        self.wait_for_mark();
    }

    /// Runs `count` pgbench transactions in a stored procedure, each with its own commit, without waiting for fsync.
    pub fn trade(&self, count: usize) {
        let sql = format!("ALTER DATABASE {} SET synchronous_commit = off", self.database.name);
        self.database.sql(&sql);
        self.database.sql(&format!("CALL trade({count})"));
    }
}
