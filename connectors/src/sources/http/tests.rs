//! Tests of the source without its loop: the tests call the source and commit as the loop does.

use super::*;
use crate::source::{Position as _, Source as _};
use futures_util::{FutureExt as _, poll};
use registry::embedded::Embedded;
use schemas::codec::UnknownFields;
use schemas::schema::Schema;
use serde_json::json;
use service::clock;
use std::time::Duration;

const BUDGET: Budget = Budget {
    wait: Duration::from_secs(10),
    bytes_max: 1 << 20,
    records_max: 1_000,
};

struct Harness {
    source: Source,
    handle: HttpSourceHandle,
    batch: Batch<Position>,
    /// The committed position.
    stored: Option<String>,
    static_record: Option<String>,
    records: usize,
}

impl Harness {
    async fn open(stored: Option<String>) -> Harness {
        Self::open_with(stored, None).await
    }

    async fn open_with(stored: Option<String>, static_record: Option<String>) -> Harness {
        let log =
            event_log::embedded::EmbeddedLog::open(event_log::embedded::Config::new(None, Arc::new(|| 0))).unwrap();
        let registry: SharedRegistry = Arc::new(Embedded::open(log).unwrap());
        let schema = r#"{"type":"record","name":"orders","fields":[{"name":"id","type":"int"}]}"#;
        let orders = DeclaredTable {
            name: "orders".into(),
            schema: Arc::new(Schema::parse(schema).unwrap()),
            key: vec![0],
        };
        let name = SourceName::new("shop").unwrap();
        let (mut source, handle) = Source::new(&name, "shop.change.shop", vec![orders], registry, clock::system());
        let position = stored
            .as_deref()
            .map(|json| Position::from_json(json, static_record.as_deref()).unwrap());
        source.open(position, usize::MAX).await.unwrap();
        Harness {
            source,
            handle,
            batch: Batch::default(),
            stored,
            static_record,
            records: 0,
        }
    }

    /// Simulates a new process on the same log.
    async fn restart(self) -> Harness {
        let records = self.records;
        let mut new = Harness::open_with(self.stored, self.static_record).await;
        new.records = records;
        new
    }

    /// Posts a row with a fingerprint. Nothing is sent before the future is polled.
    fn post(
        &self,
        id: i32,
        fingerprint: Option<Fingerprint>,
    ) -> futures_util::future::LocalBoxFuture<'static, Result<PostOutcome, PostError>> {
        let handle = self.handle.clone();
        async move {
            let row = serde_json::value::to_raw_value(&json!({ "id": id })).unwrap();
            let tables = handle.tables().ok_or(PostError::Busy)?;
            let change = tables[0].put(&row, UnknownFields::Reject).unwrap();
            handle.post(vec![change], fingerprint, None).await
        }
        .boxed_local()
    }

    async fn next(&mut self) {
        self.source.next(&mut self.batch, BUDGET).await.unwrap();
    }

    fn commit(&mut self) {
        if let Some(position) = self.batch.position.take() {
            self.stored = Some(position.to_json());
            self.static_record = position.static_part().map(|part| part.json.to_owned());
            self.records += self.batch.records.len();
            self.batch = Batch::default();
            self.source.committed(&position);
        }
    }

    /// Posts a row, publishes and commits it, and returns the outcome.
    async fn store(&mut self, id: i32, fingerprint: Option<Fingerprint>) -> PostOutcome {
        let mut post = self.post(id, fingerprint);
        assert!(poll!(&mut post).is_pending());
        self.next().await;
        self.commit();
        post.await.unwrap()
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.unwrap().block_on(test);
}

fn request(credential: &str, key: &str, body: &str) -> Option<Fingerprint> {
    Some(Fingerprint::new(credential, key, body.as_bytes()))
}

fn receipt(position: u64) -> Receipt {
    Receipt { position, changes: 1 }
}

#[test]
fn keys_survive_a_restart() {
    run(async {
        let mut shop = Harness::open(None).await;
        assert_eq!(shop.store(1, None).await, PostOutcome::Stored(receipt(1)));
        let first = request("shop", "k", "1");
        assert_eq!(shop.store(1, first).await, PostOutcome::Stored(receipt(2)));
        for _ in 0..2 {
            assert_eq!(shop.store(1, first).await, PostOutcome::Replayed(receipt(2)));
            assert_eq!(shop.store(2, request("shop", "k", "2")).await, PostOutcome::KeyReused);
            assert_eq!(shop.records, 2);
            shop = shop.restart().await;
        }
        assert_eq!(
            shop.store(1, request("till", "k", "1")).await,
            PostOutcome::Stored(receipt(3))
        );
        assert_eq!(
            shop.store(1, request("shop", "l", "1")).await,
            PostOutcome::Stored(receipt(4))
        );
        assert_eq!(shop.records, 4);
    });
}

#[test]
fn retry_during_a_commit_waits_for_it() {
    run(async {
        let mut shop = Harness::open(None).await;
        let (mut first, mut same) = (
            shop.post(1, request("s", "k", "1")),
            shop.post(1, request("s", "k", "1")),
        );
        let mut other = shop.post(2, request("s", "k", "2"));
        for post in [&mut first, &mut same, &mut other] {
            assert!(poll!(post).is_pending());
        }
        shop.next().await;
        for post in [&mut first, &mut same, &mut other] {
            assert!(poll!(post).is_pending(), "nothing is committed yet");
        }
        shop.commit();
        assert_eq!(first.await, Ok(PostOutcome::Stored(receipt(1))));
        assert_eq!(same.await, Ok(PostOutcome::Replayed(receipt(1))));
        assert_eq!(other.await, Ok(PostOutcome::KeyReused));
        assert_eq!(shop.records, 1);
    });
}

