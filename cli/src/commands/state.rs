//! `trunkline state`: what the processors' tasks do, and what their committed state holds.

use crate::args::{self, Output, StateCommand};
use crate::backends;
use crate::print;
use crate::state::{PATH, encoded};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use streams::query::SCAN_MAX;

/// How long a process may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same where the answer is only a help.
const GLANCE: Duration = Duration::from_millis(500);

/// Lists, gets or scans.
pub fn run(output: Output, state: &args::State) -> Result<()> {
    let urls = listeners(state)?;
    match &state.command {
        StateCommand::List => list(output, &urls),
        StateCommand::Get {
            processor,
            store,
            key,
            partition,
        } => {
            let mut path = format!("{PATH}/{}/{}?key={}", encoded(processor), encoded(store), encoded(key));
            if let Some(partition) = partition {
                path.push_str(&format!("&partition={partition}"));
            }
            let answer = ask_any(&urls, &path)?;
            if output == Output::Json {
                return print::json(&answer);
            }
            match rows(&answer).first() {
                Some(row) => print::line(cell(row, "value")),
                None => bail!("{store} has no key {key} in partition {}", cell(&answer, "partition")),
            }
        }
        StateCommand::Scan {
            processor,
            store,
            prefix,
            partition,
            limit,
        } => {
            let partitions = match partition {
                Some(one) => *one..one + 1,
                None => 0..partitions(&urls, processor, store)?,
            };
            let mut found = Vec::new();
            for partition in partitions {
                scan(&urls, processor, store, prefix, partition, *limit, &mut found)?;
            }
            print::items(output, &found, &["partition", "key", "value"])
        }
    }
}

/// Reads a partition's rows, page by page, until there are enough.
fn scan(
    urls: &[String],
    processor: &str,
    store: &str,
    prefix: &str,
    partition: i32,
    limit: usize,
    found: &mut Vec<Value>,
) -> Result<()> {
    let mut after: Option<String> = None;
    while found.len() < limit {
        let page = (limit - found.len()).min(SCAN_MAX);
        let mut path = format!(
            "{PATH}/{}/{}/scan?partition={partition}&prefix={}&limit={page}",
            encoded(processor),
            encoded(store),
            encoded(prefix)
        );
        if let Some(after) = &after {
            path.push_str(&format!("&after={}", encoded(after)));
        }
        let answer = ask_any(urls, &path)?;
        let rows = rows(&answer);
        after = rows.last().map(key_text);
        for row in rows {
            let (key, value) = (row.get("key"), row.get("value"));
            found.push(json!({ "partition": partition, "key": key, "value": value }));
        }
        if answer.get("more") != Some(&Value::Bool(true)) {
            break;
        }
    }
    Ok(())
}

