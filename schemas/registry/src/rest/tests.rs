//! Tests of the HTTP API over raw TCP connections, without the crate's client.

use super::*;
use crate::embedded::{Embedded, tests::memory_log};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

/// Serves the API on a free port until it is dropped.
pub(crate) struct Served {
    pub(crate) address: std::net::SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

pub(crate) fn serve(router: Router) -> Served {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, router).await });
    Served {
        address,
        runtime: Some(runtime),
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn embedded() -> Served {
    serve(router(Arc::new(Embedded::open(memory_log()).unwrap())))
}

/// Sends a request; returns status, content type and body of the response.
fn send(at: &Served, method: &str, path: &str, body: &str) -> (u16, String, Value) {
    let mut stream = TcpStream::connect(at.address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let kind = head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "))
        .unwrap_or_default()
        .to_owned();
    (status, kind, serde_json::from_str(body).unwrap_or(Value::Null))
}

fn check_ok(at: &Served, method: &str, path: &str, body: &Value, expected: &Value) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let (status, kind, answer) = send(at, method, path, &body);
    assert_eq!((status, &answer), (200, expected), "{method} {path} {body}");
    assert_eq!(kind, CONTENT_TYPE, "{method} {path}");
}

fn schema(fields: &str) -> Value {
    json!({"schema": format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#)})
}

#[test]
fn responses_match_confluents() {
    let at = embedded();
    let none = Value::Null;
    let old = schema(r#"{"name":"a","type":"int"}"#);
    let text = old["schema"].as_str().unwrap();
    let as_registered = json!({"subject": "s/1", "version": 1, "id": 1, "schema": text});
    let ok = |method: &str, path: &str, body: &Value, expected: Value| check_ok(&at, method, path, body, &expected);
    ok("GET", "/", &none, json!({}));
    ok("GET", "/subjects", &none, json!([]));
    ok("GET", "/schemas/types", &none, json!(["AVRO"]));
    ok("POST", "/subjects/s%2F1/versions", &old, json!({"id": 1}));
    ok("POST", "/subjects/s%2F1/versions", &old, json!({"id": 1}));
    ok("GET", "/subjects", &none, json!(["s/1"]));
    ok("POST", "/subjects/s%2F1", &old, as_registered.clone());
    ok("GET", "/subjects/s%2F1/versions", &none, json!([1]));
    ok("GET", "/subjects/s%2F1/versions/1", &none, as_registered.clone());
    ok("GET", "/subjects/s%2F1/versions/latest", &none, as_registered);
    ok(
        "GET",
        "/subjects/s%2F1/versions/1/schema",
        &none,
        serde_json::from_str(text).unwrap(),
    );
    ok("GET", "/schemas/ids/1", &none, json!({"schema": text}));
    ok("GET", "/schemas/ids/1?deleted=true", &none, json!({"schema": text}));
    ok(
        "GET",
        "/schemas/ids/1/schema",
        &none,
        serde_json::from_str(text).unwrap(),
    );
    ok("GET", "/schemas/ids/1/subjects", &none, json!(["s/1"]));
    ok(
        "GET",
        "/schemas/ids/1/versions",
        &none,
        json!([{"subject": "s/1", "version": 1}]),
    );
}

#[test]
fn levels_match_confluents() {
    let at = embedded();
    let none = Value::Null;
    let old = schema(r#"{"name":"a","type":"int"}"#);
    let ok = |method: &str, path: &str, body: &Value, expected: Value| check_ok(&at, method, path, body, &expected);
    ok("POST", "/subjects/s%2F1/versions", &old, json!({"id": 1}));
    ok("GET", "/config", &none, json!({"compatibilityLevel": "BACKWARD"}));
    ok(
        "PUT",
        "/config",
        &json!({"compatibility": "full"}),
        json!({"compatibility": "FULL"}),
    );
    ok(
        "GET",
        "/config/s?defaultToGlobal=true",
        &none,
        json!({"compatibilityLevel": "FULL"}),
    );
    ok(
        "PUT",
        "/config/s%2F1",
        &json!({"compatibility": "BACKWARD"}),
        json!({"compatibility": "BACKWARD"}),
    );
    ok("GET", "/config/s%2F1", &none, json!({"compatibilityLevel": "BACKWARD"}));
    let new = schema(r#"{"name":"a","type":"int"},{"name":"b","type":"int"}"#);
    let path = "/compatibility/subjects/s%2F1/versions/latest";
    ok("POST", path, &new, json!({"is_compatible": false}));
    let message =
        "new schema cannot read version 1: b: the writer lacks this field and the reader has no default for it";
    ok(
        "POST",
        &format!("{path}?verbose=true"),
        &new,
        json!({"is_compatible": false, "messages": [message]}),
    );
    ok(
        "POST",
        &format!("{path}?verbose=true"),
        &old,
        json!({"is_compatible": true, "messages": []}),
    );
}

#[test]
fn error_codes_match_confluents() {
    let at = embedded();
    let none = Value::Null;
    check_ok(
        &at,
        "POST",
        "/subjects/s/versions",
        &schema(r#"{"name":"a","type":"int"}"#),
        &json!({"id": 1}),
    );
    let bad = |method: &str, path: &str, body: &Value, code: u32| {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (status, kind, answer) = send(&at, method, path, &text);
        let expected = if code > 1000 { code / 100 } else { code };
        assert_eq!(
            (u32::from(status), answer["error_code"].as_u64()),
            (expected, Some(u64::from(code))),
            "{method} {path}"
        );
        assert!(answer["message"].as_str().is_some_and(|text| !text.is_empty()));
        assert_eq!(kind, CONTENT_TYPE);
    };
    let other = schema("");
    let versions = "/subjects/s/versions";
    bad("GET", "/subjects/x/versions", &none, 40401);
    bad("GET", "/subjects/x/versions/1", &none, 40401);
    bad("GET", "/subjects/x/versions/latest", &none, 40401);
    bad("POST", "/subjects/x", &other, 40401);
    bad("GET", "/subjects/s/versions/2", &none, 40402);
    bad("POST", "/compatibility/subjects/s/versions/7", &other, 40402);
    bad("GET", "/schemas/ids/99", &none, 40403);
    bad("GET", "/schemas/ids/99/versions", &none, 40403);
    bad("GET", "/schemas/ids/x", &none, 40403);
    bad("POST", "/subjects/s", &other, 40403);
    bad("GET", "/config/s", &none, 40408);
    bad("POST", versions, &schema(r#"{"name":"a","type":"string"}"#), 409);
    bad("POST", versions, &json!({"schema": "{\"type\":\"recor\"}"}), 42201);
    bad(
        "POST",
        "/subjects/s/versions",
        &json!({"schema": "\"int\"", "schemaType": "PROTOBUF"}),
        42201,
    );
    bad(
        "POST",
        "/subjects/s/versions",
        &json!({"schema": "\"int\"", "references": [{"name": "a"}]}),
        42201,
    );
    bad("POST", "/subjects/s/versions", &json!([]), 42201);
    bad("GET", "/subjects/s/versions/0", &none, 42202);
    bad("GET", "/subjects/s/versions/2147483648", &none, 42202);
    bad("GET", "/subjects/s/versions/newest", &none, 42202);
    bad("PUT", "/config", &json!({"compatibility": "SIDEWAYS"}), 42203);
    bad("PUT", "/config/s", &json!({}), 42203);
    bad("GET", "/nothing", &none, 404);
    bad("DELETE", "/subjects", &none, 405);
    bad("POST", "/openapi.json", &none, 405);
    bad("GET", "/subjects?offset=x", &none, 400);
}

#[test]
fn deletions_match_confluents() {
    let at = embedded();
    let none = Value::Null;
    let ok = |method: &str, path: &str, body: &Value, expected: Value| check_ok(&at, method, path, body, &expected);
    let bad = |method: &str, path: &str, code: u64| {
        let (_, kind, answer) = send(&at, method, path, "");
        assert_eq!(answer["error_code"], code, "{method} {path}: {answer}");
        assert_eq!(kind, CONTENT_TYPE);
    };
    let (one, two) = (schema(""), schema(r#"{"name":"a","type":"int","default":1}"#));
    for (body, id) in [(&one, 1), (&two, 2)] {
        ok("POST", "/subjects/s/versions", body, json!({"id": id}));
    }
    ok("POST", "/subjects/t/versions", &one, json!({"id": 1}));
    bad("DELETE", "/subjects/x", 40401);
    bad("DELETE", "/subjects/s/versions/9", 40402);
    bad("DELETE", "/subjects/s?permanent=true", 40405);
    bad("DELETE", "/subjects/s/versions/1?permanent=true", 40407);

    ok("DELETE", "/subjects/s/versions/latest", &none, json!(2));
    bad("DELETE", "/subjects/s/versions/2", 40406);
    ok("GET", "/subjects/s/versions", &none, json!([1]));
    ok("GET", "/subjects/s/versions?deleted=true", &none, json!([1, 2]));
    ok("GET", "/subjects/s/versions?deletedOnly=true", &none, json!([2]));
    bad("GET", "/subjects/s/versions/2", 40402);
    let (_, _, found) = send(&at, "GET", "/subjects/s/versions/2?deleted=true", "");
    assert_eq!((&found["version"], &found["id"]), (&json!(2), &json!(2)));
    // The schema gets a new version with the same id.
    ok("POST", "/subjects/s/versions", &two, json!({"id": 2}));
    ok("GET", "/subjects/s/versions", &none, json!([1, 3]));

    ok("DELETE", "/subjects/s", &none, json!([1, 3]));
    bad("DELETE", "/subjects/s", 40404);
    bad("GET", "/subjects/s/versions", 40401);
    ok("GET", "/subjects", &none, json!(["t"]));
    ok("GET", "/subjects?deleted=true", &none, json!(["s", "t"]));
    ok("GET", "/subjects?deletedOnly=True&deleted=False", &none, json!(["s"]));
    ok("GET", "/schemas/ids/2", &none, json!({"schema": two["schema"]}));

    ok("DELETE", "/subjects/s?permanent=true", &none, json!([1, 2, 3]));
    ok("GET", "/subjects?deleted=true", &none, json!(["t"]));
    bad("GET", "/schemas/ids/2", 40403);
    ok("GET", "/schemas/ids/1", &none, json!({"schema": one["schema"]}));
    // The id of a removed schema is not assigned again.
    ok(
        "POST",
        "/subjects/s/versions",
        &schema(r#"{"name":"b","type":"int"}"#),
        json!({"id": 3}),
    );
    ok("GET", "/subjects/s/versions", &none, json!([1]));
}

#[test]
fn listings_match_confluents() {
    let at = embedded();
    let none = Value::Null;
    let ok = |method: &str, path: &str, body: &Value, expected: Value| check_ok(&at, method, path, body, &expected);
    let (one, two) = (schema(""), schema(r#"{"name":"a","type":"int","default":1}"#));
    for (subject, body) in [("shop.a", &one), ("shop.a", &two), ("shop.b", &one), ("till", &one)] {
        let path = format!("/subjects/{subject}/versions");
        assert_eq!(send(&at, "POST", &path, &body.to_string()).0, 200);
    }
    ok(
        "GET",
        "/subjects?subjectPrefix=shop.",
        &none,
        json!(["shop.a", "shop.b"]),
    );
    ok("GET", "/subjects?offset=1&limit=1", &none, json!(["shop.b"]));
    ok("GET", "/subjects?limit=-1&offset=2", &none, json!(["till"]));
    let versions = |path: &str| {
        let (_, _, listed) = send(&at, "GET", path, "");
        let listed = listed.as_array().unwrap().iter();
        listed
            .map(|s| format!("{} {}", s["subject"].as_str().unwrap(), s["version"]))
            .collect::<Vec<_>>()
    };
    assert_eq!(versions("/schemas"), ["shop.a 1", "shop.a 2", "shop.b 1", "till 1"]);
    assert_eq!(
        versions("/schemas?subjectPrefix=shop&latestOnly=true"),
        ["shop.a 2", "shop.b 1"]
    );
    ok("GET", "/schemas/ids/1/subjects?subject=till", &none, json!(["till"]));
    ok("GET", "/schemas/ids/2/versions?subject=till", &none, json!([]));
    // For a schema, the subject only selects a context.
    ok(
        "GET",
        "/schemas/ids/2?subject=till",
        &none,
        json!({"schema": two["schema"]}),
    );
    ok("GET", "/subjects/shop.a/versions/1/referencedby", &none, json!([]));
    ok("GET", "/contexts", &none, json!(["."]));
    assert_eq!(send(&at, "GET", "/v1/metadata/id", "").0, 200);
}

#[test]
fn modes_match_confluents() {
    let at = embedded();
    let none = Value::Null;
    let ok = |method: &str, path: &str, body: &Value, expected: Value| check_ok(&at, method, path, body, &expected);
    let bad = |method: &str, path: &str, body: &Value, code: u64| {
        assert_eq!(
            send(&at, method, path, &body.to_string()).2["error_code"],
            code,
            "{method} {path}"
        );
    };
    let (read_only, read_write) = (json!({"mode": "READONLY"}), json!({"mode": "READWRITE"}));
    ok("GET", "/mode", &none, read_write.clone());
    bad("GET", "/mode/s", &none, 40409);
    ok("GET", "/mode/s?defaultToGlobal=true", &none, read_write.clone());
    ok("POST", "/subjects/s/versions", &schema(""), json!({"id": 1}));
    ok("PUT", "/mode/s", &read_only, read_only.clone());
    let other = schema(r#"{"name":"a","type":"int","default":1}"#);
    bad("POST", "/subjects/s/versions", &other, 42205);
    bad("DELETE", "/subjects/s", &none, 42205);
    // What is registered already changes nothing.
    ok("POST", "/subjects/s/versions", &schema(""), json!({"id": 1}));
    ok("POST", "/subjects/t/versions", &other, json!({"id": 2}));
    ok("DELETE", "/mode/s", &none, read_only.clone());
    bad("DELETE", "/mode/s", &none, 40409);
    ok(
        "PUT",
        "/mode",
        &json!({"mode": "READONLY_OVERRIDE"}),
        json!({"mode": "READONLY_OVERRIDE"}),
    );
    ok("PUT", "/mode/s", &read_write, read_write.clone());
    bad("POST", "/subjects/s/versions", &other, 42205);
    bad("PUT", "/mode", &json!({"mode": "IMPORT"}), 42204);
    bad("PUT", "/mode", &json!({}), 42204);
}

#[test]
fn compatibility_with_all_versions_follows_the_level() {
    let at = embedded();
    let path = "/compatibility/subjects/s/versions";
    let ok = |method: &str, path: &str, body: &Value, expected: Value| check_ok(&at, method, path, body, &expected);
    let text = schema(r#"{"name":"a","type":"string"}"#);
    ok("POST", path, &text, json!({"is_compatible": true}));
    let none = json!({"compatibility": "NONE"});
    ok("PUT", "/config/s", &none, none.clone());
    for (body, id) in [(&text, 1), (&schema(""), 2)] {
        ok("POST", "/subjects/s/versions", body, json!({"id": id}));
    }
    let number = schema(r#"{"name":"a","type":"int","default":1}"#);
    for (level, fits) in [("BACKWARD", true), ("BACKWARD_TRANSITIVE", false)] {
        let level = json!({"compatibility": level});
        ok("PUT", "/config/s", &level, level.clone());
        ok("POST", path, &number, json!({"is_compatible": fits}));
    }
    ok(
        "DELETE",
        "/config/s",
        &Value::Null,
        json!({"compatibilityLevel": "BACKWARD_TRANSITIVE"}),
    );
    assert_eq!(send(&at, "DELETE", "/config/s", "").2["error_code"], 40408);
    ok(
        "DELETE",
        "/config",
        &Value::Null,
        json!({"compatibilityLevel": "BACKWARD"}),
    );
}

#[test]
fn large_bodies_are_rejected_with_a_code() {
    let at = embedded();
    let doc = |length: usize| {
        let text = format!(
            r#"{{"type":"record","name":"R","doc":"{}","fields":[]}}"#,
            "d".repeat(length)
        );
        json!({ "schema": text }).to_string()
    };
    let (status, _, answer) = send(&at, "POST", "/subjects/s/versions", &doc(1_100_000));
    assert_eq!((status, &answer["error_code"]), (422, &json!(42209)));
    // The registry still works.
    assert_eq!(send(&at, "POST", "/subjects/s/versions", &doc(10)).0, 200);
}

#[test]
fn openapi_document_lists_the_routes() {
    let at = embedded();
    let registry: SharedRegistry = Arc::new(Embedded::open(memory_log()).unwrap());
    let (status, _, document) = send(&at, "GET", "/openapi.json", "");
    assert_eq!(status, 200);
    for endpoint in routes(&registry).endpoints() {
        let operation = &document["paths"][endpoint.path][endpoint.method.to_lowercase()];
        assert!(operation["responses"]["200"].is_object(), "{endpoint:?}");
        assert_ne!(endpoint.summary, "", "{endpoint:?}");
    }
}