#[test]
fn aborted_request_leaves_no_key() {
    run(async {
        let mut shop = Harness::open(None).await;
        let (mut first, mut same) = (
            shop.post(1, request("s", "k", "1")),
            shop.post(1, request("s", "k", "1")),
        );
        for post in [&mut first, &mut same] {
            assert!(poll!(post).is_pending());
        }
        shop.next().await;
        // The loop closes a source whose transaction was not committed, and opens it at the stored position.
        shop.source.close();
        shop.batch = Batch::default();
        assert_eq!(first.await, Err(PostError::UnknownOutcome));
        assert_eq!(same.await, Err(PostError::UnknownOutcome));
        shop.source.open(None, usize::MAX).await.unwrap();
        assert_eq!(
            shop.store(2, request("s", "k", "2")).await,
            PostOutcome::Stored(receipt(1))
        );
    });
}

#[test]
fn new_source_epoch_keeps_the_keys() {
    run(async {
        let mut shop = Harness::open(None).await;
        for _ in 0..3 {
            shop.store(1, None).await;
        }
        let first = request("s", "k", "1");
        assert_eq!(shop.store(1, first).await, PostOutcome::Stored(receipt(4)));
        let stored = Position::from_json(&shop.stored.clone().unwrap(), None).unwrap();
        shop.stored = shop
            .source
            .restart_position(Some(&stored), 1)
            .map(|position| position.to_json());
        shop = shop.restart().await;
        assert_eq!(shop.store(2, None).await, PostOutcome::Stored(receipt(1)));
        assert_eq!(shop.store(1, first).await, PostOutcome::Replayed(receipt(4)));
    });
}

#[test]
fn older_keys_survive_a_restart() {
    run(async {
        let mut shop = Harness::open(None).await;
        let key = |n: i32| request("s", &format!("k{n}"), "1");
        for n in 1..=600 {
            shop.store(n, key(n)).await;
        }
        shop = shop.restart().await;
        for n in [1, 300, 600] {
            let stored = receipt(u64::try_from(n).unwrap());
            assert_eq!(shop.store(n, key(n)).await, PostOutcome::Replayed(stored));
        }
        assert_eq!(shop.store(1, key(601)).await, PostOutcome::Stored(receipt(601)));
    });
}

#[test]
fn events_with_one_key_are_stored_once() {
    run(async {
        let mut shop = Harness::open(None).await;
        let topic: Arc<str> = "shop.event.viewed".into();
        let events = |count: usize| {
            let mut records = OutBatch::default();
            for _ in 0..count {
                let record = OutRecord {
                    topic: &topic,
                    partition: None,
                    timestamp: None,
                    key: Some(b"[1]"),
                    value: Some(b"event"),
                };
                records.push(record, []);
            }
            records
        };
        let post = |shop: &Harness, count: usize, body: &str| {
            let (handle, records) = (shop.handle.clone(), events(count));
            let fingerprint = request("s", "k", body).unwrap();
            async move { handle.post_events(records, fingerprint).await }.boxed_local()
        };
        let expected = Receipt {
            position: 1,
            changes: 2,
        };
        let mut first = post(&shop, 2, "a");
        assert!(poll!(&mut first).is_pending());
        shop.next().await;
        shop.commit();
        assert_eq!(first.await, Ok(PostOutcome::Stored(expected)));
        shop = shop.restart().await;
        for (body, outcome) in [("a", PostOutcome::Replayed(expected)), ("b", PostOutcome::KeyReused)] {
            let mut again = post(&shop, 2, body);
            assert!(poll!(&mut again).is_pending());
            shop.next().await;
            shop.commit();
            assert_eq!(again.await, Ok(outcome));
        }
        assert_eq!(shop.records, 2);
        shop.source.close();
        assert_eq!(post(&shop, 1, "c").await, Err(PostError::Busy));
    });
}

#[test]
fn truncate_is_a_record_of_the_table() {
    run(async {
        let mut shop = Harness::open(None).await;
        let tables = shop.handle.tables().unwrap();
        let row = serde_json::value::to_raw_value(&json!({ "id": 7 })).unwrap();
        let changes = vec![
            tables[0].truncate(),
            tables[0].put(&row, UnknownFields::Reject).unwrap(),
        ];
        let handle = shop.handle.clone();
        let mut post = Box::pin(handle.post(changes, None, None));
        assert!(poll!(post.as_mut()).is_pending());
        shop.next().await;
        let records = shop.batch.records.iter();
        let keys: Vec<_> = records
            .map(|(record, _)| (record.key.map(<[u8]>::to_vec), record.value.is_some()))
            .collect();
        let key = |text: &str| Some(text.as_bytes().to_vec());
        assert_eq!(keys, [(key(r#"["orders"]"#), false), (key(r#"["orders",7]"#), true)]);
    });
}

#[test]
fn format_1_is_read_and_newer_ones_are_rejected() {
    let old = Position::from_json(r#"{"v":1,"epoch":2,"pos":7,"recent":["k"]}"#, None).unwrap();
    assert_eq!(old.to_json(), r#"{"v":2,"epoch":2,"pos":7,"recent":[]}"#);
    let newer = Position::from_json(r#"{"v":3,"keys":{}}"#, None).unwrap_err();
    assert_eq!(
        newer.to_string(),
        "it has format 3, this version reads up to 2; upgrade trunkline"
    );
    assert!(Position::from_json(r#"{"v":2,"epoch":2,"pos":7,"recent":["k"]}"#, None).is_err());
}
