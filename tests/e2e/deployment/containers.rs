//! Checks docker-compose.yml, the Dockerfile and deploy/.

use super::commands::{check_text, check_trunkline};
use super::tree::{Tree, mentioned, variables};
use crate::support::binary;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

const COMPOSE: &str = "docker-compose.yml";
const DOCKERFILE: &str = "Dockerfile";
const CONFIG: &str = "deploy/trunkline.toml";
const SECRETS: &str = "deploy/demo.env";

/// Environment variables of other projects' images, as named in their documentation. A new variable must be looked up
/// there and added here.
const IMAGE_VARIABLES: [&str; 24] = [
    "CLUSTER_ID",
    "KAFKA_ADVERTISED_LISTENERS",
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE",
    "KAFKA_CONTROLLER_LISTENER_NAMES",
    "KAFKA_CONTROLLER_QUORUM_VOTERS",
    "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS",
    "KAFKA_LISTENERS",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP",
    "KAFKA_LOG_DIRS",
    "KAFKA_NODE_ID",
    "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR",
    "KAFKA_PROCESS_ROLES",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR",
    "PGDATABASE",
    "PGHOST",
    "PGPASSWORD",
    "PGPORT",
    "PGUSER",
    "POSTGRES_PASSWORD",
    "POSTGRES_USER",
    "SCHEMA_REGISTRY_HOST_NAME",
    "SCHEMA_REGISTRY_KAFKASTORE_BOOTSTRAP_SERVERS",
    "SCHEMA_REGISTRY_LISTENERS",
];

pub fn findings(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let compose = tree.yaml(COMPOSE);
    let services = compose["services"].as_object().expect("services");
    for (name, service) in services {
        let mut found = service_findings(tree, services, service);
        if service["build"].is_string() {
            found.extend(node_findings(tree, service));
        }
        findings.extend(found.into_iter().map(|finding| format!("{COMPOSE}, {name}: {finding}")));
    }
    findings.extend(volume_findings(&compose, services));
    findings.extend(host_findings(tree, services));
    findings.extend(config_findings(tree, services));
    findings.extend(dockerfile_findings(tree, services));
    for script in tree.list("deploy").iter().filter(|file| file.ends_with(".sh")) {
        let found = check_text(tree, &tree.read(script));
        findings.extend(found.into_iter().map(|finding| format!("{script}: {finding}")));
    }
    findings
}

fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        Value::Object(table) => table.keys().map(String::as_str).collect(),
        Value::String(text) => vec![text],
        _ => Vec::new(),
    }
}

/// Source and target of each mount. A source that begins with `./` is a file or directory; any other is a named volume.
fn mounts(service: &Value) -> Vec<(&str, &str)> {
    let mounts = strings(&service["volumes"]).into_iter();
    mounts
        .filter_map(|mount| {
            let (source, rest) = mount.split_once(':')?;
            Some((source, rest.split(':').next().unwrap_or(rest)))
        })
        .collect()
}

/// Checks the files, services and variables of any service.
fn service_findings(tree: &Tree, services: &Map<String, Value>, service: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    let files = mounts(service)
        .into_iter()
        .filter(|(source, _)| source.starts_with("./"));
    let files = files.map(|(source, _)| source.trim_start_matches("./"));
    for file in files.chain(strings(&service["env_file"])) {
        if !tree.exists(file) {
            findings.push(format!("there is no {file}"));
        }
    }
    if let Some(context) = service["build"].as_str()
        && !tree.exists(&format!("{context}/{DOCKERFILE}"))
    {
        findings.push(format!("there is no {DOCKERFILE} in {context}"));
    }
    for other in strings(&service["depends_on"]) {
        match services.get(other) {
            None => findings.push(format!("depends on {other}, which is not a service")),
            Some(found) => {
                let healthy = service["depends_on"][other]["condition"] == "service_healthy";
                if healthy && found["healthcheck"].is_null() {
                    findings.push(format!("waits for the health of {other}, which has no healthcheck"));
                }
            }
        }
    }
    for variable in service["environment"].as_object().into_iter().flat_map(Map::keys) {
        if !IMAGE_VARIABLES.contains(&variable.as_str()) && !variables().contains(variable) {
            findings.push(format!("no program reads the variable {variable}"));
        }
    }
    findings
}

