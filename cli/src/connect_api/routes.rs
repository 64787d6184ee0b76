//! The handlers.

use super::running::{CONNECTOR_DECLARED, CONNECTOR_NOT_FOUND, RunningConnector, TASK, Worker, fail};
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use connectors::commands::Command;
use connectors::status::State as ConnectorState;
use serde::Deserialize;
use serde_json::{Value, json};
use service::access::{Caller, Role};
use service::admin::{Access, Endpoint, Parameter, Routes, Success};
use service::{Problem, problem};
use std::time::Duration;

/// How long a request waits until the effect of its command is stored.
const STORED_LIMIT: Duration = Duration::from_secs(10);
/// The same for a snapshot, which is stored with the next position of the source.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(30);

/// The routes.
pub fn routes(worker: Worker) -> Routes {
    let routes = readers(&worker).merge(rejected(&worker)).merge(commands(&worker));
    routes.merge(reading(&worker)).schema(
        "SnapshotRequest",
        json!({
            "type": "object",
            "properties": { "tables": { "type": "array", "items": { "type": "string" } } },
            "description": "Empty: all tables that need a snapshot",
        }),
    )
}

fn readers(worker: &Worker) -> Routes {
    let shared = || worker.clone();
    Routes::new()
        .route(
            read("/connectors", "List the connectors of the process").query(EXPAND),
            list,
            shared(),
        )
        .route(read("/connectors/{name}", "Get a connector"), info, shared())
        .route(
            read(
                "/connectors/{name}/config",
                "Get the configuration of a connector, without credentials",
            ),
            config,
            shared(),
        )
        .route(
            read(
                "/connectors/{name}/status",
                "Get the state of a connector, with cause and fix",
            ),
            status,
            shared(),
        )
        .route(
            read("/connectors/{name}/tasks", "List the task of a connector"),
            tasks,
            shared(),
        )
        .route(
            read("/connectors/{name}/tasks/{task}/status", "Get the state of the task"),
            task_status,
            shared(),
        )
        .route(
            read("/connectors/{name}/offsets", "Get the stored position"),
            offsets,
            shared(),
        )
}

/// Routes of Kafka Connect for connectors that are not declared.
fn rejected(worker: &Worker) -> Routes {
    let shared = || worker.clone();
    Routes::new()
        .route(
            declared_only(
                Endpoint::post("/connectors", OPERATOR),
                "Rejected: connectors are declared",
            ),
            declared,
            shared(),
        )
        .route(
            declared_only(
                Endpoint::delete("/connectors/{name}", OPERATOR),
                "Rejected: connectors are declared",
            ),
            declared,
            shared(),
        )
        .route(
            declared_only(
                Endpoint::put("/connectors/{name}/config", OPERATOR),
                "Rejected: connectors are declared",
            ),
            declared,
            shared(),
        )
}

fn commands(worker: &Worker) -> Routes {
    let shared = || worker.clone();
    Routes::new()
        .route(
            change(Endpoint::put("/connectors/{name}/pause", OPERATOR), "Pause a connector").answers(ACCEPTED),
            pause,
            shared(),
        )
        .route(
            change(
                Endpoint::put("/connectors/{name}/stop", OPERATOR),
                "Pause a connector; its state is STOPPED",
            )
            .answers(DONE),
            stop,
            shared(),
        )
        .route(
            change(
                Endpoint::put("/connectors/{name}/resume", OPERATOR),
                "Resume a connector",
            )
            .answers(ACCEPTED),
            resume,
            shared(),
        )
        .route(
            change(
                Endpoint::post("/connectors/{name}/restart", OPERATOR),
                "Restart a connector",
            )
            .query(RESTART)
            .answers(RESTARTED),
            restart,
            shared(),
        )
        .route(
            change(
                Endpoint::post("/connectors/{name}/tasks/{task}/restart", OPERATOR),
                "Restart the task",
            )
            .answers(DONE),
            restart_task,
            shared(),
        )
}

/// Commands that read a source again.
fn reading(worker: &Worker) -> Routes {
    let shared = || worker.clone();
    Routes::new()
        .route(
            change(
                Endpoint::post("/connectors/{name}/resync", OPERATOR),
                "Read the source again under a new source epoch",
            )
            .answers(STATUS),
            resync,
            shared(),
        )
        .route(
            change(
                Endpoint::post("/connectors/{name}/snapshot", OPERATOR),
                "Read tables again while streaming continues",
            )
            .body("SnapshotRequest")
            .answers(STATUS),
            snapshot,
            shared(),
        )
}

