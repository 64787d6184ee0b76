//! Connections to one PostgreSQL database, and the session settings that all connections share.
//!
//! Every session, including the replication connection, uses the canonical text format for values that the module
//! `text` parses. Every connection is to the primary: with several hosts, the first one that is not a standby. Messages
//! never contain the password.

mod access;
mod link;
mod session;
mod tls;

pub use access::{ChannelBinding, Settings};
pub use tls::{SslMode, SslNegotiation};

use crate::error::{Cause, Error, Result};
use access::{Access, CONNECT_TIMEOUT};
use futures_util::TryStreamExt as _;
use link::{ClearPassword, Established, Host, Link, LinkError};
pub(super) use session::{Row, Session, SessionError};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, CopyOutStream, SimpleQueryMessage, SimpleQueryRow};
use tokio_util::task::AbortOnDropHandle;

/// Timeout of a short statement, such as a catalog query.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Limits on the server of statements that read the catalog or change the publication. If only the client gave up, the
/// statement would stay in the queue of the lock.
const CATALOG_LIMITS: &str = "SET statement_timeout = '20s'; SET lock_timeout = '5s'";
/// Parameter that the server reports at login, since version 14.
const IN_RECOVERY: &str = "in_hot_standby";

/// A database: where it is, and how to log in.
#[derive(Clone)]
pub struct Server {
    settings: Arc<Settings>,
    /// Hosts of the URL at the start, for messages.
    hosts: Arc<str>,
    user: Arc<str>,
    database: Arc<str>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL at {}/{}", self.hosts, self.database)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Result of connecting to one host.
enum Attempt<T> {
    Primary(T),
    /// Another host may be the primary.
    Next(Error),
}

impl Server {
    /// Checks the settings. URL, password and certificates are read again for each connection.
    ///
    /// # Errors
    /// [`Error::Rejected`] names the setting, without the URL, which may contain a password.
    pub fn new(settings: Settings) -> Result<Self> {
        let access = Access::read(&settings)?;
        let hosts: Vec<String> = access.hosts.iter().map(ToString::to_string).collect();
        Ok(Server {
            settings: Arc::new(settings),
            hosts: hosts.join(",").into(),
            user: access.user.into(),
            database: access.database.into(),
        })
    }

    /// The user's name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        &self.database
    }

    fn access(&self) -> Result<Access> {
        Access::read(&self.settings).map_err(|unusable| Error::Rejected {
            reason: format!("{self}: {}", unusable.reason),
            fix: unusable.fix,
        })
    }

