//! A dedicated Kafka broker, for tests that stop and restart it or need other settings than the shared one. It has a
//! separate data directory and ports, and is killed on drop.

use super::{free_port, kafka_libs, last_lines, signal, wait_for};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Client listener of the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listener {
    /// Plain text.
    Plain,
    /// TLS, or SASL over TLS, with these further broker settings (keystore, mechanisms).
    Secure {
        /// `SSL` or `SASL_SSL`.
        protocol: &'static str,
        /// Broker settings, by Kafka's names.
        settings: Vec<(String, String)>,
        /// Names and passwords for SCRAM-SHA-512; none without SASL.
        users: Vec<(String, String)>,
    },
}

/// A broker, running or stopped.
#[derive(Debug)]
pub struct Broker {
    directory: TempDir,
    port: u16,
    /// JVM options.
    jvm_options: &'static [&'static str],
    process: Option<Child>,
}

impl Broker {
    /// Starts a plain-text broker and waits until it is ready.
    pub fn start() -> Broker {
        Broker::start_with(&Listener::Plain, &[])
    }

    /// Starts a broker with a listener and further settings, which override the defaults.
    pub fn start_with(listener: &Listener, settings: &[(&str, &str)]) -> Broker {
        let mut users = Vec::new();
        if let Listener::Secure { users: all, .. } = listener {
            for (name, password) in all {
                users.push("--add-scram".to_owned());
                users.push(format!("SCRAM-SHA-512=[name={name},password={password}]"));
            }
        }
        let text = |dir: &Path, port, controller| properties(dir, port, controller, listener, settings);
        Broker::start_formatted(text, &users, SMALL)
    }

    /// Starts a broker for benchmarks, with the heap and the JIT compiler of production.
    pub fn start_in_full() -> Broker {
        let text = |dir: &Path, port, controller| properties(dir, port, controller, &Listener::Plain, &[]);
        Broker::start_formatted(text, &[], FULL)
    }

    /// Starts a broker with only the settings that `properties` returns for its directory, client port and controller port.
    pub fn start_from(properties: impl FnOnce(&Path, u16, u16) -> String) -> Broker {
        Broker::start_formatted(properties, &[], SMALL)
    }

    fn start_formatted(
        properties: impl FnOnce(&Path, u16, u16) -> String,
        format: &[String],
        jvm_options: &'static [&'static str],
    ) -> Broker {
        let directory = tempfile::Builder::new()
            .prefix("trunkline-broker-")
            .tempdir()
            .expect("make a directory");
        let (port, controller) = (free_port(), free_port());
        let text = properties(directory.path(), port, controller);
        let mut broker = Broker::lay_out(directory, port, &cluster_id(), &text, format);
        broker.jvm_options = jvm_options;
        broker.restart();
        broker
    }

    /// Formats the data directory without starting the broker.
    pub(super) fn lay_out(directory: TempDir, port: u16, id: &str, text: &str, format: &[String]) -> Broker {
        let path = directory.path().join("server.properties");
        fs::write(&path, text).expect("write server.properties");
        let formatted = java(TOOL)
            .args(["kafka.tools.StorageTool", "format", "-t", id, "-c"])
            .arg(&path)
            .args(format)
            .output()
            .expect("run java");
        assert!(
            formatted.status.success(),
            "format failed: {}",
            String::from_utf8_lossy(&formatted.stderr)
        );
        Broker {
            directory,
            port,
            jvm_options: SMALL,
            process: None,
        }
    }

    /// Directory of the partitions.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Bootstrap servers.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Id of the running broker's process.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the broker runs").id()
    }

    /// Kills the broker with SIGKILL. It keeps its data and port.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill the broker");
            process.wait().expect("wait for the broker");
        }
    }

    /// Stops the broker with SIGTERM and waits until it has shut down.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            signal(process.id(), "-TERM");
            process.wait().expect("wait for the broker");
        }
    }

    /// Restarts a stopped broker with the same data and port, and waits until it is ready.
    pub fn restart(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// Starts the broker without waiting.
    pub(super) fn launch(&mut self) {
        assert!(self.process.is_none(), "the broker is running");
        let log = self.directory.path().join("log");
        let file = File::create(&log).expect("create the broker's log");
        let process = java(self.jvm_options)
            .arg("kafka.Kafka")
            .arg(self.directory.path().join("server.properties"))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("share the log file"))
            .stderr(file)
            .spawn()
            .expect("run java");
        self.process = Some(process);
    }

    /// Waits until the broker is ready.
    pub(super) fn wait_ready(&mut self) {
        let (log, limit) = (self.directory.path().join("log"), Duration::from_secs(120));
        let began = Instant::now();
        wait_for("the broker to be ready", limit * 2, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let ended = self
                .process
                .as_mut()
                .is_some_and(|p| matches!(p.try_wait(), Ok(Some(_))));
            let late = began.elapsed() > limit;
            assert!(
                !ended && !late,
                "the broker {}: {}",
                if ended { "ended" } else { "is not ready" },
                last_lines(&log, 20)
            );
            text.contains("Kafka Server started").then_some(())
        });
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Aborts a hanging transaction, like `kafka-transactions.sh abort`.
pub fn abort_transaction(bootstrap: &str, topic: &str, partition: i32, start: i64) {
    let (partition, start) = (partition.to_string(), start.to_string());
    let what = [
        "abort",
        "--topic",
        topic,
        "--partition",
        &partition,
        "--start-offset",
        &start,
    ];
    tool("org.apache.kafka.tools.TransactionsCommand", bootstrap, &what);
}

