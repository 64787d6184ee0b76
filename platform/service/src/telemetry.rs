//! Logs on stderr, as text or as JSON, and metrics for Prometheus.
//!
//! A process has one metrics recorder; [`crate::admin`] serves it. Nothing here writes to stdout, which belongs to the
//! output of commands.

use crate::Tasks;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Configuration of logs.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Format of a line.
    pub format: Format,
    /// Minimum level, global or per target: `info`, or `info,trunkline_edge=debug`.
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

/// Format of a log line.
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq, Default)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Human-readable text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The level is invalid.
    #[error("invalid log level `{level}`; use error, warn, info, debug or trace, or target=level, separated by commas")]
    Level {
        /// The configured level.
        level: String,
        /// The parser's error.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
}

/// Initialises logging. Has no effect in a process that has a logger already.
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
    // Setting the subscriber fails if one is already set, as in a test or for a second role of one process.
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

/// The metrics of the process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

/// Bucket bounds of histograms whose names end in `_seconds`: 100 µs to 60 s.
const SECONDS: [f64; 18] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Bucket bounds of histograms whose names end in `_records` and `_bytes`: powers of 4.
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

/// Installs the recorder on the first call and returns it.
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
        // An application that embeds this crate may have installed its own recorder. This recorder then stays empty.
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed; /metrics will be empty");
        }
        Metrics { handle }
    };
    METRICS.get_or_init(install).clone()
}

impl Metrics {
    /// Renders all metrics as Prometheus text, with the memory and CPU time of the process.
    pub fn render(&self) -> String {
        let usage = usage();
        metrics::gauge!("process_resident_memory_bytes").set(usage.resident_bytes);
        metrics::gauge!("process_cpu_seconds_total").set(usage.cpu_s);
        self.handle.render()
    }

    /// Runs the upkeep of the recorder, which limits the memory of histograms when nothing scrapes them.
    pub fn keep_up(&self, tasks: &Tasks) {
        let (handle, drain) = (self.handle.clone(), tasks.drain());
        tasks.spawn("metrics", async move {
            while drain.sleep(Duration::from_secs(5)).await {
                handle.run_upkeep();
            }
        });
    }
}

/// Resource usage of a process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Resident memory in bytes.
    pub resident_bytes: f64,
    /// CPU time since the start of the process, in seconds.
    pub cpu_s: f64,
}

/// Reads the resource usage of this process from `/proc`; zero on systems without it.
pub fn usage() -> Usage {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    // Fields 14 (utime) and 15 (stime) of proc_pid_stat(5), in ticks of 10 ms. Fields are counted after the command
    // name, which may contain spaces.
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
    fn invalid_level_is_named_with_the_allowed_ones() {
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
    fn process_uses_memory() {
        assert!(usage().resident_bytes > 1_000_000.0);
    }

    #[test]
    fn seconds_have_buckets() {
        let metrics = metrics();
        metrics::histogram!("trunkline_test_seconds").record(0.003);
        let text = metrics.render();
        assert!(text.contains("trunkline_test_seconds_bucket{le=\"0.005\"} 1"), "{text}");
    }
}
