//! `trunkline doctor`: checks everything that the command line can reach, and prints a fix for each problem.

use crate::args::{self, Output};
use crate::exit::Failed;
use crate::operations_api::{LogState, Position, Request, TailRequest};
use crate::operations_client::Client;
use crate::print;
use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use topology::Names;

/// Lag above which a consumer group is reported.
const LAG_MS_MAX: i64 = 60_000;

/// Result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    found: String,
    fix: String,
}

fn good(check: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        check,
        ok: true,
        found: found.into(),
        fix: String::new(),
    }
}

fn bad(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        check,
        ok: false,
        found: found.into(),
        fix: fix.into(),
    }
}

/// Runs all checks whose target is configured, and prints one row per check.
pub fn run(output: Output, doctor: &args::Doctor) -> Result<()> {
    let mut findings = Vec::new();
    if let Some(file) = &doctor.topology {
        findings.push(match topology::load(file) {
            Ok(outcome) if outcome.report.errors() == 0 => good("topology", format!("{} is valid", file.display())),
            Ok(outcome) => bad(
                "topology",
                format!("{} has {} errors", file.display(), outcome.report.errors()),
                format!("trunkline topology check {}", file.display()),
            ),
            Err(error) => bad("topology", service::chain(&error), "set --topology to an existing file"),
        });
    }
    match Client::connect(&doctor.target) {
        Ok(client) => findings.extend(check_log(&client)),
        Err(error) => findings.push(bad(
            "log",
            format!("{error:#}"),
            "start it, or choose another log with --kafka or --data",
        )),
    }
    if let Some(url) = &doctor.postgres {
        findings.extend(check_postgres(url));
    }
    let healthy = findings.iter().all(|f| f.ok);
    print::list(output, &findings, &["", "check", "found", "fix"], |f| {
        vec![
            if f.ok { "ok" } else { "!!" }.into(),
            f.check.into(),
            f.found.clone(),
            f.fix.clone(),
        ]
    })?;
    if healthy { Ok(()) } else { Err(Failed.into()) }
}

fn check_log(client: &Client) -> Vec<Finding> {
    let topics = match client.collect(Request::Topics) {
        Ok(topics) => topics,
        Err(error) => {
            let fix = "check that the log is running and that its address is correct";
            return vec![bad("log", format!("{error:#}"), fix)];
        }
    };
    let names: Vec<&str> = topics
        .iter()
        .filter_map(|topic| topic.get("name").and_then(Value::as_str))
        .collect();
    let mut findings = vec![good("log", format!("reachable, {} topics", names.len()))];
    findings.extend(check_log_state(client));
    findings.push(check_view_log(&names));
    let dead_letters = names.iter().filter(|name| name.ends_with(".dlq"));
    findings.extend(dead_letters.filter_map(|topic| check_dead_letters(client, topic)));
    let sources = names.iter().filter(|name| !name.ends_with(".dlq"));
    let sources = sources.filter_map(|topic| {
        let owner = Names::owning(topic)?;
        let source = owner.local(topic).strip_prefix("change.")?.to_owned();
        Some((owner.positions(), source))
    });
    findings.extend(sources.flat_map(|(positions, source)| check_tables(client, positions, &source)));
    findings.push(check_lag(client));
    findings
}

/// Whether the log contains the topics of a topology. `view.log` is created when any of the topology's nodes starts for
/// the first time.
fn check_view_log(topics: &[&str]) -> Finding {
    let is_view_log = |topic: &&&str| Names::owning(topic).is_some_and(|names| names.view_log() == **topic);
    let found: Vec<&str> = topics.iter().filter(is_view_log).copied().collect();
    if found.is_empty() {
        let fix = "start a node; it creates the topics of the topology";
        return bad("view.log", "does not exist", fix);
    }
    good("view.log", format!("{} exists", found.join(", ")))
}

