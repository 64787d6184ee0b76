//! From the checked topology to the rules of each input topic, and to the buckets that a token opens.
//!
//! Guarantees: nothing is looked up by name afterwards. Never: checks again what the topology's check has checked.

use super::{Piece, Relation, SourceRules, ViewRule};
use crate::Bucket;
use std::collections::BTreeMap;
use std::sync::Arc;
use topology::{ClaimError, Column, Input, Segment, Topology, View};

/// All rules of a topology.
#[derive(Debug, Clone)]
pub struct Rules {
    topology: Arc<Topology>,
    lines: Vec<Arc<SourceRules>>,
}

impl Rules {
    /// Compiles the views of a topology, a line an input topic that some view reads.
    pub fn compile(topology: Arc<Topology>) -> Self {
        let mut lines: BTreeMap<String, Vec<(Input, Vec<ViewRule>)>> = BTreeMap::new();
        for view in &topology.views {
            let line = lines.entry(topology.topic_of(view.input)).or_default();
            let rule = rule(view);
            match line.iter_mut().find(|(input, _)| *input == view.input) {
                Some((_, rules)) => rules.push(rule),
                None => line.push((view.input, vec![rule])),
            }
        }
        let line = |(topic, inputs): (String, Vec<(Input, Vec<ViewRule>)>)| {
            let event = inputs.iter().find_map(|(input, _)| match input {
                Input::Event(at) => topology.events.get(*at).map(|e| e.name.to_string()),
                // A processor's records are read as an event's: each is a transaction of its own.
                Input::Processor(at) => topology.processors.get(*at).map(|p| p.name.clone()),
                Input::Table { .. } => None,
            });
            let relations = inputs
                .into_iter()
                .map(|(input, rules)| relation(&topology, input, rules))
                .collect();
            Arc::new(SourceRules::new(topic, event, relations))
        };
        let lines = lines.into_iter().map(line).collect();
        Rules { topology, lines }
    }

    /// A line an input topic, sorted by topic.
    pub fn lines(&self) -> &[Arc<SourceRules>] {
        &self.lines
    }

    /// Hash of what decides which rows a device has.
    pub fn version(&self) -> u64 {
        self.topology.rules_version
    }

    /// Partitions of `view.log`.
    pub fn partitions(&self) -> i32 {
        self.topology.view_log_partitions
    }

    /// The buckets that a token opens.
    ///
    /// # Errors
    /// [`ClaimError`] when the claims open too many, or one with too long a name.
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
    let mut columns: Vec<Option<String>> = vec![None; topology.columns_of(input).len()];
    for view in topology.views.iter().filter(|v| v.input == input) {
        for at in view.columns() {
            if let (Some(slot), Some(Column { name, .. })) = (columns.get_mut(at), topology.columns_of(input).get(at)) {
                *slot = Some(name.clone());
            }
        }
    }
    Relation::new(name.unwrap_or_default(), columns, rules, topology.view_log_partitions)
}

fn rule(view: &View) -> ViewRule {
    ViewRule {
        name: view.name.to_string(),
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
