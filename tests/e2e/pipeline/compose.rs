//! Runs the services of docker-compose.yml without a container engine: their commands, environments and files, with
//! loopback addresses instead of host names.
//!
//! Kafka runs with the settings of the file, and devices use the published ports. Local binaries replace the images; the
//! registry of `tests/run` replaces the registry service.

use super::follow;
use super::harness::branch_is_whole;
use crate::support::{self, Broker, Phone, Postgres, binary, free_port, last_lines, postgres_bin};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(90);
/// Accounts of the only branch.
const ACCOUNTS: usize = 100_000;

/// docker-compose.yml, and the addresses of its services on this machine.
struct Compose {
    root: PathBuf,
    services: serde_json::Map<String, Value>,
    /// Addresses in the file, with their replacements.
    addresses: Vec<(&'static str, String)>,
}

/// A running Trunkline service: its directory, its process, and its published port.
struct Node {
    name: String,
    dir: TempDir,
    child: Child,
    edge: u16,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = last_lines(&self.dir.path().join("log"), 12);
            eprintln!("end of the log of {}:\n{log}", self.name);
        }
    }
}

fn texts(list: &Value) -> Vec<String> {
    let one = |text: &Value| text.as_str().expect("a text").to_owned();
    list.as_array().expect("a list").iter().map(one).collect()
}

fn variables(service: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let all = service["environment"].as_object().expect("an environment").iter();
    all.map(|(name, value)| (name.clone(), text(value))).collect()
}

impl Compose {
    fn read() -> Compose {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let text = fs::read_to_string(root.join("docker-compose.yml")).expect("docker-compose.yml");
        let mut file: Value = serde_saphyr::from_str(&text).expect("it is YAML");
        let services = file["services"].take();
        let services = services.as_object().expect("services").clone();
        Compose {
            root,
            services,
            addresses: Vec::new(),
        }
    }

    fn service(&self, name: &str) -> &Value {
        self.services.get(name).unwrap_or_else(|| panic!("no service {name}"))
    }

    fn localize(&self, text: &str) -> String {
        let addresses = self.addresses.iter();
        addresses.fold(text.to_owned(), |text, (remote, local)| text.replace(remote, local))
    }

    /// Starts Kafka like the image does: the variable `KAFKA_A_B` is the setting `a.b`.
    fn kafka(&mut self) -> Broker {
        let all = variables(self.service("kafka"));
        let broker = Broker::start_from(|dir, port, controller| {
            let mut text = String::new();
            for (name, value) in &all {
                let Some(name) = name.strip_prefix("KAFKA_") else {
                    continue;
                };
                let value = value
                    .replace("//:9092", &format!("//127.0.0.1:{port}"))
                    .replace("//:9093", &format!("//127.0.0.1:{controller}"))
                    .replace("kafka:9092", &format!("127.0.0.1:{port}"))
                    .replace("kafka:9093", &format!("127.0.0.1:{controller}"))
                    .replace("/var/lib/kafka/data", &dir.join("data").display().to_string());
                writeln!(text, "{}={value}", name.to_lowercase().replace('_', ".")).expect("a string takes any text");
            }
            text
        });
        self.addresses.push(("kafka:9092", broker.bootstrap()));
        broker
    }

    fn postgres(&mut self) -> Postgres {
        let command = texts(&self.service("postgres")["command"]);
        assert!(command.iter().any(|word| word == "wal_level=logical"), "{command:?}");
        let postgres = Postgres::start();
        let (_, address) = postgres
            .url()
            .split_once('@')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .expect("a URL with a user");
        let (host, _) = address.split_once('/').expect("a URL with a database");
        self.addresses.push(("postgres:5432", host.to_owned()));
        postgres
    }

