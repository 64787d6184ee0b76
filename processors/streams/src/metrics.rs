//! The runtime's numbers. What each means, and what to alarm on, is in `docs/reference/metrics.md`.
//!
//! Guarantees: handles are made once a thread; the hot path counts by the batch, the run and the commit, never by the
//! record. Labels come from names that are declared, never from data. Every number has a unit and a description.
//! Never: a number that only a log line has.

use crate::TaskId;
use ::metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use event_log::{Offset, TopicPartition};
use state_store::Stats;
use std::time::Duration;

/// Numbers of one application in this process.
#[derive(Clone)]
pub(crate) struct Metrics {
    application: String,
    pub records_in: Counter,
    pub bytes_in: Counter,
    pub records_out: Counter,
    pub bytes_out: Counter,
    pub commits: Counter,
    pub commit_seconds: Histogram,
    pub commit_records: Histogram,
    pub commit_bytes: Histogram,
    pub latency_seconds: Histogram,
    pub aborts: Counter,
    pub fences: Counter,
    pub recoveries: Counter,
    pub restored: Counter,
    pub restored_bytes: Counter,
    pub quarantine: Counter,
    pub dead_letters: Counter,
    pub timers: Counter,
    pub timer_late_seconds: Histogram,
    pub standby_records: Counter,
}

impl Metrics {
    pub(crate) fn new(application: &str) -> Self {
        describe();
        let name = application.to_owned();
        let count = |metric: &'static str| counter!(metric, "application" => name.clone());
        let spread = |metric: &'static str| histogram!(metric, "application" => name.clone());
        Metrics {
            records_in: count("trunkline_runtime_records_in_total"),
            bytes_in: count("trunkline_runtime_bytes_in_total"),
            records_out: count("trunkline_runtime_records_out_total"),
            bytes_out: count("trunkline_runtime_bytes_out_total"),
            commits: count("trunkline_runtime_commits_total"),
            commit_seconds: spread("trunkline_runtime_commit_seconds"),
            commit_records: spread("trunkline_runtime_commit_records"),
            commit_bytes: spread("trunkline_runtime_commit_bytes"),
            latency_seconds: spread("trunkline_runtime_latency_seconds"),
            aborts: count("trunkline_runtime_aborts_total"),
            fences: count("trunkline_runtime_fences_total"),
            recoveries: count("trunkline_runtime_recoveries_total"),
            restored: count("trunkline_runtime_restored_records_total"),
            restored_bytes: count("trunkline_runtime_restored_bytes_total"),
            quarantine: count("trunkline_runtime_stores_set_aside_total"),
            dead_letters: count("trunkline_runtime_dead_letters_total"),
            timers: count("trunkline_runtime_timers_fired_total"),
            timer_late_seconds: spread("trunkline_runtime_timer_late_seconds"),
            standby_records: count("trunkline_runtime_standby_records_total"),
            application: name,
        }
    }

    /// Tasks of other processes whose stores are kept warm here.
    pub(crate) fn standbys(&self, tasks: usize) {
        let tasks = u32::try_from(tasks).unwrap_or(u32::MAX);
        gauge!("trunkline_runtime_standby_tasks", "application" => self.application.clone()).set(f64::from(tasks));
    }

    /// Bytes of changed state of a thread that wait for its next commit.
    pub(crate) fn overlay(&self, thread: &str) -> Gauge {
        let labels = [("application", self.application.clone()), ("thread", thread.to_owned())];
        gauge!("trunkline_runtime_overlay_bytes", &labels)
    }

    /// What a task's store occupies.
    pub(crate) fn store(&self, task: &TaskId, stats: Stats) {
        let labels = [("application", self.application.clone()), ("task", task.to_string())];
        gauge!("trunkline_runtime_store_disk_bytes", &labels).set(float(offset(stats.disk_bytes)));
        gauge!("trunkline_runtime_store_memory_bytes", &labels).set(float(offset(stats.memory_bytes)));
    }

    /// Changelog offsets that a task still has to read.
    pub(crate) fn restore_left(&self, task: &TaskId, left: Offset) {
        let labels = [("application", self.application.clone()), ("task", task.to_string())];
        gauge!("trunkline_runtime_restore_offsets_left", &labels).set(float(left));
    }

    /// Offsets between an input's stable end and the committed place in it, and how long the first of them waits, where
    /// that is known.
    pub(crate) fn lag(&self, at: &TopicPartition, lag: Offset, waits: Option<Duration>) {
        let labels = [
            ("application", self.application.clone()),
            ("topic", at.topic.to_string()),
            ("partition", at.partition.to_string()),
        ];
        gauge!("trunkline_runtime_input_lag_offsets", &labels).set(float(lag));
        if let Some(waits) = waits {
            gauge!("trunkline_runtime_input_lag_seconds", &labels).set(waits.as_secs_f64());
        }
    }
}

/// Gives every number its unit and its one-line description, as `/metrics` shows them.
fn describe() {
    for (name, unit, text) in COUNTERS {
        describe_counter!(name, unit, text);
    }
    for (name, unit, text) in GAUGES {
        describe_gauge!(name, unit, text);
    }
    for (name, unit, text) in HISTOGRAMS {
        describe_histogram!(name, unit, text);
    }
}

type Described = (&'static str, Unit, &'static str);

