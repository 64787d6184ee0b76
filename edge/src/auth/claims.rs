//! Checks audience and times of a token and maps its claims to the names that memberships use.
//!
//! If a name is mapped to a claim that is missing, a claim with the mapped name itself is not used instead: a token
//! could otherwise grant itself a bucket through a claim that the issuer does not control. `sub` is always the
//! configured subject.

use super::error::AuthError;
use super::identity::Identity;
use crate::config::IssuerConfig;
use schemas::ids::Principal;
use serde_json::{Map, Value};

/// Checks the claims of a token whose signature has been verified, and derives the identity.
///
/// # Errors
/// The first failed check, in this order: audience, times, subject.
pub fn check(config: &IssuerConfig, claims: &Map<String, Value>, now_ms: i64) -> Result<Identity, AuthError> {
    let is_accepted = |audience: &str| config.audience.iter().any(|a| !a.is_empty() && a == audience);
    let accepted = match claims.get("aud") {
        Some(Value::String(one)) => is_accepted(one),
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).any(is_accepted),
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
        return Err(AuthError::NotYetValid("nbf"));
    }
    let issued = time(claims, "iat")?;
    if issued.is_some_and(|at| at > latest) {
        return Err(AuthError::NotYetValid("iat"));
    }
    if let Some(max_age_s) = config.max_age_s {
        let issued = issued.ok_or_else(|| AuthError::Claim("iat".into()))?;
        let max_age_ms = i64::try_from(max_age_s)
            .unwrap_or(i64::MAX / 2_000)
            .saturating_mul(1_000);
        if now_ms.saturating_sub(issued) > max_age_ms.saturating_add(leeway_ms) {
            return Err(AuthError::TooOld);
        }
    }
    let invalid = || AuthError::Claim(config.subject_claim.clone());
    let subject = find(claims, &config.subject_claim).and_then(text).ok_or_else(invalid)?;
    let principal = Principal::new(&config.alias, &subject).map_err(|_| invalid())?;
    Ok(Identity {
        principal,
        claims: map_names(config, claims, subject),
        expires_ms,
    })
}

/// The claims under the names that memberships use.
fn map_names(config: &IssuerConfig, claims: &Map<String, Value>, subject: String) -> Map<String, Value> {
    let mut named = claims.clone();
    for (name, claim) in &config.claims {
        match find(claims, claim) {
            Some(value) => named.insert(name.clone(), value.clone()),
            // The token may have a claim of this name, but the configuration maps the name to another claim.
            None => named.remove(name),
        };
    }
    named.insert("sub".to_owned(), Value::String(subject));
    named
}

/// Finds a claim by its literal name, else by its dotted path into nested claims.
fn find<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    find(claims.get(first)?.as_object()?, rest)
}

/// The subject as text, if the claim is a string, an integer or a boolean.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        Value::Bool(bool) => Some(bool.to_string()),
        _ => None,
    }
}

/// Parses a NumericDate (RFC 7519, 2), which may have a fraction, to ms.
fn time(claims: &Map<String, Value>, name: &'static str) -> Result<Option<i64>, AuthError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    if let Some(seconds) = value.as_i64() {
        return Ok(Some(seconds.saturating_mul(1_000)));
    }
    let seconds = value.as_f64().filter(|s| s.is_finite() && s.abs() < 1e12);
    let seconds = seconds.ok_or_else(|| AuthError::Claim(name.into()))?;
    #[expect(
        clippy::as_conversions,
        reason = "bounded above, so it fits i64; fractions of a ms are irrelevant"
    )]
    let ms = (seconds * 1_000.0) as i64;
    Ok(Some(ms))
}
