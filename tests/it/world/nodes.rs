//! The nodes of a topology, each a `trunkline run` of its own: started, killed as by kill -9, stopped, wiped, at will.
//!
//! Guarantees: ports stay over restarts; a node's log is one file over all its lives. Never: a node that outlives the
//! value.

use super::dev::binary;
use super::{free_port, wait_for};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// What the devices' tokens are signed with.
const SECRET: &str = "a secret of the tests, more than 32 bytes long";
const ISSUER: &str = "https://issuer.tests.invalid/";
/// 32 zero bytes.
const CURSOR_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const BACKEND: &str = "the backend's token";

#[derive(Debug)]
struct Node {
    dir: PathBuf,
    edge: u16,
    ingest: u16,
    admin: u16,
    registry: u16,
    child: Option<Child>,
}

/// All nodes of a topology on this machine.
#[derive(Debug)]
pub struct Fleet {
    dir: TempDir,
    nodes: BTreeMap<String, Node>,
}

impl Fleet {
    /// Lays out the nodes that a topology declares; `more` is what every node's configuration holds besides
    /// addresses, brokers and keys (a connector's table, say). Nothing is started.
    pub fn new(topology: &str, kafka: &str, more: &str) -> Fleet {
        let dir = tempfile::Builder::new()
            .prefix("trunkline-fleet-")
            .tempdir()
            .expect("make a directory");
        fs::write(dir.path().join("topology.toml"), topology).expect("write the topology");
        let declared: toml::Table = topology.parse().expect("a topology is TOML");
        let names = declared["node"].as_array().expect("nodes").iter();
        let nodes = names.map(|n| n["name"].as_str().expect("a name").to_owned());
        let nodes = nodes.map(|name| {
            let node = Node::lay_out(&dir.path().join(&name), kafka, more);
            (name, node)
        });
        let nodes = nodes.collect();
        Fleet { dir, nodes }
    }

    fn node(&self, name: &str) -> &Node {
        self.nodes.get(name).expect("the topology declares the node")
    }

    fn child(&mut self, name: &str) -> &mut Option<Child> {
        let node = self.nodes.get_mut(name).expect("the topology declares the node");
        &mut node.child
    }

    /// Starts a node and does not wait for it.
    pub fn start(&mut self, name: &str) {
        self.start_with(name, "");
    }

