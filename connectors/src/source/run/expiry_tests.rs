//! Fencing of a connector whose transaction expired while its commit waited for the log.

use super::tests::{At, context, log};
use crate::commands::DesiredState;
use crate::error::{Error, Result};
use crate::source::lifecycle::Lifecycle;
use crate::source::positions::Positions;
use crate::source::pump::{End, Pump};
use crate::source::retry::Retry;
use crate::source::{Batch, Boundary, Budget, Context, Progress, Source};
use event_log::{GroupMetadata, Offset, OutBatch, Outcome, TopicPartition, TransactionalProducer};
use service::{Drain, Readiness};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(2);

/// A source that returns one position after another.
struct Positioned;

impl Source for Positioned {
    type Position = At;

    async fn open(&mut self, _: Option<At>, _: usize) -> Result<()> {
        Ok(())
    }
    async fn next(&mut self, batch: &mut Batch<At>, _: Budget) -> Result<Boundary> {
        batch.position = Some(At(1));
        batch.store_now = true;
        Ok(Boundary::Drained)
    }
    fn committed(&mut self, _: &At) {}
    fn close(&mut self) {}
    fn restart_position(&self, _: Option<&At>, _: u32) -> Option<At> {
        None
    }
    fn progress(&self) -> Progress {
        Progress::default()
    }
}

/// A producer whose commits wait, as for a leader that is down, and are then fenced.
struct Fenced {
    commit_takes: Duration,
}

impl TransactionalProducer for Fenced {
    fn begin(&mut self) -> event_log::Result<()> {
        Ok(())
    }
    fn send(&mut self, _: &OutBatch) -> event_log::Result<()> {
        Ok(())
    }
    fn commit(&mut self, _: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>) -> Outcome {
        std::thread::sleep(self.commit_takes);
        Outcome::Aborted {
            fenced: true,
            reason: String::from("invalid producer epoch"),
        }
    }
    fn abort(&mut self) -> event_log::Result<()> {
        Ok(())
    }
    fn init_transactions(&mut self) -> event_log::Result<()> {
        Ok(())
    }
    fn transactional_id(&self) -> &str {
        "shop.connector.shop"
    }
}

/// Result of a pump whose commit takes this long.
fn pump(commit_takes: Duration) -> Result<End> {
    let (runtime, drain) = (tokio::runtime::Runtime::new().unwrap(), Drain::new());
    let context = Context {
        transaction_timeout: TIMEOUT,
        ..context(&log(), &runtime, &Readiness::new())
    };
    let mut lifecycle = Lifecycle {
        context: &context,
        drain: &drain,
        inbox: context.handle.take_inbox(),
        desired: DesiredState::default(),
        last_error: None,
    };
    let mut positions = Positions::open(&context)?;
    let mut producer = Fenced { commit_takes };
    Pump::new(&mut lifecycle, &mut Positioned, &mut producer, &mut positions).run(&mut Retry::new())
}

#[test]
fn commit_that_outlives_its_transaction_is_not_fenced_by_another_process() {
    assert_eq!(pump(TIMEOUT).unwrap(), End::Uncommitted);
}

#[test]
fn young_transaction_is_fenced_by_another_process() {
    // Within the timeout, only another process can have raised the producer epoch.
    assert!(matches!(pump(Duration::ZERO), Err(Error::Fenced { .. })));
}
