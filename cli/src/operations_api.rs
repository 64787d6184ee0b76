//! Requests of operators (topics, lag, replay, offsets, dead letters) and their execution on a log.
//!
//! Only one process can open an embedded log. While `trunkline dev` has it open, the command line sends its requests to
//! the admin listener of that process; otherwise it executes them itself. Both ways return the same stream of
//! responses.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::Response as HttpResponse;
use axum::{Extension, Json};
use event_log::{EventLog, SharedEventLog, TopicPartition};
use operations::lag::DeclaredInput;
use operations::replay::{Job, RangeBound};
use operations::tail::{self, Tail, TailStart};
use operations::{Decoder, FetchSchema, dead_letters, lag, replay, topics};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use service::access::{Caller, Role};
use service::admin::{Access, Endpoint, Routes, Success};
use service::{Problem, SharedClock, problem};
use std::sync::{Arc, OnceLock};
use streams::offsets;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Path of the requests on the admin listener.
pub const PATH: &str = "/v1/operations";

/// A request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Describe the state of the log.
    Log,
    /// List all topics.
    Topics,
    /// List the names of all topics, which needs no request for each of them.
    TopicNames,
    /// Describe one topic.
    Topic(String),
    /// Read records.
    Tail(TailRequest),
    /// Measure the lag of consumer groups.
    Lag(LagRequest),
    /// Copy records to another topic.
    Replay(ReplayRequest),
    /// Show or change the offsets of a task.
    Offsets(OffsetsRequest),
    /// Describe the dead-letter topics whose names begin with this text.
    DeadLetterTopics(String),
    /// Read dead letters.
    DeadLetters(DeadLettersRequest),
    /// Write the records of dead letters to their original topic again.
    Redrive(RedriveRequest),
}

impl Request {
    /// The name of the request, as in its JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Topics => "topics",
            Request::TopicNames => "topic_names",
            Request::Topic(_) => "topic",
            Request::Tail(_) => "tail",
            Request::Lag(_) => "lag",
            Request::Replay(_) => "replay",
            Request::Offsets(_) => "offsets",
            Request::Log => "log",
            Request::DeadLetterTopics(_) => "dead_letter_topics",
            Request::DeadLetters(_) => "dead_letters",
            Request::Redrive(_) => "redrive",
        }
    }

    /// The role that the request requires.
    pub fn role(&self) -> Role {
        match self {
            Request::Topics | Request::TopicNames | Request::Topic(_) | Request::Tail(_) => Role::Viewer,
            Request::Lag(_) | Request::Log => Role::Viewer,
            Request::DeadLetterTopics(_) | Request::DeadLetters(_) => Role::Viewer,
            Request::Redrive(request) if request.dry_run => Role::Viewer,
            Request::Offsets(request) if request.action == OffsetsAction::Show => Role::Viewer,
            Request::Replay(request) if request.dry_run => Role::Viewer,
            Request::Offsets(_) | Request::Replay(_) | Request::Redrive(_) => Role::Operator,
        }
    }
}

/// Which lag to measure.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LagRequest {
    /// One group; `None` for all groups.
    pub group: Option<String>,
    /// Inputs of groups that may never have run.
    #[serde(default)]
    pub declared: Vec<DeclaredInput>,
}

/// State of the log.
#[derive(Debug, Serialize, Deserialize)]
pub struct LogState {
    /// Description of the log.
    pub log: String,
    /// Why the log currently cannot be used.
    pub problem: Option<String>,
    /// Notice of data that an embedded log cut or lost when it was opened.
    pub notice: Option<String>,
    /// Whether acknowledged writes may be lost.
    pub is_loss: bool,
}

impl LogState {
    fn of(log: &dyn EventLog) -> LogState {
        let notice = log.notice();
        LogState {
            log: log.description(),
            problem: log.check_reachable().err().map(|error| service::chain(&error)),
            is_loss: notice.as_ref().is_some_and(|notice| notice.is_loss),
            notice: notice.map(|notice| notice.text),
        }
    }
}

