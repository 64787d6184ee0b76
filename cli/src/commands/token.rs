//! `trunkline token`: creates a token for a device, signed with the key of a `trunkline dev` or the secret of an issuer.

use crate::args::{self, Output};
use crate::{config, print, time};
use anyhow::{Context, Result, bail};
use edge::config::Algorithm;
use edge::token::{DEV_AUDIENCE, DEV_KEY_FILE, DevKey, TokenRequest, parse_claim, sign_with_secret, signing_issuer};
use service::clock;
use std::path::Path;

/// Creates and prints a token.
pub fn run(output: Output, token: &args::Token) -> Result<()> {
    let claims = token.claims.iter().map(|c| parse_claim(c)).collect::<Result<_, _>>()?;
    let request = TokenRequest {
        subject: token.sub.clone(),
        audience: DEV_AUDIENCE.into(),
        claims,
        expires_in_s: time::duration(&token.expires_in)? / 1000,
    };
    let (expires_in_s, now_s) = (request.expires_in_s, clock::system().now_ms() / 1000);
    let token = match &token.config {
        Some(config) => for_node(config, request, now_s)?,
        None => for_dev(&token.data, &request, now_s)?,
    };
    if output == Output::Json {
        return print::json(&serde_json::json!({"token": token, "expires_in_s": expires_in_s}));
    }
    print::line(token)
}

fn for_dev(data: &Path, request: &TokenRequest, now_s: i64) -> Result<String> {
    if !data.join(DEV_KEY_FILE).exists() {
        bail!(
            "there is no development key in {}; start `trunkline dev` there first, or name the configuration of an edge with \
             --config (in production, the identity provider issues tokens)",
            data.display()
        );
    }
    let key = DevKey::open(data, Algorithm::HS256).context("cannot open the development key")?;
    Ok(key.sign(request, now_s)?)
}

fn for_node(path: &Path, mut request: TokenRequest, now_s: i64) -> Result<String> {
    let edge = config::read(path)?.edge;
    let issuers = edge.map(|edge| edge.issuers).unwrap_or_default();
    let issuer = signing_issuer(&issuers).with_context(|| format!("cannot create a token for {}", path.display()))?;
    request.audience = issuer.audience.first().cloned().unwrap_or_default();
    Ok(sign_with_secret(issuer, &request, now_s)?)
}
