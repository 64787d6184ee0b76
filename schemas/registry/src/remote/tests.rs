//! Client tests with HTTP servers on loopback.

use super::*;
use crate::embedded::{Embedded, tests::memory_log};
use crate::rest::{router, tests::serve};
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

fn config(address: std::net::SocketAddr) -> Config {
    Config::new(&format!("http://{address}/"))
}

#[test]
fn remote_and_embedded_registry_agree() {
    let embedded = Arc::new(Embedded::open(memory_log()).unwrap());
    let served = serve(Router::new().nest("/apis/ccompat/v7", router(embedded.clone())));
    let remote = Remote::new(Config::new(&format!("http://{}/apis/ccompat/v7/", served.address))).unwrap();
    let long = "{\"type\":\"long\"}";
    let id = remote.register("a/b c", long).unwrap();
    assert_eq!(embedded.register("a/b c", long), Ok(id));
    assert_eq!(remote.by_id(id), embedded.by_id(id));
    assert_eq!(remote.lookup("a/b c", long), embedded.lookup("a/b c", long));
    assert_eq!(remote.latest("a/b c"), embedded.latest("a/b c"));
    assert_eq!(
        remote.version("a/b c", Version::Number(1)),
        embedded.version("a/b c", Version::Number(1))
    );
    assert_eq!(remote.versions("a/b c"), Ok(vec![1]));
    assert_eq!(remote.subjects(), embedded.subjects());
    assert_eq!(remote.uses(id), embedded.uses(id));
    assert_eq!(remote.level(None), Ok(Some(Level::Backward)));
    assert_eq!(remote.level(Some("a/b c")), Ok(None));
    remote.set_level(Some("a/b c"), Level::FullTransitive).unwrap();
    assert_eq!(embedded.level(Some("a/b c")), Ok(Some(Level::FullTransitive)));
    let conflicts = remote.test_compatibility("a/b c", Version::Latest, "\"int\"").unwrap();
    assert_eq!(
        conflicts,
        ["new schema cannot read version 1: writer's long cannot be read as int"]
    );
    assert_eq!(remote.test_compatibility("a/b c", Version::Latest, long), Ok(vec![]));

    for (found, code) in [
        (remote.versions("x").map(drop), 40401),
        (remote.lookup("x", long).map(drop), 40401),
        (remote.version("a/b c", Version::Number(5)).map(drop), 40402),
        (remote.by_id(SchemaId(99)).map(drop), 40403),
        (remote.uses(SchemaId(99)).map(drop), 40403),
        (remote.lookup("a/b c", "\"bytes\"").map(drop), 40403),
        (remote.register("a/b c", "\"string\"").map(drop), 409),
        (remote.register("a/b c", "\"nothing\"").map(drop), 42201),
    ] {
        assert_eq!(found.unwrap_err().code(), code);
    }
}

#[test]
fn busy_registry_is_retried_a_limited_number_of_times() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let busy_twice = move || {
        let call = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            match call {
                0 => (StatusCode::SERVICE_UNAVAILABLE, "not yet".to_owned()),
                1 => (StatusCode::TOO_MANY_REQUESTS, String::new()),
                _ => (StatusCode::OK, "[\"a\"]".to_owned()),
            }
        }
    };
    let served = serve(Router::new().fallback(busy_twice));
    let remote = Remote::new(config(served.address)).unwrap();
    assert_eq!(remote.subjects(), Ok(vec!["a".to_owned()]));
    assert_eq!(calls.load(Ordering::SeqCst), 3);

    let mut few = config(served.address);
    few.attempts = 2;
    let remote = Remote::new(few).unwrap();
    calls.store(0, Ordering::SeqCst);
    let error = remote.by_id(SchemaId(1)).unwrap_err();
    assert_eq!(
        (calls.load(Ordering::SeqCst), error.action()),
        (2, event_log::ErrorAction::Retry)
    );
}

#[test]
fn rejection_is_not_retried() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let refuse = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        async { (StatusCode::UNAUTHORIZED, "{\"error_code\":401,\"message\":\"no\"}") }
    };
    let served = serve(Router::new().fallback(refuse));
    let mut config = config(served.address);
    config.auth = Auth::Basic {
        user: "u".to_owned(),
        password: "secret".to_owned(),
    };
    let remote = Remote::new(config.clone()).unwrap();
    let error = remote.subjects().unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert!(matches!(
        remote.register("a", "\"int\"").unwrap_err(),
        Error::Unauthorized { .. }
    ));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    assert!(!format!("{error} {error:?} {config:?} {}", remote.description()).contains("secret"));
}

#[test]
fn credentials_are_sent_with_every_kind_of_call() {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let record = seen.clone();
    let answer = move |headers: HeaderMap| {
        let header = headers
            .get("authorization")
            .map(|value| value.to_str().unwrap().to_owned());
        record.lock().unwrap().push(header.unwrap_or_default());
        async { "{\"id\":1,\"schema\":\"\\\"int\\\"\"}" }
    };
    let served = serve(Router::new().fallback(answer));
    for (auth, header) in [
        (
            Auth::Basic {
                user: "u".to_owned(),
                password: "p".to_owned(),
            },
            "Basic dTpw",
        ),
        (Auth::Bearer("t".to_owned()), "Bearer t"),
        (Auth::None, ""),
    ] {
        let mut config = config(served.address);
        config.auth = auth;
        let remote = Remote::new(config).unwrap();
        remote.by_id(SchemaId(1)).unwrap();
        remote.set_level(None, Level::Full).unwrap();
        assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), [header, header]);
    }
}

#[test]
fn unreachable_registry_is_named() {
    // The listener is closed, so its port refuses connections.
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut config = config(address);
    config.attempts = 2;
    let remote = Remote::new(config).unwrap();
    for error in [remote.by_id(SchemaId(1)).unwrap_err(), remote.subjects().unwrap_err()] {
        assert_eq!(error.code(), 50001);
        let text = error.to_string();
        assert!(
            text.contains(&address.to_string()) && text.contains("refused"),
            "{text}"
        );
    }
}

#[test]
fn unexpected_response_is_quoted() {
    let served = serve(Router::new().fallback(|| async { "<html>welcome</html>" }));
    let remote = Remote::new(config(served.address)).unwrap();
    for error in [remote.by_id(SchemaId(1)).unwrap_err(), remote.subjects().unwrap_err()] {
        assert!(matches!(error, Error::Rejected { .. }), "{error}");
    }
    let other = serve(Router::new().fallback(|| async { "{\"hello\":1}" }));
    let remote = Remote::new(config(other.address)).unwrap();
    let error = remote.subjects().unwrap_err().to_string();
    assert!(error.contains("unexpected response"), "{error}");
    assert!(remote.register("a", "\"int\"").is_err());
}

#[test]
fn works_wherever_blocking_is_allowed() {
    let served = serve(router(Arc::new(Embedded::open(memory_log()).unwrap())));
    let remote = Arc::new(Remote::new(config(served.address)).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let inside = remote.clone();
        let subjects = tokio::task::spawn_blocking(move || inside.subjects()).await.unwrap();
        assert_eq!(subjects, Ok(vec![]));
        drop(remote);
    });
}

#[test]
fn invalid_urls_are_rejected() {
    for (url, part) in [
        ("registry:8081", "must start with http"),
        ("", "not a valid URL"),
        ("http://user:secret@host", "contains credentials"),
    ] {
        let error = Remote::new(Config::new(url)).err().unwrap().to_string();
        assert!(error.contains(part) && !error.contains("secret"), "{error}");
    }
}
