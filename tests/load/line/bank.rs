//! pgbench's bank with a topology, its nodes laid out but not started, and marks that prove how far the line is.
//!
//! Guarantees: a mark is a row in enough buckets to be in every partition of `view.log`, so that a device that holds it
//! proves that the edge's store has all that was committed before it.

use super::LIMIT;
use crate::postgres::stand::Database;
use crate::world::{self, Broker, Fleet, Phone, Polled, Postgres, postgres_bin, wait_for};
use serde_json::Value;
use std::process::{Command, Stdio};
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
    watcher: std::cell::RefCell<Phone>,
    round: std::cell::Cell<i64>,
}

impl Bank {
    pub fn new(scale: usize) -> Bank {
        let (postgres, broker) = (Postgres::start(), Broker::start());
        let database = Database::at(&postgres.url());
        let made = Command::new(postgres_bin().join("pgbench"))
            .args(["-q", "-i", "-s", &scale.to_string(), &database.url])
            .stderr(Stdio::null())
            .status();
        assert!(made.expect("pgbench runs").success(), "pgbench -i");
        database.sql(&format!(
            "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY;
             INSERT INTO pgbench_branches SELECT n, 0, '' FROM generate_series({}, {}) n;
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
            watcher: std::cell::RefCell::new(Phone::new("watcher", &token)),
            round: std::cell::Cell::new(0),
        }
    }

    pub fn url(&self) -> String {
        self.database.url.clone()
    }

    /// Changes the marks' rows.
    pub fn mark(&self) {
        self.round.set(self.round.get() + 1);
        let sql = format!(
            "UPDATE pgbench_branches SET bbalance = {} WHERE bid >= {}",
            self.round.get(),
            MARKS.start()
        );
        self.database.sql(&sql);
    }

    /// Waits until a device holds all marks as they were made last.
    pub fn wait_for_mark(&self) {
        let (edge, mut watcher) = (self.fleet.edge("edge-1"), self.watcher.borrow_mut());
        let until = Instant::now() + LIMIT;
        while !self.marked(&watcher) {
            assert!(Instant::now() < until, "the marks did not come: {}", watcher.last);
            if watcher.poll(&edge, 5) == Polled::Later {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn marked(&self, watcher: &Phone) -> bool {
        let round = Value::from(self.round.get());
        let here = watcher.view("branches").filter(|row| row["bbalance"] == round);
        here.count() == MARKS.count()
    }

    pub fn mark_and_wait(&self) {
        self.mark();
        self.wait_for_mark();
    }

    /// Does so many of pgbench's transactions, each with a commit of its own, as fast as the database can alone.
    pub fn trade(&self, count: usize) {
        let sql = format!("ALTER DATABASE {} SET synchronous_commit = off", self.database.name);
        self.database.sql(&sql);
        self.database.sql(&format!("CALL trade({count})"));
    }

    /// Makes a second slot at this place, for `thrown_away`.
    pub fn rival(&self) -> String {
        let rival = world::unique("rival").replace('-', "_");
        let sql = format!("SELECT pg_create_logical_replication_slot('{rival}', 'pgoutput')");
        self.database.sql(&sql);
        rival
    }

    /// The place that the log of the database is at.
    pub fn end(&self) -> String {
        self.database
            .value("SELECT pg_current_wal_insert_lsn()")
            .expect("a place")
    }

    /// How long `pg_recvlogical` takes for everything up to `end`, which it throws away.
    pub fn thrown_away(&self, rival: &str, end: &str) -> Duration {
        // It stops at the first message past the end, so there must be one.
        self.database
            .sql("UPDATE pgbench_tellers SET tbalance = tbalance WHERE tid = 1");
        let begun = Instant::now();
        crate::postgres::receive(&self.database.url, rival, "trunkline_bank", end);
        let alone = begun.elapsed();
        wait_for("the rival's slot to be free", LIMIT, || {
            let free = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{rival}' AND NOT active");
            self.database.value(&free)
        });
        self.database
            .sql(&format!("SELECT pg_drop_replication_slot('{rival}')"));
        alone
    }
}
