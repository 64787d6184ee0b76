//! Limits of a listener and its connections.

use super::descriptors;
use std::time::Duration;

/// Limits of a listener and its connections. The defaults are for the listeners of backends and operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of open connections. Further connections wait in the backlog of the socket.
    pub connections: usize,
    /// Maximum share of the process's file descriptors, in percent. The sum over all listeners of a process leaves
    /// descriptors for the log and the stores.
    pub descriptors_percent: usize,
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time from the first byte of a request head to its end. For the first request, the time from the opening of the
    /// connection.
    pub head: Duration,
    /// Maximum bytes of a request head.
    pub head_bytes: u32,
    /// Time in which a request body must arrive.
    pub body: Duration,
    /// Time from the end of the head to the start of the response. `None`: the routes have their own limit.
    pub response: Option<Duration>,
    /// Time in which the client must read each piece of a response ([`super::bodies::PIECE_BYTES`]).
    pub write: Duration,
    /// Time between two requests of a connection.
    pub idle: Duration,
    /// Maximum concurrent requests per HTTP/2 connection.
    pub streams: u32,
    /// Time for open requests to complete after the drain has started.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1_024,
            descriptors_percent: 10,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(10),
            head_bytes: 64 * 1024,
            body: Duration::from_secs(30),
            response: Some(Duration::from_secs(60)),
            write: Duration::from_secs(60),
            idle: Duration::from_secs(75),
            streams: 128,
            drain: Duration::from_secs(5),
        }
    }
}

impl Limits {
    /// Returns the maximum number of connections if the process may open `descriptors` files: the configured number or
    /// the listener's share, whichever is smaller.
    pub fn connections_under(&self, descriptors: usize) -> usize {
        let share = descriptors.saturating_mul(self.descriptors_percent) / 100;
        self.connections.min(share.max(CONNECTIONS_MIN))
    }

    /// Returns the maximum number of connections in this process.
    pub(super) fn connections_here(&self) -> usize {
        self.connections_under(descriptors::limit())
    }
}

/// Minimum number of connections of a listener, even if the limit of open files is very low.
const CONNECTIONS_MIN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_of_descriptors_bounds_connections() {
        let limits = Limits {
            connections: 20_000,
            descriptors_percent: 50,
            ..Limits::default()
        };
        assert_eq!(limits.connections_under(1_048_576), 20_000);
        assert_eq!(limits.connections_under(300), 150);
        assert_eq!(limits.connections_under(3), CONNECTIONS_MIN);
    }
}
