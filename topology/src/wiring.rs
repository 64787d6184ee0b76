//! Topics, processors and links that follow from a topology.
//!
//! Links have the direction of the data flow, so the readers and writers of a topic can be derived from them.
//! Everything has the order of the file. `docs/reference/topology.md` lists the settings of topics.

use crate::checked::{Input, OutputKind, SYNC_VIEWS, Source, SourceKind, Topology, Work};
use crate::resource_names::Names;
use std::fmt;

/// Milliseconds per hour.
const HOUR_MS: i64 = 3_600_000;
/// Milliseconds per day.
const DAY_MS: i64 = 24 * HOUR_MS;

/// Retention of a repartition topic whose record timestamps are event times, per partition: 4 GiB.
const REPARTITION_BYTES: i64 = 4 << 30;

/// Name of the store, and of the sub-topology, of each application of sync-views.
pub const SYNC_VIEWS_STORE: &str = "rows";

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
    /// Admin addresses of processes; created by the processors.
    Members,
    /// All views; created at start.
    ViewLog,
    /// Output of a declarative processor; created at start.
    Processor,
    /// Repartitioned input of a declarative processor; created at start.
    Repartition,
    /// State of a processor; created by the processor.
    Changelog,
    /// Dead letters; created by the connector or the processor that writes them.
    DeadLetter,
}

/// `max.message.bytes` of the positions topic. The static record of a source with 2,000 tables of 30 columns has about
/// 8 MiB.
pub const POSITION_BYTES_MAX: i64 = 16 << 20;

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
    /// `max.message.bytes`.
    pub max_message_bytes: Option<i64>,
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
            max_message_bytes: None,
        }
    }

    /// Whether a node creates the topic before its roles start. Processors create the other topics.
    pub fn is_created_at_start(&self) -> bool {
        !matches!(
            self.kind,
            TopicKind::Members | TopicKind::Changelog | TopicKind::DeadLetter
        )
    }
}

/// An input of a processor. Inputs with the same group and store belong to the same sub-topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessorInput {
    /// The topic.
    pub topic: String,
    /// Consumer group that reads it.
    pub group: String,
    /// Number of partitions, and so of tasks.
    pub partitions: i32,
    /// Store of these tasks; also the name of the sub-topology.
    pub store: String,
    /// The changelog topic of the store.
    pub changelog: String,
}

/// A processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processor {
    /// Name.
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

/// The processor `sync-views`: reads all inputs of views, each with its own group, in the order of sources, events and
/// processors.
fn sync_views(topology: &Topology) -> Option<Processor> {
    let names = topology.names();
    let mut inputs: Vec<ProcessorInput> = Vec::new();
    let mut add = |topic: String, partitions: i32, used: bool| {
        if used {
            let group = names.sync_views(&topic);
            inputs.push(ProcessorInput {
                changelog: Names::changelog(&group, SYNC_VIEWS_STORE),
                store: String::from(SYNC_VIEWS_STORE),
                group,
                topic,
                partitions,
            });
        }
    };
    for (at, source) in topology.sources.iter().enumerate() {
        let reads = |input: Input| matches!(input, Input::Table { source, .. } if source == at);
        let used = topology.views.iter().any(|view| reads(view.input));
        add(names.change(source.name.as_str()), 1, used);
    }
    for (at, event) in topology.events.iter().enumerate() {
        add(
            names.event(event.name.as_str()),
            event.partitions,
            topology.views.iter().any(|view| view.input == Input::Event(at)),
        );
    }
    for (at, processor) in topology.processors.iter().enumerate() {
        let used = topology.views.iter().any(|view| view.input == Input::Processor(at));
        add(names.processor(&processor.name), processor.partitions, used);
    }
    (!inputs.is_empty()).then(|| Processor {
        name: String::from(SYNC_VIEWS),
        inputs,
        outputs: vec![names.view_log()],
    })
}

