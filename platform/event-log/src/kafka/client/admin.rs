//! Admin requests: topics, their settings, offsets, groups and committed offsets.
//!
//! Each request has its own queue, and its result is copied out of the response event. Nothing is retried here.

use super::admin_results::{
    Described, Group, TopicResult, array, group_results, member_description, resource_error, topic_description,
    topic_results,
};
use super::list::{Entry, List, entry};
use super::{ClientError, Code, Handle, Queue, c, millis, owned, text};
use crate::{Isolation, Offset};
use c::rd_kafka_admin_op_t as Api;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
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
    /// Replication factor; −1 means the broker's default.
    pub replication: i32,
    /// Settings by their Kafka names.
    pub settings: BTreeMap<String, String>,
}

/// Sends admin requests through one client.
#[derive(Debug)]
pub struct Admin<'h> {
    /// The client.
    pub handle: &'h Arc<Handle>,
    /// Request timeout, enforced by librdkafka.
    pub timeout: Duration,
    /// How long to wait for the result. Longer than `timeout`, unless librdkafka must not time out the request: see
    /// `coordinator.rs`.
    pub wait: Duration,
}

impl<'h> Admin<'h> {
    /// Sends requests with this timeout.
    pub fn new(handle: &'h Arc<Handle>, timeout: Duration) -> Admin<'h> {
        // Elapses only if librdkafka fails to enforce its timeout.
        let wait = timeout.saturating_add(Duration::from_secs(5));
        Admin { handle, timeout, wait }
    }
}

type Options = *mut c::rd_kafka_AdminOptions_t;
type Answer = *mut c::rd_kafka_event_t;

impl Admin<'_> {
    /// Sends a request and returns the queue that will receive its result.
    ///
    /// # Safety
    /// `send` passes options and queue to the librdkafka call that belongs to `api`.
    unsafe fn send(
        &self,
        api: Api,
        send: impl FnOnce(*mut c::rd_kafka_t, Options, *mut c::rd_kafka_queue_t) -> Result<(), ClientError>,
    ) -> Result<Queue, ClientError> {
        let queue = Queue::new(self.handle);
        let mut reason: [c_char; 256] = [0; 256];
        // SAFETY: the client is alive. We own the options, which the request copies, and free them after it.
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

    /// Sends a request and reads its result.
    ///
    /// # Safety
    /// As for `send`; `read` expects the result type of that call and copies what it returns.
    unsafe fn call<T>(
        &self,
        api: Api,
        send: impl FnOnce(*mut c::rd_kafka_t, Options, *mut c::rd_kafka_queue_t) -> Result<(), ClientError>,
        read: impl FnOnce(Answer) -> T,
    ) -> Result<T, ClientError> {
        self.await_brokers()?;
        // SAFETY: the caller fulfils the conditions of `send`.
        let queue = unsafe { self.send(api, send) }?;
        let event = queue.poll(self.wait);
        let event = event.ok_or_else(|| ClientError::new(Code::RD_KAFKA_RESP_ERR__TIMED_OUT))?;
        event.error()?;
        Ok(read(event.raw.as_ptr()))
    }

    /// Waits for a broker if none answers now. While a request itself waits for its broker, librdkafka reconnects
    /// without a pause after each refused connection, which uses a whole core (2.12.1: `rd_kafka_broker_get_async`
    /// requests a connection at every state change).
    fn await_brokers(&self) -> Result<(), ClientError> {
        if self.handle.connectivity().silence(Duration::ZERO).is_none() {
            return Ok(());
        }
        self.await_any_broker()
    }

    /// Waits until a broker has answered a metadata request.
    pub fn await_any_broker(&self) -> Result<(), ClientError> {
        self.metadata(false, |_| ())
    }

    /// Requests the cluster's metadata from any broker, for all topics or for those known to the client.
    fn metadata<T>(&self, all_topics: bool, read: impl FnOnce(&c::rd_kafka_metadata) -> T) -> Result<T, ClientError> {
        let mut metadata = ptr::null();
        // SAFETY: the client is alive. On success we own the metadata and free it after reading it.
        unsafe {
            let (rk, limit) = (self.handle.raw(), millis(self.timeout.min(self.wait)));
            let code = c::rd_kafka_metadata(rk, all_topics.into(), ptr::null_mut(), &mut metadata, limit);
            ClientError::check(code)?;
            let found = read(&*metadata);
            c::rd_kafka_metadata_destroy(metadata);
            Ok(found)
        }
    }

    /// Creates topics and returns the result for each.
    pub fn create(&self, topics: &[NewTopic<'_>]) -> Result<Vec<TopicResult>, ClientError> {
        let mut new_topics = NewTopics(Vec::with_capacity(topics.len()));
        for topic in topics {
            let mut reason: [c_char; 256] = [0; 256];
            let name = owned(topic.name);
            // SAFETY: librdkafka copies the strings. We own the object until `new_topics` frees it.
            unsafe {
                let raw = c::rd_kafka_NewTopic_new(
                    name.as_ptr(),
                    topic.partitions,
                    topic.replication,
                    reason.as_mut_ptr(),
                    reason.len(),
                );
                let raw = NonNull::new(raw).ok_or_else(|| {
                    ClientError::new(Code::RD_KAFKA_RESP_ERR__INVALID_ARG).with_text(text(reason.as_ptr()))
                })?;
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
        // SAFETY: the array outlives the call, which copies it; `topic_results` copies the result.
        unsafe {
            let send = |rk, options: Options, queue| {
                c::rd_kafka_CreateTopics(rk, new_topics.0.as_mut_ptr(), new_topics.0.len(), options, queue);
                Ok(())
            };
            self.call(Api::RD_KAFKA_ADMIN_OP_CREATETOPICS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_CreateTopics_result(answer);
                topic_results(c::rd_kafka_CreateTopics_result_topics(result, &mut count), count)
            })
        }
    }

    /// Deletes a topic.
    pub fn delete(&self, topic: &str) -> Result<(), ClientError> {
        let name = owned(topic);
        // SAFETY: we own the object, which the request copies, and free it after the request; the result is copied.
        let results = unsafe {
            let mut request = Owned {
                raw: c::rd_kafka_DeleteTopic_new(name.as_ptr()),
                free: c::rd_kafka_DeleteTopic_destroy,
            };
            let send = |rk, options: Options, queue| {
                c::rd_kafka_DeleteTopics(rk, &mut request.raw, 1, options, queue);
                Ok(())
            };
            self.call(Api::RD_KAFKA_ADMIN_OP_DELETETOPICS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_DeleteTopics_result(answer);
                topic_results(c::rd_kafka_DeleteTopics_result_topics(result, &mut count), count)
            })?
        };
        results.into_iter().try_for_each(|(_, result)| result)
    }

    /// Describes a topic. Fails if it does not exist.
    pub fn describe(&self, topic: &str) -> Result<Described, ClientError> {
        let name = owned(topic);
        // SAFETY: we own the collection, which the request copies, and free it after the request; the result is copied.
        unsafe {
            let mut names = [name.as_ptr()];
            let collection = Owned {
                raw: c::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()),
                free: c::rd_kafka_TopicCollection_destroy,
            };
            let send = |rk, options: Options, queue| {
                c::rd_kafka_DescribeTopics(rk, collection.raw, options, queue);
                Ok(())
            };
            self.call(Api::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_DescribeTopics_result(answer);
                let all = array(c::rd_kafka_DescribeTopics_result_topics(result, &mut count), count);
                let first = all
                    .first()
                    .ok_or_else(|| ClientError::new(Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART))?;
                topic_description(*first)
            })?
        }
    }

