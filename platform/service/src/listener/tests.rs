//! Tests of listeners with slow and silent clients, TLS, and the drain.

mod certificates;

use super::*;
use axum::body::Bytes;
use axum::extract::Extension;
use axum::extract::rejection::BytesRejection;
use axum::routing::{get, post};
use certificates::Authority;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
/// Preface and empty SETTINGS frame of an HTTP/2 client.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
const BIG: usize = 8 << 20;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Short limits, so that tests with slow clients run quickly.
fn limits() -> Limits {
    Limits {
        handshake: ms(200),
        head: ms(300),
        body: ms(300),
        response: Some(ms(2_000)),
        write: ms(300),
        idle: ms(900),
        drain: ms(60_000),
        ..Limits::default()
    }
}

async fn read_body(body: Result<Bytes, BytesRejection>) -> crate::Problem {
    match body {
        Ok(_) => crate::problem::BAD_REQUEST.detail("complete"),
        Err(error) if is_body_timeout(&error) => crate::problem::BODY_TIMEOUT.detail("slow"),
        Err(_) => crate::problem::INTERNAL.detail("another error"),
    }
}

fn routes() -> Router {
    let name = |peer: Extension<Peer>| async move { peer.is_named("backend.test").to_string() };
    Router::new()
        .route("/", get(|| async { "answered" }))
        .route("/body", post(read_body))
        .route("/big", get(|| async { vec![b'x'; BIG] }))
        .route("/never", get(std::future::pending::<&str>))
        .route("/name", get(name))
}

/// A running listener.
struct Served {
    address: SocketAddr,
    drain: Drain,
    tasks: JoinSet<()>,
}

impl Served {
    fn start(listener: Listener) -> Self {
        Self::with(listener, routes(), Drain::new())
    }

    fn with(listener: Listener, routes: Router, drain: Drain) -> Self {
        let (address, mut tasks) = (listener.address(), JoinSet::new());
        tasks.spawn(listener.run(routes, drain.clone()));
        Served { address, drain, tasks }
    }

