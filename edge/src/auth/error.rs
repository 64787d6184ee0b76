//! Why a token is rejected.

/// Why a token is rejected. The text is for the device's developer. It contains no key, no value of a claim and no list of
/// accepted issuers or audiences, because an attacker may read it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The request has no bearer token.
    #[error("no bearer token; send the header `Authorization: Bearer TOKEN`")]
    Missing,
    /// The token is not a signed JWT.
    #[error("not a signed JWT: {0}")]
    Malformed(&'static str),
    /// The issuer's configuration does not list the algorithm.
    #[error("signature algorithm is not accepted for this issuer; use one of those in the edge's configuration")]
    Algorithm,
    /// No configured issuer has this `iss`.
    #[error("issuer (`iss`) is not accepted; get the token from an issuer in the edge's configuration")]
    Issuer,
    /// The issuer has no key with this id.
    #[error("the issuer has no key with the token's key id (`kid`); get a new token")]
    UnknownKey,
    /// The signature does not match.
    #[error("signature is not valid; get a new token")]
    Signature,
    /// `exp` has passed.
    #[error("token has expired; get a new one")]
    Expired,
    /// `nbf` or `iat` is in the future.
    #[error("token is not valid yet (`{0}` is in the future); check the clocks of the issuer and the edge")]
    NotYetValid(&'static str),
    /// `iat` is older than `max_age_s`.
    #[error("token was issued too long ago; get a new one")]
    TooOld,
    /// A claim is missing or has the wrong type.
    #[error("claim `{0}` is missing or malformed; configure the issuer to include it")]
    Claim(String),
    /// `aud` contains no accepted audience.
    #[error("audience (`aud`) is not accepted; request a token for this service from the issuer")]
    Audience,
    /// The issuer's keys have never been fetched, or were fetched too long ago.
    #[error("keys of issuer {0} are not available; retry")]
    KeysUnavailable(String),
}
