//! Polls: answers a device's cursor with a page, with 304 or with an error (docs/protocol/device-sync.md).
//!
//! A response is computed at one instant of the replica, for the buckets that the token may read at that time (I5). A
//! long poll ends when one of its buckets changes, its wait has elapsed, its token expires or the process drains,
//! whichever comes first. While it waits it does not read the store. The answer is 503 if the replica is incomplete,
//! was not proven current recently, or is behind the cursor (invariant I4, no return to an older state).

mod body;
mod request;

pub use request::SyncRequest;

use crate::auth::Identity;
use crate::config::Limits;
use crate::http::ApiError;
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
use views::{Bucket, DeltaRequest, DeltaResult, Page, Replica, SnapshotView, delta};

/// How long a poll waits for a replica that is behind the cursor. Longer than one edge is normally behind another.
const BEHIND_WAIT: Duration = Duration::from_secs(1);

/// Time between polls of a device that waits for the first snapshot of a view.
const LOADING_POLL_MS: u64 = 2_000;

/// Decides which buckets a principal may read.
pub trait Memberships: Send + Sync {
    /// The buckets that this principal may read now. A bucket may occur more than once.
    ///
    /// # Errors
    /// Why the claims cannot be used, such as too many buckets. The device receives this text.
    fn readable(&self, identity: &Identity) -> Result<Vec<Bucket>, String>;

    /// The views of these buckets whose tables have a first snapshot. A device has no complete state before it has ended.
    fn snapshot_views(&self, _readable: &[Bucket]) -> Vec<SnapshotView> {
        Vec::new()
    }

    /// Partition count of `view.log`.
    fn partitions(&self) -> i32;
}

impl Memberships for Rules {
    fn readable(&self, identity: &Identity) -> Result<Vec<Bucket>, String> {
        self.buckets(identity.principal.issuer(), &identity.claims)
            .map_err(|e| e.to_string())
    }

    fn snapshot_views(&self, readable: &[Bucket]) -> Vec<SnapshotView> {
        Rules::snapshot_views(self, readable)
    }

    fn partitions(&self) -> i32 {
        Rules::partitions(self)
    }
}

/// Dependencies of [`Polls`].
pub struct PollsContext {
    /// The replica to answer from.
    pub replica: Arc<ReplicaHandle>,
    /// Decides which buckets each principal may read.
    pub memberships: Arc<dyn Memberships>,
    /// Keys of the cursors.
    pub keyring: Keyring,
    /// Limits on requests.
    pub limits: Limits,
    /// Clock for token expiry, proofs that the replica is current, and the horizon.
    pub clock: SharedClock,
    /// Ends waiting polls.
    pub drain: Drain,
}

/// Answers polls.
pub struct Polls {
    context: PollsContext,
    /// Bounds the blocking threads that read the store at the same time.
    reads: Semaphore,
}

/// The response to a poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncResponse {
    /// A page as JSON, and the cursor in it.
    Page {
        /// The page.
        json: Vec<u8>,
        /// The sealed cursor.
        cursor: String,
    },
    /// No change since the cursor of the request.
    NotModified,
}

/// A poll whose token and cursor have been verified.
struct VerifiedPoll<'a> {
    owner: Owner,
    readable: Arc<Vec<Bucket>>,
    snapshot_views: Arc<[SnapshotView]>,
    cursor: Option<Cursor>,
    expires_ms: i64,
    request: &'a SyncRequest,
}

impl Polls {
    /// Creates the service that answers polls.
    pub fn new(context: PollsContext) -> Self {
        let reads = Semaphore::new(context.limits.reads_max);
        Polls { context, reads }
    }

    /// Limits on requests.
    pub fn limits(&self) -> &Limits {
        &self.context.limits
    }

