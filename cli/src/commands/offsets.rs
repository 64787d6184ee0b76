//! `trunkline offsets`: compares the state of a task with its committed offsets, and resolves differences.

use crate::args::{self, OffsetsCommand, Output};
use crate::operations_api::{OffsetsAction, OffsetsRequest, Request};
use crate::operations_client::Client;
use crate::print;
use anyhow::{Context, Result};
use serde_json::Value;

/// Runs the subcommand and then prints the offsets.
pub fn run(output: Output, offsets: &args::Offsets) -> Result<()> {
    let (action, task) = match &offsets.command {
        OffsetsCommand::Show(task) => (OffsetsAction::Show, task),
        OffsetsCommand::Accept(accept) => (OffsetsAction::Accept(accept.inputs.clone()), &accept.task),
        OffsetsCommand::Reset(reset) => (OffsetsAction::ResetToEarliest(reset.inputs.clone()), &reset.task),
        OffsetsCommand::Restore(task) => (OffsetsAction::Restore, task),
        OffsetsCommand::Skip(skip) => {
            let action = match skip.to {
                None => OffsetsAction::Skip,
                Some(offset) => OffsetsAction::SkipTo {
                    input: skip.input.clone(),
                    offset,
                },
            };
            (action, &skip.task)
        }
    };
    let parts = task.task.rsplit_once('/');
    let parts = parts.and_then(|(store, partition)| Some((store.to_owned(), partition.parse().ok()?)));
    let (store, partition) =
        parts.with_context(|| format!("`{}` is not a task; write STORE/PARTITION, such as rows/0", task.task))?;
    let client = Client::connect(&offsets.target)?;
    let response = client.collect(Request::Offsets(OffsetsRequest {
        processor: task.processor.clone(),
        store,
        partition,
        action,
    }))?;
    let inputs = response
        .first()
        .and_then(|positions| positions.get("inputs"))
        .and_then(Value::as_array);
    print::items(
        output,
        inputs.map_or(&[], Vec::as_slice),
        &["topic", "partition", "state", "committed"],
    )
}