    fn plain(limits: Limits) -> Self {
        Self::start(bind().limits(limits))
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

fn bind() -> Listener {
    Listener::bind("test", (Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

/// Reads until the server closes the connection. Returns the response and the elapsed time.
async fn until_closed(mut stream: impl AsyncRead + Unpin) -> (String, Duration) {
    let (began, mut answer) = (Instant::now(), Vec::new());
    let read = tokio::time::timeout(ms(10_000), stream.read_to_end(&mut answer)).await;
    // A reset counts as closed; only a timeout is an error.
    drop(read.expect("the server closes the connection"));
    (String::from_utf8_lossy(&answer).into_owned(), began.elapsed())
}

/// Sends bytes one by one until the server closes the connection.
async fn dribble<S: AsyncRead + AsyncWrite>(stream: S, bytes: &[u8]) -> (String, Duration) {
    let (reader, mut writer) = tokio::io::split(stream);
    let write = async {
        for byte in bytes.iter().cycle() {
            if writer.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(ms(20)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        closed = until_closed(reader) => closed,
        () = write => unreachable!("the writer never ends"),
    }
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    until_closed(stream).await.0
}

#[tokio::test]
async fn silent_and_slow_heads_are_closed() {
    let served = Served::plain(limits());
    let (answer, time) = until_closed(served.connect().await).await;
    assert_eq!(answer, "", "a silent client");
    assert!(time >= ms(250) && time < ms(2_000), "{time:?}");

    let (answer, time) = dribble(served.connect().await, b"GET / HTTP/1.1\r\nx: 1\r\n").await;
    assert_eq!(answer, "", "a head that never ends");
    assert!(time < ms(2_000), "{time:?}");

    let mut stream = served.connect().await;
    stream.write_all(HTTP2).await.unwrap();
    let (_, time) = until_closed(stream).await;
    assert!(time < ms(2_000), "HTTP/2 without a request: {time:?}");
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let served = Served::plain(limits());
    let mut stream = served.connect().await;
    stream.write_all(REQUEST).await.unwrap();
    let (answer, time) = until_closed(stream).await;
    assert!(answer.ends_with("answered"), "{answer}");
    assert!(time >= ms(700) && time < ms(4_000), "{time:?}");

    let mut stream = served.connect().await;
    stream.write_all(REQUEST).await.unwrap();
    assert!(stream.read(&mut [0; 512]).await.unwrap() > 0);
    let (_, time) = dribble(stream, b"GET / HTTP/1.1\r\nx: 1\r\n").await;
    assert!(time < ms(2_000), "a second head that never ends: {time:?}");
}

#[tokio::test]
async fn large_heads_are_rejected() {
    let served = Served::plain(limits());
    let mut stream = served.connect().await;
    let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    drop(stream.write_all(head.as_bytes()).await);
    let (answer, _) = until_closed(stream).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn slow_body_is_a_problem() {
    let served = Served::plain(limits());
    let mut stream = served.connect().await;
    let head = b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 10000\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let (answer, time) = dribble(stream, b"x").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("/problems/body-timeout"), "{answer}");
    assert!(time < ms(2_000), "{time:?}");
}

#[tokio::test]
async fn response_that_takes_too_long_is_a_problem() {
    let limits = Limits {
        response: Some(ms(50)),
        ..limits()
    };
    let served = Served::plain(limits);
    let answer = ask(&mut served.connect().await, "/never").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("/problems/timeout"),
        "{answer}"
    );
}

#[tokio::test]
async fn client_that_does_not_read_is_closed() {
    let served = Served::plain(limits());
    let mut stream = served.connect().await;
    stream.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    // The socket buffers accept a part of the response; the rest remains in the server until the limit expires.
    tokio::time::sleep(ms(1_500)).await;
    let mut closed = Vec::new();
    drop(
        tokio::time::timeout(ms(5_000), stream.read_to_end(&mut closed))
            .await
            .expect("closed"),
    );
    assert!(closed.len() < BIG, "the response was cut");
}

#[tokio::test]
async fn slow_http2_streams_are_ended() {
    let served = Served::plain(limits());
    let mut tasks = JoinSet::new();
    let io = TokioIo::new(served.connect().await);
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    tasks.spawn(async move { drop(connection.await) });
    let never = futures_util::stream::pending::<Result<hyper::body::Frame<Bytes>, Infallible>>();
    let request = hyper::Request::post("http://x/body")
        .body(StreamBody::new(never))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 408);

    // The client allows one byte to be sent and reads nothing.
    let io = TokioIo::new(served.connect().await);
    let mut http = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut client, connection) = http.initial_stream_window_size(1).handshake(io).await.unwrap();
    let request = hyper::Request::get("http://x/big").body(Empty::<Bytes>::new()).unwrap();
    let asked = async {
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        std::future::pending::<()>().await;
        drop(response);
    };
    let closed = tokio::time::timeout(ms(5_000), async {
        tokio::select! {
            ended = connection => drop(ended),
            () = asked => {}
        }
    });
    closed.await.expect("the server closes the connection");
    tasks.shutdown().await;
}

#[tokio::test]
async fn http2_responses_arrive_whole() {
    let served = Served::plain(limits());
    let mut tasks = JoinSet::new();
    let io = TokioIo::new(served.connect().await);
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    tasks.spawn(async move { drop(connection.await) });
    let request = hyper::Request::get("http://x/big").body(Empty::<Bytes>::new()).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.headers()["content-length"], BIG.to_string());
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), BIG);
    tasks.shutdown().await;
}

/// Types of the frames that an HTTP/2 server has sent.
fn frame_types(mut bytes: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        types.push(*kind);
        let length = u32::from_be_bytes([0, *a, *b, *c]);
        bytes = rest.get(usize::try_from(length).unwrap()..).unwrap_or_default();
    }
    types
}

#[tokio::test]
async fn idle_and_draining_http2_connections_end_with_goaway() {
    const GOAWAY: u8 = 7;
    /// HEADERS of stream 1 that end it: GET / of http://x.
    const GET: &[u8] = b"\x00\x00\x06\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x01x";
    for drains in [false, true] {
        let served = Served::plain(limits());
        let mut stream = served.connect().await;
        stream.write_all(HTTP2).await.unwrap();
        stream.write_all(GET).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(8).any(|window| window == b"answered") {
            let more = tokio::time::timeout(ms(5_000), stream.read_buf(&mut answer)).await;
            assert_ne!(more.expect("an answer").unwrap(), 0, "closed");
        }
        if drains {
            served.drain.start();
        }
        let closed = tokio::time::timeout(ms(10_000), stream.read_to_end(&mut answer)).await;
        drop(closed.expect("the server closes the connection"));
        let types = frame_types(&answer);
        assert!(types.contains(&GOAWAY), "drains: {drains}, frames: {types:?}");
    }
}

#[tokio::test]
async fn silent_connections_make_room_for_others() {
    let served = Served::plain(Limits {
        connections: 8,
        ..limits()
    });
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(served.connect().await);
    }
    let began = Instant::now();
    let answer = ask(&mut served.connect().await, "/").await;
    assert!(answer.ends_with("answered"), "{answer}");
    // 50 connections in groups of 8.
    assert!(began.elapsed() < ms(8_000), "{:?}", began.elapsed());
}

