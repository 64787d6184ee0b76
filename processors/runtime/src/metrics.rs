//! The runtime's numbers.
//!
//! Guarantees: handles are made once a thread; counting on the hot path is an addition. Labels come from names that
//! are declared, never from data.
//! Never: a number that only a log line has.

use crate::TaskId;
use ::metrics::{Counter, Histogram, counter, gauge, histogram};
use log::{Offset, TopicPartition};

/// Counters of one application in this process.
#[derive(Clone)]
pub(crate) struct Metrics {
    application: String,
    pub records_in: Counter,
    pub records_out: Counter,
    pub commits: Counter,
    pub commit_seconds: Histogram,
    pub aborts: Counter,
    pub fences: Counter,
    pub recoveries: Counter,
    pub restored: Counter,
    pub set_aside: Counter,
    pub dead_letters: Counter,
    pub standby_records: Counter,
}

impl Metrics {
    pub(crate) fn new(application: &str) -> Self {
        let name = application.to_owned();
        let count = |metric: &'static str| counter!(metric, "application" => name.clone());
        Metrics {
            records_in: count("trunkline_runtime_records_in_total"),
            records_out: count("trunkline_runtime_records_out_total"),
            commits: count("trunkline_runtime_commits_total"),
            commit_seconds: histogram!("trunkline_runtime_commit_seconds", "application" => name.clone()),
            aborts: count("trunkline_runtime_aborts_total"),
            fences: count("trunkline_runtime_fences_total"),
            recoveries: count("trunkline_runtime_recoveries_total"),
            restored: count("trunkline_runtime_restored_records_total"),
            set_aside: count("trunkline_runtime_stores_set_aside_total"),
            dead_letters: count("trunkline_runtime_dead_letters_total"),
            standby_records: count("trunkline_runtime_standby_records_total"),
            application: name,
        }
    }

    /// Tasks of other processes whose stores are kept warm here.
    pub(crate) fn standbys(&self, tasks: usize) {
        let tasks = u32::try_from(tasks).unwrap_or(u32::MAX);
        gauge!("trunkline_runtime_standby_tasks", "application" => self.application.clone()).set(f64::from(tasks));
    }

    /// Changelog offsets that a task still has to read.
    pub(crate) fn restore_left(&self, task: &TaskId, left: Offset) {
        let labels = [("application", self.application.clone()), ("task", task.to_string())];
        gauge!("trunkline_runtime_restore_offsets_left", &labels).set(float(left));
    }

    /// Offsets between an input's stable end and the committed place in it.
    pub(crate) fn lag(&self, at: &TopicPartition, lag: Offset) {
        let labels = [
            ("application", self.application.clone()),
            ("topic", at.topic.to_string()),
            ("partition", at.partition.to_string()),
        ];
        gauge!("trunkline_runtime_input_lag_offsets", &labels).set(float(lag));
    }
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "a gauge is a float; beyond 2^53 it rounds"
)]
fn float(count: Offset) -> f64 {
    count as f64
}
