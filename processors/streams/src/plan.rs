//! What a process will run, resolved against the log as it is: inputs with their ids, changelogs, dead-letter topics.
//!
//! Guarantees: inputs of one sub-topology have the same number of partitions, and so has its changelog; a changelog
//! is compacted and stamped by the broker. Changelogs and dead-letter topics that do not exist are created.
//! Never: altering or deleting a topic.

use crate::app::{FirstStart, changelog_topic, dead_letter_topic};
use crate::checkpoint::Origin;
use crate::stores::{StoreName, Stores};
use crate::{Application, Config, Error, Factory, InputTopic, ProcessingGuarantee, Result, TaskId, TaskInfo};
use event_log::{
    Cleanup, EventLog, Millis, TimestampPolicy, TopicConfig, TopicId, TopicInfo, TopicPartition, TopicSpec,
};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Kafka's default of `delete.retention.ms`, for a changelog that does not say.
const DELETE_RETENTION_MS: i64 = 24 * 60 * 60 * 1000;
/// How much larger than the topic's own records a dead letter may be: the errors' headers.
const DEAD_LETTER_EXTRA_BYTES: i64 = 64 << 10;
/// Kafka's default of `max.message.bytes`.
const MESSAGE_BYTES_MAX: i64 = 1_048_588;

/// An application, resolved.
pub(crate) struct Plan {
    pub application: Arc<str>,
    pub subs: Vec<Arc<Sub>>,
    /// Changelogs of the application that belong to no declared store.
    pub leftovers: Vec<String>,
}

/// A sub-topology, resolved.
pub(crate) struct Sub {
    pub application: Arc<str>,
    pub name: Arc<str>,
    pub inputs: Vec<InputTopic>,
    /// Partitions of each input, and so the number of tasks.
    pub partitions: i32,
    pub changelog: Arc<str>,
    pub changelog_id: TopicId,
    pub log: String,
    pub delete_retention: Millis,
    pub store: String,
    pub factory: Factory,
    pub first_start: FirstStart,
}

impl Sub {
    pub(crate) fn info(&self, partition: i32) -> TaskInfo {
        TaskInfo {
            application: self.application.clone(),
            id: TaskId {
                subtopology: self.name.clone(),
                partition,
            },
            inputs: self.inputs.clone(),
        }
    }

    pub(crate) fn origin(&self, partition: i32) -> Origin {
        Origin {
            changelog: TopicPartition {
                topic: self.changelog.clone(),
                partition,
            },
            topic_id: self.changelog_id,
            log: self.log.clone(),
        }
    }

    pub(crate) fn store_name(&self, partition: i32) -> StoreName {
        StoreName {
            application: self.application.to_string(),
            store: self.store.clone(),
            partition,
        }
    }
}

impl Plan {
    /// Topics that the application's consumers subscribe to.
    pub(crate) fn topics(&self) -> Vec<Arc<str>> {
        self.subs
            .iter()
            .flat_map(|sub| sub.inputs.iter().map(|input| input.name.clone()))
            .collect()
    }

    /// The sub-topology that reads a topic.
    pub(crate) fn reader_of(&self, topic: &str) -> Option<&Arc<Sub>> {
        self.subs
            .iter()
            .find(|sub| sub.inputs.iter().any(|input| *input.name == *topic))
    }

    /// Resolves an application: checks its inputs, creates what is the runtime's own.
    ///
    /// # Errors
    /// [`Error::Application`] with the fix for what can only be mended by people; [`Error::Log`] when the log fails.
    pub(crate) fn resolve(log: &dyn EventLog, application: &Application, config: &Config) -> Result<Plan> {
        check_names(application)?;
        if config.guarantee == ProcessingGuarantee::AtLeastOnce && config.touches_view_log {
            let reason = "its readers of view.log rely on transactions; set its guarantee to exactly_once";
            return Err(refuse(application, reason.to_owned()));
        }
        let incarnation = log.log_epoch().map_err(|e| wrap(application, e))?;
        let name: Arc<str> = application.name.as_str().into();
        let subs = application.subtopologies.iter();
        let subs: Result<_> = subs
            .map(|sub| resolve_sub(log, application, config, &name, &incarnation, sub))
            .collect();
        Ok(Plan {
            application: name,
            subs: subs?,
            leftovers: leftovers(log, application)?,
        })
    }