const COUNTERS: [Described; 14] = [
    (
        "trunkline_runtime_records_in_total",
        Unit::Count,
        "Input records processed",
    ),
    (
        "trunkline_runtime_bytes_in_total",
        Unit::Bytes,
        "Bytes of keys, values and headers read from the inputs",
    ),
    (
        "trunkline_runtime_records_out_total",
        Unit::Count,
        "Records sent, dead letters included, changelogs not",
    ),
    (
        "trunkline_runtime_bytes_out_total",
        Unit::Bytes,
        "Bytes of keys, values and headers of those records",
    ),
    ("trunkline_runtime_commits_total", Unit::Count, "Transactions committed"),
    (
        "trunkline_runtime_aborts_total",
        Unit::Count,
        "Transactions that did not become a known commit",
    ),
    (
        "trunkline_runtime_fences_total",
        Unit::Count,
        "Transactions that were refused because another has taken over",
    ),
    (
        "trunkline_runtime_recoveries_total",
        Unit::Count,
        "Tasks that were brought to the last commit and started",
    ),
    (
        "trunkline_runtime_restored_records_total",
        Unit::Count,
        "Changelog records read back into stores",
    ),
    (
        "trunkline_runtime_restored_bytes_total",
        Unit::Bytes,
        "Bytes of changelog records read back into stores",
    ),
    (
        "trunkline_runtime_stores_set_aside_total",
        Unit::Count,
        "Stores that could not be used and were set aside",
    ),
    (
        "trunkline_runtime_dead_letters_total",
        Unit::Count,
        "Dead letters committed",
    ),
    ("trunkline_runtime_timers_fired_total", Unit::Count, "Timers that fired"),
    (
        "trunkline_runtime_standby_records_total",
        Unit::Count,
        "Changelog records read into stores that are kept warm",
    ),
];

const GAUGES: [Described; 7] = [
    (
        "trunkline_runtime_input_lag_offsets",
        Unit::Count,
        "Offsets between the stable end and the committed place",
    ),
    (
        "trunkline_runtime_input_lag_seconds",
        Unit::Seconds,
        "How long the oldest record waits that is not committed",
    ),
    (
        "trunkline_runtime_overlay_bytes",
        Unit::Bytes,
        "Changed state that waits for the next commit",
    ),
    (
        "trunkline_runtime_store_disk_bytes",
        Unit::Bytes,
        "Bytes of a task's store on disk",
    ),
    (
        "trunkline_runtime_store_memory_bytes",
        Unit::Bytes,
        "Bytes of a task's store in caches and write buffers",
    ),
    (
        "trunkline_runtime_restore_offsets_left",
        Unit::Count,
        "Changelog offsets that a task still has to read",
    ),
    (
        "trunkline_runtime_standby_tasks",
        Unit::Count,
        "Tasks of other processes whose stores are kept warm",
    ),
];

const HISTOGRAMS: [Described; 5] = [
    (
        "trunkline_runtime_commit_seconds",
        Unit::Seconds,
        "From the begin of a commit to its known end",
    ),
    (
        "trunkline_runtime_commit_records",
        Unit::Count,
        "Input records of a committed transaction",
    ),
    (
        "trunkline_runtime_commit_bytes",
        Unit::Bytes,
        "Output and changelog of a committed transaction",
    ),
    (
        "trunkline_runtime_latency_seconds",
        Unit::Seconds,
        "From a record's timestamp to the commit of what it caused",
    ),
    (
        "trunkline_runtime_timer_late_seconds",
        Unit::Seconds,
        "From a wall-clock timer's time to when it fired",
    ),
];

fn offset(bytes: u64) -> Offset {
    Offset::try_from(bytes).unwrap_or(Offset::MAX)
}

/// A whole number as a value of a gauge or a histogram.
#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "a gauge is a float; beyond 2^53 it rounds"
)]
pub(crate) fn float(count: Offset) -> f64 {
    count as f64
}

/// A size as a value of a histogram.
pub(crate) fn size(count: usize) -> f64 {
    float(Offset::try_from(count).unwrap_or(Offset::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::metrics::{Key, KeyName, Metadata, Recorder, SharedString};
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    /// Notes which numbers are made and which are described.
    #[derive(Default)]
    struct Notes {
        made: Mutex<BTreeSet<String>>,
        described: Mutex<BTreeSet<String>>,
    }

    impl Notes {
        fn describe(&self, key: &KeyName, unit: Option<Unit>, text: &str) {
            assert!(unit.is_some() && !text.is_empty(), "{}", key.as_str());
            self.described.lock().unwrap().insert(key.as_str().to_owned());
        }

        fn make(&self, key: &Key) {
            let labels: Vec<&str> = key.labels().map(::metrics::Label::key).collect();
            assert_eq!(labels.first(), Some(&"application"), "{}", key.name());
            self.made.lock().unwrap().insert(key.name().to_owned());
        }
    }

    impl Recorder for Notes {
        fn describe_counter(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
            self.describe(&key, unit, &text);
        }

        fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
            self.describe(&key, unit, &text);
        }

        fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
            self.describe(&key, unit, &text);
        }

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            self.make(key);
            Counter::noop()
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            self.make(key);
            Gauge::noop()
        }

        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            self.make(key);
            Histogram::noop()
        }
    }

    #[test]
    fn every_number_has_a_unit_a_description_and_the_application_as_its_first_label() {
        let notes = Notes::default();
        ::metrics::with_local_recorder(&notes, || {
            let metrics = Metrics::new("app");
            let task = TaskId {
                subtopology: "sub".into(),
                partition: 0,
            };
            metrics.standbys(1);
            metrics.overlay("app-one-0").set(1.0);
            metrics.store(&task, Stats::default());
            metrics.restore_left(&task, 1);
            metrics.lag(&TopicPartition::new("in", 0), 1, Some(Duration::ZERO));
        });
        let (made, described) = (notes.made.into_inner().unwrap(), notes.described.into_inner().unwrap());
        assert_eq!(made, described);
        assert_eq!(made.len(), COUNTERS.len() + GAUGES.len() + HISTOGRAMS.len());
    }
}