/// Checks the command line, node, topology, ports and data directory of a service that runs the Trunkline image.
fn node_findings(tree: &Tree, service: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    let command: Vec<String> = strings(&service["command"]).into_iter().map(str::to_owned).collect();
    check_trunkline(&command, &mut findings);
    let working_dir = service["working_dir"].as_str().unwrap_or_default();
    let mounts = mounts(service);
    let mounted = |name: &str| {
        let target = format!("{working_dir}/{name}");
        let mount = mounts.iter().find(|(_, to)| *to == target);
        mount.map(|(from, _)| from.trim_start_matches("./"))
    };
    // These file names are the defaults of `trunkline run`.
    match mounted("topology.toml") {
        None => findings.push(format!("no topology is mounted at {working_dir}/topology.toml")),
        Some(file) if !tree.exists(file) => {}
        Some(file) => {
            let topology = tree.toml(file);
            let nodes = topology["node"].as_array().into_iter().flatten();
            let names: Vec<_> = nodes.filter_map(|node| node.get("name")?.as_str()).collect();
            let node = command.get(1).map(String::as_str).unwrap_or_default();
            if !names.contains(&node) {
                findings.push(format!("{file} has no node {node}, only {}", names.join(", ")));
            }
        }
    }
    if mounted("trunkline.toml") != Some(CONFIG) {
        findings.push(format!("{CONFIG} is not mounted at {working_dir}/trunkline.toml"));
    }
    let config = tree.toml(CONFIG);
    let data = config.get("data_dir").and_then(toml::Value::as_str).unwrap_or_default();
    if !mounts.iter().any(|(from, to)| !from.starts_with("./") && *to == data) {
        findings.push(format!("no volume is mounted at {data}, the data_dir of {CONFIG}"));
    }
    let listen = config.get("edge").and_then(|edge| edge.get("listen")?.as_str());
    for port in strings(&service["ports"]) {
        let inner = port.rsplit(':').next();
        let listening = listen.and_then(|address| address.rsplit(':').next());
        if inner != listening {
            findings.push(format!("publishes {port}, but {CONFIG} has edge.listen = {listen:?}"));
        }
    }
    findings
}

fn volume_findings(compose: &Value, services: &Map<String, Value>) -> Vec<String> {
    let declared: BTreeSet<&str> = strings(&compose["volumes"]).into_iter().collect();
    let all = services.values().flat_map(mounts).map(|(source, _)| source);
    let used: BTreeSet<&str> = all.filter(|source| !source.starts_with("./")).collect();
    let difference = declared.symmetric_difference(&used);
    difference
        .map(|volume| format!("{COMPOSE}: the volume {volume} is either not declared or not used"))
        .collect()
}

/// Checks that every `host:port` in environments and in deploy/ contains the name of a service.
fn host_findings(tree: &Tree, services: &Map<String, Value>) -> Vec<String> {
    let mut texts: Vec<(String, String)> = Vec::new();
    for (name, service) in services {
        for (variable, value) in service["environment"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            let is_host = variable == "PGHOST" || variable.ends_with("_HOST_NAME");
            let value = if is_host { format!("{value}:0") } else { value };
            texts.push((format!("{COMPOSE}, {name}, {variable}"), value));
        }
    }
    for file in [CONFIG, SECRETS] {
        texts.push((file.to_owned(), tree.read(file)));
    }
    let mut findings = Vec::new();
    for (place, text) in &texts {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-')));
        let addresses = words.filter_map(|word| word.split_once(':'));
        let hosts = addresses
            .filter(|(_, port)| port.parse::<u16>().is_ok())
            .map(|(host, _)| host);
        let names = hosts.filter(|host| host.contains(|c: char| c.is_ascii_alphabetic()));
        let unknown = names.filter(|host| !services.contains_key(*host));
        findings.extend(unknown.map(|host| format!("{place}: {host} is not a service of {COMPOSE}")));
    }
    findings
}

