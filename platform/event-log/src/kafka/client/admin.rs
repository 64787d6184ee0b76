//! Administration: topics, their settings, offsets by time, groups.
//!
//! Guarantees: one request, one answer, on a queue of its own; answers are copied. Never: a retry; callers decide.

use super::list::{Entry, List, entries, entry};
use super::{Code, ClientError, Handle, Queue, c, millis, owned, text};
use crate::{Isolation, Offset};
use c::rd_kafka_admin_op_t as Api;
use std::collections::BTreeMap;
use std::ffi::c_char;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

/// A topic to create.
#[derive(Debug)]
pub struct NewTopic<'a> {
    /// Name.
    pub name: &'a str,
    /// Partition count.
    pub partitions: i32,
    /// Replicas; −1 is the broker's default.
    pub replication: i32,
    /// Settings by name.
    pub settings: BTreeMap<String, String>,
}

/// A topic as the brokers describe it.
#[derive(Debug)]
pub struct Described {
    /// The id's two halves, most significant first.
    pub id: (i64, i64),
    /// Partition count.
    pub partitions: usize,
    /// Whether every partition has a leader.
    pub led: bool,
}

/// A group as the brokers describe it.
#[derive(Debug)]
pub struct Group {
    /// Group id.
    pub name: String,
    /// State, in Kafka's words.
    pub state: String,
    /// Client id, instance id (empty without one), assigned partitions.
    pub members: Vec<(String, String, Vec<Entry>)>,
}

/// A topic's name and how its request went.
pub type TopicResult = (String, Result<(), ClientError>);

/// Requests of one instance, each with a time limit.
#[derive(Debug)]
pub struct Admin<'h> {
    /// The instance that asks.
    pub handle: &'h Arc<Handle>,
    /// How long each request may take; the library ends it then.
    pub timeout: Duration,
    /// How long an answer is waited for: longer than the request may take, except where the library must not end it.
    pub wait: Duration,
}

impl<'h> Admin<'h> {
    /// Requests that the library ends after this long.
    pub fn new(handle: &'h Arc<Handle>, timeout: Duration) -> Admin<'h> {
        // The addition only guards against a library that does not answer.
        let wait = timeout.saturating_add(Duration::from_secs(5));
        Admin {
            handle,
            timeout,
            wait,
        }
    }
}

type Options = *mut c::rd_kafka_AdminOptions_t;
type Answer = *mut c::rd_kafka_event_t;

impl Admin<'_> {
    /// Sends a request; its answer will stand in the queue.
    ///
    /// # Safety
    /// `send` hands options and queue to the one call that `api` names.
    unsafe fn send(
        &self,
        api: Api,
        send: impl FnOnce(*mut c::rd_kafka_t, Options, *mut c::rd_kafka_queue_t) -> Result<(), ClientError>,
    ) -> Result<Queue, ClientError> {
        let queue = Queue::new(self.handle);
        let mut reason: [c_char; 256] = [0; 256];
        // SAFETY: the instance lives; the options are ours, copied by the request, and freed after it.
        unsafe {
            let options = c::rd_kafka_AdminOptions_new(self.handle.raw(), api);
            let limit = millis(self.timeout);
            let code = c::rd_kafka_AdminOptions_set_request_timeout(options, limit, reason.as_mut_ptr(), reason.len());
            let sent = ClientError::check(code).and_then(|()| send(self.handle.raw(), options, queue.raw.as_ptr()));
            c::rd_kafka_AdminOptions_destroy(options);
            sent?;
        }
        Ok(queue)
    }

    /// Sends a request and reads its answer.
    ///
    /// # Safety
    /// As for `send`; `read` knows answers of that call, and copies what it needs.
    unsafe fn ask<T>(
        &self,
        api: Api,
        send: impl FnOnce(*mut c::rd_kafka_t, Options, *mut c::rd_kafka_queue_t) -> Result<(), ClientError>,
        read: impl FnOnce(Answer) -> T,
    ) -> Result<T, ClientError> {
        self.await_brokers()?;
        // SAFETY: by the caller's promise.
        let queue = unsafe { self.send(api, send) }?;
        let event = queue.poll(self.wait);
        let event = event.ok_or_else(|| ClientError::new(Code::RD_KAFKA_RESP_ERR__TIMED_OUT))?;
        event.fault()?;
        Ok(read(event.raw.as_ptr()))
    }

