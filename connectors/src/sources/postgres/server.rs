//! Connections to one PostgreSQL database: SQL ones, and the settings that every session of ours has.
//!
//! Guarantees: every session, the replication stream's too, prints values in one canonical text, which `text` reads;
//! what the server refuses comes back with the statement that mends it.
//! Never: a password in a text; TLS that is silently left out when the URL requires it.

use crate::error::{Cause, Error, Result};
use futures_util::TryStreamExt as _;
use std::fmt;
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, CopyOutStream, NoTls, SimpleQueryMessage, SimpleQueryRow};
use tokio_util::task::AbortOnDropHandle;

/// How values are printed, and no limit of the role's that would break a long copy off.
const SESSION_OPTIONS: &str = "-c datestyle=ISO -c timezone=UTC -c intervalstyle=postgres -c bytea_output=hex \
    -c extra_float_digits=3 -c lc_monetary=C -c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0 \
    -c idle_in_transaction_session_timeout=0";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of a small statement, such as a look into the catalog.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// A database that can be connected to.
#[derive(Clone)]
pub struct Server {
    config: tokio_postgres::Config,
    host: String,
    port: u16,
    user: String,
    database: String,
}

/// The URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PostgreSQL URL is refused: {reason}")]
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
    /// Reads `postgres://user:password@host:port/database` or libpq's `key=value` form.
    ///
    /// # Errors
    /// [`UrlError`] says what is missing; it never holds the URL, which may hold a password.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let refuse = |reason: &str| UrlError {
            reason: reason.to_owned(),
        };
        let mut config: tokio_postgres::Config = url.parse().map_err(|e: tokio_postgres::Error| UrlError {
            reason: service::chain(&e),
        })?;
        if config.get_ssl_mode() == SslMode::Require {
            return Err(refuse(
                "sslmode=require is not supported yet; use sslmode=disable over a network that you trust, or a TLS proxy",
            ));
        }
        let host = match config.get_hosts() {
            [Host::Tcp(host)] => host.clone(),
            [Host::Unix(path)] => path.to_string_lossy().into_owned(),
            [] => return Err(refuse("it names no host: write postgres://user@host:5432/database")),
            _ => return Err(refuse("it names several hosts; a slot lives on one")),
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let user = config
            .get_user()
            .ok_or_else(|| refuse("it names no user: write postgres://user@host/database"))?;
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

    /// Connects for SQL. The connection ends when the value is dropped.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when nobody answers, [`Error::Refused`] when the login is refused.
    pub async fn connect(&self, application: &str) -> Result<Sql> {
        let attempted = "connect";
        let mut config = self.config.clone();
        config.application_name(application);
        let connecting = tokio::time::timeout(2 * CONNECT_TIMEOUT, config.connect(NoTls));
        let (client, connection) = match connecting.await {
            Ok(connected) => connected.map_err(|e| self.error(attempted, e))?,
            Err(elapsed) => return Err(self.unavailable(attempted, elapsed.into())),
        };
        let place = self.to_string();
        let driver = tokio::runtime::Handle::current().spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%place, error = service::chain(&error), "a connection ended");
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

    /// What a failed statement means for the connector.
    fn error(&self, attempted: &'static str, error: tokio_postgres::Error) -> Error {
        match error.as_db_error() {
            Some(db) => self.refused(attempted, db.code().code(), &describe(db)),
            None => self.unavailable(attempted, error.into()),
        }
    }

    /// What a server's error means for the connector, by its SQLSTATE.
    pub(super) fn refused(&self, attempted: &'static str, code: &str, message: &str) -> Error {
        let state = SqlState::from_code(code);
        let class = code.get(..2).unwrap_or_default();
        // Starting, stopping, out of connections, out of resources: it passes by itself.
        let passing = matches!(class, "57" | "53" | "58" | "08") && state != SqlState::QUERY_CANCELED;
        if passing || state == SqlState::OBJECT_IN_USE {
            return self.unavailable(attempted, format!("{message} (SQLSTATE {code})").into());
        }
        let next = match class {
            "28" => format!("check user {} and its password in the URL, and pg_hba.conf", self.user),
            "3D" => format!(
                "CREATE DATABASE {}; or name another one in the URL",
                identifier(&self.database)
            ),
            "42" if state == SqlState::INSUFFICIENT_PRIVILEGE && attempted.contains("replication") => {
                format!("ALTER ROLE {} REPLICATION;", identifier(&self.user))
            }
            _ => format!("see the server's log; the connector tries again by itself to {attempted}"),
        };
        Error::Refused {
            reason: format!("{self} refuses to {attempted}: {message} (SQLSTATE {code})"),
            next,
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
        write!(f, "a connection to {}", self.server)
    }
}

impl Sql {
    /// The rows of a statement, values as text.
    pub(crate) async fn rows(&self, attempted: &'static str, statement: &str) -> Result<Vec<SimpleQueryRow>> {
        let asked = tokio::time::timeout(STATEMENT_TIMEOUT, self.client.simple_query(statement));
        let messages = match asked.await {
            Ok(answer) => answer.map_err(|e| self.server.error(attempted, e))?,
            Err(elapsed) => return Err(self.server.unavailable(attempted, elapsed.into())),
        };
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    /// The first value of a statement's first row.
    pub(crate) async fn value(&self, attempted: &'static str, statement: &str) -> Result<Option<String>> {
        let rows = self.rows(attempted, statement).await?;
        Ok(rows
            .first()
            .and_then(|row| row.try_get(0).ok().flatten())
            .map(str::to_owned))
    }

    /// Runs a statement, or several.
    pub(crate) async fn run(&self, attempted: &'static str, statement: &str) -> Result<()> {
        self.rows(attempted, statement).await.map(drop)
    }

    /// Begins a copy. The rows come in COPY's text format, each chunk ending with a line.
    pub(crate) async fn copy(&self, attempted: &'static str, statement: &str) -> Result<CopyOutStream> {
        self.client
            .copy_out(statement)
            .await
            .map_err(|e| self.server.error(attempted, e))
    }

    /// The next chunk of a copy; `None` at its end.
    pub(crate) async fn copied(
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

/// A name as an SQL identifier, quoted.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as an SQL literal, quoted. With `standard_conforming_strings`, which is on unless somebody turned it off, a
/// backslash is itself; with `E''` it is doubled, which is right in both cases.
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
    fn a_url_is_read_and_never_shown() {
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
            ("postgres://app:s3cret@db:port/shop", "refused"),
        ] {
            let text = Server::parse(bad).unwrap_err().to_string();
            assert!(text.contains(why) && !text.contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn what_passes_by_itself_is_told_from_what_somebody_must_mend() {
        let server = Server::parse("postgres://app@db/shop").unwrap();
        let error = |code| server.refused("start the replication stream", code, "no");
        for code in ["57P01", "57P03", "53300", "55006"] {
            assert_eq!(error(code).state(), State::Retrying, "{code}");
        }
        assert_eq!(error("42501").next("shop"), "ALTER ROLE \"app\" REPLICATION;");
        assert_eq!(error("28P01").state(), State::Failed);
    }

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(identifier("or\"der"), "\"or\"\"der\"");
        assert_eq!(
            (literal("it's"), literal("a\\b")),
            ("'it''s'".into(), "E'a\\\\b'".into())
        );
    }
}
