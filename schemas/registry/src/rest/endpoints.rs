//! The table of routes, for the OpenAPI document.

use super::wire::CONTENT_TYPE;
use serde_json::{Value, json};
use service::admin::{Access, Endpoint, Parameter, Routes, Success};
use service::openapi::Api;

/// Where all versions of a subject are.
pub(super) const VERSIONS: &str = "/subjects/{subject}/versions";
/// Where one version is.
pub(super) const VERSION: &str = "/subjects/{subject}/versions/{version}";
/// Where a subject is.
pub(super) const SUBJECT: &str = "/subjects/{subject}";
/// Where settings of a subject are.
pub(super) const CONFIG: &str = "/config/{subject}";
pub(super) const MODE: &str = "/mode/{subject}";
/// Where a schema is.
pub(super) const ID: &str = "/schemas/ids/{id}";

pub(super) const LISTING: &[Parameter] = &[
    Parameter::optional("subjectPrefix", "string", "Only subjects that begin with this text"),
    DELETED,
    Parameter::optional("deletedOnly", "boolean", "Only what is deleted softly"),
    Parameter::optional(
        "latestOnly",
        "boolean",
        "Schemas only: the latest version of each subject",
    ),
    Parameter::optional("offset", "integer", "Number of entries to skip"),
    Parameter::optional("limit", "integer", "Maximum number of entries; negative: all"),
];
const DELETED: Parameter = Parameter::optional("deleted", "boolean", "Also what is deleted softly");
pub(super) const WITH_DELETED: &[Parameter] = &[DELETED];
pub(super) const PERMANENT: &[Parameter] = &[Parameter::optional(
    "permanent",
    "boolean",
    "Remove what was deleted softly",
)];
pub(super) const OF_SUBJECT: &[Parameter] = &[Parameter::optional("subject", "string", "Only uses by this subject")];
pub(super) const DEFAULT: &[Parameter] = &[Parameter::optional(
    "defaultToGlobal",
    "boolean",
    "The global setting if the subject has none",
)];
pub(super) const VERBOSE: &[Parameter] = &[Parameter::optional("verbose", "boolean", "With the conflicts")];

const fn answer(meaning: &'static str, schema: &'static str) -> Success {
    Success::json(200, meaning, schema).typed(CONTENT_TYPE)
}

pub(super) const ANY: &[Success] = &[answer("The result", "Any")];
pub(super) const NAMES: &[Success] = &[answer("Names", "Names")];
pub(super) const NUMBERS: &[Success] = &[answer("Versions", "Numbers")];
pub(super) const REGISTERED: &[Success] = &[answer("The version", "Registered")];
pub(super) const ALL: &[Success] = &[answer("The versions", "AllRegistered")];
pub(super) const SCHEMA: &[Success] = &[answer("The schema", "Schema")];
pub(super) const LEVEL: &[Success] = &[answer("The compatibility level", "Level")];
pub(super) const MODES: &[Success] = &[answer("The mode", "Mode")];
pub(super) const COMPATIBLE: &[Success] = &[answer("Whether it is compatible", "Compatible")];

const ACCESS: Access = Access::Credential;

pub(super) const fn get(path: &'static str, summary: &'static str) -> Endpoint {
    Endpoint::get(path, ACCESS)
        .summary(summary)
        .errors(&[400, 404, 422, 500])
}

pub(super) const fn delete(path: &'static str, summary: &'static str) -> Endpoint {
    Endpoint::delete(path, ACCESS)
        .summary(summary)
        .errors(&[400, 404, 422, 500])
}

pub(super) const fn post(path: &'static str, summary: &'static str) -> Endpoint {
    let endpoint = Endpoint::post(path, ACCESS).summary(summary).body("SchemaRequest");
    endpoint.errors(&[400, 404, 409, 413, 422, 500])
}

pub(super) const fn put(path: &'static str, summary: &'static str, body: &'static str) -> Endpoint {
    let endpoint = Endpoint::put(path, ACCESS).summary(summary).body(body);
    endpoint.errors(&[400, 413, 422, 500])
}

/// The API, for its document.
pub(super) fn api() -> Api {
    Api {
        title: "Trunkline schema registry",
        description: "Confluent's REST API for Avro schemas. Without `[[registry.users]]`, no credential is needed.",
        security: json!({ "type": "http", "scheme": "basic" }),
        error_type: CONTENT_TYPE,
        error: json!({
            "type": "object",
            "required": ["error_code", "message"],
            "properties": { "error_code": { "type": "integer" }, "message": { "type": "string" } },
        }),
    }
}

/// Adds the schemas of bodies.
pub(super) fn with_schemas(routes: Routes) -> Routes {
    let text = || json!({ "type": "string" });
    let number = || json!({ "type": "integer" });
    let object = |properties: Value| json!({ "type": "object", "properties": properties });
    let registered = object(json!({ "subject": text(), "version": number(), "id": number(), "schema": text() }));
    routes
        .schema("Any", json!({}))
        .schema("Names", json!({ "type": "array", "items": text() }))
        .schema("Numbers", json!({ "type": "array", "items": number() }))
        .schema("AllRegistered", json!({ "type": "array", "items": registered }))
        .schema("Registered", registered)
        .schema("Schema", object(json!({ "schema": text() })))
        .schema("Level", object(json!({ "compatibilityLevel": text() })))
        .schema("LevelRequest", object(json!({ "compatibility": text() })))
        .schema("Mode", object(json!({ "mode": text() })))
        .schema(
            "Compatible",
            object(json!({ "is_compatible": { "type": "boolean" }, "messages": { "type": "array", "items": text() } })),
        )
        .schema(
            "SchemaRequest",
            json!({
                "type": "object",
                "required": ["schema"],
                "properties": { "schema": text(), "schemaType": { "const": "AVRO" }, "references": { "maxItems": 0 } },
            }),
        )
}
