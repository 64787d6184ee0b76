//! Records the activity of a connection and determines when it exceeds a time limit.
//!
//! Server libraries limit the time for a request head, but not the time before the first byte, the time between two
//! requests of an HTTP/2 connection, or the time in which a client reads a response. These limits are derived from the
//! values that are recorded here.

use super::limits::Limits;
use axum::http::Version;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Why a connection was closed. Label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    /// No complete request head arrived within the limit.
    Head,
    /// There was no request for too long.
    Idle,
    /// The client did not read a response in time.
    Write,
}

impl Expired {
    pub(super) fn label(self) -> &'static str {
        match self {
            Expired::Head => "head_timeout",
            Expired::Idle => "idle_timeout",
            Expired::Write => "write_timeout",
        }
    }
}

/// The activity of one connection.
pub(super) struct Activity {
    limits: Limits,
    state: Mutex<State>,
}

struct State {
    /// Number of requests whose response has not been passed to the transport completely.
    requests: usize,
    /// When the connection was opened, or its last request ended.
    idle_since: Instant,
    /// When the first byte of the next request head arrived. HTTP/1 only: the frames of HTTP/2 that a client may send
    /// between requests are not part of a head.
    head_since: Option<Instant>,
    /// Version of the requests, once there was one.
    version: Option<Version>,
    /// Pieces of responses that the transport has not sent completely, oldest first.
    unsent: VecDeque<(u64, Instant)>,
    next_piece: u64,
}

impl Activity {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let state = State {
            requests: 0,
            idle_since: Instant::now(),
            head_since: None,
            version: None,
            unsent: VecDeque::new(),
            next_piece: 0,
        };
        Arc::new(Self {
            limits,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that bytes arrived.
    pub(super) fn received(&self) {
        let mut state = self.state();
        let is_head = state.requests == 0 && state.version.is_some_and(|version| version < Version::HTTP_2);
        if is_head && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    /// Records that a request head is complete. The request lasts until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> InFlight {
        let mut state = self.state();
        state.requests += 1;
        state.version = Some(version);
        state.head_since = None;
        drop(state);
        InFlight {
            activity: Arc::clone(self),
            piece: None,
        }
    }

    /// Returns the time at which the connection must be closed, unless there is activity before.
    fn deadline(&self) -> Option<(Instant, Expired)> {
        let state = self.state();
        if let Some((_, since)) = state.unsent.front() {
            return Some((*since + self.limits.write, Expired::Write));
        }
        if state.requests > 0 {
            // The limits of the request's body and response time apply.
            return None;
        }
        Some(match (state.version, state.head_since) {
            (None, _) => (state.idle_since + self.limits.head, Expired::Head),
            (Some(_), Some(since)) => (since + self.limits.head, Expired::Head),
            (Some(_), None) => (state.idle_since + self.limits.idle, Expired::Idle),
        })
    }

    /// Waits until the connection must be closed.
    pub(super) async fn expired(&self) -> Expired {
        loop {
            let now = Instant::now();
            // A later event may bring the deadline forward, so check again at intervals instead of being woken by each
            // byte.
            let mut wake = now + self.limits.head;
            match self.deadline() {
                Some((at, expired)) if at <= now => return expired,
                Some((at, _)) => wake = wake.min(at),
                None => {}
            }
            tokio::time::sleep_until(wake).await;
        }
    }
}

/// A request in progress.
pub(super) struct InFlight {
    activity: Arc<Activity>,
    /// The piece of the response that the transport is sending.
    piece: Option<u64>,
}

impl InFlight {
    /// Records that the transport has a piece of the response to send.
    pub(super) fn sending(&mut self) {
        let mut state = self.activity.state();
        let piece = state.next_piece;
        state.next_piece += 1;
        state.unsent.push_back((piece, Instant::now()));
        drop(state);
        self.piece = Some(piece);
    }

    /// Records that the transport is ready for the next piece.
    pub(super) fn sent(&mut self) {
        if let Some(piece) = self.piece.take() {
            self.activity.state().unsent.retain(|(sent, _)| *sent != piece);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.sent();
        let mut state = self.activity.state();
        state.requests -= 1;
        state.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// The time after which a connection with this activity expires, and the reason.
    async fn expiry(activity: &Activity) -> (Duration, Expired) {
        let began = Instant::now();
        let expired = activity.expired().await;
        (began.elapsed(), expired)
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_limit() {
        let limits = Limits::default();
        let activity = Activity::new(limits);
        activity.received();
        assert_eq!(
            expiry(&activity).await,
            (limits.head, Expired::Head),
            "before the first request"
        );

        let mut request = activity.begin(Version::HTTP_11);
        let waiting = tokio::time::timeout(Duration::from_secs(3600), activity.expired()).await;
        assert!(waiting.is_err(), "a request in progress has other limits");
        request.sending();
        assert_eq!(
            expiry(&activity).await,
            (limits.write, Expired::Write),
            "a response that is not read"
        );
        request.sent();
        request.sending();
        drop(request);
        assert_eq!(
            expiry(&activity).await,
            (limits.idle, Expired::Idle),
            "between requests"
        );

        drop(activity.begin(Version::HTTP_11));
        activity.received();
        assert_eq!(expiry(&activity).await, (limits.head, Expired::Head), "a later head");
    }

    #[tokio::test(start_paused = true)]
    async fn pings_do_not_keep_http2_connections_open() {
        let activity = Activity::new(Limits::default());
        drop(activity.begin(Version::HTTP_2));
        activity.received();
        assert_eq!(expiry(&activity).await, (Limits::default().idle, Expired::Idle));
    }
}