    /// Names for people what state of the application belongs to no declared store, in the log and among these stores:
    /// it is kept, and nobody reads it.
    pub(crate) fn unclaimed(&self, stores: &dyn Stores) -> Vec<String> {
        let of_topic = |topic: &String| {
            format!(
                "changelog {topic} belongs to no declared store; declare the store again, under the name that it had, or \
                 delete the topic if its state is not wanted any more"
            )
        };
        let declared: BTreeSet<&str> = self.subs.iter().map(|sub| sub.store.as_str()).collect();
        let of_store = |place: PathBuf| {
            format!(
                "directory {} belongs to no declared store; declare the store again, under the name that it had, or remove \
                 the directory if its state is not wanted any more",
                place.display()
            )
        };
        let found = stores.of_application(&self.application).into_iter();
        let found = found.filter(|(store, _)| !declared.contains(store.as_str()));
        let of_stores = found.map(|(_, place)| of_store(place));
        self.leftovers.iter().map(of_topic).chain(of_stores).collect()
    }
}

fn leftovers(log: &dyn EventLog, application: &Application) -> Result<Vec<String>> {
    let of_application = changelog_topic(&application.name, "");
    let declared = |topic: &String| {
        let mut stores = application.subtopologies.iter().map(|sub| &sub.store);
        stores.any(|store| *topic == changelog_topic(&application.name, store))
    };
    let mut topics = log.topics().map_err(|e| wrap(application, e))?;
    topics.retain(|topic| topic.starts_with(&of_application) && !declared(topic));
    Ok(topics)
}

fn resolve_sub(
    log: &dyn EventLog,
    application: &Application,
    config: &Config,
    name: &Arc<str>,
    incarnation: &str,
    sub: &crate::SubTopology,
) -> Result<Arc<Sub>> {
    let inputs: Result<Vec<TopicInfo>> = sub.inputs.iter().map(|topic| input(log, application, topic)).collect();
    let inputs = inputs?;
    let partitions = inputs.first().map_or(0, |topic| topic.partitions);
    if let Some(odd) = inputs.iter().find(|topic| topic.partitions != partitions) {
        let first = inputs.first().map_or("", |topic| topic.name.as_str());
        return Err(refuse(
            application,
            format!(
                "inputs of {} are read together and must have the same number of partitions: {first} has {partitions}, {} has {}; \
             repartition one of them into a new topic",
                sub.name, odd.name, odd.partitions
            ),
        ));
    }
    create_own_topics(log, application, config, sub, &inputs, partitions)?;
    let changelog = changelog_topic(&application.name, &sub.store);
    let info = describe(log, application, &changelog)?;
    check_changelog(application, &info, partitions)?;
    Ok(Arc::new(Sub {
        application: name.clone(),
        name: sub.name.as_str().into(),
        inputs: inputs
            .iter()
            .map(|t| InputTopic {
                name: t.name.as_str().into(),
                id: t.id,
            })
            .collect(),
        partitions,
        changelog: changelog.into(),
        changelog_id: info.id,
        log: incarnation.to_owned(),
        delete_retention: info.number("delete.retention.ms").unwrap_or(DELETE_RETENTION_MS),
        store: sub.store.clone(),
        factory: sub.factory.clone(),
        first_start: sub.first_start,
    }))
}

fn check_names(application: &Application) -> Result<()> {
    let (mut names, mut stores, mut topics) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for sub in &application.subtopologies {
        if sub.inputs.is_empty() {
            return Err(refuse(
                application,
                format!("sub-topology {} has no input; name a topic", sub.name),
            ));
        }
        if !names.insert(&sub.name) {
            return Err(refuse(
                application,
                format!("two sub-topologies are named {}; rename one", sub.name),
            ));
        }
        if !stores.insert(&sub.store) {
            return Err(refuse(
                application,
                format!("two sub-topologies have a store named {}; rename one", sub.store),
            ));
        }
        if let Some(twice) = sub.inputs.iter().find(|topic| !topics.insert(*topic)) {
            return Err(refuse(
                application,
                format!("topic {twice} is an input twice; a topic is read by one sub-topology of an application"),
            ));
        }
    }
    Ok(())
}

