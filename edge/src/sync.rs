//! One poll: from who asks and what it holds to a page, or to nothing new.
//!
//! Guarantees: an answer is of one instant of the replica and of the buckets readable then; a long poll is answered
//! when one of its buckets changes, when its time is over, when its token ends or when the process drains, whichever
//! comes first; what cannot be proven current is not shown.
//! Never: a poll of the store while waiting; an answer from before what this device has already seen.

mod body;
mod request;

pub use request::SyncRequest;

use crate::auth::Identity;
use crate::config::Limits;
use crate::error::ApiError;
use crate::replica::ReplicaHandle;
use axum::http::StatusCode;
use schemas::ids::DeviceId;
use service::{Drain, SharedClock};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use views::cursor::{Cursor, Keyring, Owner};
use views::rules::Rules;
use views::{Answer, Bucket, Page, Replica, Request, delta};

/// How long a poll waits for a replica that is behind its cursor.
const BEHIND_WAIT: Duration = Duration::from_secs(1);

/// Which buckets somebody may read: the topology's memberships.
pub trait Memberships: Send + Sync {
    /// The buckets that this principal may read now; a name may occur more than once.
    ///
    /// # Errors
    /// Why the claims open none at all, such as too many buckets; for the device's developer.
    fn readable(&self, identity: &Identity) -> Result<Vec<Bucket>, String>;

    /// Hash of the rules in force; the same on every edge that runs the same topology.
    fn rules(&self) -> u64;

    /// Partitions of `view.log` that the buckets are spread over.
    fn partitions(&self) -> i32;
}

impl Memberships for Rules {
    fn readable(&self, identity: &Identity) -> Result<Vec<Bucket>, String> {
        self.buckets(identity.principal.issuer(), &identity.claims)
            .map_err(|e| e.to_string())
    }

    fn rules(&self) -> u64 {
        self.version()
    }

    fn partitions(&self) -> i32 {
        Rules::partitions(self)
    }
}

/// What polls are answered from.
pub struct Polls {
    shelf: Arc<ReplicaHandle>,
    memberships: Arc<dyn Memberships>,
    keyring: Keyring,
    limits: Limits,
    clock: SharedClock,
    reads: Semaphore,
    drain: Drain,
}

/// The answer to a poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncResponse {
    /// A page as JSON, and the cursor in it.
    Page {
        /// The page.
        json: Vec<u8>,
        /// The sealed cursor.
        cursor: String,
    },
    /// Nothing new since the cursor that was sent.
    NotModified,
}

/// A poll under way.
struct Poll<'a> {
    owner: Owner,
    readable: Arc<Vec<Bucket>>,
    cursor: Option<Cursor>,
    ask: &'a SyncRequest,
}