    /// Waits until some broker answers, when none does now. A request that itself waits for its broker makes the
    /// library connect anew without a pause as soon as a connection is refused, which costs a core (2.12.1, function
    /// `rd_kafka_broker_get_async`: it asks for a connection at every change of state).
    fn await_brokers(&self) -> Result<(), ClientError> {
        if self.handle.reach().silence(Duration::ZERO).is_none() {
            return Ok(());
        }
        self.await_any_broker()
    }

    /// Waits until some broker has answered.
    pub fn await_any_broker(&self) -> Result<(), ClientError> {
        self.metadata(false, |_| ())
    }

    /// Asks some broker for the cluster's metadata, of all topics or only of those that are known here.
    fn metadata<T>(&self, all_topics: bool, read: impl FnOnce(&c::rd_kafka_metadata) -> T) -> Result<T, ClientError> {
        let mut metadata = ptr::null();
        // SAFETY: the instance lives; the metadata is ours when the call succeeds, and freed after it was read.
        unsafe {
            let (rk, limit) = (self.handle.raw(), millis(self.timeout.min(self.wait)));
            let code = c::rd_kafka_metadata(rk, all_topics.into(), ptr::null_mut(), &mut metadata, limit);
            ClientError::check(code)?;
            let found = read(&*metadata);
            c::rd_kafka_metadata_destroy(metadata);
            Ok(found)
        }
    }

    /// Creates topics; how it went with each, by name.
    pub fn create(&self, topics: &[NewTopic<'_>]) -> Result<Vec<TopicResult>, ClientError> {
        let mut new_topics = NewTopics(Vec::with_capacity(topics.len()));
        for topic in topics {
            let mut reason: [c_char; 256] = [0; 256];
            let name = owned(topic.name);
            // SAFETY: strings are copied; the object is ours until `new_topics` frees it.
            unsafe {
                let raw = c::rd_kafka_NewTopic_new(
                    name.as_ptr(),
                    topic.partitions,
                    topic.replication,
                    reason.as_mut_ptr(),
                    reason.len(),
                );
                let raw = NonNull::new(raw)
                    .ok_or_else(|| ClientError::new(Code::RD_KAFKA_RESP_ERR__INVALID_ARG).with_text(text(reason.as_ptr())))?;
                new_topics.0.push(raw.as_ptr());
                for (name, value) in &topic.settings {
                    let (name, value) = (owned(name), owned(value));
                    ClientError::check(c::rd_kafka_NewTopic_set_config(
                        raw.as_ptr(),
                        name.as_ptr(),
                        value.as_ptr(),
                    ))?;
                }
            }
        }
        // SAFETY: the array lives over the call, which copies it.
        unsafe {
            let send = |rk, options: Options, queue| {
                c::rd_kafka_CreateTopics(rk, new_topics.0.as_mut_ptr(), new_topics.0.len(), options, queue);
                Ok(())
            };
            self.ask(Api::RD_KAFKA_ADMIN_OP_CREATETOPICS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_CreateTopics_result(answer);
                topic_results(c::rd_kafka_CreateTopics_result_topics(result, &mut count), count)
            })
        }
    }

