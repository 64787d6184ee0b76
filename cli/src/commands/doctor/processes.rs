//! Checks of processes: their readiness, and the connectors that they run.

use super::finding::{Finding, bad, good, new, warning};
use super::issuers;
use crate::connectors_client::{self, Found, Health as _, Level, TableHealth as _};
use crate::processes::{Announced, Processes};
use anyhow::Result;
use event_log::in_parallel;
use serde_json::Value;
use topology::Topology;

/// What the processes are compared with.
pub struct Expected<'e> {
    /// The processes that have announced their address.
    pub announced: &'e [Announced],
    /// The topology, if it is given.
    pub topology: Option<&'e Topology>,
}

/// Asks all processes.
pub fn check(processes: &Processes, expected: &Expected<'_>) -> Vec<Finding> {
    let (mut findings, mut connectors, mut complete) = (Vec::new(), Vec::new(), true);
    // A process that does not answer takes the whole time limit.
    let answers = in_parallel(&processes.urls, |url| {
        let found = connectors_of(processes, url)?;
        let readiness = check_readiness(processes, url, &found);
        Ok::<_, anyhow::Error>((found, readiness, issuers::of_process(processes, url)))
    });
    let mut edges = Vec::new();
    for (url, answer) in processes.urls.iter().zip(answers) {
        match answer {
            Ok((found, readiness, issuers)) => {
                findings.extend(readiness);
                connectors.extend(found);
                match issuers {
                    Ok(issuers) => edges.extend(issuers),
                    Err(finding) => findings.push(finding),
                }
            }
            Err(error) => {
                complete = false;
                findings.push(not_reached(url, &error, expected));
            }
        }
    }
    findings.extend(issuers::check(&edges));
    findings.extend(connectors.iter().flat_map(check_connector));
    findings.extend(check_declared(&connectors, complete, expected.topology));
    findings
}

/// The connectors of a process; none while it starts, which its readiness shows.
fn connectors_of(processes: &Processes, url: &str) -> Result<Vec<Found>> {
    let (status, _) = processes.get(url, &["readyz"], "")?;
    match connectors_client::of_process(processes, url) {
        Err(_) if status == 503 => Ok(Vec::new()),
        found => found,
    }
}

/// A process that does not answer. It is a problem unless the topology no longer has its node.
fn not_reached(url: &str, error: &anyhow::Error, expected: &Expected<'_>) -> Finding {
    let found = format!("{error:#}");
    let process = expected.announced.iter().find(|process| process.url == url);
    let (Some(process), Some(topology)) = (process, expected.topology) else {
        return bad("processes", found, "start the process, or correct its URL, token or CA");
    };
    if topology.node(&process.node).is_none() {
        let found = format!("{found}; the topology has no node {}", process.node);
        return warning("processes", found, "none, if the process was removed");
    }
    let fix = format!(
        "start node {}, or correct `admin.advertise` of its configuration",
        process.node
    );
    bad("processes", found, fix)
}

/// The readiness of a process. Components of connectors whose state is read are checked by [`check_connector`].
fn check_readiness(processes: &Processes, url: &str, connectors: &[Found]) -> Vec<Finding> {
    let report = match processes.get(url, &["readyz"], "") {
        Ok((_, report)) => report,
        Err(error) => return vec![bad("processes", format!("{error:#}"), "start the process")],
    };
    let is_ready = report.get("ready") == Some(&Value::Bool(true));
    let Some(components) = report.get("components").and_then(Value::as_array) else {
        return vec![match is_ready {
            true => warning(
                "processes",
                format!("{url} is ready, but hides its components from this token"),
                "use a token with the role viewer (--admin-token-file)",
            ),
            false => bad(
                "processes",
                format!("{url} is not ready, and hides the cause from this token"),
                "use a token with the role viewer (--admin-token-file)",
            ),
        }];
    };
    let mut findings = Vec::new();
    for component in components {
        let text = |name: &str| component.get(name).and_then(Value::as_str).unwrap_or_default();
        let name = text("name");
        let is_shown = |found: &Found| name == format!("connector {}", found.report.connector);
        if connectors.iter().any(is_shown) {
            continue;
        }
        if component.get("ready") != Some(&Value::Bool(true)) {
            let found = format!("{url}: {name}: {}", text("cause"));
            findings.push(bad("processes", found, text("fix")));
        } else if !text("detail").is_empty() {
            let found = format!("{url}: {name}: {}", text("detail"));
            findings.push(warning("processes", found, "none, if this is expected"));
        }
    }
    if findings.is_empty() {
        let count = components.len();
        findings.push(good(
            "processes",
            format!("{url} has {count} components; those without findings are ready"),
        ));
    }
    findings
}

