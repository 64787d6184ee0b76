//! Copies the results of admin requests out of librdkafka's response events.

use super::list::{Entry, entries};
use super::{ClientError, c, text};

/// Description of a topic.
#[derive(Debug)]
pub struct Described {
    /// The two halves of the topic id, most significant first.
    pub id: (i64, i64),
    /// Partition count.
    pub partitions: usize,
    /// Whether every partition has a leader.
    pub led: bool,
}

/// Description of a consumer group.
#[derive(Debug)]
pub struct Group {
    /// Group id.
    pub name: String,
    /// State as Kafka names it.
    pub state: String,
    /// Active members.
    pub members: Vec<GroupMember>,
}

/// Description of a group member.
#[derive(Debug)]
pub struct GroupMember {
    /// Client id.
    pub client_id: String,
    /// Group instance id; empty for a dynamic member.
    pub instance_id: String,
    /// Assigned partitions.
    pub partitions: Vec<Entry>,
}

/// A topic's name and the result of the request for it.
pub type TopicResult = (String, Result<(), ClientError>);

/// Converts a pointer and length to a slice; null is empty.
///
/// # Safety
/// `first` is null or points to `count` pointers that live for `'a`.
pub unsafe fn array<'a, T>(first: *mut *const T, count: usize) -> &'a [*const T] {
    if first.is_null() {
        return &[];
    }
    // SAFETY: the caller guarantees `count` valid pointers.
    unsafe { std::slice::from_raw_parts(first, count) }
}

/// Copies the results of a request for topics.
///
/// # Safety
/// `first` and `count` are an array of valid results.
pub unsafe fn topic_results(first: *mut *const c::rd_kafka_topic_result_t, count: usize) -> Vec<TopicResult> {
    // SAFETY: the caller guarantees a valid array.
    unsafe { array(first, count) }
        .iter()
        .map(|result| {
            // SAFETY: as above; strings are copied.
            unsafe {
                let code = c::rd_kafka_topic_result_error(*result);
                let reason = text(c::rd_kafka_topic_result_error_string(*result));
                let went = ClientError::check(code).map_err(|error| error.with_text(reason));
                (text(c::rd_kafka_topic_result_name(*result)), went)
            }
        })
        .collect()
}

/// Copies the partitions of results for groups, or returns the first error.
///
/// # Safety
/// `first` and `count` are an array of valid results.
pub unsafe fn group_results(
    first: *mut *const c::rd_kafka_group_result_t,
    count: usize,
) -> Result<Vec<Entry>, ClientError> {
    let mut found = Vec::new();
    // SAFETY: the caller guarantees a valid array.
    for result in unsafe { array(first, count) } {
        // SAFETY: as above; entries are copied.
        unsafe {
            ClientError::from_borrowed(c::rd_kafka_group_result_error(*result))?;
            found.extend(entries(c::rd_kafka_group_result_partitions(*result)));
        }
    }
    Ok(found)
}

/// Returns the error of a resource, if it has one.
///
/// # Safety
/// `resource` is valid.
pub unsafe fn resource_error(resource: *const c::rd_kafka_ConfigResource_t) -> Result<(), ClientError> {
    // SAFETY: the caller guarantees a valid resource; its text is copied.
    unsafe {
        let reason = text(c::rd_kafka_ConfigResource_error_string(resource));
        ClientError::check(c::rd_kafka_ConfigResource_error(resource)).map_err(|error| error.with_text(reason))
    }
}

/// Copies the description of a topic.
///
/// # Safety
/// `topic` is valid.
pub unsafe fn topic_description(topic: *const c::rd_kafka_TopicDescription_t) -> Result<Described, ClientError> {
    // SAFETY: the caller guarantees a valid description, which owns the id and partitions; numbers are copied.
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

/// Copies the description of a group member.
///
/// # Safety
/// `member` is valid.
pub unsafe fn member_description(member: *const c::rd_kafka_MemberDescription_t) -> GroupMember {
    // SAFETY: the caller guarantees a valid description, which owns its assignment; everything is copied.
    unsafe {
        let assignment = c::rd_kafka_MemberDescription_assignment(member);
        let partitions = if assignment.is_null() {
            Vec::new()
        } else {
            entries(c::rd_kafka_MemberAssignment_partitions(assignment))
        };
        GroupMember {
            client_id: text(c::rd_kafka_MemberDescription_client_id(member)),
            instance_id: text(c::rd_kafka_MemberDescription_group_instance_id(member)),
            partitions,
        }
    }
}