    /// Deletes a topic.
    pub fn delete(&self, topic: &str) -> Result<(), ClientError> {
        let name = owned(topic);
        // SAFETY: the object is ours, copied by the request, and freed after it; the answer is copied.
        let results = unsafe {
            let mut raw = c::rd_kafka_DeleteTopic_new(name.as_ptr());
            let send = |rk, options: Options, queue| {
                c::rd_kafka_DeleteTopics(rk, &mut raw, 1, options, queue);
                c::rd_kafka_DeleteTopic_destroy(raw);
                Ok(())
            };
            self.ask(Api::RD_KAFKA_ADMIN_OP_DELETETOPICS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_DeleteTopics_result(answer);
                topic_results(c::rd_kafka_DeleteTopics_result_topics(result, &mut count), count)
            })?
        };
        results.into_iter().try_for_each(|(_, result)| result)
    }

    /// Describes a topic; an unknown one is a fault.
    pub fn describe(&self, topic: &str) -> Result<Described, ClientError> {
        let name = owned(topic);
        // SAFETY: the collection is ours, copied by the request, and freed after it; the answer is copied.
        unsafe {
            let mut names = [name.as_ptr()];
            let collection = c::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
            let send = |rk, options: Options, queue| {
                c::rd_kafka_DescribeTopics(rk, collection, options, queue);
                c::rd_kafka_TopicCollection_destroy(collection);
                Ok(())
            };
            self.ask(Api::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_DescribeTopics_result(answer);
                let all = array(c::rd_kafka_DescribeTopics_result_topics(result, &mut count), count);
                let first = all
                    .first()
                    .ok_or_else(|| ClientError::new(Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART))?;
                described(*first)
            })?
        }
    }

    /// A topic's settings, the brokers' defaults included.
    pub fn settings(&self, topic: &str) -> Result<BTreeMap<String, String>, ClientError> {
        let name = owned(topic);
        // SAFETY: the resource is ours, copied by the request, and freed after it; the answer is copied.
        unsafe {
            let mut resource =
                c::rd_kafka_ConfigResource_new(c::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, name.as_ptr());
            let send = |rk, options: Options, queue| {
                c::rd_kafka_DescribeConfigs(rk, &mut resource, 1, options, queue);
                c::rd_kafka_ConfigResource_destroy(resource);
                Ok(())
            };
            self.ask(Api::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_DescribeConfigs_result(answer);
                let all = array(c::rd_kafka_DescribeConfigs_result_resources(result, &mut count), count);
                all.iter().try_fold(BTreeMap::new(), |mut found, resource| {
                    resource_fault(*resource)?;
                    let mut count = 0;
                    let settings = array(c::rd_kafka_ConfigResource_configs(*resource, &mut count), count);
                    for setting in settings {
                        let value = c::rd_kafka_ConfigEntry_value(*setting);
                        if !value.is_null() {
                            found.insert(text(c::rd_kafka_ConfigEntry_name(*setting)), text(value));
                        }
                    }
                    Ok(found)
                })
            })?
        }
    }

    /// Sets settings of a topic; others keep their values.
    pub fn alter(&self, topic: &str, settings: &[(String, String)]) -> Result<(), ClientError> {
        let name = owned(topic);
        // SAFETY: as in `settings`; the error objects are ours.
        unsafe {
            let mut resource =
                c::rd_kafka_ConfigResource_new(c::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, name.as_ptr());
            let filled = settings.iter().try_for_each(|(name, value)| {
                let (name, value) = (owned(name), owned(value));
                ClientError::from_owned(c::rd_kafka_ConfigResource_add_incremental_config(
                    resource,
                    name.as_ptr(),
                    c::rd_kafka_AlterConfigOpType_t::RD_KAFKA_ALTER_CONFIG_OP_TYPE_SET,
                    value.as_ptr(),
                ))
            });
            let send = |rk, options: Options, queue| {
                if filled.is_ok() {
                    c::rd_kafka_IncrementalAlterConfigs(rk, &mut resource, 1, options, queue);
                }
                c::rd_kafka_ConfigResource_destroy(resource);
                filled
            };
            self.ask(Api::RD_KAFKA_ADMIN_OP_INCREMENTALALTERCONFIGS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_IncrementalAlterConfigs_result(answer);
                let all = array(
                    c::rd_kafka_IncrementalAlterConfigs_result_resources(result, &mut count),
                    count,
                );
                all.iter().try_for_each(|resource| resource_fault(*resource))
            })?
        }
    }

    /// Looks offsets up: each entry's offset is −2 for the start, −1 for the end, or a time in ms.
    pub fn offsets(&self, wanted: &List, isolation: Isolation) -> Result<Vec<Entry>, ClientError> {
        self.await_brokers()?;
        let asked = self.request_offsets(wanted, isolation)?;
        asked
            .answer(self.wait)
            .unwrap_or_else(|| Err(ClientError::new(Code::RD_KAFKA_RESP_ERR__TIMED_OUT)))
    }

    /// Asks as [`Admin::offsets`] does, without waiting; fails at once when no broker answers now.
    pub fn request_offsets(&self, wanted: &List, isolation: Isolation) -> Result<PendingOffsets, ClientError> {
        if self.handle.reach().silence(Duration::ZERO).is_some() {
            return Err(ClientError::new(Code::RD_KAFKA_RESP_ERR__TRANSPORT));
        }
        use c::rd_kafka_IsolationLevel_t as Level;
        let level = match isolation {
            Isolation::ReadCommitted => Level::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED,
            Isolation::ReadUncommitted => Level::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED,
        };
        // SAFETY: the list lives over the call, which copies it; the error object is ours.
        let queue = unsafe {
            let send = |rk, options: Options, queue| {
                ClientError::from_owned(c::rd_kafka_AdminOptions_set_isolation_level(options, level))?;
                c::rd_kafka_ListOffsets(rk, wanted.raw(), options, queue);
                Ok(())
            };
            self.send(Api::RD_KAFKA_ADMIN_OP_LISTOFFSETS, send)?
        };
        Ok(PendingOffsets { queue })
    }

    /// The names of all groups.
    pub fn groups(&self) -> Result<Vec<String>, ClientError> {
        // SAFETY: the answer is copied.
        unsafe {
            let send = |rk, options: Options, queue| {
                c::rd_kafka_ListConsumerGroups(rk, options, queue);
                Ok(())
            };
            self.ask(Api::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPS, send, |answer| {
                let (mut count, mut failed) = (0, 0);
                let result = c::rd_kafka_event_ListConsumerGroups_result(answer);
                let errors = array(
                    c::rd_kafka_ListConsumerGroups_result_errors(result, &mut failed),
                    failed,
                );
                errors.iter().try_for_each(|error| ClientError::from_borrowed(*error))?;
                let all = array(c::rd_kafka_ListConsumerGroups_result_valid(result, &mut count), count);
                Ok(all
                    .iter()
                    .map(|group| text(c::rd_kafka_ConsumerGroupListing_group_id(*group)))
                    .collect())
            })?
        }
    }

    /// Describes one group.
    pub fn group(&self, name: &str) -> Result<Group, ClientError> {
        let c_name = owned(name);
        // SAFETY: the array lives over the call, which copies it; the answer is copied.
        unsafe {
            let mut names = [c_name.as_ptr()];
            let send = |rk, options: Options, queue| {
                c::rd_kafka_DescribeConsumerGroups(rk, names.as_mut_ptr(), names.len(), options, queue);
                Ok(())
            };
            self.ask(Api::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_DescribeConsumerGroups_result(answer);
                let all = array(
                    c::rd_kafka_DescribeConsumerGroups_result_groups(result, &mut count),
                    count,
                );
                let first = *all
                    .first()
                    .ok_or_else(|| ClientError::new(Code::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND))?;
                ClientError::from_borrowed(c::rd_kafka_ConsumerGroupDescription_error(first))?;
                let state = c::rd_kafka_ConsumerGroupDescription_state(first);
                let members = 0..c::rd_kafka_ConsumerGroupDescription_member_count(first);
                Ok(Group {
                    name: name.to_owned(),
                    state: text(c::rd_kafka_consumer_group_state_name(state)),
                    members: members
                        .map(|at| member(c::rd_kafka_ConsumerGroupDescription_member(first, at)))
                        .collect(),
                })
            })?
        }
    }

    /// A group's committed offsets, of these partitions or of all that it has. `stable` leaves partitions with a
    /// pending transactional commit undecided, with a code that says so.
    pub fn committed(&self, group: &str, of: Option<&List>, stable: bool) -> Result<Vec<Entry>, ClientError> {
        let name = owned(group);
        // SAFETY: the request object is ours, copied by the call, and freed after it; the answer is copied.
        unsafe {
            let of = of.map_or(ptr::null_mut(), List::raw);
            let mut request = c::rd_kafka_ListConsumerGroupOffsets_new(name.as_ptr(), of);
            let send = |rk, options: Options, queue| {
                let set = ClientError::from_owned(c::rd_kafka_AdminOptions_set_require_stable_offsets(
                    options,
                    stable.into(),
                ));
                if set.is_ok() {
                    c::rd_kafka_ListConsumerGroupOffsets(rk, &mut request, 1, options, queue);
                }
                c::rd_kafka_ListConsumerGroupOffsets_destroy(request);
                set
            };
            self.ask(Api::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_ListConsumerGroupOffsets_result(answer);
                group_results(
                    c::rd_kafka_ListConsumerGroupOffsets_result_groups(result, &mut count),
                    count,
                )
            })?
        }
    }

    /// Sets a group's offsets, as nobody's member.
    pub fn set_committed(&self, group: &str, offsets: &List) -> Result<Vec<Entry>, ClientError> {
        let name = owned(group);
        // SAFETY: as in `committed`.
        unsafe {
            let mut request = c::rd_kafka_AlterConsumerGroupOffsets_new(name.as_ptr(), offsets.raw());
            let send = |rk, options: Options, queue| {
                c::rd_kafka_AlterConsumerGroupOffsets(rk, &mut request, 1, options, queue);
                c::rd_kafka_AlterConsumerGroupOffsets_destroy(request);
                Ok(())
            };
            self.ask(Api::RD_KAFKA_ADMIN_OP_ALTERCONSUMERGROUPOFFSETS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_AlterConsumerGroupOffsets_result(answer);
                group_results(
                    c::rd_kafka_AlterConsumerGroupOffsets_result_groups(result, &mut count),
                    count,
                )
            })?
        }
    }

    /// The names of all topics.
    pub fn topics(&self) -> Result<Vec<String>, ClientError> {
        self.metadata(true, |metadata| {
            let count = usize::try_from(metadata.topic_cnt).unwrap_or(0);
            if count == 0 {
                return Vec::new();
            }
            // SAFETY: so many topics stand there, each with a name that ends with a zero, until they are freed.
            unsafe {
                let topics = std::slice::from_raw_parts(metadata.topics, count);
                topics.iter().map(|topic| text(topic.topic)).collect()
            }
        })
    }
}

