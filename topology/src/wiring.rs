//! Topics, processors and links that follow from a topology.
//!
//! Links have the direction of the data flow, so the readers and writers of a topic can be derived from them.
//! Everything has the order of the file. `docs/reference/topology.md` lists the settings of topics.

use crate::checked::{Input, OutputKind, SYNC_VIEWS, Source, SourceKind, Topology, VIEW_LOG, Work};
use std::fmt;

/// Milliseconds per hour.
const HOUR_MS: i64 = 3_600_000;
/// Milliseconds per day.
const DAY_MS: i64 = 24 * HOUR_MS;

/// Retention of a repartition topic whose record timestamps are event times, per partition: 4 GiB.
const REPARTITION_BYTES: i64 = 4 << 30;

/// Topic of the connectors' positions.
pub const POSITIONS: &str = "connect.positions";

/// Cleanup policy of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleanup {
    /// Old records are deleted.
    Delete,
    /// Compaction: only the newest record of each key is kept.
    Compact,
}

/// Kind of a topic, which determines who creates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicKind {
    /// Changes of a source; created at start.
    Change,
    /// Events; created at start.
    Event,
    /// Positions of connectors; created at start.
    Positions,
    /// All views; created at start.
    ViewLog,
    /// Output of a declarative processor; created at start.
    Processor,
    /// Repartitioned input of a declarative processor; created at start.
    Repartition,
    /// State of a processor; created by the processor.
    Changelog,
    /// Dead letters; created by the processor.
    DeadLetter,
}

/// A topic and its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: TopicKind,
    /// Partitions.
    pub partitions: i32,
    /// `cleanup.policy`.
    pub cleanup: Cleanup,
    /// Whether `message.timestamp.type` is `LogAppendTime`.
    pub log_append_time: bool,
    /// `retention.ms`.
    pub retention_ms: Option<i64>,
    /// `retention.bytes`, per partition.
    pub retention_bytes: Option<i64>,
    /// `min.compaction.lag.ms`.
    pub min_compaction_lag_ms: Option<i64>,
    /// `delete.retention.ms`.
    pub delete_retention_ms: Option<i64>,
}

impl Topic {
    /// A topic with this retention time.
    fn with_retention(name: String, kind: TopicKind, partitions: i32, days: i64) -> Self {
        Topic {
            retention_ms: Some(days * DAY_MS),
            cleanup: Cleanup::Delete,
            ..Topic::compacted(name, kind, partitions)
        }
    }

    /// A compacted topic.
    fn compacted(name: String, kind: TopicKind, partitions: i32) -> Self {
        Topic {
            name,
            kind,
            partitions,
            cleanup: Cleanup::Compact,
            log_append_time: false,
            retention_ms: None,
            retention_bytes: None,
            min_compaction_lag_ms: None,
            delete_retention_ms: None,
        }
    }

    /// Whether a node creates the topic before its roles start. Processors create the other topics.
    pub fn is_created_at_start(&self) -> bool {
        !matches!(self.kind, TopicKind::Changelog | TopicKind::DeadLetter)
    }
}

/// An input of a processor. Inputs with the same store belong to the same sub-topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessorInput {
    /// The topic.
    pub topic: String,
    /// Number of partitions, and so of tasks.
    pub partitions: i32,
    /// Store of these tasks; also the name of the sub-topology.
    pub store: String,
}

impl ProcessorInput {
    /// The changelog topic of the store.
    pub fn changelog(&self, processor: &str) -> String {
        format!("{processor}.changelog.{}", self.store)
    }
}

/// A processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processor {
    /// Name of the processor and of its consumer group.
    pub name: String,
    /// Inputs.
    pub inputs: Vec<ProcessorInput>,
    /// Output topics, without changelogs and dead-letter topics.
    pub outputs: Vec<String>,
}

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// An external system: a database, backends, devices.
    Outside(String),
    /// A connector.
    Connector(String),
    /// The ingest listener for events.
    Ingest,
    /// A topic.
    Topic(String),
    /// A processor.
    Processor(String),
    /// All edges.
    Edge,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Outside(name) | Part::Topic(name) | Part::Processor(name) => f.write_str(name),
            Part::Connector(name) => write!(f, "connector {name}"),
            Part::Ingest => f.write_str("ingest"),
            Part::Edge => f.write_str("edge"),
        }
    }
}

