//! The edge put together: what it needs from outside, and what runs.
//!
//! Guarantees: [`start`] fails with the field, file or address that is wrong before anything runs; in a drain the
//! replica is followed until the last request is answered.
//! Never: a thread or task without an owner.

use crate::auth::Authenticator;
use crate::config::{Config, ConfigError};
use crate::keys::{KeysError, cursor_keyring};
use crate::replica::{FollowConfig, Follower, ReplicaHandle};
use crate::routes::{Service, router};
use crate::server;
use crate::sync::{Memberships, Polls};
use event_log::SharedEventLog;
use service::{Component, Drain, Readiness, SharedClock, Tasks};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The topic of all views.
const VIEW_LOG: &str = "view.log";
/// How often readiness is told whether tokens can be checked.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What an edge needs from outside.
pub struct Parts {
    /// Configuration.
    pub config: Config,
    /// The log with `view.log`.
    pub log: SharedEventLog,
    /// Who may read what: the compiled topology.
    pub memberships: Arc<dyn Memberships>,
    /// The time.
    pub clock: SharedClock,
}

/// Why an edge does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EdgeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The cursor keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The listener.
    #[error("open the devices' listener (edge.listen)")]
    Listen(#[source] service::http::Error),
}

/// Starts an edge as tasks: its listener, its replica's thread and the care for its issuers' keys. Returns the address
/// that it listens on, which the configuration may have left open.
///
/// # Errors
/// The field, file or address that is wrong; nothing runs then.
pub async fn start(parts: Parts, tasks: &Tasks, readiness: &Readiness) -> Result<SocketAddr, EdgeError> {
    let Parts {
        config,
        log,
        memberships,
        clock,
    } = parts;
    config.check()?;
    let auth = Authenticator::new(&config.issuers)?;
    let keyring = cursor_keyring(&config.cursor_keys, &config.data_dir)?;
    let listener = service::http::bind(config.listen).await.map_err(EdgeError::Listen)?;
    let address = listener.local_addr().map_err(|source| {
        EdgeError::Listen(service::http::Error::Bind {
            address: config.listen,
            source,
        })
    })?;
    let shelf = Arc::new(ReplicaHandle::default());
    let drain = tasks.drain();
    // What requests stand on goes on through the drain, until the last of them is answered.
    let answered = Drain::new();
    let follow = FollowConfig {
        topic: VIEW_LOG.into(),
        partitions: memberships.partitions(),
        data_dir: config.data_dir.clone(),
        store: config.store.clone(),
    };
    let component = readiness.register("edge-replica");
    let follower = Follower::new(log, shelf.clone(), follow, clock.clone(), component, answered.clone());
    let limits = config.limits.clone();
    let polls = Polls::new(
        shelf.clone(),
        memberships,
        keyring,
        limits.clone(),
        clock.clone(),
        drain.clone(),
    );
    let service = Arc::new(Service {
        auth,
        polls: Arc::new(polls),
        shelf,
        clock,
    });
    let keys = keep_keys(service.clone(), readiness.register("edge-keys"), answered.token());
    tasks.thread("edge-replica", move || follower.run());
    tasks.spawn("edge-keys", keys);
    tasks.spawn("edge-listener", async move {
        server::serve(listener, router(service), &limits, drain).await;
        answered.start();
    });
    tracing::info!(%address, "devices are served");
    Ok(address)
}

/// Keeps the issuers' keys fresh and tells readiness whether tokens can be checked.
async fn keep_keys(service: Arc<Service>, component: Component, stop: CancellationToken) {
    let tell = async {
        loop {
            match service.auth.problems(service.clock.now_ms()).first() {
                None => component.ready(),
                Some(cause) => {
                    component.not_ready(cause, "check edge.issuers in the configuration, and the issuer itself")
                }
            }
            tokio::time::sleep(TELL_EVERY).await;
        }
    };
    tokio::select! {
        () = service.auth.run(|| service.clock.now_ms(), stop) => {}
        () = tell => {}
    }
}
