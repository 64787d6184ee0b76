//! The nodes of a topology. Each is a separate `trunkline run` process, which tests can start, stop and kill, and whose
//! data they can delete.
//!
//! Ports and log file of a node stay the same across restarts. All nodes are killed on drop.

use super::dev::binary;
use super::{free_port, last_lines, signal, wait_for};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Secret that signs device tokens.
const SECRET: &str = "a secret of the tests, more than 32 bytes long";
const ISSUER: &str = "https://issuer.tests.invalid/";
/// 32 zero bytes.
const CURSOR_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

#[derive(Debug)]
struct Node {
    dir: PathBuf,
    edge: u16,
    admin: u16,
    child: Option<Child>,
}

/// All nodes of a topology on this machine.
#[derive(Debug)]
pub struct Fleet {
    dir: TempDir,
    /// URL of the registry, if a node serves it.
    registry: Option<String>,
    nodes: BTreeMap<String, Node>,
}

impl Fleet {
    /// Configures the nodes of a topology without starting them. `more` is appended to the configuration of every node,
    /// which contains addresses, brokers and keys. If a node runs the registry, all others use it.
    pub fn new(topology: &str, kafka: &str, more: &str) -> Fleet {
        let dir = tempfile::Builder::new()
            .prefix("trunkline-fleet-")
            .tempdir()
            .expect("make a directory");
        fs::write(dir.path().join("topology.toml"), topology).expect("write the topology");
        let declared: toml::Table = topology.parse().expect("a topology is TOML");
        let declared = declared["node"].as_array().expect("nodes").iter();
        let serves_registry = |node: &toml::Value| {
            let runs = node["runs"].as_array().expect("roles");
            runs.iter().any(|role| role.as_str() == Some("registry"))
        };
        let registry = declared.clone().any(serves_registry).then(free_port);
        let nodes = declared.map(|node| {
            let name = node["name"].as_str().expect("a name").to_owned();
            let registry = match registry {
                None => String::new(),
                Some(port) if serves_registry(node) => format!("listen = \"127.0.0.1:{port}\""),
                Some(port) => format!("url = \"http://127.0.0.1:{port}\""),
            };
            let node = Node::configure(&dir.path().join(&name), kafka, &registry, more);
            (name, node)
        });
        let nodes = nodes.collect();
        let registry = registry.map(|port| format!("http://127.0.0.1:{port}"));
        Fleet { dir, registry, nodes }
    }

    /// Replaces the topology, which nodes read when they start. It has the same nodes.
    pub fn declare(&self, topology: &str) {
        fs::write(self.dir.path().join("topology.toml"), topology).expect("write the topology");
    }

    /// Appends to a node's configuration, in its last TOML table.
    pub fn configure(&self, name: &str, more: &str) {
        let file = self.node(name).dir.join("trunkline.toml");
        let before = fs::read_to_string(&file).expect("read the node's configuration");
        fs::write(&file, before + more).expect("write the node's configuration");
    }

    /// URL of the registry that a node serves.
    pub fn registry(&self) -> &str {
        self.registry.as_deref().expect("a node runs the registry")
    }

