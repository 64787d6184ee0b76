//! A declarative aggregate as a node runs it, with production decoding, state, changelog and output: `count()` over
//! events with 100,000 keys. The key of an event is also the key of its group, so no repartition topic is needed.

use super::workload::{COUNT_KEYS, PARTITIONS, Workload, topic_of};
use event_log::{OutBatch, OutRecord, SharedEventLog};
use processors::declarative::{self, Config, StepLimits};
use schemas::codec::Datum;
use schemas::ids::SchemaId;
use std::path::Path;
use std::sync::Arc;

/// Registry id of the event schema. Any number is possible, because nothing else reads the topic.
const SCHEMA: u32 = 1;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// The application, with its topics created and `events` events in the input.
pub fn workload(log: &SharedEventLog, dir: &Path, events: usize) -> anyhow::Result<Workload> {
    let name = crate::support::unique("bench").replace('-', "_");
    let text = format!(
        r#"
name = "speed"
[[event]]
name = "{name}"
fields = {{ id = "int8", screen = "text?", ms = "int8" }}
key = ["id"]
partitions = {PARTITIONS}
[[processor]]
name = "{name}"
kind = "aggregate"
from = "event:{name}"
group = {{ id = "id" }}
fields = {{ n = "count()" }}
partitions = {PARTITIONS}
"#
    );
    let topology = topology::check("topology.toml", &text, &topology::Embedded(&[])).into_result()?;
    let topology = Arc::new(topology);
    let processor = Arc::new(topology.processors.first().expect("one is declared").clone());
    let schema = topology.events.first().expect("one is declared").schema.clone();
    let (from, to) = (
        topic_of(log, &topology.names().event(&name)),
        topic_of(log, &topology.names().processor(&name)),
    );
    let mut out = OutBatch::default();
    for n in 0..events {
        let id = i64::try_from(n * 7919 % COUNT_KEYS)?;
        let mut value = Vec::new();
        schemas::wire::frame(SchemaId(SCHEMA), &mut value);
        schema.encode(&[Datum::Long(id), Datum::Str("home"), Datum::Long(id)], &mut value)?;
        let key = format!("[\"{id}\"]");
        let record = OutRecord {
            topic: &from,
            partition: None,
            timestamp: None,
            key: Some(key.as_bytes()),
            value: Some(&value),
        };
        out.push(record, []);
        if out.len() == 20_000 {
            log.append(&out)?;
            out.clear();
        }
    }
    log.append(&out)?;
    let text = schema.text().to_owned();
    let application = declarative::application(&Config {
        topology,
        processor,
        schema_id: SCHEMA,
        loaded_schema_id: SCHEMA + 1,
        horizon_ms: DAY_MS,
        sweep_step: StepLimits::default(),
        fetch: Arc::new(move |_| Ok(text.clone())),
    });
    Ok(Workload {
        from,
        to,
        application,
        config: streams::Config::new("one", dir),
    })
}
