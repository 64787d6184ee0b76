//! Metrics of the stream runtime; `docs/reference/metrics.md` describes each metric, and when to alert.
//!
//! Handles are created once per thread. Metrics are updated per batch, per run of records and per commit, never per
//! record. Label values are declared names, never data. Every metric has a unit and a description.

use crate::api::context::TaskId;
use ::metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use event_log::{Offset, TopicPartition};
use state_store::Stats;
use std::time::Duration;

/// Metrics of one application in this process.
#[derive(Clone)]
pub(crate) struct Metrics {
    application: String,
    pub flow: FlowMetrics,
    pub transactions: TransactionMetrics,
    pub recovery: RecoveryMetrics,
}

/// Records that are read and written.
#[derive(Clone)]
pub(crate) struct FlowMetrics {
    pub records_in: Counter,
    pub bytes_in: Counter,
    pub records_out: Counter,
    pub bytes_out: Counter,
    pub dead_letters: Counter,
    pub timers: Counter,
    pub timer_late_seconds: Histogram,
}

/// Commits and aborts.
#[derive(Clone)]
pub(crate) struct TransactionMetrics {
    pub commits: Counter,
    pub commit_seconds: Histogram,
    pub commit_records: Histogram,
    pub commit_bytes: Histogram,
    pub latency_seconds: Histogram,
    pub aborts: Counter,
    pub fences: Counter,
}

/// Recoveries, restores and standbys.
#[derive(Clone)]
pub(crate) struct RecoveryMetrics {
    pub recoveries: Counter,
    pub restored: Counter,
    pub restored_bytes: Counter,
    pub quarantines: Counter,
    pub unreadable_inputs: Counter,
    pub standby_records: Counter,
}

impl Metrics {
    pub(crate) fn new(application: &str) -> Self {
        describe();
        let name = application.to_owned();
        let count = |metric: &'static str| counter!(metric, "application" => name.clone());
        let distribution = |metric: &'static str| histogram!(metric, "application" => name.clone());
        Metrics {
            flow: FlowMetrics {
                records_in: count("trunkline_streams_records_in_total"),
                bytes_in: count("trunkline_streams_bytes_in_total"),
                records_out: count("trunkline_streams_records_out_total"),
                bytes_out: count("trunkline_streams_bytes_out_total"),
                dead_letters: count("trunkline_streams_dead_letters_total"),
                timers: count("trunkline_streams_timers_fired_total"),
                timer_late_seconds: distribution("trunkline_streams_timer_late_seconds"),
            },
            transactions: TransactionMetrics {
                commits: count("trunkline_streams_commits_total"),
                commit_seconds: distribution("trunkline_streams_commit_seconds"),
                commit_records: distribution("trunkline_streams_commit_records"),
                commit_bytes: distribution("trunkline_streams_commit_bytes"),
                latency_seconds: distribution("trunkline_streams_latency_seconds"),
                aborts: count("trunkline_streams_aborts_total"),
                fences: count("trunkline_streams_fences_total"),
            },
            recovery: RecoveryMetrics {
                recoveries: count("trunkline_streams_recoveries_total"),
                restored: count("trunkline_streams_restored_records_total"),
                restored_bytes: count("trunkline_streams_restored_bytes_total"),
                quarantines: count("trunkline_streams_stores_quarantined_total"),
                unreadable_inputs: count("trunkline_streams_unreadable_inputs_total"),
                standby_records: count("trunkline_streams_standby_records_total"),
            },
            application: name,
        }
    }

    /// Sets the number of standbys in this process.
    pub(crate) fn standbys(&self, tasks: usize) {
        let tasks = u32::try_from(tasks).unwrap_or(u32::MAX);
        gauge!("trunkline_streams_standby_tasks", "application" => self.application.clone()).set(f64::from(tasks));
    }

    /// Gauge of the stopped tasks of a thread.
    pub(crate) fn stopped_tasks(&self, thread: &str) -> Gauge {
        let labels = [("application", self.application.clone()), ("thread", thread.to_owned())];
        gauge!("trunkline_streams_stopped_tasks", &labels)
    }

