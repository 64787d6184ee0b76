//! Looks up what an application needs in the log: inputs with their topic ids, changelogs and dead-letter topics.
//!
//! The inputs of a sub-topology and its changelog must have equal partition counts. A changelog must be compacted and
//! use `LogAppendTime`. Missing changelogs and dead-letter topics are created. Topics are never altered or deleted.

use crate::api::application::{Application, Config, Factory, FirstStart, ProcessingGuarantee, SubTopology};
use crate::api::context::{InputTopic, TaskId, TaskInfo, changelog_topic};
use crate::api::error::{Error, Result};
use crate::stores::{StoreName, Stores};
use crate::task::checkpoint::Origin;
use event_log::{
    Cleanup, DeadLetterTopics, EventLog, Millis, TimestampPolicy, TopicConfig, TopicId, TopicInfo, TopicPartition,
    TopicSpec,
};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Kafka's default `delete.retention.ms`, for a changelog without this setting.
const DELETE_RETENTION_MS: i64 = 24 * 60 * 60 * 1000;

/// A resolved application.
pub(crate) struct Plan {
    pub application: Arc<str>,
    pub subs: Vec<Arc<Sub>>,
    /// Changelogs of the application whose store is not declared.
    orphaned_changelogs: Vec<String>,
}

/// A resolved sub-topology.
pub(crate) struct Sub {
    pub application: Arc<str>,
    pub name: Arc<str>,
    pub inputs: Vec<InputTopic>,
    /// Partitions of each input; the number of tasks.
    pub partitions: i32,
    pub changelog: Arc<str>,
    pub changelog_id: TopicId,
    pub log_epoch: String,
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
            log: self.log_epoch.clone(),
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
    /// Topics to which the group subscribes.
    pub(crate) fn topics(&self) -> Vec<Arc<str>> {
        self.subs
            .iter()
            .flat_map(|sub| sub.inputs.iter().map(|input| input.name.clone()))
            .collect()
    }

    /// The number of threads to start: further ones would have no task.
    pub(crate) fn threads(&self, configured: usize) -> usize {
        let tasks = self.subs.iter().map(|sub| sub.partitions).max().unwrap_or(1);
        configured.clamp(1, usize::try_from(tasks).unwrap_or(1).max(1))
    }

    /// The sub-topology that reads a topic.
    pub(crate) fn reader_of(&self, topic: &str) -> Option<&Arc<Sub>> {
        self.subs
            .iter()
            .find(|sub| sub.inputs.iter().any(|input| *input.name == *topic))
    }

    /// Checks the declaration and the configuration of an application, independently of the log.
    ///
    /// # Errors
    /// [`Error::Application`] with the fix.
    pub(crate) fn check(application: &Application, config: &Config) -> Result<()> {
        check_names(application)?;
        if config.commit.guarantee == ProcessingGuarantee::AtLeastOnce && config.commit.touches_view_log {
            let reason = "readers of view.log rely on transactions; set its guarantee to exactly_once";
            return Err(invalid(application, reason.to_owned()));
        }
        Ok(())
    }

    /// Checks an application and its inputs, and creates its changelogs and dead-letter topics.
    ///
    /// # Errors
    /// [`Error::Application`] with the fix if an operator must act; [`Error::EventLog`] if the log fails.
    pub(crate) fn resolve(log: &dyn EventLog, application: &Application, config: &Config) -> Result<Plan> {
        Plan::check(application, config)?;
        let log_epoch = log.log_epoch().map_err(|e| log_error(application, e))?;
        let name: Arc<str> = application.name.as_str().into();
        let resolver = Resolver {
            log,
            application,
            config,
            name: name.clone(),
            log_epoch,
        };
        let subs = application.subtopologies.iter();
        let subs: Result<_> = subs.map(|sub| resolver.resolve(sub)).collect();
        Ok(Plan {
            application: name,
            subs: subs?,
            orphaned_changelogs: orphaned_changelogs(log, application)?,
        })
    }

