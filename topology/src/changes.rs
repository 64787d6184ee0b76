//! What a changed topology does to the views that devices have: compares it with the topology that runs.

use crate::checked::{Input, Topology, View};
use serde::Serialize;

/// The effect of a change on one view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ViewChange {
    /// View.
    pub view: String,
    /// What happens to its rows.
    pub effect: Effect,
    /// Why, or what the effect consists of.
    pub reason: String,
    /// Command that is necessary after the new topology is running.
    pub fix: Option<String>,
}

/// What happens to the rows of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Nothing.
    Unchanged,
    /// The input is new, so that all of it is read.
    Filled,
    /// sync-views writes all rows again from its state.
    Rebuilt,
    /// The rows are removed.
    Removed,
    /// The state does not have the necessary columns or rows. The view is stale until a snapshot.
    NeedsSnapshot,
}

impl Effect {
    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Effect::Unchanged => "unchanged",
            Effect::Filled => "filled",
            Effect::Rebuilt => "rebuilt",
            Effect::Removed => "removed",
            Effect::NeedsSnapshot => "needs snapshot",
        }
    }

    /// Whether the change does not complete by itself.
    pub fn needs_action(self) -> bool {
        matches!(self, Effect::NeedsSnapshot)
    }
}

/// Compares the views of two topologies, in the order of the new one. Removed views follow.
pub fn compare(old: &Topology, new: &Topology) -> Vec<ViewChange> {
    let known = new.views.iter().map(|view| change_of(old, new, view));
    let removed = old.views.iter().filter(|view| find(new, view.name.as_str()).is_none());
    known.chain(removed.map(|view| removal_of(old, new, view))).collect()
}

fn find<'t>(topology: &'t Topology, name: &str) -> Option<&'t View> {
    topology.views.iter().find(|view| view.name.as_str() == name)
}

fn change_of(old: &Topology, new: &Topology, view: &View) -> ViewChange {
    let before = find(old, view.name.as_str());
    let from = new.from_of(view.input);
    let of = |effect, reason: String, fix| ViewChange {
        view: view.name.to_string(),
        effect,
        reason,
        fix,
    };
    let is_same = |before: &View| before.rules_version == view.rules_version;
    if before.is_some_and(is_same) && old.view_log_partitions == new.view_log_partitions {
        return of(Effect::Unchanged, "the rules are the same".to_owned(), None);
    }
    let Some(input) = input_of(old, &from) else {
        return of(Effect::Filled, format!("`{from}` is new"), None);
    };
    let snapshot = snapshot_command(new, view.input);
    let topic = new.topic_of(view.input);
    if !old.views.iter().any(|view| old.topic_of(view.input) == topic) {
        let reason = format!(
            "no view of the old topology reads {topic}, so it is read from its start; if an earlier topology had views \
             of it, they need a snapshot"
        );
        return of(Effect::Filled, reason, None);
    }
    if !old.views.iter().any(|view| view.input == input) {
        let reason = format!("no view read `{from}` before, so the state does not have its rows");
        return of(Effect::NeedsSnapshot, reason, snapshot);
    }
    let columns = (new.columns_of(view.input), old.columns_of(input));
    let is_known = |at: &usize| {
        let column = columns.0.get(*at);
        column.is_some_and(|column| {
            columns
                .1
                .iter()
                .any(|c| c.name == column.name && c.declared == column.declared)
        })
    };
    let unknown = view.columns().into_iter().filter(|at| !is_known(at));
    let unknown: Vec<&str> = unknown
        .filter_map(|at| Some(columns.0.get(at)?.name.as_str()))
        .collect();
    if !unknown.is_empty() {
        let reason = format!(
            "the state does not have these columns of `{from}`: {}",
            unknown.join(", ")
        );
        return of(Effect::NeedsSnapshot, reason, snapshot);
    }
    let reason = match before {
        None => "the view is new".to_owned(),
        Some(before) => differences(old, new, before, view),
    };
    of(Effect::Rebuilt, reason, None)
}

fn removal_of(old: &Topology, new: &Topology, view: &View) -> ViewChange {
    let (from, topic) = (old.from_of(view.input), old.topic_of(view.input));
    let is_read = new.views.iter().any(|view| new.topic_of(view.input) == topic);
    let reason = if is_read {
        "the view does not exist any more".to_owned()
    } else {
        format!("no view reads {topic} any more; keep the topic until the rows of `{from}` are removed")
    };
    ViewChange {
        view: view.name.to_string(),
        effect: Effect::Removed,
        reason,
        fix: None,
    }
}

/// The input with this name.
fn input_of(topology: &Topology, from: &str) -> Option<Input> {
    let tables = topology.sources.iter().enumerate().flat_map(|(source, of)| {
        let tables = 0..of.tables.len();
        tables.map(move |table| Input::Table { source, table })
    });
    let events = (0..topology.events.len()).map(Input::Event);
    let processors = (0..topology.processors.len()).map(Input::Processor);
    let mut inputs = tables.chain(events).chain(processors);
    inputs.find(|input| topology.from_of(*input) == from)
}

/// The command that writes all rows of an input again; `None` if only later records can.
fn snapshot_command(topology: &Topology, input: Input) -> Option<String> {
    let Input::Table { source, table } = input else {
        return None;
    };
    let source = topology.sources.get(source)?;
    let table = source.tables.get(table)?;
    Some(format!("trunkline connect snapshot {} {}", source.name, table.name))
}

