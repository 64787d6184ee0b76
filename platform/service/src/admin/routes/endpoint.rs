//! The description of a route: who may use it, and what the OpenAPI document says about it.

use crate::access::Role;
use axum::routing::MethodFilter;
use serde_json::{Value, json};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everyone. The response contains nothing that requires protection.
    Public,
    /// Clients with a credential of the listener.
    Credential,
    /// Clients with this role or a greater one.
    Role(Role),
}

/// A parameter in the query of a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// Name.
    pub name: &'static str,
    /// JSON schema type.
    pub ty: &'static str,
    /// Meaning.
    pub meaning: &'static str,
    /// Whether it is required.
    pub is_required: bool,
}

impl Parameter {
    /// A parameter that may be omitted.
    pub const fn optional(name: &'static str, ty: &'static str, meaning: &'static str) -> Self {
        let is_required = false;
        Self {
            name,
            ty,
            meaning,
            is_required,
        }
    }

    /// A required parameter.
    pub const fn required(name: &'static str, ty: &'static str, meaning: &'static str) -> Self {
        let is_required = true;
        Self {
            name,
            ty,
            meaning,
            is_required,
        }
    }
}

/// A response that is no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Success {
    /// Status code.
    pub status: u16,
    /// Meaning.
    pub meaning: &'static str,
    /// Media type of the body; empty without a body.
    media_type: &'static str,
    /// Name of the body's JSON schema; empty if it has none.
    schema: &'static str,
}

impl Success {
    /// A response without a body.
    pub const fn empty(status: u16, meaning: &'static str) -> Self {
        Self::text(status, meaning, "")
    }

    /// A JSON response with a schema of the document.
    pub const fn json(status: u16, meaning: &'static str, schema: &'static str) -> Self {
        Self {
            schema,
            ..Self::text(status, meaning, "application/json")
        }
    }

    /// A response with a media type.
    pub const fn text(status: u16, meaning: &'static str, media_type: &'static str) -> Self {
        Self {
            status,
            meaning,
            media_type,
            schema: "",
        }
    }

    /// Sets the media type.
    #[must_use]
    pub const fn typed(mut self, media_type: &'static str) -> Self {
        self.media_type = media_type;
        self
    }

    /// The content for the document; `None` without a body.
    pub(crate) fn content(&self) -> Option<Value> {
        if self.media_type.is_empty() {
            return None;
        }
        let content = if self.schema.is_empty() {
            json!({})
        } else {
            json!({ "schema": { "$ref": format!("#/components/schemas/{}", self.schema) } })
        };
        Some(json!({ self.media_type: content }))
    }
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Method: `GET`, `POST`, `PUT` or `DELETE`.
    pub method: &'static str,
    /// Path, with parameters in braces.
    pub path: &'static str,
    /// Who may use the route.
    pub access: Access,
    /// What it does.
    pub summary: &'static str,
    /// Parameters of the query.
    pub query: &'static [Parameter],
    /// Name of the JSON schema of the request body; `None` if the route expects no body.
    pub body: Option<&'static str>,
    /// Responses that are no errors.
    pub successes: &'static [Success],
    /// Status codes of errors, except those that follow from the access.
    pub failures: &'static [u16],
}

impl Endpoint {
    const fn new(method: &'static str, path: &'static str, access: Access) -> Self {
        Self {
            method,
            path,
            access,
            summary: "",
            query: &[],
            body: None,
            successes: &[],
            failures: &[],
        }
    }

    /// `GET` of a path.
    pub const fn get(path: &'static str, access: Access) -> Self {
        Self::new("GET", path, access)
    }

    /// `POST` to a path.
    pub const fn post(path: &'static str, access: Access) -> Self {
        Self::new("POST", path, access)
    }

    /// `PUT` of a path.
    pub const fn put(path: &'static str, access: Access) -> Self {
        Self::new("PUT", path, access)
    }

    /// `DELETE` of a path.
    pub const fn delete(path: &'static str, access: Access) -> Self {
        Self::new("DELETE", path, access)
    }

    /// Sets the summary.
    #[must_use]
    pub const fn summary(mut self, summary: &'static str) -> Self {
        self.summary = summary;
        self
    }

    /// Sets the parameters of the query.
    #[must_use]
    pub const fn query(mut self, query: &'static [Parameter]) -> Self {
        self.query = query;
        self
    }

    /// Sets the schema of the request body.
    #[must_use]
    pub const fn body(mut self, schema: &'static str) -> Self {
        self.body = Some(schema);
        self
    }

    /// Sets the responses that are no errors.
    #[must_use]
    pub const fn answers(mut self, successes: &'static [Success]) -> Self {
        self.successes = successes;
        self
    }

    /// Sets the status codes of errors.
    #[must_use]
    pub const fn errors(mut self, statuses: &'static [u16]) -> Self {
        self.failures = statuses;
        self
    }

    /// All status codes of responses.
    pub fn statuses(&self) -> impl Iterator<Item = u16> {
        let rejected: &[u16] = match self.access {
            Access::Public => &[],
            Access::Credential => &[401],
            Access::Role(_) => &[401, 403],
        };
        let successes = self.successes.iter().map(|success| success.status);
        successes.chain(rejected.iter().chain(self.failures).copied())
    }

    pub(super) fn filter(&self) -> MethodFilter {
        match self.method {
            "GET" => MethodFilter::GET,
            "POST" => MethodFilter::POST,
            "DELETE" => MethodFilter::DELETE,
            _ => MethodFilter::PUT,
        }
    }
}