fn create_own_topics(
    log: &dyn EventLog,
    application: &Application,
    config: &Config,
    sub: &crate::SubTopology,
    inputs: &[TopicInfo],
    partitions: i32,
) -> Result<()> {
    let mut changelog = TopicConfig::new(Cleanup::Compact);
    changelog.timestamps = TimestampPolicy::LogAppendTime;
    changelog.delete_retention_ms = Some(millis(config.changelog_delete_retention));
    let mut topics = vec![TopicSpec {
        name: changelog_topic(&application.name, &sub.store),
        partitions,
        replication: config.replication,
        config: changelog,
    }];
    for input in inputs.iter() {
        let mut letters = TopicConfig::new(Cleanup::Delete);
        letters.retention_ms = Some(millis(config.dead_letter_retention));
        // By the broker's clock: letters of a process whose own is wrong would be gone at once, or never.
        letters.timestamps = TimestampPolicy::LogAppendTime;
        let largest = input.number("max.message.bytes").unwrap_or(MESSAGE_BYTES_MAX);
        letters.max_message_bytes = Some(largest.saturating_add(DEAD_LETTER_EXTRA_BYTES).min(i64::from(i32::MAX)));
        topics.push(TopicSpec {
            name: dead_letter_topic(&input.name),
            partitions: input.partitions,
            replication: config.replication,
            config: letters,
        });
    }
    let created = log.create_topics(&topics).map_err(|e| wrap(application, e))?;
    for (topic, _) in topics.iter().zip(created).filter(|(_, created)| *created) {
        tracing::info!(topic = topic.name, partitions = topic.partitions, "topic created");
    }
    for letters in topics.iter().skip(1) {
        let info = describe(log, application, &letters.name)?;
        if info.partitions < letters.partitions {
            return Err(refuse(
                application,
                format!(
                    "{} has {} partitions and its topic {}; a dead letter keeps its partition, so add the missing ones",
                    letters.name, info.partitions, letters.partitions
                ),
            ));
        }
    }
    Ok(())
}

fn check_changelog(application: &Application, info: &TopicInfo, partitions: i32) -> Result<()> {
    let setting = |name: &str| info.settings.get(name).map_or("", String::as_str);
    let problem = if info.partitions != partitions {
        format!(
            "it has {} partitions and the inputs have {partitions}; the state of its keys would be read by \
             other tasks; give the store another name, so that its state begins anew, or put the input into a topic of {} \
             partitions",
            info.partitions, info.partitions
        )
    } else if setting("cleanup.policy") != "compact" {
        "cleanup.policy must be compact, or state would be forgotten".to_owned()
    } else if setting("message.timestamp.type") != "LogAppendTime" {
        "message.timestamp.type must be LogAppendTime, as the age of checkpoints is told by the broker's clock"
            .to_owned()
    } else {
        return Ok(());
    };
    Err(refuse(
        application,
        format!("changelog {} is not usable: {problem}", info.name),
    ))
}

fn input(log: &dyn EventLog, application: &Application, topic: &str) -> Result<TopicInfo> {
    log.describe(topic).map_err(|e| wrap(application, e))?.ok_or_else(|| {
        refuse(
            application,
            format!("input topic {topic} does not exist; create it, or see `trunkline topics list`"),
        )
    })
}

/// Describes a topic that exists, as it has just been made if it was not there. Of several brokers one may not have
/// heard of it yet.
fn describe(log: &dyn EventLog, application: &Application, topic: &str) -> Result<TopicInfo> {
    let unheard = || event_log::Error::Unavailable {
        attempted: format!("describe {topic}"),
        reason: "it was made, and the broker that was asked does not know of it yet".to_owned(),
    };
    log.describe(topic)
        .and_then(|found| found.ok_or_else(unheard))
        .map_err(|e| wrap(application, e))
}

fn refuse(application: &Application, reason: String) -> Error {
    Error::Application {
        name: application.name.clone(),
        reason,
    }
}

fn wrap(application: &Application, source: event_log::Error) -> Error {
    Error::EventLog {
        who: application.name.clone(),
        source,
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
