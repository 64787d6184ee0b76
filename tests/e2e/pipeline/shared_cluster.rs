//! Two topologies with the same declarations and different names on one Kafka cluster.

use super::follow;
use crate::support::{Broker, Dev, Phone, wait_for};
use event_log::SharedEventLog;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);
/// A source, an event, an aggregate and views of all three.
const TOPOLOGY: &str = r#"
[[connector]]
name = "db"
kind = "http"

[[table]]
source  = "db"
name    = "items"
key     = ["id"]
columns = { id = "int8", name = "text" }

[[event]]
name       = "seen"
fields     = { item = "int8", name = "text" }
key        = ["item"]
partitions = 2

[[processor]]
name       = "counts"
kind       = "aggregate"
from       = "event:seen"
group      = { name = "name" }
fields     = { count = "count()" }
partitions = 2

[[bucket]]
name = "all"

[[view]]
name   = "items"
from   = "db.items"
bucket = "all"

[[view]]
name   = "counts"
from   = "processor:counts"
bucket = "all"

[[membership]]
bucket = "all"
"#;

/// A node with all roles, and the name of its topology.
struct Node {
    name: &'static str,
    dev: Dev,
    data: PathBuf,
}

impl Node {
    fn start(dir: &Path, name: &'static str, kafka: &str) -> Node {
        let (data, file) = (dir.join(name), dir.join(format!("{name}.toml")));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(&file, format!("name = \"{name}\"\n{TOPOLOGY}")).unwrap();
        let file = file.display().to_string();
        let dev = Dev::start(&data, &["--topology", &file, "--kafka", kafka]);
        Node { name, dev, data }
    }

    /// Posts an item and an event that carry the name of the topology.
    fn post(&self) {
        let item = json!({"table": "items", "op": "put", "row": {"id": 1, "name": self.name}});
        let bodies = [
            ("change.db", json!({ "changes": [item] })),
            ("event.seen", json!({"item": 1, "name": self.name})),
        ];
        let token = std::fs::read_to_string(self.data.join("ingest.token")).unwrap();
        for (topic, body) in bodies {
            wait_for("a post to be stored", LIMIT, || {
                let sent = reqwest::blocking::Client::new()
                    .post(format!("{}/v1/ingest/{topic}", self.dev.url("ingest")))
                    .bearer_auth(token.trim())
                    .json(&body)
                    .send()
                    .ok()?;
                // The response is 503 until the source runs.
                assert!(!sent.status().is_client_error(), "{}", sent.text().unwrap());
                sent.status().is_success().then_some(())
            });
        }
    }

    /// Waits until a device has both rows, and checks that it has no other rows.
    fn sync(&self) {
        let mut phone = Phone::new("phone-1", &self.dev.token("1", &[]));
        let mut all = |p: &Phone| p.view("items").count() == 1 && p.view("counts").count() == 1;
        let is_own = |p: &Phone| assert!(p.rows.values().all(|row| row["name"] == self.name), "{:?}", p.rows);
        follow(&mut phone, &self.dev.url("edge"), LIMIT, &is_own, &mut all);
        let counts: Vec<String> = phone.view("counts").map(|row| row["count"].to_string()).collect();
        assert_eq!(counts.len(), 1, "{counts:?}");
        assert!(counts[0].contains('1'), "{counts:?}");
    }
}

/// Names of all topics and groups, without those of Kafka itself.
fn names(log: &SharedEventLog) -> BTreeSet<String> {
    let groups = log.groups().unwrap().into_iter().map(|group| group.group);
    let topics = log.topics().unwrap().into_iter();
    topics.chain(groups).filter(|name| !name.starts_with("__")).collect()
}

#[test]
fn topologies_on_one_cluster_stay_apart() {
    let broker = Broker::start();
    let kafka = broker.bootstrap();
    let dir = tempfile::tempdir().unwrap();
    let log = event_log::kafka::KafkaLog::connect(event_log::kafka::Config::new(kafka.clone())).unwrap();
    let first = Node::start(dir.path(), "shop", &kafka);
    first.post();
    first.sync();
    let before = names(&log);
    let second = Node::start(dir.path(), "shop-stage", &kafka);
    second.post();
    second.sync();
    first.sync();
    let after = names(&log);
    let of = |prefix: &str| -> BTreeSet<String> {
        let local = after.iter().filter_map(|name| name.strip_prefix(prefix));
        local.map(str::to_owned).collect()
    };
    assert!(!of("shop.").is_empty());
    assert_eq!(of("shop."), of("shop-stage."));
    let new: Vec<&String> = after.difference(&before).collect();
    assert!(new.iter().all(|name| name.starts_with("shop-stage.")), "{new:?}");
    let shared: Vec<&String> = before.iter().filter(|name| !name.starts_with("shop.")).collect();
    assert_eq!(shared, ["_schemas"]);
}
