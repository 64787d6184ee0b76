//! Tests of the routes over an embedded log.

use super::endpoints::{DELETIONS, PATH};
use super::*;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use event_log::embedded::{Config as LogConfig, EmbeddedLog};
use event_log::{Isolation, RecordBatch, SharedEventLog, StartFrom, TopicConfig, TopicPartition, TopicSpec};
use schemas::codec::UnknownFields;
use schemas::ids::SchemaId;
use schemas::schema::Schema;
use serde_json::Value;
use service::{Secret, Tasks};
use std::collections::BTreeMap;
use std::time::Duration;
use tower::ServiceExt as _;

const TOPIC: &str = "shop.event.viewed";

struct Harness {
    log: SharedEventLog,
    router: Router,
}

impl Harness {
    fn new(unknown_fields: UnknownFields) -> Harness {
        Self::with_rate(unknown_fields, None)
    }

    fn with_rate(unknown_fields: UnknownFields, rate: Option<Rate>) -> Harness {
        let mut config = LogConfig::new(None, Arc::new(|| 1_732_390_000_000));
        config.clean_every = None;
        let log = EmbeddedLog::open(config).unwrap();
        log.create_topics(&[TopicSpec {
            name: TOPIC.to_owned(),
            partitions: 1,
            replication: None,
            config: TopicConfig::new(event_log::Cleanup::Delete),
        }])
        .unwrap();
        let fields = r#"{"name":"id","type":"int"},{"name":"note","type":["null","string"],"default":null}"#;
        let schema = format!(r#"{{"type":"record","name":"viewed","fields":[{fields}]}}"#);
        let event = EventTopic {
            name: "event.viewed".to_owned(),
            topic: TOPIC.into(),
            schema: Arc::new(Schema::parse(&schema).unwrap()),
            id: SchemaId(1),
            key: vec![0],
            record_bytes_max: 1_000,
        };
        let topics = vec!["event.viewed".to_owned(), "event.other".to_owned()];
        let credential = Credential {
            rate,
            ..Credential::with_token("till", Secret::new("secret"), topics)
        };
        let mut config = Config::on("127.0.0.1:0".parse().unwrap(), vec![credential]);
        config.unknown_fields = unknown_fields;
        config.body_bytes_max = 4_000;
        let ingest = Ingest {
            appender: Appender::start(&Tasks::new(), log.clone()),
            events: vec![event],
            keyed_events: None,
            sources: BTreeMap::new(),
            credentials: config.load_credentials().unwrap(),
            config,
        };
        let router = ingest.router();
        Harness { log, router }
    }

    async fn send(&self, request: Request<Body>) -> (StatusCode, Value) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn post(&self, path: &str, content_type: &str, body: &str) -> (StatusCode, Value) {
        let request = Request::post(format!("/v1/ingest/{path}"))
            .header("authorization", "bearer secret")
            .header("content-type", content_type);
        self.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    async fn json(&self, path: &str, body: &str) -> (StatusCode, Value) {
        self.post(path, "application/json", body).await
    }

    /// Keys of the stored records, and whether each is a tombstone.
    fn stored(&self) -> Vec<(String, bool)> {
        let mut reader = self.log.reader(Isolation::ReadCommitted).unwrap();
        reader
            .assign(&[(TopicPartition::new(TOPIC, 0), StartFrom::Earliest)])
            .unwrap();
        let mut batch = RecordBatch::default();
        reader.poll(&mut batch, 1 << 20, Duration::from_millis(10)).unwrap();
        let key = |key: &[u8]| String::from_utf8(key.to_vec()).unwrap();
        batch
            .iter()
            .map(|record| (key(record.key().unwrap()), record.value().is_none()))
            .collect()
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(test)
}

#[test]
fn all_mismatches_of_a_batch_are_reported() {
    run(async {
        let shop = Harness::new(UnknownFields::Reject);
        let (status, body) = shop
            .json(
                "event.viewed",
                r#"[{"id":1},{"id":"x"},{"note":"n"},{"id":2,"more":1}]"#,
            )
            .await;
        assert_eq!(status, 400);
        assert_eq!(body["path"], "$[1].id");
        let paths: Vec<&Value> = body["errors"].as_array().unwrap().iter().map(|e| &e["path"]).collect();
        assert_eq!(paths, ["$[1].id", "$[2].id", "$[3].more"]);
        assert!(body["detail"].as_str().unwrap().contains("2 more"), "{body}");
        assert_eq!(shop.stored(), []);
    });
}

#[test]
fn partial_batch_has_a_status_per_item() {
    run(async {
        let shop = Harness::new(UnknownFields::Reject);
        let body = r#"[{"id":1},{"id":"x"},{"id":3}]"#;
        let (status, body) = shop.json("event.viewed?partial=true", body).await;
        assert_eq!(status, 207);
        assert_eq!(body["stored"], 2);
        let statuses: Vec<&Value> = body["items"].as_array().unwrap().iter().map(|i| &i["status"]).collect();
        assert_eq!(statuses, [200, 400, 200]);
        assert_eq!(body["items"][1]["path"], "$[1].id");
        assert_eq!(body["items"][1]["type"], "/problems/schema");
        let (status, _) = shop.json("event.viewed?partial=true", r#"{"id":4}"#).await;
        assert_eq!(status, 200);
        let keys = ["[1]", "[3]", "[4]"].map(|key| (key.to_owned(), false));
        assert_eq!(shop.stored(), keys);
        let (status, _) = shop.json("event.viewed?partly=true", r#"{"id":4}"#).await;
        assert_eq!(status, 400);
    });
}

#[test]
fn event_rows_are_deleted_by_key() {
    run(async {
        let shop = Harness::new(UnknownFields::Reject);
        assert_eq!(shop.json("event.viewed", r#"{"id":1}"#).await.0, 200);
        let (status, body) = shop.json("event.viewed/deletions", r#"[{"id":1},{"id":2}]"#).await;
        assert_eq!((status, &body["stored"]), (StatusCode::OK, &json!(2)));
        let expected = [("[1]", false), ("[1]", true), ("[2]", true)];
        assert_eq!(shop.stored(), expected.map(|(key, deleted)| (key.to_owned(), deleted)));
        for (body, path) in [(r#"{"note":"n"}"#, "$.id"), ("[1]", "$[0]"), (r#"{"id":null}"#, "$.id")] {
            let (status, problem) = shop.json("event.viewed/deletions", body).await;
            assert_eq!(
                (status, &problem["path"]),
                (StatusCode::BAD_REQUEST, &json!(path)),
                "{body}"
            );
        }
    });
}

#[test]
fn unknown_fields_are_ignored_if_configured() {
    run(async {
        let body = r#"{"id":1,"later":{"a":1}}"#;
        assert_eq!(
            Harness::new(UnknownFields::Reject).json("event.viewed", body).await.0,
            400
        );
        let shop = Harness::new(UnknownFields::Ignore);
        assert_eq!(shop.json("event.viewed", body).await.0, 200);
        assert_eq!(shop.stored().len(), 1);
    });
}

#[test]
fn json_lines_are_a_batch() {
    run(async {
        let shop = Harness::new(UnknownFields::Reject);
        let lines = "{\"id\":1}\n{\"id\":2}\n\n";
        let (status, body) = shop
            .post("event.viewed", "application/x-ndjson; charset=utf-8", lines)
            .await;
        assert_eq!((status, &body["stored"]), (StatusCode::OK, &json!(2)));
        let (status, body) = shop
            .post("event.viewed", "application/jsonl", "{\"id\":3}\n{\"id\":")
            .await;
        assert_eq!(
            (status, &body["type"]),
            (StatusCode::BAD_REQUEST, &json!("/problems/json"))
        );
        assert_eq!(shop.stored().len(), 2);
    });
}

#[test]
fn statuses_of_rejections_are_documented() {
    run(async {
        let shop = Harness::new(UnknownFields::Reject);
        let large = format!(r#"{{"id":1,"note":"{}"}}"#, "n".repeat(900));
        let huge = "x".repeat(5_000);
        for (path, body, status, code) in [
            ("event.viewed", "{", 400, "json"),
            ("event.viewed", r#"{"id":true}"#, 400, "schema"),
            ("event.viewed", large.as_str(), 413, "event-too-large"),
            ("event.viewed", huge.as_str(), 413, "body-too-large"),
            ("event.secret", "{}", 403, "forbidden"),
            ("event.other", "{}", 404, "unknown-topic"),
        ] {
            for suffix in ["", "/deletions"] {
                if !suffix.is_empty() && code.starts_with("event-") {
                    continue;
                }
                let (found, problem) = shop.json(&format!("{path}{suffix}"), body).await;
                assert_eq!(
                    (found.as_u16(), &problem["type"]),
                    (status, &json!(format!("/problems/{code}"))),
                    "{path}"
                );
                let endpoint = if suffix.is_empty() { POST } else { DELETE };
                assert!(endpoint.statuses().any(|documented| documented == status), "{status}");
            }
        }
        let anonymous = Request::post("/v1/ingest/event.viewed").body(Body::empty()).unwrap();
        assert_eq!(shop.send(anonymous).await.0, 401);
        let unknown = Request::get("/v1/nothing").body(Body::empty()).unwrap();
        assert_eq!(shop.send(unknown).await.1["type"], "/problems/not-found");
        for path in ["/v1/ingest/event.viewed", "/openapi.json"] {
            let put = Request::put(path).body(Body::empty()).unwrap();
            assert_eq!(shop.send(put).await.1["type"], "/problems/method-not-allowed", "{path}");
        }
    });
}

#[test]
fn requests_beyond_the_rate_are_answered_with_429() {
    run(async {
        let rate = serde_json::from_value(json!({ "requests_per_s": 1, "burst": 2 })).unwrap();
        let shop = Harness::with_rate(UnknownFields::Reject, Some(rate));
        tokio::time::pause();
        for id in [1, 2] {
            assert_eq!(shop.json("event.viewed", &format!(r#"{{"id":{id}}}"#)).await.0, 200);
        }
        let request = Request::post("/v1/ingest/event.viewed").header("authorization", "Bearer secret");
        let response = shop.router.clone().oneshot(request.body(Body::empty()).unwrap());
        let response = response.await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (429, &"1".parse().unwrap())
        );
        assert!(
            POST.statuses()
                .chain(DELETE.statuses())
                .filter(|status| *status == 429)
                .count()
                == 2
        );
        let (_, problem) = shop.json("event.viewed/deletions", "[]").await;
        assert_eq!(problem["type"], "/problems/rate-limited");
        // A request without a valid token does not use the rate.
        let anonymous = Request::post("/v1/ingest/event.viewed").body(Body::empty()).unwrap();
        assert_eq!(shop.send(anonymous).await.0, 401);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(shop.json("event.viewed", r#"{"id":3}"#).await.0, 200);
        assert_eq!(shop.stored().len(), 3);
    });
}

#[test]
fn openapi_document_needs_no_credential() {
    run(async {
        let shop = Harness::new(UnknownFields::Reject);
        let (status, document) = shop
            .send(Request::get("/openapi.json").body(Body::empty()).unwrap())
            .await;
        assert_eq!(status, 200);
        let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
        assert_eq!(paths, ["/openapi.json", PATH, DELETIONS]);
        let post = &document["paths"][PATH]["post"];
        assert_eq!(post["security"], json!([{ "credential": [] }]));
        assert!(post["responses"]["207"].is_object() && post["responses"]["422"].is_object());
    });
}
