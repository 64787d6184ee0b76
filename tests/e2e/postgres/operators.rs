//! `trunkline connect`, `trunkline doctor` and `trunkline dev --fresh` on a PostgreSQL database.

use super::harness::{Database, LIMIT};
use crate::support::{Dev, binary, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const TABLES: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, note text); INSERT INTO orders VALUES (1, 'one');
    CREATE TABLE other (id bigint PRIMARY KEY)";

struct Own {
    database: Database,
    directory: tempfile::TempDir,
}

impl Own {
    fn new() -> Self {
        let database = Database::new();
        database.sql(TABLES);
        let directory = tempfile::tempdir().unwrap();
        let own = Own { database, directory };
        Dev::output(&["init", "--postgres", &own.database.url, "--file", &own.topology()]);
        own
    }

    fn topology(&self) -> String {
        self.directory.path().join("topology.toml").to_str().unwrap().to_owned()
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn dev(&self) -> Dev {
        Dev::start(
            &self.data(),
            &["--topology", &self.topology(), "--postgres", &self.database.url],
        )
    }

    /// The name of the only connector.
    fn connector(&self) -> String {
        let declared: toml::Table = std::fs::read_to_string(self.topology()).unwrap().parse().unwrap();
        declared["connector"][0]["name"].as_str().unwrap().to_owned()
    }

    fn run(&self, args: &[&str]) -> Output {
        let (first, rest) = args.split_first().unwrap();
        let mut command = Command::new(binary());
        command
            .args(["--output", "json", first, "--data"])
            .arg(self.data())
            .args(rest);
        command.output().unwrap()
    }

    fn json(&self, args: &[&str]) -> (bool, Value) {
        let out = self.run(args);
        let (text, error) = (
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
        let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{args:?}: {text}{error}"));
        (out.status.success(), json)
    }

    fn wait_for(&self, state: &str) -> Value {
        wait_for(state, LIMIT, || {
            let out = self.run(&["connect", "status"]);
            let status: Value = serde_json::from_slice(&out.stdout).ok()?;
            (status[0]["state"] == state).then(|| status[0].clone())
        })
    }

    fn drop_slot(&self) {
        wait_for("the slot to be free", LIMIT, || {
            self.database.slot("active").filter(|active| active == "false")
        });
        self.database.sql(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()",
        );
    }
}

fn problems(findings: &Value) -> Vec<(&str, &str)> {
    let problems = findings
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["level"] == "bad");
    problems
        .map(|finding| (finding["found"].as_str().unwrap(), finding["fix"].as_str().unwrap()))
        .collect()
}

#[test]
fn connector_that_needs_a_resync_is_red_everywhere_and_the_named_command_repairs_it() {
    let own = Own::new();
    let mut dev = own.dev();
    let name = own.connector();
    own.wait_for("RUNNING");
    dev.kill();
    own.drop_slot();
    dev.restart();
    let status = own.wait_for("NEEDS_RESYNC");
    let fix = status["fix"].as_str().unwrap();
    let command = format!("trunkline connect resync {name}");
    assert!(fix.contains(&command), "{fix}");
    assert!(!own.run(&["connect", "status"]).status.success());

    let args = ["doctor", "--topology", &own.topology(), "--postgres", &own.database.url];
    let (ok, findings) = own.json(&args);
    let problems = problems(&findings);
    assert!(!ok, "{findings:#}");
    let connector = problems
        .iter()
        .find(|(found, _)| found.contains(&format!("connector {name} is NEEDS_RESYNC")));
    assert!(connector.unwrap_or_else(|| panic!("{findings:#}")).1.contains(&command));
    let all = findings.to_string();
    assert!(
        all.contains("does not exist") && all.contains("2 declared tables match the database"),
        "{findings:#}"
    );

    let (ok, status) = own.json(&["connect", "resync", &name, "--yes", "--wait", "--timeout", "60"]);
    assert!(ok && status[0]["state"] == "RUNNING", "{status}");
    assert!(own.run(&["connect", "status"]).status.success());
    wait_for("doctor to find no problem", LIMIT, || {
        own.run(&args).status.success().then_some(())
    });
}

#[test]
fn doctor_compares_the_topology_with_the_database() {
    let own = Own::new();
    own.database
        .sql("ALTER TABLE orders DROP COLUMN note; DROP TABLE other");
    let args = ["doctor", "--topology", &own.topology(), "--postgres", &own.database.url];
    let (ok, findings) = own.json(&args);
    assert!(!ok);
    let found = problems(&findings);
    assert!(
        found
            .iter()
            .any(|(found, _)| found.contains("orders") && found.contains("note")),
        "{findings:#}"
    );
    assert!(
        found
            .iter()
            .any(|(found, _)| found.contains("table other does not exist")),
        "{findings:#}"
    );
}

/// Runs `dev` until the connector streams, ends it with SIGINT, and returns what it printed.
fn run_until_interrupted(own: &Own, args: &[&str]) -> String {
    let mut command = Dev::command(&own.data());
    let _ = std::fs::remove_file(own.data().join("dev.json"));
    command
        .args(["--topology", &own.topology(), "--postgres", &own.database.url])
        .args(args);
    let process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let slots: &Path = &own.data().join("slots.json");
    wait_for("dev to listen", LIMIT, || {
        own.data().join("dev.json").exists().then_some(())
    });
    own.wait_for("RUNNING");
    wait_for("the slot to be recorded", LIMIT, || slots.exists().then_some(()));
    let id = process.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let out = process.wait_with_output().unwrap();
    assert!(out.status.success());
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn dev_says_which_slot_remains_and_fresh_replaces_its_own_slot_only() {
    let own = Own::new();
    let printed = run_until_interrupted(&own, &[]);
    let slot = own.database.slot("slot_name").unwrap();
    assert!(
        printed.contains(&format!("Slot {slot} remains in PostgreSQL at")),
        "{printed}"
    );
    assert!(
        printed.contains(&format!("SELECT pg_drop_replication_slot('{slot}');")),
        "{printed}"
    );
    let printed = run_until_interrupted(&own, &["--fresh"]);
    assert!(
        printed.contains(&format!("Replacing slot {slot} of the previous data")),
        "{printed}"
    );

    // Another data directory has no proof that the slot is its own.
    std::fs::rename(own.data(), own.directory.path().join("elsewhere")).unwrap();
    let _dev = own.dev();
    let status = own.wait_for("FAILED");
    assert!(status["cause"].as_str().unwrap().contains(&slot), "{status}");
    assert!(own.database.slot("slot_name").is_some());
}