/// A data flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// Origin.
    pub from: Part,
    /// Destination.
    pub to: Part,
}

/// Everything that follows from a topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    /// All topics.
    pub topics: Vec<Topic>,
    /// All processors.
    pub processors: Vec<Processor>,
    /// All links, without duplicates.
    pub links: Vec<Link>,
}

impl Wiring {
    /// Derives topics, processors and links from a topology.
    pub fn of(topology: &Topology) -> Self {
        let processors: Vec<Processor> = sync_views(topology).into_iter().chain(declarative(topology)).collect();
        let topics = topics(topology, &processors);
        let links = links(topology, &processors);
        Wiring {
            topics,
            processors,
            links,
        }
    }

    /// The topics that a node creates before its roles start.
    pub fn topics_at_start(&self) -> impl Iterator<Item = &Topic> {
        self.topics.iter().filter(|topic| topic.is_created_at_start())
    }

    /// A topic by its name.
    pub fn topic(&self, name: &str) -> Option<&Topic> {
        self.topics.iter().find(|topic| topic.name == name)
    }

    /// The topics that a part reads.
    pub fn reads<'w>(&'w self, part: &'w Part) -> impl Iterator<Item = &'w str> {
        self.links
            .iter()
            .filter(move |link| link.to == *part)
            .filter_map(|link| topic_name(&link.from))
    }

    /// The topics that a part writes.
    pub fn writes<'w>(&'w self, part: &'w Part) -> impl Iterator<Item = &'w str> {
        self.links
            .iter()
            .filter(move |link| link.from == *part)
            .filter_map(|link| topic_name(&link.to))
    }
}

fn topic_name(part: &Part) -> Option<&str> {
    match part {
        Part::Topic(name) => Some(name),
        _ => None,
    }
}

/// The processor `sync-views`: reads all inputs of views, in the order of sources, events and processors.
fn sync_views(topology: &Topology) -> Option<Processor> {
    let mut inputs: Vec<ProcessorInput> = Vec::new();
    let mut add = |topic: String, partitions: i32, used: bool| {
        if used {
            inputs.push(ProcessorInput {
                store: topic.clone(),
                topic,
                partitions,
            });
        }
    };
    for (at, source) in topology.sources.iter().enumerate() {
        let reads = |input: Input| matches!(input, Input::Table { source, .. } if source == at);
        add(source.topic(), 1, topology.views.iter().any(|view| reads(view.input)));
    }
    for (at, event) in topology.events.iter().enumerate() {
        add(
            event.topic(),
            event.partitions,
            topology.views.iter().any(|view| view.input == Input::Event(at)),
        );
    }
    for (at, processor) in topology.processors.iter().enumerate() {
        let used = topology.views.iter().any(|view| view.input == Input::Processor(at));
        add(processor.topic(), processor.partitions, used);
    }
    let name = String::from(SYNC_VIEWS);
    (!inputs.is_empty()).then(|| Processor {
        name,
        inputs,
        outputs: vec![String::from(VIEW_LOG)],
    })
}

/// The declarative processors. An input is read directly or through a repartition topic.
fn declarative(topology: &Topology) -> impl Iterator<Item = Processor> {
    topology.processors.iter().map(|processor| {
        let store = processor.store();
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        let mut add = |topic: String, partitions: i32, store: String| {
            let input = ProcessorInput {
                topic,
                partitions,
                store,
            };
            if !inputs.contains(&input) {
                inputs.push(input);
            }
        };
        for (side, feed) in processor.feeds() {
            let topic = topology.topic_of(feed.input);
            if feed.is_direct {
                add(topic, feed.partitions, String::from(store));
                continue;
            }
            let between = processor.repartition_topic(side);
            add(
                topic,
                topology.partitions_of(feed.input),
                String::from(processor.rekey_store(side)),
            );
            add(between.clone(), feed.partitions, String::from(store));
            outputs.push(between);
        }
        outputs.push(processor.topic());
        Processor {
            name: processor.name.clone(),
            inputs,
            outputs,
        }
    })
}

