//! The processes of a topology, by the URLs of their admin listeners, and requests to them.

use crate::admin_client::{self, AdminClient};
use crate::args::Target;
use crate::connection::Connection;
use crate::operations_api::{Position, Request, TailRequest};
use crate::operations_client::Client;
use crate::running_dev;
use anyhow::{Context, Result, bail};
use reqwest::{Method, Url};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use topology::Names;

/// Processes to ask.
pub struct Processes {
    client: AdminClient,
    runtime: tokio::runtime::Runtime,
    /// URLs of their admin listeners.
    pub urls: Vec<String>,
}

impl Processes {
    /// Creates processes with these URLs.
    pub fn at(target: &Target, urls: Vec<String>, timeout: Duration) -> Result<Self> {
        let mut urls: Vec<String> = urls.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        urls.sort();
        urls.dedup();
        Ok(Processes {
            client: AdminClient::new(target, Some(timeout))?,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            urls,
        })
    }

    /// The processes of `given`, else those that are announced on the Kafka of `target`, else the running `trunkline dev`.
    pub fn find(target: &Target, given: &[String], timeout: Duration) -> Result<Self> {
        if !given.is_empty() {
            return Self::at(target, given.to_vec(), timeout);
        }
        if Connection::of(target)?.kafka.is_none() {
            return Self::at(target, vec![running_dev::read(&target.data)?.admin], timeout);
        }
        let client = Client::connect(target)?;
        let topics = members_topics(&client, None)?;
        let urls = announced(&client, &topics)?
            .into_iter()
            .map(|process| process.url)
            .collect();
        let processes = Self::at(target, urls, timeout)?;
        // A process with write access to a members topic chooses the address that receives the token.
        if processes.client.has_token() && topics.len() > 1 {
            bail!(
                "{} topologies have processes on this Kafka, and each would receive the admin token; name the processes with \
                 --admin URL",
                topics.len()
            );
        }
        if processes.urls.is_empty() {
            bail!("no process has announced its address; name a process with --admin URL");
        }
        Ok(processes)
    }

    /// Whether requests carry a token.
    pub fn has_token(&self) -> bool {
        self.client.has_token()
    }

    /// Sends a `GET` and returns the status code and the JSON of the answer.
    pub fn get(&self, base: &str, path: &[&str], query: &str) -> Result<(u16, Value)> {
        let mut url = url(base, path)?;
        url.set_query((!query.is_empty()).then_some(query));
        self.runtime.block_on(async {
            let sent = self.client.get(url).await;
            let response = sent.with_context(|| format!("cannot reach the process at {base}"))?;
            let status = response.status();
            // /readyz answers 503 with its report.
            if !status.is_success() && status.as_u16() != 503 {
                return Err(admin_client::error_of(base, response).await);
            }
            let body = response.text().await.unwrap_or_default();
            let json = serde_json::from_str(&body).with_context(|| {
                format!("{base} did not answer with JSON; check that it is the admin listener of a trunkline process")
            })?;
            Ok((status.as_u16(), json))
        })
    }

    /// Sends a request that changes something and returns the JSON of the answer, null if it is empty.
    pub fn send(&self, method: Method, base: &str, path: &[&str], body: Option<&Value>) -> Result<Value> {
        let url = url(base, path)?;
        self.runtime.block_on(async {
            let sent = self.client.send(method, url, body).await;
            let response = sent.with_context(|| format!("cannot reach the process at {base}"))?;
            if !response.status().is_success() {
                return Err(admin_client::error_of(base, response).await);
            }
            let body = response.text().await.unwrap_or_default();
            Ok(serde_json::from_str(&body).unwrap_or_default())
        })
    }
}

fn url(base: &str, path: &[&str]) -> Result<Url> {
    let mut url =
        Url::parse(base).with_context(|| format!("`{base}` is not a URL; write it like http://127.0.0.1:8082"))?;
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    Ok(url)
}

/// The members topics of a topology, or of all topologies of the log.
pub fn members_topics(client: &Client, topology: Option<&Names>) -> Result<Vec<String>> {
    let topics = client.collect(Request::TopicNames)?;
    let names = topics.iter().filter_map(Value::as_str);
    let is_members = |topic: &&str| {
        let owner = Names::owning(topic).filter(|names| names.members() == **topic);
        owner.is_some_and(|owner| topology.is_none_or(|only| *only == owner))
    };
    Ok(names.filter(is_members).map(str::to_owned).collect())
}

/// The admin address of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The node of the topology that it runs.
    pub node: String,
    /// URL of its admin listener.
    pub url: String,
}

/// The processes that have announced their address, by instance. Some of them may no longer run.
pub fn announced(client: &Client, topics: &[String]) -> Result<Vec<Announced>> {
    let mut found = BTreeMap::new();
    for topic in topics {
        let tail = TailRequest {
            topic: topic.clone(),
            partition: None,
            from: Position::Unbounded,
            key: None,
            limit: usize::MAX,
            follow: false,
            uncommitted: false,
        };
        for record in client.collect(Request::Tail(tail))? {
            let Some(instance) = instance_of(&record) else { continue };
            let text = |name: &str| {
                let value = record.pointer(&format!("/value/{name}"));
                value.and_then(Value::as_str).map(str::to_owned)
            };
            match text("node").zip(text("admin")) {
                Some((node, url)) => drop(found.insert((topic, instance), Announced { node, url })),
                None => drop(found.remove(&(topic, instance))),
            }
        }
    }
    Ok(found.into_values().collect())
}

/// The instance of a record with the key `["node","<instance>"]`. Processors announce themselves under other keys.
fn instance_of(record: &Value) -> Option<String> {
    let key = record.get("key")?;
    let is_node = key.get(0)?.as_str()? == "node";
    is_node.then(|| key.get(1)?.as_str().map(str::to_owned)).flatten()
}