/// Which records to read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TailRequest {
    /// Topic.
    pub topic: String,
    /// Only this partition.
    pub partition: Option<i32>,
    /// First record.
    pub from: Position,
    /// Only this key.
    pub key: Option<String>,
    /// Maximum number of records; ignored with `follow`.
    pub limit: usize,
    /// Whether to wait for new records at the end.
    pub follow: bool,
    /// Whether to include uncommitted records.
    pub uncommitted: bool,
}

/// Which records to copy, and to which topic.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReplayRequest {
    /// Source topic.
    pub topic: String,
    /// Target topic.
    pub to: String,
    /// Whether to create it if it does not exist.
    #[serde(default)]
    pub create: bool,
    /// Only this partition.
    pub partition: Option<i32>,
    /// First record.
    pub from: Position,
    /// End of the range, exclusive.
    pub until: Position,
    /// Only this key.
    pub key: Option<String>,
    /// Maximum number of records per second.
    pub rate: Option<u32>,
    /// Whether to count only.
    pub dry_run: bool,
}

/// Which dead letters to read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeadLettersRequest {
    /// Dead-letter topic.
    pub topic: String,
    /// Which of its dead letters.
    pub filter: dead_letters::Filter,
    /// Maximum number; the newest are returned.
    pub limit: usize,
}

/// Which dead letters to redrive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RedriveRequest {
    /// Dead-letter topic.
    pub topic: String,
    /// Which of its dead letters.
    pub filter: dead_letters::Filter,
    /// Maximum number.
    pub limit: Option<u64>,
    /// Whether to include those that were redriven before.
    pub again: bool,
    /// Whether to count only.
    pub dry_run: bool,
}

/// A task and what to do with its offsets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OffsetsRequest {
    /// Processor.
    pub processor: String,
    /// Store of the task.
    pub store: String,
    /// Partition of the task.
    pub partition: i32,
    /// How to resolve the difference.
    pub action: OffsetsAction,
}

/// How to resolve a difference between the state and the committed offsets of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OffsetsAction {
    /// Change nothing.
    Show,
    /// Keep the state and continue at the committed offsets of these inputs, or of the inputs of the state if empty.
    Accept(Vec<String>),
    /// Process these inputs from the earliest offset. Requires that the task has no state.
    ResetToEarliest(Vec<String>),
    /// Set the committed offsets to those of the state.
    Restore,
    /// Continue after records that retention deleted.
    Skip,
    /// Continue at an offset of one input, because the records before it cannot be read.
    SkipTo {
        /// The input; may be omitted if the task has one.
        input: Option<String>,
        /// The offset.
        offset: i64,
    },
}

/// A position in a topic.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// As the start of a range, the earliest offset; as its end, the last stable offset.
    Unbounded,
    /// The newest records, at most this number.
    Newest(usize),
    /// An offset.
    Offset(i64),
    /// A time in milliseconds since 1970.
    Time(i64),
}

/// One element of the response stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// A result.
    Item(Value),
    /// Progress of a long request.
    Progress(Value),
    /// The request failed. Last element of the stream.
    Error(String),
}

/// Executes requests on a log.
#[derive(Clone)]
pub struct Operations {
    /// The log.
    pub log: SharedEventLog,
    /// Fetches schemas for decoding.
    pub fetch: FetchSchema,
    /// The clock.
    pub clock: SharedClock,
}

impl Operations {
    /// Executes a request on the calling thread. It stops when `respond` returns false, or while it waits for records when
    /// `is_abandoned` returns true.
    pub fn execute(
        &self,
        request: Request,
        is_abandoned: &dyn Fn() -> bool,
        respond: &mut dyn FnMut(Response) -> bool,
    ) {
        if let Err(error) = self.try_execute(request, is_abandoned, respond) {
            respond(Response::Error(service::chain(&error)));
        }
    }

