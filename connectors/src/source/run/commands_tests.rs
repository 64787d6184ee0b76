//! Tests of the commands of operators, with a source in memory.

use super::tests::{At, context, log};
use crate::commands::{Command, CommandError, Target};
use crate::error::{Error, Result};
use crate::source::{Batch, Boundary, Budget, Request, Source, run};
use crate::status::{Handle, Report, State};
use event_log::SharedEventLog;
use service::{Drain, Readiness};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot::error::TryRecvError;

const LIMIT: Duration = Duration::from_secs(30);

/// What was requested from the source.
#[derive(Debug, Default)]
struct Seen {
    opened: usize,
    requested: Vec<Vec<String>>,
}

/// A source with the table `orders`, which returns a position only after a request.
struct Scripted {
    seen: Arc<Mutex<Seen>>,
    restarts: bool,
    epoch: u32,
    requested: bool,
}

impl Source for Scripted {
    type Position = At;

    async fn open(&mut self, position: Option<At>, _: usize) -> Result<()> {
        self.seen.lock().unwrap().opened += 1;
        self.epoch = position.map_or(1, |At(epoch)| epoch);
        Ok(())
    }
    async fn next(&mut self, batch: &mut Batch<At>, _: Budget) -> Result<Boundary> {
        if std::mem::take(&mut self.requested) {
            batch.position = Some(At(self.epoch));
            batch.store_now = true;
            return Ok(Boundary::Drained);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        Ok(Boundary::Idle)
    }
    fn committed(&mut self, _: &At) {}
    fn close(&mut self) {}
    fn restart_position(&self, _: Option<&At>, epoch: u32) -> Option<At> {
        self.restarts.then_some(At(epoch + 1))
    }
    fn request(&mut self, request: &Request) -> Result<()> {
        let Request::Snapshot { tables } = request;
        if let Some(unknown) = tables.iter().find(|table| *table != "orders") {
            return Err(Error::Rejected {
                reason: format!("there is no table {unknown}"),
                fix: String::from("declared are orders"),
            });
        }
        self.seen.lock().unwrap().requested.push(tables.clone());
        self.requested = true;
        Ok(())
    }
}

/// A connector that runs on its own thread.
struct Running {
    handle: Handle,
    seen: Arc<Mutex<Seen>>,
    drain: Drain,
    thread: Option<JoinHandle<()>>,
    readiness: Readiness,
}

impl Running {
    fn start(log: &SharedEventLog, runtime: &tokio::runtime::Runtime, restarts: bool) -> Self {
        let (seen, drain, readiness) = (Arc::<Mutex<Seen>>::default(), Drain::new(), Readiness::new());
        let context = context(log, runtime, &readiness);
        let source = Scripted {
            seen: seen.clone(),
            restarts,
            epoch: 0,
            requested: false,
        };
        let (handle, inside) = (context.handle.clone(), drain.clone());
        let thread = std::thread::Builder::new().spawn(move || run(source, &context, &inside));
        Running {
            handle,
            seen,
            drain,
            thread: Some(thread.unwrap()),
            readiness,
        }
    }

