//! The table of routes.

use serde_json::{Value, json};
use service::admin::{Access, Endpoint, Parameter, Success};

pub(super) const PATH: &str = "/v1/ingest/{topic}";
pub(super) const DELETIONS: &str = "/v1/ingest/{topic}/deletions";
const PARTIAL: &[Parameter] = &[Parameter::optional(
    "partial",
    "boolean",
    "Events only: store the valid events of an array, and report a status for each event",
)];
const STORED: &[Success] = &[Success::json(200, "Stored", "Stored")];
const ANSWERS: &[Success] = &[
    Success::json(200, "Stored", "Stored"),
    Success::json(
        207,
        "With `partial`: some events were rejected; `items` has the status of each",
        "Stored",
    ),
];
pub(super) const POST: Endpoint = Endpoint::post(PATH, Access::Credential)
    .summary("Store events, or a transaction of a source")
    .query(PARTIAL)
    .body("Items")
    .answers(ANSWERS)
    .errors(&[400, 403, 404, 408, 413, 422, 429, 503]);
pub(super) const DELETE: Endpoint = Endpoint::post(DELETIONS, Access::Credential)
    .summary("Delete rows of views that read an event topic")
    .body("Keys")
    .answers(STORED)
    .errors(&[400, 403, 404, 408, 413, 422, 429, 503]);

/// JSON schema of a receipt.
pub(super) fn stored_schema() -> Value {
    let number = || json!({ "type": "integer" });
    json!({
        "type": "object",
        "required": ["stored"],
        "properties": {
            "stored": { "type": "integer", "description": "Number of stored records" },
            "position": { "type": "integer", "description": "Of a transaction, or of events with an idempotency key" },
            "at": { "type": "array", "items": { "type": "object", "properties": {
                "partition": number(), "first_offset": number(), "next_offset": number(),
            } } },
            "items": { "type": "array", "items": { "type": "object", "properties": {
                "index": number(), "status": number(), "type": { "type": "string" }, "path": { "type": "string" },
                "detail": { "type": "string" },
            } } },
        },
    })
}
