//! `trunkline state`: tasks of processors and their committed state, from the admin listeners of running processes.

use crate::admin_client::{self, AdminClient};
use crate::args::{self, Output, StateCommand};
use crate::connection::Connection;
use crate::{backends, print, running_dev, state_api};
use anyhow::{Context, Result, anyhow, bail};
use event_log::EventLog;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use streams::query::SCAN_MAX;
use topology::Names;
use topology::wiring::SYNC_VIEWS_STORE;

/// Timeout of a query.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a query whose result is optional.
const OPTIONAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs the subcommand.
pub fn run(output: Output, state: &args::State) -> Result<()> {
    let processes = Processes::find(state, TIMEOUT)?;
    match &state.command {
        StateCommand::List => list(output, &processes),
        StateCommand::Get {
            processor,
            store,
            key,
            partition,
        } => {
            let partition = partition.map(|partition| partition.to_string());
            let mut query = vec![("key", key.as_str())];
            query.extend(partition.as_deref().map(|partition| ("partition", partition)));
            let answer = processes.query(&[processor, store], &query)?;
            if output == Output::Json {
                return print::json(&answer);
            }
            match rows(&answer).first() {
                Some(row) => print::line(json_text(row, "value")),
                None => bail!(
                    "store {store} has no key {key} in partition {}",
                    json_text(&answer, "partition")
                ),
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
                None => 0..processes.partitions(processor, store)?,
            };
            let mut scan = Scan {
                processes: &processes,
                processor,
                store,
                prefix,
                limit: *limit,
                found: Vec::new(),
            };
            for partition in partitions {
                scan.read(partition)?;
            }
            print::items(output, &scan.found, &["partition", "key", "value"])
        }
    }
}

/// A scan over the partitions of a store.
struct Scan<'a> {
    processes: &'a Processes,
    processor: &'a str,
    store: &'a str,
    prefix: &'a str,
    limit: usize,
    found: Vec<Value>,
}

impl Scan<'_> {
    /// Reads the rows of a partition, page by page, up to the limit.
    fn read(&mut self, partition: i32) -> Result<()> {
        let partition_text = partition.to_string();
        let mut after: Option<String> = None;
        while self.found.len() < self.limit {
            let page = (self.limit - self.found.len()).min(SCAN_MAX).to_string();
            let mut query = vec![
                ("partition", partition_text.as_str()),
                ("prefix", self.prefix),
                ("limit", page.as_str()),
            ];
            query.extend(after.as_deref().map(|after| ("after", after)));
            let answer = self.processes.query(&[self.processor, self.store, "scan"], &query)?;
            let rows = rows(&answer);
            after = rows.last().map(key_text);
            for row in rows {
                let (key, value) = (row.get("key"), row.get("value"));
                self.found
                    .push(json!({ "partition": partition, "key": key, "value": value }));
            }
            if answer.get("more") != Some(&Value::Bool(true)) {
                break;
            }
        }
        Ok(())
    }
}

/// The key as it is in the store, where keys are canonical JSON or plain text.
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

fn json_text(item: &Value, name: &str) -> String {
    item.get(name).map_or_else(|| "-".to_owned(), ToString::to_string)
}