/// Checks that the program can read the configuration, that the secrets in it are those that exist, and that the
/// topologies have no errors.
fn config_findings(tree: &Tree, services: &Map<String, Value>) -> Vec<String> {
    let mut findings = Vec::new();
    let (config, secrets) = (tree.read(CONFIG), tree.read(SECRETS));
    let lines = secrets.lines().filter(|line| !line.starts_with('#'));
    let variables: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once('=')).collect();
    for name in variables
        .keys()
        .filter(|name| !config.contains(&format!("${{env:{name}}}")))
    {
        findings.push(format!("{SECRETS}: {CONFIG} does not use {name}"));
    }
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("trunkline.toml");
    fs::write(&file, &config).expect("write the configuration");
    let run = |command: &mut Command| {
        let output = command
            .env_clear()
            .envs(&variables)
            .output()
            .expect("the binary starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        (!output.status.success()).then_some(text)
    };
    // `token` reads the whole configuration, but connects to nothing.
    let token = ["token", "--sub", "me", "--config"];
    let error = run(Command::new(binary()).args(token).arg(&file));
    findings.extend(error.map(|error| format!("{CONFIG}: {error}")));

    let mounted = services.values().flat_map(mounts).map(|(source, _)| source);
    let topologies: BTreeSet<&str> = mounted.filter(|source| source.starts_with("./topology/")).collect();
    for topology in topologies.into_iter().filter(|file| tree.exists(file)) {
        let error = run(Command::new(binary())
            .args(["topology", "check"])
            .arg(tree.path(topology)));
        findings.extend(error.map(|error| format!("{topology}: {error}")));
    }
    findings
}

/// Checks the sources, stages and programs of the Dockerfile, and the directories from which volumes take their owner.
fn dockerfile_findings(tree: &Tree, services: &Map<String, Value>) -> Vec<String> {
    let mut findings = Vec::new();
    let text = tree.read(DOCKERFILE).replace("\\\n", " ");
    let (mut stages, mut copied, mut created) = (Vec::new(), Vec::new(), String::new());
    for line in text.lines() {
        let (instruction, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        match (instruction, words.as_slice()) {
            ("FROM", [image, more @ ..]) => {
                stages.extend(more.get(1).copied());
                copied.clear();
                created.clear();
                if let Some(version) = image.strip_prefix("rust:") {
                    findings.extend(toolchain_finding(tree, version));
                }
            }
            ("COPY", [from, _, target]) if from.starts_with("--from=") => {
                let stage = from.trim_start_matches("--from=");
                if !stages.contains(&stage) {
                    findings.push(format!("there is no stage {stage}"));
                }
                copied.push((*target).to_owned());
            }
            ("COPY", [sources @ .., _]) => {
                let missing = sources.iter().filter(|source| !tree.exists(source));
                findings.extend(missing.map(|source| format!("there is no {source}")));
            }
            ("RUN", _) => {
                findings.extend(check_text(tree, rest));
                created.push_str(rest);
            }
            ("ENTRYPOINT", _) => {
                let program = rest.trim_matches(['[', ']', '"']);
                if !copied.iter().any(|path| path.ends_with(&format!("/{program}"))) {
                    findings.push(format!("the entry point {program} is not copied into the image"));
                }
            }
            _ => {}
        }
    }
    findings.extend(binary_findings(tree, &text));
    let ours = services.values().filter(|service| service["build"].is_string());
    let targets: BTreeSet<&str> = ours
        .flat_map(mounts)
        .filter(|(from, _)| !from.starts_with("./"))
        .map(|(_, to)| to)
        .collect();
    for target in targets {
        if !created.split_whitespace().any(|word| word == target) {
            findings.push(format!("{target} is not created, so a volume there belongs to root"));
        }
    }
    let unknown = mentioned(&text).filter(|name| !variables().contains(name));
    findings.extend(unknown.map(|name| format!("no source reads the variable {name}")));
    findings
        .into_iter()
        .map(|finding| format!("{DOCKERFILE}: {finding}"))
        .collect()
}

fn toolchain_finding(tree: &Tree, image: &str) -> Option<String> {
    let toolchain = tree.toml("rust-toolchain.toml");
    let channel = toolchain["toolchain"]["channel"]
        .as_str()
        .expect("a channel")
        .to_owned();
    let version = image.split('-').next().unwrap_or(image);
    let fits = channel == version || channel.starts_with(&format!("{version}."));
    (!fits).then(|| format!("rust:{image} is not the toolchain {channel} of rust-toolchain.toml"))
}

/// Checks that every file that a stage of the Dockerfile copies from target/release is a binary of the workspace.
fn binary_findings(tree: &Tree, text: &str) -> Vec<String> {
    let packages = tree.packages();
    let words = text
        .split_whitespace()
        .filter_map(|word| word.split_once("/target/release/"));
    let unknown = words.filter(|(_, name)| !packages.values().any(|package| package.bins.contains(*name)));
    unknown
        .map(|(_, name)| format!("the workspace has no binary {name}"))
        .collect()
}
