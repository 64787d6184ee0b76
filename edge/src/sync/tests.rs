//! Polls against a real replica over a store in memory: pages, cursors, waiting, refusing.

use super::*;
use event_log::{Header, RecordBatch, TimestampType, TopicPartition};
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

/// The claim `buckets` lists what may be read.
struct Listed;

impl Memberships for Listed {
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

    fn rules(&self) -> u64 {
        7
    }

    fn partitions(&self) -> i32 {
        1
    }
}

struct World {
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
        held_bytes_max: 1 << 20,
        flush_bytes: FLUSH_BYTES,
        now,
    };
    Arc::new(Replica::open(store, options).unwrap())
}

fn world() -> World {
    let clock = Manual::at(NOW);
    let (shelf, replica, drain) = (Arc::new(ReplicaHandle::default()), replica(NOW), Drain::new());
    shelf.put(replica.clone());
    let keyring = Keyring::new(&[Key { id: 1, secret: [1; 32] }]).unwrap();
    let polls = Polls::new(
        shelf,
        Arc::new(Listed),
        keyring,
        Limits::default(),
        clock.shared(),
        drain.clone(),
    );
    let world = World {
        polls: Arc::new(polls),
        replica,
        clock,
        drain,
        next: Mutex::new(0),
    };
    world.at_end();
    world
}

type RowChange<'a> = (&'a str, u32, Option<&'a str>);

impl World {
    fn at_end(&self) {
        let end = *self.next.lock().unwrap();
        self.replica.at_end(0, end, end, self.clock.shared().now_ms()).unwrap();
    }