const VIEWER: Access = Access::Role(Role::Viewer);
const OPERATOR: Access = Access::Role(Role::Operator);
const EXPAND: &[Parameter] = &[Parameter::optional(
    "expand",
    "string",
    "`status` or `info`, may be repeated: an object by name",
)];
const RESTART: &[Parameter] = &[
    Parameter::optional("includeTasks", "boolean", "Answer with the status"),
    Parameter::optional(
        "onlyFailed",
        "boolean",
        "Only if the connector has failed; answer with the status",
    ),
];
const FOUND: &[Success] = &[Success::text(200, "As Kafka Connect answers", "application/json")];
const ACCEPTED: &[Success] = &[Success::empty(202, "Stored")];
const DONE: &[Success] = &[Success::empty(204, "Stored")];
const STATUS: &[Success] = &[Success::text(202, "Stored", "application/json")];
const RESTARTED: &[Success] = &[
    Success::empty(204, "Stored"),
    Success::text(202, "Stored; the status", "application/json"),
];

const fn read(path: &'static str, summary: &'static str) -> Endpoint {
    Endpoint::get(path, VIEWER)
        .summary(summary)
        .answers(FOUND)
        .errors(&[400, 404, 503])
}

const fn change(endpoint: Endpoint, summary: &'static str) -> Endpoint {
    endpoint.summary(summary).errors(&[400, 404, 409, 503])
}

/// A route of Kafka Connect that is always rejected.
const fn declared_only(endpoint: Endpoint, summary: &'static str) -> Endpoint {
    endpoint.summary(summary).errors(&[409])
}

type Name = Result<Path<String>, PathRejection>;
type Task = Result<Path<(String, String)>, PathRejection>;

fn malformed(text: impl Into<String>) -> Problem {
    fail(&problem::BAD_REQUEST, text)
}

/// The connector that the path names.
fn named(worker: &Worker, name: Name) -> Result<RunningConnector, Box<Problem>> {
    let Path(name) = name.map_err(|rejected| malformed(rejected.body_text()))?;
    worker.connectors.find(&name)
}

fn task_of(worker: &Worker, task: Task) -> Result<RunningConnector, Box<Problem>> {
    let Path((name, task)) = task.map_err(|rejected| malformed(rejected.body_text()))?;
    let connector = worker.connectors.find(&name)?;
    if task != TASK.to_string() {
        let detail = format!("connector {name} has no task {task}; its only task is {TASK}");
        return Err(Box::new(fail(&CONNECTOR_NOT_FOUND, detail)));
    }
    Ok(connector)
}

#[derive(Deserialize)]
struct Expand {
    #[serde(default)]
    expand: Option<String>,
}

/// The names, or with `?expand=status` or `?expand=info` an object by name.
async fn list(State(worker): State<Worker>, uri: Uri) -> Result<Json<Value>, Problem> {
    let all = worker.connectors.started()?;
    // The parameter may be repeated.
    let pairs = uri.query().unwrap_or_default().split('&');
    let parsed = pairs.filter_map(|pair| {
        let uri: Uri = format!("/?{pair}").parse().ok()?;
        Query::<Expand>::try_from_uri(&uri).ok()?.0.expand
    });
    let expand: Vec<String> = parsed.collect();
    if expand.is_empty() {
        return Ok(Json(
            all.iter()
                .map(|connector| Value::from(connector.name.clone()))
                .collect(),
        ));
    }
    let expanded = all.iter().map(|connector| {
        let mut item = serde_json::Map::new();
        if expand.iter().any(|part| part == "status") {
            item.insert("status".to_owned(), connector.status(&worker.id));
        }
        if expand.iter().any(|part| part == "info") {
            item.insert("info".to_owned(), connector.info());
        }
        (connector.name.clone(), Value::from(item))
    });
    Ok(Json(Value::Object(expanded.collect())))
}

async fn declared() -> Problem {
    fail(
        &CONNECTOR_DECLARED,
        "connectors are declared in topology.toml; change [[connector]] there, run `trunkline topology check`, and restart the node",
    )
}

async fn info(State(worker): State<Worker>, name: Name) -> Result<Json<Value>, Problem> {
    Ok(Json(named(&worker, name)?.info()))
}

async fn config(State(worker): State<Worker>, name: Name) -> Result<Json<Value>, Problem> {
    Ok(Json(named(&worker, name)?.config().into()))
}

async fn status(State(worker): State<Worker>, name: Name) -> Result<Json<Value>, Problem> {
    Ok(Json(named(&worker, name)?.status(&worker.id)))
}

async fn tasks(State(worker): State<Worker>, name: Name) -> Result<Json<Value>, Problem> {
    let connector = named(&worker, name)?;
    Ok(Json(json!([{
        "id": { "connector": connector.name, "task": TASK },
        "config": connector.config(),
    }])))
}

