//! Checks of the databases of PostgreSQL sources.

use super::finding::{Finding, bad, good, new, warning};
use crate::connectors_client::Level;
use crate::node::declared_tables;
use anyhow::Result;
use connectors::sources::postgres::{self, Severity};
use event_log::embedded::{Config, EmbeddedLog};
use registry::embedded::Embedded;
use std::collections::BTreeMap;
use std::sync::Arc;
use topology::{Source, SourceKind, Topology};

/// Checks the databases of all PostgreSQL sources of the topology whose connection is configured.
pub fn check_configured(topology: &Topology, configured: &BTreeMap<String, postgres::Config>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in topology
        .sources
        .iter()
        .filter(|source| source.kind == SourceKind::Postgres)
    {
        match configured.get(source.name.as_str()) {
            Some(config) => findings.extend(check_source(topology, source, config)),
            None => findings.push(warning(
                "postgres",
                format!(
                    "connector {} is not in this configuration, so its database is not checked",
                    source.name
                ),
                format!(
                    "use the configuration of the node with the role connector:{}",
                    source.name
                ),
            )),
        }
    }
    findings
}

/// Compares a database with the topology: with each source of kind `postgres`, or with its only source, as `trunkline dev`
/// does. Without a topology, checks only the settings.
pub fn check_url(url: &str, topology: Option<&Topology>) -> Vec<Finding> {
    let Some(topology) = topology else {
        return check_settings(url);
    };
    let mut sources: Vec<&Source> = topology
        .sources
        .iter()
        .filter(|source| source.kind == SourceKind::Postgres)
        .collect();
    if let ([], [only]) = (sources.as_slice(), topology.sources.as_slice()) {
        sources.push(only);
    }
    if sources.is_empty() {
        let fix = "add [[connector]] with kind = \"postgres\" to the topology, or omit --postgres";
        return vec![bad("postgres", "the topology has no source of kind postgres", fix)];
    }
    // Doctor publishes nothing, so any key of masks will do.
    let settings = serde_json::json!({ "url": url, "mask_key": "of a check, not of a connector" });
    let config = serde_json::from_value::<postgres::Config>(settings);
    match config {
        Ok(config) => sources
            .iter()
            .flat_map(|source| check_source(topology, source, &config))
            .collect(),
        Err(error) => vec![bad("postgres", error.to_string(), "correct --postgres")],
    }
}

fn check_settings(url: &str) -> Vec<Finding> {
    match connectors::discover::settings(url) {
        Ok(found) => found.into_iter().map(|found| finding(None, found)).collect(),
        Err(error) => vec![bad(
            "postgres",
            service::chain(&error),
            "check the URL, and that the database runs",
        )],
    }
}

fn check_source(topology: &Topology, source: &Source, config: &postgres::Config) -> Vec<Finding> {
    match inspect(topology, source, config) {
        Ok(found) => found.into_iter().map(|found| finding(Some(source), found)).collect(),
        Err(error) => vec![bad(
            "postgres",
            format!("{error:#}"),
            "correct the settings of the connector",
        )],
    }
}

fn inspect(topology: &Topology, source: &Source, config: &postgres::Config) -> Result<Vec<postgres::Finding>> {
    // The source registers schemas only when it is opened, so any registry will do.
    let log = EmbeddedLog::open(Config::new(None, Arc::new(|| 0)))?;
    let registry = Arc::new(Embedded::open(log)?);
    let source = postgres::Source::new(
        &topology.names(),
        &source.name,
        config,
        declared_tables(source),
        registry,
    )?;
    Ok(source.inspect()?)
}

fn finding(source: Option<&Source>, found: postgres::Finding) -> Finding {
    let text = match source {
        Some(source) => format!("{}: {}", source.name, found.found),
        None => found.found,
    };
    match found.severity {
        Severity::Ok => good("postgres", text),
        Severity::Warning => new("postgres", Level::Warn, text, found.fix),
        Severity::Problem => bad("postgres", text, found.fix),
    }
}
