//! A session of PostgreSQL's frontend/backend protocol in replication mode: login, commands, and the stream of a COPY.
//!
//! `tokio_postgres` supports neither replication mode nor COPY in both directions. The messages are those of
//! `postgres_protocol`, on which `tokio_postgres` is built.

use super::access::{Access, ChannelBinding};
use super::link::Link;
use bytes::{Buf as _, Bytes, BytesMut};
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, ErrorFields, Header, Message};
use postgres_protocol::message::frontend;
use std::collections::HashMap;
use std::io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How much is read from the socket at once.
const READ_BYTES: usize = 64 << 10;
const COPY_BOTH_RESPONSE: u8 = b'W';

/// Why a session failed.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum SessionError {
    /// The connection failed or was closed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The server reports an error.
    #[error("{message} (SQLSTATE {code})")]
    Server {
        /// SQLSTATE.
        code: String,
        /// Message and detail.
        message: String,
    },
    /// The login is not possible with the settings.
    #[error("{0}")]
    Login(String),
    /// A message is larger than the limit.
    #[error("the server sent a message of {bytes} bytes, the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// The server sent a message that is not expected here.
    #[error("unexpected message from the server")]
    Unexpected,
}

type Result<T> = std::result::Result<T, SessionError>;

/// A row of a command's result.
pub(in super::super) type Row = Vec<Option<String>>;

/// A session.
pub(in super::super) struct Session {
    link: Link,
    inbox: BytesMut,
    /// Settings that the server reports, such as `server_version`.
    parameters: HashMap<String, String>,
    message_bytes_max: usize,
}

impl Session {
    /// Logs in.
    pub(super) async fn login(
        link: Link,
        access: &Access,
        application: &str,
        message_bytes_max: usize,
    ) -> Result<Session> {
        let mut session = Session {
            link,
            inbox: BytesMut::with_capacity(READ_BYTES),
            parameters: HashMap::new(),
            message_bytes_max,
        };
        let parameters = [
            ("user", access.user.as_str()),
            ("database", access.database.as_str()),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", application),
            ("options", access.options.as_str()),
        ];
        session.send(|out| frontend::startup_message(parameters, out)).await?;
        session.authenticate(access).await?;
        loop {
            match session.message().await? {
                Message::ParameterStatus(body) => {
                    session
                        .parameters
                        .insert(body.name()?.to_owned(), body.value()?.to_owned());
                }
                Message::ReadyForQuery(_) => return Ok(session),
                Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
                _ => return Err(SessionError::Unexpected),
            }
        }
    }

    /// A session that streams, over a stream in memory.
    #[cfg(test)]
    pub(in super::super) fn over(
        io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Session {
            link: Link::over(io),
            inbox: BytesMut::new(),
            parameters: HashMap::new(),
            message_bytes_max: usize::MAX,
        }
    }

