//! TLS and login: each `sslmode` with each kind of certificate, and each method of `pg_hba.conf`, over both connections.

use super::harness::{Adjust, Database, LIMIT, Setting};
use crate::support::{Postgres, wait_for};
use connectors::sources::postgres::Config;
use connectors::status::{Report, State};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Users by method: name, type of the line in `pg_hba.conf`, method.
const USERS: [(&str, &str, &str); 6] = [
    ("scram_user", "hostssl", "scram-sha-256"),
    ("md5_user", "hostssl", "md5"),
    ("clear_user", "hostssl", "password"),
    ("cert_user", "hostssl", "cert"),
    ("plain_scram_user", "hostnossl", "scram-sha-256"),
    ("plain_clear_user", "hostnossl", "password"),
];

/// A certificate authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Authority {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for the host `localhost` and its key.
    fn issue(&self, common_name: &str, is_expired: bool) -> [String; 2] {
        let mut params = CertificateParams::new(vec![String::from("localhost")]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        if is_expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        [params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem()]
    }
}

/// A cluster with TLS, and the files of its clients.
struct Cluster {
    postgres: Postgres,
    files: TempDir,
    authority: Authority,
}

impl Cluster {
    fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let (authority, other) = (Authority::new("authority"), Authority::new("other authority"));
        let postgres = Postgres::start();
        postgres.write("ca.pem", &authority.pem);
        let cluster = Cluster {
            postgres,
            files,
            authority,
        };
        cluster.serve(false);
        let mut rules = String::from("host all postgres 127.0.0.1/32 trust\n");
        let admin = Database::at(&cluster.postgres.url());
        for (user, kind, method) in USERS {
            rules += &format!("{kind} all {user} 127.0.0.1/32 {method}\n");
            let encryption = if method == "md5" { "md5" } else { "scram-sha-256" };
            admin.each(&[&format!(
                "SET password_encryption = '{encryption}'; CREATE ROLE {user} LOGIN SUPERUSER PASSWORD 'pa55'"
            )]);
        }
        cluster.postgres.write("pg_hba.conf", &rules);
        cluster.set(&["ssl = on", "ssl_ca_file = 'ca.pem'"]);
        cluster.file("ca.pem", &cluster.authority.pem);
        cluster.file("other.pem", &other.pem);
        for (name, authority, user) in [
            ("client", &cluster.authority, "cert_user"),
            ("somebody", &cluster.authority, "somebody"),
            ("foreign", &other, "cert_user"),
        ] {
            let [certificate, key] = authority.issue(user, false);
            cluster.file(&format!("{name}.crt"), &certificate);
            cluster.file(&format!("{name}.key"), &key);
        }
        cluster
    }

    /// Changes settings, and waits until new connections have them and the files that were replaced.
    fn set(&self, settings: &[&str]) {
        let admin = Database::at(&self.postgres.url());
        // The server reads its configuration asynchronously. A setting with another value in each call shows it.
        let memory = admin.value("SELECT (setting::int + 1)::text || 'kB' FROM pg_settings WHERE name = 'work_mem'");
        let memory = memory.unwrap();
        for setting in settings
            .iter()
            .copied()
            .chain([format!("work_mem = '{memory}'").as_str()])
        {
            admin.sql(&format!("ALTER SYSTEM SET {setting}"));
        }
        admin.sql("SELECT pg_reload_conf()");
        wait_for("the settings", LIMIT, || {
            (admin.value("SHOW work_mem") == Some(memory.clone())).then_some(())
        });
    }

    /// Replaces the certificate of the server.
    fn serve(&self, is_expired: bool) {
        let [certificate, key] = self.authority.issue("server", is_expired);
        self.postgres.write("server.crt", &certificate);
        self.postgres.write("server.key", &key);
    }

    fn file(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The parameters of a URL, with `$DIR` for the directory of the files.
    fn url(&self, user: &str, host: &str, database: &Database, parameters: &str) -> String {
        let (port, dir) = (self.postgres.port(), self.files.path().display().to_string());
        format!(
            "postgres://{user}:pa55@{host}:{port}/{}?{}",
            database.name,
            parameters.replace("$DIR", &dir)
        )
    }

    /// Runs a connector until it streams or fails. Returns its report, and whether all its connections use TLS.
    fn attempt(&self, user: &str, host: &str, parameters: &str, adjust: Option<Adjust>) -> (Report, Option<bool>) {
        let database = Database::at(&self.postgres.url());
        database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
        let mut setting = Setting::new(&database, &["orders(id int8)"]);
        setting.url = self.url(user, host, &database, parameters);
        setting.adjust = adjust;
        let source = setting.source();
        if let Err(error) = source {
            let report = Report {
                state: State::Failed,
                cause: Some(error.to_string()),
                fix: Some(error.fix("c")),
                ..connectors::status::Handle::new("c", service::Readiness::new().register("c")).report()
            };
            return (report, None);
        }
        let connector = setting.start(&database);
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let report = connector.handle.report();
            if report.state == State::Failed && report.cause.is_some() {
                return (report, None);
            }
            // The stream and the connections for heartbeats and for the slot.
            let of_all = database.value(&format!(
                "SELECT bool_and(ssl)::text FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = '{user}' AND \
                 datname = '{}' HAVING count(*) >= 3",
                database.name
            ));
            if let (State::Running, Some(of_all)) = (report.state, of_all) {
                return (report, Some(of_all == "true"));
            }
            assert!(Instant::now() < end, "{user} {host} {parameters}: {report:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn expect_tls(&self, user: &str, host: &str, parameters: &str) {
        let (report, is_tls) = self.attempt(user, host, parameters, None);
        assert_eq!(
            (report.state, is_tls),
            (State::Running, Some(true)),
            "{user} {host} {parameters}: {report:?}"
        );
    }

    fn expect_plain(&self, user: &str, parameters: &str) {
        let (report, is_tls) = self.attempt(user, "localhost", parameters, None);
        assert_eq!(
            (report.state, is_tls),
            (State::Running, Some(false)),
            "{user} {parameters}: {report:?}"
        );
    }

    /// Expects a failure whose cause and fix contain these texts.
    fn expect_failure(&self, user: &str, host: &str, parameters: &str, expected: [&str; 2]) {
        let (report, _) = self.attempt(user, host, parameters, None);
        assert_eq!(report.state, State::Failed, "{user} {host} {parameters}: {report:?}");
        let (cause, fix) = (report.cause.unwrap_or_default(), report.fix.unwrap_or_default());
        let [in_cause, in_fix] = expected;
        assert!(
            cause.contains(in_cause) && fix.contains(in_fix),
            "{parameters}: {cause} -> {fix}"
        );
        assert!(!cause.contains("pa55") && !fix.contains("pa55"), "{cause} -> {fix}");
    }
}

#[test]
fn modes_and_certificates_behave_as_in_libpq() {
    let cluster = Cluster::start();
    let (user, ca, other) = ("scram_user", "sslrootcert=$DIR/ca.pem", "sslrootcert=$DIR/other.pem");
    let (unknown, name) = ("no authority in sslrootcert", "not valid for the host");
    // The right authority and host.
    for mode in ["prefer", "require", "verify-ca", "verify-full"] {
        cluster.expect_tls(user, "localhost", &format!("sslmode={mode}&{ca}"));
    }
    for mode in ["prefer", "require"] {
        cluster.expect_tls(user, "localhost", &format!("sslmode={mode}"));
    }
    cluster.expect_failure(
        user,
        "localhost",
        "sslmode=disable",
        ["no pg_hba.conf entry", "sslmode = \"require\""],
    );
    // Another authority. As in libpq, `require` verifies the authority if one is set.
    for mode in ["require", "verify-ca", "verify-full"] {
        cluster.expect_failure(
            user,
            "localhost",
            &format!("sslmode={mode}&{other}"),
            [unknown, "set sslrootcert"],
        );
    }
    for mode in ["verify-ca", "verify-full"] {
        let parameters = format!("sslmode={mode}");
        let expected = ["need the certificate authority", "set sslrootcert"];
        cluster.expect_failure(user, "localhost", &parameters, expected);
        cluster.expect_failure(
            user,
            "localhost",
            &format!("{parameters}&sslrootcert=$DIR/none.pem"),
            ["sslrootcert: cannot read", "correct sslrootcert"],
        );
    }
    cluster.expect_failure(
        user,
        "localhost",
        "sslmode=verify-full&sslrootcert=system",
        ["sslrootcert", "set sslrootcert"],
    );
    // Another host than in the certificate.
    cluster.expect_tls(user, "127.0.0.1", &format!("sslmode=verify-ca&{ca}"));
    cluster.expect_failure(
        user,
        "127.0.0.1",
        &format!("sslmode=verify-full&{ca}"),
        [name, "verify-ca"],
    );
    // An expired certificate of the server.
    cluster.serve(true);
    cluster.set(&[]);
    for mode in ["verify-ca", "verify-full"] {
        let expected = ["has expired", "renew the certificate"];
        cluster.expect_failure(user, "localhost", &format!("sslmode={mode}&{ca}"), expected);
    }
    cluster.expect_tls(user, "localhost", "sslmode=require");
}

#[test]
fn login_methods_and_client_certificates() {
    let cluster = Cluster::start();
    let full = "sslmode=verify-full&sslrootcert=$DIR/ca.pem";
    for user in ["scram_user", "md5_user", "clear_user"] {
        cluster.expect_tls(user, "localhost", full);
    }
    let client = |name: &str| format!("{full}&sslcert=$DIR/{name}.crt&sslkey=$DIR/{name}.key");
    cluster.expect_tls("cert_user", "localhost", &client("client"));
    cluster.expect_failure(
        "cert_user",
        "localhost",
        full,
        ["valid client certificate", "set sslcert and sslkey"],
    );
    cluster.expect_failure(
        "cert_user",
        "localhost",
        &client("foreign"),
        ["client certificate", "ssl_ca_file"],
    );
    cluster.expect_failure(
        "cert_user",
        "localhost",
        &client("somebody"),
        ["certificate authentication failed", "pg_ident"],
    );
    let half = format!("{full}&sslcert=$DIR/client.crt");
    cluster.expect_failure("cert_user", "localhost", &half, ["only one of them", "set both"]);
    let mixed = format!("{full}&sslcert=$DIR/client.crt&sslkey=$DIR/somebody.key");
    cluster.expect_failure(
        "cert_user",
        "localhost",
        &mixed,
        ["sslcert: the certificate in", "key of sslcert"],
    );
    // Channel binding.
    cluster.expect_tls("scram_user", "localhost", "sslmode=require&channel_binding=require");
    cluster.expect_tls("scram_user", "localhost", "sslmode=require&channel_binding=disable");
    let bound = ["channel binding", "channel_binding needs"];
    for user in ["md5_user", "clear_user"] {
        let (report, _) = cluster.attempt(user, "localhost", "sslmode=require&channel_binding=require", None);
        let (cause, fix) = (report.cause.unwrap_or_default(), report.fix.unwrap_or_default());
        assert!(cause.contains(bound[0]) && fix.contains(bound[1]), "{cause} -> {fix}");
    }
}

#[test]
fn password_is_not_sent_in_clear_without_tls_unless_allowed() {
    let cluster = Cluster::start();
    cluster.expect_plain("plain_scram_user", "sslmode=disable");
    let refused = ["requests the password in clear", "allow_cleartext_password"];
    cluster.expect_failure("plain_clear_user", "localhost", "sslmode=disable", refused);
    cluster.set(&["ssl = off"]);
    // The fallback of `prefer` is no exception.
    cluster.expect_plain("plain_scram_user", "sslmode=prefer");
    cluster.expect_failure("plain_clear_user", "localhost", "sslmode=prefer", refused);
    let none = ["does not support TLS, but sslmode requires it", "ssl_cert_file"];
    cluster.expect_failure("plain_scram_user", "localhost", "sslmode=require", none);
    let allow: Adjust = Arc::new(|config: &mut Config| config.allow_cleartext_password = true);
    let (report, is_tls) = cluster.attempt("plain_clear_user", "localhost", "sslmode=prefer", Some(allow));
    assert_eq!((report.state, is_tls), (State::Running, Some(false)), "{report:?}");
}

#[test]
fn replaced_password_file_is_used_by_the_next_connection() {
    let cluster = Cluster::start();
    let database = Database::at(&cluster.postgres.url());
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
    cluster.file("password", "pa55\n");
    let mut setting = Setting::new(&database, &["orders(id int8)"]);
    setting.url = cluster.url("scram_user", "localhost", &database, "sslmode=require");
    let file = cluster.path("password");
    setting.adjust = Some(Arc::new(move |config: &mut Config| {
        config.password_file = Some(file.clone())
    }));
    let connector = setting.start(&database);
    connector.wait_for(State::Running);
    database.sql("ALTER ROLE scram_user PASSWORD 'other'");
    end_connections(&database);
    let failed = connector.wait_for(State::Failed);
    assert!(failed.fix.unwrap().contains("password_file"));
    replace(&cluster.path("password"), "other");
    connector.wait_for(State::Running);
}

fn end_connections(database: &Database) {
    database.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
}

fn replace(path: &Path, content: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, content).unwrap();
    std::fs::rename(next, path).unwrap();
}
