//! Runs an application in a process: resolves it against the log, then its stream threads, and the lag beside them.
//!
//! Guarantees: returns at once; everything runs on threads that the process owns, ends with its drain after a last
//! commit, and ends the process when it cannot go on.
//! Never: a change of what the process is: no signal, no listener, no log format.

use crate::clock::ProcessClock;
use crate::plan::Plan;
use crate::standby::Standby;
use crate::status::{Cause, Status};
use crate::stores::Directory;
use crate::thread::{Shared, StreamThread};
use crate::{Application, Config, Error, Handle, Result, members, sample};
use event_log::{ErrorAction, EventLog, SharedEventLog};
use service::{Drain, Readiness, SharedClock, Tasks, chain};
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for input, and so for the drain.
const MAX_WAIT: Duration = Duration::from_millis(100);
/// Pause between attempts to reach the log at the start.
const START_AGAIN: Duration = Duration::from_secs(1);

/// Starts an application on the threads of a process. Its readiness component is `processor <application>`.
///
/// A fence by another process of the same name, a store that fails and an application that does not fit the log end
/// the process, through the tasks' first failure; a log that is out of reach only makes readiness red. The handle that
/// is returned answers questions about it; it may be dropped.
pub fn run(
    application: Application,
    config: Config,
    log: SharedEventLog,
    clock: SharedClock,
    tasks: &Tasks,
    readiness: &Readiness,
) -> Handle {
    let component = readiness.register(format!("processor {}", application.name));
    let status = Arc::new(Status::told_to(component));
    let handle = Handle::new(&application.name);
    let (owner, started) = (tasks.clone(), handle.clone());
    tasks.thread(format!("{}-start", application.name), move || {
        start(&application, config, log, clock, &owner, status, &started)
    });
    handle
}

fn start(
    application: &Application,
    config: Config,
    log: SharedEventLog,
    clock: SharedClock,
    tasks: &Tasks,
    status: Arc<Status>,
    handle: &Handle,
) -> Result<()> {
    let drain = tasks.drain();
    let plan = loop {
        let resolved = Plan::resolve(&*log, application, &config);
        match resolved.and_then(|plan| announce(&*log, application, &config).map(|()| plan)) {
            Ok(plan) => break plan,
            Err(error) if error.action() == ErrorAction::Retry => {
                status.set("start", Some(Cause::outside(chain(&error))));
                if !drain.sleep_blocking(START_AGAIN) {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
    };
    let directory = Directory {
        dir: config.dir.clone(),
        engine: config.engine,
        memory_bytes: config.store_memory_bytes,
    };
    for words in plan.unclaimed(&directory) {
        tracing::warn!(application = application.name, "{words}");
    }
    let threads = config.threads.max(1);
    let names: Vec<String> = (0..threads)
        .map(|index| config.thread_name(&plan.application, index))
        .collect();
    let clock = Arc::new(ProcessClock::new(clock));
    let env = Arc::new(Shared::new(
        plan,
        config,
        log,
        clock,
        Arc::new(directory),
        status.clone(),
    ));
    handle.started(env.clone());
    names
        .iter()
        .for_each(|name| status.set(name, Some(Cause::passing("starting"))));
    status.set("start", None);
    for (index, name) in names.into_iter().enumerate() {
        let (env, drain) = (env.clone(), drain.clone());
        tasks.thread(name, move || stream(env, index, &drain));
    }
    if env.config.standby_replicas > 0 {
        let (env, drain) = (env.clone(), drain.clone());
        tasks.thread(format!("{}-standby", application.name), move || {
            keep_standbys(env, &drain);
            Ok::<(), Error>(())
        });
    }
    tasks.thread(format!("{}-lag", application.name), move || sample::run(&env, &drain));
    Ok(())
}

/// Tells the other processes where this one answers; a log that does not let it leaves queries without a redirection.
fn announce(log: &dyn EventLog, application: &Application, config: &Config) -> Result<()> {
    let Some(admin) = &config.advertised else {
        return Ok(());
    };
    let (name, instance) = (&application.name, &config.instance);
    match members::announce(log, name, instance, admin, config.threads, config.replication) {
        Err(error) if error.action() != ErrorAction::Retry => {
            tracing::warn!(
                application = name,
                reason = chain(&error),
                "the address of this process is not told"
            );
            Ok(())
        }
        told => told.map_err(|source| Error::EventLog {
            who: name.clone(),
            source,
        }),
    }
}

/// The loop of a stream thread.
fn stream(env: Arc<Shared>, index: usize, drain: &Drain) -> Result<()> {
    let mut thread = StreamThread::new(env, index);
    while !drain.is_draining() {
        let pause = thread.turn(MAX_WAIT)?;
        if !pause.is_zero() {
            drain.sleep_blocking(pause);
        }
    }
    thread.finish()
}

/// The loop that keeps other processes' tasks warm.
fn keep_standbys(env: Arc<Shared>, drain: &Drain) {
    let mut standby = Standby::new(env.clone());
    while !drain.is_draining() {
        let pause = standby.turn(MAX_WAIT);
        if !pause.is_zero() {
            drain.sleep_blocking(pause);
        }
    }
    env.warm().clear();
}