/// The topics of declarative processors.
fn processor_topics(topology: &Topology, topics: &mut Vec<Topic>) {
    for processor in &topology.processors {
        let (topic, partitions) = (processor.topic(), processor.partitions);
        topics.push(match processor.output {
            OutputKind::Table => Topic {
                delete_retention_ms: Some(7 * DAY_MS),
                ..Topic::compacted(topic, TopicKind::Processor, partitions)
            },
            OutputKind::Windows | OutputKind::Stream => {
                Topic::with_retention(topic, TopicKind::Processor, partitions, 7)
            }
        });
        let by_event_time = matches!(
            &processor.work,
            Work::Aggregate(aggregate) if aggregate.window.as_ref().is_some_and(|window| window.time.is_some())
        );
        for (side, feed) in processor.feeds().into_iter().filter(|(_, feed)| !feed.is_direct) {
            let name = processor.repartition_topic(side);
            let topic = Topic::with_retention(name, TopicKind::Repartition, feed.partitions, 7);
            // The record timestamps in this topic are event times. With time-based retention, records of old events
            // would be deleted before they are read.
            topics.push(if by_event_time {
                Topic {
                    retention_ms: Some(-1),
                    retention_bytes: Some(REPARTITION_BYTES),
                    ..topic
                }
            } else {
                topic
            });
        }
    }
}

fn topics(topology: &Topology, processors: &[Processor]) -> Vec<Topic> {
    let mut topics = Vec::new();
    for source in &topology.sources {
        topics.push(Topic::with_retention(source.topic(), TopicKind::Change, 1, 7));
    }
    for event in &topology.events {
        topics.push(Topic::with_retention(
            event.topic(),
            TopicKind::Event,
            event.partitions,
            7,
        ));
    }
    processor_topics(topology, &mut topics);
    if !topology.sources.is_empty() {
        topics.push(Topic::compacted(String::from(POSITIONS), TopicKind::Positions, 1));
    }
    topics.push(Topic {
        log_append_time: true,
        min_compaction_lag_ms: Some(6 * HOUR_MS),
        delete_retention_ms: Some(7 * DAY_MS),
        ..Topic::compacted(String::from(VIEW_LOG), TopicKind::ViewLog, topology.view_log_partitions)
    });
    for processor in processors {
        for input in &processor.inputs {
            let changelog = Topic {
                log_append_time: true,
                delete_retention_ms: Some(7 * DAY_MS),
                ..Topic::compacted(input.changelog(&processor.name), TopicKind::Changelog, input.partitions)
            };
            let dead_letters = dead_letter_topic(&input.topic);
            let dead_letters = Topic::with_retention(dead_letters, TopicKind::DeadLetter, input.partitions, 30);
            // Inputs can share a store, and processors can share an input.
            for topic in [changelog, dead_letters] {
                if topics.iter().all(|known| known.name != topic.name) {
                    topics.push(topic);
                }
            }
        }
    }
    topics
}

fn dead_letter_topic(topic: &str) -> String {
    format!("{topic}.dlq")
}

fn links(topology: &Topology, processors: &[Processor]) -> Vec<Link> {
    let mut links = Vec::new();
    let mut link = |from: Part, to: Part| {
        let link = Link { from, to };
        if !links.contains(&link) {
            links.push(link);
        }
    };
    for source in &topology.sources {
        let connector = Part::Connector(source.name.to_string());
        link(Part::Outside(outside_of(source)), connector.clone());
        link(connector.clone(), Part::Topic(source.topic()));
        link(connector.clone(), Part::Topic(String::from(POSITIONS)));
        link(Part::Topic(String::from(POSITIONS)), connector);
    }
    for event in &topology.events {
        link(Part::Outside(String::from("backends")), Part::Ingest);
        link(Part::Ingest, Part::Topic(event.topic()));
    }
    for processor in processors {
        let this = Part::Processor(processor.name.clone());
        for input in &processor.inputs {
            let changelog = Part::Topic(input.changelog(&processor.name));
            link(Part::Topic(input.topic.clone()), this.clone());
            link(this.clone(), changelog.clone());
            link(changelog, this.clone());
            link(this.clone(), Part::Topic(dead_letter_topic(&input.topic)));
        }
        for output in &processor.outputs {
            link(this.clone(), Part::Topic(output.clone()));
        }
    }
    link(Part::Topic(String::from(VIEW_LOG)), Part::Edge);
    link(Part::Edge, Part::Outside(String::from("devices")));
    links
}