    /// Answers a poll of a device. Waits for a change for at most `request.wait`.
    ///
    /// # Errors
    /// 403 if the claims cannot be used, 503 if the replica cannot be served or is behind the cursor.
    pub async fn poll(
        self: &Arc<Self>,
        identity: &Identity,
        device: &DeviceId,
        request: &SyncRequest,
    ) -> Result<SyncResponse, ApiError> {
        let readable = self.context.memberships.readable(identity).map_err(|detail| {
            let title = "The token's claims cannot be used";
            ApiError::new(StatusCode::FORBIDDEN, "claims-not-usable", title, detail)
        })?;
        let owner = Owner::new(&identity.principal.to_string(), device.as_str());
        let mut poll = VerifiedPoll {
            owner,
            snapshot_views: self.context.memberships.snapshot_views(&readable).into(),
            readable: Arc::new(readable),
            cursor: self.open(request.cursor.as_deref()),
            expires_ms: identity.expires_ms,
            request,
        };
        if request.cursor.is_none() && request.only_if_changed.is_some() {
            // A request without a cursor asks for all rows. Its validator therefore only decides between 304 and a full
            // page; it never leads to a delta.
            poll.cursor = self.open(request.only_if_changed.as_deref());
            if let Ok(SyncResponse::NotModified) = self.wait(&poll).await {
                return Ok(SyncResponse::NotModified);
            }
            poll.cursor = None;
        }
        let response = self.wait(&poll).await;
        let answer = match &response {
            Ok(SyncResponse::Page { .. }) => "page",
            Ok(SyncResponse::NotModified) => "not_modified",
            Err(problem) => problem.code,
        };
        metrics::counter!("trunkline_edge_polls_total", "answer" => answer).increment(1);
        response
    }

    fn open(&self, text: Option<&str>) -> Option<Cursor> {
        text.and_then(|text| self.context.keyring.open(text))
    }

    /// Computes the delta until there is something to send or the wait has elapsed.
    async fn wait(self: &Arc<Self>, poll: &VerifiedPoll<'_>) -> Result<SyncResponse, ApiError> {
        let drain = &self.context.drain;
        let wait = poll.request.wait.min(Duration::from_secs(self.limits().wait_s_max));
        let began = Instant::now();
        let until = began + wait.min(self.token_lifetime(poll));
        let until_caught_up = began + BEHIND_WAIT;
        let notifier = self.context.replica.notifier();
        // Registered before the first read, because otherwise a change between the read and the registration would not
        // wake this poll.
        let listener = (!wait.is_zero()).then(|| notifier.listen(poll.readable.iter().map(|b| b.id)));
        let _gauge = listener.is_some().then(LongPollGauge::increment);
        let mut progress = notifier.watch_progress();
        loop {
            // The progress is marked as seen before the read, for the same reason.
            progress.borrow_and_update();
            let draining = drain.is_draining();
            let patient = listener.is_some() && !draining && Instant::now() < until;
            match (self.read_delta(poll, patient).await?, &listener) {
                (PollStep::Respond(response), _) => return Ok(response),
                (PollStep::NotReady(error), _) => return Err(error),
                (PollStep::NotModified | PollStep::Loading, Some(listener)) if patient => {
                    tokio::select! {
                        () = listener.woken() => {}
                        () = tokio::time::sleep_until(until) => {}
                        () = drain.started() => {}
                    }
                }
                (PollStep::NotModified | PollStep::Loading, _) => return Ok(SyncResponse::NotModified),
                (PollStep::Behind, _) if !draining && Instant::now() < until_caught_up => {
                    tokio::select! {
                        _ = progress.changed() => {}
                        () = tokio::time::sleep_until(until_caught_up) => {}
                        () = drain.started() => {}
                    }
                }
                (PollStep::Behind, _) => {
                    let detail = "this edge is behind the cursor; retry, preferably at the edge that issued it";
                    return Err(ApiError::unavailable("view-behind", detail, 1));
                }
            }
        }
    }

    /// Time until the token expires, which bounds the wait: an expired token must not receive rows (I5).
    fn token_lifetime(&self, poll: &VerifiedPoll<'_>) -> Duration {
        let left_ms = poll.expires_ms.saturating_sub(self.context.clock.now_ms());
        Duration::from_millis(u64::try_from(left_ms).unwrap_or(0))
    }

