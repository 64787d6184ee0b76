//! The handlers of the routes.

use super::access::Backend;
use super::reply::{Misfit, UNKNOWN_TOPIC};
use super::request::read;
use super::state::{Ingest, Shared};
use super::{events, transaction};
use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use serde::Deserialize;
use service::Problem;
use service::problem::BAD_REQUEST;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PostQuery {
    #[serde(default)]
    partial: bool,
}

/// `POST /v1/ingest/{topic}`.
pub(super) async fn records(
    State(shared): State<Shared>,
    Extension(backend): Extension<Backend>,
    Path(topic): Path<String>,
    query: Result<Query<PostQuery>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|rejected| BAD_REQUEST.detail(rejected.body_text()))?;
    let permit = shared.admission.admit(request.headers())?;
    let ingest = &shared.ingest;
    let post = read(ingest.config.body_bytes_max, backend, topic, request, permit).await?;
    if let Some(event) = ingest.event(&post.topic) {
        return events::store(ingest, event, &post, query.partial).await;
    }
    if let Some(handle) = ingest.sources.get(&post.topic) {
        return transaction::store(handle, &post, ingest.config.unknown_fields).await;
    }
    Err(unknown_topic(ingest, &post.topic))
}

/// `POST /v1/ingest/{topic}/deletions`.
pub(super) async fn deletions(
    State(shared): State<Shared>,
    Extension(backend): Extension<Backend>,
    Path(topic): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let permit = shared.admission.admit(request.headers())?;
    let ingest = &shared.ingest;
    let post = read(ingest.config.body_bytes_max, backend, topic, request, permit).await?;
    if let Some(event) = ingest.event(&post.topic) {
        return events::delete(ingest, event, &post).await;
    }
    if ingest.sources.contains_key(&post.topic) {
        let reason = r#"rows of a source are deleted in a transaction: {"changes":[{"table":"orders","op":"delete","key":{…}}]}"#;
        return Err(Misfit::new("$", reason, &post.topic).into());
    }
    Err(unknown_topic(ingest, &post.topic))
}

fn unknown_topic(ingest: &Ingest, topic: &str) -> Problem {
    let known: Vec<&str> = ingest.topics().collect();
    UNKNOWN_TOPIC.detail(format!(
        "topic {topic} does not accept records over HTTP; topics that do: {}",
        known.join(", ")
    ))
}