impl Polls {
    /// Polls are answered from the replica on `shelf` until `drain`; then those that wait are answered at once.
    pub fn new(
        shelf: Arc<ReplicaHandle>,
        memberships: Arc<dyn Memberships>,
        keyring: Keyring,
        limits: Limits,
        clock: SharedClock,
        drain: Drain,
    ) -> Self {
        let reads = Semaphore::new(limits.reads_max);
        Polls {
            shelf,
            memberships,
            keyring,
            limits,
            clock,
            reads,
            drain,
        }
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Answers a poll of a device. May wait as long as `ask` says.
    ///
    /// # Errors
    /// 403 for claims that open no buckets, 503 for a replica that may not be shown or is behind the cursor.
    pub async fn poll(
        self: &Arc<Self>,
        who: &Identity,
        device: &DeviceId,
        ask: &SyncRequest,
    ) -> Result<SyncResponse, ApiError> {
        let readable = self.memberships.readable(who).map_err(|detail| {
            let title = "The token's claims cannot be used";
            ApiError::new(StatusCode::FORBIDDEN, "claims-not-usable", title, detail)
        })?;
        let owner = Owner::new(&who.principal.to_string(), device.as_str());
        let mut poll = Poll {
            owner,
            readable: Arc::new(readable),
            cursor: self.open(ask.cursor.as_deref()),
            ask,
        };
        if ask.cursor.is_none() && ask.only_if_changed.is_some() {
            // The validator stands for a state that the device says it has; only if that is current is it told so.
            poll.cursor = self.open(ask.only_if_changed.as_deref());
            if let Ok(SyncResponse::NotModified) = self.wait(who, &poll).await {
                return Ok(SyncResponse::NotModified);
            }
            poll.cursor = None;
        }
        let reply = self.wait(who, &poll).await;
        let answer = match &reply {
            Ok(SyncResponse::Page { .. }) => "page",
            Ok(SyncResponse::NotModified) => "not_modified",
            Err(problem) => problem.code,
        };
        metrics::counter!("trunkline_edge_polls_total", "answer" => answer).increment(1);
        reply
    }

    fn open(&self, text: Option<&str>) -> Option<Cursor> {
        text.and_then(|text| self.keyring.open(text))
    }

    /// Answers at once, or once something has changed or the time is over.
    async fn wait(self: &Arc<Self>, who: &Identity, poll: &Poll<'_>) -> Result<SyncResponse, ApiError> {
        let wait = poll.ask.wait.min(Duration::from_secs(self.limits.wait_s_max));
        let began = Instant::now();
        let until = began + wait.min(self.time_left(who));
        let until_caught_up = began + BEHIND_WAIT;
        let wakes = self.shelf.wakes();
        // Listening begins before the first look, so that a change between the two is not missed.
        let listener = (!wait.is_zero()).then(|| wakes.listen(poll.readable.iter().map(|b| b.id)));
        let _gauge = listener.is_some().then(Waiting::begin);
        let mut moves = wakes.watch_moves();
        loop {
            moves.borrow_and_update();
            let draining = self.drain.is_draining();
            let patient = listener.is_some() && !draining && Instant::now() < until;
            match (self.look(poll, patient).await?, &listener) {
                (Look::SyncResponse(reply), _) => return Ok(reply),
                (Look::NotReady(problem), _) => return Err(problem),
                (Look::Same, Some(listener)) if patient => {
                    tokio::select! {
                        () = listener.woken() => {}
                        () = tokio::time::sleep_until(until) => {}
                        () = self.drain.started() => {}
                    }
                }
                (Look::Same, _) => return Ok(SyncResponse::NotModified),
                (Look::Behind, _) if !draining && Instant::now() < until_caught_up => {
                    tokio::select! {
                        _ = moves.changed() => {}
                        () = tokio::time::sleep_until(until_caught_up) => {}
                        () = self.drain.started() => {}
                    }
                }
                (Look::Behind, _) => {
                    let detail = "this edge has not read as far as the cursor yet; try again, or the edge that gave it";
                    return Err(ApiError::unavailable("view-behind", detail, 1));
                }
            }
        }
    }

    fn time_left(&self, who: &Identity) -> Duration {
        let left_ms = who.expires_ms.saturating_sub(self.clock.now_ms());
        Duration::from_millis(u64::try_from(left_ms).unwrap_or(0))
    }

    /// Looks once, on a thread that may block: the store may have to read from disk.
    async fn look(self: &Arc<Self>, poll: &Poll<'_>, patient: bool) -> Result<Look, ApiError> {
        let Some(replica) = self.shelf.replica() else {
            let detail = "the views are not open here yet; try again, or another edge";
            return Ok(Look::NotReady(ApiError::unavailable("view-incomplete", detail, 2)));
        };
        let _permit = self.reads.acquire().await.expect("the semaphore is never closed");
        let sync = self.clone();
        let (owner, readable, cursor) = (poll.owner, poll.readable.clone(), poll.cursor.clone());
        let rows_max = poll
            .ask
            .limit
            .unwrap_or(self.limits.page_rows)
            .min(self.limits.page_rows_max);
        let waits = !poll.ask.wait.is_zero();
        let looked = tokio::task::spawn_blocking(move || {
            let request = Request {
                owner,
                readable: &readable,
                cursor,
                rules: sync.memberships.rules(),
                rows_max,
                bytes_max: sync.limits.page_bytes_max,
                now: sync.clock.now_ms(),
                patient,
            };
            sync.answer(&replica, &request, waits)
        });
        let internal = || ApiError::unavailable("internal", "the views could not be read; try again", 5);
        match looked.await {
            Ok(Ok(look)) => Ok(look),
            Ok(Err(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "a poll could not read the replica");
                Err(internal())
            }
            Err(error) => {
                tracing::error!(%error, "a poll ended abruptly");
                Err(internal())
            }
        }
    }

    fn answer(&self, replica: &Replica, request: &Request<'_>, waits: bool) -> Result<Look, views::replica::Error> {
        Ok(match delta(replica, request)? {
            Answer::NotModified => Look::Same,
            Answer::Behind => Look::Behind,
            Answer::NotReady(why) => Look::NotReady(ApiError::not_ready(why)),
            Answer::Page(page) => {
                let sent = u64::try_from(page.changes.len()).unwrap_or(u64::MAX);
                metrics::counter!("trunkline_edge_rows_sent_total").increment(sent);
                let cursor = self.keyring.seal(&page.cursor);
                let json = body::write(&page, &cursor, self.poll_after_ms(&page, waits, request.now));
                Look::SyncResponse(SyncResponse::Page { json, cursor })
            }
        })
    }

    /// When the device should ask again: at once while a round goes on or by long poll, else after the configured time
    /// give or take a fifth, so that devices which began together do not stay together.
    fn poll_after_ms(&self, page: &Page, waits: bool, now: i64) -> u64 {
        if !page.complete || waits {
            return 0;
        }
        let base = self.limits.poll_after_ms;
        let noise = now.unsigned_abs().wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        base - base / 5 + noise % (2 * (base / 5) + 1)
    }
}

/// What one look found.
enum Look {
    SyncResponse(SyncResponse),
    Same,
    Behind,
    NotReady(ApiError),
}

/// Counts the polls that wait.
struct Waiting;

impl Waiting {
    fn begin() -> Self {
        metrics::gauge!("trunkline_edge_long_polls").increment(1.0);
        Waiting
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        metrics::gauge!("trunkline_edge_long_polls").decrement(1.0);
    }
}

#[cfg(test)]
mod tests;
