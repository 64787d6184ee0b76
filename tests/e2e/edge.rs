//! The edge over HTTP: tokens, polls and long polls, errors, drain, several edges, and a log that becomes unreachable.
//!
//! The tests write rows to `view.log` and observe the edge only through its HTTP API.

mod device;
mod harness;
#[cfg(feature = "external")]
mod outage;

use device::Device;
use edge::config::Engine;
use edge::token::DEV_AUDIENCE;
use harness::{Harness, Running, TokenSpec, VIEW_LOG, eventually, memory_log};
use reqwest::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

async fn problem(answer: Response) -> (u16, String, String) {
    assert_eq!(answer.headers()[CONTENT_TYPE], "application/problem+json");
    let status = answer.status().as_u16();
    assert!(answer.headers().contains_key("x-request-id"));
    let body: Value = answer.json().await.expect("a problem body");
    assert_eq!(body["status"], status);
    let text = |name: &str| body[name].as_str().expect("a text").to_owned();
    (status, text("type"), text("detail"))
}

fn sync(http: &Client, edge: &Running, token: &str) -> RequestBuilder {
    http.get(edge.url("/v1/sync"))
        .bearer_auth(token)
        .header("trunkline-device", "phone")
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_token_is_rejected_with_the_reason() {
    let harness = Harness::over(memory_log());
    let other = Harness::without_topic(memory_log());
    let edge = harness.edge().await;
    edge.ready().await;
    let http = Client::new();
    let good = harness.token("1", &["user:1"]);
    assert_eq!(sync(&http, &edge, &good).send().await.unwrap().status(), 200);
    let valid = TokenSpec {
        subject: "1",
        audience: DEV_AUDIENCE,
        buckets: &["user:1"],
        expires_in_s: 60,
        age_s: 0,
    };
    let expired = harness.token_with(&TokenSpec { age_s: 120, ..valid });
    let audience = harness.token_with(&TokenSpec {
        audience: "another-service",
        ..valid
    });
    let cases = [
        ("nonsense", 401, "/problems/token-invalid", "three parts"),
        (&expired, 401, "/problems/token-expired", "expired"),
        (
            &other.token("1", &["user:1"]),
            401,
            "/problems/token-invalid",
            "signature",
        ),
        (&audience, 403, "/problems/token-not-accepted", "audience"),
    ];
    for (token, status, kind, detail) in cases {
        let answer = sync(&http, &edge, token).send().await.unwrap();
        let challenge = answer
            .headers()
            .get(WWW_AUTHENTICATE)
            .map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(
            challenge.is_some_and(|c| c.contains("error=\"invalid_token\"")),
            status == 401,
            "{kind}"
        );
        let (got, got_kind, got_detail) = problem(answer).await;
        assert_eq!((got, got_kind.as_str()), (status, kind));
        assert!(got_detail.contains(detail), "{got_detail}");
        assert!(
            !got_detail.contains("another-service") && !got_detail.contains(token),
            "the detail contains a secret: {got_detail}"
        );
    }
    let answer = http
        .get(edge.url("/v1/sync"))
        .header("trunkline-device", "phone")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()[WWW_AUTHENTICATE], "Bearer");
    assert_eq!(problem(answer).await.1, "/problems/token-missing");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_request_is_rejected_with_the_field() {
    let harness = Harness::over(memory_log());
    let edge = harness.edge().await;
    edge.ready().await;
    let http = Client::new();
    let token = harness.token("1", &["user:1"]);
    let get = |path: &str| http.get(edge.url(path)).bearer_auth(&token);
    let post = |body: String| {
        http.post(edge.url("/v1/sync?device=phone"))
            .bearer_auth(&token)
            .body(body)
    };
    let cases = [
        (get("/v1/sync"), 400, "no device id"),
        (get("/v1/sync?device=a/b"), 400, "device id"),
        (get("/v1/sync?device=phone&wait=soon"), 400, "wait: must be"),
        (get("/v1/sync?device=phone&limit=0"), 400, "limit: must be"),
        (get("/v1/sync?device=phone&curser=x"), 400, "curser: not a field"),
        (post("{".into()), 400, "body: not a JSON object"),
        (post("{\"cursor\":7}".into()), 400, "body.cursor"),
        (post("x".repeat(65 * 1024)), 413, "larger than 65536 bytes"),
        (get("/v1/nothing"), 404, "no such path"),
        (http.delete(edge.url("/v1/sync")), 405, "does not support this method"),
    ];
    for (request, status, detail) in cases {
        let (got, _, got_detail) = problem(request.send().await.unwrap()).await;
        assert_eq!(got, status, "{got_detail}");
        assert!(got_detail.contains(detail), "{got_detail}");
    }
    let answer = post(json!({"limit": 5, "wait": 0}).to_string()).send().await.unwrap();
    assert_eq!(answer.status(), 200, "a valid body is accepted");
    let nobody = harness.token("1", &[]);
    assert_eq!(
        sync(&http, &edge, &nobody).send().await.unwrap().status(),
        200,
        "a token without buckets gets an empty page"
    );
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_poll_delivers_only_whole_transactions() {
    let harness = Harness::over(memory_log());
    let edge = harness.edge().await;
    edge.ready().await;
    let mut line = harness.writer();
    let mut device = Device::new(&harness.token("1", &["user:1"]), "phone");
    assert_eq!(device.poll(&edge, "").await, Some(true));
    assert_eq!(device.poll(&edge, "").await, None);
    line.leave_open(&[("user:1", 1, Some("{\"n\":1}"))]);
    assert_eq!(
        device.poll(&edge, "&wait=1").await,
        None,
        "the source transaction is open"
    );
    let waiting = device.poll(&edge, "&wait=25");
    let began = Instant::now();
    let ((), complete) = tokio::join!(
        async {
            tokio::task::block_in_place(|| line.commit(&[("user:1", 2, Some("{\"n\":2}")), ("user:2", 3, Some("{}"))]));
        },
        waiting
    );
    assert_eq!(complete, Some(true));
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "the poll was not woken: {:?}",
        began.elapsed()
    );
    let rows: Vec<Value> = device.bucket("user:1").into_values().collect();
    assert_eq!(rows, [json!({"n": 1}), json!({"n": 2})]);
    assert_eq!(device.shows().len(), 1);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_are_private_compressed_and_have_etags() {
    let harness = Harness::over(memory_log());
    let edge = harness.edge().await;
    edge.ready().await;
    let long = format!("{{\"text\":\"{}\"}}", "lorem ipsum ".repeat(200));
    harness.writer().commit(&[("user:1", 1, Some(&long))]);
    let http = Client::new();
    let token = harness.token("1", &["user:1"]);
    eventually("the row", async || {
        let page: Value = sync(&http, &edge, &token).send().await.unwrap().json().await.unwrap();
        (page["changes"].as_array()?.len() == 1).then_some(())
    })
    .await;
    for encoding in ["zstd", "br", "gzip"] {
        let answer = sync(&http, &edge, &token)
            .header("accept-encoding", encoding)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.headers()[CONTENT_ENCODING], encoding);
        assert!(answer.bytes().await.unwrap().len() < 1_000, "{encoding}");
    }
    let answer = sync(&http, &edge, &token)
        .header("x-request-id", "my-id")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["x-request-id"], "my-id");
    assert_eq!(answer.headers()[CACHE_CONTROL], "private, no-store");
    let tag = answer.headers()[ETAG].clone();
    let cursor = answer.json::<Value>().await.unwrap()["cursor"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(tag.to_str().unwrap(), format!("W/\"{cursor}\""));
    let current = sync(&http, &edge, &token)
        .header("if-none-match", &tag)
        .send()
        .await
        .unwrap();
    assert_eq!(
        (current.status(), &current.headers()[ETAG]),
        (StatusCode::NOT_MODIFIED, &tag)
    );
    let h2c = Client::builder().http2_prior_knowledge().build().unwrap();
    let answer = sync(&h2c, &edge, &token).send().await.unwrap();
    assert_eq!(
        (answer.version(), answer.status()),
        (reqwest::Version::HTTP_2, StatusCode::OK)
    );
    let document: Value = http
        .get(edge.url("/openapi.json"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert!(document["paths"]["/v1/sync"].is_object());
    assert_eq!(
        http.get(edge.url("/healthz"))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap(),
        "ok\n"
    );
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_cursor_gets_a_full_reset() {
    let harness = Harness::over(memory_log());
    let edge = harness.edge().await;
    edge.ready().await;
    harness
        .writer()
        .commit(&[("user:1", 1, Some("{\"of\":1}")), ("user:2", 2, Some("{\"of\":2}"))]);
    let mut one = Device::new(&harness.token("1", &["user:1"]), "phone");
    let mut two = Device::new(&harness.token("2", &["user:2"]), "phone");
    for (device, bucket) in [(&mut one, "user:1"), (&mut two, "user:2")] {
        eventually_shows(device, &edge, bucket, 1).await;
    }
    let mut forged = two.cursor.clone().unwrap();
    forged.replace_range(30..31, if forged.as_bytes()[30] == b'A' { "B" } else { "A" });
    for cursor in [two.cursor.clone().unwrap(), forged, "garbage".into()] {
        let resets = one.resets_all;
        one.cursor = Some(cursor);
        assert_eq!(one.poll(&edge, "").await, Some(true));
        assert_eq!(one.resets_all, resets + 1);
        assert_eq!(
            one.shows(),
            BTreeMap::from([("user:1".into(), BTreeMap::from([("[1]".into(), json!({"of": 1}))]))])
        );
    }
    edge.stop().await;
}

async fn eventually_shows(device: &mut Device, edge: &Running, bucket: &str, rows: usize) {
    let began = Instant::now();
    while device.bucket(bucket).len() != rows {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{bucket}: {:?}",
            device.shows()
        );
        device.sync(edge, 500).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_ends_long_polls() {
    let harness = Harness::over(memory_log());
    let edge = harness.edge().await;
    edge.ready().await;
    let mut polls = tokio::task::JoinSet::new();
    for n in 0..20 {
        let mut device = Device::new(&harness.token("1", &["user:1"]), &format!("phone-{n}"));
        device.sync(&edge, 500).await;
        let poll = device.request(&edge, "&wait=25");
        polls.spawn(async move { poll.send().await.map(|answer| answer.status()) });
    }
    let (address, began) = (edge.address, Instant::now());
    edge.stop().await;
    for answer in polls.join_all().await {
        // The listener may already be closed when a poll connects, but a poll that was accepted gets a response.
        assert!(answer.as_ref().is_ok_and(|status| *status == 304) || answer.is_err_and(|e| !e.is_timeout()));
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(
        tokio::net::TcpStream::connect(address).await.is_err(),
        "the listener is closed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn device_switches_between_restarted_and_rebuilt_edges() {
    let harness = Harness::over(memory_log());
    let (kept, memory) = (
        harness.config(&harness.dir.path().join("kept")),
        harness.config(&harness.dir.path().join("memory")),
    );
    let mut memory = memory;
    memory.store.engine = Engine::Memory;
    let mut sled = harness.config(&harness.dir.path().join("sled"));
    sled.store.engine = Engine::Sled;
    let mut edges = vec![
        harness.edge_with(kept.clone()).await,
        harness.edge_with(memory.clone()).await,
        harness.edge_with(sled.clone()).await,
    ];
    for edge in &edges {
        edge.ready().await;
    }
    let mut line = harness.writer();
    let mut device = Device::new(&harness.token("1", &["user:1", "user:2", "user:3"]), "phone");
    let mut want: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    for round in 0..60_u32 {
        let bucket = format!("user:{}", 1 + round % 3);
        let (key, row) = (round % 7, format!("{{\"round\":{round}}}"));
        let gone = round % 5 == 4;
        tokio::task::block_in_place(|| line.commit(&[(&bucket, key, (!gone).then_some(row.as_str()))]));
        let rows = want.entry(bucket).or_default();
        if gone {
            rows.remove(&format!("[{key}]"));
        } else {
            rows.insert(format!("[{key}]"), json!({"round": round}));
        }
        let at = usize::try_from(round).unwrap() % 3;
        device.sync(&edges[at], 2).await;
        if round % 20 == 19 {
            // The first edge continues from its store; the second reads the log from its start.
            let stopped = edges.remove(usize::try_from(round).unwrap() / 20 % 2);
            stopped.stop().await;
            let config = if round == 19 { kept.clone() } else { memory.clone() };
            edges.insert(
                usize::try_from(round).unwrap() / 20 % 2,
                harness.edge_with(config).await,
            );
        }
    }
    for edge in &edges {
        eventually_equal(&mut device, edge, &want).await;
        let mut fresh = Device::new(&harness.token("1", &["user:1", "user:2", "user:3"]), "tablet");
        eventually_equal(&mut fresh, edge, &want).await;
    }
    assert_eq!(device.resets_all, 1, "every cursor was accepted");
    for edge in edges {
        edge.stop().await;
    }
}

async fn eventually_equal(device: &mut Device, edge: &Running, want: &BTreeMap<String, BTreeMap<String, Value>>) {
    let began = Instant::now();
    while device.shows() != *want {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{:?}\n{want:?}",
            device.shows()
        );
        device.sync(edge, 500).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_topic_is_reported_until_it_exists() {
    let harness = Harness::without_topic(memory_log());
    let edge = harness.edge().await;
    let http = Client::new();
    let not_ready = eventually("readiness to report the missing topic", async || {
        let answer = http.get(edge.url("/readyz")).send().await.unwrap();
        let is_ready = answer.status() != 503;
        let body: Value = answer.json().await.unwrap();
        let mut components = edge.readiness.report().components.into_iter();
        let found = components.find(|c| c.cause.as_ref().is_some_and(|cause| cause.contains("does not exist")))?;
        // Only the admin listener shows causes.
        assert_eq!(body, json!({"ready": is_ready}));
        (!is_ready).then_some(found)
    })
    .await;
    assert!(not_ready.fix.unwrap().contains("sync-views"));
    let answer = sync(&http, &edge, &harness.token("1", &["user:1"]))
        .send()
        .await
        .unwrap();
    assert!(answer.headers().contains_key(RETRY_AFTER));
    assert_eq!(problem(answer).await.0, 503);
    assert!(!edge.readiness.report().ready, "the readiness of the process agrees");
    harness.make_topic(harness::PARTITIONS);
    edge.ready().await;
    eventually("the process to be ready", async || {
        edge.readiness.report().ready.then_some(())
    })
    .await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recreated_topic_resets_devices() {
    let harness = Harness::over(memory_log());
    let edge = harness.edge().await;
    edge.ready().await;
    let mut device = Device::new(&harness.token("1", &["user:1"]), "phone");
    harness.writer().commit(&[("user:1", 1, Some("{\"age\":\"old\"}"))]);
    eventually_shows(&mut device, &edge, "user:1", 1).await;
    harness.log.delete_topic(VIEW_LOG).unwrap();
    harness.make_topic(harness::PARTITIONS);
    harness.writer().commit(&[("user:1", 2, Some("{\"age\":\"new\"}"))]);
    let began = Instant::now();
    while device.bucket("user:1").into_values().collect::<Vec<_>>() != [json!({"age": "new"})] {
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", device.shows());
        device.sync(&edge, 500).await;
    }
    assert_eq!(device.resets_all, 2);
    edge.stop().await;
}