    /// A setting that the server reports.
    pub(in super::super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    async fn authenticate(&mut self, access: &Access) -> Result<()> {
        let password = || {
            access
                .password
                .as_deref()
                .ok_or_else(|| SessionError::Login(String::from("the server requires a password, but none is set")))
        };
        let unbound = || match access.channel_binding {
            ChannelBinding::Require => Err(SessionError::Login(String::from(
                "channel_binding is require, but the server does not use it",
            ))),
            ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
        };
        match self.message().await? {
            Message::AuthenticationOk => return unbound(),
            Message::AuthenticationCleartextPassword => {
                unbound()?;
                let password = password()?;
                self.send(|out| frontend::password_message(password, out)).await?;
            }
            Message::AuthenticationMd5Password(body) => {
                unbound()?;
                let hash = md5_hash(access.user.as_bytes(), password()?, body.salt());
                self.send(|out| frontend::password_message(hash.as_bytes(), out))
                    .await?;
            }
            Message::AuthenticationSasl(body) => self.scram(&body, password()?, access.channel_binding).await?,
            _ => {
                return Err(SessionError::Login(String::from(
                    "the server requires an authentication method other than scram-sha-256, md5, password and cert",
                )));
            }
        }
        match self.message().await? {
            Message::AuthenticationOk => Ok(()),
            _ => Err(SessionError::Unexpected),
        }
    }

    async fn scram(&mut self, offer: &AuthenticationSaslBody, password: &[u8], binding: ChannelBinding) -> Result<()> {
        let offered: Vec<&str> = offer.mechanisms().collect()?;
        let data = self.link.end_point().filter(|_| binding != ChannelBinding::Disable);
        let bound = data.map(|data| sasl::ChannelBinding::tls_server_end_point(data.to_vec()));
        let (mechanism, bound) = match bound {
            Some(bound) if offered.contains(&sasl::SCRAM_SHA_256_PLUS) => (sasl::SCRAM_SHA_256_PLUS, bound),
            // "Unrequested" tells the server that this client supports channel binding, so that the server notices if
            // somebody between them has removed the offer.
            Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
            None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
        };
        if !offered.contains(&mechanism) {
            let text = format!("the server offers {}, not scram-sha-256", offered.join(", "));
            return Err(SessionError::Login(text));
        }
        if binding == ChannelBinding::Require && mechanism != sasl::SCRAM_SHA_256_PLUS {
            let text = "channel_binding is require, but the server or its certificate does not support it";
            return Err(SessionError::Login(text.to_owned()));
        }
        let mut scram = ScramSha256::new(password, bound);
        self.send(|out| frontend::sasl_initial_response(mechanism, scram.message(), out))
            .await?;
        let Message::AuthenticationSaslContinue(body) = self.message().await? else {
            return Err(SessionError::Unexpected);
        };
        let failed = |e: io::Error| SessionError::Login(format!("scram-sha-256 failed: {e}"));
        scram.update(body.data()).map_err(failed)?;
        self.send(|out| frontend::sasl_response(scram.message(), out)).await?;
        let Message::AuthenticationSaslFinal(body) = self.message().await? else {
            return Err(SessionError::Unexpected);
        };
        // Verifies the server: it knows the password too.
        scram.finish(body.data()).map_err(failed)
    }

    /// Runs a replication command or an SQL statement. After a server error, the session is usable.
    pub(in super::super) async fn command(&mut self, text: &str) -> Result<Vec<Row>> {
        self.send(|out| frontend::query(text, out)).await?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            match self.message().await {
                Ok(Message::DataRow(row)) => {
                    let buffer = row.buffer();
                    let value = |range: Option<std::ops::Range<usize>>| {
                        let bytes = range.and_then(|range| buffer.get(range));
                        Ok::<_, io::Error>(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
                    };
                    rows.push(row.ranges().map(value).collect()?);
                }
                Ok(Message::ReadyForQuery(_)) => return failed.map_or(Ok(rows), Err),
                Ok(_) => {}
                Err(error @ SessionError::Server { .. }) => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs a command that starts a COPY in both directions.
    pub(in super::super) async fn start_copy(&mut self, text: &str) -> Result<()> {
        self.send(|out| frontend::query(text, out)).await?;
        loop {
            let Some(header) = self.header()? else {
                self.fill().await?;
                continue;
            };
            if header.tag() == COPY_BOTH_RESPONSE {
                // The length includes itself, but not the tag.
                let bytes = 1 + usize::try_from(header.len()).unwrap_or_default();
                while self.inbox.len() < bytes {
                    self.fill().await?;
                }
                self.inbox.advance(bytes);
                return Ok(());
            }
            self.message().await?;
        }
    }

    /// The content of the next message of the COPY that was received completely; `None` if more must be read with
    /// [`Session::fill`].
    pub(in super::super) fn received(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.parse()? {
                None => return Ok(None),
                Some(Message::CopyData(body)) => return Ok(Some(body.into_bytes())),
                Some(Message::CopyDone) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Some(_) => {}
            }
        }
    }

    /// Reads what has arrived; waits for at least one byte. Cancel safe.
    pub(in super::super) async fn fill(&mut self) -> Result<()> {
        self.inbox.reserve(READ_BYTES);
        if self.link.read_buf(&mut self.inbox).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// Sends a message of the COPY.
    pub(in super::super) async fn send_copy(&mut self, content: &[u8]) -> Result<()> {
        self.send(|out| {
            frontend::CopyData::new(content)?.write(out);
            Ok(())
        })
        .await
    }

    async fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<()> {
        let mut out = BytesMut::new();
        write(&mut out)?;
        self.link.write_all(&out).await?;
        Ok(self.link.flush().await?)
    }

    /// Waits for the next message. An error message is returned as [`SessionError::Server`].
    async fn message(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = self.parse()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    fn parse(&mut self) -> Result<Option<Message>> {
        let Some(header) = self.header()? else { return Ok(None) };
        let bytes = usize::try_from(header.len()).unwrap_or(usize::MAX);
        // Checked before the content is read into memory.
        if bytes > self.message_bytes_max {
            let limit = self.message_bytes_max;
            return Err(SessionError::TooLarge { bytes, limit });
        }
        match Message::parse(&mut self.inbox)? {
            Some(Message::ErrorResponse(body)) => Err(server_error(body.fields())),
            other => Ok(other),
        }
    }

    fn header(&self) -> Result<Option<Header>> {
        Ok(Header::parse(&self.inbox)?)
    }
}

fn server_error(mut fields: ErrorFields<'_>) -> SessionError {
    let (mut code, mut message, mut detail) = (String::new(), String::new(), None);
    while let Ok(Some(field)) = fields.next() {
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = text(),
            b'M' => message = text(),
            b'D' => detail = Some(text()),
            _ => {}
        }
    }
    if let Some(detail) = detail {
        message = format!("{message} ({detail})");
    }
    SessionError::Server { code, message }
}