#[tokio::test]
async fn many_connections_wait_in_the_backlog() {
    let listener = bind();
    // No connection is accepted yet.
    let mut waiting = Vec::new();
    for _ in 0..500 {
        let connected = tokio::time::timeout(ms(900), TcpStream::connect(listener.address())).await;
        waiting.push(connected.expect("no connection waits for a retransmission").unwrap());
    }
}

#[tokio::test]
async fn drain_answers_requests_and_closes_idle_connections() {
    let drain = Drain::new();
    let (arrived, mut arrivals) = tokio::sync::mpsc::channel(1);
    let waits = drain.clone();
    let wait = move || {
        let (arrived, waits) = (arrived.clone(), waits.clone());
        async move {
            arrived.send(()).await.unwrap();
            waits.started().await;
            "answered"
        }
    };
    let served = Served::with(bind(), Router::new().route("/", get(wait)), drain);
    let mut idle = served.connect().await;
    let mut stream = served.connect().await;
    stream.write_all(REQUEST).await.unwrap();
    arrivals.recv().await.unwrap();
    served.drain.start();
    let (answer, _) = until_closed(stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("answered"),
        "{answer}"
    );
    served.tasks.join_all().await;
    // Closed, or reset if it had not been accepted yet.
    assert!(!matches!(idle.read(&mut [0; 8]).await, Ok(1..)));
    assert!(TcpStream::connect(idle.peer_addr().unwrap()).await.is_err());
}

#[tokio::test]
async fn drain_timeout_aborts_connections_and_streams() {
    let served = Served::plain(Limits {
        drain: ms(50),
        ..limits()
    });
    let mut http1 = served.connect().await;
    http1
        .write_all(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let io = TokioIo::new(served.connect().await);
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let request = hyper::Request::get("http://x/never")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let mut sent = std::pin::pin!(client.send_request(request));
    assert!(tokio::time::timeout(ms(100), sent.as_mut()).await.is_err());
    served.drain.start();
    served.tasks.join_all().await;
    assert!(sent.await.is_err());
    assert_eq!(until_closed(http1).await.0, "");
    tasks.shutdown().await;
}

#[tokio::test]
async fn address_in_use_is_named() {
    let first = bind();
    let error = Listener::bind("test", first.address()).err().unwrap();
    assert!(error.to_string().contains(&first.address().to_string()), "{error}");
}

#[tokio::test]
async fn tls_clients_that_send_nothing_are_closed() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let files = authority.listener_files(dir.path(), &["localhost"]);
    let served = Served::start(bind().tls(Some(&files)).unwrap().limits(limits()));
    let (_, time) = until_closed(served.connect().await).await;
    assert!(time < ms(2_000), "no handshake: {time:?}");
    let (_, time) = dribble(served.connect().await, b"\x16\x03\x01\x02\x00").await;
    assert!(time < ms(2_000), "a handshake that never ends: {time:?}");
    let stream = authority.client(None).connect(&served, "localhost").await.unwrap();
    let (_, time) = until_closed(stream).await;
    assert!(
        time >= ms(250) && time < ms(2_000),
        "silent after the handshake: {time:?}"
    );
    let stream = authority.client(None).connect(&served, "localhost").await.unwrap();
    let (_, time) = dribble(stream, b"GET / HTTP/1.1\r\nx: 1\r\n").await;
    assert!(time < ms(2_000), "a head that never ends: {time:?}");
    let mut stream = authority.client(None).connect(&served, "localhost").await.unwrap();
    assert!(ask(&mut stream, "/").await.ends_with("answered"));
}

#[tokio::test]
async fn clients_reject_expired_and_foreign_certificates() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let files = authority.listener_files(dir.path(), &["localhost"]);
    let served = Served::start(bind().tls(Some(&files)).unwrap());
    let client = authority.client(None);
    assert!(client.connect(&served, "localhost").await.is_ok());
    let error = client.connect(&served, "other.test").await.err().unwrap();
    assert!(error.contains("not valid for name"), "{error}");
    let error = Authority::new()
        .client(None)
        .connect(&served, "localhost")
        .await
        .err()
        .unwrap();
    assert!(error.contains("UnknownIssuer"), "{error}");

    let files = authority.expired_files(dir.path(), &["localhost"]);
    let served = Served::start(bind().tls(Some(&files)).unwrap());
    let error = client.connect(&served, "localhost").await.err().unwrap();
    assert!(error.contains("expired"), "{error}");
}

