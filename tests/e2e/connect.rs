//! `trunkline connect`, `trunkline doctor` and the routes of Kafka Connect, on a `trunkline dev` with the sample shop.

use crate::support::{Dev, binary, wait_for};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

struct Shop {
    dev: Dev,
    data: PathBuf,
    client: reqwest::blocking::Client,
    _dir: tempfile::TempDir,
}

impl Shop {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let shop = Shop {
            dev: Dev::start(&data, &["--orders-per-s", "0"]),
            data,
            client: reqwest::blocking::Client::new(),
            _dir: dir,
        };
        shop.wait_until_ready();
        shop
    }

    fn wait_until_ready(&self) {
        wait_for("the processes to be ready", LIMIT, || {
            let answer = self
                .client
                .get(format!("{}/readyz", self.dev.url("admin")))
                .send()
                .ok()?;
            answer.status().is_success().then_some(())
        });
    }

    /// Runs a command on the data directory.
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(binary());
        let (first, rest) = args.split_first().unwrap();
        command
            .args(["--output", "json", first, "--data"])
            .arg(&self.data)
            .args(rest);
        command.output().unwrap()
    }

    /// Exit status and JSON of a command.
    fn json(&self, args: &[&str]) -> (bool, Value) {
        let out = self.run(args);
        let text = String::from_utf8(out.stdout).unwrap();
        let error = String::from_utf8_lossy(&out.stderr);
        let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{args:?}: {text}{error}"));
        (out.status.success(), json)
    }

    /// Error text of a command that fails.
    fn error(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(!out.status.success(), "{args:?} succeeds");
        String::from_utf8(out.stderr).unwrap()
    }

    fn rest(&self, method: reqwest::Method, path: &str) -> (u16, Value) {
        let url = format!("{}{path}", self.dev.url("admin"));
        let answer = self.client.request(method, url).json(&json!({})).send().unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().unwrap_or_default())
    }
}

fn finding<'f>(findings: &'f Value, text: &str) -> &'f Value {
    let found = findings
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["found"].as_str().unwrap().contains(text));
    found.unwrap_or_else(|| panic!("no finding with {text}: {findings:#}"))
}

#[test]
fn pause_survives_kill_and_restart_and_doctor_warns_of_it() {
    let mut shop = Shop::start();
    let (ok, status) = shop.json(&["connect", "status"]);
    assert!(ok, "{status}");
    assert_eq!(
        (&status[0]["connector"], &status[0]["state"]),
        (&json!("shop"), &json!("RUNNING"))
    );
    let (ok, paused) = shop.json(&["connect", "pause", "shop", "--wait", "--timeout", "30"]);
    assert!(ok && paused[0]["state"] == "PAUSED", "{paused}");
    shop.dev.kill();
    shop.dev.restart();
    wait_for("the connector to be paused", LIMIT, || {
        let (ok, status) = shop.json(&["connect", "status", "shop"]);
        (ok && status[0]["state"] == "PAUSED" && status[0]["target"] == "paused").then_some(())
    });
    shop.wait_until_ready();
    let (ok, findings) = shop.json(&["doctor"]);
    assert!(ok, "{findings:#}");
    let paused = finding(&findings, "connector shop is PAUSED");
    assert_eq!(
        (&paused["level"], &paused["fix"]),
        (&json!("warn"), &json!("trunkline connect resume shop"))
    );
    assert_eq!(paused["command"], paused["fix"]);
    let issuers = finding(&findings, "edges accept tokens of https://dev.trunkline.invalid/");
    assert_eq!(
        (&issuers["check"], &issuers["level"]),
        (&json!("issuers"), &json!("ok"))
    );

    let (ok, resumed) = shop.json(&["connect", "resume", "shop", "--wait", "--timeout", "30"]);
    assert!(ok && resumed[0]["state"] == "RUNNING", "{resumed}");
    let (ok, _) = shop.json(&["connect", "resync", "shop", "--yes", "--wait", "--timeout", "30"]);
    assert!(ok);
    let (ok, findings) = shop.json(&["doctor"]);
    assert!(
        ok && finding(&findings, "connector shop is RUNNING")["level"] == "ok",
        "{findings:#}"
    );
}