/// Findings about an embedded log that cannot write, or that was repaired when it was opened.
fn check_log_state(client: &Client) -> Vec<Finding> {
    let state = match client.collect(Request::Log) {
        Ok(items) => items
            .into_iter()
            .next()
            .and_then(|item| serde_json::from_value(item).ok()),
        Err(error) => {
            return vec![bad(
                "log",
                format!("{error:#}"),
                "check that both programs have the same version",
            )];
        }
    };
    let Some(state) = state else {
        return Vec::new();
    };
    let LogState {
        log,
        problem,
        notice,
        is_loss,
    } = state;
    let fix = "see the cause; writes continue by themselves once it is gone";
    let problem = problem.map(|problem| bad("log", problem, fix));
    let notice = notice.map(|notice| {
        let found = format!("{log} was repaired when it was opened: {notice}");
        match is_loss {
            true => bad(
                "log",
                found,
                "none, if the loss is acceptable; otherwise restore a backup",
            ),
            false => good("log", found),
        }
    });
    problem.into_iter().chain(notice).collect()
}

/// Returns a finding if the topic contains records.
fn check_dead_letters(client: &Client, topic: &str) -> Option<Finding> {
    let details = client.collect(Request::Topic(topic.to_owned())).ok()?;
    let offsets = details.first()?.get("offsets").and_then(Value::as_i64)?;
    let fix = format!("trunkline topics tail {topic} --from-start");
    (offsets > 0).then(|| bad("dead letters", format!("{topic} contains records"), fix))
}

/// Returns a finding for each table of a source that needs a snapshot, according to the stored position of the
/// connector.
fn check_tables(client: &Client, positions: String, source: &str) -> Vec<Finding> {
    let request = Request::Tail(TailRequest {
        topic: positions,
        partition: None,
        from: Position::Unbounded,
        key: Some(serde_json::json!([source, "static"]).to_string()),
        limit: usize::MAX,
        follow: false,
        uncommitted: false,
    });
    // If the topic does not exist, no connector has run yet.
    let records = client.collect(request).unwrap_or_default();
    let stored = records.last().and_then(|record| record.pointer("/value/position"));
    let stored = stored.and_then(Value::as_str).map(serde_json::from_str::<Value>);
    let Some(Ok(stored)) = stored else { return Vec::new() };
    let tables = stored.pointer("/source/tables").and_then(Value::as_object);
    let mut findings = Vec::new();
    for (table, record) in tables.into_iter().flatten() {
        let text = |name: &str| {
            record
                .pointer(&format!("/needs_snapshot/{name}"))
                .and_then(Value::as_str)
        };
        if let (Some(cause), Some(fix)) = (text("cause"), text("fix")) {
            let found = format!("connector {source}: table {table} needs a snapshot: {cause}");
            findings.push(bad("tables", found, fix));
        }
    }
    findings
}

fn check_lag(client: &Client) -> Finding {
    let lags = match client.collect(Request::Lag(None)) {
        Ok(lags) => lags,
        Err(error) => return bad("lag", format!("{error:#}"), "trunkline lag"),
    };
    let is_behind = |lag: &&Value| {
        let ms = lag.get("lag_ms").and_then(Value::as_i64);
        ms.is_some_and(|ms| ms > LAG_MS_MAX)
    };
    let name = |lag: &Value| format!("{}/{}", print::cell(lag, "topic"), print::cell(lag, "partition"));
    let behind: Vec<String> = lags.iter().filter(is_behind).map(name).collect();
    if behind.is_empty() {
        return good("lag", "no group lags by more than a minute");
    }
    let found = format!("lag of more than a minute: {}", behind.join(", "));
    bad("lag", found, "trunkline lag")
}

fn check_postgres(url: &str) -> Vec<Finding> {
    match connectors::discover::settings(url) {
        Ok(settings) => settings
            .into_iter()
            .map(|s| {
                if s.ok {
                    good("postgres", s.found)
                } else {
                    bad("postgres", s.found, s.fix)
                }
            })
            .collect(),
        Err(error) => vec![bad(
            "postgres",
            service::chain(&error),
            "check the URL, and that the database runs",
        )],
    }
}