    fn try_execute(
        &self,
        request: Request,
        is_abandoned: &dyn Fn() -> bool,
        respond: &mut dyn FnMut(Response) -> bool,
    ) -> operations::Result<()> {
        let log = self.log.as_ref();
        match request {
            Request::Log => respond(item(&LogState::of(log))),
            Request::Topics => topics::list(log)?.iter().all(|topic| respond(item(topic))),
            Request::TopicNames => topics::names(log)?.iter().all(|name| respond(item(name))),
            Request::Topic(topic) => respond(item(&topics::show(log, &topic)?)),
            Request::Lag(LagRequest { group, declared }) => {
                let lags = lag::measure(log, group.as_deref(), &declared, self.clock.now_ms())?;
                lags.iter().all(|lag| respond(item(lag)))
            }
            Request::Tail(request) => {
                let stopped = std::cell::Cell::new(false);
                let mut decoder = Decoder::new(self.fetch.clone());
                let stop = || stopped.get() || is_abandoned();
                tail::tail(log, &tail_of(request), &mut decoder, &stop, &mut |record| {
                    stopped.set(!respond(item(&record)));
                    !stopped.get()
                })?;
                true
            }
            Request::Replay(request) => {
                let mut progress = |progress: &replay::Progress| respond(Response::Progress(value(progress)));
                let done = replay::run(log, &job_of(request), &mut progress)?;
                respond(item(&done))
            }
            Request::Offsets(request) => respond(item(&task_offsets(log, &request)?)),
            Request::DeadLetterTopics(prefix) => dead_letters::list(log, &prefix)?
                .iter()
                .all(|topic| respond(item(topic))),
            Request::DeadLetters(DeadLettersRequest { topic, filter, limit }) => {
                let decoder = Decoder::new(self.fetch.clone());
                let found = dead_letters::show(log, &topic, &filter, limit, decoder)?;
                found.iter().all(|letter| respond(item(letter)))
            }
            Request::Redrive(request) => {
                let mut progress = |progress: &dead_letters::Outcome| respond(Response::Progress(value(progress)));
                let done = dead_letters::redrive(log, &redrive_of(request), &mut progress)?;
                respond(item(&done))
            }
        };
        Ok(())
    }
}

/// The operations of a process, which exist once its log is open.
pub type SharedOperations = Arc<OnceLock<Operations>>;

const LINES: &[Success] = &[Success::text(
    200,
    "JSON lines: `item`, `progress` or `error`",
    "application/x-ndjson",
)];

/// The route of the admin listener. Requests that change something require more than the role of the route.
pub fn routes(operations: SharedOperations) -> Routes {
    let endpoint = Endpoint::post(PATH, Access::Role(Role::Viewer))
        .summary("Execute an operation of the command line. What changes something requires the role operator")
        .body("Operation")
        .answers(LINES)
        .errors(&[400, 413, 503]);
    let names = serde_json::json!({
        "log": "viewer", "topics": "viewer", "topic_names": "viewer", "topic": "viewer", "tail": "viewer",
        "lag": "viewer", "dead_letter_topics": "viewer", "dead_letters": "viewer",
        "offsets": "operator unless the action is `show`", "replay": "operator unless `dry_run`",
        "redrive": "operator unless `dry_run`",
    });
    let schema = serde_json::json!({
        "description": "The name of an operation, or an object with the name and its parameters. This interface belongs to \
                        the command line of the same version and may change",
        "x-trunkline-roles": names,
    });
    Routes::new()
        .route(endpoint, handle, operations)
        .schema("Operation", schema)
}

fn tail_of(request: TailRequest) -> Tail {
    Tail {
        topic: request.topic,
        partition: request.partition,
        from: match request.from {
            Position::Unbounded => TailStart::Earliest,
            Position::Newest(count) => TailStart::Newest(count),
            Position::Offset(offset) => TailStart::Offset(offset),
            Position::Time(at) => TailStart::Time(at),
        },
        key: request.key,
        limit: (!request.follow).then_some(request.limit),
        follow: request.follow,
        uncommitted: request.uncommitted,
    }
}

fn job_of(request: ReplayRequest) -> Job {
    let bound = |position| match position {
        Position::Unbounded | Position::Newest(_) => RangeBound::Unbounded,
        Position::Offset(offset) => RangeBound::Offset(offset),
        Position::Time(at) => RangeBound::Time(at),
    };
    Job {
        from_topic: request.topic,
        to_topic: request.to,
        create: request.create,
        partition: request.partition,
        from: bound(request.from),
        to: bound(request.until),
        key: request.key,
        rate_per_s: request.rate,
        dry_run: request.dry_run,
    }
}

