//! `trunkline connect` and `trunkline doctor` on Kafka, with processes that are found by their announced addresses, and tokens
//! with roles.

use crate::support::{Broker, Fleet, binary, free_port, wait_for};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);
const TOPOLOGY: &str = r#"
name = "shop"

[[connector]]
name = "shop"
kind = "http"

[[table]]
source  = "shop"
name    = "orders"
key     = ["id"]
columns = { id = "int8", user_id = "text" }

[[bucket]]
name = "user:{id}"

[[view]]
name   = "orders"
from   = "shop.orders"
bucket = "user:{user_id}"

[[membership]]
bucket = "user:{sub}"

[[issuer]]
name = "main"

[[node]]
name = "connector"
runs = ["connector:shop", "registry"]

[[node]]
name = "views"
runs = ["processor:sync-views"]
"#;

/// Token with the role viewer.
pub const VIEWER: &str = "viewer-token-of-the-tests";
/// Token with the role operator.
pub const OPERATOR: &str = "operator-token-of-the-tests";

/// Configuration of a node with both tokens.
pub fn tokens() -> String {
    let token = |role: &str, token: &str| {
        format!("[[admin.tokens]]\nname = \"{role}\"\nrole = \"{role}\"\ntoken = \"{token}\"\n\n")
    };
    token("viewer", VIEWER) + &token("operator", OPERATOR)
}

/// The command line of operators, who know the brokers and the topology.
pub struct Operators {
    /// The option that names the log.
    log: [String; 2],
    topology: PathBuf,
    _dir: tempfile::TempDir,
}

impl Operators {
    pub fn new(kafka: &str, topology: &str) -> Operators {
        Operators::of_log(["--kafka".to_owned(), kafka.to_owned()], topology)
    }

    /// Operators of the log that this option names.
    pub fn of_log(log: [String; 2], topology: &str) -> Operators {
        let dir = tempfile::tempdir().unwrap();
        let operators = Operators {
            log,
            topology: dir.path().join("topology.toml"),
            _dir: dir,
        };
        operators.declare(topology);
        operators
    }

    /// Replaces the topology.
    pub fn declare(&self, topology: &str) {
        std::fs::write(&self.topology, topology).unwrap();
    }

    pub fn run(&self, token: &str, words: &[&str]) -> Output {
        let (first, rest) = words.split_first().unwrap();
        let mut command = Command::new(binary());
        command.args(["--output", "json", first]).args(&self.log).args(rest);
        command.env("TRUNKLINE_ADMIN_TOKEN", token).output().unwrap()
    }

    fn json(&self, token: &str, words: &[&str]) -> (bool, Value) {
        let out = self.run(token, words);
        let (text, error) = (
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
        let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{words:?}: {text}{error}"));
        (out.status.success(), json)
    }

    /// Whether `doctor` found no problem, and its findings.
    pub fn doctor(&self) -> (bool, Value) {
        self.json(VIEWER, &["doctor", "--topology", self.topology.to_str().unwrap()])
    }
}

#[test]
fn announced_processes_are_found_and_only_operators_change_connectors() {
    let broker = Broker::start();
    let operators = Operators::new(&broker.bootstrap(), TOPOLOGY);
    let more = format!(
        "{}[ingest]\nlisten = \"127.0.0.1:{}\"\n\
         credentials = [{{ name = \"backend\", token = \"a token\", topics = [\"*\"] }}]\n",
        tokens(),
        free_port()
    );
    let mut fleet = Fleet::new(TOPOLOGY, &operators.log[1], &more);
    fleet.start_all();
    fleet.wait_all_ready(LIMIT);

    let status = wait_for("the processes to be announced", LIMIT, || {
        let out = operators.run(VIEWER, &["connect", "status"]);
        let status: Value = serde_json::from_slice(&out.stdout).ok()?;
        (status[0]["state"] == "RUNNING").then_some(status)
    });
    assert_eq!(status[0]["at"], json!(fleet.admin("connector")));
    let out = operators.run(VIEWER, &["connect", "pause", "shop"]);
    let error = String::from_utf8(out.stderr).unwrap();
    assert!(
        error.contains("has the role viewer, but this request needs operator"),
        "{error}"
    );
    let (ok, paused) = operators.json(OPERATOR, &["connect", "pause", "shop", "--wait", "--timeout", "30"]);
    assert!(ok && paused[0]["state"] == "PAUSED", "{paused}");

    fleet.kill("connector");
    let (ok, findings) = operators.doctor();
    let text = findings.to_string();
    assert!(
        !ok && text.contains(&format!("cannot reach the process at {}", fleet.admin("connector"))),
        "{findings:#}"
    );
    assert!(
        text.contains("no process that answers runs connector shop"),
        "{findings:#}"
    );

    fleet.start("connector");
    fleet.wait_ready("connector", LIMIT);
    let (ok, findings) = wait_for("the connector to be paused", LIMIT, || {
        let (ok, findings) = operators.doctor();
        findings
            .to_string()
            .contains("connector shop is PAUSED")
            .then_some((ok, findings))
    });
    assert!(ok, "a pause is a warning: {findings:#}");
    let (ok, _) = operators.json(OPERATOR, &["connect", "resume", "shop", "--wait", "--timeout", "30"]);
    assert!(ok);
}