/// Which parts of a view differ.
fn differences(old: &Topology, new: &Topology, before: &View, after: &View) -> String {
    let columns = |topology: &Topology, view: &View, at: usize| {
        let column = topology.columns_of(view.input).get(at);
        column.map_or_else(String::new, |column| column.name.clone())
    };
    let fields = |topology: &Topology, view: &View| -> Vec<(String, String)> {
        let fields = view.fields.iter();
        fields
            .map(|field| (columns(topology, view, field.column), field.name.clone()))
            .collect()
    };
    let texts = |topology: &Topology, segments: &[crate::Segment], view: &View| -> Vec<String> {
        let text = |segment: &crate::Segment| match segment {
            crate::Segment::Literal(word) => word.clone(),
            crate::Segment::Param(at) => format!("{{{}}}", columns(topology, view, *at)),
        };
        segments.iter().map(text).collect()
    };
    let filter = |view: &View| view.filter.as_ref().map(|program| program.text().to_owned());
    let parts = [
        ("input", old.from_of(before.input) != new.from_of(after.input)),
        ("fields", fields(old, before) != fields(new, after)),
        ("where", filter(before) != filter(after)),
        (
            "bucket",
            texts(old, &before.bucket_name, before) != texts(new, &after.bucket_name, after),
        ),
        (
            "scope",
            texts(old, &before.scope_name, before) != texts(new, &after.scope_name, after),
        ),
    ];
    let changed: Vec<&str> = parts
        .iter()
        .filter(|(_, differs)| *differs)
        .map(|(name, _)| *name)
        .collect();
    if changed.is_empty() {
        return "key or types have changed".to_owned();
    }
    format!("changed: {}", changed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Embedded, check};

    const BASE: &str = r#"
name = "shop"
[[connector]]
name = "db"
kind = "postgres"
[[table]]
source = "db"
name = "orders"
key = ["id"]
columns = { id = "int8", customer_id = "int8", status = "text", note = "text?" }
[[table]]
source = "db"
name = "items"
key = ["id"]
columns = { id = "int8", customer_id = "int8" }
[[bucket]]
name = "user:{id}"
[[membership]]
bucket = "user:{sub}"
[[view]]
name = "orders"
from = "db.orders"
bucket = "user:{customer_id}"
fields = ["id", "status", "note"]
"#;

    fn effects(old: &str, new: &str) -> Vec<(String, Effect, Option<String>)> {
        let load = |text: &str| check("topology.toml", text, &Embedded(&[])).into_result().unwrap();
        let changes = compare(&load(old), &load(new)).into_iter();
        changes.map(|change| (change.view, change.effect, change.fix)).collect()
    }

    fn one(old: &str, new: &str) -> (Effect, Option<String>) {
        let all = effects(old, new);
        assert_eq!(all.len(), 1, "{all:?}");
        all.into_iter().next().map(|(_, effect, fix)| (effect, fix)).unwrap()
    }

    #[test]
    fn changed_rules_are_rebuilt_from_state() {
        assert_eq!(one(BASE, BASE), (Effect::Unchanged, None));
        let fewer = BASE.replace(r#"["id", "status", "note"]"#, r#"["id", "status"]"#);
        assert_eq!(one(BASE, &fewer), (Effect::Rebuilt, None));
        assert_eq!(one(&fewer, BASE), (Effect::Rebuilt, None), "the state has all columns");
        let filtered = format!("{BASE}where = \"status == 'open'\"\n");
        assert_eq!(one(BASE, &filtered), (Effect::Rebuilt, None));
    }

    #[test]
    fn column_that_was_not_published_needs_a_snapshot() {
        let old = BASE.replace(", note = \"text?\"", "").replace(", \"note\"]", "]");
        let fix = Some("trunkline connect snapshot db orders".to_owned());
        assert_eq!(one(&old, BASE), (Effect::NeedsSnapshot, fix));
    }

    #[test]
    fn added_and_removed_views() {
        let view = |name: &str, from: &str| {
            format!("[[view]]\nname = \"{name}\"\nfrom = \"{from}\"\nbucket = \"user:{{customer_id}}\"\n")
        };
        let more = format!("{BASE}{}", view("all_orders", "db.orders"));
        let unchanged = ("orders".to_owned(), Effect::Unchanged, None);
        assert_eq!(
            effects(BASE, &more),
            [unchanged.clone(), ("all_orders".to_owned(), Effect::Rebuilt, None)]
        );
        assert_eq!(
            effects(&more, BASE),
            [unchanged.clone(), ("all_orders".to_owned(), Effect::Removed, None)]
        );
        let items = format!("{BASE}{}", view("items", "db.items"));
        let fix = Some("trunkline connect snapshot db items".to_owned());
        assert_eq!(
            effects(BASE, &items),
            [unchanged, ("items".to_owned(), Effect::NeedsSnapshot, fix)]
        );
    }

    #[test]
    fn rows_of_the_last_view_of_a_source_are_removed() {
        let none = BASE.split("[[view]]").next().unwrap();
        let all = effects(BASE, none);
        assert!(matches!(all.as_slice(), [(_, Effect::Removed, None)]), "{all:?}");
        assert_eq!(effects(none, BASE)[0].1, Effect::Filled);
    }
}