fn redrive_of(request: RedriveRequest) -> dead_letters::Job {
    dead_letters::Job {
        topic: request.topic,
        filter: request.filter,
        limit: request.limit,
        again: request.again,
        dry_run: request.dry_run,
    }
}

/// Performs the action and returns the resulting offsets.
fn task_offsets(log: &dyn EventLog, request: &OffsetsRequest) -> operations::Result<offsets::TaskPositions> {
    let failed = |error: streams::Error| operations::Error::Rejected(service::chain(&error));
    let processor = request.processor.as_str();
    let changelog = streams::changelog_topic(processor, &request.store);
    // Fails with a suggestion if the processor or the store does not exist.
    topics::show(log, &changelog)?;
    let changelog = TopicPartition::new(changelog, request.partition);
    let partitions = |topics: &[String]| -> Vec<TopicPartition> {
        let inputs = topics.iter();
        inputs
            .map(|topic| TopicPartition::new(topic.as_str(), request.partition))
            .collect()
    };
    let before = offsets::positions(log, processor, &changelog).map_err(failed)?;
    let changed = match &request.action {
        OffsetsAction::Show => return Ok(before),
        OffsetsAction::Accept(topics) => {
            let inputs = if topics.is_empty() {
                before.inputs.iter().map(offsets::InputPositions::at).collect()
            } else {
                partitions(topics)
            };
            offsets::accept(log, processor, &changelog, &inputs)
        }
        OffsetsAction::ResetToEarliest(topics) => {
            offsets::reset_to_earliest(log, processor, &changelog, &partitions(topics))
        }
        OffsetsAction::Restore => offsets::restore(log, processor, &changelog),
        OffsetsAction::Skip => offsets::skip(log, processor, &changelog),
        OffsetsAction::SkipTo { input, offset } => {
            offsets::skip_to(log, processor, &changelog, input.as_deref(), *offset)
        }
    };
    changed.map_err(failed)?;
    offsets::positions(log, processor, &changelog).map_err(failed)
}

fn value<T: Serialize>(of: &T) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

fn item<T: Serialize>(of: &T) -> Response {
    Response::Item(value(of))
}

/// Executes a request on a blocking thread and streams the responses as JSON lines. The request stops when the client
/// disconnects, because the channel is then closed.
async fn handle(
    State(operations): State<SharedOperations>,
    Extension(caller): Extension<Caller>,
    request: Result<Json<Request>, JsonRejection>,
) -> Result<HttpResponse, Problem> {
    let Json(request) = request.map_err(|rejected| problem::BAD_REQUEST.detail(rejected.body_text()))?;
    caller.check(request.role()).map_err(|problem| *problem)?;
    let Some(operations) = operations.get().cloned() else {
        return Err(problem::UNAVAILABLE
            .detail("the log is not open yet; see /readyz")
            .retry_after(1));
    };
    if request.role() > Role::Viewer {
        // Log the request without its values, because a key is data.
        tracing::info!(target: "audit", token = %caller.name, operation = request.name(), "operation requested");
    }
    let (sender, receiver) = mpsc::channel::<Response>(64);
    tokio::task::spawn_blocking(move || {
        // A follower of a quiet topic sends nothing, so it also has to look whether its client is still there.
        let is_abandoned = || sender.is_closed();
        operations.execute(request, &is_abandoned, &mut |response| {
            sender.blocking_send(response).is_ok()
        });
    });
    let lines = ReceiverStream::new(receiver).map(|response| {
        let mut line = serde_json::to_vec(&response).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, std::convert::Infallible>(Bytes::from(line))
    });
    let mut response = HttpResponse::new(Body::from_stream(lines));
    let json_lines = axum::http::HeaderValue::from_static("application/x-ndjson");
    response
        .headers_mut()
        .insert(axum::http::header::CONTENT_TYPE, json_lines);
    Ok(response)
}

/// Fetches schemas from a registry for decoding.
pub fn fetch_from(registry: Arc<dyn registry::Registry>) -> FetchSchema {
    Arc::new(move |id| {
        let found = registry.by_id(schemas::ids::SchemaId(id));
        found.map(|text| text.to_string()).map_err(|e| service::chain(&e))
    })
}
