//! Confluent's REST API for a registry: the same paths, bodies and error codes.
//!
//! Blocking registry calls run on tokio's blocking threads. There is no authorization: access must be restricted at the
//! listener. Contexts, references, other schema types than Avro, and the mode `IMPORT` are not supported. Schemas are always
//! compared in normalized form, so the parameter `normalize` changes nothing.

mod by_id;
mod endpoints;
mod settings;
mod subjects;
mod wire;

pub use wire::CONTENT_TYPE;

use crate::{Level, Mode, SharedRegistry};
use axum::Router;
use axum::http::StatusCode;
use endpoints::{
    ALL, ANY, COMPATIBLE, CONFIG, DEFAULT, ID, LEVEL, LISTING, MODE, MODES, NAMES, NUMBERS, OF_SUBJECT, PERMANENT,
    REGISTERED, SCHEMA, SUBJECT, VERBOSE, VERSION, VERSIONS, WITH_DELETED, api, delete, get, post, put, with_schemas,
};
use serde_json::{Value, json};
use service::admin::Routes;
use wire::{failure, response};

/// The routes of the API, the document that describes them, and the responses to other requests.
pub fn router(registry: SharedRegistry) -> Router {
    routes(&registry)
        .router()
        .fallback(|| async { failure(404, 404, "HTTP 404 Not Found") })
        .method_not_allowed_fallback(|| async { failure(405, 405, "HTTP 405 Method Not Allowed") })
}

fn routes(registry: &SharedRegistry) -> Routes {
    let routes = about().merge(of_subjects(registry)).merge(of_schemas(registry));
    let routes = routes.merge(of_levels(registry)).merge(of_modes(registry));
    with_schemas(routes).described(&api())
}

/// What is the same for all registries of this kind. User interfaces request it.
fn about() -> Routes {
    let constant = |body: Value| move || async move { response(StatusCode::OK, &body) };
    let scope = json!({ "path": [], "clusters": { "schema-registry-cluster": "trunkline" } });
    Routes::new()
        .route(
            get("/", "Check that the registry responds").answers(ANY),
            constant(json!({})),
            (),
        )
        .route(
            get("/contexts", "List contexts").answers(NAMES),
            constant(json!(["."])),
            (),
        )
        .route(
            get("/schemas/types", "List schema types").answers(NAMES),
            constant(json!(["AVRO"])),
            (),
        )
        .route(
            get("/v1/metadata/id", "Identify the registry").answers(ANY),
            constant(json!({ "id": "", "scope": scope })),
            (),
        )
        .route(
            get("/v1/metadata/version", "Get the version of the registry").answers(ANY),
            constant(json!({ "version": env!("CARGO_PKG_VERSION"), "commitId": "" })),
            (),
        )
}

fn of_subjects(registry: &SharedRegistry) -> Routes {
    let shared = || registry.clone();
    Routes::new()
        .route(
            get("/subjects", "List subjects").query(LISTING).answers(NAMES),
            subjects::list,
            shared(),
        )
        .route(
            post(SUBJECT, "Find the version with a schema").answers(REGISTERED),
            subjects::lookup,
            shared(),
        )
        .route(
            delete(SUBJECT, "Delete all versions of a subject")
                .query(PERMANENT)
                .answers(NUMBERS),
            subjects::delete,
            shared(),
        )
        .route(
            get(VERSIONS, "List the versions of a subject")
                .query(LISTING)
                .answers(NUMBERS),
            subjects::versions,
            shared(),
        )
        .route(
            post(VERSIONS, "Register a schema").answers(ANY),
            subjects::register,
            shared(),
        )
        .route(
            get(VERSION, "Get a version").query(WITH_DELETED).answers(REGISTERED),
            subjects::version,
            shared(),
        )
        .route(
            delete(VERSION, "Delete a version").query(PERMANENT).answers(ANY),
            subjects::delete_version,
            shared(),
        )
        .route(
            get(
                "/subjects/{subject}/versions/{version}/schema",
                "Get the schema of a version",
            )
            .query(WITH_DELETED)
            .answers(ANY),
            subjects::version_schema,
            shared(),
        )
        .route(
            get(
                "/subjects/{subject}/versions/{version}/referencedby",
                "List the schemas that refer to a version: none",
            )
            .answers(NUMBERS),
            subjects::referenced_by,
            shared(),
        )
}

