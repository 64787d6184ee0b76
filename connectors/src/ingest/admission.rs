//! Limits the bytes of all requests in progress, because the number of connections bounds memory only together with the
//! size of a body.

use axum::http::{HeaderMap, header};
use service::Problem;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Unit of the permits, because a semaphore counts in 32 bits.
const UNIT: usize = 1 << 10;

/// The limit. Clones share it.
#[derive(Clone)]
pub(super) struct Admission {
    units: Arc<Semaphore>,
    body_bytes_max: usize,
}

impl Admission {
    /// Creates a limit for the bodies of all requests. At least one request is always admitted.
    pub(super) fn new(bytes_max: usize, body_bytes_max: usize) -> Self {
        let units = bytes_max.max(body_bytes_max).div_ceil(UNIT);
        Self {
            units: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
            body_bytes_max,
        }
    }

    /// Admits a request until the permit is dropped. A body without a length counts with the maximum.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, Box<Problem>> {
        let length = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok());
        let length = length.and_then(|length| length.parse().ok()).unwrap_or(usize::MAX);
        let units = length.min(self.body_bytes_max).div_ceil(UNIT).max(1);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Arc::clone(&self.units).try_acquire_many_owned(units).map_err(|_| {
            Box::new(super::reply::unavailable(
                "too many requests wait for the log; retry later, or raise ingest.waiting_bytes_max",
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn bytes_of_all_requests_are_limited() {
        let admission = Admission::new(4 << 10, 2 << 10);
        let length = |bytes: &'static str| {
            let header = (header::CONTENT_LENGTH, HeaderValue::from_static(bytes));
            [header].into_iter().collect::<HeaderMap>()
        };
        let chunked = HeaderMap::new();
        let first = admission.admit(&chunked).unwrap();
        let second = admission.admit(&length("1025")).unwrap();
        assert_eq!(admission.admit(&length("1")).unwrap_err().status, 503);
        drop(first);
        let third = admission.admit(&length("10")).unwrap();
        assert!(admission.admit(&length("1025")).is_err());
        drop((second, third));
        // A body beyond the limit is admitted, so that the answer is 413.
        assert!(admission.admit(&length("99999999999")).is_ok());
        assert!(Admission::new(0, 1 << 20).admit(&chunked).is_ok());
    }
}
