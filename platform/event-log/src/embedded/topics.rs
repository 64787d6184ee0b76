//! Creating, altering and deleting topics.
//!
//! The number and id of a topic are never reused. A deleted topic disappears immediately. Its entries are removed
//! afterwards by the cleaner thread, or by the caller if there is no such thread. They are removed in batches, between
//! which others can write. Writing to a topic does not create it.

use super::backing::{Space, Writes};
use super::broker::{Broker, lock};
use super::format::{self, TopicRecord};
use super::settings::{self, Rules};
use super::state::{Part, State, Topic};
use crate::{Error, Result, TopicId, TopicInfo, TopicSpec};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use uuid::Uuid;

const NAME_LENGTH_MAX: usize = 249;
/// A record batch has 16-bit partition indices.
const PARTITIONS_MAX: u32 = 10_000;
/// Maximum number of blocks that one batch removes.
pub(super) const REMOVALS_MAX: usize = 4_096;
/// Bytes of the blocks that one batch removes when a topic is deleted.
const REMOVED_BYTES_MAX: usize = 64 * 1024 * 1024;

fn invalid(topic: &str, reason: impl Into<String>) -> Error {
    Error::InvalidTopic {
        topic: topic.to_owned(),
        reason: reason.into(),
    }
}

fn check_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name {
        "" => Err(invalid(name, "the name is empty")),
        "." | ".." => Err(invalid(name, "the name must not be `.` or `..`")),
        _ if name.len() > NAME_LENGTH_MAX => {
            Err(invalid(name, format!("the name exceeds {NAME_LENGTH_MAX} characters")))
        }
        _ if !name.chars().all(fine) => Err(invalid(
            name,
            "the name must consist of ASCII letters, digits, `.`, `_` and `-`",
        )),
        _ => Ok(()),
    }
}

/// Rejects names that differ only in `.` and `_`, as Kafka does: its metrics cannot distinguish them.
fn check_collision(state: &State, name: &str) -> Result<()> {
    let plain = |name: &str| name.replace('.', "_");
    match state.topics.keys().find(|known| plain(known) == plain(name)) {
        Some(known) => Err(invalid(
            name,
            format!(
                "the name collides with topic {known}, because names that differ only in `.` and `_` are not \
                 distinguished; choose another name"
            ),
        )),
        None => Ok(()),
    }
}

impl Topic {
    pub fn of(number: u32, record: TopicRecord) -> Topic {
        let rules = Rules::of(&record.settings);
        let TopicRecord {
            name,
            id,
            partitions,
            settings,
        } = record;
        Topic {
            number,
            name: name.into(),
            id,
            partitions,
            given: settings,
            rules,
        }
    }

    fn record(&self, settings: BTreeMap<String, String>) -> TopicRecord {
        TopicRecord {
            name: self.name.to_string(),
            id: self.id,
            partitions: self.partitions,
            settings,
        }
    }
}

impl Broker {
    pub fn create_topics(&self, specs: &[TopicSpec]) -> Result<Vec<bool>> {
        let mut writer = self.writer();
        let mut head = writer.head.clone();
        let mut writes = Writes::default();
        let mut created: BTreeMap<&str, Topic> = BTreeMap::new();
        let mut answers = Vec::with_capacity(specs.len());
        for spec in specs {
            check_name(&spec.name)?;
            let partitions = u32::try_from(spec.partitions)
                .ok()
                .filter(|count| (1..=PARTITIONS_MAX).contains(count));
            let partitions = partitions.ok_or_else(|| {
                invalid(
                    &spec.name,
                    format!(
                        "the partition count must be between 1 and {PARTITIONS_MAX}, not {}",
                        spec.partitions
                    ),
                )
            })?;
            let settings = settings::given(&spec.config);
            settings::check(&spec.name, &settings)?;
            let state = self.state();
            if state.topics.contains_key(spec.name.as_str()) || created.contains_key(spec.name.as_str()) {
                answers.push(false);
                continue;
            }
            check_collision(&state, &spec.name)?;
            let record = TopicRecord {
                name: spec.name.clone(),
                id: Uuid::new_v4(),
                partitions,
                settings,
            };
            writes.put(
                Space::Meta,
                format::topic_key(format::TOPICS, head.next_topic),
                record.encode(),
            );
            created.insert(&spec.name, Topic::of(head.next_topic, record));
            head.next_topic += 1;
            answers.push(true);
        }
        if writes.is_empty() {
            return Ok(answers);
        }
        writes.put(Space::Meta, format::HEAD, head.encode());
        self.store(&writes)?;
        writer.head = head;
        let mut state = self.state();
        for topic in created.into_values() {
            state.parts.extend(topic.parts().map(|id| (id, Part::default())));
            state.add_topic(Arc::new(topic));
        }
        Ok(answers)
    }

