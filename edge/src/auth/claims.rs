//! What a token claims: its audience and times are checked, and its claims get the names that memberships
//! use.
//!
//! Guarantees: a configured name never falls back to another claim of that name; `sub` is the configured subject.
//! Never: a claim of a token whose signature was not checked.

use super::{AuthError, Identity};
use crate::config::IssuerConfig;
use schemas::ids::Principal;
use serde_json::{Map, Value};

/// Checks the claims of a token whose signature held, and makes the identity.
///
/// # Errors
/// The first claim that refuses it: audience first, then times, then the subject and what memberships use.
pub fn check(config: &IssuerConfig, claims: &Map<String, Value>, now_ms: i64) -> Result<Identity, AuthError> {
    let meant_for = |audience: &str| config.audience.iter().any(|a| !a.is_empty() && a == audience);
    let accepted = match claims.get("aud") {
        Some(Value::String(one)) => meant_for(one),
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).any(meant_for),
        _ => false,
    };
    if !accepted {
        return Err(AuthError::Audience);
    }
    let leeway_ms = i64::try_from(config.leeway_s)
        .unwrap_or(i64::MAX / 2_000)
        .saturating_mul(1_000);
    let expires_ms = time(claims, "exp")?
        .ok_or_else(|| AuthError::Claim("exp".into()))?
        .saturating_add(leeway_ms);
    if now_ms >= expires_ms {
        return Err(AuthError::Expired);
    }
    let latest = now_ms.saturating_add(leeway_ms);
    if time(claims, "nbf")?.is_some_and(|from| from > latest) {
        return Err(AuthError::Early("nbf"));
    }
    let issued = time(claims, "iat")?;
    if issued.is_some_and(|at| at > latest) {
        return Err(AuthError::Early("iat"));
    }
    if let Some(max_age_s) = config.max_age_s {
        let issued = issued.ok_or_else(|| AuthError::Claim("iat".into()))?;
        let max_age_ms = i64::try_from(max_age_s)
            .unwrap_or(i64::MAX / 2_000)
            .saturating_mul(1_000);
        if now_ms.saturating_sub(issued) > max_age_ms.saturating_add(leeway_ms) {
            return Err(AuthError::Old);
        }
    }
    let wrong = || AuthError::Claim(config.subject_claim.clone());
    let subject = find(claims, &config.subject_claim).and_then(text).ok_or_else(wrong)?;
    let principal = Principal::new(&config.alias, &subject).map_err(|_| wrong())?;
    Ok(Identity {
        principal,
        claims: named(config, claims, subject),
        expires_ms,
    })
}

/// The token's claims under the names that memberships use.
fn named(config: &IssuerConfig, claims: &Map<String, Value>, subject: String) -> Map<String, Value> {
    let mut named = claims.clone();
    for (name, claim) in &config.claims {
        match find(claims, claim) {
            Some(value) => named.insert(name.clone(), value.clone()),
            // What stands under the name is another claim than the configuration means.
            None => named.remove(name),
        };
    }
    named.insert("sub".to_owned(), Value::String(subject));
    named
}

/// A claim by its name as it stands, else by its path into nested claims.
fn find<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    find(claims.get(first)?.as_object()?, rest)
}

/// The text of a claim that is a string, a whole number or a boolean.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        Value::Bool(bool) => Some(bool.to_string()),
        _ => None,
    }
}

/// A NumericDate (RFC 7519, 2) in ms: seconds since the epoch, perhaps with a fraction.
fn time(claims: &Map<String, Value>, name: &'static str) -> Result<Option<i64>, AuthError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    if let Some(seconds) = value.as_i64() {
        return Ok(Some(seconds.saturating_mul(1_000)));
    }
    let seconds = value.as_f64().filter(|s| s.is_finite() && s.abs() < 1e12);
    let seconds = seconds.ok_or_else(|| AuthError::Claim(name.into()))?;
    #[expect(
        clippy::as_conversions,
        reason = "bounded just above: far within i64; the fraction of a ms is of no use"
    )]
    let ms = (seconds * 1_000.0) as i64;
    Ok(Some(ms))
}