    /// Opens an SQL connection, which is closed when the value is dropped.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if no primary answers, [`Error::Rejected`] if it rejects the login.
    pub async fn connect(&self, application: &str) -> Result<Sql> {
        let access = self.access()?;
        let mut last = None;
        for host in &access.hosts {
            match self.connect_to(host, &access, application).await? {
                Attempt::Primary(sql) => return Ok(sql),
                Attempt::Next(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.unavailable("connect", "the URL has no host".into())))
    }

    /// Opens an SQL connection for catalog queries, whose statements the server ends if they wait for a lock.
    ///
    /// # Errors
    /// As [`Server::connect`].
    pub(crate) async fn connect_for_catalog(&self, application: &str) -> Result<Sql> {
        let sql = self.connect(application).await?;
        sql.run("set timeouts", CATALOG_LIMITS).await?;
        Ok(sql)
    }

    async fn connect_to(&self, host: &Host, access: &Access, application: &str) -> Result<Attempt<Sql>> {
        let attempted = "connect";
        let link = match self.link(host, access, attempted).await {
            Err(error @ Error::Unavailable { .. }) => return Ok(Attempt::Next(error)),
            link => link?,
        };
        let config = access.sql(application);
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, config.connect_raw(link, Established));
        let connected = match connecting.await {
            Ok(connected) => connected.map_err(|e| self.error(attempted, e)),
            Err(elapsed) => Err(self.unavailable(attempted, elapsed.into())),
        };
        let (client, connection) = match connected {
            Err(error @ Error::Unavailable { .. }) => return Ok(Attempt::Next(error)),
            connected => connected?,
        };
        if connection.parameter(IN_RECOVERY) == Some("on") {
            return Ok(Attempt::Next(self.standby(host)));
        }
        let server = self.to_string();
        let driver = tokio::runtime::Handle::current().spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(server, error = service::chain(&error), "connection closed");
            }
        });
        Ok(Attempt::Primary(Sql {
            server: self.clone(),
            client,
            _driver: AbortOnDropHandle::new(driver),
        }))
    }

    /// Opens a replication session. Messages larger than `message_bytes_max` are an error.
    pub(super) async fn replication(&self, application: &str, message_bytes_max: usize) -> Result<Session> {
        let attempted = "open a replication connection";
        let access = self.access()?;
        let mut last = None;
        for host in &access.hosts {
            let link = match self.link(host, &access, attempted).await {
                Err(error @ Error::Unavailable { .. }) => {
                    last = Some(error);
                    continue;
                }
                link => link?,
            };
            let login = Session::login(link, &access, application, message_bytes_max);
            let session = match tokio::time::timeout(CONNECT_TIMEOUT, login).await {
                Ok(session) => session.map_err(|e| self.session_error(attempted, e)),
                Err(elapsed) => Err(self.unavailable(attempted, elapsed.into())),
            };
            match session {
                Ok(session) if session.parameter(IN_RECOVERY) == Some("on") => last = Some(self.standby(host)),
                Err(error @ Error::Unavailable { .. }) => last = Some(error),
                session => return session,
            }
        }
        Err(last.unwrap_or_else(|| self.unavailable(attempted, "the URL has no host".into())))
    }

    async fn link(&self, host: &Host, access: &Access, attempted: &'static str) -> Result<Link> {
        let opening = Link::open(host, &access.tls, access.allow_cleartext_password);
        match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(LinkError::Settings(unusable))) => Err(Error::Rejected {
                reason: format!("{self}: {}", unusable.reason),
                fix: unusable.fix,
            }),
            Ok(Err(error @ LinkError::NoTls)) => Err(Error::Rejected {
                reason: format!("{self}: {error}, but sslmode requires it"),
                fix: String::from(
                    "ALTER SYSTEM SET ssl = on, with ssl_cert_file and ssl_key_file; then SELECT pg_reload_conf(); or set \
                     sslmode = \"disable\" in a trusted network",
                ),
            }),
            Ok(Err(error @ LinkError::Name(_))) => Err(Error::Rejected {
                reason: format!("{self}: {error}"),
                fix: String::from("correct the host in the URL"),
            }),
            Ok(Err(LinkError::Io(error))) => Err(self
                .transport_error(&error)
                .unwrap_or_else(|| self.unavailable(attempted, error.into()))),
            Err(elapsed) => Err(self.unavailable(attempted, elapsed.into())),
        }
    }

    fn standby(&self, host: &Host) -> Error {
        Error::Rejected {
            reason: format!("{self}: {host} is a standby, but the connector needs the primary"),
            fix: String::from(
                "use the address of the primary, or list all hosts in the URL: postgres://user@a,b/database",
            ),
        }
    }

    pub(super) fn unavailable(&self, attempted: &'static str, source: Cause) -> Error {
        Error::Unavailable {
            system: self.to_string(),
            attempted,
            source,
        }
    }

    /// Returns the error of TLS, or of a login that the connection does not permit, if one is in the chain.
    fn transport_error(&self, error: &(dyn std::error::Error + 'static)) -> Option<Error> {
        let rejected = |reason: &str, fix: String| Error::Rejected {
            reason: format!("{self}: {reason}"),
            fix,
        };
        let mut next = Some(error);
        while let Some(error) = next {
            let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            if let Some(refused) = inner.and_then(|inner| inner.downcast_ref::<ClearPassword>()) {
                let fix = format!(
                    "use scram-sha-256 in pg_hba.conf for user {}; or set sslmode = \"require\"; or, in a trusted network, \
                     allow_cleartext_password = true",
                    self.user
                );
                return Some(rejected(&refused.to_string(), fix));
            }
            next = error.source();
        }
        tls::explain(error).map(|unusable| rejected(&unusable.reason, unusable.fix))
    }

    /// Maps the error of a statement.
    fn error(&self, attempted: &'static str, error: tokio_postgres::Error) -> Error {
        if let Some(db) = error.as_db_error() {
            return self.rejected(attempted, db.code().code(), &describe(db));
        }
        if let Some(error) = self.transport_error(&error) {
            return error;
        }
        let text = service::chain(&error);
        // The kinds of this error type are not public.
        if text.contains("password missing") || text.contains("channel binding") || text.contains("authentication") {
            return self.login_rejected(attempted, &text);
        }
        self.unavailable(attempted, error.into())
    }

    /// Maps the error of a replication session.
    pub(super) fn session_error(&self, attempted: &'static str, error: SessionError) -> Error {
        match error {
            SessionError::Server { code, message } => self.rejected(attempted, &code, &message),
            SessionError::Login(reason) => self.login_rejected(attempted, &reason),
            SessionError::TooLarge { bytes, limit } => Error::Unpublishable {
                what: format!("a row of {bytes} bytes"),
                reason: format!("rows are limited to {limit} bytes"),
                fix: String::from("remove the large column from the declared columns and from the publication"),
            },
            SessionError::Io(error) => self
                .transport_error(&error)
                .unwrap_or_else(|| self.unavailable(attempted, error.into())),
            error @ SessionError::Unexpected => self.unavailable(attempted, error.into()),
        }
    }

    fn login_rejected(&self, attempted: &'static str, reason: &str) -> Error {
        Error::Rejected {
            reason: format!("{self}: cannot {attempted} as user {}: {reason}", self.user),
            fix: format!(
                "set the password of user {} in the url or in password_file; the methods scram-sha-256, md5, password and \
                 cert of pg_hba.conf are supported; channel_binding needs sslmode = \"require\" or higher",
                self.user
            ),
        }
    }

    /// Maps a server error by its SQLSTATE.
    pub(super) fn rejected(&self, attempted: &'static str, code: &str, message: &str) -> Error {
        let state = SqlState::from_code(code);
        let class = code.get(..2).unwrap_or_default();
        let limit = self.limit_fix(&state, message);
        // Operator intervention (starting up, shutting down), insufficient resources, system and connection errors are
        // temporary. A cancelled statement has class 57 too, but is not temporary.
        let is_temporary = matches!(class, "57" | "53" | "58" | "08") && state != SqlState::QUERY_CANCELED;
        if (is_temporary || state == SqlState::OBJECT_IN_USE) && limit.is_none() {
            return self.unavailable(attempted, format!("{message} (SQLSTATE {code})").into());
        }
        let fix = match class {
            _ if limit.is_some() => limit.unwrap_or_default(),
            "28" => self.login_fix(message),
            "3D" => format!(
                "CREATE DATABASE {}; or correct the database in the URL",
                identifier(&self.database)
            ),
            "42" if state == SqlState::INSUFFICIENT_PRIVILEGE && attempted.contains("replication") => {
                format!("ALTER ROLE {} REPLICATION;", identifier(&self.user))
            }
            _ => String::from("see the log of the PostgreSQL server; the connector retries"),
        };
        Error::Rejected {
            reason: format!("{self} rejects an attempt to {attempted}: {message} (SQLSTATE {code})"),
            fix,
        }
    }

    /// The fix for a limit of the server that waiting does not remove, or for a lock that is not released.
    fn limit_fix(&self, state: &SqlState, message: &str) -> Option<String> {
        Some(
            if *state == SqlState::CONFIGURATION_LIMIT_EXCEEDED && message.contains("replication slots") {
                String::from(
                    "SELECT slot_name, active FROM pg_replication_slots; drop a slot that nothing uses with \
                 SELECT pg_drop_replication_slot(slot_name), or raise max_replication_slots and restart PostgreSQL",
                )
            } else if message.contains("max_wal_senders") {
                String::from("raise max_wal_senders and restart PostgreSQL, or stop another replication client")
            } else if *state == SqlState::LOCK_NOT_AVAILABLE || *state == SqlState::QUERY_CANCELED {
                format!(
                    "end the transaction that locks a declared table: SELECT pid, state, xact_start, query FROM \
                 pg_stat_activity WHERE datname = {} AND xact_start IS NOT NULL ORDER BY xact_start; the connector retries",
                    literal(&self.database)
                )
            } else {
                return None;
            },
        )
    }

    /// The fix for a rejected login.
    fn login_fix(&self, message: &str) -> String {
        let user = &self.user;
        if message.contains("client certificate") {
            format!("set sslcert and sslkey to a client certificate for user {user}")
        } else if message.contains("certificate authentication failed") {
            format!("use a client certificate whose common name is {user}, or map its name to {user} in pg_ident.conf")
        } else if message.contains("no encryption") {
            String::from(
                "set sslmode = \"require\" or higher, or add a line for connections without TLS to pg_hba.conf",
            )
        } else if message.contains("no pg_hba.conf entry") {
            format!(
                "add a line with database {} and user {user} to pg_hba.conf, then SELECT pg_reload_conf()",
                self.database
            )
        } else {
            format!("check the password of user {user} in the URL or in password_file, and pg_hba.conf")
        }
    }
}

