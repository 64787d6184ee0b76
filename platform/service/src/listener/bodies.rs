//! Request bodies with a time limit, and response bodies that record their progress.

use super::activity::InFlight;
use axum::body::{Body, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// Responses are passed to the transport in pieces of this size. The transport requests the next piece only when the
/// client has read enough. Without pieces, a client that reads nothing could make the transport buffer a response of
/// any size.
pub const PIECE_BYTES: usize = 64 * 1024;

/// The request body did not arrive in time.
#[derive(Debug, thiserror::Error)]
#[error("the request body did not arrive within {} seconds", .0.as_secs_f32())]
pub struct BodyTimeout(Duration);

/// Whether the error, or one of its sources, is a [`BodyTimeout`].
pub fn is_body_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<BodyTimeout>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A request body that fails when it does not arrive in time.
pub(super) struct RequestBody {
    body: Incoming,
    limit: Duration,
    /// Timer of the limit. Starts when the body is polled for the first time.
    timer: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(super) fn wrap(body: Incoming, limit: Duration) -> Body {
        if body.is_end_stream() {
            return Body::empty();
        }
        Body::new(Self {
            body,
            limit,
            timer: None,
        })
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = crate::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(BodyTimeout(limit).into())));
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response body that records when the transport requests each piece.
pub(super) struct ResponseBody {
    body: Body,
    /// Rest of a frame that is larger than one piece.
    rest: Bytes,
    request: InFlight,
}

impl ResponseBody {
    pub(super) fn wrap(body: Body, mut request: InFlight) -> Body {
        // With HTTP/2, the transport does not request the first piece before the client allows it to send.
        request.sending();
        Body::new(Self {
            body,
            rest: Bytes::new(),
            request,
        })
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.request.sent();
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        let end = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(end);
        self.request.sending();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        let inner = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(rest));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}
