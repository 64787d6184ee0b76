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
    bad(
        "POST",
        "/subjects/s/versions",
        &schema(r#"{"name":"a","type":"string"}"#),
        409,
    );
    bad(
        "POST",
        "/subjects/s/versions",
        &json!({"schema": "{\"type\":\"recor\"}"}),
        42201,
    );
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
}
