//! Simulation of the views path with production code end to end: source transactions, sync-views in stream threads over
//! the simulated log with its faults, `view.log` with compaction, replicas, and devices that switch replicas and whose
//! pages are lost, repeated or delayed.
//!
//! The oracle recomputes the views from the whole history, and compares them with the sources' databases at each
//! transaction end marker. It checks the invariants I1 to I6 and I8 to I11 of docs/protocol/view-sync.md.
//! `TRUNKLINE_VIEWS_SIMULATION=FROM,COUNT` runs other seeds.

mod edge;
mod events;
mod oracle;
mod page;
mod row;
mod source;

use super::{Config as SyncViewsConfig, StepLimits, SyncViews, Unavailable};
use edge::Readers;
use event_log::{ErrorAction, Millis, TopicPartition};
use events::Events;
use row::{ROW, ROW_ID};
use schemas::schema::Schema;
use source::Source;
use std::sync::Arc;
use streams::{Application, Config, FirstStart, SubTopology, TaskInfo, changelog_topic};
use streams_test::simulation::{
    Broker, Checked, Cleaning, Environment, FaultRates, Layout, ProcessLog, Rng, Scenario, Tasks, run, seeds, simulate,
};
use views::record::SchemaIds;
use views::rules::{Piece, Relation, SourceRules, ViewRule};

const APPLICATION: &str = "sync-views";
const VIEW_LOG: &str = "shop.view.log";
const EVENTS: &str = "shop.event.e";
const PARTITIONS: i32 = 2;
/// `min.compaction.lag.ms` of `view.log`; half of it is longer than a transaction may be open.
const LAG: Millis = 1_500;
const DELETE_RETENTION: Millis = 12_000;
const MARGIN: Millis = 2_000;
const HORIZON: Millis = DELETE_RETENTION - MARGIN;
/// Age at which a cursor is replaced by a fresh one.
const REFRESH: Millis = 1_000;
/// A table has up to five rows, so a job needs several steps.
const JOB_STEP: StepLimits = StepLimits {
    visited: 3,
    found: 1,
    bytes: usize::MAX,
};
/// The views of the databases, which have a first snapshot.
const SNAPSHOT_VIEWS: [&str; 2] = ["x", "y"];
const BUCKETS: [char; 4] = ['a', 'b', 'c', 'd'];
/// Number of seeds of a run without `TRUNKLINE_VIEWS_SIMULATION`.
const SEEDS: u64 = 300;
/// From this number of seeds on, every kind of fault must have occurred at least once. `just simulate` and the nightly
/// workflow run that many.
const COVERAGE_SEEDS: u64 = 10_000;

/// The schema as a later topology declares it. Records with [`ROW`] are read by schema resolution.
const LATER_ROW: &str = r#"{"type":"record","name":"row","fields":[
    {"name":"pad","type":["null","string"]},{"name":"scope","type":["null","string"]},
    {"name":"added","type":["null","long"],"default":null},{"name":"label","aliases":["name"],"type":["string","null"]},
    {"name":"note","type":"string"},{"name":"_unchanged","type":["null",{"type":"array","items":"string"}]},
    {"name":"value","type":"long"}]}"#;

/// The scope of a bucket; the two scopes are in different partitions.
fn scope_of(bucket: char) -> &'static str {
    if matches!(bucket, 'a' | 'b') { "s" } else { "w" }
}

fn bucket_of(bucket: char) -> String {
    format!("{}:{bucket}", scope_of(bucket))
}

fn partition_of(bucket: char) -> i32 {
    views::partition_of(scope_of(bucket), PARTITIONS)
}

/// An input topic and its view.
struct InputTopic {
    name: &'static str,
    view: &'static str,
    partitions: i32,
}

const INPUTS: [InputTopic; 3] = [
    InputTopic {
        name: "shop.change.x",
        view: "x",
        partitions: 1,
    },
    InputTopic {
        name: "shop.change.y",
        view: "y",
        partitions: 1,
    },
    InputTopic {
        name: EVENTS,
        view: "e",
        partitions: 2,
    },
];

/// The rules of an input's view. They change while the simulation runs: with `pad_field`, `pad` is a field of the view.
fn rules(input: &InputTopic, pad_field: bool) -> Arc<SourceRules> {
    let (topic, view) = (input.name, input.view);
    // Only the records of one topic have the declared schema.
    let schema = Schema::parse(if view == "x" { ROW } else { LATER_ROW }).expect("a valid schema");
    let at = |name: &str| schema.fields().iter().position(|field| *field.name == *name);
    let name = at("name").or(at("label")).expect("a declared field");
    let [scope, value, note, pad] = ["scope", "value", "note", "pad"].map(|name| at(name).expect("a declared field"));
    let rule = ViewRule {
        name: view.to_owned(),
        version: u64::from(pad_field),
        bucket: vec![Piece::Column(scope), Piece::Column(name)],
        scope: vec![Piece::Column(scope)],
        filter: None,
        fields: [("value", value), ("note", note), ("pad", pad)]
            .into_iter()
            .map(|(name, column)| (name.to_owned(), column))
            .take(2 + usize::from(pad_field))
            .collect(),
    };
    let used = [scope, name, value, note, pad].into();
    let event = (topic == EVENTS).then(|| view.to_owned());
    let relation = Relation::new(view, Arc::new(schema), &used, vec![rule], PARTITIONS);
    Arc::new(SourceRules::new(topic, event, vec![relation]))
}

