//! Declarative processors: aggregates and joins that a topology declares, without code.
//!
//! Each is one application. An input whose key is the key of the group or pair is read directly. Any other input is
//! first repartitioned through a topic of the application. A record is processed as follows: `reader` parses it,
//! `shape` evaluates the declared expressions, `table_rows` contains what the same row contributed before, and a
//! `sink::Sink` applies the difference: `repartition`, `aggregate` or `join` (docs/reference/formats.md, "Declarative
//! processors").

mod delta;
mod event_dedup;
mod inspect;
mod loading;
mod names;
mod reader;
mod relation;
mod shape;
mod sink;
mod stored_row;
mod sweeps;
mod table_input;
mod table_rows;
mod value_types;
mod values;

pub(crate) use delta::{Contribution, Delta};
pub use inspect::readable;
pub(crate) use names::{field_names, named};
pub(crate) use shape::{OutputTopic, datum};
pub(crate) use sink::{Change, Sink};
pub(crate) use values::{
    json, read, read_array, read_byte, read_bytes, read_number, read_row, read_signed, write_bytes, write_number,
    write_signed, write_sortable,
};

use crate::aggregate::Groups;
pub use crate::input::StepLimits;
use crate::input::{FetchSchema, LoadedMark};
use crate::join::Pairs;
use crate::repartition::{self, Repartition};
use event_log::TopicPartition;
use loading::{Loading, MarkTopic};
use reader::{Identity, InputTopic, Reader, Stages, TopicContent};
use relation::Relation;
use schemas::events::{Event as _, Loaded};
use schemas::ids::SchemaId;
use shape::Shape;
use std::sync::Arc;
use streams::{Application, Factory, FirstStart, SubTopology, TaskInfo};
use table_rows::TableRows;
use topology::{Feed, Input, Processor, Side, Topology, Work};
use value_types::ValueTypes;

/// Configuration of one declarative processor.
#[derive(Clone)]
pub struct Config {
    /// The topology that declares it.
    pub topology: Arc<Topology>,
    /// The processor.
    pub processor: Arc<Processor>,
    /// Registry id of its output schema.
    pub schema_id: u32,
    /// Registry id of the schema of loaded marks.
    pub loaded_schema_id: u32,
    /// How long deleted rows of the inputs are kept in the state, in ms.
    pub horizon_ms: i64,
    /// Limits of a step that removes the rows which a TRUNCATE or the end of a snapshot chunk shows to be gone.
    pub sweep_step: StepLimits,
    /// Fetches a schema by id. Called in `prepare` only, because it does IO.
    pub fetch: FetchSchema,
}

/// The processor as an application: consumer group, sub-topologies, stores.
pub fn application(config: &Config) -> Application {
    let (processor, names) = (&config.processor, config.topology.names());
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
        let store = processor.repartition_store(side);
        subtopologies.push(subtopology(
            config,
            store,
            vec![(topic, Reads::Sides(vec![side]))],
            Some(side),
        ));
        main.push((processor.repartition_topic(&names, side), Reads::Deltas(side)));
    }
    subtopologies.push(subtopology(config, processor.store(), main, None));
    Application {
        name: names.application(&processor.name),
        subtopologies,
    }
}

/// What a sub-topology reads from a topic.
#[derive(Clone)]
enum Reads {
    /// Records of these inputs of the processor.
    Sides(Vec<Side>),
    /// Repartitioned deltas of an input.
    Deltas(Side),
}

fn subtopology(config: &Config, store: &str, topics: Vec<(String, Reads)>, repartitions: Option<Side>) -> SubTopology {
    let inputs = topics.iter().map(|(topic, _)| topic.clone()).collect();
    let config = config.clone();
    let factory: Factory = Arc::new(move |task: &TaskInfo| Box::new(reader_for(&config, &topics, repartitions, task)));
    SubTopology {
        name: store.to_owned(),
        inputs,
        store: store.to_owned(),
        factory,
        first_start: FirstStart::Earliest,
    }
}