    /// Warnings about state of the application whose store is not declared: changelogs in the log, and stores on disk.
    /// Such state is kept but not used.
    pub(crate) fn orphaned_state(&self, stores: &dyn Stores) -> Vec<String> {
        let of_topic = |topic: &String| {
            format!(
                "changelog {topic} belongs to no declared store; declare the store under its former name, or delete the topic if \
                 its state is no longer needed"
            )
        };
        let declared: BTreeSet<&str> = self.subs.iter().map(|sub| sub.store.as_str()).collect();
        let of_store = |path: PathBuf| {
            format!(
                "directory {} belongs to no declared store; declare the store under its former name, or remove the directory \
                 if its state is no longer needed",
                path.display()
            )
        };
        let found = stores.of_application(&self.application).into_iter();
        let found = found.filter(|(store, _)| !declared.contains(store.as_str()));
        let of_stores = found.map(|(_, path)| of_store(path));
        self.orphaned_changelogs.iter().map(of_topic).chain(of_stores).collect()
    }
}

fn orphaned_changelogs(log: &dyn EventLog, application: &Application) -> Result<Vec<String>> {
    let of_application = changelog_topic(&application.name, "");
    let declared = |topic: &String| {
        let mut stores = application.subtopologies.iter().map(|sub| &sub.store);
        stores.any(|store| *topic == changelog_topic(&application.name, store))
    };
    let mut topics = log.topics().map_err(|e| log_error(application, e))?;
    topics.retain(|topic| topic.starts_with(&of_application) && !declared(topic));
    Ok(topics)
}

/// Resolves the sub-topologies of one application.
struct Resolver<'r> {
    log: &'r dyn EventLog,
    application: &'r Application,
    config: &'r Config,
    name: Arc<str>,
    log_epoch: String,
}

impl Resolver<'_> {
    fn resolve(&self, sub: &SubTopology) -> Result<Arc<Sub>> {
        let (log, application) = (self.log, self.application);
        let inputs: Result<Vec<TopicInfo>> = sub.inputs.iter().map(|topic| input(log, application, topic)).collect();
        let inputs = inputs?;
        let partitions = inputs.first().map_or(0, |topic| topic.partitions);
        if let Some(other) = inputs.iter().find(|topic| topic.partitions != partitions) {
            let first = inputs.first().map_or("", |topic| topic.name.as_str());
            return Err(invalid(
                application,
                format!(
                    "inputs of {} are read together and must have equal partition counts, but {first} has {partitions} and {} \
                     has {}; repartition one of them into a new topic",
                    sub.name, other.name, other.partitions
                ),
            ));
        }
        self.create_topics(sub, &inputs, partitions)?;
        let changelog = changelog_topic(&application.name, &sub.store);
        let info = describe(log, application, &changelog)?;
        check_changelog(application, &info, partitions)?;
        let inputs = inputs.iter().map(|topic| InputTopic {
            name: topic.name.as_str().into(),
            id: topic.id,
        });
        Ok(Arc::new(Sub {
            application: self.name.clone(),
            name: sub.name.as_str().into(),
            inputs: inputs.collect(),
            partitions,
            changelog: changelog.into(),
            changelog_id: info.id,
            log_epoch: self.log_epoch.clone(),
            delete_retention: info.number("delete.retention.ms").unwrap_or(DELETE_RETENTION_MS),
            store: sub.store.clone(),
            factory: sub.factory.clone(),
            first_start: sub.first_start,
        }))
    }

    /// Creates the changelog and the dead-letter topics of a sub-topology if they do not exist.
    fn create_topics(&self, sub: &SubTopology, inputs: &[TopicInfo], partitions: i32) -> Result<()> {
        let mut topics = vec![self.changelog_spec(sub, partitions)];
        topics.extend(inputs.iter().map(|input| self.dead_letter_spec(input)));
        let created = self.log.create_topics(&topics);
        let created = created.map_err(|e| log_error(self.application, e))?;
        for (topic, _) in topics.iter().zip(created).filter(|(_, created)| *created) {
            tracing::info!(topic = topic.name, partitions = topic.partitions, "topic created");
        }
        for dead_letters in topics.iter().skip(1) {
            let info = describe(self.log, self.application, &dead_letters.name)?;
            if info.partitions < dead_letters.partitions {
                return Err(invalid(
                    self.application,
                    format!(
                        "dead-letter topic {} has {} partitions but its input has {}; a dead letter keeps its partition, so \
                         add the missing partitions",
                        dead_letters.name, info.partitions, dead_letters.partitions
                    ),
                ));
            }
        }
        Ok(())
    }

    fn changelog_spec(&self, sub: &SubTopology, partitions: i32) -> TopicSpec {
        let mut config = TopicConfig::new(Cleanup::Compact);
        config.timestamps = TimestampPolicy::LogAppendTime;
        config.delete_retention_ms = Some(millis(self.config.topics.changelog_delete_retention));
        TopicSpec {
            name: changelog_topic(&self.application.name, &sub.store),
            partitions,
            replication: self.config.topics.replication,
            config,
        }
    }

    fn dead_letter_spec(&self, input: &TopicInfo) -> TopicSpec {
        let topics = DeadLetterTopics {
            retention: self.config.topics.dead_letter_retention,
            replication: self.config.topics.replication,
        };
        topics.spec(&input.name, input.partitions, input.number("max.message.bytes"))
    }
}

