//! `trunkline doctor`: checks everything that the command line can reach, and prints a fix for each problem.

mod databases;
mod dead_letters;
mod finding;
mod issuers;
mod log;
mod processes;

use crate::args::{self, Output};
use crate::backends;
use crate::commands::state::missing_rows;
use crate::config;
use crate::connection::Connection;
use crate::connectors_client::Level;
use crate::exit::Failed;
use crate::operations_client::Client;
use crate::processes::{Announced, Processes, announced, members_topics};
use crate::{print, time};
use anyhow::{Context, Result};
use dead_letters::DeadLetters;
use event_log::embedded::{Config as LogConfig, EmbeddedLog};
use finding::{Finding, bad, good, warning};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use topology::Topology;

/// Timeout of a request to a process.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs all checks whose target is configured, and prints one row per check.
pub fn run(output: Output, doctor: &args::Doctor) -> Result<()> {
    let span_ms = time::duration(&doctor.dead_letters).context("cannot use --dead-letters")?;
    let config = doctor.target.config.as_ref();
    let config = config.map(|file| config::read(file)).transpose()?;
    let mut findings = Vec::new();
    let topology = check_topology(doctor, &mut findings);
    let dead_letters = DeadLetters {
        since_ms: service::clock::system().now_ms() - span_ms,
        span: doctor.dead_letters.clone(),
    };
    match Client::connect(&doctor.target) {
        Ok(client) => {
            let names = topology.as_ref().map(Topology::names);
            let missing_rows = |topic: &str, partitions| missing_rows(&doctor.target, topic, partitions);
            findings.extend(log::check(&client, names.as_ref(), &dead_letters, &missing_rows));
            findings.extend(check_processes(doctor, &client, topology.as_ref()));
        }
        Err(error) => {
            findings.push(bad(
                "log",
                format!("{error:#}"),
                "start it, or choose another log with --kafka, --data or --config",
            ));
            // The processes know more about the cause.
            if !doctor.admin.is_empty() {
                findings.extend(ask(doctor, doctor.admin.clone(), &[], topology.as_ref()));
            }
        }
    }
    findings.extend(check_registry(doctor));
    if let (Some(config), Some(topology)) = (&config, &topology) {
        findings.extend(databases::check_configured(topology, &config.connectors));
    }
    if let Some(url) = &doctor.postgres {
        findings.extend(databases::check_url(url, topology.as_ref()));
    }
    // A process and the stored position of its connector name the same tables.
    let mut known = BTreeSet::new();
    findings.retain(|finding| finding.ok || known.insert(finding.found.clone()));
    let healthy = findings.iter().all(|finding| finding.ok);
    let mut columns = vec!["", "check", "found", "fix"];
    if output == Output::Wide {
        columns.push("command");
    }
    print::list(output, &findings, &columns, |finding| {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Bad => "!!",
        };
        let command = finding.command.clone().unwrap_or_default();
        let row = [
            level.into(),
            finding.check.into(),
            finding.found.clone(),
            finding.fix.clone(),
            command,
        ];
        row.into_iter().take(columns.len()).collect()
    })?;
    if healthy { Ok(()) } else { Err(Failed.into()) }
}

fn check_topology(doctor: &args::Doctor, findings: &mut Vec<Finding>) -> Option<Topology> {
    let file = doctor.topology.as_ref()?;
    match topology::load(file) {
        Ok(outcome) if outcome.report.errors() == 0 => {
            findings.push(good("topology", format!("{} is valid", file.display())));
            outcome.topology
        }
        Ok(outcome) => {
            let found = format!("{} has {} errors", file.display(), outcome.report.errors());
            findings.push(bad(
                "topology",
                found,
                format!("trunkline topology check {}", file.display()),
            ));
            None
        }
        Err(error) => {
            findings.push(bad(
                "topology",
                service::chain(&error),
                "set --topology to an existing file",
            ));
            None
        }
    }
}

/// Asks the processes that are named, and those that can be found: the running `dev`, or those that are announced.
fn check_processes(doctor: &args::Doctor, client: &Client, topology: Option<&Topology>) -> Vec<Finding> {
    let mut urls = doctor.admin.clone();
    let mut found = Vec::new();
    match client {
        Client::Remote(_, url) => urls.push(url.clone()),
        Client::Local(_) if Connection::of(&doctor.target).is_ok_and(|to| to.kafka.is_none()) => {}
        Client::Local(_) => match find(doctor, client, topology) {
            Ok(announced) => found = announced,
            Err(error) => {
                return vec![bad(
                    "processes",
                    format!("{error:#}"),
                    "name the processes with --admin URL",
                )];
            }
        },
    }
    urls.extend(found.iter().map(|process| process.url.clone()));
    if urls.is_empty() {
        return vec![warning(
            "processes",
            "no process was found, so connectors and readiness are not checked",
            "start `trunkline dev` or a node, or name a process with --admin URL",
        )];
    }
    ask(doctor, urls, &found, topology)
}

fn find(doctor: &args::Doctor, client: &Client, topology: Option<&Topology>) -> Result<Vec<Announced>> {
    let names = topology.map(Topology::names);
    let topics = members_topics(client, names.as_ref())?;
    let processes = Processes::at(&doctor.target, Vec::new(), TIMEOUT)?;
    // A process with write access to a members topic chooses the address that receives the token.
    if processes.has_token() && topics.len() > 1 {
        anyhow::bail!(
            "{} topologies have processes on this Kafka, and each would receive the admin token; choose one with --topology",
            topics.len()
        );
    }
    announced(client, &topics)
}

fn ask(doctor: &args::Doctor, urls: Vec<String>, announced: &[Announced], topology: Option<&Topology>) -> Vec<Finding> {
    let expected = processes::Expected { announced, topology };
    match Processes::at(&doctor.target, urls, TIMEOUT) {
        Ok(processes) => processes::check(&processes, &expected),
        Err(error) => vec![bad("processes", format!("{error:#}"), "correct the token or the CA")],
    }
}

/// Asks a registry that is not embedded in the log.
fn check_registry(doctor: &args::Doctor) -> Option<Finding> {
    // What is wrong with the options is the finding about the log.
    let Connection { registry, .. } = Connection::of(&doctor.target).ok()?;
    let url = registry.url.as_ref()?;
    let subjects = || -> Result<usize> {
        // A registry with a URL does not use the log.
        let log: event_log::SharedEventLog = EmbeddedLog::open(LogConfig::new(None, Arc::new(|| 0)))?;
        Ok(backends::registry(&registry, &log)?.subjects()?.len())
    };
    Some(match subjects() {
        Ok(count) => good("registry", format!("{url} has {count} subjects")),
        Err(error) => bad(
            "registry",
            format!("{url}: {error:#}"),
            "start it, or correct the URL and the credentials",
        ),
    })
}