    /// Command of a service that runs one program of the postgres image.
    fn bank(&self, name: &str) -> Command {
        let service = self.service(name);
        let words: Vec<String> = texts(&service["entrypoint"]);
        let script = |word: &String| word.replace("/etc/trunkline/", &format!("{}/deploy/", self.root.display()));
        let (host, port) = self
            .localize("postgres:5432")
            .split_once(':')
            .map(|(h, p)| (h.to_owned(), p.to_owned()))
            .expect("a port");
        let programs = format!("{}:/usr/bin:/bin", postgres_bin().display());
        // `Command` looks up the program in the PATH of this process, not of the child.
        let program = match words.first().map(String::as_str) {
            Some("pgbench") => postgres_bin().join("pgbench"),
            Some(other) => PathBuf::from(other),
            None => panic!("{name} has no program"),
        };
        let mut command = Command::new(program);
        command.args(words.iter().skip(1).map(script)).envs(variables(service));
        command.env("PATH", programs).env("PGHOST", host).env("PGPORT", port);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Starts a Trunkline service. Its files are copied, with local addresses, to the paths from which it reads them.
    fn node(&self, name: &str) -> Node {
        let service = self.service(name);
        let dir = tempfile::Builder::new()
            .prefix("trunkline-compose-")
            .tempdir()
            .expect("make a directory");
        let working_dir = service["working_dir"].as_str().expect("a working directory");
        let (data, edge, admin) = (dir.path().join("data"), free_port(), free_port());
        let mut holds_data = false;
        for volume in texts(&service["volumes"]) {
            let mut parts = volume.split(':');
            let (from, to) = (parts.next().expect("a source"), parts.next().expect("a target"));
            holds_data |= to == "/var/lib/trunkline";
            let Some(file) = to.strip_prefix(working_dir) else {
                continue;
            };
            let text = fs::read_to_string(self.root.join(from)).unwrap_or_else(|e| panic!("{from}: {e}"));
            let text = self
                .localize(&text)
                .replace("/var/lib/trunkline", &data.display().to_string())
                .replace("0.0.0.0:8080", &format!("127.0.0.1:{edge}"))
                .replace("127.0.0.1:9464", &format!("127.0.0.1:{admin}"));
            fs::write(dir.path().join(file.trim_start_matches('/')), text).expect("write a file");
        }
        assert!(holds_data, "{name} has no data volume");
        let log = File::create(dir.path().join("log")).expect("create the node's log");
        let command = self
            .command(name, &texts(&service["command"]), dir.path())
            .stderr(log)
            .spawn();
        Node {
            name: name.to_owned(),
            child: command.expect("the binary starts"),
            dir,
            edge,
        }
    }

    /// Command of the trunkline binary, with the environment of the service.
    fn command(&self, name: &str, arguments: &[String], dir: &Path) -> Command {
        let file = self.service(name)["env_file"].as_str().expect("a file of variables");
        let text = fs::read_to_string(self.root.join(file)).expect("the file of variables");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let all: Vec<_> = lines.filter_map(|line| line.split_once('=')).collect();
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command.envs(all.into_iter().map(|(name, value)| (name, self.localize(value))));
        command
    }
}

#[test]
fn compose_file_delivers_pgbench_to_a_device() {
    let mut compose = Compose::read();
    let _kafka = compose.kafka();
    compose
        .addresses
        .push(("http://registry:8081", support::registry_url()));
    let _postgres = compose.postgres();
    let made = compose.bank("bank").status().expect("the script runs");
    assert!(made.success(), "the first run of the script failed");
    let again = compose.bank("bank").status().expect("the script runs");
    assert!(again.success(), "the second run of the script failed");

    let ours: Vec<String> = {
        let built = compose
            .services
            .iter()
            .filter(|(_, service)| service["build"].is_string());
        built.map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(ours, ["connector", "edge-1", "edge-2", "processor"]);
    let nodes: Vec<Node> = ours.iter().map(|name| compose.node(name)).collect();
    let mut load = compose
        .bank("load")
        .stderr(Stdio::null())
        .spawn()
        .expect("pgbench starts");

    // The command of the README.
    let edge = nodes.iter().find(|node| node.name == "edge-1").expect("an edge");
    let words = [
        "token",
        "--config",
        "trunkline.toml",
        "--sub",
        "me",
        "--claim",
        "branch=1",
    ]
    .map(str::to_owned);
    let minted = compose
        .command("edge-1", &words, edge.dir.path())
        .stdout(Stdio::piped())
        .output();
    let token = String::from_utf8(minted.expect("the binary runs").stdout).expect("text");

    let mut phone = Phone::new("phone", token.trim());
    for node in nodes.iter().filter(|node| node.name.starts_with("edge")) {
        assert!(
            compose.service(&node.name)["ports"][0]
                .as_str()
                .is_some_and(|p| p.ends_with(":8080"))
        );
        let url = format!("http://127.0.0.1:{}", node.edge);
        let mut pages = None;
        follow(&mut phone, &url, LIMIT, &branch_is_whole, &mut |phone| {
            let whole = phone.rows.len() > ACCOUNTS && phone.complete > 0;
            let first = *pages.get_or_insert(phone.complete);
            if !whole {
                pages = None;
            }
            whole && phone.complete > first + 3
        });
    }
    load.kill().expect("kill pgbench");
    load.wait().expect("wait for pgbench");
}
