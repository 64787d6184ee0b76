//! Compiles a checked topology to the rules of each input topic, and resolves the buckets of a token.
//!
//! The topology has been checked, so that compilation cannot fail. Names are resolved to indexes here and not per row.

use super::{Piece, Relation, SourceRules, ViewRule};
use crate::{Bucket, SnapshotView};
use std::collections::BTreeMap;
use std::sync::Arc;
use topology::template::Template;
use topology::{ClaimError, Input, Segment, Topology, View};

/// Rules of a topology.
#[derive(Debug, Clone)]
pub struct Rules {
    topology: Arc<Topology>,
    sources: Vec<Arc<SourceRules>>,
    /// By declared bucket: the views that have a first snapshot.
    snapshot_views: Vec<Vec<SnapshotView>>,
}

impl Rules {
    /// Compiles the views of a topology.
    pub fn compile(topology: Arc<Topology>) -> Self {
        let mut topics: BTreeMap<String, Vec<(Input, Vec<ViewRule>)>> = BTreeMap::new();
        for view in &topology.views {
            let inputs = topics.entry(topology.topic_of(view.input)).or_default();
            let rule = rule(view);
            match inputs.iter_mut().find(|(input, _)| *input == view.input) {
                Some((_, rules)) => rules.push(rule),
                None => inputs.push((view.input, vec![rule])),
            }
        }
        let source_rules = |(topic, inputs): (String, Vec<(Input, Vec<ViewRule>)>)| {
            let event = inputs.iter().find_map(|(input, _)| match input {
                Input::Event(at) => topology.events.get(*at).map(|e| e.name.to_string()),
                // Each record of a processor is a source transaction, like an event.
                Input::Processor(at) => topology.processors.get(*at).map(|p| p.name.clone()),
                Input::Table { .. } => None,
            });
            let relations = inputs
                .into_iter()
                .map(|(input, rules)| relation(&topology, input, rules))
                .collect();
            Arc::new(SourceRules::new(topic, event, relations))
        };
        let sources = topics.into_iter().map(source_rules).collect();
        let snapshot_views = snapshot_views(&topology);
        Rules {
            topology,
            sources,
            snapshot_views,
        }
    }

    /// Rules of each input topic that a view reads, sorted by topic.
    pub fn sources(&self) -> &[Arc<SourceRules>] {
        &self.sources
    }

    /// The views of these buckets whose tables have a first snapshot: those of databases, and of processors that read one.
    /// Views of HTTP sources and events are complete from the start.
    pub fn snapshot_views(&self, buckets: &[Bucket]) -> Vec<SnapshotView> {
        let declared = self.topology.buckets.iter().zip(&self.snapshot_views);
        // The first word of a name excludes most patterns without an allocation, because each poll calls this.
        let matches =
            |pattern: &Template, name: &str| name.starts_with(pattern.kind()) && pattern.split(name).is_some();
        let is_read = |declared: &topology::Bucket| buckets.iter().any(|b| matches(&declared.pattern, &b.name));
        let read = declared.filter(|(declared, views)| !views.is_empty() && is_read(declared));
        read.flat_map(|(_, views)| views.iter().cloned()).collect()
    }

    /// Partition count of `view.log`.
    pub fn partitions(&self) -> i32 {
        self.topology.view_log_partitions
    }

    /// Buckets that a token may read.
    ///
    /// # Errors
    /// [`ClaimError`] if the claims grant too many buckets, or one whose name is too long.
    pub fn buckets(
        &self,
        issuer: &str,
        claims: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Vec<Bucket>, ClaimError> {
        let names = self.topology.buckets_of(issuer, claims)?;
        let bucket = |name: String| {
            let scope = self.topology.scope_of(&name)?;
            Some(Bucket::new(name, &scope, self.partitions()))
        };
        Ok(names.into_iter().filter_map(bucket).collect())
    }
}

/// By declared bucket: the views of tables that have a first snapshot.
fn snapshot_views(topology: &Topology) -> Vec<Vec<SnapshotView>> {
    let has_snapshot = |view: &&View| topology.has_snapshot(view.input);
    let of_bucket = |bucket: usize| -> Vec<SnapshotView> {
        let views = topology.views.iter().filter(|view| view.bucket == bucket);
        views
            .filter(has_snapshot)
            .map(|view| SnapshotView {
                name: view.name.as_str().into(),
                writers: usize::try_from(topology.partitions_of(view.input)).unwrap_or(usize::MAX),
            })
            .collect()
    };
    (0..topology.buckets.len()).map(of_bucket).collect()
}

fn relation(topology: &Topology, input: Input, rules: Vec<ViewRule>) -> Relation {
    let name = match input {
        Input::Table { source, table } => topology
            .sources
            .get(source)
            .and_then(|s| s.tables.get(table))
            .map(|t| t.name.to_string()),
        Input::Event(at) => topology.events.get(at).map(|e| e.name.to_string()),
        Input::Processor(at) => topology.processors.get(at).map(|p| p.name.clone()),
    };
    let schema = topology.schema_of(input).cloned();
    let schema = schema.expect("a checked topology declares each input of a view");
    let views = topology.views.iter().filter(|view| view.input == input);
    let used = views.flat_map(View::columns).collect();
    Relation::new(
        name.unwrap_or_default(),
        schema,
        &used,
        rules,
        topology.view_log_partitions,
    )
}

fn rule(view: &View) -> ViewRule {
    ViewRule {
        name: view.name.to_string(),
        version: view.rules_version,
        bucket: view.bucket_name.iter().map(piece).collect(),
        scope: view.scope_name.iter().map(piece).collect(),
        filter: view.filter.clone(),
        fields: view.fields.iter().map(|f| (f.name.clone(), f.column)).collect(),
    }
}

fn piece(segment: &Segment) -> Piece {
    match segment {
        Segment::Literal(word) => Piece::Word(word.clone()),
        Segment::Param(column) => Piece::Column(*column),
    }
}
