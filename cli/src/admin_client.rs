//! HTTP client of admin listeners: sends the token, trusts a configured CA, and follows redirects to other processes.

use crate::args::Target;
use crate::connection::Connection;
use anyhow::{Context, Result, anyhow, bail};
use reqwest::header::LOCATION;
use reqwest::{Certificate, Response, Url, redirect};
use serde::Serialize;
use serde_json::Value;
use service::Secret;
use std::time::Duration;

/// Maximum number of redirects. A query is redirected to the process that owns the task, and redirected again if the
/// task has just moved.
const REDIRECTS_MAX: usize = 3;

/// A client of admin listeners.
pub struct AdminClient {
    http: reqwest::Client,
    token: Option<Secret>,
}

impl AdminClient {
    /// Creates a client with the token and the CA of the command line.
    pub fn new(target: &Target, timeout: Option<Duration>) -> Result<Self> {
        // reqwest removes the token when it follows a redirect to another host or port.
        // A proxy of the environment must not receive the token.
        let mut http = reqwest::Client::builder().redirect(redirect::Policy::none()).no_proxy();
        if let Some(timeout) = timeout {
            http = http.timeout(timeout);
        }
        let access = Connection::of(target)?.admin;
        if let Some(file) = &access.ca {
            let cannot = || format!("cannot use the certificates in {} (--admin-ca)", file.display());
            let pem = std::fs::read(file).with_context(cannot)?;
            let certificates = Certificate::from_pem_bundle(&pem).with_context(cannot)?;
            http = http.tls_certs_merge(certificates);
        }
        let token = match (access.token, &access.token_file) {
            (Some(token), _) => Some(token),
            (None, Some(file)) => Some(token_in(file)?),
            (None, None) => None,
        };
        Ok(Self {
            http: http.build()?,
            token,
        })
    }

    /// Whether requests carry a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Sends a `GET`, and follows redirects with the token, but never from TLS to a plain connection.
    pub async fn get(&self, url: Url) -> Result<Response> {
        let mut url = url;
        for _ in 0..=REDIRECTS_MAX {
            let response = self.authorized(self.http.get(url.clone())).send().await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|location| location.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            let next = next.with_context(|| format!("{url} redirects to an invalid URL"))?;
            if url.scheme() == "https" && next.scheme() != "https" {
                bail!(
                    "{url} redirects to {next}, which has no TLS; set `admin.tls` and `admin.advertise` of that process"
                );
            }
            url = next;
        }
        bail!("too many redirects, the last to {url}; repeat the command")
    }

    /// Sends a `POST` with a JSON body.
    pub async fn post(&self, url: &str, body: &impl Serialize) -> Result<Response> {
        Ok(self.authorized(self.http.post(url).json(body)).send().await?)
    }

    /// Sends a request with an optional JSON body. Does not follow redirects.
    pub async fn send(&self, method: reqwest::Method, url: Url, body: Option<&Value>) -> Result<Response> {
        let mut request = self.authorized(self.http.request(method, url));
        if let Some(body) = body {
            request = request.json(body);
        }
        Ok(request.send().await?)
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }
}

/// The first token of a file. The file may be one that [[admin.tokens]] uses.
fn token_in(file: &std::path::Path) -> Result<Secret> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the token in {} (--admin-token-file)", file.display()))?;
    let mut lines = text.lines().map(str::trim);
    let token = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    let token = token.with_context(|| format!("{} contains no token (--admin-token-file)", file.display()))?;
    Ok(Secret::new(token))
}

/// Creates the error for a response whose status is not a success.
pub async fn error_of(base: &str, response: Response) -> anyhow::Error {
    let status = response.status();
    let body = response.text().await.unwrap_or_default();
    let problem: Value = serde_json::from_str(&body).unwrap_or_default();
    let detail = problem.get("detail").and_then(Value::as_str);
    let text = detail.map_or_else(|| format!("{base} returned status {status}"), str::to_owned);
    match status.as_u16() {
        401 | 403 => anyhow!("{base} rejects the request: {text} (--admin-token-file, or TRUNKLINE_ADMIN_TOKEN)"),
        _ => anyhow!(text),
    }
}