fn of_schemas(registry: &SharedRegistry) -> Routes {
    let shared = || registry.clone();
    Routes::new()
        .route(
            get("/schemas", "List the versions of all subjects")
                .query(LISTING)
                .answers(ALL),
            by_id::list,
            shared(),
        )
        .route(get(ID, "Get a schema").answers(SCHEMA), by_id::schema, shared())
        .route(
            get("/schemas/ids/{id}/schema", "Get the text of a schema").answers(ANY),
            by_id::schema_text,
            shared(),
        )
        .route(
            get("/schemas/ids/{id}/subjects", "List the subjects that use a schema")
                .query(OF_SUBJECT)
                .answers(NAMES),
            by_id::subjects,
            shared(),
        )
        .route(
            get("/schemas/ids/{id}/versions", "List the versions that use a schema")
                .query(OF_SUBJECT)
                .answers(ANY),
            by_id::versions,
            shared(),
        )
}

fn of_levels(registry: &SharedRegistry) -> Routes {
    let shared = || registry.clone();
    let body = "LevelRequest";
    Routes::new()
        .route(
            get("/config", "Get the global compatibility level").answers(LEVEL),
            settings::global::<Level>,
            shared(),
        )
        .route(
            put("/config", "Set the global compatibility level", body).answers(ANY),
            settings::set_global::<Level>,
            shared(),
        )
        .route(
            delete("/config", "Reset the global compatibility level").answers(LEVEL),
            settings::remove_global_level,
            shared(),
        )
        .route(
            get(CONFIG, "Get the compatibility level of a subject")
                .query(DEFAULT)
                .answers(LEVEL),
            settings::of_subject::<Level>,
            shared(),
        )
        .route(
            put(CONFIG, "Set the compatibility level of a subject", body).answers(ANY),
            settings::set::<Level>,
            shared(),
        )
        .route(
            delete(CONFIG, "Remove the compatibility level of a subject").answers(LEVEL),
            settings::remove::<Level>,
            shared(),
        )
        .route(
            post(
                "/compatibility/subjects/{subject}/versions",
                "Test a schema against all versions that the level includes",
            )
            .query(VERBOSE)
            .answers(COMPATIBLE),
            settings::compatibility_with_all,
            shared(),
        )
        .route(
            post(
                "/compatibility/subjects/{subject}/versions/{version}",
                "Test a schema against a version",
            )
            .query(VERBOSE)
            .answers(COMPATIBLE),
            settings::compatibility,
            shared(),
        )
}

fn of_modes(registry: &SharedRegistry) -> Routes {
    let shared = || registry.clone();
    Routes::new()
        .route(
            get("/mode", "Get the global mode").answers(MODES),
            settings::global::<Mode>,
            shared(),
        )
        .route(
            put("/mode", "Set the global mode", "Mode").answers(MODES),
            settings::set_global::<Mode>,
            shared(),
        )
        .route(
            get(MODE, "Get the mode of a subject").query(DEFAULT).answers(MODES),
            settings::of_subject::<Mode>,
            shared(),
        )
        .route(
            put(MODE, "Set the mode of a subject", "Mode").answers(MODES),
            settings::set::<Mode>,
            shared(),
        )
        .route(
            delete(MODE, "Remove the mode of a subject").answers(MODES),
            settings::remove::<Mode>,
            shared(),
        )
}

#[cfg(test)]
pub(crate) mod tests;