    /// Gauge of the uncommitted state of a thread, in bytes.
    pub(crate) fn uncommitted_bytes(&self, thread: &str) -> Gauge {
        let labels = [("application", self.application.clone()), ("thread", thread.to_owned())];
        gauge!("trunkline_streams_uncommitted_bytes", &labels)
    }

    /// Sets the size of a task's store.
    pub(crate) fn store(&self, task: &TaskId, stats: Stats) {
        let labels = [("application", self.application.clone()), ("task", task.to_string())];
        gauge!("trunkline_streams_store_disk_bytes", &labels).set(float(offset(stats.disk_bytes)));
        gauge!("trunkline_streams_store_memory_bytes", &labels).set(float(offset(stats.memory_bytes)));
    }

    /// Sets the number of changelog offsets that a task still has to read.
    pub(crate) fn restore_left(&self, task: &TaskId, left: Offset) {
        let labels = [("application", self.application.clone()), ("task", task.to_string())];
        gauge!("trunkline_streams_restore_offsets_left", &labels).set(float(left));
    }

    /// Sets the lag of an input: offsets from the committed position to the last stable offset and, if known, the waiting
    /// time of the oldest record that is not committed.
    pub(crate) fn lag(&self, at: &TopicPartition, lag: Offset, waits: Option<Duration>) {
        let labels = [
            ("application", self.application.clone()),
            ("topic", at.topic.to_string()),
            ("partition", at.partition.to_string()),
        ];
        gauge!("trunkline_streams_input_lag_offsets", &labels).set(float(lag));
        if let Some(waits) = waits {
            gauge!("trunkline_streams_input_lag_seconds", &labels).set(waits.as_secs_f64());
        }
    }
}

/// Registers unit and description of every metric.
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

const COUNTERS: [Described; 15] = [
    (
        "trunkline_streams_records_in_total",
        Unit::Count,
        "Input records processed",
    ),
    (
        "trunkline_streams_bytes_in_total",
        Unit::Bytes,
        "Bytes of keys, values and headers read from the inputs",
    ),
    (
        "trunkline_streams_records_out_total",
        Unit::Count,
        "Records sent, including dead letters, without changelogs",
    ),
    (
        "trunkline_streams_bytes_out_total",
        Unit::Bytes,
        "Bytes of keys, values and headers of the records sent",
    ),
    ("trunkline_streams_commits_total", Unit::Count, "Transactions committed"),
    (
        "trunkline_streams_aborts_total",
        Unit::Count,
        "Transactions without a known commit",
    ),
    (
        "trunkline_streams_fences_total",
        Unit::Count,
        "Transactions rejected because a newer owner exists",
    ),
    (
        "trunkline_streams_recoveries_total",
        Unit::Count,
        "Tasks that recovered to the last commit and started",
    ),
    (
        "trunkline_streams_restored_records_total",
        Unit::Count,
        "Changelog records restored to stores",
    ),
    (
        "trunkline_streams_restored_bytes_total",
        Unit::Bytes,
        "Bytes of changelog records restored to stores",
    ),
    (
        "trunkline_streams_stores_quarantined_total",
        Unit::Count,
        "Stores that could not be used and were quarantined",
    ),
    (
        "trunkline_streams_unreadable_inputs_total",
        Unit::Count,
        "Stops of tasks because an input could not be read",
    ),
    (
        "trunkline_streams_dead_letters_total",
        Unit::Count,
        "Dead letters committed",
    ),
    ("trunkline_streams_timers_fired_total", Unit::Count, "Timers that fired"),
    (
        "trunkline_streams_standby_records_total",
        Unit::Count,
        "Changelog records applied to standbys",
    ),
];

