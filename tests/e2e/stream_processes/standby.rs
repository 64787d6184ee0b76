//! Standbys and state queries with three instances of one application, one of which shuts down. The number of restored
//! records shows that the tasks of that instance start from standbys.

use super::LIMIT;
use super::child::{ProcessConfig, process_config};
use crate::support::{self, wait_for};
use event_log::embedded::{Config as EmbeddedConfig, EmbeddedLog};
use event_log::{
    Cleanup, Offset, OffsetSpec, OutBatch, OutRecord, SharedEventLog, TopicConfig, TopicPartition, TopicSpec,
    partitioner,
};
use service::{Readiness, Tasks};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use streams::Handle;
use streams::query::{QueryError, Range, TaskReport};

const PARTITIONS: i32 = 6;
const KEYS: usize = 30_000;

/// An instance in this process.
struct Instance {
    name: String,
    tasks: Tasks,
    handle: Handle,
}

fn instance(config: &ProcessConfig, name: &str, log: &SharedEventLog) -> Instance {
    let mut config = config.clone();
    config.instance = name.to_owned();
    config.dir = config.dir.join(name);
    let tasks = Tasks::new();
    let handle = config.run(log.clone(), &tasks, &Readiness::new(), |config| {
        config.threads = 1;
        config.standby_replicas = 1;
        config.advertised = Some(format!("http://{name}.test:1"));
        config.members_topic = Some("members".to_owned());
    });
    Instance {
        name: name.to_owned(),
        tasks,
        handle,
    }
}

fn write(log: &SharedEventLog, topic: &str, keys: std::ops::Range<usize>) {
    let (topic, mut out) = (Arc::from(topic), OutBatch::default());
    for key in keys {
        let key = format!("[{key}]");
        let record = OutRecord {
            topic: &topic,
            partition: Some(partitioner::partition(key.as_bytes(), PARTITIONS)),
            timestamp: None,
            key: Some(key.as_bytes()),
            value: None,
        };
        out.push(record, []);
    }
    log.append(&out).expect("write input");
}

fn running(of: &[&Instance]) -> Vec<TaskReport> {
    let all = of.iter().flat_map(|instance| instance.handle.tasks());
    all.filter(|task| task.phase == "running").collect()
}

/// Waits until an instance has `want` standbys and each has read its changelog to the end. During rebalances it may
/// have other standbys.
fn standbys_caught_up(of: &Instance, ends: &BTreeMap<i32, Offset>, want: usize) {
    wait_for(&format!("{want} standbys to have caught up"), LIMIT, || {
        let all: Vec<TaskReport> = of.handle.tasks();
        let standbys: Vec<&TaskReport> = all.iter().filter(|task| task.phase == "standby").collect();
        let up = standbys
            .iter()
            .all(|task| task.changelog_next.unwrap_or_default() >= ends[&task.partition]);
        (standbys.len() == want && up).then_some(())
    });
}

fn moved_tasks_restore_few_records(log: &SharedEventLog, config: &ProcessConfig) {
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("an executor");
    let guard = executor.enter();
    let topic = |name: &str| TopicSpec {
        name: name.to_owned(),
        partitions: PARTITIONS,
        replication: None,
        config: TopicConfig::new(Cleanup::Delete),
    };
    log.create_topics(&[topic(&config.input), topic(&config.output)])
        .expect("create topics");
    write(log, &config.input, 0..KEYS);
    let mut instances = ["a", "b", "c"].map(|name| instance(config, name, log));
    let inputs: Vec<_> = (0..PARTITIONS)
        .map(|p| TopicPartition::new(config.input.as_str(), p))
        .collect();
    wait_for("two tasks per instance and all input committed", LIMIT, || {
        let each = instances.each_ref().map(|instance| running(&[instance]).len());
        let committed = log.committed(&config.application, &inputs).ok()?;
        let read: Offset = committed.values().map(|next| next.unwrap_or(0)).sum();
        (each == [2; 3] && read >= Offset::try_from(KEYS).unwrap()).then_some(())
    });
    // The order of the members depends on the application.
    instances.sort_by_key(|instance| running(&[instance]).iter().map(|task| task.partition).min());
    let [a, b, c] = instances;
    let changelog = |partition| TopicPartition::new(streams::changelog_topic(&config.application, "counts"), partition);
    let ends: BTreeMap<i32, Offset> = (0..PARTITIONS)
        .map(|p| (p, log.offset(&changelog(p), OffsetSpec::LogEnd).expect("an end")))
        .collect();
    assert!(ends.values().all(|end| *end > 4_000), "{ends:?}");
    // Partitions that the range assignor assigns: without b, 0 to 2 to a and 3 to 5 to c; without a, 0 to 2 to b and 3
    // to 5 to c; without c, 0 to 2 to a and 3 to 5 to b. The standbys are placed accordingly.
    standbys_caught_up(&a, &ends, 1);
    standbys_caught_up(&b, &ends, 4);
    standbys_caught_up(&c, &ends, 1);

    queries_elsewhere_name_the_owner(&a, &b, &c);
    drop(guard);
    executor
        .block_on(b.tasks.join(Duration::from_secs(30)))
        .expect("b ends");
    let guard = executor.enter();
    let moved = wait_for("all tasks on the other instances", LIMIT, || {
        let tasks = running(&[&a, &c]);
        (tasks.len() == 6).then_some(tasks)
    });
    for task in &moved {
        assert!(
            task.restored < 200,
            "{task:?} of a changelog that ends at {}",
            ends[&task.partition]
        );
    }
    write(log, &config.input, 0..KEYS);
    wait_for("the second count of every key", LIMIT, || {
        let (a, c) = (all(&a.handle, 0..3), all(&c.handle, 3..6));
        let twice = a.iter().chain(&c).filter(|value| **value == "2").count();
        (twice == KEYS).then_some(())
    });
    drop(guard);
    for instance in [a, c] {
        executor
            .block_on(instance.tasks.join(Duration::from_secs(30)))
            .expect("it ends");
    }
}

