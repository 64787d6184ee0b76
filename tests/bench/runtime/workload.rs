//! An application with its topics and input records, for the benchmarks of the stream runtime.

use crate::support;
use event_log::{Cleanup, OutBatch, OutRecord, SharedEventLog, TopicConfig, TopicSpec};
use std::path::Path;
use std::sync::Arc;
use streams::{Application, Config, Factory, FirstStart, Processor, SubTopology, TaskInfo};

pub const COUNT_KEYS: usize = 100_000;
pub const VALUE_BYTES: usize = 200;
pub const PARTITIONS: i32 = 4;

/// An application that has not started, with its input and output topic.
pub struct Workload {
    pub from: Arc<str>,
    pub to: Arc<str>,
    pub application: Application,
    pub config: Config,
}

/// Creates an application with one sub-topology between two new topics.
pub fn workload(log: &SharedEventLog, dir: &Path, make: fn(Arc<str>) -> Box<dyn Processor>) -> Workload {
    let (from, to) = (topic(log), topic(log));
    let output = to.clone();
    let factory: Factory = Arc::new(move |_: &TaskInfo| make(output.clone()));
    let sub = SubTopology {
        name: "bench".to_owned(),
        inputs: vec![from.to_string()],
        store: "state".to_owned(),
        factory,
        first_start: FirstStart::Earliest,
    };
    let application = Application {
        name: support::unique("bench"),
        subtopologies: vec![sub],
    };
    Workload {
        from,
        to,
        application,
        config: Config::new("one", dir),
    }
}

/// Like [`workload`], with `records` records in the input.
pub fn filled(
    log: &SharedEventLog,
    dir: &Path,
    records: usize,
    make: fn(Arc<str>) -> Box<dyn Processor>,
) -> anyhow::Result<Workload> {
    let workload = workload(log, dir, make);
    fill(log, &workload.from, records)?;
    Ok(workload)
}

pub fn fill(log: &SharedEventLog, topic: &Arc<str>, records: usize) -> anyhow::Result<()> {
    let value = [b'x'; VALUE_BYTES];
    let mut out = OutBatch::default();
    for n in 0..records {
        let key = format!("[{}]", n * 7919 % COUNT_KEYS);
        let partition = Some(i32::try_from(n)? % PARTITIONS);
        out.push(
            OutRecord {
                topic,
                partition,
                timestamp: None,
                key: Some(key.as_bytes()),
                value: Some(&value),
            },
            [],
        );
        if out.len() == 20_000 {
            log.append(&out)?;
            out.clear();
        }
    }
    log.append(&out)?;
    Ok(())
}

pub fn topic(log: &SharedEventLog) -> Arc<str> {
    topic_of(log, &support::unique("bench"))
}

pub fn topic_of(log: &SharedEventLog, name: &str) -> Arc<str> {
    let config = TopicConfig::new(Cleanup::Delete);
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions: PARTITIONS,
        replication: None,
        config,
    };
    log.create_topics(&[spec]).expect("a topic");
    name.into()
}