/// Two databases and an event topic, sync-views, and three devices.
struct Views {
    sources: Vec<Source>,
    events: Events,
    readers: Option<Readers>,
    snapshots: u32,
    /// The rules of processes that start.
    pad: bool,
}

impl Views {
    fn new(rng: &mut Rng) -> Self {
        Views {
            sources: vec![Source::new("x", 5, rng), Source::new("y", 3, rng)],
            events: Events::default(),
            readers: None,
            snapshots: 0,
            pad: true,
        }
    }

    /// A random event at the sources.
    fn write(&mut self, broker: &mut Broker, rng: &mut Rng) {
        let index = rng.below(2);
        let source = &mut self.sources[index];
        match rng.below(1000) {
            0..90 => source.change(rng),
            90..200 => {
                for _ in 0..1 + rng.below(3) {
                    source.emit(broker, rng, true);
                }
                source.snapshot_step();
            }
            200..255 => self.events.emit(broker, rng),
            255..260 => self.events.redrive(broker, rng),
            260..275 => source.replay(broker, rng),
            275..287 => source.redrive(broker, rng),
            287..290 => source.lose_slot(),
            290..294 => source.snapshot(),
            300..305 => {
                broker.note("rules changed");
                self.pad = !self.pad;
            }
            294..300 => broker.pass(rng.pick(&[300, 900, 3000, 6000])),
            _ => {}
        }
    }
}

impl Scenario for Views {
    type Program = Vec<Arc<SourceRules>>;

    fn layout(&self) -> Layout {
        let mut tasks = Tasks::new();
        for input in &INPUTS {
            for partition in 0..input.partitions {
                let changelog = TopicPartition::new(changelog_topic(APPLICATION, input.name), partition);
                tasks.insert(changelog, vec![TopicPartition::new(input.name, partition)]);
            }
        }
        let cleaning = Cleaning {
            lag_ms: LAG,
            delete_retention_ms: DELETE_RETENTION,
        };
        let view_log = (0..PARTITIONS).map(|p| (TopicPartition::new(VIEW_LOG, p), cleaning));
        Layout {
            tasks,
            compacted: view_log.collect(),
        }
    }

    fn program(&self) -> Self::Program {
        INPUTS.iter().map(|input| rules(input, self.pad)).collect()
    }

    fn application(inputs: &Self::Program, log: &ProcessLog, config: &mut Config) -> Application {
        config.commit.touches_view_log = true;
        let sub = |rules: &Arc<SourceRules>| {
            let (rules, log, topic) = (rules.clone(), log.clone(), rules.topic().to_owned());
            SubTopology {
                name: topic.clone(),
                inputs: vec![topic.clone()],
                store: topic,
                first_start: FirstStart::Earliest,
                factory: Arc::new(move |task: &TaskInfo| {
                    let topic_id = task.inputs.first().map(|i| i.id.to_string()).unwrap_or_default();
                    let (topic, partition) = (rules.topic(), task.id.partition);
                    let config = SyncViewsConfig {
                        rules: rules.clone(),
                        writer: format!("{APPLICATION}/{topic}/{topic_id}/{partition}"),
                        topic_id,
                        view_log: VIEW_LOG.into(),
                        partitions: PARTITIONS,
                        schemas: SchemaIds {
                            row: 1,
                            transaction_end: 2,
                            transaction_begin: 3,
                            stale: 4,
                            loaded: 5,
                        },
                        horizon_ms: HORIZON,
                        job_step: JOB_STEP,
                        fetch: Arc::new(schema),
                    };
                    let changelog = TopicPartition::new(changelog_topic(APPLICATION, topic), partition);
                    Box::new(Checked::new(Box::new(SyncViews::new(config)), log.clone(), changelog))
                }),
            }
        };
        Application {
            name: APPLICATION.to_owned(),
            subtopologies: inputs.iter().map(sub).collect(),
        }
    }

    fn adjust(&mut self, faults: &mut FaultRates) {
        // A clock jump makes every cursor and every replica too old at the same time, so such jumps are rare here.
        faults.jump /= 4.0;
    }

