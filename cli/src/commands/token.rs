//! `trunkline token`: a token for a device, signed by the key of a `trunkline dev`.

use crate::args::{self, Output};
use crate::{print, time};
use anyhow::{Context, Result, bail};
use edge::config::Algorithm;
use edge::token::{DEV_AUDIENCE, DEV_KEY_FILE, DevKey, TokenRequest, parse_claim};
use process::clock;

/// Mints and prints a token.
pub fn run(output: Output, token: &args::Token) -> Result<()> {
    if !token.data.join(DEV_KEY_FILE).exists() {
        bail!(
            "there is no development key in {}; start `trunkline dev` there first. A production issuer mints its own tokens",
            token.data.display()
        );
    }
    let key = DevKey::open(&token.data, Algorithm::HS256).context("the development key")?;
    let claims = token.claims.iter().map(|c| parse_claim(c)).collect::<Result<_, _>>()?;
    let request = TokenRequest {
        subject: token.sub.clone(),
        audience: DEV_AUDIENCE.into(),
        claims,
        expires_in_s: time::span(&token.expires_in)? / 1000,
    };
    let minted = key.mint(&request, clock::system().now_ms() / 1000)?;
    if output == Output::Json {
        return print::json(&serde_json::json!({"token": minted, "expires_in_s": request.expires_in_s}));
    }
    print::line(minted)
}
