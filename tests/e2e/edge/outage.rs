//! An edge whose Kafka broker is killed and restarted.

use super::device::Device;
use super::harness::{Harness, eventually};
use crate::support::Broker;
use event_log::kafka::{Config, KafkaLog};
use reqwest::Client;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn edge_answers_503_while_the_broker_is_down() {
    let mut broker = tokio::task::block_in_place(Broker::start);
    let log = tokio::task::block_in_place(|| KafkaLog::connect(Config::new(broker.bootstrap())).expect("connect"));
    let harness = tokio::task::block_in_place(|| Harness::over(log));
    let edge = harness.edge().await;
    edge.ready().await;
    let mut device = Device::new(&harness.token("1", &["user:1"]), "phone");
    tokio::task::block_in_place(|| harness.writer().commit(&[("user:1", 1, Some("{\"n\":1}"))]));
    eventually("the first row", async || {
        has_one_row(&mut device, &edge).await.then_some(())
    })
    .await;
    tokio::task::block_in_place(|| broker.kill());
    let http = Client::new();
    eventually("the edge to be not ready", async || {
        let answer = http.get(edge.url("/readyz")).send().await.unwrap();
        let is_not_ready = answer.status() == 503;
        let fixes = edge.readiness.report().components.into_iter().filter_map(|c| c.fix);
        let mut named = fixes.filter(|fix| fix.contains("trunkline doctor"));
        (is_not_ready && named.next().is_some()).then_some(())
    })
    .await;
    eventually("503 without a proof", async || {
        (device.get(&edge, "").await.status() == 503).then_some(())
    })
    .await;
    tokio::task::block_in_place(|| broker.restart());
    edge.ready().await;
    tokio::task::block_in_place(|| harness.writer().commit(&[("user:1", 2, Some("{\"n\":2}"))]));
    let want = json!({"[1]": {"n": 1}, "[2]": {"n": 2}});
    eventually("both rows", async || {
        device.sync(&edge, 500).await;
        (json!(device.bucket("user:1")) == want).then_some(())
    })
    .await;
    assert_eq!(device.resets_all, 1, "the cursor is still valid");
    edge.stop().await;
}

async fn has_one_row(device: &mut Device, edge: &super::harness::Running) -> bool {
    device.sync(edge, 500).await;
    device.bucket("user:1").len() == 1
}