async fn task_status(State(worker): State<Worker>, task: Task) -> Result<Json<Value>, Problem> {
    let status = task_of(&worker, task)?.status(&worker.id);
    Ok(Json(status.pointer("/tasks/0").cloned().unwrap_or_default()))
}

/// The position. It is opaque to Kafka Connect's clients.
async fn offsets(State(worker): State<Worker>, name: Name) -> Result<Json<Value>, Problem> {
    let connector = named(&worker, name)?;
    let position = connector.handle.report().position;
    let offset = json!({ "partition": { "connector": connector.name }, "offset": { "position": position } });
    let offsets = if position.is_empty() {
        json!([])
    } else {
        json!([offset])
    };
    Ok(Json(json!({ "offsets": offsets })))
}

/// Sends a command, logs it with the name of the token, and waits until its effect is stored.
async fn execute(caller: &Caller, connector: &RunningConnector, command: Command) -> Result<(), Problem> {
    tracing::info!(token = %caller.name, connector = connector.name, ?command, "connector command received");
    let limit = match command {
        Command::Snapshot { .. } => SNAPSHOT_LIMIT,
        _ => STORED_LIMIT,
    };
    let sent = connector.handle.send(command);
    Ok(connector.stored(sent, limit).await?)
}

async fn pause(
    State(worker): State<Worker>,
    Extension(caller): Extension<Caller>,
    name: Name,
) -> Result<StatusCode, Problem> {
    execute(&caller, &named(&worker, name)?, Command::Pause).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn stop(
    State(worker): State<Worker>,
    Extension(caller): Extension<Caller>,
    name: Name,
) -> Result<StatusCode, Problem> {
    execute(&caller, &named(&worker, name)?, Command::Stop).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn resume(
    State(worker): State<Worker>,
    Extension(caller): Extension<Caller>,
    name: Name,
) -> Result<StatusCode, Problem> {
    execute(&caller, &named(&worker, name)?, Command::Resume).await?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Restart {
    #[serde(default)]
    include_tasks: bool,
    #[serde(default)]
    only_failed: bool,
}

async fn restart(
    State(worker): State<Worker>,
    Extension(caller): Extension<Caller>,
    name: Name,
    query: Result<Query<Restart>, QueryRejection>,
) -> Result<Response, Problem> {
    let connector = named(&worker, name)?;
    let Query(query) = query.map_err(|rejected| malformed(rejected.body_text()))?;
    let state = connector.handle.report().state;
    let has_failed = !state.is_healthy() && state != ConnectorState::Starting;
    if has_failed || !query.only_failed {
        execute(&caller, &connector, Command::Restart).await?;
    }
    if query.include_tasks || query.only_failed {
        return Ok((StatusCode::ACCEPTED, Json(connector.status(&worker.id))).into_response());
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn restart_task(
    State(worker): State<Worker>,
    Extension(caller): Extension<Caller>,
    task: Task,
) -> Result<StatusCode, Problem> {
    execute(&caller, &task_of(&worker, task)?, Command::Restart).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn resync(
    State(worker): State<Worker>,
    Extension(caller): Extension<Caller>,
    name: Name,
) -> Result<Response, Problem> {
    let connector = named(&worker, name)?;
    execute(&caller, &connector, Command::Resync).await?;
    Ok((StatusCode::ACCEPTED, Json(connector.status(&worker.id))).into_response())
}

/// Tables of which a snapshot is taken.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotRequest {
    /// Their names; empty for all tables that need one.
    #[serde(default)]
    tables: Vec<String>,
}

async fn snapshot(
    State(worker): State<Worker>,
    Extension(caller): Extension<Caller>,
    name: Name,
    request: Result<Json<SnapshotRequest>, JsonRejection>,
) -> Result<Response, Problem> {
    let connector = named(&worker, name)?;
    let Json(SnapshotRequest { mut tables }) = request.map_err(|rejected| malformed(rejected.body_text()))?;
    if let Some(unknown) = tables.iter().find(|table| !connector.tables.contains(table)) {
        let detail = format!(
            "connector {} has no table `{unknown}`; its declared tables are {}",
            connector.name,
            connector.tables.join(", ")
        );
        return Err(malformed(detail));
    }
    if tables.is_empty() {
        tables = connector.stopped_tables();
    }
    if tables.is_empty() {
        let detail = format!(
            "no table of connector {} needs a snapshot; name the tables ({}), or use `resync` for all",
            connector.name,
            connector.tables.join(", ")
        );
        return Err(malformed(detail));
    }
    execute(&caller, &connector, Command::Snapshot { tables: tables.clone() }).await?;
    let body = json!({ "connector": connector.name, "tables": tables });
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}