fn outside_of(source: &Source) -> String {
    match source.kind {
        SourceKind::Postgres => String::from("PostgreSQL"),
        SourceKind::Http => String::from("backends"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::SHOP;
    use expect_test::expect;
    use std::fmt::Write;

    #[test]
    fn shop_topics_have_the_documented_settings() {
        let wiring = Wiring::of(&SHOP.check().into_result().unwrap());
        let mut out = String::new();
        for t in &wiring.topics {
            let days = |ms: Option<i64>| ms.map_or(String::from("-"), |ms| format!("{}h", ms / HOUR_MS));
            writeln!(
                out,
                "{} {} {:?} append={} retention={} lag={} delete={} start={}",
                t.name,
                t.partitions,
                t.cleanup,
                t.log_append_time,
                days(t.retention_ms),
                days(t.min_compaction_lag_ms),
                days(t.delete_retention_ms),
                t.is_created_at_start()
            )
            .unwrap();
        }
        expect![[r#"
            change.shop 1 Delete append=false retention=168h lag=- delete=- start=true
            event.delivery_moved 12 Delete append=false retention=168h lag=- delete=- start=true
            event.order_viewed 12 Delete append=false retention=168h lag=- delete=- start=true
            connect.positions 1 Compact append=false retention=- lag=- delete=- start=true
            view.log 16 Compact append=true retention=- lag=6h delete=168h start=true
            sync-views.changelog.change.shop 1 Compact append=true retention=- lag=- delete=168h start=false
            change.shop.dlq 1 Delete append=false retention=720h lag=- delete=- start=false
            sync-views.changelog.event.delivery_moved 12 Compact append=true retention=- lag=- delete=168h start=false
            event.delivery_moved.dlq 12 Delete append=false retention=720h lag=- delete=- start=false
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn declarative_processor_reads_directly_or_repartitions() {
        let wiring = Wiring::of(&crate::samples::STREAMS.check().into_result().unwrap());
        let mut out = String::new();
        for processor in wiring.processors.iter().filter(|p| p.name != SYNC_VIEWS) {
            for input in &processor.inputs {
                let (topic, count, store) = (&input.topic, input.partitions, &input.store);
                writeln!(out, "{}: {topic} ({count}) -> {store}", processor.name).unwrap();
            }
            writeln!(out, "{}: writes {}", processor.name, processor.outputs.join(", ")).unwrap();
        }
        expect![[r#"
            orders_by_customer: change.shop (1) -> groups
            orders_by_customer: writes processor.orders_by_customer
            customers_by_orders: processor.orders_by_customer (3) -> rekey
            customers_by_orders: customers_by_orders.repartition (2) -> groups
            customers_by_orders: writes customers_by_orders.repartition, processor.customers_by_orders
            orders_per_minute: change.shop (1) -> rekey
            orders_per_minute: orders_per_minute.repartition (2) -> groups
            orders_per_minute: writes orders_per_minute.repartition, processor.orders_per_minute
            views_with_customer: event.order_viewed (3) -> rekey.left
            views_with_customer: views_with_customer.repartition.left (3) -> pairs
            views_with_customer: change.shop (1) -> rekey.right
            views_with_customer: views_with_customer.repartition.right (3) -> pairs
            views_with_customer: writes views_with_customer.repartition.left, views_with_customer.repartition.right, processor.views_with_customer
        "#]].assert_eq(&out);
    }

    #[test]
    fn links_give_readers_and_writers_of_a_topic() {
        let wiring = Wiring::of(&SHOP.check().into_result().unwrap());
        let sync_views = Part::Processor(String::from(SYNC_VIEWS));
        let reads: Vec<_> = wiring
            .reads(&sync_views)
            .filter(|topic| !topic.contains("changelog"))
            .collect();
        assert_eq!(reads, ["change.shop", "event.delivery_moved"]);
        assert!(wiring.writes(&sync_views).any(|topic| topic == VIEW_LOG));
        assert_eq!(wiring.reads(&Part::Edge).collect::<Vec<_>>(), [VIEW_LOG]);
        assert_eq!(wiring.writes(&Part::Edge).count(), 0);
    }
}
