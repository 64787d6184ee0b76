//! Tests the role that each route and each operation of the admin listener requires.

use super::*;
use crate::operations_api::{
    DeadLettersRequest, LagRequest, OffsetsAction, OffsetsRequest, PATH, Position, RedriveRequest, ReplayRequest,
    Request, TailRequest,
};
use axum::body::Body;
use axum::http::{Method, StatusCode};
use service::Secret;
use service::access::{Role as Access, TokenConfig, Tokens};
use service::admin::{Access as Required, Endpoint};
use tower::ServiceExt;

/// Method, path and minimum role of each route; `None` for everyone. A new route must be added here and to the table of
/// roles in docs/guides/listeners.md.
const ROUTES: [(&str, &str, Option<Access>); 26] = [
    ("GET", "/healthz", None),
    ("GET", "/readyz", None),
    ("GET", "/metrics", Some(Access::Metrics)),
    ("POST", "/v1/operations", Some(Access::Viewer)),
    ("GET", "/v1/state", Some(Access::Viewer)),
    ("GET", "/v1/state/{processor}/{store}", Some(Access::Viewer)),
    ("GET", "/v1/state/{processor}/{store}/scan", Some(Access::Viewer)),
    ("GET", "/connectors", Some(Access::Viewer)),
    ("GET", "/connectors/{name}", Some(Access::Viewer)),
    ("GET", "/connectors/{name}/config", Some(Access::Viewer)),
    ("GET", "/connectors/{name}/status", Some(Access::Viewer)),
    ("GET", "/connectors/{name}/tasks", Some(Access::Viewer)),
    ("GET", "/connectors/{name}/tasks/{task}/status", Some(Access::Viewer)),
    ("GET", "/connectors/{name}/offsets", Some(Access::Viewer)),
    ("POST", "/connectors", Some(Access::Operator)),
    ("DELETE", "/connectors/{name}", Some(Access::Operator)),
    ("PUT", "/connectors/{name}/config", Some(Access::Operator)),
    ("PUT", "/connectors/{name}/pause", Some(Access::Operator)),
    ("PUT", "/connectors/{name}/stop", Some(Access::Operator)),
    ("PUT", "/connectors/{name}/resume", Some(Access::Operator)),
    ("POST", "/connectors/{name}/restart", Some(Access::Operator)),
    (
        "POST",
        "/connectors/{name}/tasks/{task}/restart",
        Some(Access::Operator),
    ),
    ("POST", "/connectors/{name}/resync", Some(Access::Operator)),
    ("POST", "/connectors/{name}/snapshot", Some(Access::Operator)),
    ("GET", "/v1/issuers", Some(Access::Viewer)),
    ("GET", "/openapi.json", None),
];

fn token(role: Access) -> String {
    format!("token-with-the-role-{}", role.name())
}

/// All routes of a node whose log is not open yet.
fn all_routes() -> Routes {
    let tasks = Tasks::new();
    let admin = Admin {
        readiness: Readiness::new(),
        metrics: telemetry::metrics(),
        drain: tasks.drain(),
    };
    let worker = Worker {
        id: "views-1".to_owned(),
        connectors: RunningConnectors::default(),
    };
    let routes = routes(Arc::default(), Arc::default(), worker);
    admin.all_routes(routes.merge(issuers_api::routes(None)))
}

fn protected() -> axum::Router {
    let config = |role: Access| TokenConfig {
        name: role.name().to_owned(),
        role,
        token: Some(Secret::new(token(role))),
        file: None,
    };
    let tokens = Tokens::load(&Access::ALL.map(config)).unwrap();
    all_routes().protected(Arc::new(tokens))
}

async fn status(router: &axum::Router, endpoint: &Endpoint, authorization: Option<String>, body: &str) -> StatusCode {
    let path = endpoint.path.replace(['{', '}'], "");
    let method: Method = endpoint.method.parse().unwrap();
    let mut request = axum::http::Request::builder().method(method).uri(path);
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    let request = request
        .header("content-type", "application/json")
        .body(Body::from(body.to_owned()));
    let status = router.clone().oneshot(request.unwrap()).await.unwrap().status();
    assert!(
        endpoint.statuses().any(|documented| status == documented),
        "{status} is not documented: {endpoint:?}"
    );
    status
}

#[tokio::test]
async fn each_route_requires_its_role() {
    let routes = all_routes();
    let declared: Vec<_> = routes
        .endpoints()
        .iter()
        .map(|endpoint| match endpoint.access {
            Required::Public | Required::Credential => (endpoint.method, endpoint.path, None),
            Required::Role(role) => (endpoint.method, endpoint.path, Some(role)),
        })
        .collect();
    assert_eq!(declared, ROUTES);

    let router = protected();
    for endpoint in routes.endpoints() {
        for given in [
            None,
            Some("Bearer a-token-that-is-not-valid".to_owned()),
            Some("Basic YTpi".to_owned()),
        ] {
            let is_public = endpoint.access == Required::Public;
            let status = status(&router, endpoint, given.clone(), "\"topics\"").await;
            assert_eq!(
                status != StatusCode::UNAUTHORIZED,
                is_public,
                "{endpoint:?} with {given:?}: {status}"
            );
        }
        for role in Access::ALL {
            let is_allowed = match endpoint.access {
                Required::Public | Required::Credential => true,
                Required::Role(needed) => role >= needed,
            };
            let given = Some(format!("bearer {}", token(role)));
            let status = status(&router, endpoint, given, "\"topics\"").await;
            assert_eq!(
                status != StatusCode::FORBIDDEN,
                is_allowed,
                "{endpoint:?} as {role:?}: {status}"
            );
            assert_ne!(status, StatusCode::UNAUTHORIZED, "{endpoint:?} as {role:?}");
        }
    }
}