const GAUGES: [Described; 8] = [
    (
        "trunkline_streams_input_lag_offsets",
        Unit::Count,
        "Offsets from the committed position to the last stable offset",
    ),
    (
        "trunkline_streams_input_lag_seconds",
        Unit::Seconds,
        "Waiting time of the oldest record that is not committed",
    ),
    ("trunkline_streams_uncommitted_bytes", Unit::Bytes, "Uncommitted state"),
    (
        "trunkline_streams_store_disk_bytes",
        Unit::Bytes,
        "Bytes of a task's store on disk",
    ),
    (
        "trunkline_streams_store_memory_bytes",
        Unit::Bytes,
        "Bytes of a task's store in caches and write buffers",
    ),
    (
        "trunkline_streams_restore_offsets_left",
        Unit::Count,
        "Changelog offsets that a task still has to read",
    ),
    (
        "trunkline_streams_standby_tasks",
        Unit::Count,
        "Standbys of other processes' tasks",
    ),
    (
        "trunkline_streams_stopped_tasks",
        Unit::Count,
        "Tasks that are stopped until an operator acts",
    ),
];

const HISTOGRAMS: [Described; 5] = [
    (
        "trunkline_streams_commit_seconds",
        Unit::Seconds,
        "Duration of a commit",
    ),
    (
        "trunkline_streams_commit_records",
        Unit::Count,
        "Input records of a committed transaction",
    ),
    (
        "trunkline_streams_commit_bytes",
        Unit::Bytes,
        "Output and changelog bytes of a committed transaction",
    ),
    (
        "trunkline_streams_latency_seconds",
        Unit::Seconds,
        "Time from a record's timestamp to its commit",
    ),
    (
        "trunkline_streams_timer_late_seconds",
        Unit::Seconds,
        "Delay of wall-clock timers",
    ),
];

fn offset(bytes: u64) -> Offset {
    Offset::try_from(bytes).unwrap_or(Offset::MAX)
}

/// Converts an integer to the value of a gauge or histogram.
#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "a gauge is a float; beyond 2^53 it rounds"
)]
pub(crate) fn float(count: Offset) -> f64 {
    count as f64
}

/// Converts a size to the value of a histogram.
pub(crate) fn size(count: usize) -> f64 {
    float(Offset::try_from(count).unwrap_or(Offset::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::metrics::{Key, KeyName, Metadata, Recorder, SharedString};
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    /// Records which metrics are created and which are described.
    #[derive(Default)]
    struct Names {
        created: Mutex<BTreeSet<String>>,
        described: Mutex<BTreeSet<String>>,
    }

    impl Names {
        fn describe(&self, key: &KeyName, unit: Option<Unit>, text: &str) {
            assert!(unit.is_some() && !text.is_empty(), "{}", key.as_str());
            self.described.lock().unwrap().insert(key.as_str().to_owned());
        }

        fn create(&self, key: &Key) {
            let labels: Vec<&str> = key.labels().map(::metrics::Label::key).collect();
            assert_eq!(labels.first(), Some(&"application"), "{}", key.name());
            self.created.lock().unwrap().insert(key.name().to_owned());
        }
    }

    impl Recorder for Names {
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
            self.create(key);
            Counter::noop()
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            self.create(key);
            Gauge::noop()
        }

        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            self.create(key);
            Histogram::noop()
        }
    }

    #[test]
    fn every_metric_has_unit_description_and_application() {
        let names = Names::default();
        ::metrics::with_local_recorder(&names, || {
            let metrics = Metrics::new("app");
            let task = TaskId {
                subtopology: "sub".into(),
                partition: 0,
            };
            metrics.standbys(1);
            metrics.uncommitted_bytes("app-one-0").set(1.0);
            metrics.stopped_tasks("app-one-0").set(1.0);
            metrics.store(&task, Stats::default());
            metrics.restore_left(&task, 1);
            metrics.lag(&TopicPartition::new("in", 0), 1, Some(Duration::ZERO));
        });
        let (created, described) = (
            names.created.into_inner().unwrap(),
            names.described.into_inner().unwrap(),
        );
        assert_eq!(created, described);
        assert_eq!(created.len(), COUNTERS.len() + GAUGES.len() + HISTOGRAMS.len());
    }
}
