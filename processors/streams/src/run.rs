//! Runs an application in a process: looks up its topics in the log, then starts its stream threads, standbys and lag
//! measurement.
//!
//! [`run`] returns immediately. The threads belong to the process and end when it drains, after a last commit.

use crate::admin::lag;
use crate::admin::members::{self, ProcessAddress};
use crate::admin::query::Handle;
use crate::admin::status::{Cause, Status};
use crate::api::application::{Application, Config};
use crate::api::error::{Error, Result};
use crate::clock::ProcessClock;
use crate::plan::Plan;
use crate::recovery::standby::Standbys;
use crate::shared::{Environment, Shared};
use crate::stores::Directory;
use crate::thread::turn::StreamThread;
use event_log::{ErrorAction, SharedEventLog};
use service::{AttemptError, Drain, Readiness, RetryPolicy, SharedClock, Tasks, chain, retry_blocking};
use std::sync::Arc;
use std::time::Duration;

/// Maximum wait for input, which also bounds the reaction to a drain.
const MAX_WAIT: Duration = Duration::from_millis(100);

/// The process that runs an application.
pub struct Host<'h> {
    /// Wall clock.
    pub clock: SharedClock,
    /// Owner of the threads; the first one that fails ends the process.
    pub tasks: &'h Tasks,
    /// Readiness of the process.
    pub readiness: &'h Readiness,
}

/// Starts an application on the threads of a process. Its readiness component is `processor <application>`.
///
/// The process ends with the error of the first task that fails: an invalid declaration, fencing by another process of
/// the same name, or a store failure. If the log is unavailable or a topic does not fit, for example because an input was
/// deleted, the process continues but is not ready. The returned handle answers queries about the application and may be
/// dropped.
pub fn run(application: Application, config: Config, log: SharedEventLog, host: Host<'_>) -> Handle {
    let Host {
        clock,
        tasks,
        readiness,
    } = host;
    let component = readiness.register(format!("processor {}", application.name));
    let status = Arc::new(Status::for_component(component));
    let handle = Handle::new(&application.name);
    let start = Start {
        application,
        config,
        log,
        clock: Arc::new(ProcessClock::new(clock)),
        status,
        handle: handle.clone(),
    };
    let owner = tasks.clone();
    tasks.thread(format!("{}-start", start.application.name), move || start.run(&owner));
    handle
}

/// Everything that is needed to start an application.
struct Start {
    application: Application,
    config: Config,
    log: SharedEventLog,
    clock: Arc<ProcessClock>,
    status: Arc<Status>,
    handle: Handle,
}

impl Start {
    fn run(self, tasks: &Tasks) -> Result<()> {
        let drain = tasks.drain();
        let Some(plan) = self.resolve(&drain)? else {
            return Ok(());
        };
        let Start { config, status, .. } = self;
        let stores = Directory {
            dir: config.stores.dir.clone(),
            engine: config.stores.engine,
            memory_bytes: config.stores.memory_bytes,
        };
        let application = plan.application.clone();
        for warning in plan.orphaned_state(&stores) {
            tracing::warn!(%application, "{warning}");
        }
        let threads = plan.threads(config.threads);
        let names: Vec<String> = (0..threads)
            .map(|index| config.thread_name(&application, index))
            .collect();
        let environment = Environment {
            log: self.log,
            clock: self.clock,
            stores: Arc::new(stores),
        };
        let shared = Arc::new(Shared::new(plan, config, environment, status.clone()));
        self.handle.started(shared.clone());
        for name in &names {
            status.set(name, Some(Cause::transient("starting")));
        }
        status.set("start", None);
        for (index, name) in names.into_iter().enumerate() {
            let (shared, drain) = (shared.clone(), drain.clone());
            tasks.thread(name, move || run_thread(shared, index, &drain));
        }
        if shared.config.standby_replicas > 0 {
            let (shared, drain) = (shared.clone(), drain.clone());
            tasks.thread(format!("{application}-standby"), move || {
                run_standbys(shared, &drain);
                Ok::<(), Error>(())
            });
        }
        tasks.thread(format!("{application}-lag"), move || lag::run(&shared, &drain));
        Ok(())
    }

    /// Looks up the application's topics, retrying until they fit; `None` if the process drains first.
    fn resolve(&self, drain: &Drain) -> Result<Option<Plan>> {
        Plan::check(&self.application, &self.config)?;
        let mut reported = None;
        retry_blocking(RetryPolicy::START, drain, || {
            let resolved = Plan::resolve(&*self.log, &self.application, &self.config);
            let resolved = resolved.and_then(|plan| self.register_address().map(|()| plan));
            resolved.map_err(|error| {
                let cause = if error.action() == ErrorAction::Retry {
                    Cause::unavailable(chain(&error))
                } else {
                    Cause::operator(chain(&error))
                };
                if reported.as_ref() != Some(&cause) {
                    let application = &self.application.name;
                    tracing::error!(application, reason = cause.text, "application cannot start, retrying");
                    reported = Some(cause.clone());
                }
                self.status.set("start", Some(cause));
                AttemptError::<Error>::Temporary
            })
        })
    }

    /// Publishes the admin address of this process. If the log rejects it, queries to other processes cannot return the
    /// address of this process.
    fn register_address(&self) -> Result<()> {
        let (Some(admin), Some(topic)) = (&self.config.advertised, &self.config.members_topic) else {
            return Ok(());
        };
        let address = ProcessAddress {
            application: &self.application.name,
            instance: &self.config.instance,
            admin,
            threads: self.config.threads,
        };
        match members::register(&*self.log, topic, &address, self.config.topics.replication) {
            Err(error) if error.action() != ErrorAction::Retry => {
                let application = &self.application.name;
                tracing::warn!(application, reason = chain(&error), "cannot register admin address");
                Ok(())
            }
            registered => registered.map_err(|source| Error::EventLog {
                who: self.application.name.clone(),
                source,
            }),
        }
    }
}

/// Runs a stream thread until the process drains.
fn run_thread(shared: Arc<Shared>, index: usize, drain: &Drain) -> Result<()> {
    let mut thread = StreamThread::new(shared, index);
    while !drain.is_draining() {
        let pause = thread.turn(MAX_WAIT)?;
        if !pause.is_zero() {
            drain.sleep_blocking(pause);
        }
    }
    thread.finish()
}

/// Maintains standbys until the process drains.
fn run_standbys(shared: Arc<Shared>, drain: &Drain) {
    let mut standbys = Standbys::new(shared.clone());
    while !drain.is_draining() {
        let pause = standbys.turn(MAX_WAIT);
        if !pause.is_zero() {
            drain.sleep_blocking(pause);
        }
    }
    shared.standbys().clear();
}
