//! Polls of a real replica with an in-memory store: pages, cursors, long polls and errors.

mod loading;

use super::*;
use event_log::{Header, NewRecord, Offset, RecordBatch, TimestampType, TopicPartition};
use schemas::ids::Principal;
use schemas::version::Version;
use serde_json::{Value, json};
use service::clock::Manual;
use std::sync::Mutex;
use views::BucketId;
use views::cursor::Key;
use views::record::{SchemaIds, VERSION, WRITER, Writer};
use views::replica::{FLUSH_BYTES, Options, SPACES, Times};

const NOW: i64 = 1_732_390_000_000;
const SECOND: Duration = Duration::from_secs(1);

/// Memberships from the claim `buckets`, a list of bucket names.
struct ClaimedBuckets;

impl Memberships for ClaimedBuckets {
    fn readable(&self, identity: &Identity) -> Result<Vec<Bucket>, String> {
        let names = identity
            .claims
            .get("buckets")
            .and_then(Value::as_array)
            .ok_or("no claim `buckets`")?;
        Ok(names
            .iter()
            .filter_map(Value::as_str)
            .map(|name| Bucket::new(name, "all", 1))
            .collect())
    }

    /// The view of buckets that begin with `table:` has a first snapshot.
    fn snapshot_views(&self, readable: &[Bucket]) -> Vec<SnapshotView> {
        let of_table = readable.iter().filter(|bucket| bucket.name.starts_with("table:"));
        let orders = |_| SnapshotView {
            name: "orders".into(),
            writers: 1,
        };
        of_table.map(orders).take(1).collect()
    }

    fn partitions(&self) -> i32 {
        1
    }
}

struct Harness {
    polls: Arc<Polls>,
    replica: Arc<Replica>,
    clock: Manual,
    drain: Drain,
    next: Mutex<i64>,
}

fn replica(now: i64) -> Arc<Replica> {
    let options = state_store::Options {
        engine: state_store::Engine::Memory,
        dir: "memory".into(),
        spaces: SPACES.to_vec(),
        memory_bytes: 1 << 20,
    };
    let store = state_store::open(&options).unwrap();
    let options = Options {
        partitions: vec![0],
        times: Times::default(),
        log: 1,
        pending_bytes_max: 1 << 20,
        flush_bytes: FLUSH_BYTES,
        now,
    };
    Arc::new(Replica::open(store, options).unwrap())
}

fn harness() -> Harness {
    let clock = Manual::at(NOW);
    let (handle, replica, drain) = (Arc::new(ReplicaHandle::default()), replica(NOW), Drain::new());
    handle.publish(replica.clone());
    let keyring = Keyring::new(&[Key { id: 1, secret: [1; 32] }]).unwrap();
    let polls = Polls::new(PollsContext {
        replica: handle,
        memberships: Arc::new(ClaimedBuckets),
        keyring,
        limits: Limits::default(),
        clock: clock.shared(),
        drain: drain.clone(),
    });
    let harness = Harness {
        polls: Arc::new(polls),
        replica,
        clock,
        drain,
        next: Mutex::new(0),
    };
    harness.at_end();
    harness
}

type RowChange<'a> = (&'a str, u32, Option<&'a str>);

/// A mark of the view.
#[derive(Clone, Copy)]
enum Mark {
    Stale(bool),
    Loaded(bool),
}

fn record<'r>(offset: Offset, timestamp: i64, key: &'r [u8], value: Option<&'r [u8]>) -> NewRecord<'r> {
    NewRecord {
        offset,
        timestamp,
        timestamp_type: TimestampType::LogAppend,
        key: Some(key),
        value,
    }
}

impl Harness {
    fn at_end(&self) {
        let end = *self.next.lock().unwrap();
        self.replica.at_end(0, end, end, self.clock.shared().now_ms()).unwrap();
    }

