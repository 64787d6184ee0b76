//! Harness of the edge tests: a log with `view.log`, a writer of source transactions, and edges.
//!
//! The writer produces the records of sync-views without running it. Each edge has a separate data directory, unless the
//! test passes one.
#![allow(dead_code, reason = "shared with the benchmarks, which do not use every function")]

use crate::support::unique;
use edge::auth::Identity;
use edge::config::{Algorithm, CursorKeyConfig, Engine, StoreConfig};
use edge::sync::Memberships;
use edge::token::{DEV_AUDIENCE, DevKey, TokenRequest};
use edge::{Config, EdgeContext};
use event_log::{
    Cleanup, Header, OutBatch, OutRecord, Outcome, SharedEventLog, TimestampPolicy, TopicConfig, TopicSpec,
    TransactionalProducer, TransactionalProducerConfig,
};
use schemas::version::Version;
use serde_json::Value;
use service::{Readiness, Secret, SharedClock, Tasks};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use views::record::{SchemaIds, VERSION, WRITER, Writer};
use views::{Bucket, partition_of};

/// Partitions of `view.log`.
pub const PARTITIONS: i32 = 3;
/// Topic of all rows.
pub const VIEW_LOG: &str = "shop.view.log";
/// Writer of all rows.
const WRITER_ID: &str = "sync-views/shop.change.shop/00000000000000000000000000000001/0";

/// A change of a row of the view `orders`: bucket, key, JSON (`None` removes the row).
pub type RowChange<'a> = (&'a str, u32, Option<&'a str>);

/// Memberships from the claim `buckets`, a list of bucket names. Each bucket is a scope.
struct ClaimedBuckets;

impl Memberships for ClaimedBuckets {
    fn readable(&self, identity: &Identity) -> Result<Vec<Bucket>, String> {
        let names = identity.claims.get("buckets").and_then(Value::as_array);
        let names = names.ok_or("the token has no claim `buckets`")?;
        Ok(names
            .iter()
            .filter_map(Value::as_str)
            .map(|name| Bucket::new(name, name, PARTITIONS))
            .collect())
    }

    fn partitions(&self) -> i32 {
        PARTITIONS
    }
}

/// Contents of a token. The token was issued `age_s` seconds ago.
#[derive(Clone, Copy)]
pub struct TokenSpec<'a> {
    pub subject: &'a str,
    pub audience: &'a str,
    pub buckets: &'a [&'a str],
    pub expires_in_s: i64,
    pub age_s: i64,
}

/// A log, a key for tokens, and a directory.
pub struct Harness {
    pub log: SharedEventLog,
    pub key: DevKey,
    pub clock: SharedClock,
    pub dir: TempDir,
}

/// An embedded log in memory.
pub fn memory_log() -> SharedEventLog {
    let clock = service::clock::system();
    let config = event_log::embedded::Config::new(None, Arc::new(move || clock.now_ms()));
    event_log::embedded::EmbeddedLog::open(config).expect("open a log in memory")
}

impl Harness {
    /// Creates a harness with a log that contains `view.log`.
    pub fn over(log: SharedEventLog) -> Self {
        let harness = Harness::without_topic(log);
        harness.make_topic(PARTITIONS);
        harness
    }

    /// Creates a harness with a log that does not contain `view.log`.
    pub fn without_topic(log: SharedEventLog) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("trunkline-edge-")
            .tempdir()
            .expect("create a directory");
        let key = DevKey::open(dir.path(), Algorithm::EdDSA).expect("create a key");
        Harness {
            log,
            key,
            clock: service::clock::system(),
            dir,
        }
    }

    pub fn make_topic(&self, partitions: i32) {
        let mut config = TopicConfig::new(Cleanup::Compact);
        config.timestamps = TimestampPolicy::LogAppendTime;
        config.min_compaction_lag_ms = Some(6 * 3_600_000);
        config.delete_retention_ms = Some(7 * 24 * 3_600_000);
        let spec = TopicSpec {
            name: VIEW_LOG.into(),
            partitions,
            replication: Some(1),
            config,
        };
        self.log.create_topics(&[spec]).expect("create view.log");
    }

    /// A writer of source transactions.
    pub fn writer(&self) -> Line {
        let config = TransactionalProducerConfig {
            transactional_id: unique("writer"),
            transaction_timeout: Duration::from_secs(10),
        };
        let producer = self.log.transactional_producer(config).expect("create a producer");
        Line {
            producer,
            ordinal: 0,
            touched: Vec::new(),
            clock: self.clock.clone(),
        }
    }

    /// A token that may read these buckets.
    pub fn token(&self, subject: &str, buckets: &[&str]) -> String {
        self.token_with(&TokenSpec {
            subject,
            audience: DEV_AUDIENCE,
            buckets,
            expires_in_s: 3_600,
            age_s: 0,
        })
    }

    /// A token with explicit audience and lifetime.
    pub fn token_with(&self, spec: &TokenSpec<'_>) -> String {
        let claims = [("buckets".to_owned(), Value::from(spec.buckets.to_vec()))]
            .into_iter()
            .collect();
        let request = TokenRequest {
            subject: spec.subject.into(),
            audience: spec.audience.into(),
            claims,
            expires_in_s: spec.expires_in_s,
        };
        self.key
            .sign(&request, self.clock.now_ms() / 1_000 - spec.age_s)
            .expect("sign a token")
    }

    pub fn config(&self, data: &Path) -> Config {
        let secret = Secret::new("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=");
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            issuers: vec![self.key.issuer(DEV_AUDIENCE)],
            cursor_keys: vec![CursorKeyConfig { id: 1, secret }],
            data_dir: data.to_owned(),
            store: StoreConfig {
                engine: Engine::Fjall,
                memory_mib: 16,
                pending_mib: 1,
            },
            ..Config::default()
        }
    }

    /// Starts an edge with a new data directory.
    pub async fn edge(&self) -> Running {
        self.edge_with(self.config(&self.dir.path().join(unique("edge")))).await
    }

    pub async fn edge_with(&self, config: Config) -> Running {
        let (tasks, readiness) = (Tasks::new(), Readiness::new());
        let parts = EdgeContext {
            config,
            log: self.log.clone(),
            view_log: VIEW_LOG.into(),
            group: unique("edge"),
            memberships: Arc::new(ClaimedBuckets),
            clock: self.clock.clone(),
        };
        let address = edge::start(parts, &tasks, &readiness).await.expect("start an edge");
        Running {
            address,
            tasks,
            readiness,
        }
    }
}