/// A look-up of offsets that is under way.
#[derive(Debug)]
pub struct PendingOffsets {
    queue: Queue,
}

impl PendingOffsets {
    /// The answer, if it comes within this time.
    pub fn answer(&self, limit: Duration) -> Option<Result<Vec<Entry>, ClientError>> {
        let event = self.queue.poll(limit)?;
        if let Err(found) = event.fault() {
            return Some(Err(found));
        }
        // SAFETY: the queue gets nothing but the answer to the one request; the answer is copied.
        let mut entries: Vec<Entry> = unsafe {
            let mut count = 0;
            let result = c::rd_kafka_event_ListOffsets_result(event.raw.as_ptr());
            let all = array(c::rd_kafka_ListOffsets_result_infos(result, &mut count), count);
            let entry = |info: &*const _| entry(&*c::rd_kafka_ListOffsetsResultInfo_topic_partition(*info));
            all.iter().map(entry).collect()
        };
        // A leader that did not answer leaves its partitions without an offset *and* without an error.
        for entry in entries.iter_mut().filter(|entry| entry.offset == INVALID_OFFSET) {
            if entry.code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                entry.code = Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE;
            }
        }
        Some(Ok(entries))
    }
}

/// What the library writes where no offset came back.
const INVALID_OFFSET: Offset = -1001;

