//! The ingest listener: idempotency keys in a process that is killed between requests, and deleted rows of events.

use crate::support::{Dev, Phone, wait_for};
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

struct Backend {
    dev: Dev,
    data: PathBuf,
    client: reqwest::blocking::Client,
    _dir: tempfile::TempDir,
}

/// Response to a post.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    replayed: bool,
    body: Value,
}

impl Backend {
    fn start() -> Backend {
        let sample = format!("{}/../topology/samples/streams.toml", env!("CARGO_MANIFEST_DIR"));
        Self::with(&std::fs::read_to_string(sample).unwrap())
    }

    fn with(topology: &str) -> Backend {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let file = dir.path().join("topology.toml");
        std::fs::write(&file, topology).unwrap();
        let dev = Dev::start(&data, &["--topology", &file.display().to_string()]);
        Backend {
            dev,
            data,
            client: reqwest::blocking::Client::new(),
            _dir: dir,
        }
    }

    /// Posts a body. Retries while the source is not running. Sends one `Idempotency-Key` header for each key.
    fn post(&self, topic: &str, keys: &[&[u8]], body: &str) -> Answer {
        let token = std::fs::read_to_string(self.data.join("ingest.token")).unwrap();
        let url = format!("{}/v1/ingest/{topic}", self.dev.url("ingest"));
        let mut headers = HeaderMap::new();
        for key in keys {
            headers.append("idempotency-key", HeaderValue::from_bytes(key).unwrap());
        }
        wait_for("a response other than 503", LIMIT, || {
            let request = self.client.post(&url).bearer_auth(token.trim());
            let answer = request.headers(headers.clone()).body(body.to_owned()).send().ok()?;
            (answer.status() != 503).then(|| Answer {
                status: answer.status().as_u16(),
                replayed: answer.headers().contains_key("idempotent-replayed"),
                body: answer.json().unwrap(),
            })
        })
    }

    fn kill(&mut self) {
        self.dev.kill();
        self.dev.restart();
    }
}

fn customer(id: i64) -> String {
    json!({"changes": [{"table": "customers", "op": "put", "row": {"id": id, "name": "Ada"}}]}).to_string()
}

#[test]
fn idempotency_key_keeps_its_body_after_sigkill() {
    let mut backend = Backend::start();
    let first = backend.post("change.shop", &[b"key-1"], &customer(1));
    assert_eq!((first.status, first.replayed), (200, false), "{first:?}");
    assert_eq!(first.body["stored"], 1);
    for _ in 0..2 {
        // The quoted form (RFC 8941 string) denotes the same key.
        for key in [&b"key-1"[..], b"\"key-1\""] {
            let again = backend.post("change.shop", &[key], &customer(1));
            assert_eq!((again.status, again.replayed), (200, true), "{again:?}");
            assert_eq!(again.body, first.body, "the original response is replayed");
            let other = backend.post("change.shop", &[key], &customer(2));
            assert_eq!(other.status, 422, "{other:?}");
            assert_eq!(other.body["type"], "/problems/idempotency-key-reused");
        }
        backend.kill();
    }
    assert_eq!(backend.dev.records("streams.change.shop").len(), 1);
    assert_eq!(backend.post("change.shop", &[b"key-2"], &customer(2)).status, 200);
    assert_eq!(backend.dev.records("streams.change.shop").len(), 2);
}

#[test]
fn invalid_idempotency_key_is_rejected_unstored() {
    let backend = Backend::start();
    let event = json!({"order_id": 1, "customer_id": 1, "screen": null}).to_string();
    let long = [b'k'; 256];
    let cases: [&[&[u8]]; 7] = [
        &[b""],
        &[b"\"\""],
        &["schlüssel".as_bytes()],
        &[b"two words"],
        &[b"\"open"],
        &[&long],
        &[b"a", b"a"],
    ];
    for (topic, body) in [("change.shop", customer(1)), ("event.order_viewed", event.clone())] {
        for keys in cases {
            let rejected = backend.post(topic, keys, &body);
            assert_eq!(rejected.status, 400, "{topic} {keys:?}: {rejected:?}");
            assert_eq!(rejected.body["type"], "/problems/idempotency-key");
            let detail = rejected.body["detail"].as_str().unwrap();
            assert!(
                detail.contains("Idempotency-Key") && detail.contains("1 to 255"),
                "{detail}"
            );
        }
    }
    assert_eq!(backend.post("change.shop", &[], &customer(1)).status, 200);
    assert_eq!(backend.post("event.order_viewed", &[b"\"view-1\""], &event).status, 200);
    assert_eq!(
        backend
            .post("event.order_viewed", &[b"view-2"], &format!("[{event}]"))
            .status,
        200
    );
    assert_eq!(backend.dev.records("streams.change.shop").len(), 1);
    let events = backend.dev.records("streams.event.order_viewed");
    let mut keys: Vec<&Value> = events.iter().map(|event| &event["headers"][0][1]).collect();
    keys.sort_by_key(|key| key.to_string());
    assert_eq!(keys, ["view-1", "view-2/0"]);
}

#[test]
fn concurrent_posts_with_one_key_store_one_record() {
    let backend = Backend::start();
    backend.post("change.shop", &[b"warm-up"], &customer(9));
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let post = || backend.post("change.shop", &[b"key"], &customer(1));
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(post)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|a| a.status == 200), "{answers:?}");
    assert_eq!(answers.iter().filter(|a| !a.replayed).count(), 1, "{answers:?}");
    assert_eq!(backend.dev.records("streams.change.shop").len(), 2);
}