fn queries_elsewhere_name_the_owner(a: &Instance, b: &Instance, c: &Instance) {
    let key = (0..KEYS).map(|key| format!("[{key}]"));
    let mut of_b = key.filter(|key| [2, 3].contains(&partitioner::partition(key.as_bytes(), PARTITIONS)));
    let key = of_b.next().expect("a key of b");
    let partition = b.handle.partition_of("counts", key.as_bytes()).expect("a partition");
    // The committed state may be half a second behind the last commit.
    let here = wait_for("the key's count", LIMIT, || {
        let here = b.handle.get("counts", partition, key.as_bytes()).expect("an answer");
        (!here.rows.is_empty()).then_some(here)
    });
    assert_eq!(here.rows[0].value, b"1");
    assert_eq!(here.positions.len(), 1);
    for other in [a, c] {
        match other.handle.get("counts", partition, key.as_bytes()) {
            Err(QueryError::Elsewhere { instance, admin, .. }) => {
                assert_eq!(instance, b.name);
                assert_eq!(admin, Some(format!("http://{}.test:1", b.name)));
            }
            answer => panic!("{answer:?}"),
        }
    }
    assert!(matches!(
        a.handle.get("nothing", 0, b"[1]"),
        Err(QueryError::UnknownStore { .. })
    ));
    assert!(matches!(
        a.handle.get("counts", 6, b"[1]"),
        Err(QueryError::UnknownPartition { last: 5, .. })
    ));
    let none = a.handle.get("counts", 0, b"[\"no such key\"]").expect("an answer");
    assert!(none.rows.is_empty());
}

/// Values of partitions, read in pages.
fn all(handle: &Handle, partitions: std::ops::Range<i32>) -> Vec<String> {
    let mut values = Vec::new();
    for partition in partitions {
        let mut range = Range {
            prefix: b"[".to_vec(),
            after: None,
            limit: 700,
        };
        loop {
            let answer = handle.scan("counts", partition, &range).expect("an answer");
            assert!(answer.rows.len() <= 700 && answer.rows.is_sorted_by(|a, b| a.key < b.key));
            range.after = answer.rows.last().map(|row| row.key.clone());
            values.extend(
                answer
                    .rows
                    .into_iter()
                    .map(|row| String::from_utf8(row.value).expect("text")),
            );
            if !answer.more {
                break;
            }
        }
    }
    values
}

#[cfg(feature = "external")]
#[test]
fn standby_takes_over_warm_on_kafka() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = process_config(support::kafka(), dir.path().to_owned());
    moved_tasks_restore_few_records(&config.log(), &config);
}

#[test]
fn standby_takes_over_warm_on_embedded_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = EmbeddedConfig::new(
        Some(dir.path().join("log")),
        Arc::new(|| service::clock::system().now_ms()),
    );
    let log = EmbeddedLog::open(config).expect("open the log");
    moved_tasks_restore_few_records(&log, &process_config(String::new(), dir.path().to_owned()));
}
