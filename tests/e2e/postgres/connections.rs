//! Connections that fail silently, and statements that wait.

use super::harness::{Database, LIMIT, Setting};
use crate::support::{self, wait_for};
use connectors::status::State;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Forwards connections to a server, until they are frozen: then they stay open, and nothing passes.
struct Proxy {
    port: u16,
    /// Connections with a lower number are frozen.
    frozen_below: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
}

impl Proxy {
    fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy {
            port: listener.local_addr().unwrap().port(),
            frozen_below: Arc::default(),
            accepted: Arc::default(),
        };
        let (frozen, accepted, server) = (proxy.frozen_below.clone(), proxy.accepted.clone(), server.to_owned());
        let accept = move || {
            for client in listener.incoming() {
                let (client, number) = (client.unwrap(), accepted.fetch_add(1, Ordering::SeqCst));
                let upstream = TcpStream::connect(&server).unwrap();
                for (from, to) in [
                    (client.try_clone().unwrap(), upstream.try_clone().unwrap()),
                    (upstream, client),
                ] {
                    let frozen = frozen.clone();
                    std::thread::Builder::new()
                        .spawn(move || forward(from, to, &|| frozen.load(Ordering::SeqCst) > number))
                        .unwrap();
                }
            }
        };
        std::thread::Builder::new().spawn(accept).unwrap();
        proxy
    }

    /// Freezes all connections. New ones work.
    fn freeze(&self) {
        self.frozen_below
            .store(self.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, is_frozen: &dyn Fn() -> bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut buffer) {
        if is_frozen() {
            // Keeps both sockets open for longer than the test runs.
            std::thread::sleep(2 * LIMIT);
            break;
        }
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
}

#[test]
fn silent_connection_is_replaced_in_seconds() {
    let database = Database::new();
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
    let server = support::postgres();
    let address = server.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    let proxy = Proxy::start(&address);
    let mut setting = Setting::new(&database, &["orders(id int8)"]);
    setting.heartbeat_seconds = 1;
    setting.url = setting.url.replace(&address, &format!("127.0.0.1:{}", proxy.port));
    let connector = setting.start(&database);
    // A row shows that the stream is open.
    let mut topic = setting.topic();
    connector.wait_for(State::Running);
    database.sql("INSERT INTO orders VALUES (0)");
    topic.lines(2);
    proxy.freeze();
    let started = Instant::now();
    database.sql("INSERT INTO orders VALUES (1)");
    // The server may hold the slot for the frozen connection until it notices too, so the old walsender is ended.
    let ended = wait_for("the reconnect", LIMIT, || {
        let report = connector.handle.report();
        report.cause.filter(|cause| cause.contains("sent nothing for"))
    });
    let noticed = started.elapsed();
    assert!(noticed < Duration::from_secs(12), "noticed after {noticed:?}: {ended}");
    database.sql(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database() AND active",
    );
    topic.wait("the row", |records| {
        records.iter().any(|r| r.key == r#"["orders","1"]"#)
    });
    connector.wait_for(State::Running);
}

#[test]
fn locked_table_ends_the_start_with_the_fix() {
    let database = Database::new();
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
    let setting = Setting::new(&database, &["orders(id int8)"]);
    let mut connector = None;
    database.on_one_connection(|sql| {
        sql("BEGIN");
        sql("LOCK TABLE orders");
        let running = setting.start(&database);
        let report = running.wait_for(State::Failed);
        let (cause, fix) = (report.cause.unwrap(), report.fix.unwrap());
        assert!(cause.contains("lock timeout"), "{cause}");
        assert!(fix.contains("end the transaction that locks a declared table"), "{fix}");
        sql("ROLLBACK");
        connector = Some(running);
    });
    connector.unwrap().wait_for(State::Running);
}

#[test]
fn exhausted_slots_are_reported_with_the_setting() {
    let cluster = support::Postgres::with_settings("max_replication_slots = 1");
    let database = Database::at(&cluster.url());
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
    database.sql("SELECT pg_create_physical_replication_slot('other')");
    let connector = Setting::new(&database, &["orders(id int8)"]).start(&database);
    let report = connector.wait_for(State::Failed);
    assert!(report.cause.unwrap().contains("all replication slots are in use"));
    assert!(report.fix.unwrap().contains("max_replication_slots"));
    database.sql("SELECT pg_drop_replication_slot('other')");
    connector.wait_for(State::Running);
}
