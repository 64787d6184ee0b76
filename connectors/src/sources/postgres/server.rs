//! Connections to one PostgreSQL database, and the session settings that all connections share.
//!
//! Every session, including the replication connection, uses the canonical text format for values that the module
//! `text` parses. Messages never contain the password. A URL that requires TLS is rejected, because TLS is not
//! supported yet.

use crate::error::{Cause, Error, Result};
use futures_util::TryStreamExt as _;
use std::fmt;
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, CopyOutStream, NoTls, SimpleQueryMessage, SimpleQueryRow};
use tokio_util::task::AbortOnDropHandle;

/// Session settings: the output format of values; no timeouts from role or database settings, which would cancel a long
/// COPY; and an error, instead of only some of the rows, if row-level security applies.
const SESSION_OPTIONS: &str = "-c datestyle=ISO -c timezone=UTC -c intervalstyle=postgres -c bytea_output=hex \
    -c extra_float_digits=3 -c lc_monetary=C -c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0 \
    -c idle_in_transaction_session_timeout=0 -c row_security=off";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a short statement, such as a catalog query.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Address and credentials of a database.
#[derive(Clone)]
pub struct Server {
    config: tokio_postgres::Config,
    host: String,
    port: u16,
    user: String,
    database: String,
}

/// The URL is not valid or not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid PostgreSQL URL: {reason}")]
pub struct UrlError {
    reason: String,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL at {}:{}/{}", self.host, self.port, self.database)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Server {
    /// Parses `postgres://user:password@host:port/database` or libpq's `key=value` form.
    ///
    /// # Errors
    /// [`UrlError`] names the problem, without the URL, which may contain a password.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let invalid = |reason: &str| UrlError {
            reason: reason.to_owned(),
        };
        let mut config: tokio_postgres::Config = url.parse().map_err(|e: tokio_postgres::Error| UrlError {
            reason: service::chain(&e),
        })?;
        if config.get_ssl_mode() == SslMode::Require {
            return Err(invalid(
                "sslmode=require is not supported yet; use sslmode=disable in a trusted network, or a TLS proxy",
            ));
        }
        let host = match config.get_hosts() {
            [Host::Tcp(host)] => host.clone(),
            [Host::Unix(path)] => path.to_string_lossy().into_owned(),
            [] => return Err(invalid("it has no host; use postgres://user@host:5432/database")),
            _ => {
                return Err(invalid(
                    "it has several hosts, but a replication slot exists on one server only",
                ));
            }
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let user = config
            .get_user()
            .ok_or_else(|| invalid("it has no user; use postgres://user@host/database"))?;
        let (user, database) = (user.to_owned(), config.get_dbname().unwrap_or(user).to_owned());
        let options = match config.get_options() {
            Some(given) => format!("{given} {SESSION_OPTIONS}"),
            None => SESSION_OPTIONS.to_owned(),
        };
        config
            .ssl_mode(SslMode::Disable)
            .dbname(&database)
            .options(options)
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(30))
            .tcp_user_timeout(Duration::from_secs(30));
        Ok(Server {
            config,
            host,
            port,
            user,
            database,
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

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn password(&self) -> String {
        self.config
            .get_password()
            .map(|p| String::from_utf8_lossy(p).into_owned())
            .unwrap_or_default()
    }

    pub(super) fn options(&self) -> &str {
        self.config.get_options().unwrap_or(SESSION_OPTIONS)
    }

    /// Opens an SQL connection, which is closed when the value is dropped.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the server does not answer, [`Error::Rejected`] if it rejects the login.
    pub async fn connect(&self, application: &str) -> Result<Sql> {
        let attempted = "connect";
        let mut config = self.config.clone();
        config.application_name(application);
        let connecting = tokio::time::timeout(2 * CONNECT_TIMEOUT, config.connect(NoTls));
        let (client, connection) = match connecting.await {
            Ok(connected) => connected.map_err(|e| self.error(attempted, e))?,
            Err(elapsed) => return Err(self.unavailable(attempted, elapsed.into())),
        };
        let server = self.to_string();
        let driver = tokio::runtime::Handle::current().spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(server, error = service::chain(&error), "connection closed");
            }
        });
        Ok(Sql {
            server: self.clone(),
            client,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    pub(super) fn unavailable(&self, attempted: &'static str, source: Cause) -> Error {
        Error::Unavailable {
            system: self.to_string(),
            attempted,
            source,
        }
    }

    /// Maps the error of a statement.
    fn error(&self, attempted: &'static str, error: tokio_postgres::Error) -> Error {
        match error.as_db_error() {
            Some(db) => self.rejected(attempted, db.code().code(), &describe(db)),
            None => self.unavailable(attempted, error.into()),
        }
    }

    /// Maps a server error by its SQLSTATE.
    pub(super) fn rejected(&self, attempted: &'static str, code: &str, message: &str) -> Error {
        let state = SqlState::from_code(code);
        let class = code.get(..2).unwrap_or_default();
        // Operator intervention (starting up, shutting down), insufficient resources, system and connection errors are
        // temporary. A cancelled statement has class 57 too, but is not temporary.
        let is_temporary = matches!(class, "57" | "53" | "58" | "08") && state != SqlState::QUERY_CANCELED;
        if is_temporary || state == SqlState::OBJECT_IN_USE {
            return self.unavailable(attempted, format!("{message} (SQLSTATE {code})").into());
        }
        let fix = match class {
            "28" => format!("check the password of user {} in the URL, and pg_hba.conf", self.user),
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

    #[test]
    fn messages_do_not_contain_the_url() {
        let server = Server::parse("postgres://app:s3cret@db.example:5433/shop").unwrap();
        assert_eq!(format!("{server:?}"), "PostgreSQL at db.example:5433/shop");
        assert_eq!(
            (server.user(), server.database(), server.password()),
            ("app", "shop", "s3cret".into())
        );
        for (bad, why) in [
            ("postgres://app:s3cret@db/shop?sslmode=require", "sslmode=require"),
            ("postgres://db/shop", "no user"),
            ("host=a,b user=app", "several hosts"),
            ("user=app", "no host"),
            ("postgres://app:s3cret@db:port/shop", "invalid"),
        ] {
            let text = Server::parse(bad).unwrap_err().to_string();
            assert!(text.contains(why) && !text.contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn temporary_errors_are_retried() {
        let server = Server::parse("postgres://app@db/shop").unwrap();
        let error = |code| server.rejected("start the replication stream", code, "no");
        for code in ["57P01", "57P03", "53300", "55006"] {
            assert_eq!(error(code).state(), State::Retrying, "{code}");
        }
        assert_eq!(error("42501").fix("shop"), "ALTER ROLE \"app\" REPLICATION;");
        assert_eq!(error("28P01").state(), State::Failed);
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