fn describe(db: &DbError) -> String {
    match db.detail() {
        Some(detail) => format!("{} ({detail})", db.message()),
        None => db.message().to_owned(),
    }
}

/// An open connection for SQL.
pub struct Sql {
    server: Server,
    client: Client,
    _driver: AbortOnDropHandle<()>,
}

impl fmt::Debug for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection to {}", self.server)
    }
}

impl Sql {
    /// Runs a statement and returns its rows, with values as text.
    pub(crate) async fn rows(&self, attempted: &'static str, statement: &str) -> Result<Vec<SimpleQueryRow>> {
        let query = tokio::time::timeout(STATEMENT_TIMEOUT, self.client.simple_query(statement));
        let messages = match query.await {
            Ok(answer) => answer.map_err(|e| self.server.error(attempted, e))?,
            Err(elapsed) => return Err(self.server.unavailable(attempted, elapsed.into())),
        };
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    /// Runs a statement and returns the first value of its first row.
    pub(crate) async fn value(&self, attempted: &'static str, statement: &str) -> Result<Option<String>> {
        let rows = self.rows(attempted, statement).await?;
        Ok(rows
            .first()
            .and_then(|row| row.try_get(0).ok().flatten())
            .map(str::to_owned))
    }

    /// Runs one or more statements.
    pub(crate) async fn run(&self, attempted: &'static str, statement: &str) -> Result<()> {
        self.rows(attempted, statement).await.map(drop)
    }

    /// Starts a `COPY … TO STDOUT` in text format.
    pub(crate) async fn copy(&self, attempted: &'static str, statement: &str) -> Result<CopyOutStream> {
        self.client
            .copy_out(statement)
            .await
            .map_err(|e| self.server.error(attempted, e))
    }

    /// The next line of a COPY; `None` at its end.
    pub(crate) async fn next_line(
        &self,
        attempted: &'static str,
        copy: &mut std::pin::Pin<Box<CopyOutStream>>,
    ) -> Result<Option<bytes::Bytes>> {
        copy.try_next().await.map_err(|e| self.server.error(attempted, e))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

/// Quotes a name as an SQL identifier.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text as an SQL literal. Backslashes are escaped in `E''` form, which is correct whether or not
/// `standard_conforming_strings` is on.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::State;

    fn server(url: &str) -> Server {
        Server::new(Settings::new(service::Secret::new(url))).unwrap()
    }

    #[test]
    fn messages_do_not_contain_the_url() {
        let server = server("postgres://app:s3cret@db.example:5433/shop");
        assert_eq!(format!("{server:?}"), "PostgreSQL at db.example:5433/shop");
        assert_eq!((server.user(), server.database()), ("app", "shop"));
    }

    #[test]
    fn temporary_errors_are_retried() {
        let server = server("postgres://app@db/shop");
        let error = |code| server.rejected("start the replication stream", code, "no");
        for code in ["57P01", "57P03", "53300", "55006"] {
            assert_eq!(error(code).state(), State::Retrying, "{code}");
        }
        assert_eq!(error("42501").fix("shop"), "ALTER ROLE \"app\" REPLICATION;");
        assert_eq!(error("28P01").state(), State::Failed);
    }

    #[test]
    fn limits_of_the_server_are_not_temporary() {
        let server = server("postgres://app@db/shop");
        let fix = |code, message| {
            let error = server.rejected("create the replication slot", code, message);
            assert_eq!(error.state(), State::Failed, "{message}");
            error.fix("shop")
        };
        assert!(fix("53400", "all replication slots are in use").contains("max_replication_slots"));
        let senders = "number of requested standby connections exceeds \"max_wal_senders\" (currently 10)";
        assert!(fix("53300", senders).contains("raise max_wal_senders"));
        assert!(fix("55P03", "canceling statement due to lock timeout").contains("end the transaction that locks"));
        assert!(fix("28000", "connection requires a valid client certificate").contains("set sslcert and sslkey"));
    }

    #[test]
    fn identifiers_and_literals_are_quoted() {
        assert_eq!(identifier("or\"der"), "\"or\"\"der\"");
        assert_eq!(
            (literal("it's"), literal("a\\b")),
            ("'it''s'".into(), "E'a\\\\b'".into())
        );
    }
}