    /// Computes the delta once, on a blocking thread, because the store may read from disk.
    async fn read_delta(self: &Arc<Self>, poll: &VerifiedPoll<'_>, patient: bool) -> Result<PollStep, ApiError> {
        let Some(replica) = self.context.replica.replica() else {
            let detail = "this edge has not opened the views yet; retry, or use another edge";
            return Ok(PollStep::NotReady(ApiError::unavailable("view-incomplete", detail, 2)));
        };
        let _permit = self.reads.acquire().await.expect("the semaphore is never closed");
        let polls = self.clone();
        let (owner, readable, cursor) = (poll.owner, poll.readable.clone(), poll.cursor.clone());
        let snapshot_views = poll.snapshot_views.clone();
        let limits = self.limits();
        let rows_max = poll.request.limit.unwrap_or(limits.page_rows).min(limits.page_rows_max);
        let long_poll = !poll.request.wait.is_zero();
        let step = tokio::task::spawn_blocking(move || {
            let request = DeltaRequest {
                owner,
                readable: &readable,
                snapshot_views: &snapshot_views,
                cursor,
                rows_max,
                bytes_max: polls.limits().page_bytes_max,
                now: polls.context.clock.now_ms(),
                patient,
            };
            polls.step(&replica, &request, long_poll)
        });
        let internal = || ApiError::unavailable("internal", "the views could not be read; retry", 5);
        match step.await {
            Ok(Ok(step)) => Ok(step),
            Ok(Err(error)) => {
                let error = service::chain(&error);
                tracing::error!(error, "replica read failed");
                Err(internal())
            }
            Err(error) => {
                tracing::error!(%error, "poll panicked or was cancelled");
                Err(internal())
            }
        }
    }

    fn step(
        &self,
        replica: &Replica,
        request: &DeltaRequest<'_>,
        long_poll: bool,
    ) -> Result<PollStep, views::replica::Error> {
        Ok(match delta(replica, request)? {
            DeltaResult::NotModified => PollStep::NotModified,
            DeltaResult::Loading => PollStep::Loading,
            DeltaResult::Behind => PollStep::Behind,
            DeltaResult::NotReady(reason) => PollStep::NotReady(ApiError::not_ready(reason)),
            DeltaResult::Page(page) => {
                let sent = u64::try_from(page.changes.len()).unwrap_or(u64::MAX);
                metrics::counter!("trunkline_edge_rows_sent_total").increment(sent);
                let cursor = self.context.keyring.seal(&page.cursor);
                let json = body::write(&page, &cursor, self.poll_after_ms(&page, long_poll, request.now));
                PollStep::Respond(SyncResponse::Page { json, cursor })
            }
        })
    }

    /// When the device should poll again: immediately within a round or after a long poll, else after the configured time
    /// with a jitter of 20 %, so that devices which polled at the same time spread out. Sooner while a view is not loaded.
    fn poll_after_ms(&self, page: &Page, long_poll: bool, now: i64) -> u64 {
        if long_poll || !(page.complete || page.loading) {
            return 0;
        }
        let most = if page.loading { LOADING_POLL_MS } else { u64::MAX };
        let base = self.limits().poll_after_ms.min(most);
        let noise = now.unsigned_abs().wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        base - base / 5 + noise % (2 * (base / 5) + 1)
    }
}

enum PollStep {
    Respond(SyncResponse),
    /// Nothing to send; a long poll waits for a change.
    NotModified,
    /// Nothing to send before a view is loaded; a long poll waits for a change.
    Loading,
    /// The replica is behind the cursor; the poll waits for its progress.
    Behind,
    NotReady(ApiError),
}

/// Counts this poll in the gauge of waiting long polls until it is dropped.
struct LongPollGauge;

impl LongPollGauge {
    fn increment() -> Self {
        metrics::gauge!("trunkline_edge_long_polls").increment(1.0);
        LongPollGauge
    }
}

impl Drop for LongPollGauge {
    fn drop(&mut self) {
        metrics::gauge!("trunkline_edge_long_polls").decrement(1.0);
    }
}

#[cfg(test)]
mod tests;
