//! Start of an edge: checks the configuration, binds the listener and spawns the tasks.
//!
//! [`start`] fails before anything runs. During a drain, `view.log` is read into the replica until the last request is
//! answered, because a poll that arrived before the drain still needs a current replica.

use crate::auth::Authenticator;
use crate::auth::cursor_keys::{KeysError, cursor_keyring};
use crate::config::{Config, ConfigError};
use crate::http::{KEYS_FIX, Service, router};
use crate::replica::{FollowConfig, Follower, FollowerContext, ReplicaHandle, ReplicaPosition};
use crate::sync::{Memberships, Polls, PollsContext};
use event_log::SharedEventLog;
use service::listener::{self, Listener};
use service::{Component, Drain, Readiness, SharedClock, Tasks};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Interval of readiness updates about the issuers' keys.
const KEYS_READINESS_INTERVAL: Duration = Duration::from_secs(1);

/// Dependencies of an edge.
pub struct EdgeContext {
    /// Configuration.
    pub config: Config,
    /// The log.
    pub log: SharedEventLog,
    /// Name of the topology's `view.log`.
    pub view_log: String,
    /// Consumer group in which this edge commits its position.
    pub group: String,
    /// Memberships of the compiled topology.
    pub memberships: Arc<dyn Memberships>,
    /// Clock.
    pub clock: SharedClock,
}

/// An error that keeps an edge from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EdgeError {
    /// A configuration field is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The cursor keys cannot be loaded.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The listener cannot be bound, or is not protected.
    #[error(transparent)]
    Listen(#[from] listener::Error),
}

/// Starts an edge: spawns its listener, the follower of `view.log` and the refresh of the issuers' keys. Returns the
/// address of the listener; the operating system chooses its port if the configured port is 0.
///
/// # Errors
/// The field, file or address that is invalid. Nothing runs then.
pub async fn start(context: EdgeContext, tasks: &Tasks, readiness: &Readiness) -> Result<SocketAddr, EdgeError> {
    let EdgeContext {
        config,
        log,
        view_log,
        group,
        memberships,
        clock,
    } = context;
    config.check()?;
    let auth = Authenticator::new(&config.issuers)?;
    let keyring = cursor_keyring(&config.cursor_keys, &config.data_dir)?;
    config.exposure().check()?;
    let listener = Listener::bind("edge", config.listen)?
        .tls(config.tls.as_ref())?
        .limits(config.limits.of_connections());
    let address = listener.address();
    let replica = Arc::new(ReplicaHandle::default());
    let drain = tasks.drain();
    // Stops the tasks that requests depend on. Starts after the listener has answered the last request, not when the
    // drain starts.
    let requests_done = Drain::new();
    let follow = FollowConfig {
        topic: view_log,
        partitions: memberships.partitions(),
        data_dir: config.data_dir.clone(),
        store: config.store.clone(),
    };
    let component = readiness.register("edge-replica");
    let position = ReplicaPosition::default();
    let committed_log = log.clone();
    let context = FollowerContext {
        handle: replica.clone(),
        clock: clock.clone(),
        readiness: component,
        position: position.clone(),
        stop: requests_done.clone(),
    };
    let follower = Follower::new(log, follow, context);
    let limits = config.limits.clone();
    let polls = Polls::new(PollsContext {
        replica: replica.clone(),
        memberships,
        keyring,
        limits,
        clock: clock.clone(),
        drain: drain.clone(),
    });
    let service = Arc::new(Service {
        auth,
        polls: Arc::new(polls),
        replica,
        clock,
    });
    let keys = refresh_keys(service.clone(), readiness.register("edge-keys"), requests_done.token());
    let stopped = requests_done.clone();
    tasks.thread("edge-replica", move || follower.run());
    tasks.thread("edge-position", move || {
        position.commit(&committed_log, &group, &stopped)
    });
    tasks.spawn("edge-keys", keys);
    tasks.spawn("edge-listener", async move {
        listener.run(router(service), drain).await;
        requests_done.start();
    });
    tracing::info!(%address, "edge started");
    Ok(address)
}

/// Refreshes the issuers' keys and reports to readiness whether tokens of every issuer can be verified.
async fn refresh_keys(service: Arc<Service>, component: Component, stop: CancellationToken) {
    let report = async {
        loop {
            match service.auth.problems(service.clock.now_ms()).first() {
                None => component.ready(),
                Some(cause) => component.not_ready(cause, KEYS_FIX),
            }
            tokio::time::sleep(KEYS_READINESS_INTERVAL).await;
        }
    };
    tokio::select! {
        () = service.auth.run(|| service.clock.now_ms(), stop) => {}
        () = report => {}
    }
}
