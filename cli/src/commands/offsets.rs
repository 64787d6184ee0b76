//! `trunkline offsets`: state and committed offsets of a task, and the ways out when they differ.

use super::topics::collect;
use crate::admin_api::{Ask, Way};
use crate::args::{self, OffsetsCommand, Output};
use crate::backends;
use crate::print;
use anyhow::{Context, Result};
use serde_json::Value;

/// Shows both, or goes one of the ways.
pub fn run(output: Output, offsets: &args::Offsets) -> Result<()> {
    let (way, task) = match &offsets.command {
        OffsetsCommand::Show(task) => (Way::Show, task),
        OffsetsCommand::Accept(accept) => (Way::Accept(accept.inputs.clone()), &accept.task),
        OffsetsCommand::Again(again) => (Way::Again(again.inputs.clone()), &again.task),
        OffsetsCommand::Restore(task) => (Way::Restore, task),
        OffsetsCommand::Skip(task) => (Way::Skip, task),
    };
    let parts = task.task.rsplit_once('/');
    let parts = parts.and_then(|(store, partition)| Some((store.to_owned(), partition.parse().ok()?)));
    let (store, partition) = parts.with_context(|| {
        format!(
            "`{}` is no task; write STORE/PARTITION, such as change.shop/0",
            task.task
        )
    })?;
    let performer = backends::performer(&offsets.target)?;
    let ask = Ask::Offsets {
        processor: task.processor.clone(),
        store,
        partition,
        way,
    };
    let standing = collect(&performer, ask)?;
    let inputs = standing
        .first()
        .and_then(|all| all.get("inputs"))
        .and_then(Value::as_array);
    print::items(
        output,
        inputs.map_or(&[], Vec::as_slice),
        &["topic", "partition", "state", "committed"],
    )
}