/// The library's marks for the start and the end of a partition.
pub const START: Offset = -2;
/// See [`START`].
pub const END: Offset = -1;

struct NewTopics(Vec<*mut c::rd_kafka_NewTopic_t>);

impl Drop for NewTopics {
    fn drop(&mut self) {
        // SAFETY: every entry is ours, and freed once.
        unsafe { self.0.iter().for_each(|topic| c::rd_kafka_NewTopic_destroy(*topic)) };
    }
}

/// # Safety
/// `first` is null or points to `count` pointers that live as long as `'a`.
unsafe fn array<'a, T>(first: *mut *const T, count: usize) -> &'a [*const T] {
    // SAFETY: by the caller's promise.
    if first.is_null() {
        &[]
    } else {
        unsafe { std::slice::from_raw_parts(first, count) }
    }
}

unsafe fn topic_results(first: *mut *const c::rd_kafka_topic_result_t, count: usize) -> Vec<TopicResult> {
    // SAFETY: the answer lends `count` results.
    unsafe { array(first, count) }
        .iter()
        .map(|result| {
            // SAFETY: as above; strings are copied.
            unsafe {
                let code = c::rd_kafka_topic_result_error(*result);
                let said = text(c::rd_kafka_topic_result_error_string(*result));
                let went = ClientError::check(code).map_err(|fault| fault.with_text(said));
                (text(c::rd_kafka_topic_result_name(*result)), went)
            }
        })
        .collect()
}

