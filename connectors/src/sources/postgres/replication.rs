//! The replication connection, a thin layer over the transport library `pgwire-replication`.
//!
//! Frames are returned in stream order. The slot is acknowledged only up to the LSN that was passed to
//! [`Replication::acknowledge`], and not at all after [`Replication::close`]. There is no reconnect: the connector loop
//! opens a new connection.

use super::server::{Server, identifier};
use crate::error::{Error, Result};
use bytes::Bytes;
use futures_util::FutureExt as _;
use pgwire_replication::{PgWireError, ReplicationClient, ReplicationConfig, ReplicationEvent};
use schemas::version::Lsn;
use std::time::Duration;

/// Interval of the standby status updates, which contain the acknowledged LSN.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of events that are buffered between the connection and the connector.
const BUFFER_EVENTS: usize = 16_384;
/// Largest message (one row) that is accepted, in bytes.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// One element of the stream.
#[derive(Debug)]
pub(super) enum Frame {
    /// If no source transaction is open, everything below `end` was sent.
    KeepAlive { end: Lsn },
    /// A source transaction begins.
    Begin { commit_lsn: Lsn, commit_time_micros: i64 },
    /// The source transaction ends.
    Commit { end_lsn: Lsn },
    /// A non-transactional logical message, such as the heartbeat. Everything below its LSN was sent.
    Heartbeat { lsn: Lsn },
    /// A `pgoutput` message, not decoded yet.
    Change(Bytes),
    /// A frame that is of no interest to the connector.
    Ignored,
}

/// Identity of the server, from `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) system: String,
    pub(super) timeline: u32,
}

/// A slot that was just created.
#[derive(Debug, Clone)]
pub(super) struct Created {
    /// Changes of transactions that commit at or after this LSN are streamed.
    pub(super) consistent_point: Lsn,
    /// Exported snapshot with everything that was committed before the consistent point. It is valid until the next
    /// command on the connection that created the slot.
    pub(super) snapshot: String,
}

/// A replication connection.
pub(super) struct Replication {
    client: ReplicationClient,
    server: Server,
}

impl Replication {
    /// Connects without starting the stream. [`Replication::start`] then streams from `slot` at `start`.
    pub(super) async fn connect(server: &Server, slot: &str, publication: &str, start: Lsn) -> Result<Self> {
        let host = server.host();
        let config = ReplicationConfig::new(
            host,
            server.user(),
            server.password(),
            server.database(),
            identifier(slot),
            // The library inserts the publication name into a list without quoting it.
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

    /// Reads the identity of the server.
    pub(super) async fn identify(&mut self) -> Result<Identity> {
        let attempted = "open a replication connection";
        let answer = self
            .client
            .identify_system()
            .await
            .map_err(|e| error(&self.server, attempted, e))?;
        Ok(Identity {
            system: answer.system_id,
            timeline: answer.timeline,
        })
    }

    /// Creates the slot and exports the snapshot of its consistent point. The server waits until all transactions that are
    /// open now have ended.
    pub(super) async fn create_slot(&mut self, slot: &str) -> Result<Created> {
        let attempted = "create the replication slot";
        // All supported server versions accept the syntax without parentheses.
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
            let reason = "unexpected response to CREATE_REPLICATION_SLOT";
            return Err(self.server.unavailable(attempted, reason.into()));
        };
        Ok(Created {
            consistent_point,
            snapshot,
        })
    }

    /// Starts the stream. Returns after the server has confirmed it, which means that this connection has acquired the
    /// slot.
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

    /// The next frame; `None` if none arrives within `wait`. With a zero `wait` it returns only a frame that is ready.
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

    /// Acknowledges everything below this LSN with the next status update. The server may then remove the WAL, which
    /// cannot be undone. Must be called only with an LSN whose position record is committed (C14).
    pub(super) fn acknowledge(&self, lsn: Lsn) {
        self.client.update_applied_lsn(lsn.0.into());
    }

    /// Closes the connection immediately. Nothing is acknowledged afterwards, not even an LSN that waits for the next
    /// status update.
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
        } => Frame::Heartbeat { lsn: Lsn(lsn.0) },
        ReplicationEvent::Message { .. } | ReplicationEvent::StoppedAt { .. } => Frame::Ignored,
    }
}

/// Converts an error of the library, which reports server errors as text that ends with the SQLSTATE.
fn error(server: &Server, attempted: &'static str, error: PgWireError) -> Error {
    match &error {
        PgWireError::Server(text) => {
            let (message, code) = match text.rsplit_once(" (SQLSTATE ") {
                Some((message, code)) => (message, code.trim_end_matches(')')),
                None => (text.as_str(), ""),
            };
            server.rejected(attempted, code, message)
        }
        PgWireError::Auth(reason) => Error::Rejected {
            reason: format!("{server} rejects the replication login: {reason}"),
            fix: format!(
                "use a scram-sha-256 password for user {} and add a `replication` entry to pg_hba.conf",
                server.user()
            ),
        },
        PgWireError::MessageTooLarge {
            payload_bytes,
            limit_bytes,
        } => Error::Unpublishable {
            what: format!("a row of {payload_bytes} bytes"),
            reason: format!("rows are limited to {limit_bytes} bytes"),
            fix: String::from("remove the large column from the declared columns and from the publication"),
        },
        _ => server.unavailable(attempted, error.into()),
    }
}