/// A connector and its tables.
fn check_connector(found: &Found) -> Vec<Finding> {
    let (report, at) = (&found.report, &found.at);
    let (name, state) = (&report.connector, &report.state);
    let (level, fix) = match report.level() {
        Level::Warn => (Level::Warn, format!("trunkline connect resume {name}")),
        Level::Ok => (Level::Ok, String::new()),
        Level::Bad => {
            let waits = "wait; the process log names the operation in progress";
            (Level::Bad, report.fix.clone().unwrap_or_else(|| waits.to_owned()))
        }
    };
    let detail = report.cause.as_ref().or(report.progress.as_ref());
    let text = match detail {
        Some(detail) => format!("connector {name} is {state}: {detail} ({at})"),
        None => format!("connector {name} is {state} ({at})"),
    };
    let mut findings = vec![new("connectors", level, text, fix)];
    if let Some(alarm) = &report.alarm {
        let text = format!("connector {name}: {}", alarm.cause);
        findings.push(bad("connectors", text, alarm.fix.clone()));
    }
    for table in report.tables.iter().filter(|table| table.needs_snapshot()) {
        let cause = table.cause.as_deref().unwrap_or_default();
        let text = format!("connector {name}: table {} needs a snapshot: {cause}", table.table);
        let fix = table.fix.clone();
        let fix = fix.unwrap_or_else(|| format!("trunkline connect snapshot {name} {}", table.table));
        findings.push(bad("connectors", text, fix));
    }
    if !report.pending_snapshots.is_empty() {
        let tables = report.pending_snapshots.join(", ");
        let text = format!("connector {name}: requested snapshots wait until it runs: {tables}");
        findings.push(warning("connectors", text, format!("trunkline connect resume {name}")));
    }
    findings
}

/// Declared sources that no process runs. If a process did not answer, it may run them.
fn check_declared(connectors: &[Found], complete: bool, topology: Option<&Topology>) -> Vec<Finding> {
    let Some(topology) = topology else { return Vec::new() };
    let missing = topology.sources.iter().filter(|source| {
        let name = source.name.as_str();
        !connectors.iter().any(|found| found.report.connector == name)
    });
    let finding = |source: &topology::Source| {
        let name = source.name.as_str();
        let found = match complete {
            true => format!("no process runs connector {name}"),
            false => format!("no process that answers runs connector {name}"),
        };
        let role = format!("connector:{name}");
        bad(
            "connectors",
            found,
            format!("start a node with the role {role}, or name its process with --admin URL"),
        )
    };
    missing.map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(state: &str, table: &str) -> Found {
        let report = serde_json::json!({
            "connector": "shop", "state": state, "position": "", "records_total": 0, "target": "running",
            "cause": "slot s no longer exists", "fix": "trunkline connect resync shop",
            "tables": [{ "table": "orders", "state": table, "cause": "it was replaced", "fix": "do it" }],
        });
        Found {
            at: "http://a".to_owned(),
            report: serde_json::from_value(report).unwrap(),
        }
    }

    #[test]
    fn every_red_state_is_a_problem_with_the_unit_and_the_fix_of_readiness() {
        for state in ["FAILED", "NEEDS_RESYNC", "RETRYING", "STARTING", "STOPPED"] {
            let findings = check_connector(&found(state, "RUNNING"));
            assert_eq!(findings[0].level, Level::Bad, "{state}");
            assert!(
                findings[0]
                    .found
                    .contains(&format!("connector shop is {state}: slot s"))
            );
            assert_eq!(findings[0].fix, "trunkline connect resync shop");
        }
        let findings = check_connector(&found("RUNNING", "NEEDS_SNAPSHOT"));
        assert!(findings[0].ok && !findings[1].ok);
        assert!(
            findings[1]
                .found
                .contains("table orders needs a snapshot: it was replaced")
        );
        assert_eq!(findings[1].fix, "do it");
        let mut alarmed = found("RUNNING", "RUNNING");
        alarmed.report.alarm = Some(connectors::status::Alarm {
            cause: String::from("much WAL is retained"),
            fix: String::from("let it catch up"),
        });
        let findings = check_connector(&alarmed);
        assert!(findings[0].ok && !findings[1].ok && findings[1].found.contains("much WAL is retained"));
        assert_eq!(findings[1].fix, "let it catch up");
    }

    #[test]
    fn paused_connector_is_a_warning_with_the_command_that_resumes_it() {
        let findings = check_connector(&found("PAUSED", "RUNNING"));
        assert_eq!((findings[0].level, findings[0].ok), (Level::Warn, true));
        assert_eq!(findings[0].fix, "trunkline connect resume shop");
    }
}