/// Deletes the records of a partition below an offset, like `kafka-delete-records.sh`.
pub fn delete_records(bootstrap: &str, topic: &str, partition: i32, below: i64) {
    let wanted = serde_json::json!({
        "partitions": [{"topic": topic, "partition": partition, "offset": below}],
        "version": 1,
    });
    let file = tempfile::NamedTempFile::new().expect("make a file");
    fs::write(file.path(), wanted.to_string()).expect("write what is to be deleted");
    let path = file.path().to_str().expect("a plain path");
    let class = "org.apache.kafka.tools.DeleteRecordsCommand";
    let output = tool(class, bootstrap, &["--offset-json-file", path]);
    // The tool exits successfully even if the broker has rejected the request.
    assert!(output.contains("low_watermark"), "{output}");
}

/// Deletes a group and its offsets, like `kafka-consumer-groups.sh --delete` or the retention of offsets.
pub fn delete_group(bootstrap: &str, group: &str) {
    let class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    tool(class, bootstrap, &["--delete", "--group", group]);
}

/// Alters a topic's settings, like `kafka-configs.sh --alter`.
pub fn alter_topic(bootstrap: &str, topic: &str, settings: &[(&str, &str)]) {
    let settings: Vec<String> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let (settings, topics) = (settings.join(","), ["--entity-type", "topics", "--entity-name", topic]);
    let what = [&["--alter"][..], &topics, &["--add-config", &settings]].concat();
    tool("kafka.admin.ConfigCommand", bootstrap, &what);
}

/// Adds or removes an ACL that denies all clients without authentication to read a topic, like `kafka-acls.sh`.
pub fn deny_reads(bootstrap: &str, topic: &str, denied: bool) {
    let change = if denied {
        &["--add"][..]
    } else {
        &["--remove", "--force"]
    };
    let rule = [
        "--deny-principal",
        "User:ANONYMOUS",
        "--operation",
        "Read",
        "--topic",
        topic,
    ];
    tool(
        "org.apache.kafka.tools.AclCommand",
        bootstrap,
        &[change, &rule].concat(),
    );
}

/// A random cluster id.
pub(super) fn cluster_id() -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    id.get(..22).expect("32 digits").to_owned()
}

/// Runs one of Kafka's command line tools; returns its standard output and panics if it fails.
pub(super) fn tool(class: &str, bootstrap: &str, arguments: &[&str]) -> String {
    let out = java(TOOL)
        .args([class, "--bootstrap-server", bootstrap])
        .args(arguments)
        .output()
        .expect("run java");
    assert!(
        out.status.success(),
        "{class} {arguments:?} failed: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// JVM options for a fast start: only the first compiler tier is used.
const TOOL: &[&str] = &["-Xmx128m", "-XX:TieredStopAtLevel=1"];
const SMALL: &[&str] = &["-Xms96m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
/// JVM options for a long run: the defaults except for the heap.
const FULL: &[&str] = &["-Xms1g", "-Xmx1g"];

/// Command that runs Java with Kafka's jars.
fn java(options: &[&str]) -> Command {
    let mut command = Command::new("java");
    command.args(options).arg("-cp").arg(kafka_libs().join("*"));
    command
}

fn properties(directory: &Path, port: u16, controller: u16, listener: &Listener, more: &[(&str, &str)]) -> String {
    let (protocol, secure) = match listener {
        Listener::Plain => ("PLAINTEXT", &[][..]),
        Listener::Secure { protocol, settings, .. } => (*protocol, settings.as_slice()),
    };
    let mut text = format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=CLIENT://127.0.0.1:{port}\n\
         inter.broker.listener.name=CLIENT\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,CLIENT:{protocol}\n\
         log.dirs={}\n\
         auto.create.topics.enable=false\n\
         default.replication.factor=1\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=4\n\
         group.initial.rebalance.delay.ms=0\n\
         group.min.session.timeout.ms=1000\n\
         transaction.abort.timed.out.transaction.cleanup.interval.ms=500\n\
         log.retention.check.interval.ms=500\n\
         log.initial.task.delay.ms=500\n\
         log.cleaner.backoff.ms=500\n\
         log.cleaner.min.cleanable.ratio=0.01\n",
        directory.join("data").display()
    );
    let secure = secure.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in secure.chain(more.iter().copied()) {
        writeln!(text, "{name}={value}").expect("a string takes any text");
    }
    text
}