fn check_names(application: &Application) -> Result<()> {
    let (mut names, mut stores, mut topics) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for sub in &application.subtopologies {
        if sub.inputs.is_empty() {
            return Err(invalid(
                application,
                format!("sub-topology {} has no input; declare a topic", sub.name),
            ));
        }
        if !names.insert(&sub.name) {
            return Err(invalid(
                application,
                format!("two sub-topologies are named {}; rename one of them", sub.name),
            ));
        }
        if !stores.insert(&sub.store) {
            return Err(invalid(
                application,
                format!(
                    "two sub-topologies have a store named {}; rename one of them",
                    sub.store
                ),
            ));
        }
        if let Some(twice) = sub.inputs.iter().find(|topic| !topics.insert(*topic)) {
            return Err(invalid(
                application,
                format!(
                    "topic {twice} is an input twice; remove one of the inputs, because only one sub-topology of an \
                     application can read a topic"
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
            "it has {} partitions but the inputs have {partitions}, so its keys would belong to other tasks; rename the store \
             to start without state, or repartition the inputs to {} partitions",
            info.partitions, info.partitions
        )
    } else if setting("cleanup.policy") != "compact" {
        "cleanup.policy must be compact, otherwise state is deleted".to_owned()
    } else if setting("message.timestamp.type") != "LogAppendTime" {
        "message.timestamp.type must be LogAppendTime, because the age of checkpoints is compared with the broker's \
         clock"
            .to_owned()
    } else {
        return Ok(());
    };
    Err(invalid(
        application,
        format!("changelog {} cannot be used: {problem}", info.name),
    ))
}

fn input(log: &dyn EventLog, application: &Application, topic: &str) -> Result<TopicInfo> {
    log.describe(topic)
        .map_err(|e| log_error(application, e))?
        .ok_or_else(|| {
            invalid(
                application,
                format!("input topic {topic} does not exist; create it, or see `trunkline topics list`"),
            )
        })
}

/// Describes a topic that exists or was just created. A broker may not know a new topic yet, so the request is repeated
/// while the topic is missing.
fn describe(log: &dyn EventLog, application: &Application, topic: &str) -> Result<TopicInfo> {
    let not_propagated = || event_log::Error::Unavailable {
        attempted: format!("describe {topic}"),
        reason: "it was created, but the broker does not know it yet".to_owned(),
    };
    log.describe(topic)
        .and_then(|found| found.ok_or_else(not_propagated))
        .map_err(|e| log_error(application, e))
}

fn invalid(application: &Application, reason: String) -> Error {
    Error::Application {
        name: application.name.clone(),
        reason,
    }
}

fn log_error(application: &Application, source: event_log::Error) -> Error {
    Error::EventLog {
        who: application.name.clone(),
        source,
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