fn reader_for(config: &Config, topics: &[(String, Reads)], repartitions: Option<Side>, task: &TaskInfo) -> Reader {
    let processor = &config.processor;
    let name: Arc<str> = processor.name.as_str().into();
    let at = |topic: &str| TopicPartition::new(topic, task.id.partition);
    let inputs: Vec<InputTopic> = topics
        .iter()
        .map(|(topic, reads)| {
            let found = task.inputs.iter().find(|input| *input.name == **topic);
            let id = found.map(|input| input.id.to_string()).unwrap_or_default();
            let content = match reads {
                Reads::Deltas(side) => TopicContent::Repartitioned(ValueTypes::new(&config.topology, processor, *side)),
                Reads::Sides(sides) => direct(config, sides, &id),
            };
            InputTopic { at: at(topic), content }
        })
        .collect();
    let declaration: Arc<str> = processor.declaration.as_str().into();
    let sink = match repartitions {
        Some(side) => repartition_sink(config, side, reader::id_of(&declaration)),
        None => {
            let first = inputs.first().map(|input| input.at.clone());
            sink_for(config, &name, first.expect("a sub-topology has an input"))
        }
    };
    let identity = Identity {
        application: config.topology.names().application(&name),
        name,
        declaration,
    };
    let stages = Stages {
        sink,
        loading: first_snapshots(config, repartitions, task.id.partition),
    };
    Reader::new(identity, inputs, stages, config.fetch.clone())
}

/// What a task waits for before it writes its loaded mark. Windows and joins of events have no state that a first snapshot
/// completes.
fn first_snapshots(config: &Config, repartitions: Option<Side>, partition: i32) -> Loading {
    let (topology, processor) = (&config.topology, &config.processor);
    if !topology.processor_has_snapshot(processor) {
        return Loading::new(None, []);
    }
    let feeds = processor.feeds();
    let of_task = |side: Side| repartitions.is_none_or(|repartitioned| repartitioned == side);
    let waits = feeds
        .iter()
        .filter(|(side, feed)| of_task(*side) && topology.has_snapshot(feed.input));
    let sides: Vec<Side> = waits.map(|(side, _)| *side).collect();
    let Some((_, feed)) = feeds.iter().find(|(side, _)| sides.contains(side)) else {
        return Loading::new(None, []);
    };
    let names = topology.names();
    let (name, partitions, writers, value) = match repartitions {
        Some(side) => {
            let topic = processor.repartition_topic(&names, side);
            let value = repartition::mark(reader::id_of(&processor.declaration));
            (topic, feed.partitions, topology.partitions_of(feed.input), value)
        }
        None => {
            let mut value = Vec::new();
            Loaded { loaded: true }.write(SchemaId(config.loaded_schema_id), &mut value);
            let topic = names.processor(&processor.name);
            (topic, processor.partitions, feed.partitions, value)
        }
    };
    let topic = MarkTopic {
        name: name.into(),
        partitions,
        mark: LoadedMark {
            writer: partition,
            writers,
        },
        value,
    };
    Loading::new(Some(topic), sides)
}

fn direct(config: &Config, sides: &[Side], topic_id: &str) -> TopicContent {
    let mut event = None;
    let feeds = config.processor.feeds();
    let of_side = |side: &Side| feeds.iter().find(|(known, _)| known == side);
    let relations = sides.iter().filter_map(of_side).map(|(side, feed)| {
        let (name, is_event) = name_of(&config.topology, feed);
        if is_event {
            event = Some(name.clone());
        }
        let rows = feed
            .is_table
            .then(|| TableRows::new(side.name(), topic_id.to_owned(), config.horizon_ms, config.sweep_step));
        let declared = config.topology.schema_of(feed.input).cloned();
        let declared = declared.expect("a checked topology declares each input of a processor");
        Relation::new(*side, name, declared, Shape::new(config.processor.clone(), *side), rows)
    });
    let relations = relations.collect();
    TopicContent::Direct { event, relations }
}

/// The name of an input in its records, and whether its topic contains only records of this input.
fn name_of(topology: &Topology, feed: &Feed) -> (String, bool) {
    let (name, is_alone) = match feed.input {
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
    (
        name.expect("a checked topology declares each input of a processor"),
        is_alone,
    )
}

fn repartition_sink(config: &Config, side: Side, declaration: u64) -> Box<dyn Sink> {
    let (processor, names) = (&config.processor, config.topology.names());
    let by_time = match &processor.work {
        Work::Aggregate(aggregate) => aggregate.window.is_some(),
        Work::Join(_) => false,
    };
    Box::new(Repartition::new(
        processor.repartition_topic(&names, side).into(),
        declaration,
        by_time,
    ))
}

/// The sink of the main sub-topology. `input` is the partition to which dead letters without a record belong.
fn sink_for(config: &Config, name: &Arc<str>, input: TopicPartition) -> Box<dyn Sink> {
    let (processor, names) = (&config.processor, config.topology.names());
    let output = || OutputTopic::new(names.processor(&processor.name), processor, config.schema_id);
    if let Some(groups) = Groups::new(name, processor, output(), input) {
        return Box::new(groups);
    }
    let pairs = Pairs::new(name, processor, output());
    Box::new(pairs.expect("a processor is an aggregate or a join"))
}

#[cfg(test)]
mod tests;