fn list(output: Output, processes: &Processes) -> Result<()> {
    let (mut items, mut failure) = (Vec::new(), None);
    for url in &processes.urls {
        // The members topic still contains the address of a process that has just ended.
        match get(&processes.client, url, &[], &[]) {
            Ok(answer) => items.extend(tasks(&answer, url)),
            Err(error) => failure = Some(error),
        }
    }
    if let Some(error) = failure.filter(|_| items.is_empty()) {
        return Err(error);
    }
    if items.is_empty() {
        bail!(
            "no process with a processor answered at {}; check that the nodes are running",
            processes.urls.join(", ")
        );
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

/// The tasks of one process, with the names of the processor and of the process.
fn tasks(answer: &Value, url: &str) -> Vec<Value> {
    let mut items = Vec::new();
    for processor in answer.as_array().into_iter().flatten() {
        let name = processor.get("processor").cloned().unwrap_or_default();
        for task in processor.get("tasks").and_then(Value::as_array).into_iter().flatten() {
            let mut item = task.clone();
            if let Some(item) = item.as_object_mut() {
                item.insert("processor".to_owned(), name.clone());
                item.insert("at".to_owned(), url.into());
            }
            items.push(item);
        }
    }
    items
}

/// Remaining changelog records of restores, by processor, input topic and partition. Processes that do not answer
/// within [`OPTIONAL_TIMEOUT`] are omitted.
pub fn restoring(target: &args::Target) -> BTreeMap<(String, String, i64), i64> {
    let state = args::State {
        target: target.clone(),
        admin: None,
        command: StateCommand::List,
    };
    let mut left = BTreeMap::new();
    let Ok(processes) = Processes::find(&state, OPTIONAL_TIMEOUT) else {
        return left;
    };
    for url in &processes.urls {
        let Ok(answer) = get(&processes.client, url, &[], &[]) else {
            continue;
        };
        for task in tasks(&answer, url) {
            let Some(records) = task.get("restore_left").and_then(Value::as_i64) else {
                continue;
            };
            let processor = task.get("processor").and_then(Value::as_str).unwrap_or_default();
            for input in task.get("inputs").and_then(Value::as_array).into_iter().flatten() {
                let topic = input.get(0).and_then(Value::as_str);
                let partition = input.get(1).and_then(Value::as_i64);
                if let (Some(topic), Some(partition)) = (topic, partition) {
                    left.insert((processor.to_owned(), topic.to_owned(), partition), records);
                }
            }
        }
    }
    left
}

/// Number of rows that lack a change, by table, in each partition of a topic that sync-views reads: from the state of
/// the tasks. `None` if no process with the state answers within [`OPTIONAL_TIMEOUT`].
pub fn missing_rows(target: &args::Target, topic: &str, partitions: i32) -> Option<BTreeMap<String, u64>> {
    let names = Names::owning(topic)?;
    let (processor, store) = (names.sync_views(topic), SYNC_VIEWS_STORE);
    let key = json!(["source"]).to_string();
    let state = args::State {
        target: target.clone(),
        admin: None,
        command: StateCommand::Get {
            processor: processor.clone(),
            store: store.to_owned(),
            key: key.clone(),
            partition: None,
        },
    };
    let processes = Processes::find(&state, OPTIONAL_TIMEOUT).ok()?;
    let mut missing = BTreeMap::new();
    for partition in 0..partitions {
        let partition = partition.to_string();
        let query = [("key", key.as_str()), ("partition", partition.as_str())];
        let answer = processes.query(&[&processor, store], &query).ok()?;
        let rows = rows(&answer);
        // A task that has processed nothing has no such key.
        let Some(row) = rows.first() else { continue };
        let stream = row.get("value").and_then(versioned_json)?;
        for (table, count) in stream.get("missing").and_then(Value::as_object).into_iter().flatten() {
            *missing.entry(table.clone()).or_default() += count.as_u64().unwrap_or_default();
        }
    }
    Some(missing)
}

/// A value of a state that is a format byte and then JSON; the API returns such bytes as hexadecimal digits.
fn versioned_json(value: &Value) -> Option<Value> {
    let digits = value.get("hex")?.as_str()?.get(2..)?;
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
    serde_json::from_slice(&bytes?).ok()
}

/// The processes to query, by the URLs of their admin listeners.
struct Processes {
    client: AdminClient,
    urls: Vec<String>,
}

impl Processes {
    /// The process named with `--admin`, else those announced in the members topics of the topologies on the log, else the
    /// running `dev`.
    fn find(state: &args::State, timeout: Duration) -> Result<Self> {
        let client = AdminClient::new(&state.target, Some(timeout))?;
        if let Some(url) = &state.admin {
            return Ok(Processes {
                client,
                urls: vec![url.trim_end_matches('/').to_owned()],
            });
        }
        let Some(kafka) = Connection::of(&state.target)?.kafka else {
            return Ok(Processes {
                client,
                urls: vec![running_dev::read(&state.target.data)?.admin],
            });
        };
        let log = backends::kafka_log(&kafka)?;
        let processor = match &state.command {
            StateCommand::Get { processor, .. } | StateCommand::Scan { processor, .. } => Some(processor.as_str()),
            StateCommand::List => None,
        };
        let (mut urls, mut others) = (Vec::new(), Vec::new());
        let topics = members_topics(&*log, processor)?;
        // A process with write access to a members topic chooses the address that receives the token.
        if client.has_token() && topics.len() > 1 {
            bail!(
                "{} topologies have processes on this Kafka, and each would receive the admin token; name a processor, or a \
                 process with --admin URL",
                topics.len()
            );
        }
        for topic in topics {
            for ((application, _), url) in streams::members::addresses(&*log, &topic, None)? {
                if processor.is_none_or(|only| only == application) {
                    urls.push(url);
                } else {
                    others.push(application);
                }
            }
        }
        urls.sort();
        urls.dedup();
        if urls.is_empty() {
            bail!(no_process(processor, others));
        }
        Ok(Processes { client, urls })
    }

    /// The answer of the first process that answers, else the last error.
    fn query(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<Value> {
        let mut last = anyhow!("no process to query; specify a process with --admin URL");
        for url in &self.urls {
            match get(&self.client, url, segments, query) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Number of partitions of a store.
    fn partitions(&self, processor: &str, store: &str) -> Result<i32> {
        let answer = self.query(&[], &[])?;
        let has =
            |name: &'static str, wanted: &str, value: &Value| value.get(name).and_then(Value::as_str) == Some(wanted);
        let mut all = answer.as_array().into_iter().flatten();
        let found = all.find(|p| has("processor", processor, p));
        let found = found
            .with_context(|| format!("no reachable process runs processor `{processor}`; start a node that runs it"))?;
        let mut stores = found.get("stores").and_then(Value::as_array).into_iter().flatten();
        let store = stores
            .find(|s| has("store", store, s))
            .with_context(|| format!("processor {processor} has no store `{store}`; run `trunkline state list`"))?;
        let count = store.get("partitions").and_then(Value::as_i64);
        Ok(count.and_then(|count| i32::try_from(count).ok()).unwrap_or(0))
    }
}

/// The members topic of the processor's topology; those of all topologies if the processor is not given with a prefix.
fn members_topics(log: &dyn EventLog, processor: Option<&str>) -> Result<Vec<String>> {
    let only = processor.and_then(Names::owning);
    let is_members = |topic: &String| {
        let owner = Names::owning(topic).filter(|names| names.members() == *topic);
        owner.is_some_and(|owner| only.as_ref().is_none_or(|only| *only == owner))
    };
    Ok(log.topics()?.into_iter().filter(is_members).collect())
}

/// Creates the error if there is no process to query. A common mistake is a processor name without the prefix of the
/// topology.
fn no_process(processor: Option<&str>, mut announced: Vec<String>) -> String {
    announced.sort();
    announced.dedup();
    match processor {
        Some(processor) if !announced.is_empty() => format!(
            "no process has announced processor `{processor}`; announced are {}; use one of these names, or select a process \
             with --admin URL",
            announced.join(", ")
        ),
        _ => String::from("no process has announced its address; select a process with --admin URL"),
    }
}

fn get(client: &AdminClient, base: &str, segments: &[&str], query: &[(&str, &str)]) -> Result<Value> {
    let url = state_api::url(base, segments, query)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let sent = client.get(url).await;
        let answer = sent.with_context(|| format!("cannot reach the process at {base}; check that it is running"))?;
        if !answer.status().is_success() {
            return Err(admin_client::error_of(base, answer).await);
        }
        let body = answer.text().await.unwrap_or_default();
        serde_json::from_str(&body).with_context(|| {
            format!("{base} did not answer with JSON; check that it is the admin listener of a trunkline process")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_with_a_format_byte_is_read() {
        let digits: String = b"\x01{\"missing\":{\"orders\":2}}"
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let value = versioned_json(&json!({ "hex": digits })).unwrap();
        assert_eq!(value, json!({ "missing": { "orders": 2 } }));
        assert_eq!(versioned_json(&json!({ "hex": "01f" })), None);
    }
}