/// Each operation with the minimum role that may request it. `Request::role` has no wildcard arm, so it cannot omit a
/// new operation.
fn operations() -> Vec<(Request, Access)> {
    let tail = TailRequest {
        topic: "t".to_owned(),
        partition: None,
        from: Position::Unbounded,
        key: None,
        limit: 1,
        follow: false,
        uncommitted: false,
    };
    let replay = |dry_run| {
        Request::Replay(ReplayRequest {
            topic: "t".to_owned(),
            to: "u".to_owned(),
            create: false,
            partition: None,
            from: Position::Unbounded,
            until: Position::Unbounded,
            key: None,
            rate: None,
            dry_run,
        })
    };
    let offsets = |action| {
        Request::Offsets(OffsetsRequest {
            processor: "p".to_owned(),
            store: "s".to_owned(),
            partition: 0,
            action,
        })
    };
    let redrive = |dry_run| {
        Request::Redrive(RedriveRequest {
            topic: "t.dlq".to_owned(),
            filter: Default::default(),
            limit: None,
            again: false,
            dry_run,
        })
    };
    let dead_letters = DeadLettersRequest {
        topic: "t.dlq".to_owned(),
        filter: Default::default(),
        limit: 1,
    };
    vec![
        (Request::DeadLetterTopics(String::new()), Access::Viewer),
        (Request::DeadLetters(dead_letters), Access::Viewer),
        (redrive(true), Access::Viewer),
        (redrive(false), Access::Operator),
        (Request::Topics, Access::Viewer),
        (Request::TopicNames, Access::Viewer),
        (Request::Topic("t".to_owned()), Access::Viewer),
        (Request::Tail(tail), Access::Viewer),
        (Request::Lag(LagRequest::default()), Access::Viewer),
        (replay(true), Access::Viewer),
        (replay(false), Access::Operator),
        (offsets(OffsetsAction::Show), Access::Viewer),
        (offsets(OffsetsAction::Accept(Vec::new())), Access::Operator),
        (offsets(OffsetsAction::ResetToEarliest(Vec::new())), Access::Operator),
        (offsets(OffsetsAction::Restore), Access::Operator),
        (offsets(OffsetsAction::Skip), Access::Operator),
    ]
}

#[tokio::test]
async fn each_operation_requires_its_role() {
    let router = protected();
    let routes = all_routes();
    let endpoint = routes
        .endpoints()
        .iter()
        .find(|endpoint| endpoint.path == PATH)
        .unwrap();
    for (request, needed) in operations() {
        let body = serde_json::to_string(&request).unwrap();
        for role in Access::ALL {
            let status = status(&router, endpoint, Some(format!("Bearer {}", token(role))), &body).await;
            // The log of this node is not open, so allowed requests are answered with 503.
            let expected = if role >= needed {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::FORBIDDEN
            };
            assert_eq!(status, expected, "{body} as {role:?}");
        }
    }
}

/// Each reference of a document to one of its schemas.
fn references(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(object) => {
            found.extend(object.get("$ref").and_then(|at| at.as_str()).map(str::to_owned));
            object.values().for_each(|value| references(value, found));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn openapi_document_has_each_route_with_its_role() {
    let request = axum::http::Request::get("/openapi.json").body(Body::empty()).unwrap();
    let response = protected().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let mut operations = 0;
    for item in document["paths"].as_object().unwrap().values() {
        operations += item.as_object().unwrap().len();
    }
    assert_eq!(operations, ROUTES.len());
    for (method, path, role) in ROUTES {
        let operation = &document["paths"][path][method.to_lowercase()];
        let expected = role.map(Access::name);
        assert_eq!(operation["x-trunkline-role"].as_str(), expected, "{method} {path}");
        assert_ne!(operation["summary"], "", "{method} {path}");
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn without_tokens_only_local_hosts_have_access() {
    let router = all_routes().protected(Arc::new(Tokens::load(&[]).unwrap()));
    let status = async |host: &str| {
        let request = axum::http::Request::get("/metrics").header("host", host);
        let request = request.body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap().status()
    };
    assert_eq!(status("127.0.0.1:8082").await, StatusCode::OK);
    assert_eq!(status("localhost:8082").await, StatusCode::OK);
    assert_eq!(status("rebind.example:8082").await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let router = protected();
    for (method, path, status, kind) in [
        ("GET", "/nothing", 404, "/problems/not-found"),
        ("DELETE", "/metrics", 405, "/problems/method-not-allowed"),
    ] {
        let request = axum::http::Request::builder().method(method).uri(path);
        let response = router
            .clone()
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["type"], kind);
    }
}

#[tokio::test]
async fn declared_connectors_are_neither_created_nor_deleted() {
    let router = protected();
    for (method, path) in [
        ("POST", "/connectors"),
        ("PUT", "/connectors/shop/config"),
        ("DELETE", "/connectors/shop"),
    ] {
        let request = axum::http::Request::builder().method(method).uri(path);
        let request = request.header("authorization", format!("Bearer {}", token(Access::Operator)));
        let response = router
            .clone()
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), 409, "{method} {path}");
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error_code"], 409);
        assert!(body["message"].as_str().unwrap().contains("declared in topology.toml"));
    }
}
