//! Declared processors: aggregates and joins that a topology names, without code of their own.
//!
//! One application each: its inputs are read where its state is, or keyed anew through topics of its own. The path of
//! a record: [`reader`] reads it, `shape` says what of it counts, `rows` what the same row gave before, and a sink takes
//! the difference: `rekey`, `aggregate` or `join` (docs/reference/formats.md, "Declared processors").
//! Guarantees: output is a function of the inputs and their order; a change of the declaration never meets state that
//! was written under another one. Never: a consumer or producer of its own.

mod aggregate;
mod delta;
mod join;
mod readable;
mod reader;
mod rekey;
mod rows;
mod shape;
mod table;
mod values;

use crate::sync_views::FetchSchema;
use aggregate::Groups;
use join::Pairs;
pub use readable::readable;
use reader::{Line, Reader, Relation, Sink};
use rekey::Rekey;
use rows::Rows;
use shape::{OutputTopic, Shape};
use std::sync::Arc;
use streams::{Application, Factory, FirstStart, SubTopology, TaskInfo};
use topology::{Feed, Input, Processor, Side, Topology, Work};

/// How one declared processor runs.
#[derive(Clone)]
pub struct Config {
    /// The topology that declares it.
    pub topology: Arc<Topology>,
    /// It.
    pub processor: Arc<Processor>,
    /// Registry id of its schema.
    pub schema_id: u32,
    /// How long deleted rows of its inputs are remembered, in ms.
    pub horizon_ms: i64,
    /// Fetches a schema by id; called outside the steps.
    pub fetch: FetchSchema,
}

/// The processor as an application: consumer group, sub-topologies, stores.
pub fn application(config: &Config) -> Application {
    let processor = &config.processor;
    let mut subtopologies = Vec::new();
    let mut main: Vec<(String, Reads)> = Vec::new();
    for (side, feed) in processor.feeds() {
        let topic = config.topology.topic_of(feed.input);
        if feed.is_direct {
            match main.iter_mut().find(|(known, _)| *known == topic) {
                Some((_, Reads::Sides(sides))) => sides.push(side),
                _ => main.push((topic, Reads::Sides(vec![side]))),
            }
            continue;
        }
        let store = processor.rekey_store(side);
        subtopologies.push(sub(config, store, vec![(topic, Reads::Sides(vec![side]))], Some(side)));
        main.push((processor.repartition_topic(side), Reads::Deltas(side)));
    }
    subtopologies.push(sub(config, processor.store(), main, None));
    Application {
        name: processor.name.clone(),
        subtopologies,
    }
}

/// What is read from a topic.
#[derive(Clone)]
enum Reads {
    /// Records of these sides.
    Sides(Vec<Side>),
    /// Deltas of a side.
    Deltas(Side),
}

fn sub(config: &Config, store: &str, topics: Vec<(String, Reads)>, rekeys: Option<Side>) -> SubTopology {
    let inputs = topics.iter().map(|(topic, _)| topic.clone()).collect();
    let config = config.clone();
    let factory: Factory = Arc::new(move |task: &TaskInfo| Box::new(reader(&config, &topics, rekeys, task)));
    SubTopology {
        name: store.to_owned(),
        inputs,
        store: store.to_owned(),
        factory,
        first_start: FirstStart::Earliest,
    }
}

fn reader(config: &Config, topics: &[(String, Reads)], rekeys: Option<Side>, task: &TaskInfo) -> Reader {
    let processor = &config.processor;
    let name: Arc<str> = processor.name.as_str().into();
    let lines = topics.iter().map(|(topic, reads)| {
        let found = task.inputs.iter().find(|input| *input.name == **topic);
        let id = found.map(|input| input.id.to_string()).unwrap_or_default();
        let topic: Arc<str> = topic.as_str().into();
        let line = match reads {
            Reads::Deltas(side) => Line::Repartitioned(*side),
            Reads::Sides(sides) => line(config, sides, &id),
        };
        (topic, line)
    });
    let declaration: Arc<str> = processor.declaration.as_str().into();
    let sink = sink(config, &name, rekeys, reader::id_of(&declaration));
    Reader::new(name, declaration, lines.collect(), sink, config.fetch.clone())
}

fn line(config: &Config, sides: &[Side], topic_id: &str) -> Line {
    let mut event = None;
    let feeds = config.processor.feeds();
    let of_side = |side: &Side| feeds.iter().find(|(known, _)| known == side);
    let relations = sides.iter().filter_map(of_side).map(|(side, feed)| {
        let (name, is_event) = name_of(&config.topology, feed);
        if is_event {
            event = Some(name.clone());
        }
        let called = match side {
            Side::Left => "left",
            Side::Right => "right",
        };
        let rows = feed
            .is_table
            .then(|| Rows::new(called, topic_id.to_owned(), config.horizon_ms));
        Relation::new(*side, name, Shape::new(config.processor.clone(), *side), rows)
    });
    let relations = relations.collect();
    Line::Direct { event, relations }
}

/// What an input's records name it, and whether its topic holds nothing else.
fn name_of(topology: &Topology, feed: &Feed) -> (String, bool) {
    let named = match feed.input {
        Input::Table { source, table } => {
            let table = topology.sources.get(source).and_then(|source| source.tables.get(table));
            (table.map(|table| table.name.to_string()), false)
        }
        Input::Event(at) => (topology.events.get(at).map(|event| event.name.to_string()), true),
        Input::Processor(at) => (
            topology.processors.get(at).map(|processor| processor.name.clone()),
            true,
        ),
    };
    (named.0.unwrap_or_default(), named.1)
}

fn sink(config: &Config, name: &Arc<str>, rekeys: Option<Side>, declaration: u64) -> Box<dyn Sink> {
    let processor = &config.processor;
    if let Some(side) = rekeys {
        let by_time = match &processor.work {
            Work::Aggregate(aggregate) => aggregate.window.is_some(),
            Work::Join(_) => false,
        };
        return Box::new(Rekey::new(
            processor.repartition_topic(side).into(),
            declaration,
            by_time,
        ));
    }
    let output = || OutputTopic::new(processor, config.schema_id);
    if let Some(groups) = Groups::new(name, processor, output()) {
        return Box::new(groups);
    }
    let pairs = Pairs::new(name, processor, output());
    Box::new(pairs.expect("a processor that is no aggregate is a join"))
}

#[cfg(test)]
mod tests;
