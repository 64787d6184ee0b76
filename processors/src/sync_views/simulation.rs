//! The views path under simulation, real code end to end: source transactions, sync-views run by the runtime's threads
//! over the simulated log with its faults, `view.log` with its cleaner, replicas, and devices with lost, repeated and
//! late pages that switch replicas.
//!
//! The oracle is the view recomputed from the whole history, itself held against the sources' databases at each closing:
//! invariants I1–I6 and I8–I11 of the design. `TRUNKLINE_VIEWS_SIMULATION=FROM,COUNT` runs other seeds.
//!
//! Guarantees: what it accepts shows no part of a transaction, no hole, nothing twice, and nothing that went back.
//! Never: a modelled writer, replica, cursor or delta.

mod edge;
mod oracle;
mod source;

use super::{Config as Line, SyncViews, Unavailable};
use edge::Readers;
use event_log::{ErrorAction, Millis, TopicPartition};
use source::{Events, ROW, ROW_ID, Source};
use std::sync::Arc;
use streams::driver::simulation::{
    Broker, Checked, Cleaning, Faults, Home, Layout, Outside, Rng, Scene, Tasks, run, seeds, simulate,
};
use streams::{Application, Config, FirstStart, SubTopology, TaskInfo, changelog_topic};
use views::record::SchemaIds;
use views::rules::{Piece, Relation, SourceRules, ViewRule};

const APPLICATION: &str = "sync-views";
const VIEW_LOG: &str = "view.log";
const EVENTS: &str = "event.e";
const PARTITIONS: i32 = 2;
/// `min.compaction.lag.ms` of `view.log`; half of it is longer than a transaction may be open.
const LAG: Millis = 1_500;
const DELETE_RETENTION: Millis = 12_000;
const MARGIN: Millis = 2_000;
const HORIZON: Millis = DELETE_RETENTION - MARGIN;
/// A cursor that is older is given a fresh one.
const REFRESH: Millis = 1_000;
const BUCKETS: [char; 4] = ['a', 'b', 'c', 'd'];
/// Seeds that every run of the tests takes.
const SEEDS: u64 = 300;
/// From this number of seeds on, every kind of fault must have happened. `just simulate` and the nightly workflow run it.
const COVERAGE_SEEDS: u64 = 10_000;

/// The scope of a bucket; each of the two has a partition of its own.
fn scope_of(bucket: char) -> &'static str {
    if matches!(bucket, 'a' | 'b') { "s" } else { "w" }
}

fn bucket_of(bucket: char) -> String {
    format!("{}:{bucket}", scope_of(bucket))
}

fn partition_of(bucket: char) -> i32 {
    views::partition_of(scope_of(bucket), PARTITIONS)
}

/// Lines: topic, view, partitions.
const LINES: [(&str, &str, i32); 3] = [("change.x", "x", 1), ("change.y", "y", 1), (EVENTS, "e", 2)];

fn rules((topic, view, _): (&str, &str, i32)) -> Arc<SourceRules> {
    let rule = ViewRule {
        name: view.to_owned(),
        bucket: vec![Piece::Column(0), Piece::Column(1)],
        scope: vec![Piece::Column(0)],
        filter: None,
        fields: ["value", "note", "pad"]
            .map(str::to_owned)
            .into_iter()
            .zip(2..)
            .collect(),
    };
    let columns = ["scope", "name", "value", "note", "pad"]
        .map(|name| Some(name.to_owned()))
        .to_vec();
    let event = (topic == EVENTS).then(|| view.to_owned());
    let relation = Relation::new(view, columns, vec![rule], PARTITIONS);
    Arc::new(SourceRules::new(topic, event, vec![relation]))
}

/// The line from two databases and an event topic to three devices.
struct Views {
    sources: Vec<Source>,
    events: Events,
    readers: Option<Readers>,
    snapshots: u32,
}

impl Views {
    fn new(_: &mut Rng) -> Self {
        Views {
            sources: vec![Source::new("x", 5), Source::new("y", 3)],
            events: Events::default(),
            readers: None,
            snapshots: 0,
        }
    }

    /// Something that happens at the sources.
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
            294..300 => broker.pass(rng.pick(&[300, 900, 3000, 6000])),
            _ => {}
        }
    }
}

impl Scene for Views {
    type Program = Vec<Arc<SourceRules>>;

