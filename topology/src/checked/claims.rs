//! Memberships: the buckets to which the claims of a token grant access.
//!
//! A claim that is missing, null, an object or not an integer grants nothing. A list grants one bucket per element. The
//! number and length of bucket names are limited, because claims are untrusted input.

use crate::template::{self, BUCKET_BYTES_MAX, Part, Template};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Maximum number of buckets to which one token grants access.
pub const BUCKETS_MAX: usize = 1000;

/// A membership: token claims that grant access to buckets.
#[derive(Debug, Clone)]
pub struct Membership {
    /// Bucket: index into `Topology::buckets`.
    pub bucket: usize,
    /// Template of the bucket name; parameters are claims.
    pub template: Template,
    /// The issuer whose tokens count; `None` for any issuer.
    pub issuer: Option<String>,
}

/// The claims of a token exceed a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Too many buckets.
    #[error("the token's claims grant access to more than {BUCKETS_MAX} buckets; shorten the list in claim `{claim}`")]
    TooMany {
        /// The claim that exceeded the limit.
        claim: String,
    },
    /// A bucket name is too long.
    #[error("claim `{claim}` of the token results in a bucket name longer than {BUCKET_BYTES_MAX} bytes")]
    TooLong {
        /// The claim.
        claim: String,
    },
}

pub(super) fn buckets_of(
    memberships: &[Membership],
    issuer: &str,
    claims: &Map<String, Value>,
) -> Result<Vec<String>, ClaimError> {
    let mut all = Vec::new();
    for membership in memberships {
        if membership.issuer.as_deref().is_none_or(|only| only == issuer) {
            all.extend(open(membership, claims, BUCKETS_MAX - all.len().min(BUCKETS_MAX))?);
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// The buckets of one membership: every combination of its claims' values.
fn open(membership: &Membership, claims: &Map<String, Value>, limit: usize) -> Result<Vec<String>, ClaimError> {
    let mut names = vec![String::new()];
    let mut last_claim = "";
    for part in membership.template.parts() {
        let values: Vec<Cow<'_, str>> = match part {
            Part::Word(word) => vec![Cow::Borrowed(word)],
            Part::Param(claim, _) => {
                last_claim = claim;
                values_of(claims, claim)
            }
        };
        if names.len().saturating_mul(values.len()) > limit {
            return Err(ClaimError::TooMany {
                claim: String::from(last_claim),
            });
        }
        names = names
            .iter()
            .flat_map(|name| values.iter().map(move |value| extend(name, value, part)))
            .collect();
        if names.iter().any(|name| name.len() > BUCKET_BYTES_MAX) {
            return Err(ClaimError::TooLong {
                claim: String::from(last_claim),
            });
        }
    }
    Ok(names)
}

fn extend(name: &str, value: &str, part: &Part) -> String {
    let mut next = String::from(name);
    if !next.is_empty() {
        next.push(':');
    }
    match part {
        Part::Word(_) => next.push_str(value),
        Part::Param(..) => template::escape_into(&mut next, value),
    }
    next
}

/// The values of a claim: of the claim with this name, else of the field at this path in nested objects, such as
/// `realm.stores`.
fn values_of<'c>(claims: &'c Map<String, Value>, claim: &str) -> Vec<Cow<'c, str>> {
    let found = claims.get(claim).or_else(|| {
        let mut steps = claim.split('.');
        let first = claims.get(steps.next()?)?;
        steps.try_fold(first, |value, step| value.as_object()?.get(step))
    });
    match found {
        Some(Value::Array(list)) => list.iter().filter_map(scalar).collect(),
        Some(value) => scalar(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The text of a claim's value as a bucket parameter. An integer has the same text as in an integer column.
fn scalar(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(Cow::Owned(number.to_string())),
        Value::Bool(b) => Some(Cow::Borrowed(if *b { "true" } else { "false" })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn open_with(template: &str, claims: Value) -> Result<Vec<String>, ClaimError> {
        let template = Template::parse(template).unwrap();
        let membership = Membership {
            bucket: 0,
            template,
            issuer: Some(String::from("app")),
        };
        let Value::Object(claims) = claims else {
            panic!("claims are an object")
        };
        assert_eq!(
            buckets_of(std::slice::from_ref(&membership), "other", &claims),
            Ok(Vec::new())
        );
        buckets_of(&[membership], "app", &claims)
    }

    #[test]
    fn claims_open_buckets() {
        let cases = [
            ("user:{sub}", json!({"sub": "u 1"}), vec!["user:u%201"]),
            ("branch:{branch}", json!({"branch": 7}), vec!["branch:7"]),
            (
                "store:{stores}",
                json!({"stores": ["b", "a", "b", null, 1.5]}),
                vec!["store:a", "store:b"],
            ),
            (
                "store:{t}:{s}",
                json!({"t": ["x", "y"], "s": [1, 2]}),
                vec!["store:x:1", "store:x:2", "store:y:1", "store:y:2"],
            ),
            ("store:{realm.store}", json!({"realm": {"store": "a"}}), vec!["store:a"]),
            (
                "store:{https://e.com/s}",
                json!({"https://e.com/s": true}),
                vec!["store:true"],
            ),
            ("global", json!({}), vec!["global"]),
            ("user:{sub}", json!({}), vec![]),
            ("user:{sub}", json!({"sub": {"a": 1}}), vec![]),
        ];
        for (template, claims, expected) in cases {
            assert_eq!(open_with(template, claims).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn number_of_buckets_is_limited() {
        let many: Vec<u32> = (0..1001).collect();
        let error = open_with("store:{s}", json!({ "s": many })).unwrap_err();
        assert_eq!(
            error,
            ClaimError::TooMany {
                claim: String::from("s")
            }
        );
        let error = open_with("user:{sub}", json!({ "sub": "x".repeat(600) })).unwrap_err();
        assert_eq!(
            error,
            ClaimError::TooLong {
                claim: String::from("sub")
            }
        );
    }
}
