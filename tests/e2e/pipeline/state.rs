//! State queries and standbys of two processor nodes, queried with `trunkline state`.

use crate::support::{Broker, Fleet, binary, free_port, wait_for};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);
const TOPOLOGY: &str = r#"
name = "shop"

[[event]]
name       = "seen"
fields     = { item = "int8", user_id = "text" }
key        = ["item"]
partitions = 4

[[bucket]]
name = "user:{id}"

[[view]]
name   = "seen"
from   = "event:seen"
bucket = "user:{user_id}"

[[membership]]
bucket = "user:{sub}"

[[issuer]]
name = "main"

[[node]]
name = "ingest"
runs = ["ingest", "registry"]

[[node]]
name = "views-a"
runs = ["processor:sync-views"]

[[node]]
name = "views-b"
runs = ["processor:sync-views"]

[[node]]
name = "edge-1"
runs = ["edge"]
"#;

const TOKEN: &str = "viewer-token-of-the-tests";

/// JSON output of `trunkline state`, or its standard error.
fn state(kafka: &str, words: &[&str]) -> Result<Value, String> {
    state_with(Some(TOKEN), kafka, words)
}

fn state_with(token: Option<&str>, kafka: &str, words: &[&str]) -> Result<Value, String> {
    let words = [&["--output", "json", "state", "--kafka", kafka], words].concat();
    let mut command = Command::new(binary());
    command.args(&words).env_remove("TRUNKLINE_ADMIN_TOKEN");
    if let Some(token) = token {
        command.env("TRUNKLINE_ADMIN_TOKEN", token);
    }
    let done = command.output().expect("the binary starts");
    if done.status.success() {
        Ok(serde_json::from_slice(&done.stdout).expect("JSON on stdout"))
    } else {
        Err(String::from_utf8_lossy(&done.stderr).into_owned())
    }
}

/// Every row of the store.
const SCAN: [&str; 7] = [
    "scan",
    "shop.sync-views.event.seen",
    "rows",
    "--prefix",
    "[\"row\"",
    "-n",
    "1000",
];

fn post_events(port: u16) {
    let events: Vec<Value> = (0..200)
        .map(|item| json!({ "item": item, "user_id": format!("u{}", item % 7) }))
        .collect();
    let posted = reqwest::blocking::Client::new()
        .post(format!("http://127.0.0.1:{port}/v1/ingest/event.seen"))
        .bearer_auth("a token")
        .json(&events)
        .send()
        .expect("post events");
    assert!(posted.status().is_success(), "{}", posted.text().unwrap_or_default());
}

/// Checks that every process returns a row by its key and partition.
fn every_row_is_found(kafka: &str, rows: &Value, processes: &[&str]) {
    for row in rows.as_array().expect("rows").iter().step_by(37) {
        let (key, partition) = (row["key"].to_string(), row["partition"].to_string());
        for url in processes {
            let arguments = [
                "--admin",
                url,
                "get",
                "shop.sync-views.event.seen",
                "rows",
                &key,
                "--partition",
                &partition,
            ];
            let found = state(kafka, &arguments).expect("query the state");
            assert_eq!(found["rows"][0]["value"], row["value"]);
            assert_eq!(found["contains"][0]["topic"], "shop.event.seen");
        }
    }
}

#[test]
fn state_queries_route_to_owner_and_fail_over_warm() {
    let broker = Broker::start();
    let (kafka, port) = (broker.bootstrap(), free_port());
    let more = format!(
        "[processors]\nstandby_replicas = 1\n\n[ingest]\nlisten = \"127.0.0.1:{port}\"\n\
         credentials = [{{ name = \"backend\", token = \"a token\", topics = [\"*\"] }}]\n\n\
         [[admin.tokens]]\nname = \"tests\"\nrole = \"viewer\"\ntoken = \"{TOKEN}\"\n"
    );
    let mut fleet = Fleet::new(TOPOLOGY, &kafka, &more);
    ["ingest", "views-a", "views-b"]
        .iter()
        .for_each(|node| fleet.start(node));
    ["ingest", "views-a", "views-b"]
        .iter()
        .for_each(|node| fleet.wait_ready(node, LIMIT));
    post_events(port);
    let list = || state(&kafka, &["list"]).unwrap_or_else(|output| panic!("{output}"));
    let (a, b) = (fleet.admin("views-a"), fleet.admin("views-b"));
    let of = |tasks: &Value, phase: &str, node: &str| {
        let all = tasks.as_array().cloned().unwrap_or_default();
        let is = |task: &&Value| {
            let at = task["at"].as_str().unwrap_or_default();
            task["phase"] == phase && at == node
        };
        all.iter().filter(is).count()
    };
    wait_for("two tasks and two standbys on each node", LIMIT, || {
        let tasks = list();
        let each = |node| (of(&tasks, "running", node), of(&tasks, "standby", node));
        (each(&a) == (2, 2) && each(&b) == (2, 2)).then_some(())
    });
    let rows = wait_for("all rows", LIMIT, || {
        let rows = state(&kafka, &SCAN).ok();
        rows.filter(|rows| rows.as_array().is_some_and(|rows| rows.len() == 200))
    });
    every_row_is_found(&kafka, &rows, &[&a, &b]);
    let rejected = state(&kafka, &["get", "shop.sync-views.event.seen", "nothing", "[1]"]).expect_err("no such store");
    assert!(rejected.contains("has no store `nothing`; it has: rows"), "{rejected}");
    let rejected = state(&kafka, &["get", "sync-views", "rows", "[1]"]).expect_err("no such processor");
    let expected = "no process has announced processor `sync-views`; announced are shop.sync-views.event.seen;";
    assert!(rejected.contains(expected), "{rejected}");

    let unauthenticated = state_with(None, &kafka, &["list"]).expect_err("no token");
    assert!(unauthenticated.contains("rejects the request"), "{unauthenticated}");
    let unauthenticated =
        state_with(Some("another token"), &kafka, &["--admin", &a, "list"]).expect_err("no valid token");
    assert!(
        unauthenticated.contains("is not one of [[admin.tokens]]"),
        "{unauthenticated}"
    );

    fleet.kill("views-a");
    let tasks = wait_for("all tasks on the other node", LIMIT, || {
        let tasks = list();
        (of(&tasks, "running", &b) == 4).then_some(tasks)
    });
    for task in tasks.as_array().expect("tasks") {
        assert!(task["restored"].as_u64().expect("a number") <= 20, "{task}");
    }
    let rows = state(&kafka, &SCAN);
    assert_eq!(rows.expect("rows").as_array().map(Vec::len), Some(200));
}
