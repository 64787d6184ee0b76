//! A single attempt at a call, and the mapping of its failure to an [`Error`].

use super::config::Auth;
use crate::rest::CONTENT_TYPE;
use crate::{Error, Result};
use reqwest::Method;
use schema_registry_converter::async_impl::schema_registry::SrSettings;
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::RawError;
use schemas::ids::SchemaId;
use serde_json::Value;

/// State shared by all attempts.
pub(super) struct Shared {
    pub(super) url: String,
    pub(super) auth: Auth,
    pub(super) attempts: u32,
    pub(super) client: reqwest::Client,
    pub(super) settings: SrSettings,
}

/// What a call attempts, for its errors.
pub(super) struct About<'a> {
    pub(super) attempted: &'static str,
    pub(super) subject: &'a str,
    pub(super) version: String,
    pub(super) id: Option<SchemaId>,
}

impl<'a> About<'a> {
    pub(super) fn subject(attempted: &'static str, subject: &'a str) -> Self {
        About {
            attempted,
            subject,
            version: String::new(),
            id: None,
        }
    }

    pub(super) fn id(attempted: &'static str, id: SchemaId) -> Self {
        About {
            attempted,
            subject: "",
            version: String::new(),
            id: Some(id),
        }
    }
}

/// Why one attempt failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// HTTP status; 0 if there was no response.
    status: u32,
    /// Confluent's error code; 0 if the response had none.
    code: u32,
    message: String,
}

impl Failure {
    pub(super) fn is_temporary(&self) -> bool {
        matches!(self.status, 0 | 429 | 500..600)
    }

    pub(super) fn of(error: &SRCError) -> Self {
        let source = std::error::Error::source(error);
        let Some(raw) = source.and_then(|source| source.downcast_ref::<RawError>()) else {
            // A response that was received but could not be parsed is not retried.
            let status = if error.retriable || !error.error.contains("parse") {
                0
            } else {
                200
            };
            return Failure {
                status,
                code: 0,
                message: chain(error),
            };
        };
        // The converter reports the status only as text: "… failed with status 404 Not Found".
        let status = error
            .error
            .split_whitespace()
            .find_map(|word| word.parse().ok())
            .unwrap_or(raw.error_code);
        Failure {
            status,
            code: raw.error_code,
            message: raw.message.clone(),
        }
    }
}

/// An error with its causes. The outermost error often states only that a request failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl Shared {
    pub(super) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Failure> {
        let url = format!("{}{path}", self.url);
        let mut request = self
            .client
            .request(method, url)
            .header(reqwest::header::ACCEPT, CONTENT_TYPE);
        request = match &self.auth {
            Auth::None => request,
            Auth::Basic { user, password } => request.basic_auth(user, Some(password)),
            Auth::Bearer(token) => request.bearer_auth(token),
        };
        if let Some(body) = body {
            request = request
                .header(reqwest::header::CONTENT_TYPE, CONTENT_TYPE)
                .body(body.to_string());
        }
        let no_response = |e: reqwest::Error| Failure {
            status: 0,
            code: 0,
            message: chain(&e.without_url()),
        };
        let response = request.send().await.map_err(no_response)?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(no_response)?;
        let status_number = u32::from(status.as_u16());
        let failed = |code, message| Failure {
            status: status_number,
            code,
            message,
        };
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|e| failed(0, format!("the response is not JSON: {e}")));
        }
        match serde_json::from_slice::<RawError>(&bytes) {
            Ok(raw) => Err(failed(raw.error_code, raw.message)),
            Err(_) => Err(failed(0, format!("HTTP status {status}"))),
        }
    }

    pub(super) fn unavailable(&self, about: &About<'_>, reason: &str) -> Error {
        Error::Unavailable {
            registry: self.url.clone(),
            attempted: about.attempted.to_owned(),
            reason: reason.to_owned(),
        }
    }

    pub(super) fn error(&self, about: &About<'_>, failure: Failure) -> Error {
        let subject = about.subject.to_owned();
        let Failure { status, code, message } = failure;
        match (status, code) {
            (_, 40401) => Error::SubjectNotFound { subject },
            (_, 40402) => Error::VersionNotFound {
                version: about.version.clone(),
            },
            (_, 40403) => Error::SchemaNotFound { id: about.id },
            (_, 40404) => Error::SubjectDeleted { subject },
            (_, 40405) => Error::SubjectNotDeleted { subject },
            (_, 40406 | 40407) => {
                let version = about.version.clone();
                if code == 40406 {
                    Error::VersionDeleted { subject, version }
                } else {
                    Error::VersionNotDeleted { subject, version }
                }
            }
            (_, 40408) => Error::NoLevel { subject },
            (_, 40409) => Error::NoMode { subject },
            (409, _) => Error::Incompatible {
                subject,
                conflicts: vec![message],
            },
            (_, 42202) => Error::InvalidVersion {
                version: about.version.clone(),
            },
            (_, 42203) => Error::InvalidLevel { level: message },
            (_, 42204) => Error::InvalidMode { mode: message },
            (_, 42205) => Error::ReadOnly { subject },
            (422, 0 | 422 | 42201) => Error::InvalidSchema { reason: message },
            (401 | 403, _) => Error::Unauthorized {
                registry: self.url.clone(),
                attempted: about.attempted.to_owned(),
            },
            (0 | 429 | 500..600, _) => self.unavailable(about, &message),
            // Proxies and other registries respond with 404 without an error code.
            (404, _) if about.id.is_some() => Error::SchemaNotFound { id: about.id },
            _ => Error::Rejected {
                registry: self.url.clone(),
                attempted: about.attempted.to_owned(),
                code: if code == 0 { status } else { code },
                reason: message,
            },
        }
    }
}
