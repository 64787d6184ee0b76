//! The `Idempotency-Key` request header (draft-ietf-httpapi-idempotency-key-header).
//!
//! The draft makes the header a Structured Field string, `"8e03978e"`. Many clients send the key without quotes,
//! `8e03978e`, so both forms are accepted and denote the same key.

use axum::http::{HeaderMap, StatusCode};
use service::Problem;
use service::problem::Kind;
use sfv::{BareItem, Item, Parser};

/// Name of the header.
const NAME: &str = "idempotency-key";
const INVALID: Kind = Kind::new(
    "idempotency-key",
    StatusCode::BAD_REQUEST,
    "The Idempotency-Key header is not valid",
);
const REUSED: Kind = Kind::new(
    "idempotency-key-reused",
    StatusCode::UNPROCESSABLE_ENTITY,
    "The Idempotency-Key was used for another request",
);
/// Maximum length of a key in bytes.
const KEY_BYTES_MAX: usize = 255;

/// A valid key: 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdempotencyKey(String);

/// Why the header is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyError {
    #[error("the header occurs {0} times; send it once")]
    Repeated(usize),
    #[error("the key is empty")]
    Empty,
    #[error("the key has {0} characters")]
    TooLong(usize),
    #[error("the key contains a space, a control character or a non-ASCII character")]
    Invisible,
    #[error("the value starts with a double quote but is not a quoted string without parameters (RFC 9651, 3.3.3)")]
    Quoting,
    // A proxy joins repeated headers with a comma, so an unquoted value with a comma may be two keys.
    #[error("a key with a comma or a double quote must be a quoted string (RFC 9651, 3.3.3)")]
    Bare,
}

impl IdempotencyKey {
    /// The key of a request; `None` if it has no such header.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, KeyError> {
        let mut values = headers.get_all(NAME).iter();
        let Some(value) = values.next() else { return Ok(None) };
        match values.count() {
            0 => Self::parse(value.as_bytes().trim_ascii()).map(Some),
            more => Err(KeyError::Repeated(more + 1)),
        }
    }

    fn parse(value: &[u8]) -> Result<Self, KeyError> {
        let key = if value.starts_with(b"\"") {
            unquote(value)?
        } else if value.iter().any(|b| matches!(b, b'"' | b',')) {
            return Err(KeyError::Bare);
        } else {
            String::from_utf8(value.to_vec()).map_err(|_| KeyError::Invisible)?
        };
        if !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(KeyError::Invisible);
        }
        match key.len() {
            0 => Err(KeyError::Empty),
            1..=KEY_BYTES_MAX => Ok(IdempotencyKey(key)),
            length => Err(KeyError::TooLong(length)),
        }
    }

    /// The key, without quotes.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

fn unquote(value: &[u8]) -> Result<String, KeyError> {
    match Parser::new(value).parse::<Item>() {
        Ok(Item {
            bare_item: BareItem::String(key),
            params,
        }) if params.is_empty() => Ok(key.into()),
        _ if !value.is_ascii() => Err(KeyError::Invisible),
        _ => Err(KeyError::Quoting),
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        let detail = format!(
            "header Idempotency-Key: {error}; a key has 1 to {KEY_BYTES_MAX} visible ASCII characters, such as a UUID, \
             with or without double quotes around it; without the header a retry may be stored twice"
        );
        INVALID.detail(detail).with("header", "Idempotency-Key")
    }
}

/// The problem for a key that was used with another body.
pub(super) fn reused() -> Problem {
    let detail = "this credential has already used the same Idempotency-Key with another body, so this request was not \
                  stored. Use a new key for a new request, and the same bytes for a retry";
    REUSED.detail(detail).with("header", "Idempotency-Key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn of(values: &[&[u8]]) -> Result<Option<String>, KeyError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(NAME, HeaderValue::from_bytes(value).unwrap());
        }
        Ok(IdempotencyKey::of(&headers)?.map(|key| key.0))
    }

    #[test]
    fn bare_and_quoted_forms_are_the_same_key() {
        let uuid = "8e03978e-40d5-43dd-bc93-6894a57f9324";
        let longest = "~".repeat(KEY_BYTES_MAX);
        let quoted = |key: &str| format!("\"{key}\"");
        for key in ["!", "place-17/3", "dGVzdA==", uuid, &longest] {
            assert_eq!(of(&[key.as_bytes()]), Ok(Some(key.to_owned())));
            assert_eq!(of(&[quoted(key).as_bytes()]), Ok(Some(key.to_owned())));
        }
        assert_eq!(of(&[br#""a\"b\\c,d""#]), Ok(Some(r#"a"b\c,d"#.to_owned())));
        assert_eq!(of(&[b" padded\t"]), Ok(Some("padded".to_owned())));
        assert_eq!(of(&[]), Ok(None));
    }

    #[test]
    fn other_values_are_rejected() {
        let too_long = "k".repeat(KEY_BYTES_MAX + 1);
        let quoted_too_long = format!("\"{too_long}\"");
        let cases: [(&[&[u8]], KeyError); 16] = [
            (&[b""], KeyError::Empty),
            (&[b"  "], KeyError::Empty),
            (&[b"\"\""], KeyError::Empty),
            (&[too_long.as_bytes()], KeyError::TooLong(256)),
            (&[quoted_too_long.as_bytes()], KeyError::TooLong(256)),
            (&[b"two words"], KeyError::Invisible),
            (&[b"\"two words\""], KeyError::Invisible),
            (&["schlüssel".as_bytes()], KeyError::Invisible),
            (&["\"schlüssel\"".as_bytes()], KeyError::Invisible),
            (&[b"\xff\xfe"], KeyError::Invisible),
            (&[b"\"open"], KeyError::Quoting),
            (&[b"\"a\", \"b\""], KeyError::Quoting),
            (&[b"\"a\";n=1"], KeyError::Quoting),
            (&[b"a,b"], KeyError::Bare),
            (&[b"a\"b\""], KeyError::Bare),
            (&[b"a", b"a"], KeyError::Repeated(2)),
        ];
        for (values, expected) in cases {
            assert_eq!(of(values), Err(expected), "{values:?}");
        }
    }

    #[test]
    fn the_problem_names_header_and_fix() {
        let problem = Problem::from(KeyError::Empty);
        assert_eq!(problem.status, StatusCode::BAD_REQUEST);
        let detail = problem.detail.unwrap();
        assert!(detail.starts_with("header Idempotency-Key: the key is empty; a key has 1 to 255 visible ASCII"));
    }
}