/// The declarative processors. An input is read directly or through a repartition topic.
fn declarative(topology: &Topology) -> impl Iterator<Item = Processor> {
    let names = topology.names();
    topology.processors.iter().map(move |processor| {
        let (store, group) = (processor.store(), names.application(&processor.name));
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        let mut add = |topic: String, partitions: i32, store: String| {
            let input = ProcessorInput {
                changelog: Names::changelog(&group, &store),
                group: group.clone(),
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
            let between = processor.repartition_topic(&names, side);
            add(
                topic,
                topology.partitions_of(feed.input),
                String::from(processor.repartition_store(side)),
            );
            add(between.clone(), feed.partitions, String::from(store));
            outputs.push(between);
        }
        outputs.push(names.processor(&processor.name));
        Processor {
            name: processor.name.clone(),
            inputs,
            outputs,
        }
    })
}

/// The topics of declarative processors.
fn processor_topics(topology: &Topology, topics: &mut Vec<Topic>) {
    let names = topology.names();
    for processor in &topology.processors {
        let (topic, partitions) = (names.processor(&processor.name), processor.partitions);
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
            let name = processor.repartition_topic(&names, side);
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
    let names = topology.names();
    let mut topics = Vec::new();
    for source in &topology.sources {
        let topic = names.change(source.name.as_str());
        topics.push(Topic::with_retention(topic, TopicKind::Change, 1, 7));
    }
    for event in &topology.events {
        topics.push(Topic::with_retention(
            names.event(event.name.as_str()),
            TopicKind::Event,
            event.partitions,
            7,
        ));
    }
    processor_topics(topology, &mut topics);
    if !topology.sources.is_empty() {
        topics.push(Topic {
            max_message_bytes: Some(POSITION_BYTES_MAX),
            ..Topic::compacted(names.positions(), TopicKind::Positions, 1)
        });
    }
    if !processors.is_empty() {
        topics.push(Topic::compacted(names.members(), TopicKind::Members, 1));
    }
    topics.push(Topic {
        log_append_time: true,
        min_compaction_lag_ms: Some(6 * HOUR_MS),
        delete_retention_ms: Some(7 * DAY_MS),
        ..Topic::compacted(names.view_log(), TopicKind::ViewLog, topology.view_log_partitions)
    });
    for processor in processors {
        for input in &processor.inputs {
            let changelog = Topic {
                log_append_time: true,
                delete_retention_ms: Some(7 * DAY_MS),
                ..Topic::compacted(input.changelog.clone(), TopicKind::Changelog, input.partitions)
            };
            let dead_letters = Names::dead_letters(&input.topic);
            let dead_letters = Topic::with_retention(dead_letters, TopicKind::DeadLetter, input.partitions, 30);
            // Inputs can share a store, and processors can share an input.
            for topic in [changelog, dead_letters] {
                if topics.iter().all(|known| known.name != topic.name) {
                    topics.push(topic);
                }
            }
        }
    }
    // A source writes dead letters even if no processor reads it.
    for source in &topology.sources {
        let dead_letters = Names::dead_letters(&names.change(source.name.as_str()));
        if topics.iter().all(|known| known.name != dead_letters) {
            topics.push(Topic::with_retention(dead_letters, TopicKind::DeadLetter, 1, 30));
        }
    }
    topics
}

fn links(topology: &Topology, processors: &[Processor]) -> Vec<Link> {
    let names = topology.names();
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
        let topic = names.change(source.name.as_str());
        link(connector.clone(), Part::Topic(Names::dead_letters(&topic)));
        link(connector.clone(), Part::Topic(topic));
        link(connector.clone(), Part::Topic(names.positions()));
        link(Part::Topic(names.positions()), connector);
    }
    for event in &topology.events {
        link(Part::Outside(String::from("backends")), Part::Ingest);
        link(Part::Ingest, Part::Topic(names.event(event.name.as_str())));
    }
    for processor in processors {
        let this = Part::Processor(processor.name.clone());
        for input in &processor.inputs {
            let changelog = Part::Topic(input.changelog.clone());
            link(Part::Topic(input.topic.clone()), this.clone());
            link(this.clone(), changelog.clone());
            link(changelog, this.clone());
            link(this.clone(), Part::Topic(Names::dead_letters(&input.topic)));
        }
        for output in &processor.outputs {
            link(this.clone(), Part::Topic(output.clone()));
        }
    }
    link(Part::Topic(names.view_log()), Part::Edge);
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
            shop.change.shop 1 Delete append=false retention=168h lag=- delete=- start=true
            shop.event.delivery_moved 12 Delete append=false retention=168h lag=- delete=- start=true
            shop.event.order_viewed 12 Delete append=false retention=168h lag=- delete=- start=true
            shop._trunkline.positions 1 Compact append=false retention=- lag=- delete=- start=true
            shop._trunkline.members 1 Compact append=false retention=- lag=- delete=- start=false
            shop.view.log 16 Compact append=true retention=- lag=6h delete=168h start=true
            shop.sync-views.change.shop.changelog.rows 1 Compact append=true retention=- lag=- delete=168h start=false
            shop.change.shop.dlq 1 Delete append=false retention=720h lag=- delete=- start=false
            shop.sync-views.event.delivery_moved.changelog.rows 12 Compact append=true retention=- lag=- delete=168h start=false
            shop.event.delivery_moved.dlq 12 Delete append=false retention=720h lag=- delete=- start=false
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
            orders_by_customer: streams.change.shop (1) -> groups
            orders_by_customer: writes streams.processor.orders_by_customer
            customers_by_orders: streams.processor.orders_by_customer (3) -> repartition
            customers_by_orders: streams.customers_by_orders.repartition (2) -> groups
            customers_by_orders: writes streams.customers_by_orders.repartition, streams.processor.customers_by_orders
            orders_per_minute: streams.change.shop (1) -> repartition
            orders_per_minute: streams.orders_per_minute.repartition (2) -> groups
            orders_per_minute: writes streams.orders_per_minute.repartition, streams.processor.orders_per_minute
            views_with_customer: streams.event.order_viewed (3) -> repartition.left
            views_with_customer: streams.views_with_customer.repartition.left (3) -> pairs
            views_with_customer: streams.change.shop (1) -> repartition.right
            views_with_customer: streams.views_with_customer.repartition.right (3) -> pairs
            views_with_customer: writes streams.views_with_customer.repartition.left, streams.views_with_customer.repartition.right, streams.processor.views_with_customer
        "#]].assert_eq(&out);
    }

    fn groups(wiring: &Wiring) -> Vec<String> {
        let inputs = wiring.processors.iter().flat_map(|processor| &processor.inputs);
        inputs.map(|input| input.group.clone()).collect()
    }

    #[test]
    fn each_input_of_sync_views_has_its_own_group() {
        let wiring = Wiring::of(&SHOP.check().into_result().unwrap());
        assert_eq!(
            groups(&wiring),
            ["shop.sync-views.change.shop", "shop.sync-views.event.delivery_moved"]
        );
    }

    #[test]
    fn all_names_begin_with_the_name_of_the_topology() {
        for sample in [SHOP, crate::samples::PGBENCH, crate::samples::STREAMS] {
            let topology = sample.check().into_result().unwrap();
            let (names, wiring) = (topology.names(), Wiring::of(&topology));
            let mut all: Vec<String> = wiring.topics.iter().map(|topic| topic.name.clone()).collect();
            all.extend(groups(&wiring));
            all.extend(
                topology
                    .sources
                    .iter()
                    .map(|source| names.connector(source.name.as_str())),
            );
            let prefix = format!("{}.", topology.name);
            assert!(all.iter().all(|name| name.starts_with(&prefix)), "{all:#?}");
            // A link names a topic of the wiring.
            for part in wiring.links.iter().flat_map(|link| [&link.from, &link.to]) {
                let known = topic_name(part).is_none_or(|topic| wiring.topic(topic).is_some());
                assert!(known, "{part}");
            }
        }
    }

    #[test]
    fn topologies_with_different_names_share_nothing() {
        let shop = SHOP.check().into_result().unwrap();
        let stage = Topology {
            name: String::from("shop-stage"),
            ..shop.clone()
        };
        let (shop, stage) = (Wiring::of(&shop), Wiring::of(&stage));
        let names = |wiring: &Wiring| -> Vec<String> {
            let topics = wiring.topics.iter().map(|topic| topic.name.clone());
            topics.chain(groups(wiring)).collect()
        };
        let of_stage = names(&stage);
        assert_eq!(names(&shop).len(), of_stage.len());
        assert!(names(&shop).iter().all(|name| !of_stage.contains(name)));
    }

    #[test]
    fn links_give_readers_and_writers_of_a_topic() {
        let wiring = Wiring::of(&SHOP.check().into_result().unwrap());
        let sync_views = Part::Processor(String::from(SYNC_VIEWS));
        let reads: Vec<_> = wiring
            .reads(&sync_views)
            .filter(|topic| !topic.contains("changelog"))
            .collect();
        assert_eq!(reads, ["shop.change.shop", "shop.event.delivery_moved"]);
        assert!(wiring.writes(&sync_views).any(|topic| topic == "shop.view.log"));
        assert_eq!(wiring.reads(&Part::Edge).collect::<Vec<_>>(), ["shop.view.log"]);
        assert_eq!(wiring.writes(&Part::Edge).count(), 0);
        let source = Part::Connector(String::from("shop"));
        assert!(wiring.writes(&source).any(|topic| topic == "shop.change.shop.dlq"));
    }
}