    /// A node's log since its first start.
    pub fn log(&self, name: &str) -> String {
        let log = fs::read(self.node(name).dir.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Exit status of a started node, if it has ended.
    pub fn ended(&mut self, name: &str) -> Option<ExitStatus> {
        let child = self.child(name).as_mut()?;
        child.try_wait().expect("poll the exit status")
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

    /// Starts a node with failpoints (`failpoint::arm`).
    pub fn start_with(&mut self, name: &str, failpoints: &str) {
        let node = self.node(name);
        assert!(node.child.is_none(), "{name} runs");
        let log = File::options().create(true).append(true).open(node.dir.join("log"));
        let child = Command::new(binary())
            .arg("run")
            .arg(name)
            .arg("--topology")
            .arg(self.dir.path().join("topology.toml"))
            .arg("--config")
            .arg(node.dir.join("trunkline.toml"))
            .env(service::config::FAILPOINTS, failpoints)
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

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, name: &str) {
        let mut child = self.child(name).take().expect("the node runs");
        child.kill().expect("kill the node");
        child.wait().expect("wait for the node");
    }

    /// Sends SIGTERM to a node and waits until it has shut down successfully.
    pub fn stop(&mut self, name: &str, limit: Duration) {
        signal(self.running(name).expect("the node runs"), "-TERM");
        let status = self.died(name, limit);
        assert!(status.success(), "{name} ended with {status}");
    }

    /// Id of a node's process, if it runs.
    pub fn running(&self, name: &str) -> Option<u32> {
        self.node(name).child.as_ref().map(Child::id)
    }

    /// Waits until a node has ended without being stopped.
    pub fn died(&mut self, name: &str, limit: Duration) -> ExitStatus {
        let mut child = self.child(name).take().expect("the node was started");
        wait_for(&format!("{name} to end"), limit, || {
            child.try_wait().expect("poll the exit status")
        })
    }

    /// Deletes the data directory of a stopped node. Its log file remains.
    pub fn wipe(&self, name: &str) {
        let node = self.node(name);
        assert!(node.child.is_none(), "{name} runs");
        fs::remove_dir_all(node.dir.join("data")).expect("remove the node's data");
    }

    /// Waits until a node's `/readyz` returns 200.
    pub fn wait_ready(&self, name: &str, limit: Duration) {
        wait_for(&format!("{name} to be ready"), limit, || {
            let (status, _) = self.readyz(name)?;
            (status == 200).then_some(())
        });
    }

    /// Waits until a node's `/readyz` returns 503 with `cause` in the cause of a component, and checks that the
    /// component has a next command.
    pub fn wait_red(&self, name: &str, component: &str, cause: &str, limit: Duration) {
        wait_for(&format!("{name} to report {cause:?} for {component}"), limit, || {
            let (status, report) = self.readyz(name)?;
            let text = |red: &Value, name: &str| red[name].as_str().unwrap_or_default().to_owned();
            let mut all = report["components"].as_array()?.iter();
            let red = all.find(|red| red["name"] == component && text(red, "cause").contains(cause))?;
            assert_eq!(status, 503, "{report}");
            assert!(!text(red, "fix").is_empty(), "{report}");
            Some(())
        });
    }

    /// Response of a node's `/readyz`; `None` if the node does not serve it.
    fn readyz(&self, name: &str) -> Option<(u16, Value)> {
        let url = format!("http://127.0.0.1:{}/readyz", self.node(name).admin);
        let answer = reqwest::blocking::get(&url).ok()?;
        Some((answer.status().as_u16(), answer.json().ok()?))
    }

    /// Waits until every node is ready.
    pub fn wait_all_ready(&self, limit: Duration) {
        self.nodes.keys().for_each(|name| self.wait_ready(name, limit));
    }

    /// URL of a node's edge listener.
    pub fn edge(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}", self.node(name).edge)
    }

    /// URL of a node's admin listener.
    pub fn admin(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}", self.node(name).admin)
    }

    /// A device token that expires after an hour.
    pub fn token(&self, sub: &str, claims: &[(&str, Value)]) -> String {
        let now = service::clock::system().now_ms() / 1000;
        let mut all = json!({"iss": ISSUER, "aud": "tests", "sub": sub, "iat": now, "exp": now + 3600});
        for (name, value) in claims {
            all[*name] = value.clone();
        }
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &all, &key).expect("sign a token")
    }
}

impl Node {
    fn configure(dir: &Path, kafka: &str, registry: &str, more: &str) -> Node {
        fs::create_dir_all(dir).expect("make the node's directory");
        let node = Node {
            dir: dir.to_owned(),
            edge: free_port(),
            admin: free_port(),
            child: None,
        };
        let data = dir.join("data").display().to_string();
        let mut text = format!("data_dir = {data:?}\n\n");
        write!(
            text,
            "[kafka]\nbrokers = \"{kafka}\"\n\n\
             [admin]\nlisten = \"127.0.0.1:{}\"\n\n\
             [registry]\n{registry}\n\n\
             [edge]\nlisten = \"127.0.0.1:{}\"\ndata_dir = {data:?}\n\
             cursor_keys = [{{ id = 1, secret = \"{CURSOR_KEY}\" }}]\n\n\
             [[edge.issuers]]\nalias = \"main\"\nissuer = \"{ISSUER}\"\naudience = [\"tests\"]\n\
             algorithms = [\"HS256\"]\nsecret = \"{SECRET}\"\n\n",
            node.admin, node.edge
        )
        .expect("a string takes any text");
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
                eprintln!("end of the log of {name}:\n{}", last_lines(&node.dir.join("log"), 12));
            }
        }
    }
}
