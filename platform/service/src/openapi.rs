//! OpenAPI 3.1 documents of listeners, generated from their route tables.
//!
//! The router and the document are built from the same [`Endpoint`]s, so neither can contain a route that the other lacks.

use crate::admin::routes::endpoint::{Access, Endpoint};
use serde_json::{Map, Value, json};

/// What a document contains besides its routes.
#[derive(Debug, Clone)]
pub struct Api {
    /// Title.
    pub title: &'static str,
    /// Description.
    pub description: &'static str,
    /// The security scheme of routes that require a credential or a role.
    pub security: Value,
    /// Media type of error bodies.
    pub error_type: &'static str,
    /// JSON schema of error bodies.
    pub error: Value,
}

impl Api {
    /// An API whose clients send a bearer token and whose errors are problem bodies.
    pub fn with_tokens(title: &'static str, description: &'static str) -> Self {
        Self {
            title,
            description,
            security: json!({ "type": "http", "scheme": "bearer" }),
            error_type: "application/problem+json",
            error: problem_schema(),
        }
    }

    /// The document. `schemas` are the JSON schemas by name to which the endpoints refer.
    pub fn document(&self, endpoints: &[Endpoint], schemas: &Map<String, Value>) -> Value {
        let mut paths: Map<String, Value> = Map::new();
        for endpoint in endpoints {
            let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
            if let Some(path) = path.as_object_mut() {
                path.insert(endpoint.method.to_lowercase(), operation(endpoint));
            }
        }
        let mut schemas = schemas.clone();
        schemas.insert("Error".to_owned(), self.error.clone());
        let error = json!({ "schema": { "$ref": "#/components/schemas/Error" } });
        json!({
            "openapi": "3.1.0",
            "info": { "title": self.title, "version": "1", "description": self.description },
            "paths": paths,
            "components": {
                "securitySchemes": { "credential": self.security },
                "responses": { "Error": { "description": "The request failed.", "content": { self.error_type: error } } },
                "schemas": schemas,
            },
        })
    }
}

/// JSON schema of a problem body.
fn problem_schema() -> Value {
    json!({
        "type": "object",
        "required": ["type", "title", "status"],
        "properties": {
            "type": { "type": "string", "description": "`/problems/<code>`; stable" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string", "description": "Cause and fix, for developers" },
            "instance": { "type": "string" },
        },
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let mut operation = json!({
        "operationId": operation_id(endpoint),
        "summary": endpoint.summary,
        "responses": responses(endpoint),
        "security": security(endpoint.access),
    });
    let parameters = parameters(endpoint);
    let mut set = |name: &str, value: Value| {
        if let Some(operation) = operation.as_object_mut() {
            operation.insert(name.to_owned(), value);
        }
    };
    if !parameters.is_empty() {
        set("parameters", parameters.into());
    }
    if let Access::Role(role) = endpoint.access {
        set("x-trunkline-role", role.name().into());
    }
    if let Some(schema) = endpoint.body {
        let content = json!({ "application/json": { "schema": reference(schema) } });
        set("requestBody", json!({ "required": true, "content": content }));
    }
    operation
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn security(access: Access) -> Value {
    match access {
        Access::Public => json!([]),
        Access::Credential | Access::Role(_) => json!([{ "credential": [] }]),
    }
}

fn parameters(endpoint: &Endpoint) -> Vec<Value> {
    let in_path = path_parameters(endpoint.path)
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let in_query = endpoint.query.iter().map(|parameter| {
        json!({
            "name": parameter.name, "in": "query", "required": parameter.is_required,
            "schema": { "type": parameter.ty }, "description": parameter.meaning,
        })
    });
    in_path.chain(in_query).collect()
}

fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    let segments = path.split('/');
    segments.filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
}

/// The responses: those that the endpoint declares, and the rejections of clients that may not use it.
fn responses(endpoint: &Endpoint) -> Value {
    let mut responses = Map::new();
    for success in endpoint.successes {
        let mut response = json!({ "description": success.meaning });
        if let (Some(content), Some(response)) = (success.content(), response.as_object_mut()) {
            response.insert("content".to_owned(), content);
        }
        responses.insert(success.status.to_string(), response);
    }
    for status in endpoint.statuses().filter(|status| *status >= 400) {
        let error = || json!({ "$ref": "#/components/responses/Error" });
        responses.entry(status.to_string()).or_insert_with(error);
    }
    responses.into()
}

/// The method and the words of the path: `getV1StateByProcessorByStore`.
fn operation_id(endpoint: &Endpoint) -> String {
    let mut id = endpoint.method.to_lowercase();
    for segment in endpoint.path.split('/') {
        let is_parameter = segment.starts_with('{');
        let words = segment.split(|c: char| !c.is_ascii_alphanumeric());
        for word in is_parameter.then_some("by").into_iter().chain(words) {
            let mut letters = word.chars();
            if let Some(first) = letters.next() {
                id.push(first.to_ascii_uppercase());
                id.push_str(letters.as_str());
            }
        }
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;
    use crate::admin::routes::endpoint::{Parameter, Success};

    const DEEP: &[Parameter] = &[Parameter::optional("deep", "boolean", "With its parts")];
    const FOUND: &[Success] = &[Success::json(200, "The thing", "Thing"), Success::empty(204, "Nothing")];
    const ACCEPTED: &[Success] = &[Success::empty(202, "Accepted")];

    #[test]
    fn document_describes_each_endpoint() {
        let endpoints = [
            Endpoint::get("/things/{id}", Access::Role(Role::Viewer))
                .summary("Get a thing")
                .query(DEEP)
                .answers(FOUND)
                .errors(&[404]),
            Endpoint::post("/things/{id}", Access::Public)
                .body("Thing")
                .answers(ACCEPTED),
        ];
        let schemas = [("Thing".to_owned(), json!({ "type": "object" }))]
            .into_iter()
            .collect();
        let document = Api::with_tokens("Things", "All things.").document(&endpoints, &schemas);
        let get = &document["paths"]["/things/{id}"]["get"];
        assert_eq!(get["operationId"], "getThingsById");
        assert_eq!(get["x-trunkline-role"], "viewer");
        assert_eq!(get["parameters"][0]["name"], "id");
        assert_eq!(get["parameters"][1]["schema"]["type"], "boolean");
        let responses: Vec<&String> = get["responses"].as_object().unwrap().keys().collect();
        assert_eq!(responses, ["200", "204", "401", "403", "404"]);
        let post = &document["paths"]["/things/{id}"]["post"];
        assert_eq!(post["security"], json!([]));
        assert_eq!(
            post["requestBody"]["content"]["application/json"]["schema"]["$ref"],
            "#/components/schemas/Thing"
        );
        assert!(document["components"]["schemas"]["Error"].is_object());
    }
}
