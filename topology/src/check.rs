//! The offline check of a topology: reports all errors and warnings, each with position, reason and fix.
//!
//! The result depends only on the text of the topology and of the schema files. A topology is returned only if there is
//! no error. An error is reported once: parts that refer to a part with an error are not reported too.
//!
//! Each kind of declaration has its own file with functions over a [`Context`], which collects the problems. The
//! functions run in the order of [`topology`], because later kinds of declarations refer to earlier ones.

mod buckets;
mod context;
mod inputs;
mod known_inputs;
mod limits;
mod masks;
mod memberships;
mod nodes;
mod processors;
mod rules;
mod views;

pub use limits::{EVENT_PARTITIONS, EVENT_PARTITIONS_MAX, VIEW_LOG_PARTITIONS, VIEW_LOG_PARTITIONS_MAX};

use crate::checked::Topology;
use crate::files::Files;
use crate::model::Declared;
use crate::names;
use crate::outcome::Outcome;
use crate::problem::Problem;
use context::Context;

/// Checks the text of a topology file.
pub(crate) fn check(name: &str, text: &str, files: &dyn Files) -> Outcome {
    let cx = Context::new(name, text, files);
    let declared = Declared::parse(text, cx.problems());
    let topology = topology(&cx, &declared);
    cx.finish(topology)
}

fn topology(cx: &Context<'_>, declared: &Declared) -> Option<Topology> {
    if let Some(name) = &declared.name {
        cx.name(name, "topology");
        if name.value == names::RESERVED_TOPOLOGY {
            let message = format!("topology name `{}` is reserved", name.value);
            cx.add(Problem::error(name.span.clone(), message).help("rename the topology"));
        }
    }
    let mut known = Vec::new();
    let mut sources = inputs::check_connectors(cx, &declared.connectors);
    inputs::check_tables(cx, declared, &mut sources, &mut known);
    let events = inputs::check_events(cx, &declared.events, &mut known);
    let processors = processors::check_processors(cx, &declared.processors, &mut known);
    let buckets = buckets::check_buckets(cx, &declared.buckets);
    let views = views::check_views(cx, &declared.views, &known, &buckets);
    let issuers = memberships::issuer_names(cx, &declared.issuers);
    let memberships = memberships::check_memberships(cx, declared, &buckets, &known);
    buckets::warn_unused_buckets(cx, &buckets, &declared.views, &declared.memberships);
    let nodes = nodes::check_nodes(cx, &declared.nodes, declared);
    let view_log_partitions = cx.partitions(
        declared.view_log.partitions.as_ref(),
        "[view_log]",
        VIEW_LOG_PARTITIONS_MAX,
        VIEW_LOG_PARTITIONS,
    );
    if cx.errors() > 0 {
        return None;
    }
    let mut topology = Topology {
        name: declared.name.as_ref()?.value.clone(),
        sources,
        events,
        processors,
        buckets: buckets.into_iter().filter_map(|known| known.bucket).collect(),
        views,
        memberships,
        issuers,
        nodes,
        view_log_partitions,
        rules_version: 0,
    };
    rules::set_versions(&mut topology);
    Some(topology)
}

#[cfg(test)]
mod tests;
