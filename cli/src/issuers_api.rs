//! The issuers whose tokens the edge of a process accepts, on the admin listener.
//!
//! Each edge reads its issuers from its own configuration. `trunkline doctor` compares those of all edges of a topology,
//! because an edge can only check its own.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use service::access::Role;
use service::admin::{Access, Endpoint, Routes, Success};
use std::sync::Arc;
use topology::Topology;

/// Path on the admin listener.
pub const PATH: [&str; 2] = ["v1", "issuers"];

/// An issuer that an edge accepts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Issuer {
    /// Its name in the configuration of the edge and in memberships.
    pub alias: String,
    /// `iss` of its tokens.
    pub issuer: String,
}

/// The issuers of an edge, and the memberships of its topology that accept tokens of any issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeIssuers {
    /// Name of the topology.
    pub topology: String,
    /// Name of the node.
    pub node: String,
    /// The issuers.
    pub issuers: Vec<Issuer>,
    /// Buckets of memberships without an issuer.
    pub memberships_without_issuer: Vec<String>,
}

impl EdgeIssuers {
    /// The issuers of the edge of a node.
    pub fn of(node: &str, topology: &Topology, edge: &edge::Config) -> Self {
        let issuers = edge.issuers.iter().map(|issuer| Issuer {
            alias: issuer.alias.clone(),
            issuer: issuer.issuer.clone(),
        });
        let open = topology
            .memberships
            .iter()
            .filter(|membership| membership.issuer.is_none());
        EdgeIssuers {
            topology: topology.name.to_string(),
            node: node.to_owned(),
            issuers: issuers.collect(),
            memberships_without_issuer: open.map(|membership| membership.template.to_string()).collect(),
        }
    }
}

const ISSUERS: &[Success] = &[Success::text(200, "The issuers", "application/json")];

/// The route `/v1/issuers`; `edge` is `None` if the process has no edge.
pub fn routes(edge: Option<EdgeIssuers>) -> Routes {
    let endpoint = Endpoint::get("/v1/issuers", Access::Role(Role::Viewer))
        .summary("The issuers whose tokens the edge of the process accepts; `edge` is null without one")
        .answers(ISSUERS);
    Routes::new().route(endpoint, show, Arc::new(edge))
}

async fn show(State(edge): State<Arc<Option<EdgeIssuers>>>) -> Json<Value> {
    Json(json!({ "edge": *edge }))
}
