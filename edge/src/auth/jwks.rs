//! Keys of an issuer that are fetched from a URL (JWKS), cached and refreshed.
//!
//! Tokens that wait for keys share one fetch. An unknown key id causes at most one fetch per interval, so that tokens
//! with invented ids cannot flood the issuer. While the issuer is down, its keys remain in use for a limited time.
//! Redirects and proxies from the environment are not followed, and plain HTTP beyond loopback requires
//! `jwks_insecure_http`: a party that controls the response can sign tokens.

use super::key_set::{JwksOrigin, KeySet};
use reqwest::redirect;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Timeout of a whole fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum bytes of the document.
const BYTES_MAX: usize = 512 * 1024;
/// Interval between attempts while the issuer is not reachable.
pub const RETRY: Duration = Duration::from_secs(2);

/// Time of the injected clock, in ms since the epoch.
type Millis = i64;

/// When keys are fetched and how long they are used.
#[derive(Debug, Clone, Copy)]
pub struct RefreshPolicy {
    /// Age at which keys are refreshed.
    pub refresh: Duration,
    /// Minimum time between two fetches because of an unknown key id.
    pub interval: Duration,
    /// Time for which keys remain in use after a refresh was due and failed.
    pub stale: Duration,
}

#[derive(Default)]
struct Cache {
    keys: Option<(Arc<KeySet>, Millis)>,
    attempted: Option<Millis>,
    /// When an unknown key id last caused a fetch.
    unknown_id_fetch: Option<Millis>,
    failure: Option<String>,
}

/// Keys of an issuer behind a URL.
pub struct RemoteKeys {
    alias: String,
    url: reqwest::Url,
    client: reqwest::Client,
    policy: RefreshPolicy,
    cache: Mutex<Cache>,
    /// Held during a fetch, so that concurrent tokens share it.
    fetch_lock: tokio::sync::Mutex<()>,
}

impl RemoteKeys {
    /// Checks the URL and creates the HTTP client; does not fetch.
    ///
    /// # Errors
    /// What is wrong with the URL, and the fix.
    pub fn new(alias: &str, url: &str, insecure: bool, policy: RefreshPolicy) -> Result<Self, String> {
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
                return Err(
                    "must be https; plain http is accepted on loopback, or with jwks_insecure_http = true".into(),
                );
            }
        }
        let client = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|e| format!("cannot be fetched: creating the HTTP client failed: {e}"))?;
        Ok(RemoteKeys {
            alias: alias.to_owned(),
            url,
            client,
            policy,
            cache: Mutex::default(),
            fetch_lock: tokio::sync::Mutex::new(()),
        })
    }

    /// The keys, if they may still be used. Fetches them if there are none.
    pub async fn keys(&self, now: Millis) -> Option<Arc<KeySet>> {
        if let Some(keys) = self.usable(now) {
            return Some(keys);
        }
        let _fetching = self.fetch_lock.lock().await;
        let attempted = self.cache().attempted;
        if self.usable(now).is_none() && attempted.is_none_or(|at| age(at, now) >= RETRY) {
            self.fetch(now).await;
        }
        self.usable(now)
    }

    /// Keys that were fetched after `old`. Fetches them, unless an unknown key id has caused a fetch within the interval.
    pub async fn newer_than(&self, old: &Arc<KeySet>, now: Millis) -> Option<Arc<KeySet>> {
        let newer = || self.usable(now).filter(|keys| !Arc::ptr_eq(keys, old));
        let _fetching = self.fetch_lock.lock().await;
        if let Some(fetched) = newer() {
            return Some(fetched);
        }
        let last = self.cache().unknown_id_fetch;
        if last.is_none_or(|at| age(at, now) >= self.policy.interval) {
            self.cache().unknown_id_fetch = Some(now);
            self.fetch(now).await;
        }
        newer()
    }

    /// Fetches the keys if a refresh is due, and returns the time until the next one.
    pub async fn refresh_if_due(&self, now: Millis) -> Duration {
        let _fetching = self.fetch_lock.lock().await;
        if self.due(now).is_zero() {
            self.fetch(now).await;
        }
        self.due(now).max(Duration::from_millis(100))
    }

    /// Why tokens of this issuer cannot be verified; `None` if they can.
    pub fn problem(&self, now: Millis) -> Option<String> {
        if self.usable(now).is_some() {
            return None;
        }
        let cache = self.cache();
        let cause = cache.failure.as_deref().unwrap_or("not fetched yet");
        Some(format!("keys of issuer {} are not available: {cause}", self.alias))
    }

    fn due(&self, now: Millis) -> Duration {
        let cache = self.cache();
        let wait = if cache.failure.is_some() {
            RETRY
        } else {
            self.policy.refresh
        };
        cache
            .attempted
            .map_or(Duration::ZERO, |at| wait.saturating_sub(age(at, now)))
    }

    fn usable(&self, now: Millis) -> Option<Arc<KeySet>> {
        let limit = self.policy.refresh + self.policy.stale;
        self.cache()
            .keys
            .as_ref()
            .filter(|(_, at)| age(*at, now) <= limit || *at > now)
            .map(|(keys, _)| keys.clone())
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self, now: Millis) {
        let fetched = self.download().await;
        let fetched = fetched
            .and_then(|text| KeySet::from_jwks(&text, JwksOrigin::Fetched).map_err(|e| format!("{} {e}", self.url)));
        let mut cache = self.cache();
        cache.attempted = Some(now);
        match fetched {
            Ok(keys) => {
                cache.keys = Some((Arc::new(keys), now));
                cache.failure = None;
                tracing::debug!(issuer = self.alias, "issuer keys fetched");
            }
            Err(failure) => {
                tracing::warn!(issuer = self.alias, failure, "fetch of issuer keys failed");
                cache.failure = Some(failure);
            }
        }
    }

    async fn download(&self) -> Result<Vec<u8>, String> {
        let failed = |e: reqwest::Error| {
            let kind = if e.is_timeout() {
                "no response within 5 s"
            } else {
                "the connection failed"
            };
            format!("fetch {}: {kind}", self.url)
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

/// Time since `at`. If the clock was set back, the maximum, so that everything is due.
fn age(at: Millis, now: Millis) -> Duration {
    u64::try_from(now - at).map_or(Duration::MAX, Duration::from_millis)
}
