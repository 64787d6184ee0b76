//! One connection to a server, before the PostgreSQL protocol: socket, socket options and TLS.
//!
//! Both kinds of connections use it, so that they have the same protection and the same time limits.

use super::tls::{self, SslMode, SslNegotiation, TlsSettings};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// An idle connection to a host that is gone ends after about this time plus the probes: 5 s + 3 × 2 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 3;
/// A connection whose sent data is not acknowledged for this time ends.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(12);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Host {
    pub(super) place: Place,
    pub(super) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Tcp {
        name: String,
        /// Connects to this address instead of resolving the name (`hostaddr`).
        address: Option<IpAddr>,
    },
    Unix(PathBuf),
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.place {
            Place::Tcp { name, .. } => write!(f, "{name}:{}", self.port),
            Place::Unix(path) => write!(f, "{}:{}", path.display(), self.port),
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection.
pub(in super::super) struct Link {
    io: Box<dyn Io>,
    /// Data of the channel binding, if the connection uses TLS.
    end_point: Option<Vec<u8>>,
    guard: Guard,
}

/// Refuses the request of a server to send the password in clear over a connection without TLS: another process could
/// have taken the server's place, or could read it.
#[derive(Debug)]
enum Guard {
    Off,
    /// The first bytes from the server.
    Watching(Vec<u8>),
}

/// The server requested the password in clear.
#[derive(Debug, thiserror::Error)]
#[error("the server requests the password in clear, and the connection does not use TLS")]
pub(in super::super) struct ClearPassword;

/// Why a connection could not be established.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("cannot connect")]
    Io(#[from] io::Error),
    #[error("the server does not support TLS")]
    NoTls,
    #[error("{} is not a valid host name for TLS", .0)]
    Name(String),
    #[error("{}", .0.reason)]
    Settings(tls::Unusable),
}

impl Link {
    /// Connects, and starts TLS according to the settings.
    pub(super) async fn open(host: &Host, settings: &TlsSettings, allow_clear: bool) -> Result<Self, LinkError> {
        let guard = if allow_clear {
            Guard::Off
        } else {
            Guard::Watching(Vec::new())
        };
        let tcp = match &host.place {
            Place::Unix(path) => {
                let path = path.join(format!(".s.PGSQL.{}", host.port));
                // The kernel protects the socket, so TLS is not used, as in libpq.
                return Ok(Link {
                    io: Box::new(UnixStream::connect(path).await?),
                    end_point: None,
                    guard: Guard::Off,
                });
            }
            Place::Tcp { address: Some(ip), .. } => TcpStream::connect((*ip, host.port)).await?,
            Place::Tcp { name, .. } => TcpStream::connect((name.as_str(), host.port)).await?,
        };
        limit_silence(&tcp)?;
        let plain = |tcp| Link {
            io: Box::new(tcp),
            end_point: None,
            guard,
        };
        if settings.mode == SslMode::Disable {
            return Ok(plain(tcp));
        }
        let config = settings.client_config().map_err(LinkError::Settings)?;
        let mut tcp = tcp;
        if settings.negotiation == SslNegotiation::Postgres {
            let mut request = BytesMut::new();
            frontend::ssl_request(&mut request);
            tcp.write_all(&request).await?;
            // Exactly one byte is read: further bytes before the handshake could come from another sender.
            if tcp.read_u8().await? != b'S' {
                if settings.mode == SslMode::Prefer {
                    let is_local = tcp.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
                    if !is_local {
                        tracing::warn!(%host, "connection is not encrypted: the server does not support TLS");
                    }
                    return Ok(plain(tcp));
                }
                return Err(LinkError::NoTls);
            }
        }
        let Place::Tcp { name, .. } = &host.place else {
            return Err(LinkError::NoTls);
        };
        let name = ServerName::try_from(name.clone()).map_err(|_| LinkError::Name(name.clone()))?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let end_point = certificates.and_then(<[_]>::first).and_then(tls::server_end_point);
        Ok(Link {
            io: Box::new(stream),
            end_point,
            guard: Guard::Off,
        })
    }

    /// A connection over a stream in memory.
    #[cfg(test)]
    pub(in super::super) fn over(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Link {
            io: Box::new(io),
            end_point: None,
            guard: Guard::Off,
        }
    }

    /// Data of the channel binding `tls-server-end-point`.
    pub(in super::super) fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }
}

/// Sets the socket options that end a connection to a host that is gone.
fn limit_silence(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = socket2::SockRef::from(tcp);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(())
}

impl Guard {
    /// Checks the next bytes from the server.
    fn check(&mut self, read: &[u8]) -> io::Result<()> {
        // AuthenticationCleartextPassword: the tag, a length of eight, and the code three.
        const REQUEST: [u8; 9] = [b'R', 0, 0, 0, 8, 0, 0, 0, 3];
        let Guard::Watching(first) = self else { return Ok(()) };
        let missing = REQUEST.len().saturating_sub(first.len());
        first.extend(read.iter().take(missing));
        if first.len() < REQUEST.len() && REQUEST.starts_with(first) {
            return Ok(());
        }
        let is_request = first.as_slice() == REQUEST;
        *self = Guard::Off;
        if is_request {
            return Err(io::Error::other(ClearPassword));
        }
        Ok(())
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(context, buffer))?;
        Poll::Ready(this.guard.check(buffer.filled().get(before..).unwrap_or_default()))
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}

impl TlsStream for Link {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.end_point {
            Some(data) => ChannelBinding::tls_server_end_point(data.clone()),
            None => ChannelBinding::none(),
        }
    }
}

/// Hands a connection to `tokio_postgres`, which then does not negotiate TLS itself.
pub(super) struct Established;

impl TlsConnect<Link> for Established {
    type Stream = Link;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Link, Self::Error>>;

    fn connect(self, link: Link) -> Self::Future {
        std::future::ready(Ok(link))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_for_a_password_in_clear_is_refused_however_it_arrives() {
        const REQUEST: [u8; 9] = [b'R', 0, 0, 0, 8, 0, 0, 0, 3];
        for split in 1..REQUEST.len() {
            let mut guard = Guard::Watching(Vec::new());
            guard.check(&REQUEST[..split]).unwrap();
            assert!(guard.check(&REQUEST[split..]).is_err(), "split at {split}");
        }
        let mut guard = Guard::Watching(Vec::new());
        guard.check(&[b'R', 0, 0, 0, 12, 0, 0, 0, 5, 1, 2, 3, 4]).unwrap();
        // Later bytes, such as a row, are not inspected.
        guard.check(&REQUEST).unwrap();
    }
}