    fn wait(&self, what: &str, is: impl Fn(&Report) -> bool) -> Report {
        let started = Instant::now();
        loop {
            let report = self.handle.report();
            if is(&report) {
                return report;
            }
            assert!(started.elapsed() < LIMIT, "{what}: {report:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn wait_for(&self, state: State) -> Report {
        self.wait(state.name(), |report| report.state == state)
    }

    fn send(&self, command: Command) -> Result<(), CommandError> {
        let mut reply = self.handle.send(command).unwrap();
        let started = Instant::now();
        loop {
            match reply.try_recv() {
                Err(TryRecvError::Empty) => {
                    assert!(started.elapsed() < LIMIT, "the command is not answered");
                    std::thread::sleep(Duration::from_millis(2));
                }
                answer => return answer.expect("the command is answered"),
            }
        }
    }

    fn requested(&self) -> usize {
        self.seen.lock().unwrap().requested.len()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.drain.start();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn snapshot(table: &str) -> Command {
    Command::Snapshot {
        tables: vec![table.to_owned()],
    }
}

#[test]
fn pause_survives_a_restart() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let log = log();
    let connector = Running::start(&log, &runtime, true);
    connector.wait_for(State::Running);
    connector.send(Command::Pause).unwrap();
    // The state changes before the command is answered.
    assert_eq!(connector.handle.report().state, State::Paused);
    let component = connector.readiness.report().components.remove(0);
    assert!(component.ready && component.detail.unwrap().contains("connect resume shop"));
    drop(connector);

    let connector = Running::start(&log, &runtime, true);
    let report = connector.wait_for(State::Paused);
    assert_eq!(report.target, Target::Paused);
    assert_eq!(connector.seen.lock().unwrap().opened, 0);
    connector.send(Command::Resume).unwrap();
    connector.wait_for(State::Running);
    assert_eq!(connector.readiness.report().components[0].detail, None);
    drop(connector);
    let connector = Running::start(&log, &runtime, true);
    assert_eq!(connector.wait_for(State::Running).target, Target::Running);
}

#[test]
fn snapshot_is_confirmed_once_its_position_is_committed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let connector = Running::start(&log(), &runtime, true);
    connector.wait_for(State::Running);
    connector.send(snapshot("orders")).unwrap();
    assert_eq!(connector.handle.report().position, "1");
    let error = connector.send(snapshot("order")).unwrap_err().to_string();
    assert_eq!(error, "there is no table order; declared are orders");
    let seen = connector.seen.lock().unwrap();
    assert_eq!((seen.opened, seen.requested.len()), (1, 1), "the source stays open");
}

#[test]
fn snapshot_that_is_requested_while_paused_survives_a_restart_and_is_requested_once() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let log = log();
    let connector = Running::start(&log, &runtime, true);
    connector.send(Command::Pause).unwrap();
    connector.send(snapshot("orders")).unwrap();
    connector.send(snapshot("gone")).unwrap();
    drop(connector);

    let connector = Running::start(&log, &runtime, true);
    let report = connector.wait_for(State::Paused);
    assert_eq!(report.pending_snapshots, ["gone", "orders"]);
    connector.send(Command::Resume).unwrap();
    // The rejected table does not affect the other one, and stays pending for a while.
    connector.wait("one pending snapshot", |report| report.pending_snapshots == ["gone"]);
    assert_eq!(connector.requested(), 1);
    drop(connector);
    let connector = Running::start(&log, &runtime, true);
    connector.wait_for(State::Running);
    assert_eq!(connector.requested(), 0);
}

#[test]
fn resync_starts_a_new_source_epoch_also_while_paused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let connector = Running::start(&log(), &runtime, true);
    connector.wait_for(State::Running);
    connector.send(Command::Resync).unwrap();
    connector.wait("epoch 1", |report| {
        report.position == "1" && report.state == State::Running
    });
    connector.send(Command::Pause).unwrap();
    connector.send(Command::Resync).unwrap();
    assert_eq!(connector.handle.report().state, State::Paused);
    connector.send(Command::Resume).unwrap();
    connector.wait("epoch 2", |report| {
        report.position == "2" && report.state == State::Running
    });
}

#[test]
fn resync_of_a_source_that_cannot_be_read_again_is_rejected_and_the_connector_continues() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let connector = Running::start(&log(), &runtime, false);
    connector.wait_for(State::Running);
    let error = connector.send(Command::Resync).unwrap_err().to_string();
    assert!(error.contains("cannot resync connector shop"), "{error}");
    let report = connector.wait("running or failed", |report| report.state != State::Starting);
    assert_eq!(report.state, State::Running, "{report:?}");
    // The request is not repeated at the next attempt.
    connector.send(Command::Restart).unwrap();
    connector.wait_for(State::Running);
}

#[test]
fn fenced_connector_waits_until_an_operator_restarts_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let log = log();
    let first = Running::start(&log, &runtime, true);
    first.wait_for(State::Running);
    let second = Running::start(&log, &runtime, true);
    second.wait_for(State::Running);
    // The first connector notices it at its next transaction.
    let reply = first.handle.send(snapshot("orders")).unwrap();
    let report = first.wait_for(State::Stopped);
    assert!(reply.blocking_recv().is_err(), "nothing was stored");
    assert!(report.cause.unwrap().contains("has taken over"));
    assert!(!first.readiness.report().ready);
    let error = first.send(Command::Pause).unwrap_err().to_string();
    assert!(error.contains("connect restart shop"), "{error}");
    assert_eq!(second.handle.report().state, State::Running);

    first.send(Command::Restart).unwrap();
    first.wait_for(State::Running);
    drop(second.handle.send(snapshot("orders")).unwrap());
    second.wait_for(State::Stopped);
    assert_eq!(first.handle.report().state, State::Running);
}