    fn step(&mut self, environment: &mut Environment<'_>) -> Result<(), String> {
        let (broker, rng) = (&mut *environment.broker, &mut *environment.rng);
        let readers = self.readers.get_or_insert_with(|| Readers::new(broker.now()));
        for oracle in &mut readers.oracles {
            oracle.follow(broker, &self.sources)?;
        }
        readers.step(broker, rng)?;
        if !environment.draining {
            self.write(broker, rng);
            return Ok(());
        }
        for source in &mut self.sources {
            source.snapshot_step();
            source.emit(broker, rng, false);
        }
        Ok(())
    }

    /// Whether there is nothing left to stream, every view is loaded and none is stale. A snapshot clears the staleness of tables, new
    /// events that of event topics.
    fn is_idle(&mut self, broker: &mut Broker) -> bool {
        let Some(readers) = &self.readers else { return false };
        let stale = |view: &str| {
            readers
                .oracles
                .iter()
                .any(|o| o.now().stale.iter().any(|(of, _)| of == view))
        };
        let is_loaded = |view: &str| readers.oracles.iter().all(|o| o.now().loaded.contains(view));
        for source in &mut self.sources {
            if source.snapshot_step() || source.emit(broker, &mut Rng::of_seed(0), false) {
                return false;
            }
            let is_whole = !source.is_behind() && !stale(source.name) && is_loaded(source.name);
            if !is_whole && self.snapshots < 8 {
                self.snapshots += 1;
                // The positions of a database advance between two snapshots. A row that an earlier one removed may have
                // been forgotten, and then a snapshot at the same position would prove nothing.
                source.change(&mut Rng::of_seed(u64::from(self.snapshots)));
                source.snapshot();
                return false;
            }
        }
        if stale("e") && self.snapshots < 8 {
            self.snapshots += 1;
            Events::rewrite_all(broker);
            return false;
        }
        true
    }

    fn verify(&mut self, broker: &mut Broker, rng: &mut Rng) -> Result<(), String> {
        let readers = self.readers.as_mut().ok_or("the simulation had no step")?;
        for oracle in &mut readers.oracles {
            oracle.follow(broker, &self.sources)?;
            if !oracle.is_closed() || !oracle.now().stale.is_empty() {
                return Err(format!(
                    "I13: rows are pending or views stale although the log is idle: {:?}",
                    oracle.now().stale
                ));
            }
            oracle.verify(broker, &self.sources)?;
        }
        readers.verify(broker, rng)
    }
}

/// A registry with one schema.
fn schema(id: u32) -> Result<String, Unavailable> {
    if id == ROW_ID {
        return Ok(ROW.to_owned());
    }
    Err(Unavailable {
        reason: format!("schema {id} is not registered"),
        action: ErrorAction::DeadLetter,
    })
}

#[test]
fn devices_under_random_faults_hold_the_view_of_the_whole_history() {
    assert_ne!(
        partition_of('a'),
        partition_of('c'),
        "the scopes need different partitions"
    );
    let seeds = seeds("TRUNKLINE_VIEWS_SIMULATION", SEEDS);
    let (from, count) = (seeds.start, seeds.end - seeds.start);
    let began = std::time::Instant::now();
    let notes = simulate(seeds, Views::new).unwrap_or_else(|failure| {
        panic!(
            "{failure}\nreproduce: TRUNKLINE_VIEWS_SIMULATION={},1 cargo test --release -p trunkline-processors \
             devices_under_random_faults",
            failure.seed
        )
    });
    println!("{count} seeds from {from} in {:?}: {notes:?}", began.elapsed());
    if count < COVERAGE_SEEDS {
        return;
    }
    let all = [
        "started",
        "kill",
        "pause",
        "wipe",
        "batches lost",
        "committed",
        "aborted",
        "fenced",
        "exit",
        "outcome unknown",
        "transaction timed out",
        "jump",
        "rebalance",
        "cleaned",
        "tombstones cleaned",
        "truncate",
        "rules changed",
        "key change",
        "key change without the note",
        "dead letter",
        "dead chunk end",
        "loading",
        "missing record",
        "redriven",
        "dead event",
        "redriven event",
        "replayed",
        "replica too old",
        "replica wiped",
        "replica.before_commit",
        "replica.after_commit",
        "replica.mid_apply",
        "not ready",
        "behind",
        "not modified",
        "complete",
        "page",
        "page lost",
        "page repeated",
        "page late",
        "page out of order",
    ];
    let missing: Vec<&str> = all.into_iter().filter(|what| !notes.contains_key(what)).collect();
    assert!(
        missing.is_empty(),
        "these events never happened, so the simulation does not cover them: {missing:?}"
    );
}

#[test]
fn views_seed_reproduces_its_run() {
    for seed in 1..20 {
        assert_eq!(run(seed, &Views::new), run(seed, &Views::new), "seed {seed}");
    }
}
