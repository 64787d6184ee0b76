//! Checks nodes and their roles. A role that may run only once must not be assigned to two nodes.

use super::context::Context;
use crate::checked::{Node, Role, SYNC_VIEWS};
use crate::model::{self, At, Declared};
use crate::names;
use crate::problem::Problem;
use schemas::ids::ConnectorName;
use std::collections::HashMap;
use std::ops::Range;

/// Names of all processors: the built-in processor and the declarative ones.
fn processors(all: &Declared) -> impl Iterator<Item = &str> {
    [SYNC_VIEWS]
        .into_iter()
        .chain(all.processors.iter().map(|p| p.name.as_str()))
}

/// Roles without a name.
const PLAIN: [&str; 3] = ["edge", "ingest", "registry"];

pub(super) fn check_nodes(cx: &Context<'_>, declared: &[model::Node], all: &Declared) -> Vec<Node> {
    cx.unique(declared.iter().map(|node| &node.name), "node");
    let mut nodes = Vec::with_capacity(declared.len());
    let mut single: HashMap<Role, Range<usize>> = HashMap::new();
    for node in declared {
        cx.name(&node.name, "node");
        cx.unique(node.runs.iter(), "role");
        if node.runs.is_empty() {
            let message = format!("node `{}` has no roles", node.name.value);
            cx.add(Problem::error(node.runs.span.clone(), message).help("add a role: runs = [\"edge\"]"));
        }
        let mut roles = Vec::with_capacity(node.runs.len());
        for text in node.runs.iter() {
            let Some(role) = parse_role(cx, text, all) else {
                continue;
            };
            if matches!(role, Role::Connector(_) | Role::Registry)
                && let Some(first) = single.insert(role.clone(), text.span.clone())
            {
                let message = format!("`{}` is assigned to two nodes; it may run on one node only", text.value);
                let problem = Problem::error(text.span.clone(), message).label("assigned again here");
                cx.add(
                    problem
                        .also(first, "first assigned here")
                        .help("keep it on one node and let a process supervisor restart that node after a failure"),
                );
            }
            roles.push(role);
        }
        nodes.push(Node {
            name: node.name.value.clone(),
            roles,
        });
    }
    if let Some(first) = declared.first() {
        warn_unassigned_roles(cx, first, &nodes, all);
    }
    nodes
}

fn parse_role(cx: &Context<'_>, text: &At<String>, all: &Declared) -> Option<Role> {
    match text.split_once(':') {
        Some(("connector", name)) => {
            if all.connectors.iter().all(|connector| connector.name.value != name) {
                let span = cx.inside(text, &("connector:".len()..text.len()));
                let names = all.connectors.iter().map(|connector| connector.name.as_str());
                let wanted = At {
                    value: String::from(name),
                    span,
                };
                cx.unknown(&wanted, "connector", names, "declare the connector: [[connector]]");
                return None;
            }
            ConnectorName::new(name).ok().map(Role::Connector)
        }
        Some(("processor", name)) if processors(all).any(|known| known == name) => {
            Some(Role::Processor(String::from(name)))
        }
        Some(("processor", name)) => {
            let span = cx.inside(text, &("processor:".len()..text.len()));
            cx.unknown(
                &At {
                    value: String::from(name),
                    span,
                },
                "processor",
                processors(all).collect::<Vec<_>>(),
                "",
            );
            None
        }
        _ => match text.as_str() {
            "edge" => Some(Role::Edge),
            "ingest" => Some(Role::Ingest),
            "registry" => Some(Role::Registry),
            other => {
                report_unknown_role(cx, text, other, all);
                None
            }
        },
    }
}

fn report_unknown_role(cx: &Context<'_>, text: &At<String>, role: &str, all: &Declared) {
    let mut known: Vec<String> = PLAIN.iter().map(ToString::to_string).collect();
    known.extend(processors(all).map(|name| format!("processor:{name}")));
    known.extend(
        all.connectors
            .iter()
            .map(|connector| format!("connector:{}", connector.name.value)),
    );
    let suffixed = known.iter().find(|name| name.rsplit(':').next() == Some(role));
    let help = match suffixed {
        Some(name) => format!("did you mean `{name}`?"),
        None => names::known(role, known.iter().map(String::as_str), ""),
    };
    cx.add(Problem::error(text.span.clone(), format!("there is no role `{role}`")).help(help));
}

/// Warns about roles that are not assigned to a node, if nodes are declared.
fn warn_unassigned_roles(cx: &Context<'_>, first: &model::Node, nodes: &[Node], all: &Declared) {
    let runs = |role: &Role| nodes.iter().any(|node| node.roles.contains(role));
    let mut missing = Vec::new();
    for connector in &all.connectors {
        if ConnectorName::new(&connector.name).is_ok_and(|name| !runs(&Role::Connector(name))) {
            missing.push(format!("connector:{}", connector.name.value));
        }
    }
    for processor in &all.processors {
        if !runs(&Role::Processor(processor.name.value.clone())) {
            missing.push(format!("processor:{}", processor.name.value));
        }
    }
    let rest = [
        (Role::Processor(String::from(SYNC_VIEWS)), !all.views.is_empty()),
        (Role::Edge, !all.views.is_empty()),
        (Role::Ingest, !all.events.is_empty()),
    ];
    for (role, needed) in rest {
        if needed && !runs(&role) {
            missing.push(role.to_string());
        }
    }
    for role in missing {
        let problem = Problem::warning(first.name.span.clone(), format!("no node runs `{role}`"));
        cx.add(
            problem
                .help(format!("add \"{role}\" to `runs` of a node"))
                .label("the first node is declared here"),
        );
    }
}
