//! Operators' requests as values: performed here on a log, or by the process that has the log open.
//!
//! The embedded log belongs to one process; while `trunkline dev` runs, its admin listener performs what the command
//! line asks. The answer is a stream of JSON lines either way.
//! Guarantees: the same answer from both ways. Never: a request that changes more than it says.

use anyhow::{Context, Result, anyhow, bail};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use event_log::{SharedEventLog, TopicPartition};
use operations::replay::{Border, Job};
use operations::topics::{From, Tail};
use operations::{Decoder, FetchSchema, lag, replay, topics};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use service::SharedClock;
use std::sync::Arc;
use streams::offsets;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Path of the operators' requests on the admin listener.
pub const PATH: &str = "/v1/operations";

/// A request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// All topics.
    Topics,
    /// One topic.
    Topic(String),
    /// Records.
    Tail {
        /// Topic.
        topic: String,
        /// Only this partition.
        partition: Option<i32>,
        /// Where to begin.
        from: Begin,
        /// Only this key.
        key: Option<String>,
        /// At most so many.
        limit: usize,
        /// Goes on at the end.
        follow: bool,
        /// Also uncommitted records.
        uncommitted: bool,
    },
    /// Lag of all groups, or of one.
    Lag(Option<String>),
    /// A replay.
    Replay {
        /// Topic to read.
        topic: String,
        /// Topic to write.
        to: String,
        /// Only this partition.
        partition: Option<i32>,
        /// First record.
        from: Begin,
        /// First record left out.
        until: Begin,
        /// Only this key.
        key: Option<String>,
        /// Records a second.
        rate: Option<u32>,
        /// Writes nothing.
        dry_run: bool,
    },
    /// State and committed offsets of a task.
    Offsets {
        /// The processor.
        processor: String,
        /// The task's store.
        store: String,
        /// The task's partition.
        partition: i32,
        /// What to do about a difference.
        way: Way,
    },
}

/// What to do about a task whose state and committed offsets differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Nothing: show both.
    Show,
    /// The committed offsets are right; with these inputs where some are named, else with those that it had.
    Accept(Vec<String>),
    /// There is no state: begin again where these inputs begin.
    Again(Vec<String>),
    /// The state is right.
    Restore,
    /// Neither: go on where the inputs begin now.
    Skip,
}

/// A place in a topic.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Begin {
    /// The first record kept; for an end: as it is now.
    Open,
    /// This many offsets before the end.
    Last(i64),
    /// An offset.
    Offset(i64),
    /// A time in ms.
    Time(i64),
}

/// A line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// A result.
    Item(Value),
    /// How far a long one has come.
    Progress(Value),
    /// Why it failed; the last line.
    Error(String),
}

/// What performs requests: a log, and how to decode.
#[derive(Clone)]
pub struct Operator {
    /// The log.
    pub log: SharedEventLog,
    /// Fetches schemas.
    pub fetch: FetchSchema,
    /// The time.
    pub clock: SharedClock,
}

impl Operator {
    /// Performs a request on this thread; `say` ends it with `false`.
    pub fn perform(&self, ask: Ask, say: &mut dyn FnMut(Said) -> bool) {
        if let Err(error) = self.try_perform(ask, say) {
            say(Said::Error(service::chain(&error)));
        }
    }

    fn try_perform(&self, ask: Ask, say: &mut dyn FnMut(Said) -> bool) -> operations::Result<()> {
        let log = self.log.as_ref();
        match ask {
            Ask::Topics => topics::list(log)?.iter().all(|t| say(item(t))),
            Ask::Topic(topic) => say(item(&topics::show(log, &topic)?)),
            Ask::Lag(group) => lag::measure(log, group.as_deref(), self.clock.now_ms())?
                .iter()
                .all(|l| say(item(l))),
            Ask::Tail {
                topic,
                partition,
                from,
                key,
                limit,
                follow,
                uncommitted,
            } => {
                let tail = Tail {
                    topic,
                    partition,
                    from: beginning(from),
                    key,
                    limit: (!follow).then_some(limit),
                    follow,
                    uncommitted,
                };
                let gone = std::cell::Cell::new(false);
                let mut decoder = Decoder::new(self.fetch.clone());
                topics::tail(log, &tail, &mut decoder, &|| gone.get(), &mut |record| {
                    gone.set(!say(item(&record)));
                    !gone.get()
                })?;
                true
            }
            Ask::Replay {
                topic,
                to,
                partition,
                from,
                until,
                key,
                rate,
                dry_run,
            } => {
                let job = Job {
                    from_topic: topic,
                    to_topic: to,
                    partition,
                    from: border(from),
                    to: border(until),
                    key,
                    rate_per_s: rate,
                    dry_run,
                };
                let done = replay::run(log, &job, &mut |p| say(Said::Progress(value(p))))?;
                say(item(&done))
            }
            Ask::Offsets {
                processor,
                store,
                partition,
                way,
            } => say(item(&standing(log, &processor, &store, partition, way)?)),
        };
        Ok(())
    }

