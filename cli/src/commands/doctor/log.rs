//! Checks of the log: reachability, topics, tables and lag.

use super::dead_letters::{DeadLetters, MissingRows};
use super::finding::{Finding, bad, good};
use crate::operations_api::{LagRequest, LogState, Position, Request, TailRequest};
use crate::operations_client::Client;
use crate::print;
use event_log::in_parallel;
use serde_json::Value;
use topology::Names;

/// Lag above which a consumer group is reported.
const LAG_MS_MAX: i64 = 60_000;

/// Checks the log and its topics: those of `names`, if a topology is given.
pub fn check(
    client: &Client,
    names: Option<&Names>,
    dead_letters: &DeadLetters,
    missing_rows: &MissingRows<'_>,
) -> Vec<Finding> {
    let topics = match client.collect(Request::Topics) {
        Ok(topics) => topics,
        Err(error) => {
            let fix = "check that the log is running and that its address is correct";
            return vec![bad("log", format!("{error:#}"), fix)];
        }
    };
    let only = |topic: &&str| names.is_none_or(|names| Names::owning(topic).is_some_and(|owner| owner == *names));
    let topics: Vec<&str> = topics
        .iter()
        .filter_map(|topic| topic.get("name").and_then(Value::as_str))
        .filter(only)
        .collect();
    let mut findings = vec![good("log", format!("reachable, {} topics", topics.len()))];
    findings.extend(check_log_state(client));
    findings.push(check_view_log(&topics));
    findings.extend(dead_letters.check(client, &topics, missing_rows));
    let sources = topics.iter().filter(|name| !name.ends_with(".dlq"));
    let sources = sources.filter_map(|topic| {
        let owner = Names::owning(topic)?;
        let source = owner.local(topic).strip_prefix("change.")?.to_owned();
        Some((owner.positions(), source))
    });
    let sources: Vec<(String, String)> = sources.collect();
    let tables = in_parallel(&sources, |(positions, source)| check_tables(client, positions, source));
    findings.extend(tables.into_iter().flatten());
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

/// Returns a finding for each table of a source that needs a snapshot, according to the stored position of the
/// connector.
fn check_tables(client: &Client, positions: &str, source: &str) -> Vec<Finding> {
    let request = Request::Tail(TailRequest {
        topic: positions.to_owned(),
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
    let lags = match client.collect(Request::Lag(LagRequest::default())) {
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