#[tokio::test]
async fn client_certificates_are_verified() {
    let (authority, other) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let files = TlsConfig {
        client_ca: Some(authority.ca_file(dir.path())),
        ..authority.listener_files(dir.path(), &["localhost"])
    };
    let served = Served::start(bind().tls(Some(&files)).unwrap());
    let name = async |client: certificates::Client| {
        // With TLS 1.3 the client detects the rejection at its first read.
        let mut stream = client.connect(&served, "localhost").await.ok()?;
        stream
            .write_all(b"GET /name HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .ok()?;
        let (answer, _) = until_closed(stream).await;
        answer.rsplit_once('\n').map(|(_, body)| body.to_owned())
    };
    let is_named = |name: Option<String>| name.as_deref() == Some("true");
    assert!(is_named(
        name(authority.client(Some(authority.issue(&["backend.test"])))).await
    ));
    let misnamed = name(authority.client(Some(authority.issue(&["another.test"])))).await;
    assert_eq!(misnamed.as_deref(), Some("false"));
    assert_eq!(name(authority.client(None)).await, None, "no certificate");
    assert_eq!(
        name(authority.client(Some(other.issue(&["backend.test"])))).await,
        None,
        "another CA"
    );
    let expired = authority.issue_expired(&["backend.test"]);
    assert_eq!(name(authority.client(Some(expired))).await, None, "expired");
}

#[tokio::test]
async fn changed_certificate_is_reloaded() {
    let (old, new) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let files = old.listener_files(dir.path(), &["localhost"]);
    let mut listener = bind().tls(Some(&files)).unwrap();
    listener.reload_interval = ms(20);
    let served = Served::start(listener);
    let mut kept = old.client(None).connect(&served, "localhost").await.unwrap();

    // A certificate without its key: the previous pair stays in use.
    let issued = new.issue(&["localhost"]);
    std::fs::write(&files.certificate, &issued.certificate).unwrap();
    tokio::time::sleep(ms(200)).await;
    assert!(old.client(None).connect(&served, "localhost").await.is_ok());

    std::fs::write(&files.key, &issued.key).unwrap();
    let changed = async {
        while new.client(None).connect(&served, "localhost").await.is_err() {
            tokio::time::sleep(ms(20)).await;
        }
    };
    tokio::time::timeout(ms(5_000), changed)
        .await
        .expect("the certificate is reloaded");
    assert!(
        ask(&mut kept, "/").await.ends_with("answered"),
        "open connections continue"
    );
}

/// A file whose readers block, as one of a file server that does not answer. Dropping it releases them.
struct BlockingFile(std::path::PathBuf);

impl BlockingFile {
    fn replace(path: &std::path::Path) -> Self {
        std::fs::remove_file(path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
        BlockingFile(path.to_owned())
    }
}

impl Drop for BlockingFile {
    fn drop(&mut self) {
        let writer = std::fs::OpenOptions::new().read(true).write(true).open(&self.0);
        drop(std::fs::remove_file(&self.0));
        drop(writer);
    }
}

#[tokio::test]
async fn file_that_blocks_its_readers_does_not_stop_accepting() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let files = authority.listener_files(dir.path(), &["localhost"]);
    let mut listener = bind().tls(Some(&files)).unwrap();
    listener.reload_interval = ms(20);
    let served = Served::start(listener);
    let blocking = BlockingFile::replace(&files.key);
    tokio::time::sleep(ms(200)).await;
    let client = authority.client(None);
    let answered = async {
        let mut stream = client.connect(&served, "localhost").await.unwrap();
        ask(&mut stream, "/").await
    };
    let answer = tokio::time::timeout(ms(5_000), answered).await;
    assert!(answer.expect("connections are accepted").ends_with("answered"));
    served.drain.start();
    let ended = tokio::time::timeout(ms(5_000), served.tasks.join_all()).await;
    ended.expect("the drain does not wait for the file");
    drop(blocking);
}

#[test]
fn unusable_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let good = authority.listener_files(dir.path(), &["localhost"]);
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let other_key = dir.path().join("other.key");
    std::fs::write(&other_key, authority.issue(&["localhost"]).key).unwrap();
    let rejected = |files: TlsConfig| chain(&Tls::load(&files).err().expect("unusable"));
    let absent = TlsConfig {
        key: dir.path().join("absent"),
        ..good.clone()
    };
    assert!(rejected(absent).contains("absent"));
    let without = TlsConfig {
        certificate: empty.clone(),
        ..good.clone()
    };
    assert!(rejected(without).contains("empty.pem contains no certificate"));
    let without_key = TlsConfig {
        key: empty,
        ..good.clone()
    };
    assert!(rejected(without_key).contains("contains no private key"));
    let mismatch = TlsConfig { key: other_key, ..good };
    assert!(rejected(mismatch).contains("cannot be used together"));
}