    /// The admin listener's route for requests.
    pub fn router(self) -> Router {
        Router::new().route(PATH, post(answer)).with_state(self)
    }
}

/// Goes one of the ways, and says where the task stands then.
fn standing(
    log: &dyn event_log::EventLog,
    processor: &str,
    store: &str,
    partition: i32,
    way: Way,
) -> operations::Result<offsets::Standing> {
    let refused = |error: streams::Error| operations::Error::Refused(service::chain(&error));
    let changelog = streams::changelog_topic(processor, store);
    topics::show(log, &changelog)?;
    let changelog = TopicPartition::new(changelog, partition);
    let before = offsets::standing(log, processor, &changelog).map_err(refused)?;
    let named = |topics: &[String]| -> Vec<TopicPartition> {
        let inputs = topics
            .iter()
            .map(|topic| TopicPartition::new(topic.as_str(), partition));
        inputs.collect()
    };
    match way {
        Way::Show => return Ok(before),
        Way::Accept(topics) => {
            let inputs = if topics.is_empty() {
                before.inputs.iter().map(offsets::Place::at).collect()
            } else {
                named(&topics)
            };
            drop(offsets::accept(log, processor, &changelog, &inputs).map_err(refused)?);
        }
        Way::Again(topics) => {
            drop(offsets::again(log, processor, &changelog, &named(&topics)).map_err(refused)?);
        }
        Way::Restore => drop(offsets::restore(log, processor, &changelog).map_err(refused)?),
        Way::Skip => drop(offsets::skip(log, processor, &changelog).map_err(refused)?),
    }
    offsets::standing(log, processor, &changelog).map_err(refused)
}

fn beginning(begin: Begin) -> From {
    match begin {
        Begin::Open => From::Start,
        Begin::Last(count) => From::Last(count),
        Begin::Offset(offset) => From::Offset(offset),
        Begin::Time(at) => From::Time(at),
    }
}

fn border(begin: Begin) -> Border {
    match begin {
        Begin::Open | Begin::Last(_) => Border::Open,
        Begin::Offset(offset) => Border::Offset(offset),
        Begin::Time(at) => Border::Time(at),
    }
}

fn value<T: Serialize>(of: &T) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

fn item<T: Serialize>(of: &T) -> Said {
    Said::Item(value(of))
}

/// Performs a request on a thread of its own and streams its lines; a client that goes away ends it.
async fn answer(State(operator): State<Operator>, Json(ask): Json<Ask>) -> Response {
    let (send, lines) = mpsc::channel::<Said>(64);
    tokio::task::spawn_blocking(move || operator.perform(ask, &mut |said| send.blocking_send(said).is_ok()));
    let bytes = ReceiverStream::new(lines).map(|said| {
        let mut line = serde_json::to_vec(&said).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, std::convert::Infallible>(Bytes::from(line))
    });
    let mut response = Response::new(Body::from_stream(bytes));
    let json_lines = axum::http::HeaderValue::from_static("application/x-ndjson");
    response
        .headers_mut()
        .insert(axum::http::header::CONTENT_TYPE, json_lines);
    response
}

/// Who performs the command line's requests.
pub enum Performer {
    /// This process.
    Here(Operator),
    /// A process that has the log open, by its admin listener's URL.
    There(String),
}

impl Performer {
    /// Performs a request and hands on its lines; fails with the error line's text.
    pub fn ask(&self, ask: Ask, take: &mut dyn FnMut(Said) -> Result<bool>) -> Result<()> {
        let mut failed = None;
        let mut each = |said: Said| match said {
            Said::Error(text) => {
                failed = Some(anyhow!(text));
                false
            }
            said => match take(said) {
                Ok(more) => more,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            },
        };
        match self {
            Performer::Here(operator) => operator.perform(ask, &mut each),
            Performer::There(url) => ask_there(url, &ask, &mut each)?,
        }
        failed.map_or(Ok(()), Err)
    }
}

fn ask_there(url: &str, ask: &Ask, each: &mut dyn FnMut(Said) -> bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = reqwest::Client::new();
        let sent = client.post(format!("{url}{PATH}")).json(ask).send().await;
        let mut answer = sent.with_context(|| format!("ask the process that has the log open, at {url}"))?;
        if !answer.status().is_success() {
            bail!(
                "{url} answered {}: {}",
                answer.status(),
                answer.text().await.unwrap_or_default()
            );
        }
        let mut rest: Vec<u8> = Vec::new();
        while let Some(chunk) = answer.chunk().await.context("the answer broke off")? {
            rest.extend_from_slice(&chunk);
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if !each(serde_json::from_slice(&line).context("the answer is not this release's")?) {
                    return Ok(());
                }
            }
        }
        Ok(())
    })
}

/// Fetches schemas from a registry, for people.
pub fn fetch_from(registry: Arc<dyn registry::Registry>) -> FetchSchema {
    Arc::new(move |id| {
        let found = registry.by_id(schemas::ids::SchemaId(id));
        found.map(|text| text.to_string()).map_err(|e| service::chain(&e))
    })
}