    fn layout(&self) -> Layout {
        let mut tasks = Tasks::new();
        for (topic, _, partitions) in LINES {
            for partition in 0..partitions {
                let changelog = TopicPartition::new(changelog_topic(APPLICATION, topic), partition);
                tasks.insert(changelog, vec![TopicPartition::new(topic, partition)]);
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
        LINES.into_iter().map(rules).collect()
    }

    fn application(lines: &Self::Program, home: &Home, config: &mut Config) -> Application {
        config.commit.touches_view_log = true;
        let sub = |rules: &Arc<SourceRules>| {
            let (rules, home, topic) = (rules.clone(), home.clone(), rules.topic().to_owned());
            SubTopology {
                name: topic.clone(),
                inputs: vec![topic.clone()],
                store: topic,
                first_start: FirstStart::Earliest,
                factory: Arc::new(move |task: &TaskInfo| {
                    let topic_id = task.inputs.first().map(|i| i.id.to_string()).unwrap_or_default();
                    let (topic, partition) = (rules.topic(), task.id.partition);
                    let line = Line {
                        rules: rules.clone(),
                        writer: format!("{APPLICATION}/{topic}/{topic_id}/{partition}"),
                        topic_id,
                        view_log: VIEW_LOG.into(),
                        partitions: PARTITIONS,
                        schemas: SchemaIds {
                            row: 1,
                            closing: 2,
                            open: 3,
                            stale: 4,
                        },
                        horizon_ms: HORIZON,
                        fetch: Arc::new(schema),
                    };
                    let changelog = TopicPartition::new(changelog_topic(APPLICATION, topic), partition);
                    Box::new(Checked::new(Box::new(SyncViews::new(line)), home.clone(), changelog))
                }),
            }
        };
        Application {
            name: APPLICATION.to_owned(),
            subtopologies: lines.iter().map(sub).collect(),
        }
    }

    fn adjust(&mut self, faults: &mut Faults) {
        // A leap makes every cursor and every replica too old at once; the scene lets less time pass besides.
        faults.jump /= 4.0;
    }

    fn moment(&mut self, outside: &mut Outside<'_>) -> Result<(), String> {
        let (broker, rng) = (&mut *outside.broker, &mut *outside.rng);
        let readers = self.readers.get_or_insert_with(|| Readers::new(broker.now()));
        for oracle in &mut readers.oracles {
            oracle.follow(broker, &self.sources)?;
        }
        readers.moment(broker, rng)?;
        if !outside.heals {
            self.write(broker, rng);
            return Ok(());
        }
        for source in &mut self.sources {
            source.snapshot_step();
            source.emit(broker, rng, false);
        }
        Ok(())
    }

    /// Nothing is left to stream; a view that is stale is mended by a snapshot, one of events by new events.
    fn is_idle(&mut self, broker: &mut Broker) -> bool {
        let Some(readers) = &self.readers else { return false };
        let stale = |view: &str| {
            readers
                .oracles
                .iter()
                .any(|o| o.now().stale.iter().any(|(of, _)| of == view))
        };
        for source in &mut self.sources {
            if source.snapshot_step() || source.emit(broker, &mut Rng::of_seed(0), false) {
                return false;
            }
            if (source.is_behind() || stale(source.name)) && self.snapshots < 8 {
                self.snapshots += 1;
                source.snapshot();
                return false;
            }
        }
        if stale("e") && self.snapshots < 8 {
            self.snapshots += 1;
            Events::mend(broker);
            return false;
        }
        true
    }

    fn verify(&mut self, broker: &mut Broker, rng: &mut Rng) -> Result<(), String> {
        let readers = self.readers.as_mut().ok_or("no moment has passed")?;
        for oracle in &mut readers.oracles {
            oracle.follow(broker, &self.sources)?;
            if !oracle.is_closed() || !oracle.now().stale.is_empty() {
                return Err(format!(
                    "liveness: rows are held back or views stale at the end: {:?}",
                    oracle.now().stale
                ));
            }
            oracle.verify(broker, &self.sources)?;
        }
        readers.verify(broker, rng)
    }
}

/// The registry knows one schema.
fn schema(id: u32) -> Result<String, Unavailable> {
    if id == ROW_ID {
        return Ok(ROW.to_owned());
    }
    Err(Unavailable {
        reason: format!("schema {id} is not known"),
        fate: ErrorAction::DeadLetter,
    })
}

#[test]
fn devices_under_random_faults_hold_the_view_of_the_whole_history() {
    assert_ne!(
        partition_of('a'),
        partition_of('c'),
        "the scopes need partitions of their own"
    );
    let seeds = seeds("TRUNKLINE_VIEWS_SIMULATION", SEEDS);
    let (from, count) = (seeds.start, seeds.end - seeds.start);
    let began = std::time::Instant::now();
    let notes = simulate(seeds, Views::new).unwrap_or_else(|failure| {
        panic!(
            "{failure}\nagain: TRUNKLINE_VIEWS_SIMULATION={},1 cargo test --release -p trunkline-processors \
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
        "key change",
        "key change without the note",
        "dead letter",
        "redriven",
        "dead event",
        "redriven event",
        "replayed",
        "replica too old",
        "replica wiped",
        "replica.before_commit",
        "replica.after_commit",
        "replica.mid_closing",
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
        "never happened, so the simulation tests too little: {missing:?}"
    );
}

#[test]
fn a_seed_of_the_views_always_gives_the_same_run() {
    for seed in 1..20 {
        assert_eq!(run(seed, &Views::new), run(seed, &Views::new), "seed {seed}");
    }
}
