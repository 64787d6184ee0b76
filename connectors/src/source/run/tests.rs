//! Tests of the connector loop with sources that always fail.

use super::super::{Batch, Boundary, Budget, Progress, TRANSACTION_TIMEOUT};
use super::*;
use crate::status::Handle;
use event_log::SharedEventLog;
use event_log::embedded::{Config, EmbeddedLog};
use registry::embedded::Embedded;
use service::Readiness;
use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// A position that consists of a source epoch only.
#[derive(Debug, Clone)]
pub(super) struct At(pub(super) u32);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl super::super::Position for At {
    fn to_json(&self) -> String {
        format!("{{\"v\":1,\"epoch\":{}}}", self.0)
    }
    fn complete(&self) -> String {
        String::new()
    }
    fn from_json(json: &str, _: Option<&str>) -> std::result::Result<Self, Unreadable> {
        let epoch = json.trim_start_matches("{\"v\":1,\"epoch\":").trim_end_matches('}');
        epoch
            .parse()
            .map(At)
            .map_err(|_| Unreadable::StartOver(json.to_owned()))
    }
    fn is_beyond(&self, _: &Self) -> bool {
        false
    }
}

/// A source whose database never matches its position.
struct Mismatched {
    opened: mpsc::Sender<()>,
}

impl Source for Mismatched {
    type Position = At;

    async fn open(&mut self, _: Option<At>, _: usize) -> Result<()> {
        let _ = self.opened.send(());
        Err(Error::NeedsResync {
            reason: String::from("another cluster"),
        })
    }
    async fn next(&mut self, _: &mut Batch<At>, _: Budget) -> Result<Boundary> {
        Ok(Boundary::Idle)
    }
    fn committed(&mut self, _: &At) {}
    fn close(&mut self) {}
    fn restart_position(&self, _: Option<&At>, epoch: u32) -> Option<At> {
        Some(At(epoch + 1))
    }
    fn progress(&self) -> Progress {
        Progress::default()
    }
}

/// A log in memory.
pub(super) fn log() -> SharedEventLog {
    let clock = service::clock::system();
    let config = Config::new(None, Arc::new(move || clock.now_ms()));
    EmbeddedLog::open(config).unwrap()
}

/// The context of a connector `shop`.
pub(super) fn context(log: &SharedEventLog, runtime: &tokio::runtime::Runtime, readiness: &Readiness) -> Context {
    Context {
        name: String::from("shop"),
        registry: Arc::new(Embedded::open(log.clone()).unwrap()),
        log: log.clone(),
        clock: service::clock::system(),
        runtime: runtime.handle().clone(),
        handle: Handle::new("shop", readiness.register("connector shop")),
        on_mismatch: OnMismatch::Stop,
        replication: None,
        transactional_id: String::from("shop.connector.shop"),
        transaction_timeout: TRANSACTION_TIMEOUT,
        positions_topic: String::from("shop._trunkline.positions"),
    }
}

#[test]
fn resync_that_does_not_help_is_repeated_with_growing_delays() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let context = Context {
        on_mismatch: OnMismatch::Resync,
        ..context(&log(), &runtime, &Readiness::new())
    };
    let (opened, attempts) = mpsc::channel();
    let (source, drain) = (Mismatched { opened }, Drain::new());
    let inside = drain.clone();
    let thread = std::thread::Builder::new().spawn(move || run(source, &context, &inside));
    // Delays of 100, 200, 400 ms and more: without them the loop opens the source thousands of times.
    let until = Instant::now() + Duration::from_secs(2);
    let mut count = 0;
    while count < 12
        && attempts
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .is_ok()
    {
        count += 1;
    }
    drain.start();
    thread.unwrap().join().unwrap();
    assert!((2..12).contains(&count), "{count} attempts in two seconds");
}
