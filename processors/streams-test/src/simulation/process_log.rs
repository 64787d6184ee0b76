//! The log and clock of one simulated process.

use super::broker::Broker;
use super::client::{Consumer, PartitionReader, SimulatedProducer};
use super::connection::{Connection, rows_of, unavailable};
use super::protocol::{BrokerError, DELETE_RETENTION};
use event_log::{
    Committed, Error, EventLog, GroupConfig, GroupConsumer, GroupInfo, Isolation, Millis, Offset, OffsetSpec, OutBatch,
    Produced, Reader, Result, TopicId, TopicInfo, TopicPartition, TopicSpec, TransactionalProducer,
    TransactionalProducerConfig,
};
use std::collections::BTreeMap;
use std::sync::MutexGuard;
use std::time::Duration;
use streams::Clock;

/// The log, as one process accesses it.
#[derive(Clone)]
pub struct ProcessLog {
    pub(super) connection: Connection,
    /// Whether its members are static.
    pub(super) is_static: bool,
}

impl Clock for ProcessLog {
    fn now(&self) -> Millis {
        self.connection.broker().now
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.now()).unwrap_or_default())
    }
}

/// The id of a topic, derived from its name: simulated topics are never created again.
fn id_of(topic: &str) -> TopicId {
    let fold = |id: u128, byte: u8| (id ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013B);
    TopicId(uuid::Uuid::from_u128(topic.bytes().fold(1, fold)))
}

impl ProcessLog {
    /// The broker, for oracles. No request is made.
    pub fn broker(&self) -> MutexGuard<'_, Broker> {
        self.connection.broker()
    }

    /// Reports a violated invariant, which ends the run.
    pub fn fail(&self, text: String) {
        self.connection.scheduler.fail(text);
    }
}

impl EventLog for ProcessLog {
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<bool>> {
        Ok(vec![false; topics.len()])
    }

    fn describe(&self, topic: &str) -> Result<Option<TopicInfo>> {
        let broker = self.broker();
        if broker.unreadable.is_missing(topic) {
            return Ok(None);
        }
        let of = |at: &&TopicPartition| *at.topic == *topic.trim_end_matches(".dlq");
        let tasks = broker.layout.tasks.iter();
        let own = tasks.flat_map(|(changelog, inputs)| inputs.iter().chain([changelog]));
        let partitions = own.chain(broker.layout.compacted.keys()).filter(of).count();
        let settings = [
            ("cleanup.policy", "compact".to_owned()),
            ("message.timestamp.type", "LogAppendTime".to_owned()),
            ("delete.retention.ms", DELETE_RETENTION.to_string()),
        ];
        let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value));
        Ok((partitions > 0).then(|| TopicInfo {
            name: topic.to_owned(),
            id: id_of(topic),
            partitions: i32::try_from(partitions).unwrap_or(i32::MAX),
            settings: settings.collect(),
        }))
    }

    fn topics(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn alter_topic(&self, _: &str, _: &[(String, String)]) -> Result<()> {
        unreachable!("streams alters no topic")
    }

    fn delete_topic(&self, _: &str) -> Result<()> {
        unreachable!("streams deletes no topic")
    }

    fn offset(&self, at: &TopicPartition, which: OffsetSpec) -> Result<Offset> {
        let at = at.clone();
        let answer = self.connection.call(move |broker| {
            let part = broker.part(&at);
            Ok(match which {
                OffsetSpec::Earliest => 0,
                OffsetSpec::LogEnd => part.end(),
                OffsetSpec::LastStable => part.stable(),
                OffsetSpec::Timestamp(_) => unreachable!("streams looks up no times"),
            })
        });
        answer.map_err(|_| unavailable("offset"))
    }

    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Committed> {
        let (group, partitions) = (group.to_owned(), partitions.to_vec());
        self.connection
            .call(move |broker| broker.group.fetch(&partitions))
            .map_err(|rejection| match rejection {
                BrokerError::Undecided => Error::Undecided { group },
                _ => unavailable("fetch offsets"),
            })
    }

    fn set_committed(&self, _: &str, _: &[(TopicPartition, Offset)]) -> Result<()> {
        unreachable!("streams sets no offsets outside a transaction")
    }

    fn groups(&self) -> Result<Vec<GroupInfo>> {
        unreachable!("streams lists no groups")
    }

    fn group(&self, config: GroupConfig) -> Result<Box<dyn GroupConsumer>> {
        let mut name = config.instance.expect("streams names its members");
        if !self.is_static {
            let unique = self.broker().rng.number();
            name = format!("{name}#{unique}");
        }
        Ok(Box::new(Consumer::new(self.connection.clone(), name)))
    }

    fn reader(&self, isolation: Isolation) -> Result<Box<dyn Reader>> {
        Ok(Box::new(PartitionReader {
            connection: self.connection.clone(),
            isolation,
            positions: BTreeMap::new(),
        }))
    }

    fn transactional_producer(&self, config: TransactionalProducerConfig) -> Result<Box<dyn TransactionalProducer>> {
        let epoch = self.connection.init(&config.transactional_id)?;
        Ok(Box::new(SimulatedProducer::new(
            self.connection.clone(),
            config.transactional_id,
            epoch,
        )))
    }

    fn append(&self, records: &OutBatch) -> Result<Vec<Produced>> {
        for (at, row) in rows_of(records) {
            let done = self.connection.call(move |broker| {
                broker.append(&at, [row.clone()]);
                Ok(())
            });
            done.map_err(|_| unavailable("append"))?;
        }
        Ok(Vec::new())
    }

    fn description(&self) -> String {
        "simulated".to_owned()
    }

    fn log_epoch(&self) -> Result<String> {
        Ok("simulated".to_owned())
    }
}