    pub fn describe(&self, name: &str) -> Option<TopicInfo> {
        let state = self.state();
        let topic = state.topics.get(name)?;
        Some(TopicInfo {
            name: topic.name.to_string(),
            id: TopicId(topic.id),
            partitions: i32::try_from(topic.partitions).expect("partition counts are i32"),
            settings: settings::all(&topic.given),
        })
    }

    pub fn alter_topic(&self, name: &str, changes: &[(String, String)]) -> Result<()> {
        let _writer = self.writer();
        let topic = self.state().topic(name)?.clone();
        let mut given = topic.given.clone();
        given.extend(changes.iter().cloned());
        settings::check(name, &given)?;
        let record = topic.record(given);
        let mut writes = Writes::default();
        writes.put(
            Space::Meta,
            format::topic_key(format::TOPICS, topic.number),
            record.encode(),
        );
        self.store(&writes)?;
        self.state().add_topic(Arc::new(Topic::of(topic.number, record)));
        Ok(())
    }

    pub fn delete_topic(&self, name: &str) -> Result<()> {
        let topic = self.unlink_topic(name)?;
        lock(&self.leftovers).insert(topic);
        match self.wake_cleaner() {
            true => Ok(()),
            false => self.remove_leftovers(),
        }
    }

    /// Removes a topic from the state and returns its number. Its records remain in the store.
    fn unlink_topic(&self, name: &str) -> Result<u32> {
        let _writer = self.writer();
        let mut writes = Writes::default();
        let topic = {
            let state = self.state();
            let topic = state.topic(name)?.clone();
            for (group, known) in &state.groups {
                if known.idle_stored.is_some() && known.offsets.keys().all(|at| at.topic == topic.name) {
                    writes.remove(Space::Meta, format::idle_key(group));
                }
                for at in known.offsets.keys().filter(|at| at.topic == topic.name) {
                    if let Some(part) = topic.part(at.partition) {
                        writes.remove(Space::Meta, format::committed_key(group, part));
                    }
                }
            }
            for (transaction, open) in &state.transactions {
                for part in open.parts.keys().filter(|part| part.topic == topic.number) {
                    writes.remove(Space::Meta, format::open_key(*transaction, *part));
                }
            }
            topic
        };
        writes.remove(Space::Meta, format::topic_key(format::TOPICS, topic.number));
        writes.put(
            Space::Meta,
            format::topic_key(format::DELETED, topic.number),
            vec![format::VERSION],
        );
        writes.use_reserve();
        self.store(&writes)?;
        self.state().remove_topic(&topic);
        Ok(topic.number)
    }

    /// Removes the remaining entries of deleted topics, including topics that an earlier process deleted.
    pub fn remove_leftovers(&self) -> Result<()> {
        loop {
            let Some(topic) = lock(&self.leftovers).first().copied() else {
                return Ok(());
            };
            let prefixes = [format::PARTITIONS, format::INDEX, format::ABORTED]
                .map(|tag| (Space::Meta, format::topic_key(tag, topic)));
            let records = (Space::Records, format::topic_prefix(topic));
            for (space, prefix) in std::iter::once(records).chain(prefixes) {
                if !self.remove_prefix(space, prefix)? {
                    return Ok(());
                }
            }
            let mut writes = Writes::default();
            writes.remove(Space::Meta, format::topic_key(format::DELETED, topic));
            self.remove_batch(writes)?;
            lock(&self.leftovers).remove(&topic);
        }
    }

    /// Returns false if the log is being closed before everything was removed. No other code writes keys with the
    /// prefix, so they are looked up without the writer lock.
    fn remove_prefix(&self, space: Space, prefix: Vec<u8>) -> Result<bool> {
        let end = super::backing::after(&prefix);
        let mut from = prefix;
        while !self.is_closing() {
            let (mut writes, mut bytes) = (Writes::default(), 0);
            let mut is_last = true;
            self.backing.scan(space, &from.clone(), &end, &mut |key, value| {
                writes.remove(space, key);
                from = key.to_vec();
                bytes += value.len();
                is_last = writes.len() < REMOVALS_MAX && bytes < REMOVED_BYTES_MAX;
                match is_last {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })?;
            if !writes.is_empty() {
                self.remove_batch(writes)?;
            }
            if is_last {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn remove_batch(&self, mut writes: Writes) -> Result<()> {
        writes.use_reserve();
        let _writer = self.writer();
        self.store(&writes)
    }
}