    /// Returns the settings of a topic, including defaults.
    pub fn settings(&self, topic: &str) -> Result<BTreeMap<String, String>, ClientError> {
        let name = owned(topic);
        // SAFETY: we own the resource, which the request copies, and free it after the request; the result is copied.
        unsafe {
            let mut resource = topic_resource(&name);
            let send = |rk, options: Options, queue| {
                c::rd_kafka_DescribeConfigs(rk, &mut resource.raw, 1, options, queue);
                Ok(())
            };
            self.call(Api::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_DescribeConfigs_result(answer);
                let all = array(c::rd_kafka_DescribeConfigs_result_resources(result, &mut count), count);
                all.iter().try_fold(BTreeMap::new(), |mut found, resource| {
                    resource_error(*resource)?;
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

    /// Changes settings of a topic. Other settings keep their values.
    pub fn alter(&self, topic: &str, settings: &[(String, String)]) -> Result<(), ClientError> {
        let name = owned(topic);
        // SAFETY: as in `settings`; we own the error objects.
        unsafe {
            let mut resource = topic_resource(&name);
            settings.iter().try_for_each(|(name, value)| {
                let (name, value) = (owned(name), owned(value));
                ClientError::from_owned(c::rd_kafka_ConfigResource_add_incremental_config(
                    resource.raw,
                    name.as_ptr(),
                    c::rd_kafka_AlterConfigOpType_t::RD_KAFKA_ALTER_CONFIG_OP_TYPE_SET,
                    value.as_ptr(),
                ))
            })?;
            let send = |rk, options: Options, queue| {
                c::rd_kafka_IncrementalAlterConfigs(rk, &mut resource.raw, 1, options, queue);
                Ok(())
            };
            self.call(Api::RD_KAFKA_ADMIN_OP_INCREMENTALALTERCONFIGS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_IncrementalAlterConfigs_result(answer);
                let all = array(
                    c::rd_kafka_IncrementalAlterConfigs_result_resources(result, &mut count),
                    count,
                );
                all.iter().try_for_each(|resource| resource_error(*resource))
            })?
        }
    }

    /// Looks up offsets. Each entry's offset is −2 for the earliest, −1 for the log end, or a timestamp in ms.
    pub fn offsets(&self, wanted: &List, isolation: Isolation) -> Result<Vec<Entry>, ClientError> {
        self.await_brokers()?;
        let requested = self.request_offsets(wanted, isolation)?;
        requested
            .answer(self.wait)
            .unwrap_or_else(|| Err(ClientError::new(Code::RD_KAFKA_RESP_ERR__TIMED_OUT)))
    }

    /// Sends the request of [`Admin::offsets`] without waiting. Fails immediately if no broker answers.
    pub fn request_offsets(&self, wanted: &List, isolation: Isolation) -> Result<PendingOffsets, ClientError> {
        if self.handle.connectivity().silence(Duration::ZERO).is_some() {
            return Err(ClientError::new(Code::RD_KAFKA_RESP_ERR__TRANSPORT));
        }
        use c::rd_kafka_IsolationLevel_t as Level;
        let level = match isolation {
            Isolation::ReadCommitted => Level::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED,
            Isolation::ReadUncommitted => Level::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED,
        };
        // SAFETY: the list outlives the call, which copies it; we own the error object.
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

    /// Lists the names of all groups.
    pub fn groups(&self) -> Result<Vec<String>, ClientError> {
        // SAFETY: the result is valid while `answer` is; names are copied.
        unsafe {
            let send = |rk, options: Options, queue| {
                c::rd_kafka_ListConsumerGroups(rk, options, queue);
                Ok(())
            };
            self.call(Api::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPS, send, |answer| {
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
        // SAFETY: the array outlives the call, which copies it; the result is copied.
        unsafe {
            let mut names = [c_name.as_ptr()];
            let send = |rk, options: Options, queue| {
                c::rd_kafka_DescribeConsumerGroups(rk, names.as_mut_ptr(), names.len(), options, queue);
                Ok(())
            };
            self.call(Api::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, send, |answer| {
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
                        .map(|at| member_description(c::rd_kafka_ConsumerGroupDescription_member(first, at)))
                        .collect(),
                })
            })?
        }
    }

    /// Returns committed offsets of a group, for these partitions or for all. With `stable` (KIP-447) a partition with
    /// a pending transactional commit has the error code `UNSTABLE_OFFSET_COMMIT`.
    pub fn committed(&self, group: &str, of: Option<&List>, stable: bool) -> Result<Vec<Entry>, ClientError> {
        let name = owned(group);
        // SAFETY: we own the request object, which the call copies, and free it after the call; the result is copied.
        unsafe {
            let of = of.map_or(ptr::null_mut(), List::raw);
            let mut request = Owned {
                raw: c::rd_kafka_ListConsumerGroupOffsets_new(name.as_ptr(), of),
                free: c::rd_kafka_ListConsumerGroupOffsets_destroy,
            };
            let send = |rk, options: Options, queue| {
                ClientError::from_owned(c::rd_kafka_AdminOptions_set_require_stable_offsets(
                    options,
                    stable.into(),
                ))?;
                c::rd_kafka_ListConsumerGroupOffsets(rk, &mut request.raw, 1, options, queue);
                Ok(())
            };
            self.call(Api::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_ListConsumerGroupOffsets_result(answer);
                group_results(
                    c::rd_kafka_ListConsumerGroupOffsets_result_groups(result, &mut count),
                    count,
                )
            })?
        }
    }

    /// Sets committed offsets of a group without being a member.
    pub fn set_committed(&self, group: &str, offsets: &List) -> Result<Vec<Entry>, ClientError> {
        let name = owned(group);
        // SAFETY: as in `committed`.
        unsafe {
            let mut request = Owned {
                raw: c::rd_kafka_AlterConsumerGroupOffsets_new(name.as_ptr(), offsets.raw()),
                free: c::rd_kafka_AlterConsumerGroupOffsets_destroy,
            };
            let send = |rk, options: Options, queue| {
                c::rd_kafka_AlterConsumerGroupOffsets(rk, &mut request.raw, 1, options, queue);
                Ok(())
            };
            self.call(Api::RD_KAFKA_ADMIN_OP_ALTERCONSUMERGROUPOFFSETS, send, |answer| {
                let mut count = 0;
                let result = c::rd_kafka_event_AlterConsumerGroupOffsets_result(answer);
                group_results(
                    c::rd_kafka_AlterConsumerGroupOffsets_result_groups(result, &mut count),
                    count,
                )
            })?
        }
    }

    /// Lists the names of all topics.
    pub fn topics(&self) -> Result<Vec<String>, ClientError> {
        self.metadata(true, |metadata| {
            let count = usize::try_from(metadata.topic_cnt).unwrap_or(0);
            if count == 0 {
                return Vec::new();
            }
            // SAFETY: the metadata has `count` topics with null-terminated names until it is freed.
            unsafe {
                let topics = std::slice::from_raw_parts(metadata.topics, count);
                topics.iter().map(|topic| text(topic.topic)).collect()
            }
        })
    }
}

/// A lookup of offsets whose result is pending.
#[derive(Debug)]
pub struct PendingOffsets {
    queue: Queue,
}

impl PendingOffsets {
    /// Returns the result if it arrives within this time.
    pub fn answer(&self, limit: Duration) -> Option<Result<Vec<Entry>, ClientError>> {
        let event = self.queue.poll(limit)?;
        if let Err(found) = event.error() {
            return Some(Err(found));
        }
        // SAFETY: the queue receives nothing but the result of this request; entries are copied.
        let mut entries: Vec<Entry> = unsafe {
            let mut count = 0;
            let result = c::rd_kafka_event_ListOffsets_result(event.raw.as_ptr());
            let all = array(c::rd_kafka_ListOffsets_result_infos(result, &mut count), count);
            let entry = |info: &*const _| entry(&*c::rd_kafka_ListOffsetsResultInfo_topic_partition(*info));
            all.iter().map(entry).collect()
        };
        // If a leader did not answer, librdkafka leaves its partitions without an offset and without an error.
        for entry in entries.iter_mut().filter(|entry| entry.offset == INVALID_OFFSET) {
            if entry.code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                entry.code = Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE;
            }
        }
        Some(Ok(entries))
    }
}

/// librdkafka's value for an offset that is not set (`RD_KAFKA_OFFSET_INVALID`).
const INVALID_OFFSET: Offset = -1001;

/// Special offset of librdkafka: the earliest offset of a partition.
pub const START: Offset = -2;
/// Special offset of librdkafka: the end of a partition.
pub const END: Offset = -1;

/// An object of librdkafka that is freed on drop, even if no request is sent because no broker responds.
struct Owned<T> {
    raw: *mut T,
    free: unsafe extern "C" fn(*mut T),
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: we own the object, and `free` is the destructor of its type.
        unsafe { (self.free)(self.raw) };
    }
}

/// A topic whose settings are read or changed.
fn topic_resource(name: &CStr) -> Owned<c::rd_kafka_ConfigResource_t> {
    let kind = c::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
    Owned {
        // SAFETY: librdkafka copies the name.
        raw: unsafe { c::rd_kafka_ConfigResource_new(kind, name.as_ptr()) },
        free: c::rd_kafka_ConfigResource_destroy,
    }
}

/// Topics to create, freed together.
struct NewTopics(Vec<*mut c::rd_kafka_NewTopic_t>);

impl Drop for NewTopics {
    fn drop(&mut self) {
        // SAFETY: we own each of the objects and free it once.
        unsafe { self.0.iter().for_each(|topic| c::rd_kafka_NewTopic_destroy(*topic)) };
    }
}
