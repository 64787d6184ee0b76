//! The replication stream: the one file that knows the transport library.
//!
//! Guarantees: frames in the order of the stream; what is acknowledged to the slot is only what
//! [`Replication::acknowledge`] was given; after [`Replication::close`] nothing is.
//! Never: a look into a change; a reconnect.

use super::server::{Server, identifier};
use crate::error::{Error, Result};
use bytes::Bytes;
use futures_util::FutureExt as _;
use pgwire_replication::{PgWireError, ReplicationClient, ReplicationConfig, ReplicationEvent};
use schemas::version::Lsn;
use std::time::Duration;

/// How often the slot is told what was acknowledged.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Events that wait between the connection and the connector.
const BUFFER_EVENTS: usize = 16_384;
/// Largest row that is accepted.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// One thing that the stream says.
#[derive(Debug)]
pub(super) enum Frame {
    /// Everything below was sent, if no transaction is open.
    KeepAlive { end: Lsn },
    /// A source transaction begins.
    Begin { commit_lsn: Lsn, commit_time_micros: i64 },
    /// The source transaction ends.
    Commit { end_lsn: Lsn },
    /// A logical message outside transactions, such as our heartbeat: everything below its place was sent.
    Mark { lsn: Lsn },
    /// A message of the output plugin; `pgoutput` decodes it.
    Change(Bytes),
    /// Nothing to do.
    Nothing,
}

/// Who the server says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) system: String,
    pub(super) timeline: u32,
}

/// A slot that was just created.
#[derive(Debug, Clone)]
pub(super) struct Created {
    /// Changes of transactions that commit at or after this place will be streamed.
    pub(super) consistent_point: Lsn,
    /// What was committed before it can be read in this snapshot, as long as the connection does nothing else.
    pub(super) snapshot: String,
}

/// A replication connection.
pub(super) struct Replication {
    client: ReplicationClient,
    server: Server,
}

impl Replication {
    /// Connects, to stream from `slot` at `start` later.
    pub(super) async fn connect(server: &Server, slot: &str, publication: &str, start: Lsn) -> Result<Self> {
        let host = server.host();
        let config = ReplicationConfig::new(
            host,
            server.user(),
            server.password(),
            server.database(),
            identifier(slot),
            // The library puts the name into a list as it stands.
            identifier(publication),
        )
        .with_port(server.port())
        .with_start_lsn(start.0.into())
        .with_status_interval(STATUS_INTERVAL)
        .with_buffer_size(BUFFER_EVENTS)
        .with_max_message_size(MESSAGE_BYTES_MAX)
        .with_options(server.options())
        .with_application_name(format!("trunkline {slot}"));
        let client = ReplicationClient::connect_gated(config).await;
        let client = client.map_err(|e| error(server, "open a replication connection", e))?;
        Ok(Replication {
            client,
            server: server.clone(),
        })
    }

    /// Asks the server who it is.
    pub(super) async fn identify(&mut self) -> Result<Identity> {
        let attempted = "open a replication connection";
        let answered = self
            .client
            .identify_system()
            .await
            .map_err(|e| error(&self.server, attempted, e))?;
        Ok(Identity {
            system: answered.system_id,
            timeline: answered.timeline,
        })
    }

    /// Creates a slot and exports the snapshot of its first place. Waits for the transactions that are open.
    pub(super) async fn create_slot(&mut self, slot: &str) -> Result<Created> {
        let attempted = "create the replication slot";
        // The form without parentheses is understood by every version.
        let command = format!(
            "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput EXPORT_SNAPSHOT",
            identifier(slot)
        );
        let rows = self
            .client
            .simple_query(&command)
            .await
            .map_err(|e| error(&self.server, attempted, e))?;
        let text = |at: usize| {
            let bytes = rows.first().and_then(|row| row.get(at)).and_then(Option::as_ref)?;
            std::str::from_utf8(bytes).ok().map(str::to_owned)
        };
        let point = text(1).and_then(|text| text.parse().ok());
        let (Some(consistent_point), Some(snapshot)) = (point, text(2)) else {
            let reason = "its answer to CREATE_REPLICATION_SLOT cannot be read";
            return Err(self.server.unavailable(attempted, reason.into()));
        };
        Ok(Created {
            consistent_point,
            snapshot,
        })
    }

    /// Starts the stream; returns when the slot is held.
    pub(super) async fn start(&mut self) -> Result<()> {
        let attempted = "start the replication stream";
        self.client
            .start()
            .await
            .map_err(|e| error(&self.server, attempted, e))?;
        self.client
            .wait_started()
            .await
            .map_err(|e| error(&self.server, attempted, e))
    }

    /// The next frame; `None` when none comes in time, or, with no time at all, when none is ready.
    pub(super) async fn next(&mut self, wait: Duration) -> Result<Option<Frame>> {
        let received = if wait.is_zero() {
            match self.client.recv().now_or_never() {
                Some(received) => received,
                None => return Ok(None),
            }
        } else {
            match tokio::time::timeout(wait, self.client.recv()).await {
                Ok(received) => received,
                Err(_) => return Ok(None),
            }
        };
        let attempted = "read the replication stream";
        match received.map_err(|e| error(&self.server, attempted, e))? {
            Some(event) => Ok(Some(frame(event))),
            None => Err(self.server.unavailable(attempted, "the server ended the stream".into())),
        }
    }

    /// Tells the slot that everything below this place is stored.
    pub(super) fn acknowledge(&self, lsn: Lsn) {
        self.client.update_applied_lsn(lsn.0.into());
    }

    /// Ends the connection at once.
    pub(super) fn close(mut self) {
        self.client.abort();
    }
}

fn frame(event: ReplicationEvent) -> Frame {
    match event {
        ReplicationEvent::XLogData { data, .. } => Frame::Change(data),
        ReplicationEvent::Begin {
            final_lsn,
            commit_time_micros,
            ..
        } => Frame::Begin {
            commit_lsn: Lsn(final_lsn.0),
            commit_time_micros,
        },
        ReplicationEvent::Commit { end_lsn, .. } => Frame::Commit {
            end_lsn: Lsn(end_lsn.0),
        },
        ReplicationEvent::KeepAlive { wal_end, .. } => Frame::KeepAlive { end: Lsn(wal_end.0) },
        ReplicationEvent::Message {
            transactional: false,
            lsn,
            ..
        } => Frame::Mark { lsn: Lsn(lsn.0) },
        ReplicationEvent::Message { .. } | ReplicationEvent::StoppedAt { .. } => Frame::Nothing,
    }
}

/// What the library's error means for the connector. A server's error comes as text with the SQLSTATE in it.
fn error(server: &Server, attempted: &'static str, error: PgWireError) -> Error {
    match &error {
        PgWireError::Server(text) => {
            let (message, code) = match text.rsplit_once(" (SQLSTATE ") {
                Some((message, code)) => (message, code.trim_end_matches(')')),
                None => (text.as_str(), ""),
            };
            server.refused(attempted, code, message)
        }
        PgWireError::Auth(reason) => Error::Refused {
            reason: format!("{server} refuses the login for replication: {reason}"),
            next: format!(
                "use a scram-sha-256 password for {} and a `replication` line in pg_hba.conf",
                server.user()
            ),
        },
        PgWireError::MessageTooLarge {
            payload_bytes,
            limit_bytes,
        } => Error::Unpublishable {
            what: format!("a row of {payload_bytes} bytes"),
            reason: format!("rows of more than {limit_bytes} bytes are not read"),
            next: String::from("take the large column out of the declared columns and of the publication"),
        },
        _ => server.unavailable(attempted, error.into()),
    }
}
