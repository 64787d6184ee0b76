//! An issuer's keys behind a URL: fetched, kept, fetched again.
//!
//! Guarantees: one fetch at a time however many tokens wait for it; an unknown key id causes at most one fetch an
//! interval, so that made-up ids cannot make an edge hammer the issuer; keys outlive an issuer that is down for a
//! limited time.
//! Never: a redirect, a proxy from the environment, plain HTTP beyond loopback unless the configuration insists.

use super::{KeySet, Source};
use reqwest::redirect;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Time for a whole fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest document.
const BYTES_MAX: usize = 512 * 1024;
/// Time between two tries while the issuer is down.
pub const RETRY: Duration = Duration::from_secs(2);

/// A time by the injected clock, in ms since the epoch.
type Millis = i64;

/// When keys are fetched.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Age at which they are fetched again.
    pub refresh: Duration,
    /// Least time between two fetches because of an unknown key id.
    pub interval: Duration,
    /// Age up to which they are used while they cannot be fetched.
    pub stale: Duration,
}

#[derive(Default)]
struct State {
    keys: Option<(Arc<KeySet>, Millis)>,
    tried: Option<Millis>,
    /// When an unknown key id last caused a fetch.
    asked: Option<Millis>,
    failure: Option<String>,
}

/// Keys behind a URL.
pub struct Remote {
    alias: String,
    url: reqwest::Url,
    client: reqwest::Client,
    policy: Policy,
    state: Mutex<State>,
    /// Held while fetching, so that there is one fetch at a time.
    gate: tokio::sync::Mutex<()>,
}

impl Remote {
    /// Checks the URL. Nothing is fetched yet.
    ///
    /// # Errors
    /// What is wrong with the URL, with the fix.
    pub fn new(alias: &str, url: &str, insecure: bool, policy: Policy) -> Result<Self, String> {
        let url: reqwest::Url = url.parse().map_err(|e| format!("is not a URL: {e}"))?;
        let host = url.host_str().unwrap_or_default();
        let loopback = host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        match url.scheme() {
            "https" => {}
            "http" if loopback || insecure => {}
            _ => {
                return Err("must be https; plain http is taken on loopback, or with jwks_insecure_http = true".into());
            }
        }
        let client = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|e| format!("cannot be fetched: the HTTP client does not start: {e}"))?;
        let (state, gate) = (Mutex::default(), tokio::sync::Mutex::new(()));
        Ok(Remote {
            alias: alias.to_owned(),
            url,
            client,
            policy,
            state,
            gate,
        })
    }

    /// The keys, if there are any that may still be used; fetches them when there are none yet.
    pub async fn keys(&self, now: Millis) -> Option<Arc<KeySet>> {
        if let Some(keys) = self.usable(now) {
            return Some(keys);
        }
        let _gate = self.gate.lock().await;
        let tried = self.state().tried;
        if self.usable(now).is_none() && tried.is_none_or(|at| age(at, now) >= RETRY) {
            self.fetch(now).await;
        }
        self.usable(now)
    }

    /// Keys that were fetched after these: fetches them, unless an unknown key id had it done within the interval.
    pub async fn newer_than(&self, old: &Arc<KeySet>, now: Millis) -> Option<Arc<KeySet>> {
        let newer = || self.usable(now).filter(|keys| !Arc::ptr_eq(keys, old));
        let _gate = self.gate.lock().await;
        if let Some(arrived) = newer() {
            return Some(arrived);
        }
        let asked = self.state().asked;
        if asked.is_none_or(|at| age(at, now) >= self.policy.interval) {
            self.state().asked = Some(now);
            self.fetch(now).await;
        }
        newer()
    }

    /// Fetches the keys if they are due, and says in how long they will be due again.
    pub async fn keep_fresh(&self, now: Millis) -> Duration {
        let _gate = self.gate.lock().await;
        if self.due(now).is_zero() {
            self.fetch(now).await;
        }
        self.due(now).max(Duration::from_millis(100))
    }

    /// What keeps tokens of this issuer from being checked.
    pub fn problem(&self, now: Millis) -> Option<String> {
        if self.usable(now).is_some() {
            return None;
        }
        let state = self.state();
        let why = state.failure.as_deref().unwrap_or("they were not fetched yet");
        Some(format!(
            "keys of issuer {} cannot be used: {why}; check jwks_url and that it answers from here",
            self.alias
        ))
    }

    fn due(&self, now: Millis) -> Duration {
        let state = self.state();
        let wait = if state.failure.is_some() {
            RETRY
        } else {
            self.policy.refresh
        };
        state
            .tried
            .map_or(Duration::ZERO, |at| wait.saturating_sub(age(at, now)))
    }

    fn usable(&self, now: Millis) -> Option<Arc<KeySet>> {
        let limit = self.policy.refresh + self.policy.stale;
        self.state()
            .keys
            .as_ref()
            .filter(|(_, at)| age(*at, now) <= limit || *at > now)
            .map(|(keys, _)| keys.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self, now: Millis) {
        let fetched = self.download().await;
        let fetched =
            fetched.and_then(|text| KeySet::from_jwks(&text, Source::Fetched).map_err(|e| format!("{} {e}", self.url)));
        let mut state = self.state();
        state.tried = Some(now);
        match fetched {
            Ok(keys) => {
                state.keys = Some((Arc::new(keys), now));
                state.failure = None;
                tracing::debug!(issuer = self.alias, "fetched the issuer's keys");
            }
            Err(failure) => {
                tracing::warn!(issuer = self.alias, failure, "the issuer's keys could not be fetched");
                state.failure = Some(failure);
            }
        }
    }

    async fn download(&self) -> Result<Vec<u8>, String> {
        let failed = |e: reqwest::Error| {
            let kind = if e.is_timeout() {
                "no answer in time"
            } else {
                "the connection failed"
            };
            format!("{} could not be read: {kind}", self.url)
        };
        let mut response = self.client.get(self.url.clone()).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(format!("{} answered {}", self.url, response.status()));
        }
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if text.len() + chunk.len() > BYTES_MAX {
                return Err(format!("{} answered more than {BYTES_MAX} bytes", self.url));
            }
            text.extend_from_slice(&chunk);
        }
        Ok(text)
    }
}

/// How long ago `at` was; a clock that was set back makes everything due.
fn age(at: Millis, now: Millis) -> Duration {
    u64::try_from(now - at).map_or(Duration::MAX, Duration::from_millis)
}