#[test]
fn event_with_a_key_is_stored_once_after_sigkill() {
    let mut backend = Backend::start();
    let event = |order: i64| json!({"order_id": order, "customer_id": 1, "screen": "s"});
    let two = json!([event(1), event(2)]).to_string();
    let first = backend.post("event.order_viewed", &[b"key"], &two);
    assert_eq!((first.status, first.replayed), (200, false), "{first:?}");
    assert_eq!(first.body["stored"], 2);
    for _ in 0..2 {
        let again = backend.post("event.order_viewed", &[b"\"key\""], &two);
        assert_eq!((again.status, again.replayed), (200, true), "{again:?}");
        assert_eq!(again.body, first.body);
        let other = backend.post("event.order_viewed", &[b"key"], &event(3).to_string());
        assert_eq!(
            (other.status, &other.body["type"]),
            (422, &json!("/problems/idempotency-key-reused"))
        );
        backend.kill();
    }
    // Keys are scoped by topic, and deletions have their own.
    assert!(!backend.post("change.shop", &[b"key"], &customer(1)).replayed);
    let deleted = backend.post("event.order_viewed/deletions", &[b"key"], &two);
    assert_eq!((deleted.status, deleted.replayed), (200, false), "{deleted:?}");
    let stored = backend.dev.records("streams.event.order_viewed");
    assert_eq!(stored.len(), 4, "{stored:?}");
}

const NOTES: &str = r#"
name = "notes"

[[event]]
name = "noted"
fields = { id = "int8", doc = "jsonb?" }
key = ["id"]
partitions = 2

[[bucket]]
name = "all"

[[view]]
name = "noted"
from = "event:noted"
bucket = "all"

[[membership]]
bucket = "all"

[[node]]
name = "one"
runs = ["ingest", "processor:sync-views", "edge"]
"#;

#[test]
fn deleted_event_rows_disappear_from_devices() {
    let backend = Backend::with(NOTES);
    let doc = r#"{"z":1.10,"a":[12345678901234567890123]}"#;
    let events = format!(r#"[{{"id":1,"doc":{doc}}},{{"id":2}}]"#);
    assert_eq!(backend.post("event.noted", &[], &events).status, 200);
    let token = backend.dev.token("1", &[]);
    let mut phone = Phone::new("phone", &token);
    let edge = backend.dev.url("edge");
    let mut rows = |count: usize| {
        wait_for("the rows of the device", LIMIT, || {
            phone.poll(&edge, 1);
            (phone.view("noted").count() == count).then_some(())
        });
    };
    rows(2);
    // The text of a jsonb column reaches devices as it was posted.
    let request = backend.client.get(format!("{edge}/v1/sync")).bearer_auth(&token);
    let page = request
        .header("trunkline-device", "raw")
        .send()
        .unwrap()
        .text()
        .unwrap();
    assert!(page.contains(doc), "{page}");
    let deleted = backend.post("event.noted/deletions", &[b"erase-1"], r#"{"id":1}"#);
    assert_eq!(
        (deleted.status, &deleted.body["stored"]),
        (200, &json!(1)),
        "{deleted:?}"
    );
    rows(1);
    // Records and requests are counted by credential.
    let admin = backend.dev.url("admin");
    let metrics = backend
        .client
        .get(format!("{admin}/metrics"))
        .send()
        .unwrap()
        .text()
        .unwrap();
    let has = |name: &str, labels: &[&str], value: &str| {
        let mut lines = metrics
            .lines()
            .filter(|line| line.starts_with(name) && line.ends_with(value));
        assert!(
            lines.any(|line| labels.iter().all(|label| line.contains(label))),
            "{name} {labels:?}: {metrics}"
        );
    };
    let credential = "credential=\"dev\"";
    has(
        "trunkline_ingest_records_total",
        &[credential, "topic=\"event.noted\""],
        "} 3",
    );
    let route = "route=\"/v1/ingest/{topic}/deletions\"";
    has(
        "trunkline_listener_requests_total",
        &[credential, route, "status=\"200\""],
        "} 1",
    );
    for listener in ["ingest", "admin"] {
        let url = format!("{}/openapi.json", backend.dev.url(listener));
        let document: Value = backend.client.get(url).send().unwrap().json().unwrap();
        assert_eq!(document["openapi"], "3.1.0", "{listener}");
    }
}

const STOCK: &str = r#"
name = "stock"

[[connector]]
name = "shop"
kind = "http"

[[table]]
source = "shop"
name = "items"
key = ["id"]
columns = { id = "int8" }

[[bucket]]
name = "all"

[[view]]
name = "items"
from = "shop.items"
bucket = "all"

[[membership]]
bucket = "all"

[[node]]
name = "one"
runs = ["ingest", "connector:shop", "processor:sync-views", "edge"]
"#;

#[test]
fn truncated_table_has_only_the_rows_that_follow() {
    let backend = Backend::with(STOCK);
    let put = |id: i64| json!({ "table": "items", "op": "put", "row": { "id": id } });
    let post = |changes: &[Value]| backend.post("change.shop", &[], &json!({ "changes": changes }).to_string());
    assert_eq!(post(&[put(1), put(2), put(3)]).status, 200);
    let mut phone = Phone::new("phone", &backend.dev.token("1", &[]));
    let edge = backend.dev.url("edge");
    let mut rows = |count: usize| {
        wait_for("the rows of the device", LIMIT, || {
            phone.poll(&edge, 1);
            (phone.view("items").count() == count).then_some(())
        });
    };
    rows(3);
    let truncate = json!({ "table": "items", "op": "truncate" });
    for more in [json!({ "row": { "id": 1 } }), json!({ "key": { "id": 1 } })] {
        let mut wrong = truncate.clone();
        wrong.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let rejected = post(&[wrong]);
        assert_eq!(
            (rejected.status, &rejected.body["type"]),
            (400, &json!("/problems/schema"))
        );
    }
    assert_eq!(post(&[truncate, put(4)]).status, 200);
    rows(1);
}