/// A key as it was in the store: keys are canonical JSON, or plain text.
fn key_text(row: &Value) -> String {
    match row.get("key") {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn rows(answer: &Value) -> Vec<Value> {
    answer
        .get("rows")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default()
}

fn cell(item: &Value, name: &str) -> String {
    item.get(name).map_or_else(|| "-".to_owned(), ToString::to_string)
}

fn list(output: Output, urls: &[String]) -> Result<()> {
    let mut items = Vec::new();
    for url in urls {
        let Ok(answer) = ask(url, PATH, PATIENCE) else { continue };
        items.extend(tasks(&answer, url));
    }
    if items.is_empty() {
        bail!("no process with a processor answered at {}", urls.join(", "));
    }
    let columns = [
        "processor",
        "store",
        "partition",
        "phase",
        "restore_left",
        "cause",
        "at",
    ];
    print::items(output, &items, &columns)
}

/// The tasks that a process has told of.
fn tasks(answer: &Value, url: &str) -> Vec<Value> {
    let mut items = Vec::new();
    for processor in answer.as_array().into_iter().flatten() {
        for task in processor.get("tasks").and_then(Value::as_array).into_iter().flatten() {
            let mut item = task.clone();
            if let Some(item) = item.as_object_mut() {
                item.insert(
                    "processor".to_owned(),
                    processor.get("processor").cloned().unwrap_or_default(),
                );
                item.insert("at".to_owned(), url.into());
            }
            items.push(item);
        }
    }
    items
}

fn partitions(urls: &[String], processor: &str, store: &str) -> Result<i32> {
    let answer = ask_any(urls, PATH)?;
    let of = |name: &str, value: &Value| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut all = answer.as_array().into_iter().flatten();
    let found = all.find(|p| of("processor", p) == processor);
    let found = found.with_context(|| format!("no process that answers runs processor `{processor}`"))?;
    let mut stores = found.get("stores").and_then(Value::as_array).into_iter().flatten();
    let store = stores
        .find(|s| of("store", s) == store)
        .with_context(|| format!("processor {processor} has no store `{store}`; see `trunkline state list`"))?;
    let count = store.get("partitions").and_then(Value::as_i64);
    Ok(count.and_then(|count| i32::try_from(count).ok()).unwrap_or(0))
}

/// Asks one process after the other until one answers; the last refusal is the error.
fn ask_any(urls: &[String], path: &str) -> Result<Value> {
    let mut last = None;
    for url in urls {
        match ask(url, path, PATIENCE) {
            Ok(answer) => return Ok(answer),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no process is known that could answer; name one with --admin URL")))
}

fn ask(url: &str, path: &str, patience: Duration) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = reqwest::Client::builder().timeout(patience).build()?;
        let sent = client.get(format!("{url}{path}")).send().await;
        let answer = sent.with_context(|| format!("ask the process at {url}"))?;
        let status = answer.status();
        let body = answer.text().await.unwrap_or_default();
        if status.is_success() {
            return serde_json::from_str(&body).with_context(|| format!("{url} did not answer with JSON"));
        }
        let problem: Value = serde_json::from_str(&body).unwrap_or_default();
        match problem.get("detail").and_then(Value::as_str) {
            Some(detail) => bail!("{detail}"),
            None => bail!("{url} answered {status}"),
        }
    })
}

/// Changelog offsets that the tasks of live processes still have to read, by processor, input topic and partition.
/// Who does not answer at once is left out: the lag is worth showing without it.
pub fn restoring(target: &args::Target) -> BTreeMap<(String, String, i64), i64> {
    let state = args::State {
        target: target.clone(),
        admin: None,
        command: StateCommand::List,
    };
    let mut left = BTreeMap::new();
    for url in listeners(&state).unwrap_or_default() {
        let Ok(answer) = ask(&url, PATH, GLANCE) else { continue };
        for task in tasks(&answer, &url) {
            let Some(offsets) = task.get("restore_left").and_then(Value::as_i64) else {
                continue;
            };
            let processor = task.get("processor").and_then(Value::as_str).unwrap_or_default();
            for input in task.get("inputs").and_then(Value::as_array).into_iter().flatten() {
                if let (Some(topic), Some(partition)) = (
                    input.get(0).and_then(Value::as_str),
                    input.get(1).and_then(Value::as_i64),
                ) {
                    left.insert((processor.to_owned(), topic.to_owned(), partition), offsets);
                }
            }
        }
    }
    left
}

/// The operators' listeners to ask: the one that was named, those that the processor's processes have told, or that of
/// the running `dev`.
fn listeners(state: &args::State) -> Result<Vec<String>> {
    if let Some(url) = &state.admin {
        return Ok(vec![url.trim_end_matches('/').to_owned()]);
    }
    let Some(brokers) = &state.target.kafka else {
        return Ok(vec![backends::running_dev(&state.target.data)?.admin]);
    };
    let log = backends::target_log(brokers)?;
    let told = match &state.command {
        StateCommand::Get { processor, .. } | StateCommand::Scan { processor, .. } => {
            streams::members::addresses(&*log, Some(processor))?
        }
        StateCommand::List => streams::members::addresses(&*log, None)?,
    };
    let mut urls: Vec<String> = told.into_values().collect();
    urls.sort();
    urls.dedup();
    if urls.is_empty() {
        bail!("no process has told its address in the topic `members`; name one with --admin URL");
    }
    Ok(urls)
}
