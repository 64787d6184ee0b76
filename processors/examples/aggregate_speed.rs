//! Measures the throughput of an aggregate in one thread: `count()` over events with 100,000 keys.
//!
//! Decoding, grouping, state and output are production code; the state is in memory, and there is no log. Run it with
//! `cargo run --release -p trunkline-processors --example aggregate_speed`.

use event_log::{NewRecord, RecordBatch, TimestampType, TopicId, TopicPartition};
use schemas::codec::Datum;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streams::{InputTopic, TaskId, TaskInfo};
use streams_test::StepDriver;
use trunkline_processors::declarative::{Config, StepLimits, application};

const TOPOLOGY: &str = r#"
name = "speed"
[[event]]
name = "viewed"
fields = { id = "int8", screen = "text?", ms = "int8" }
key = ["id"]
[[processor]]
name = "views"
kind = "aggregate"
from = "event:viewed"
group = { id = "id" }
fields = { n = "count()" }
"#;
const KEYS: i64 = 100_000;
const BATCH: i64 = 1_024;
/// Batches between commits: approximately the number that a thread reads in the commit interval.
const BATCHES_PER_COMMIT: usize = 32;
const ROUNDS: i64 = 2_000;

fn main() -> Result<(), Box<dyn Error>> {
    let topology = topology::check("topology.toml", TOPOLOGY, &topology::Embedded(&[])).into_result()?;
    let topology = Arc::new(topology);
    let processor = Arc::new(topology.processors.first().ok_or("the topology declares one")?.clone());
    let event = topology
        .events
        .first()
        .ok_or("the topology declares one")?
        .schema
        .clone();
    let (text, topic) = (event.text().to_owned(), topology.names().event("viewed"));
    let config = Config {
        topology,
        processor,
        schema_id: 1,
        loaded_schema_id: 2,
        horizon_ms: 1_000,
        sweep_step: StepLimits::default(),
        fetch: Arc::new(move |_| Ok(text.clone())),
    };
    let sub = application(&config)
        .subtopologies
        .pop()
        .ok_or("an application has a sub-topology")?;
    let info = TaskInfo {
        application: "views".into(),
        id: TaskId {
            subtopology: sub.name.as_str().into(),
            partition: 0,
        },
        inputs: vec![InputTopic {
            name: topic.as_str().into(),
            id: TopicId(Default::default()),
        }],
    };
    let mut driver = StepDriver::new("views", (sub.factory)(&info))?;
    let (mut feed, mut commit, mut offset) = (Duration::ZERO, Duration::ZERO, 0_i64);
    for round in 0..ROUNDS {
        let mut batch = RecordBatch::default();
        let at = batch.intern(&TopicPartition::new(topic.as_str(), 0));
        for _ in 0..BATCH {
            let id = offset.wrapping_mul(7_919) % KEYS;
            let key = format!("[\"{id}\"]");
            let mut value = Vec::new();
            schemas::wire::frame(schemas::ids::SchemaId(1), &mut value);
            event.encode(&[Datum::Long(id), Datum::Str("home"), Datum::Long(offset)], &mut value)?;
            batch.push(
                at,
                NewRecord {
                    offset,
                    timestamp: offset,
                    timestamp_type: TimestampType::Create,
                    key: Some(key.as_bytes()),
                    value: Some(&value),
                },
                [],
            );
            offset += 1;
        }
        let began = Instant::now();
        driver.feed(&batch)?;
        feed += began.elapsed();
        if usize::try_from(round)? % BATCHES_PER_COMMIT == 0 {
            let began = Instant::now();
            driver.commit()?;
            commit += began.elapsed();
        }
    }
    let records = Duration::from_secs(1).as_nanos() / ((feed + commit).as_nanos() / u128::try_from(offset)?).max(1);
    println!("{offset} records: steps {feed:?}, commits {commit:?}: {records} records/s");
    Ok(())
}