    /// Appends and applies a source transaction, and wakes long polls as the follower does.
    fn commit(&self, rows: &[RowChange<'_>]) {
        self.write(rows, None);
    }

    /// Appends and applies a loaded mark of the view.
    fn loaded(&self, loaded: bool) {
        self.write(&[], Some(Mark::Loaded(loaded)));
    }

    /// Like `commit`, with a mark.
    fn write(&self, rows: &[RowChange<'_>], mark: Option<Mark>) {
        let mut next = self.next.lock().unwrap();
        let mut batch = RecordBatch::default();
        let at = batch.intern(&TopicPartition::new("shop.view.log", 0));
        let mut writer = Writer::new(
            "p/t/0/0",
            SchemaIds {
                row: 1,
                transaction_end: 2,
                transaction_begin: 3,
                stale: 4,
                loaded: 5,
            },
        );
        let now = self.clock.shared().now_ms();
        for (bucket, key, json) in rows {
            let mut version = [1; 17];
            version[9..].copy_from_slice(&next.to_be_bytes());
            let (key, value) = writer.row(bucket, "orders", &key.to_string(), json.map(str::as_bytes));
            let headers: [Header<'_>; 2] = [(WRITER, Some(b"p/t/0/0")), (VERSION, Some(&version))];
            batch.push(at, record(*next, now, key, value), headers);
            *next += 1;
        }
        if let Some(mark) = mark {
            let (key, value) = match mark {
                Mark::Stale(stale) => writer.stale_mark("orders", stale),
                Mark::Loaded(loaded) => writer.loaded_mark("orders", loaded),
            };
            let headers: [Header<'_>; 1] = [(WRITER, Some(b"p/t/0/0"))];
            batch.push(at, record(*next, now, key, value), headers);
            *next += 1;
        }
        let (key, value) = writer.transaction_end(Version::default(), now);
        batch.push(at, record(*next, now, key, value), []);
        *next += 1;
        let applied = self.replica.apply(0, batch.iter(), now).unwrap();
        let notifier = self.polls.context.replica.notifier();
        if applied.loaded {
            notifier.wake_all();
        }
        notifier.wake(&applied.buckets);
        notifier.advanced();
    }

    async fn poll(&self, identity: &Identity, request: SyncRequest) -> Result<SyncResponse, ApiError> {
        self.polls
            .poll(identity, &DeviceId::new("phone").unwrap(), &request)
            .await
    }

    async fn page(&self, identity: &Identity, request: SyncRequest) -> (Value, String) {
        match self.poll(identity, request).await.unwrap() {
            SyncResponse::Page { json, cursor } => (serde_json::from_slice(&json).unwrap(), cursor),
            SyncResponse::NotModified => panic!("a page was expected"),
        }
    }

    /// Polls once and returns the cursor of the complete page.
    async fn synced(&self, identity: &Identity) -> String {
        let (page, cursor) = self.page(identity, SyncRequest::default()).await;
        assert_eq!(page["complete"], json!(true));
        cursor
    }
}

fn user(name: &str, buckets: &[&str]) -> Identity {
    let claims = json!({"sub": name, "buckets": buckets}).as_object().unwrap().clone();
    Identity {
        principal: Principal::new("main", name).unwrap(),
        claims,
        expires_ms: NOW + 600_000,
    }
}

fn after(cursor: &str) -> SyncRequest {
    SyncRequest {
        cursor: Some(cursor.to_owned()),
        ..SyncRequest::default()
    }
}

fn waiting(cursor: &str, wait: Duration) -> SyncRequest {
    SyncRequest { wait, ..after(cursor) }
}

#[tokio::test]
async fn page_is_documented_json_with_unchanged_rows() {
    let harness = harness();
    let row = r#"{"id":1,"total":"12.50","note":"a \"b\" é"}"#;
    harness.commit(&[
        ("user:1", 1, Some(row)),
        ("user:1", 2, Some("{}")),
        ("user:2", 3, Some("{}")),
    ]);
    harness.commit(&[("user:1", 2, None)]);
    let identity = user("1", &["user:1"]);
    let SyncResponse::Page { json, cursor } = harness.poll(&identity, SyncRequest::default()).await.unwrap() else {
        panic!()
    };
    let bucket = BucketId::of("user:1");
    let hash = views::row_hash("orders", b"1", &version_at(0));
    let text = String::from_utf8(json).unwrap();
    let (before, poll_after_ms) = text.split_once("\"poll_after_ms\":").unwrap();
    let want = format!(
        "{{\"cursor\":\"{cursor}\",\"complete\":true,\"reset_all\":true,\"drops\":[],\
         \"resets\":[{{\"bucket\":\"{bucket}\",\"name\":\"user:1\"}}],\
         \"changes\":[{{\"bucket\":\"{bucket}\",\"view\":\"orders\",\"key\":[1],\"op\":\"put\",\
         \"version\":\"{}\",\"row\":{row}}}],\"stale\":[],\
         \"hashes\":[{{\"bucket\":\"{bucket}\",\"hash\":\"{hash:032x}\"}}],\"acked_through\":0,",
        version_at(0).iter().map(|b| format!("{b:02x}")).collect::<String>(),
    );
    assert_eq!(before, want);
    let poll_after_ms: u64 = poll_after_ms.trim_end_matches('}').parse().unwrap();
    assert!((24_000..=36_000).contains(&poll_after_ms), "{poll_after_ms}");
    harness.commit(&[("user:1", 1, None)]);
    let (page, _) = harness.page(&identity, after(&cursor)).await;
    let change = &page["changes"][0];
    assert_eq!(
        (&change["op"], &change["key"], change.get("row")),
        (&json!("delete"), &json!([1]), None)
    );
    assert_eq!(page.get("reset_all"), None);
    assert_eq!(page["hashes"][0]["hash"], json!("0".repeat(32)));
}

fn version_at(offset: i64) -> [u8; 17] {
    let mut version = [1; 17];
    version[9..].copy_from_slice(&offset.to_be_bytes());
    version
}

#[tokio::test]
async fn only_a_complete_cursor_gets_304() {
    let harness = harness();
    let rows: Vec<RowChange<'_>> = (0..5).map(|key| ("user:1", key, Some("{}"))).collect();
    harness.commit(&rows);
    let identity = user("1", &["user:1"]);
    let mut request = SyncRequest {
        limit: Some(2),
        ..SyncRequest::default()
    };
    let mut pages = Vec::new();
    loop {
        match harness.poll(&identity, request.clone()).await.unwrap() {
            SyncResponse::NotModified => break,
            SyncResponse::Page { json, cursor } => {
                let page: Value = serde_json::from_slice(&json).unwrap();
                pages.push((
                    page["changes"].as_array().unwrap().len(),
                    page["complete"] == json!(true),
                ));
                assert_eq!(page["poll_after_ms"] == json!(0), page["complete"] == json!(false));
                request.cursor = Some(cursor);
            }
        }
    }
    // The reset counts as a change. The round of three pages is followed by an empty, complete page.
    assert_eq!(pages, [(1, false), (2, false), (2, false), (0, true)]);
    let greedy = SyncRequest {
        limit: Some(1_000_000),
        ..SyncRequest::default()
    };
    assert_eq!(
        harness.page(&identity, greedy).await.0["changes"]
            .as_array()
            .unwrap()
            .len(),
        5
    );
}

#[tokio::test]
async fn foreign_cursor_gets_a_full_reset() {
    let harness = harness();
    harness.commit(&[("user:1", 1, Some(r#"{"of":1}"#)), ("user:2", 2, Some(r#"{"of":2}"#))]);
    let (one, two) = (user("1", &["user:1"]), user("2", &["user:2"]));
    let theirs = harness.synced(&two).await;
    let foreign = Keyring::new(&[Key { id: 1, secret: [9; 32] }]).unwrap();
    let forged = foreign.seal(&harness.polls.context.keyring.open(&theirs).unwrap());
    let SyncResponse::Page { cursor: tablet, .. } = harness
        .polls
        .poll(&one, &DeviceId::new("tablet").unwrap(), &SyncRequest::default())
        .await
        .unwrap()
    else {
        panic!()
    };
    for cursor in [theirs, forged, tablet, "nonsense".to_owned(), "AQE".to_owned()] {
        let (page, _) = harness.page(&one, after(&cursor)).await;
        assert_eq!(page["reset_all"], json!(true), "{cursor}");
        assert_eq!(page["drops"], json!([]));
        let rows: Vec<&Value> = page["changes"].as_array().unwrap().iter().map(|c| &c["row"]).collect();
        assert_eq!(rows, [&json!({"of": 1})]);
    }
}

#[tokio::test]
async fn revoked_bucket_is_dropped() {
    let harness = harness();
    harness.commit(&[("user:1", 1, Some("{}")), ("store:7", 2, Some("{}"))]);
    let cursor = harness.synced(&user("1", &["user:1", "store:7"])).await;
    let (page, _) = harness.page(&user("1", &["user:1"]), after(&cursor)).await;
    assert_eq!(page["drops"], json!([BucketId::of("store:7").to_string()]));
    assert_eq!(page["changes"], json!([]));
    let mut without_claim = user("1", &[]);
    without_claim.claims.remove("buckets");
    let error = harness.poll(&without_claim, SyncRequest::default()).await.unwrap_err();
    assert_eq!(
        (error.status(), error.detail()),
        (StatusCode::FORBIDDEN, "no claim `buckets`")
    );
}

#[tokio::test]
async fn validator_gets_304_or_a_full_page() {
    let harness = harness();
    harness.commit(&[("user:1", 1, Some("{}"))]);
    let identity = user("1", &["user:1"]);
    let cursor = harness.synced(&identity).await;
    let request = SyncRequest {
        only_if_changed: Some(cursor.clone()),
        ..SyncRequest::default()
    };
    assert_eq!(
        harness.poll(&identity, request.clone()).await,
        Ok(SyncResponse::NotModified)
    );
    harness.commit(&[("user:1", 2, Some("{}"))]);
    let (page, _) = harness.page(&identity, request.clone()).await;
    assert_eq!(
        (&page["reset_all"], page["changes"].as_array().unwrap().len()),
        (&json!(true), 2)
    );
    let (page, _) = harness
        .page(
            &identity,
            SyncRequest {
                cursor: Some(cursor),
                ..request
            },
        )
        .await;
    assert_eq!(
        (page.get("reset_all"), page["changes"].as_array().unwrap().len()),
        (None, 1)
    );
}

#[tokio::test]
async fn staleness_wakes_no_long_poll() {
    let harness = harness();
    harness.commit(&[("user:1", 1, Some("{}"))]);
    let identity = user("1", &["user:1"]);
    let cursor = harness.synced(&identity).await;
    let wait = Duration::from_millis(60);
    let began = Instant::now();
    let poll = waiting(&cursor, wait);
    let page = harness.page(&identity, poll);
    let (page, ()) = tokio::join!(page, async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        harness.write(&[], Some(Mark::Stale(true)));
    });
    assert!(began.elapsed() >= wait, "a stale mark alone wakes no poll");
    let (page, cursor) = page;
    assert_eq!(
        (&page["stale"], &page["changes"], &page["complete"]),
        (&json!(["orders"]), &json!([]), &json!(true))
    );
    assert_eq!(
        harness.poll(&identity, after(&cursor)).await,
        Ok(SyncResponse::NotModified),
        "reported once"
    );
    harness.write(&[], Some(Mark::Stale(false)));
    let (page, cursor) = harness.page(&identity, after(&cursor)).await;
    assert_eq!((&page["stale"], &page["changes"]), (&json!([]), &json!([])));
    harness.write(&[("user:1", 2, Some("{}"))], Some(Mark::Stale(true)));
    let (page, _) = harness.page(&identity, waiting(&cursor, Duration::from_secs(9))).await;
    assert_eq!(
        (&page["stale"], page["changes"].as_array().unwrap().len()),
        (&json!(["orders"]), 1)
    );
}

#[tokio::test]
async fn long_poll_wakes_for_its_buckets_or_times_out() {
    let harness = harness();
    harness.commit(&[("user:1", 1, Some("{}"))]);
    let identity = user("1", &["user:1"]);
    let cursor = harness.synced(&identity).await;
    let (page, ()) = tokio::join!(harness.page(&identity, waiting(&cursor, 20 * SECOND)), async {
        until(|| harness.polls.context.replica.notifier().waiting() == 1).await;
        harness.commit(&[("user:2", 1, Some("{}"))]);
        harness.commit(&[("user:1", 2, Some(r#"{"new":true}"#))]);
    });
    let (page, cursor) = page;
    assert_eq!(page["changes"][0]["row"], json!({"new": true}));
    assert_eq!(page["poll_after_ms"], json!(0), "a long poll continues immediately");
    assert_eq!(harness.polls.context.replica.notifier().waiting(), 0);
    let began = Instant::now();
    let response = harness.poll(&identity, waiting(&cursor, SECOND)).await;
    assert_eq!(response, Ok(SyncResponse::NotModified));
    assert!(began.elapsed() >= SECOND);
}

/// Yields to the other futures of the test until a state is reached.
async fn until(reached: impl Fn() -> bool) {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < 10 * SECOND, "timed out");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn long_poll_ends_on_drain_and_token_expiry() {
    let harness = harness();
    let identity = user("1", &["user:1"]);
    let cursor = harness.synced(&identity).await;
    let brief = Identity {
        expires_ms: NOW + 300,
        ..identity.clone()
    };
    let began = Instant::now();
    assert_eq!(
        harness.poll(&brief, waiting(&cursor, 20 * SECOND)).await,
        Ok(SyncResponse::NotModified)
    );
    assert!(began.elapsed() < 10 * SECOND);
    let (response, ()) = tokio::join!(harness.poll(&identity, waiting(&cursor, 20 * SECOND)), async {
        until(|| harness.polls.context.replica.notifier().waiting() == 1).await;
        harness.drain.start();
    });
    assert_eq!(response, Ok(SyncResponse::NotModified));
    assert_eq!(
        harness.poll(&identity, waiting(&cursor, 20 * SECOND)).await,
        Ok(SyncResponse::NotModified)
    );
    assert!(began.elapsed() < 10 * SECOND);
}

#[tokio::test]
async fn replica_behind_the_cursor_answers_503_after_a_wait() {
    let (ahead, behind) = (harness(), harness());
    let identity = user("1", &["user:1"]);
    for harness in [&ahead, &behind] {
        harness.commit(&[("user:1", 1, Some("{}"))]);
    }
    ahead.commit(&[("user:1", 2, Some("{}"))]);
    let cursor = ahead.synced(&identity).await;
    let began = Instant::now();
    let error = behind.poll(&identity, after(&cursor)).await.unwrap_err();
    assert_eq!(
        (error.status(), error.code),
        (StatusCode::SERVICE_UNAVAILABLE, "view-behind")
    );
    assert!(began.elapsed() >= SECOND);
    let (response, ()) = tokio::join!(behind.poll(&identity, after(&cursor)), async {
        tokio::task::yield_now().await;
        behind.commit(&[("user:1", 2, Some("{}"))]);
    });
    assert_eq!(response, Ok(SyncResponse::NotModified));
}

#[tokio::test]
async fn incomplete_or_unproven_replica_answers_503() {
    let harness = harness();
    harness.commit(&[("user:1", 1, Some("{}"))]);
    let identity = user("1", &["user:1"]);
    let cursor = harness.synced(&identity).await;
    harness.clock.advance(30_001);
    for request in [SyncRequest::default(), after(&cursor), waiting(&cursor, 20 * SECOND)] {
        let error = harness.poll(&identity, request).await.unwrap_err();
        assert_eq!(
            (error.status(), error.code),
            (StatusCode::SERVICE_UNAVAILABLE, "view-unproven")
        );
    }
    assert!(
        harness
            .polls
            .context
            .replica
            .issue(NOW + 30_001)
            .unwrap()
            .cause
            .contains("30001 ms")
    );
    harness.at_end();
    assert_eq!(
        harness.poll(&identity, after(&cursor)).await,
        Ok(SyncResponse::NotModified)
    );
    let fresh = replica(NOW);
    harness.polls.context.replica.publish(fresh);
    let error = harness.poll(&identity, after(&cursor)).await.unwrap_err();
    assert_eq!(error.code, "view-incomplete");
    harness.polls.context.replica.withdraw();
    let error = harness.poll(&identity, after(&cursor)).await.unwrap_err();
    assert_eq!(
        (error.status(), error.code),
        (StatusCode::SERVICE_UNAVAILABLE, "view-incomplete")
    );
}
