//! Trace propagation: the `traceparent` of an ingest request becomes a header of its rows in `view.log`, and the edge
//! continues the trace of a device's request.

use super::follow;
use crate::support::{Dev, Phone};
use event_log::embedded::{Config, EmbeddedLog};
use event_log::{Isolation, OffsetSpec, RecordBatch, StartFrom, TopicPartition};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Keys and trace headers of the rows of `view.log` in a data directory that no process has open.
fn rows(data: &Path) -> Vec<(String, Option<String>)> {
    let now = service::clock::system();
    let log = EmbeddedLog::open(Config::new(Some(data.join("log")), Arc::new(move || now.now_ms()))).unwrap();
    let partitions = log.describe("shop.view.log").unwrap().unwrap().partitions;
    let (mut found, mut batch) = (Vec::new(), RecordBatch::default());
    for partition in 0..partitions {
        let at = TopicPartition::new("shop.view.log", partition);
        let end = log.offset(&at, OffsetSpec::LastStable).unwrap();
        let mut reader = log.reader(Isolation::ReadCommitted).unwrap();
        reader.assign(&[(at.clone(), StartFrom::Earliest)]).unwrap();
        while reader.position(&at).unwrap() < end {
            reader.poll(&mut batch, 1 << 20, Duration::ZERO).unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let row = batch
                .iter()
                .map(|r| (text(r.key().unwrap()), r.header("traceparent").map(text)));
            found.extend(row.filter(|(key, _)| !key.starts_with("[\"~")));
        }
    }
    found
}

/// Posts an order of customer 1 with a `traceparent` header.
fn post(dev: &Dev, data: &Path, order: i64, parent: &str) {
    let token = std::fs::read_to_string(data.join("ingest.token")).unwrap();
    let row = json!({
        "id": order, "customer_id": 1, "store_id": 1, "status": "placed", "total_cents": 0,
        "updated_at": "2026-01-01T00:00:00Z",
    });
    let body = json!({"changes": [{"table": "orders", "op": "put", "row": row}]});
    let sent = reqwest::blocking::Client::new()
        .post(format!("{}/v1/ingest/change.shop", dev.url("ingest")))
        .bearer_auth(token.trim())
        .header("traceparent", parent)
        .json(&body)
        .send()
        .unwrap();
    let (status, text) = (sent.status(), sent.text().unwrap());
    assert!(status.is_success(), "{status}: {text}");
}

#[test]
fn traceparent_propagates_from_post_to_view_log() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let mut dev = Dev::start(&data, &["--orders-per-s", "0"]);
    post(&dev, &data, 900_001, PARENT);
    post(&dev, &data, 900_002, "nonsense");
    let mut phone = Phone::new("phone-1", &dev.token("1", &[]));
    let both = &mut |p: &Phone| {
        p.view("orders")
            .filter(|o| o["id"].to_string().contains("90000"))
            .count()
            == 2
    };
    follow(&mut phone, &dev.url("edge"), Duration::from_secs(60), &|_| {}, both);
    dev.kill();
    let rows = rows(&data);
    let of = |order: &str| -> Vec<Option<String>> {
        let rows = rows
            .iter()
            .filter(|(key, _)| key.contains("\"orders\"") && key.contains(order));
        rows.map(|(_, trace)| trace.clone()).collect()
    };
    let (traced, other) = (of("900001"), of("900002"));
    assert!(
        !traced.is_empty() && traced.iter().all(|t| t.as_deref() == Some(PARENT)),
        "{traced:?}"
    );
    assert!(!other.is_empty() && other.iter().all(Option::is_none), "{other:?}");
}

#[test]
fn edge_continues_the_trace_of_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let dev = Dev::start(&data, &["--orders-per-s", "0"]);
    let traceresponse = |parent: &str| {
        let response = reqwest::blocking::Client::new()
            .get(format!("{}/healthz", dev.url("edge")))
            .header("traceparent", parent)
            .send()
            .unwrap();
        let found = response.headers().get("traceresponse");
        found.map(|value| value.to_str().unwrap().to_owned())
    };
    let given = traceresponse(PARENT).unwrap();
    let (_, rest) = given.split_once("00-4bf92f3577b34da6a3ce929d0e0e4736-").unwrap();
    let (span, flags) = rest.split_once('-').unwrap();
    assert_eq!((span.len(), flags), (16, "01"));
    assert_ne!(span, "00f067aa0ba902b7", "the edge creates a new span");
    assert_eq!(traceresponse("nonsense"), None);
}
