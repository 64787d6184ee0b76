//! Transactions that the broker aborts because they are open for too long.

use super::harness::{Harness, TURNS};
use event_log::{OutRecord, RecordSlice};
use service::clock::Manual;
use std::sync::Arc;
use std::time::Duration;
use streams::{Application, Context, Factory, FirstStart, Output, Processor, Result, State, SubTopology, TaskInfo};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Copies records. A record with the value `slow` takes longer than a transaction may be open.
struct Slow {
    clock: Manual,
}

impl Processor for Slow {
    fn process(&mut self, _: Context, records: RecordSlice<'_>, _: &mut State, output: &mut Output) -> Result<()> {
        for record in records.iter() {
            if record.value() == Some(b"slow") {
                self.clock.advance(11_000);
            }
            let out = OutRecord {
                topic: &Arc::from("out"),
                partition: Some(0),
                timestamp: None,
                key: record.key(),
                value: record.value(),
            };
            output.send(out, []);
        }
        Ok(())
    }
}

fn application(clock: &Manual) -> Application {
    let clock = clock.clone();
    let factory: Factory = Arc::new(move |_: &TaskInfo| Box::new(Slow { clock: clock.clone() }));
    let sub = SubTopology {
        name: "slow".to_owned(),
        inputs: vec!["in".to_owned()],
        store: "counts".to_owned(),
        factory,
        first_start: FirstStart::Earliest,
    };
    Application {
        name: "app".to_owned(),
        subtopologies: vec![sub],
    }
}

#[test]
fn transaction_that_always_exceeds_its_timeout_is_shown() {
    let harness = Harness::new();
    let mut thread = harness.start_with(&application(&harness.clock), |config| {
        config.commit.transaction_timeout = TIMEOUT;
    });
    // The output of one partition opens the transaction in which the other one is slow.
    harness.append(0, &[("a", "slow")]);
    harness.append(1, &[("b", "slow")]);
    let mut causes = Vec::new();
    for _ in 0..TURNS {
        harness.clock.advance(10);
        thread.turn().unwrap();
        causes.extend(thread.causes());
        if causes.iter().any(|cause| cause.contains("open for more than 10 s")) {
            return;
        }
    }
    panic!("no cause names the timeout: {causes:?}");
}