/// A running edge.
pub struct Running {
    pub address: SocketAddr,
    pub tasks: Tasks,
    pub readiness: Readiness,
}

impl Running {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Waits until the edge is ready.
    pub async fn ready(&self) {
        let http = reqwest::Client::new();
        eventually("the edge to be ready", || async {
            http.get(self.url("/readyz"))
                .send()
                .await
                .is_ok_and(|r| r.status() == 200)
                .then_some(())
        })
        .await;
    }

    /// Drains the edge and waits until its tasks have ended.
    pub async fn stop(self) {
        self.tasks.join(Duration::from_secs(20)).await.expect("the tasks end");
    }
}

/// Calls `poll` until it returns a value. Panics with `what` after 60 s.
pub async fn eventually<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = poll().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < end, "timed out waiting for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes source transactions of one writer.
pub struct Line {
    producer: Box<dyn TransactionalProducer>,
    ordinal: u32,
    touched: Vec<i32>,
    clock: SharedClock,
}

impl Line {
    /// Writes a source transaction with its end markers, in one Kafka transaction.
    pub fn commit(&mut self, rows: &[RowChange<'_>]) {
        self.write(rows, true);
    }

    /// Writes rows and begin markers of a source transaction that remains open.
    pub fn leave_open(&mut self, rows: &[RowChange<'_>]) {
        self.write(rows, false);
    }

    fn write(&mut self, rows: &[RowChange<'_>], close: bool) {
        let topic: Arc<str> = VIEW_LOG.into();
        let mut writer = Writer::new(
            WRITER_ID,
            SchemaIds {
                row: 1,
                transaction_end: 2,
                transaction_begin: 3,
                stale: 4,
                loaded: 5,
            },
        );
        let mut out = OutBatch::default();
        let mut push = |partition, (key, value): (&[u8], Option<&[u8]>), headers: &[Header<'_>]| {
            let record = OutRecord {
                topic: &topic,
                partition: Some(partition),
                timestamp: None,
                key: Some(key),
                value,
            };
            out.push(record, headers.iter().copied());
        };
        for (bucket, key, json) in rows {
            let partition = partition_of(bucket, PARTITIONS);
            let mut version = [0; 17];
            version[0] = 1;
            self.ordinal += 1;
            version[13..].copy_from_slice(&self.ordinal.to_be_bytes());
            let headers: [Header<'_>; 2] = [(WRITER, Some(WRITER_ID.as_bytes())), (VERSION, Some(&version))];
            push(
                partition,
                writer.row(bucket, "orders", &key.to_string(), json.map(str::as_bytes)),
                &headers,
            );
            self.touched.push(partition);
        }
        self.touched.sort_unstable();
        self.touched.dedup();
        let writer_header: [Header<'_>; 1] = [(WRITER, Some(WRITER_ID.as_bytes()))];
        for partition in &self.touched {
            if close {
                push(
                    *partition,
                    writer.transaction_end(Version::default(), self.clock.now_ms()),
                    &writer_header,
                );
            } else {
                push(*partition, writer.transaction_begin(Version::default()), &writer_header);
            }
        }
        if close {
            self.touched.clear();
        }
        self.producer.begin().expect("begin");
        self.producer.send(&out).expect("send");
        let outcome = self.producer.commit(None);
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    }
}
