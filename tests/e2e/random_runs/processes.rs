//! The processes of a run: one for each role on Kafka, or `trunkline dev` with all roles on the embedded log.

use super::rounds::Role;
use super::schema::CONNECTOR;
use crate::pipeline::operators::{Operators, tokens};
use crate::support::{Dev, Fleet};
use std::path::PathBuf;
use std::process::ExitStatus;
use tempfile::TempDir;

/// The log of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Embedded,
    Kafka,
}

impl Backend {
    /// The backend of a seed, if none is chosen.
    pub fn of_seed(seed: u64) -> Backend {
        if seed.is_multiple_of(2) {
            Backend::Kafka
        } else {
            Backend::Embedded
        }
    }

    pub fn named(name: &str) -> Option<Backend> {
        match name {
            "embedded" => Some(Backend::Embedded),
            "kafka" => Some(Backend::Kafka),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Backend::Embedded => "embedded",
            Backend::Kafka => "kafka",
        }
    }
}

/// The processes, which end on drop.
pub enum Processes {
    Fleet(Fleet),
    /// All roles are one process, so a kill of a role is one of all.
    Dev(AllInOne),
}

/// `trunkline dev` of a run.
pub struct AllInOne {
    dir: TempDir,
    process: Option<Dev>,
}

impl AllInOne {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn process(&mut self) -> &mut Dev {
        self.process.as_mut().expect("it was started")
    }
}

impl Processes {
    /// Configures processes on these brokers, or on the embedded log, without starting them. `connector` contains the
    /// settings of the connector.
    pub fn new(topology: &str, brokers: Option<&str>, connector: &str) -> Processes {
        let connector = format!("[connectors.{CONNECTOR}]\n{connector}");
        let Some(brokers) = brokers else {
            let dir = tempfile::tempdir().expect("make a directory");
            let all = AllInOne { dir, process: None };
            std::fs::write(all.file("topology.toml"), topology).expect("write the topology");
            std::fs::write(all.file("trunkline.toml"), connector).expect("write the configuration");
            return Processes::Dev(all);
        };
        Processes::Fleet(Fleet::new(topology, brokers, &(tokens() + &connector)))
    }

    /// Operators of the log.
    pub fn operators(&self, topology: &str, brokers: Option<&str>) -> Operators {
        let log = match (self, brokers) {
            (Processes::Dev(all), _) => ["--data".to_owned(), all.file("data").display().to_string()],
            (Processes::Fleet(_), brokers) => ["--kafka".to_owned(), brokers.unwrap_or_default().to_owned()],
        };
        Operators::of_log(log, topology)
    }

    /// Replaces the topology, which the processes read when they start.
    pub fn declare(&self, topology: &str) {
        match self {
            Processes::Fleet(fleet) => fleet.declare(topology),
            Processes::Dev(all) => std::fs::write(all.file("topology.toml"), topology).expect("write the topology"),
        }
    }

    /// Starts the process of a role if it does not run.
    pub fn start(&mut self, role: Role) {
        match self {
            Processes::Fleet(fleet) if fleet.running(role).is_none() => fleet.start(role),
            Processes::Fleet(_) => {}
            Processes::Dev(all) => match &mut all.process {
                Some(dev) if dev.is_running() => {}
                Some(dev) => dev.restart(),
                None => {
                    let file = |name: &str| all.dir.path().join(name).display().to_string();
                    let (topology, config) = (file("topology.toml"), file("trunkline.toml"));
                    let args = ["--topology", topology.as_str(), "--config", config.as_str()];
                    all.process = Some(Dev::start(&all.dir.path().join("data"), &args));
                }
            },
        }
    }

    /// Kills the process of a role if it runs.
    pub fn kill(&mut self, role: Role) {
        match self {
            Processes::Fleet(fleet) if fleet.running(role).is_some() => fleet.kill(role),
            Processes::Fleet(_) => {}
            Processes::Dev(all) => all.process().kill(),
        }
    }

    /// Exit status of the process of a role, if it has ended by itself, and the end of its log.
    pub fn ended(&mut self, role: Role) -> Option<(ExitStatus, String)> {
        let (status, log) = match self {
            Processes::Fleet(fleet) => (fleet.ended(role)?, fleet.log(role)),
            Processes::Dev(all) => (all.process().ended()?, all.process().log()),
        };
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        Some((status, format!("{last:#?}")))
    }

    /// URL of the edge.
    pub fn edge(&self) -> String {
        match self {
            Processes::Fleet(fleet) => fleet.edge("edge"),
            Processes::Dev(all) => all.process.as_ref().expect("it was started").url("edge"),
        }
    }

    /// URL of the admin listener of the connector's process.
    pub fn admin(&self) -> String {
        match self {
            Processes::Fleet(fleet) => fleet.admin("connector"),
            Processes::Dev(all) => all.process.as_ref().expect("it was started").url("admin"),
        }
    }

    /// A device token. The processes run.
    pub fn token(&self) -> String {
        match self {
            Processes::Fleet(fleet) => fleet.token("x", &[]),
            Processes::Dev(all) => all.process.as_ref().expect("it was started").token("x", &[]),
        }
    }
}
