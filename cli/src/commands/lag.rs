//! `trunkline lag`: lag of consumer groups, with the remaining records of restores.

use crate::args::{self, Output};
use crate::operations_api::{LagRequest, Request};
use crate::operations_client::Client;
use crate::print;
use anyhow::Result;
use operations::lag::DeclaredInput;
use serde_json::Value;
use topology::wiring::Wiring;

/// The inputs of all consumer groups of a topology.
fn declared(wiring: &Wiring) -> Vec<DeclaredInput> {
    let inputs = wiring.processors.iter().flat_map(|processor| &processor.inputs);
    let declared = inputs.map(|input| DeclaredInput {
        group: input.group.clone(),
        topic: input.topic.clone(),
    });
    declared.collect()
}

/// Prints one row per group and partition.
pub fn run(output: Output, lag: &args::Lag) -> Result<()> {
    let client = Client::connect(&lag.target)?;
    let declared = match &lag.topology {
        Some(file) => declared(&Wiring::of(&super::topology::load(file)?)),
        None => Vec::new(),
    };
    let group = lag.group.clone();
    let mut items = client.collect(Request::Lag(LagRequest { group, declared }))?;
    let restoring = super::state::restoring(&lag.target);
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        let text = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let partition = item.get("partition").and_then(Value::as_i64).unwrap_or_default();
        let left = restoring.get(&(text("group"), text("topic"), partition)).copied();
        item.insert("restore_left".to_owned(), left.into());
    }
    let columns = [
        "group",
        "state",
        "topic",
        "partition",
        "committed",
        "stable",
        "lag_records",
        "lag_ms",
        "restore_left",
        "member",
    ];
    print::items(output, &items, &columns)
}
