//! The replication connection: commands before the stream, and the stream's frames.
//!
//! Frames are returned in stream order. The slot is acknowledged only up to the LSN that was passed to
//! [`Replication::acknowledge`], and not at all after [`Replication::close`]. There is no reconnect: the connector loop
//! opens a new connection.

mod receiver;

use super::changes;
use super::pgoutput::{self, Message};
use super::server::{Row, Server, Session, SessionError, identifier, literal};
use super::watermark::Watermark;
use crate::error::{Error, Result};
use bytes::Bytes;
use receiver::{Received, Receiver};
use schemas::version::Lsn;
use std::time::Duration;

/// Largest message (one row) that is accepted, in bytes.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// Limit of a short command, such as `IDENTIFY_SYSTEM`.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// First version with slots that are synchronized to standbys.
const FAILOVER_SINCE: u32 = 17;

/// SQLSTATE of an object that does not exist.
const UNDEFINED_OBJECT: &str = "42704";

const OPEN: &str = "open a replication connection";
const READ: &str = "read the replication stream";

/// One element of the stream.
#[derive(Debug)]
pub(super) enum Frame {
    /// If no source transaction is open, everything below `end` was sent.
    KeepAlive { end: Lsn },
    /// A source transaction begins.
    Begin {
        commit_lsn: Lsn,
        commit_time_micros: i64,
        xid: u32,
    },
    /// The source transaction ends.
    Commit { end_lsn: Lsn },
    /// A non-transactional logical message, such as the heartbeat. Everything below its LSN was sent.
    Message {
        lsn: Lsn,
        /// Set if it is a watermark of a snapshot.
        watermark: Option<Watermark>,
    },
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

/// A replication connection.
pub(super) struct Replication {
    state: State,
    server: Server,
    slot: String,
    publication: String,
    from: Lsn,
    silence_max: Duration,
}

enum State {
    Idle(Box<Session>),
    Streaming(Receiver),
    /// An error ended the connection.
    Ended,
}

impl Replication {
    /// Connects without starting the stream. [`Replication::start`] then streams from `slot` at `start`.
    pub(super) async fn connect(server: &Server, slot: &str, publication: &str, start: Lsn) -> Result<Self> {
        let session = server
            .replication(&format!("trunkline {slot}"), MESSAGE_BYTES_MAX)
            .await?;
        Ok(Replication {
            state: State::Idle(Box::new(session)),
            server: server.clone(),
            slot: slot.to_owned(),
            publication: publication.to_owned(),
            from: start,
            silence_max: receiver::SILENCE_MAX,
        })
    }

    /// Replaces the connection by a new one, with which the stream is not started.
    pub(super) async fn reconnect(&mut self) -> Result<()> {
        let silence_max = self.silence_max;
        *self = Replication::connect(&self.server, &self.slot, &self.publication, self.from).await?;
        self.silence_max = silence_max;
        Ok(())
    }

    /// Ends the stream if the server sends nothing for this time, although replies are requested.
    pub(super) fn limit_silence(&mut self, limit: Duration) {
        self.silence_max = limit;
    }

    /// Reads the identity of the server.
    pub(super) async fn identify(&mut self) -> Result<Identity> {
        let rows = self.short_command("IDENTIFY_SYSTEM").await?;
        let text = |at: usize| text(&rows, at);
        let timeline = text(1).and_then(|text| text.parse().ok());
        let (Some(system), Some(timeline)) = (text(0), timeline) else {
            return Err(self
                .server
                .unavailable(OPEN, "unexpected response to IDENTIFY_SYSTEM".into()));
        };
        Ok(Identity { system, timeline })
    }

    /// Reads the history file of the server's timeline: each line has an earlier timeline and the LSN at which it ended.
    pub(super) async fn timeline_history(&mut self, timeline: u32) -> Result<String> {
        let rows = self.short_command(&format!("TIMELINE_HISTORY {timeline}")).await?;
        Ok(text(&rows, 1).unwrap_or_default())
    }

    /// Creates the slot and returns its consistent point: changes of transactions that commit at or after this LSN are
    /// streamed. The server waits until all transactions that are open now have ended.
    pub(super) async fn create_slot(&mut self, slot: &str) -> Result<Lsn> {
        let attempted = "create the replication slot";
        let server = self.server.clone();
        let session = self.session(attempted)?;
        let version = session.parameter("server_version").and_then(major);
        let options = if version.is_some_and(|version| version >= FAILOVER_SINCE) {
            "(SNAPSHOT 'nothing', FAILOVER true)"
        } else {
            // All supported versions accept the syntax without parentheses.
            "NOEXPORT_SNAPSHOT"
        };
        let command = format!(
            "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {options}",
            identifier(slot)
        );
        let rows = session.command(&command).await;
        let rows = rows.map_err(|e| server.session_error(attempted, e))?;
        let point = text(&rows, 1).and_then(|text| text.parse().ok());
        point.ok_or_else(|| {
            let reason = "unexpected response to CREATE_REPLICATION_SLOT";
            server.unavailable(attempted, reason.into())
        })
    }

