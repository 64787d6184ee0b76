//! `trunkline topology`: checks and draws a topology. Other commands load their topology through this module.

use crate::args::{GraphFormat, Output, TopologyCommand};
use crate::exit::Failed;
use crate::print;
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::path::Path;
use topology::wiring::Wiring;
use topology::{Outcome, Topology, render};

/// Loads a topology. Prints the report to stderr and fails if it has errors.
pub fn load(file: &Path) -> Result<Topology> {
    accept(topology::load(file)?)
}

/// Returns the checked topology. Prints the report to stderr and fails if it has errors.
pub fn accept(outcome: Outcome) -> Result<Topology> {
    if outcome.report.errors() + outcome.report.warnings() > 0 {
        eprint!("{}", outcome.report.render(std::io::stderr().is_terminal()));
    }
    match outcome.topology {
        Some(topology) => Ok(topology),
        None => bail!("the topology has errors; see the report above"),
    }
}

/// Runs the subcommand.
pub fn run(output: Output, command: &TopologyCommand) -> Result<()> {
    match command {
        TopologyCommand::Check { file, against: None } => check(output, file),
        TopologyCommand::Check {
            file,
            against: Some(old),
        } => compare(output, file, old),
        TopologyCommand::Graph { file, format } => {
            let topology = load(file)?;
            if output == Output::Json {
                return print::json(&graph(&topology));
            }
            print::line(match format {
                GraphFormat::Text => render::text(&topology),
                GraphFormat::Dot => render::dot(&topology),
            })
        }
    }
}

/// The data flow as JSON: topics with their settings, processors, links.
fn graph(topology: &Topology) -> Value {
    let Wiring {
        topics,
        processors,
        links,
    } = Wiring::of(topology);
    let topics = topics
        .iter()
        .map(|topic| json!({ "name": topic.name, "partitions": topic.partitions, "retention_ms": topic.retention_ms }));
    let processors = processors.iter().map(|processor| {
        let inputs = processor
            .inputs
            .iter()
            .map(|input| json!({ "topic": input.topic, "group": input.group }));
        json!({
            "name": processor.name,
            "inputs": inputs.collect::<Vec<_>>(),
            "outputs": processor.outputs,
        })
    });
    let links = links
        .iter()
        .map(|link| json!({ "from": link.from.to_string(), "to": link.to.to_string() }));
    json!({
        "name": topology.name,
        "views": topology.views.iter().map(|view| view.name.to_string()).collect::<Vec<_>>(),
        "topics": topics.collect::<Vec<_>>(),
        "processors": processors.collect::<Vec<_>>(),
        "links": links.collect::<Vec<_>>(),
    })
}

/// Prints what the change from the topology `old` does to each view. Fails if something remains to be done.
fn compare(output: Output, file: &Path, old: &Path) -> Result<()> {
    let (new, old) = (load(file)?, load(old)?);
    if new.name != old.name {
        bail!(
            "topology {} cannot replace topology {}; their topics have different names",
            new.name,
            old.name
        );
    }
    if new.view_log_partitions != old.view_log_partitions {
        bail!(
            "[view_log].partitions cannot change from {} to {}; restore the old number",
            old.view_log_partitions,
            new.view_log_partitions
        );
    }
    let changes = topology::changes::compare(&old, &new);
    let items = changes.iter().map(|change| {
        json!({
            "view": change.view, "effect": change.effect.name(), "reason": change.reason, "fix": change.fix,
        })
    });
    let items: Vec<Value> = items.collect();
    print::items(output, &items, &["view", "effect", "reason", "fix"])?;
    if changes.iter().any(|change| change.effect.needs_action()) {
        return Err(Failed.into());
    }
    Ok(())
}

fn check(output: Output, file: &Path) -> Result<()> {
    let outcome = topology::load(file)?;
    let (errors, warnings) = (outcome.report.errors(), outcome.report.warnings());
    if output == Output::Json {
        print::json(&outcome.report.findings())?;
    } else {
        eprint!("{}", outcome.report.render(std::io::stderr().is_terminal()));
        match &outcome.topology {
            Some(t) => print::line(format!(
                "{}: {} sources, {} events, {} processors, {} views, {} buckets, {} nodes; {warnings} warnings",
                file.display(),
                t.sources.len(),
                t.events.len(),
                t.processors.len(),
                t.views.len(),
                t.buckets.len(),
                t.nodes.len()
            ))?,
            None => print::line(format!("{}: {errors} errors, {warnings} warnings", file.display()))?,
        }
    }
    if errors > 0 { Err(Failed.into()) } else { Ok(()) }
}
