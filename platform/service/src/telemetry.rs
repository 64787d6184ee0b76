//! Logs on stderr and numbers for Prometheus.
//!
//! Guarantees: one line an event, as text for people or JSON for machines; one recorder a process, whoever asks first.
//! Never: a listener of its own ([`crate::admin`] shows the numbers); data on stdout.

use crate::Tasks;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// How logs are written.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Text for people, JSON for machines.
    pub format: Format,
    /// Least level, for all or by target: `info`, or `info,trunkline_edge=debug`.
    pub level: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            format: Format::Text,
            level: "info".to_owned(),
        }
    }
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq, Default)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The level cannot be read.
    #[error("log level `{level}`; write error, warn, info, debug or trace, alone or as target=level, with commas")]
    Level {
        /// As configured.
        level: String,
        /// The parser's error.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
}

/// Begins to log. A process that logs already goes on as it does.
///
/// # Errors
/// [`Error::Level`].
pub fn logs(config: &Config) -> Result<(), Error> {
    let level = |source| Error::Level {
        level: config.level.clone(),
        source,
    };
    let filter = EnvFilter::builder().parse(&config.level).map_err(level)?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error says that a subscriber is there: a second role of one process, or a test.
    drop(match config.format {
        Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).finish().try_init(),
        Format::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .finish()
            .try_init(),
    });
    Ok(())
}

/// The process's numbers.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

/// Upper bounds of histograms whose names end with `_seconds`: 100 µs to 60 s.
const SECONDS: [f64; 18] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Upper bounds of histograms of counts and of bytes, whose names end with `_records` and `_bytes`: each fourfold.
const RECORDS: [f64; 10] = [
    1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0,
];
const BYTES: [f64; 10] = [
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// Installs the recorder, once; everybody gets the same.
pub fn metrics() -> Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    let install = || {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_records".to_owned()), &RECORDS))
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES))
            .expect("there are bounds")
            .build_recorder();
        let handle = recorder.handle();
        // An embedder may have a recorder: then its own is the one that counts, and ours stays empty.
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed; /metrics will be empty");
        }
        Metrics { handle }
    };
    METRICS.get_or_init(install).clone()
}

impl Metrics {
    /// All numbers as Prometheus text, with this process's memory and CPU time.
    pub fn render(&self) -> String {
        let usage = usage();
        metrics::gauge!("process_resident_memory_bytes").set(usage.resident_bytes);
        metrics::gauge!("process_cpu_seconds_total").set(usage.cpu_s);
        self.handle.render()
    }

    /// Keeps the memory of histograms bounded when nobody asks for the numbers.
    pub fn keep_up(&self, tasks: &Tasks) {
        let (handle, drain) = (self.handle.clone(), tasks.drain());
        tasks.spawn("metrics", async move {
            while drain.sleep(Duration::from_secs(5)).await {
                handle.run_upkeep();
            }
        });
    }
}

/// What a process uses.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Resident memory in bytes.
    pub resident_bytes: f64,
    /// CPU time since its start, in seconds.
    pub cpu_s: f64,
}

/// What this process uses, as Linux says; zeroes elsewhere.
pub fn usage() -> Usage {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    // Fields 14 and 15 of proc(5), counted after the name, which may hold blanks; in ticks of 10 ms.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    Usage {
        resident_bytes: kib.unwrap_or_default() * 1024.0,
        cpu_s: ticks / 100.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_cannot_be_read_says_what_can() {
        let config = Config {
            level: "loud,x=what".to_owned(),
            ..Config::default()
        };
        let error = logs(&config).unwrap_err().to_string();
        assert!(
            error.contains("`loud,x=what`") && error.contains("target=level"),
            "{error}"
        );
    }

    #[test]
    fn a_process_uses_memory() {
        assert!(usage().resident_bytes > 1_000_000.0);
    }

    #[test]
    fn seconds_are_counted_in_buckets() {
        let metrics = metrics();
        metrics::histogram!("trunkline_test_seconds").record(0.003);
        let text = metrics.render();
        assert!(text.contains("trunkline_test_seconds_bucket{le=\"0.005\"} 1"), "{text}");
    }
}
