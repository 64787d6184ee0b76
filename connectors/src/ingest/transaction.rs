//! Stores a transaction of an HTTP source.

use super::counts;
use super::reply::{JSON, Misfit, outcome, rejected, unavailable};
use super::request::Post;
use crate::sources::http::{Change, HttpSourceHandle, JsonMismatch, PostOutcome, Table};
use axum::response::Response;
use schemas::codec::UnknownFields;
use serde::Deserialize;
use serde_json::value::RawValue;
use service::Problem;

/// What a misfit outside a table belongs to.
const WHAT: &str = "the transaction";
const NO_ROW: &str = "a truncate removes all rows of its table, so it has neither row nor key";
const SHAPE: &str =
    r#"{"changes":[{"table":"orders","op":"put","row":{…}},{"table":"orders","op":"delete","key":{…}}]}"#;

#[derive(Deserialize)]
struct Body<'b> {
    #[serde(borrow, default)]
    changes: Vec<&'b RawValue>,
}

/// A change, whose row and key keep their text.
#[derive(Deserialize)]
struct ChangeText<'b> {
    #[serde(default)]
    table: String,
    #[serde(default)]
    op: String,
    #[serde(borrow, default)]
    row: Option<&'b RawValue>,
    #[serde(borrow, default)]
    key: Option<&'b RawValue>,
}

/// Stores the transaction of a request. It is stored completely or not at all.
pub(super) async fn store(handle: &HttpSourceHandle, post: &Post, unknown: UnknownFields) -> Result<Response, Problem> {
    let Some(tables) = handle.tables() else {
        return Err(unavailable(
            "the source is starting or paused; see `trunkline connect status`",
        ));
    };
    let text: &RawValue = serde_json::from_slice(&post.body).map_err(|e| JSON.detail(e.to_string()))?;
    let body: Option<Body<'_>> = serde_json::from_str(text.get()).ok();
    let list = body.map(|body| body.changes).filter(|changes| !changes.is_empty());
    let list = list.ok_or_else(|| {
        let reason = format!("expected a non-empty array, such as {SHAPE}");
        Misfit::new("$.changes", &reason, WHAT)
    })?;
    let (mut changes, mut misfits) = (Vec::with_capacity(list.len()), Vec::new());
    for (n, text) in list.into_iter().enumerate() {
        match change(&tables, text, &format!("$.changes[{n}]"), unknown) {
            Ok(change) => changes.push(change),
            Err(misfit) => misfits.push(misfit),
        }
    }
    if !misfits.is_empty() {
        return Err(rejected(misfits));
    }
    let count = changes.len();
    let posted = handle.post(changes, post.fingerprint(""), post.trace.clone()).await;
    if matches!(posted, Ok(PostOutcome::Stored(_))) {
        counts::stored(&post.credential, &post.topic, count, post.body.len());
    }
    Ok(outcome(posted, None)?)
}

fn change(tables: &[Table], text: &RawValue, at: &str, unknown: UnknownFields) -> Result<Change, Misfit> {
    let parsed = serde_json::from_str(text.get());
    let ChangeText {
        table: name,
        op,
        row,
        key,
    } = parsed.map_err(|e| Misfit::new(at, &e.to_string(), WHAT))?;
    let table = tables.iter().find(|table| *table.name == *name).ok_or_else(|| {
        let known: Vec<&str> = tables.iter().map(|table| &*table.name).collect();
        let reason = format!("unknown table `{name}`; the tables are {}", known.join(", "));
        Misfit::new(&format!("{at}.table"), &reason, WHAT)
    })?;
    let below = |part: &str, mismatch: &JsonMismatch| Misfit::below(&format!("{at}.{part}"), mismatch, &name);
    match op.as_str() {
        "put" => {
            let row = row.unwrap_or(RawValue::NULL);
            table.put(row, unknown).map_err(|mismatch| below("row", &mismatch))
        }
        "delete" => {
            let key = key.unwrap_or(RawValue::NULL);
            table.delete(key).map_err(|mismatch| below("key", &mismatch))
        }
        // A row or a key is rejected, because a misunderstood request would remove all rows.
        "truncate" => match (row, key) {
            (None, None) => Ok(table.truncate()),
            (Some(_), _) => Err(Misfit::new(&format!("{at}.row"), NO_ROW, WHAT)),
            (None, Some(_)) => Err(Misfit::new(&format!("{at}.key"), NO_ROW, WHAT)),
        },
        _ => Err(Misfit::new(
            &format!("{at}.op"),
            "expected \"put\", \"delete\" or \"truncate\"",
            WHAT,
        )),
    }
}