    /// Starts a node that dies, or waits, at these failpoints (`process::failpoint`).
    pub fn start_with(&mut self, name: &str, failpoints: &str) {
        let node = self.node(name);
        assert!(node.child.is_none(), "{name} runs");
        let log = File::options().create(true).append(true).open(node.dir.join("log"));
        let child = Command::new(binary())
            .arg("run")
            .arg(name)
            .arg("--topology")
            .arg(self.topology())
            .arg("--config")
            .arg(node.dir.join("trunkline.toml"))
            .env(process::failpoint::VARIABLE, failpoints)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("open the node's log"))
            .spawn()
            .expect("the binary starts");
        *self.child(name) = Some(child);
    }

    /// Starts every node.
    pub fn start_all(&mut self) {
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        names.iter().for_each(|name| self.start(name));
    }

    /// Kills a node, as by kill -9.
    pub fn kill(&mut self, name: &str) {
        let mut child = self.child(name).take().expect("the node runs");
        child.kill().expect("kill the node");
        child.wait().expect("wait for the node");
    }

    /// Stops a node by SIGTERM and waits until it has ended.
    pub fn stop(&mut self, name: &str) -> ExitStatus {
        let mut child = self.child(name).take().expect("the node runs");
        let sent = Command::new("kill").arg(child.id().to_string()).status();
        assert!(sent.expect("run kill").success(), "the node has ended before");
        child.wait().expect("wait for the node")
    }

    /// Waits until a node has ended by itself.
    pub fn died(&mut self, name: &str, limit: Duration) -> ExitStatus {
        let mut child = self.child(name).take().expect("the node was started");
        let status = wait_for(&format!("the death of {name}"), limit, || {
            child.try_wait().expect("a child can be asked")
        });
        drop(child);
        status
    }

    /// Whether a node has ended by itself.
    pub fn has_ended(&mut self, name: &str) -> bool {
        let child = self.child(name).as_mut().expect("the node was started");
        child.try_wait().expect("a child can be asked").is_some()
    }

    /// Forgets everything that a stopped node kept on disk, but for its log lines.
    pub fn wipe(&self, name: &str) {
        let node = self.node(name);
        assert!(node.child.is_none(), "{name} runs");
        fs::remove_dir_all(node.dir.join("data")).expect("remove the node's data");
    }

    /// What `/readyz` says: whether it is green, and why not. Nothing when nobody answers.
    pub fn ready(&self, name: &str) -> Option<(bool, String)> {
        let answer = reqwest::blocking::get(format!("{}/readyz", self.admin(name))).ok()?;
        let green = answer.status().is_success();
        Some((green, answer.text().ok()?))
    }

    /// Waits until nodes are ready.
    pub fn wait_ready(&self, names: &[&str], limit: Duration) {
        for name in names {
            wait_for(&format!("{name} to be ready"), limit, || {
                self.ready(name).filter(|(green, _)| *green)
            });
        }
    }

    /// Waits until a node is red for a reason that holds `word`; the whole answer.
    pub fn wait_red(&self, name: &str, word: &str, limit: Duration) -> String {
        let what = format!("{name} to be red for {word:?}");
        wait_for(&what, limit, || {
            let (green, said) = self.ready(name)?;
            (!green && said.contains(word)).then_some(said)
        })
    }

    /// The process of a node that runs.
    pub fn pid(&self, name: &str) -> u32 {
        self.node(name).child.as_ref().expect("the node runs").id()
    }

    /// URL of a node's devices' listener.
    pub fn edge(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}", self.node(name).edge)
    }

    /// URL of a node's operators' listener.
    pub fn admin(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}", self.node(name).admin)
    }

    /// URL of a node's backends' listener.
    pub fn ingest(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}", self.node(name).ingest)
    }

    /// URL of a node's registry.
    pub fn registry(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}", self.node(name).registry)
    }

    /// The token that backends post with.
    pub fn backend(&self) -> &'static str {
        BACKEND
    }

    /// The topology's file.
    pub fn topology(&self) -> PathBuf {
        self.dir.path().join("topology.toml")
    }

    /// A node's configuration file.
    pub fn config(&self, name: &str) -> PathBuf {
        self.node(name).dir.join("trunkline.toml")
    }

    /// A node's log lines.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.node(name).dir.join("log")).unwrap_or_default()
    }

    /// A device's token, good for an hour.
    pub fn token(&self, sub: &str, claims: &[(&str, Value)]) -> String {
        let now = process::clock::system().now_ms() / 1000;
        let mut all = json!({"iss": ISSUER, "aud": "tests", "sub": sub, "iat": now, "exp": now + 3600});
        for (name, value) in claims {
            all[*name] = value.clone();
        }
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &all, &key).expect("sign a token")
    }
}

impl Node {
    fn lay_out(dir: &Path, kafka: &str, more: &str) -> Node {
        fs::create_dir_all(dir).expect("make the node's directory");
        let node = Node {
            dir: dir.to_owned(),
            edge: free_port(),
            ingest: free_port(),
            admin: free_port(),
            registry: free_port(),
            child: None,
        };
        let data = dir.join("data").display().to_string();
        let mut text = format!("data_dir = {data:?}\n\n");
        write!(
            text,
            "[kafka]\nbrokers = \"{kafka}\"\n\n\
             [admin]\nlisten = \"127.0.0.1:{}\"\n\n\
             [ingest]\nlisten = \"127.0.0.1:{}\"\n\
             credentials = [{{ name = \"backend\", token = \"{BACKEND}\", topics = [\"*\"] }}]\n\n\
             [edge]\nlisten = \"127.0.0.1:{}\"\ndata_dir = {data:?}\n\
             cursor_keys = [{{ id = 1, secret = \"{CURSOR_KEY}\" }}]\n\n\
             [[edge.issuers]]\nalias = \"main\"\nissuer = \"{ISSUER}\"\naudience = [\"tests\"]\n\
             algorithms = [\"HS256\"]\nsecret = \"{SECRET}\"\n\n",
            node.admin, node.ingest, node.edge
        )
        .expect("a string takes any text");
        if !more.contains("[registry]") {
            writeln!(text, "[registry]\nlisten = \"127.0.0.1:{}\"\n", node.registry).expect("a string takes any text");
        }
        text.push_str(more);
        fs::write(dir.join("trunkline.toml"), text).expect("write the node's configuration");
        node
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for (name, node) in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            if std::thread::panicking() {
                let log = fs::read_to_string(node.dir.join("log")).unwrap_or_default();
                let lines: Vec<&str> = log.lines().rev().take(12).collect();
                eprintln!("the last lines of {name}:");
                lines.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}