unsafe fn group_results(first: *mut *const c::rd_kafka_group_result_t, count: usize) -> Result<Vec<Entry>, ClientError> {
    let mut found = Vec::new();
    // SAFETY: the answer lends `count` results.
    for result in unsafe { array(first, count) } {
        // SAFETY: as above; entries are copied.
        unsafe {
            ClientError::from_borrowed(c::rd_kafka_group_result_error(*result))?;
            found.extend(entries(c::rd_kafka_group_result_partitions(*result)));
        }
    }
    Ok(found)
}

unsafe fn resource_fault(resource: *const c::rd_kafka_ConfigResource_t) -> Result<(), ClientError> {
    // SAFETY: the answer lends the resource; its text is copied.
    unsafe {
        let said = text(c::rd_kafka_ConfigResource_error_string(resource));
        ClientError::check(c::rd_kafka_ConfigResource_error(resource)).map_err(|fault| fault.with_text(said))
    }
}

unsafe fn described(topic: *const c::rd_kafka_TopicDescription_t) -> Result<Described, ClientError> {
    // SAFETY: the answer lends the description and what hangs on it; numbers are copied.
    unsafe {
        ClientError::from_borrowed(c::rd_kafka_TopicDescription_error(topic))?;
        let id = c::rd_kafka_TopicDescription_topic_id(topic);
        let mut count = 0;
        let partitions = array(c::rd_kafka_TopicDescription_partitions(topic, &mut count), count);
        Ok(Described {
            id: (
                c::rd_kafka_Uuid_most_significant_bits(id),
                c::rd_kafka_Uuid_least_significant_bits(id),
            ),
            partitions: partitions.len(),
            led: partitions
                .iter()
                .all(|p| !c::rd_kafka_TopicPartitionInfo_leader(*p).is_null()),
        })
    }
}

unsafe fn member(member: *const c::rd_kafka_MemberDescription_t) -> (String, String, Vec<Entry>) {
    // SAFETY: the answer lends the member and its assignment; all is copied.
    unsafe {
        let assignment = c::rd_kafka_MemberDescription_assignment(member);
        let partitions = if assignment.is_null() {
            Vec::new()
        } else {
            entries(c::rd_kafka_MemberAssignment_partitions(assignment))
        };
        let client = text(c::rd_kafka_MemberDescription_client_id(member));
        (
            client,
            text(c::rd_kafka_MemberDescription_group_instance_id(member)),
            partitions,
        )
    }
}
