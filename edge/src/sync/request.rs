//! Parses the parameters of a poll from the query, the JSON body and `If-None-Match`.
//!
//! Unknown fields are rejected, so that a misspelled one is not silently ignored. Values above a configured limit are
//! reduced to it by [`super::Polls`].

use crate::http::ApiError;
use serde_json::{Map, Value};
use std::time::Duration;

/// Characters of the longest accepted cursor. The largest possible cursor, which contains the maximum number of
/// buckets, is shorter.
const CURSOR_CHARS_MAX: usize = 48 * 1024;

/// Parameters of a poll.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncRequest {
    /// The cursor that the device holds.
    pub cursor: Option<String>,
    /// The cursor of `If-None-Match`.
    pub only_if_changed: Option<String>,
    /// How long to wait for a change.
    pub wait: Duration,
    /// Maximum changes of a page.
    pub limit: Option<usize>,
    /// The device id, if it is in the query.
    pub device: Option<String>,
}

impl SyncRequest {
    /// Parses a query string.
    ///
    /// # Errors
    /// 400 with the name of the invalid field.
    pub fn from_query(query: &str) -> Result<Self, ApiError> {
        let mut request = SyncRequest::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "cursor" => request.set_cursor(&value)?,
                "wait" => request.wait = seconds(value.parse().ok())?,
                "limit" => request.limit = Some(limit(value.parse().ok())?),
                "device" => request.device = Some(value.into_owned()),
                _ => return Err(unknown(&name, "cursor, wait, limit and device")),
            }
        }
        Ok(request)
    }

    /// Adds the fields of a JSON body, which may be empty.
    ///
    /// # Errors
    /// 400 with the name of the invalid field.
    pub fn with_body(mut self, body: &[u8]) -> Result<Self, ApiError> {
        if body.is_empty() {
            return Ok(self);
        }
        let invalid = |e: serde_json::Error| ApiError::bad_request(format!("body: not a JSON object: {e}"));
        let fields: Map<String, Value> = serde_json::from_slice(body).map_err(invalid)?;
        for (name, value) in fields {
            match (name.as_str(), &value) {
                (_, Value::Null) => {}
                ("cursor", Value::String(text)) => self.set_cursor(text)?,
                ("cursor", _) => {
                    return Err(ApiError::bad_request(
                        "body.cursor: must be a string, the cursor of the last page",
                    ));
                }
                ("wait", value) => self.wait = seconds(value.as_u64())?,
                ("limit", value) => self.limit = Some(limit(value.as_u64())?),
                _ => return Err(unknown(&name, "cursor, wait and limit")),
            }
        }
        Ok(self)
    }

    /// Adds the validator of `If-None-Match`. `*` and lists of validators are ignored.
    pub fn with_validator(mut self, header: Option<&str>) -> Self {
        let tag = header.map(|h| h.trim().trim_start_matches("W/"));
        let tag = tag.and_then(|t| t.strip_prefix('"')?.strip_suffix('"'));
        self.only_if_changed = tag.filter(|t| t.len() <= CURSOR_CHARS_MAX).map(str::to_owned);
        self
    }

    fn set_cursor(&mut self, text: &str) -> Result<(), ApiError> {
        if text.len() > CURSOR_CHARS_MAX {
            return Err(ApiError::bad_request(
                "cursor: too long; send the cursor of the last page unchanged",
            ));
        }
        self.cursor = (!text.is_empty()).then(|| text.to_owned());
        Ok(())
    }
}

fn seconds(value: Option<u64>) -> Result<Duration, ApiError> {
    let invalid = || ApiError::bad_request("wait: must be a number of whole seconds, 0 to 25");
    value.map(Duration::from_secs).ok_or_else(invalid)
}

fn limit(value: Option<u64>) -> Result<usize, ApiError> {
    let invalid = || ApiError::bad_request("limit: must be a number of changes, at least 1");
    let value = value.filter(|v| *v > 0).ok_or_else(invalid)?;
    Ok(usize::try_from(value).unwrap_or(usize::MAX))
}

fn unknown(name: &str, known: &str) -> ApiError {
    let name: String = name.chars().take(40).collect();
    ApiError::bad_request(format!("{name}: not a field of a poll; the fields are {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_and_body_are_equivalent() {
        let query = SyncRequest::from_query("cursor=a-b_c&wait=25&limit=10&device=phone%2D1").unwrap();
        let body = SyncRequest::default()
            .with_body(br#"{"cursor":"a-b_c","wait":25,"limit":10}"#)
            .unwrap();
        assert_eq!(query.device.as_deref(), Some("phone-1"));
        assert_eq!(SyncRequest { device: None, ..query }, body);
        assert_eq!(SyncRequest::from_query("cursor=&").unwrap(), SyncRequest::default());
        assert_eq!(SyncRequest::default().with_body(b"").unwrap(), SyncRequest::default());
        assert_eq!(
            SyncRequest::default().with_body(br#"{"cursor":null}"#).unwrap(),
            SyncRequest::default()
        );
    }

    #[test]
    fn invalid_field_is_named() {
        let query = |q: &str| SyncRequest::from_query(q).unwrap_err().detail().to_owned();
        let body = |b: &str| {
            SyncRequest::default()
                .with_body(b.as_bytes())
                .unwrap_err()
                .detail()
                .to_owned()
        };
        assert_eq!(query("wait=soon"), "wait: must be a number of whole seconds, 0 to 25");
        assert_eq!(query("wait=-1"), "wait: must be a number of whole seconds, 0 to 25");
        assert_eq!(query("limit=0"), "limit: must be a number of changes, at least 1");
        assert!(query("curser=x").starts_with("curser: not a field"));
        assert!(query(&format!("cursor={}", "x".repeat(50_000))).starts_with("cursor: too long"));
        assert!(body("[]").starts_with("body: not a JSON object"));
        assert!(body("{\"cursor\":7}").starts_with("body.cursor"));
        assert!(body("{\"limit\":-3}").starts_with("limit:"));
        assert!(body("{\"device\":\"x\"}").starts_with("device: not a field"));
    }

    #[test]
    fn validator_is_a_quoted_cursor() {
        let of = |h: &str| SyncRequest::default().with_validator(Some(h)).only_if_changed;
        assert_eq!(of("W/\"abc\"").as_deref(), Some("abc"));
        assert_eq!(of("\"abc\"").as_deref(), Some("abc"));
        assert_eq!((of("*"), of("abc")), (None, None));
    }
}