#[test]
fn wrong_requests_are_explained() {
    let shop = Shop::start();
    let error = shop.error(&["connect", "pause", "shp"]);
    assert!(
        error.contains("no process runs a connector `shp`; running connectors: shop"),
        "{error}"
    );
    let error = shop.error(&["connect", "resync", "shop"]);
    assert!(error.contains("confirm with --yes"), "{error}");
    let error = shop.error(&["connect", "snapshot", "shop", "order"]);
    assert!(
        error.contains("has no table `order`; its declared tables are"),
        "{error}"
    );
    // An HTTP source has no snapshots.
    let error = shop.error(&["connect", "snapshot", "shop", "orders"]);
    assert!(
        error.contains("cannot take a snapshot of orders") && error.contains("post the rows again"),
        "{error}"
    );
    let (ok, status) = shop.json(&["connect", "status"]);
    assert!(
        ok && status[0]["state"] == "RUNNING",
        "the connector continues: {status}"
    );
    let error = shop.error(&["connect", "status", "--admin", "http://127.0.0.1:1"]);
    assert!(
        error.contains("cannot reach the process at http://127.0.0.1:1"),
        "{error}"
    );
}

#[test]
fn routes_are_those_of_kafka_connect() {
    use reqwest::Method;
    let shop = Shop::start();
    assert_eq!(shop.rest(Method::GET, "/connectors"), (200, json!(["shop"])));
    let (_, expanded) = shop.rest(Method::GET, "/connectors?expand=status&expand=info");
    assert_eq!(expanded["shop"]["info"]["type"], "source");
    assert_eq!(expanded["shop"]["status"]["tasks"][0]["state"], "RUNNING");
    let (_, config) = shop.rest(Method::GET, "/connectors/shop/config");
    assert_eq!(
        (&config["connector.class"], &config["tasks.max"]),
        (&json!("http"), &json!("1"))
    );
    let (_, tasks) = shop.rest(Method::GET, "/connectors/shop/tasks");
    assert_eq!(tasks[0]["id"], json!({ "connector": "shop", "task": 0 }));
    assert_eq!(shop.rest(Method::GET, "/connectors/shop/tasks/0/status").1["id"], 0);
    assert_eq!(shop.rest(Method::GET, "/connectors/shop/tasks/1/status").0, 404);
    assert!(shop.rest(Method::GET, "/connectors/shop/offsets").1["offsets"].is_array());
    let (status, error) = shop.rest(Method::GET, "/connectors/other/status");
    assert_eq!((status, &error["error_code"]), (404, &json!(404)));
    assert_eq!(shop.rest(Method::POST, "/connectors").0, 409);
    assert_eq!(shop.rest(Method::DELETE, "/connectors/shop").0, 409);

    let state = || shop.rest(Method::GET, "/connectors/shop/status").1["connector"]["state"].clone();
    assert_eq!(shop.rest(Method::PUT, "/connectors/shop/pause").0, 202);
    assert_eq!(state(), "PAUSED");
    assert_eq!(shop.rest(Method::PUT, "/connectors/shop/stop").0, 204);
    assert_eq!(state(), "STOPPED");
    assert_eq!(shop.rest(Method::PUT, "/connectors/shop/resume").0, 202);
    wait_for("the connector to run", LIMIT, || (state() == "RUNNING").then_some(()));
    assert_eq!(shop.rest(Method::POST, "/connectors/shop/restart").0, 204);
    wait_for("the connector to run", LIMIT, || (state() == "RUNNING").then_some(()));
    let (status, body) = shop.rest(Method::POST, "/connectors/shop/restart?onlyFailed=true");
    assert_eq!((status, &body["name"]), (202, &json!("shop")));
    assert_eq!(state(), "RUNNING", "a connector that works is not restarted");
}
