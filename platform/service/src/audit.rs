//! Audit lines and request counts by credential, for all listeners with configured credentials.
//!
//! The names of credentials come from the configuration and paths are those of route tables, so the number of label values
//! is bounded. A line contains neither a token nor a body.

use axum::http::{Method, StatusCode};

/// Credential of requests without a valid one.
const NONE: &str = "none";
/// Maximum length of a path in a line.
const PATH_BYTES_MAX: usize = 256;

/// An answered request.
#[derive(Debug)]
pub struct Audit<'a> {
    /// The listener.
    pub listener: &'static str,
    /// Name of the credential; `None` if the request had no valid one.
    pub credential: Option<&'a str>,
    /// Method.
    pub method: &'a Method,
    /// Path as requested.
    pub path: &'a str,
    /// Status of the response.
    pub status: StatusCode,
}

impl Audit<'_> {
    /// Counts the request, and writes a line if `is_logged`. `route` is the path in the table of routes.
    pub fn record(&self, is_logged: bool, route: &'static str) {
        let credential = self.credential.unwrap_or(NONE);
        metrics::counter!(
            "trunkline_listener_requests_total",
            "listener" => self.listener,
            "credential" => credential.to_owned(),
            "route" => route,
            "status" => self.status.as_u16().to_string(),
        )
        .increment(1);
        if is_logged {
            let (listener, method, status) = (self.listener, self.method.as_str(), self.status.as_u16());
            let path = shortened(self.path);
            tracing::info!(target: "audit", listener, credential, method, path, status, "request");
        }
    }
}

/// The path, shortened at a character boundary.
fn shortened(path: &str) -> &str {
    let end = path.floor_char_boundary(PATH_BYTES_MAX);
    path.get(..end).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_are_shortened_at_a_character() {
        assert_eq!(shortened("/v1/ingest/event.a"), "/v1/ingest/event.a");
        let long = format!("/{}", "é".repeat(PATH_BYTES_MAX));
        assert_eq!(shortened(&long).len(), PATH_BYTES_MAX - 1);
    }
}