    async fn short_command(&mut self, command: &str) -> Result<Vec<Row>> {
        let server = self.server.clone();
        let session = self.session(OPEN)?;
        match tokio::time::timeout(COMMAND_TIMEOUT, session.command(command)).await {
            Ok(rows) => rows.map_err(|e| server.session_error(OPEN, e)),
            Err(elapsed) => Err(server.unavailable(OPEN, elapsed.into())),
        }
    }

    fn session(&mut self, attempted: &'static str) -> Result<&mut Session> {
        match &mut self.state {
            State::Idle(session) => Ok(session),
            State::Streaming(_) | State::Ended => {
                let reason = "the connection cannot run commands any more";
                Err(self.server.unavailable(attempted, reason.into()))
            }
        }
    }

    /// Starts the stream. Returns after the server has confirmed it, which means that this connection has acquired the
    /// slot.
    pub(super) async fn start(&mut self) -> Result<()> {
        let attempted = "start the replication stream";
        // The option is a list of identifiers in an SQL literal.
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {}, messages 'true')",
            identifier(&self.slot),
            self.from,
            literal(&identifier(&self.publication))
        );
        let server = self.server.clone();
        self.session(attempted)?;
        let State::Idle(mut session) = std::mem::replace(&mut self.state, State::Ended) else {
            return Ok(());
        };
        match tokio::time::timeout(COMMAND_TIMEOUT, session.start_copy(&command)).await {
            Ok(started) => started.map_err(|e| server.session_error(attempted, e))?,
            Err(elapsed) => return Err(server.unavailable(attempted, elapsed.into())),
        }
        self.state = State::Streaming(Receiver::start(*session, self.from, self.silence_max));
        Ok(())
    }

    /// The next frame; `None` if none arrives within `wait`. With a zero `wait` it returns only a frame that is ready.
    pub(super) async fn next(&mut self, wait: Duration) -> Result<Option<Frame>> {
        let State::Streaming(receiver) = &mut self.state else {
            return Err(self.server.unavailable(READ, "the stream has ended".into()));
        };
        match receiver.next(wait).await {
            Ok(None) => Ok(None),
            Ok(Some(Received::KeepAlive { end })) => Ok(Some(Frame::KeepAlive { end })),
            Ok(Some(Received::Data(data))) => frame(data).map(Some),
            Err(error) => {
                self.state = State::Ended;
                Err(self.stream_error(error))
            }
        }
    }

    fn stream_error(&self, error: SessionError) -> Error {
        match error {
            // Changes were lost while the publication did not exist, so creating it again does not help.
            SessionError::Server { code, message } if code == UNDEFINED_OBJECT && message.contains("publication") => {
                Error::NeedsResync { reason: message }
            }
            error => self.server.session_error(READ, error),
        }
    }

    /// Acknowledges everything below this LSN with the next status update. The server may then remove the WAL, which
    /// cannot be undone. Must be called only with an LSN whose position record is committed (C14).
    pub(super) fn acknowledge(&self, lsn: Lsn) {
        if let State::Streaming(receiver) = &self.state {
            receiver.acknowledge(lsn);
        }
    }

    /// Closes the connection immediately. Nothing is acknowledged afterwards, not even an LSN that waits for the next
    /// status update.
    pub(super) fn close(self) {
        drop(self);
    }
}

fn text(rows: &[Row], at: usize) -> Option<String> {
    rows.first().and_then(|row| row.get(at)).cloned().flatten()
}

/// The major version in a text such as `17.2 (Debian 17.2-1)` or `18beta1`.
fn major(version: &str) -> Option<u32> {
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version.get(..end)?.parse().ok()
}

/// Converts a message of `pgoutput`. Only the boundaries of transactions are decoded here.
fn frame(data: Bytes) -> Result<Frame> {
    if !matches!(data.first(), Some(b'B' | b'C' | b'M')) {
        return Ok(Frame::Change(data));
    }
    Ok(match pgoutput::decode(&data).map_err(changes::decode_error)? {
        Message::Begin {
            commit_lsn,
            commit_time_micros,
            xid,
        } => Frame::Begin {
            commit_lsn,
            commit_time_micros,
            xid,
        },
        Message::Commit { end_lsn, .. } => Frame::Commit { end_lsn },
        Message::Logical {
            transactional: false,
            lsn,
            prefix,
            content,
        } => Frame::Message {
            lsn,
            watermark: Watermark::parse(prefix, content),
        },
        _ => Frame::Ignored,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_version_is_read_from_the_text_of_the_server() {
        let versions = ["17.2 (Debian 17.2-1)", "18beta1", "9", "devel"].map(major);
        assert_eq!(versions, [Some(17), Some(18), Some(9), None]);
    }
}
