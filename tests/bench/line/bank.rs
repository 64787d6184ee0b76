//! pgbench's bank with a topology, its nodes laid out but not started, and marks that prove how far the line is.
//!
//! Guarantees: a mark is a row in enough buckets to be in every partition of `view.log`, so that a device that holds it
//! proves that the edge's store has all that was committed before it.

use super::LIMIT;
use crate::postgres::harness::Database;
use crate::support::{self, Broker, Fleet, Phone, Polled, Postgres};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Branches whose rows are marks.
const MARKS: std::ops::RangeInclusive<i64> = 20_001..=20_160;
/// Branches of the devices that wait for a change.
pub const DEVICES: std::ops::RangeInclusive<i64> = 10_001..=10_020;
const SLOT: &str = "trunkline_bank";

pub struct Bank {
    pub fleet: Fleet,
    pub broker: Broker,
    // Before the cluster: it drops its slots and itself there.
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
        let more = format!("[connectors.bank]\nurl = \"{}\"\nslot = \"{SLOT}\"\n", database.url);
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

    /// Changes the marks' rows.
    pub fn mark(&mut self) {
        self.round += 1;
        let sql = format!(
            "UPDATE pgbench_branches SET bbalance = {} WHERE bid >= {}",
            self.round,
            MARKS.start()
        );
        self.database.sql(&sql);
    }

    /// Waits until a device holds all marks as they were made last.
    pub fn wait_for_mark(&mut self) {
        let edge = self.fleet.edge("edge-1");
        let until = Instant::now() + LIMIT;
        while !self.marked() {
            assert!(Instant::now() < until, "the marks did not come: {}", self.watcher.last);
            if self.watcher.poll(&edge, 5) == Polled::Later {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn marked(&self) -> bool {
        let round = Value::from(self.round);
        let here = self.watcher.view("branches").filter(|row| row["bbalance"] == round);
        here.count() == MARKS.count()
    }

    pub fn mark_and_wait(&mut self) {
        self.mark();
        self.wait_for_mark();
    }

    /// Does so many of pgbench's transactions, each with a commit of its own, as fast as the database can alone.
    pub fn trade(&self, count: usize) {
        let sql = format!("ALTER DATABASE {} SET synchronous_commit = off", self.database.name);
        self.database.sql(&sql);
        self.database.sql(&format!("CALL trade({count})"));
    }
}