    /// Appends a source transaction, applies it, and wakes as the follower does.
    fn commit(&self, rows: &[RowChange<'_>]) {
        self.write(rows, None);
    }

    /// A transaction that may say, beside its rows, whether the view is stale.
    fn write(&self, rows: &[RowChange<'_>], stale: Option<bool>) {
        let mut next = self.next.lock().unwrap();
        let mut batch = RecordBatch::default();
        let at = batch.intern(&TopicPartition::new("view.log", 0));
        let mut writer = Writer::new(
            "p/t/0/0",
            SchemaIds {
                row: 1,
                closing: 2,
                open: 3,
                stale: 4,
            },
        );
        let now = self.clock.shared().now_ms();
        for (bucket, key, json) in rows {
            let mut version = [1; 17];
            version[9..].copy_from_slice(&next.to_be_bytes());
            let (key, value) = writer.row(bucket, "orders", &key.to_string(), json.map(str::as_bytes));
            let headers: [Header<'_>; 2] = [(WRITER, Some(b"p/t/0/0")), (VERSION, Some(&version))];
            batch.push(at, *next, now, TimestampType::LogAppend, Some(key), value, headers);
            *next += 1;
        }
        if let Some(stale) = stale {
            let (key, value) = writer.stale_mark("orders", stale);
            let headers: [Header<'_>; 1] = [(WRITER, Some(b"p/t/0/0"))];
            batch.push(at, *next, now, TimestampType::LogAppend, Some(key), value, headers);
            *next += 1;
        }
        let (key, value) = writer.closing(Version::default(), now);
        batch.push(at, *next, now, TimestampType::LogAppend, Some(key), value, []);
        *next += 1;
        let applied = self.replica.apply(0, batch.iter(), now).unwrap();
        self.polls.shelf.wakes().wake(&applied.buckets);
        self.polls.shelf.wakes().moved();
    }

    async fn poll(&self, who: &Identity, ask: SyncRequest) -> Result<SyncResponse, ApiError> {
        self.polls.poll(who, &DeviceId::new("phone").unwrap(), &ask).await
    }

    async fn page(&self, who: &Identity, ask: SyncRequest) -> (Value, String) {
        match self.poll(who, ask).await.unwrap() {
            SyncResponse::Page { json, cursor } => (serde_json::from_slice(&json).unwrap(), cursor),
            SyncResponse::NotModified => panic!("a page was expected"),
        }
    }

    /// Polls until complete and returns the cursor.
    async fn synced(&self, who: &Identity) -> String {
        let (page, cursor) = self.page(who, SyncRequest::default()).await;
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
async fn a_page_is_the_documented_json_with_the_rows_bytes_in_it() {
    let world = world();
    let row = r#"{"id":1,"total":"12.50","note":"a \"b\" é"}"#;
    world.commit(&[
        ("user:1", 1, Some(row)),
        ("user:1", 2, Some("{}")),
        ("user:2", 3, Some("{}")),
    ]);
    world.commit(&[("user:1", 2, None)]);
    let who = user("1", &["user:1"]);
    let SyncResponse::Page { json, cursor } = world.poll(&who, SyncRequest::default()).await.unwrap() else {
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
    world.commit(&[("user:1", 1, None)]);
    let (page, _) = world.page(&who, after(&cursor)).await;
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
async fn nothing_new_is_said_only_to_a_cursor_that_was_given_with_complete() {
    let world = world();
    let rows: Vec<RowChange<'_>> = (0..5).map(|key| ("user:1", key, Some("{}"))).collect();
    world.commit(&rows);
    let who = user("1", &["user:1"]);
    let mut ask = SyncRequest {
        limit: Some(2),
        ..SyncRequest::default()
    };
    let mut pages = Vec::new();
    loop {
        match world.poll(&who, ask.clone()).await.unwrap() {
            SyncResponse::NotModified => break,
            SyncResponse::Page { json, cursor } => {
                let page: Value = serde_json::from_slice(&json).unwrap();
                pages.push((
                    page["changes"].as_array().unwrap().len(),
                    page["complete"] == json!(true),
                ));
                assert_eq!(page["poll_after_ms"] == json!(0), page["complete"] == json!(false));
                ask.cursor = Some(cursor);
            }
        }
    }
    // A reset counts as a change; the round of three pages is followed by an empty, complete one.
    assert_eq!(pages, [(1, false), (2, false), (2, false), (0, true)]);
    let greedy = SyncRequest {
        limit: Some(1_000_000),
        ..SyncRequest::default()
    };
    assert_eq!(world.page(&who, greedy).await.0["changes"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn a_forged_or_foreign_cursor_resets_all_and_leaks_nothing() {
    let world = world();
    world.commit(&[("user:1", 1, Some(r#"{"of":1}"#)), ("user:2", 2, Some(r#"{"of":2}"#))]);
    let (one, two) = (user("1", &["user:1"]), user("2", &["user:2"]));
    let theirs = world.synced(&two).await;
    let foreign = Keyring::new(&[Key { id: 1, secret: [9; 32] }]).unwrap();
    let forged = foreign.seal(&world.polls.keyring.open(&theirs).unwrap());
    let SyncResponse::Page { cursor: tablet, .. } = world
        .polls
        .poll(&one, &DeviceId::new("tablet").unwrap(), &SyncRequest::default())
        .await
        .unwrap()
    else {
        panic!()
    };
    for cursor in [theirs, forged, tablet, "nonsense".to_owned(), "AQE".to_owned()] {
        let (page, _) = world.page(&one, after(&cursor)).await;
        assert_eq!(page["reset_all"], json!(true), "{cursor}");
        assert_eq!(page["drops"], json!([]));
        let rows: Vec<&Value> = page["changes"].as_array().unwrap().iter().map(|c| &c["row"]).collect();
        assert_eq!(rows, [&json!({"of": 1})]);
    }
}

#[tokio::test]
async fn a_revoked_bucket_is_dropped_and_claims_that_open_nothing_are_refused() {
    let world = world();
    world.commit(&[("user:1", 1, Some("{}")), ("store:7", 2, Some("{}"))]);
    let cursor = world.synced(&user("1", &["user:1", "store:7"])).await;
    let (page, _) = world.page(&user("1", &["user:1"]), after(&cursor)).await;
    assert_eq!(page["drops"], json!([BucketId::of("store:7").to_string()]));
    assert_eq!(page["changes"], json!([]));
    let mut nobody = user("1", &[]);
    nobody.claims.remove("buckets");
    let refused = world.poll(&nobody, SyncRequest::default()).await.unwrap_err();
    assert_eq!(
        (refused.status(), refused.detail()),
        (StatusCode::FORBIDDEN, "no claim `buckets`")
    );
}

#[tokio::test]
async fn a_validator_is_answered_when_it_is_current_and_else_with_everything() {
    let world = world();
    world.commit(&[("user:1", 1, Some("{}"))]);
    let who = user("1", &["user:1"]);
    let cursor = world.synced(&who).await;
    let ask = SyncRequest {
        only_if_changed: Some(cursor.clone()),
        ..SyncRequest::default()
    };
    assert_eq!(world.poll(&who, ask.clone()).await, Ok(SyncResponse::NotModified));
    world.commit(&[("user:1", 2, Some("{}"))]);
    let (page, _) = world.page(&who, ask.clone()).await;
    assert_eq!(
        (&page["reset_all"], page["changes"].as_array().unwrap().len()),
        (&json!(true), 2)
    );
    let (page, _) = world
        .page(
            &who,
            SyncRequest {
                cursor: Some(cursor),
                ..ask
            },
        )
        .await;
    assert_eq!(
        (page.get("reset_all"), page["changes"].as_array().unwrap().len()),
        (None, 1)
    );
}

#[tokio::test]
async fn that_a_view_is_stale_wakes_nobody_and_is_told_with_the_next_answer() {
    let world = world();
    world.commit(&[("user:1", 1, Some("{}"))]);
    let who = user("1", &["user:1"]);
    let cursor = world.synced(&who).await;
    let wait = Duration::from_millis(60);
    let asked = Instant::now();
    let poll = waiting(&cursor, wait);
    let told = world.page(&who, poll);
    let (told, ()) = tokio::join!(told, async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        world.write(&[], Some(true));
    });
    assert!(asked.elapsed() >= wait, "nobody is woken by it alone");
    let (page, cursor) = told;
    assert_eq!(
        (&page["stale"], &page["changes"], &page["complete"]),
        (&json!(["orders"]), &json!([]), &json!(true))
    );
    assert_eq!(
        world.poll(&who, after(&cursor)).await,
        Ok(SyncResponse::NotModified),
        "told once"
    );
    world.write(&[], Some(false));
    let (page, cursor) = world.page(&who, after(&cursor)).await;
    assert_eq!((&page["stale"], &page["changes"]), (&json!([]), &json!([])));
    world.write(&[("user:1", 2, Some("{}"))], Some(true));
    let (page, _) = world.page(&who, waiting(&cursor, Duration::from_secs(9))).await;
    assert_eq!(
        (&page["stale"], page["changes"].as_array().unwrap().len()),
        (&json!(["orders"]), 1)
    );
}

#[tokio::test]
async fn a_long_poll_wakes_for_its_own_buckets_and_ends_with_its_time() {
    let world = world();
    world.commit(&[("user:1", 1, Some("{}"))]);
    let who = user("1", &["user:1"]);
    let cursor = world.synced(&who).await;
    let (page, ()) = tokio::join!(world.page(&who, waiting(&cursor, 20 * SECOND)), async {
        until(|| world.polls.shelf.wakes().waiting() == 1).await;
        world.commit(&[("user:2", 1, Some("{}"))]);
        world.commit(&[("user:1", 2, Some(r#"{"new":true}"#))]);
    });
    let (page, cursor) = page;
    assert_eq!(page["changes"][0]["row"], json!({"new": true}));
    assert_eq!(page["poll_after_ms"], json!(0), "a long poll asks again at once");
    assert_eq!(world.polls.shelf.wakes().waiting(), 0);
    let began = Instant::now();
    let reply = world.poll(&who, waiting(&cursor, SECOND)).await;
    assert_eq!(reply, Ok(SyncResponse::NotModified));
    assert!(began.elapsed() >= SECOND);
}

/// Yields until a state is reached; other futures of the test's task go on meanwhile.
async fn until(reached: impl Fn() -> bool) {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < 10 * SECOND, "waited in vain");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_long_poll_ends_when_the_process_drains_and_when_its_token_does() {
    let world = world();
    let who = user("1", &["user:1"]);
    let cursor = world.synced(&who).await;
    let brief = Identity {
        expires_ms: NOW + 300,
        ..who.clone()
    };
    let began = Instant::now();
    assert_eq!(
        world.poll(&brief, waiting(&cursor, 20 * SECOND)).await,
        Ok(SyncResponse::NotModified)
    );
    assert!(began.elapsed() < 10 * SECOND);
    let (reply, ()) = tokio::join!(world.poll(&who, waiting(&cursor, 20 * SECOND)), async {
        until(|| world.polls.shelf.wakes().waiting() == 1).await;
        world.drain.start();
    });
    assert_eq!(reply, Ok(SyncResponse::NotModified));
    assert_eq!(
        world.poll(&who, waiting(&cursor, 20 * SECOND)).await,
        Ok(SyncResponse::NotModified)
    );
    assert!(began.elapsed() < 10 * SECOND);
}

#[tokio::test]
async fn a_replica_behind_the_cursor_is_waited_for_and_then_refuses() {
    let (ahead, behind) = (world(), world());
    let who = user("1", &["user:1"]);
    for world in [&ahead, &behind] {
        world.commit(&[("user:1", 1, Some("{}"))]);
    }
    ahead.commit(&[("user:1", 2, Some("{}"))]);
    let cursor = ahead.synced(&who).await;
    let began = Instant::now();
    let refused = behind.poll(&who, after(&cursor)).await.unwrap_err();
    assert_eq!(
        (refused.status(), refused.code),
        (StatusCode::SERVICE_UNAVAILABLE, "view-behind")
    );
    assert!(began.elapsed() >= SECOND);
    let (reply, ()) = tokio::join!(behind.poll(&who, after(&cursor)), async {
        tokio::task::yield_now().await;
        behind.commit(&[("user:1", 2, Some("{}"))]);
    });
    assert_eq!(reply, Ok(SyncResponse::NotModified));
}

#[tokio::test]
async fn what_is_not_complete_or_not_proven_current_is_not_shown() {
    let world = world();
    world.commit(&[("user:1", 1, Some("{}"))]);
    let who = user("1", &["user:1"]);
    let cursor = world.synced(&who).await;
    world.clock.advance(30_001);
    for ask in [SyncRequest::default(), after(&cursor), waiting(&cursor, 20 * SECOND)] {
        let refused = world.poll(&who, ask).await.unwrap_err();
        assert_eq!(
            (refused.status(), refused.code),
            (StatusCode::SERVICE_UNAVAILABLE, "view-unproven")
        );
    }
    assert!(
        world
            .polls
            .shelf
            .trouble(NOW + 30_001)
            .unwrap()
            .cause
            .contains("30001 ms")
    );
    world.at_end();
    assert_eq!(world.poll(&who, after(&cursor)).await, Ok(SyncResponse::NotModified));
    let fresh = replica(NOW);
    world.polls.shelf.put(fresh);
    let refused = world.poll(&who, after(&cursor)).await.unwrap_err();
    assert_eq!(refused.code, "view-incomplete");
    world.polls.shelf.take();
    let refused = world.poll(&who, after(&cursor)).await.unwrap_err();
    assert_eq!(
        (refused.status(), refused.code),
        (StatusCode::SERVICE_UNAVAILABLE, "view-incomplete")
    );
}
