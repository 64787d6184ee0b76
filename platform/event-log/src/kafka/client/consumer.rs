//! Consuming: membership of a group, explicitly read partitions, and batches of messages.
//!
//! Guarantees: a message is lent only while its inbox holds it; one thread reads an inbox (`&mut`), as the library
//! demands of its batch calls. Never: an automatic commit.

use super::list::{Entry, List, entries};
use super::producer::Topic;
use super::{Code, Event, ClientError, Handle, Queue, bytes, c, millis, owned, text};
use crate::{Header, Millis, Offset, TimestampType, TopicPartition};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

impl Handle {
    /// Joins the group of the settings with these topics.
    pub fn subscribe(&self, topics: &List) -> Result<(), ClientError> {
        // SAFETY: instance and list live; the list is copied.
        ClientError::check(unsafe { c::rd_kafka_subscribe(self.raw(), topics.raw()) })
    }

    /// Gives the subscription up, and leaves the group once its partitions were given up: also as a static member, which
    /// does not leave when it is closed (KIP-345).
    pub fn unsubscribe(&self) -> Result<(), ClientError> {
        // SAFETY: the instance lives.
        ClientError::check(unsafe { c::rd_kafka_unsubscribe(self.raw()) })
    }

    /// Replaces the assignment; `None` gives everything up.
    pub fn assign(&self, partitions: Option<&List>) -> Result<(), ClientError> {
        // SAFETY: instance and list live; the list is copied; null is allowed.
        ClientError::check(unsafe {
            c::rd_kafka_assign(
                self.raw(),
                partitions.map_or(ptr::null(), |list| list.raw().cast_const()),
            )
        })
    }

    /// Adds partitions to the assignment.
    pub fn incremental_assign(&self, partitions: &List) -> Result<(), ClientError> {
        // SAFETY: instance and list live; the list is copied; the error object is ours.
        unsafe {
            ClientError::from_owned(c::rd_kafka_incremental_assign(
                self.raw(),
                partitions.raw().cast_const(),
            ))
        }
    }

    /// Takes partitions from the assignment.
    pub fn incremental_unassign(&self, partitions: &List) -> Result<(), ClientError> {
        // SAFETY: as in `incremental_assign`.
        unsafe {
            ClientError::from_owned(c::rd_kafka_incremental_unassign(
                self.raw(),
                partitions.raw().cast_const(),
            ))
        }
    }

    /// Whether the partitions that are being revoked are another's already.
    pub fn assignment_lost(&self) -> bool {
        // SAFETY: the instance lives.
        unsafe { c::rd_kafka_assignment_lost(self.raw()) != 0 }
    }

    /// Stops fetching these partitions, and drops what was fetched; known ones only.
    pub fn pause(&self, partitions: &List) -> Result<(), ClientError> {
        // SAFETY: instance and list live; the call writes codes into the list's entries.
        ClientError::check(unsafe { c::rd_kafka_pause_partitions(self.raw(), partitions.raw()) })
    }

    /// Goes on fetching these partitions.
    pub fn resume(&self, partitions: &List) -> Result<(), ClientError> {
        // SAFETY: as in `pause`.
        ClientError::check(unsafe { c::rd_kafka_resume_partitions(self.raw(), partitions.raw()) })
    }

    /// Moves assigned partitions to the list's offsets, and drops what was fetched. How it went is in the list.
    pub fn seek(&self, partitions: &List, timeout: Duration) -> Result<(), ClientError> {
        // SAFETY: instance and list live; the error object is ours.
        unsafe {
            ClientError::from_owned(c::rd_kafka_seek_partitions(
                self.raw(),
                partitions.raw(),
                millis(timeout),
            ))
        }
    }

    /// Asks a partition's leader where it begins and ends, and drops the answer: the question wakes the leader's connection.
    pub fn query_watermarks(&self, at: &TopicPartition, timeout: Duration) {
        let (topic, mut low, mut high) = (owned(&at.topic), 0, 0);
        // SAFETY: the instance lives; the name is copied, and the numbers outlive the call, which waits.
        unsafe {
            let rk = self.raw();
            c::rd_kafka_query_watermark_offsets(rk, topic.as_ptr(), at.partition, &mut low, &mut high, millis(timeout));
        }
    }

    /// Commits offsets as this member of its group, and waits.
    pub fn commit(&self, offsets: &List) -> Result<(), ClientError> {
        // SAFETY: instance and list live.
        ClientError::check(unsafe { c::rd_kafka_commit(self.raw(), offsets.raw(), 0) })
    }

    /// The membership as it is now; `None` without a group.
    pub fn group_metadata(&self) -> Option<ClientGroupMetadata> {
        // SAFETY: the instance lives; the object is ours.
        NonNull::new(unsafe { c::rd_kafka_consumer_group_metadata(self.raw()) }).map(|raw| ClientGroupMetadata { raw })
    }

    /// Whether leaving the group has ended.
    pub fn left(&self) -> bool {
        // SAFETY: the instance lives.
        unsafe { c::rd_kafka_consumer_closed(self.raw()) != 0 }
    }
}

impl Queue {
    /// Begins to leave the group: a last rebalance arrives here, until [`Handle::left`].
    pub fn leave(&self) -> Result<(), ClientError> {
        // SAFETY: instance and queue live; the error object is ours.
        unsafe { ClientError::from_owned(c::rd_kafka_consumer_close_queue(self.handle.raw(), self.raw.as_ptr())) }
    }

    /// Sends what a partition gets to this queue. Before the partition is assigned, or records go elsewhere.
    pub fn forward_partition(&self, at: &TopicPartition) {
        let name = owned(&at.topic);
        // SAFETY: the partition's queue is our reference, given back after it was forwarded; forwarding stays.
        unsafe {
            let from = c::rd_kafka_queue_get_partition(self.handle.raw(), name.as_ptr(), at.partition);
            if !from.is_null() {
                c::rd_kafka_queue_forward(from, self.raw.as_ptr());
                c::rd_kafka_queue_destroy(from);
            }
        }
    }
}

impl Event<'_> {
    /// The partitions of a rebalance.
    pub fn partitions(&self) -> Vec<Entry> {
        // SAFETY: the event is ours and owns the list, which is copied.
        unsafe { entries(c::rd_kafka_event_topic_partition_list(self.raw.as_ptr())) }
    }
}

/// Who a member of a group is, and in which generation.
#[derive(Debug)]
pub struct ClientGroupMetadata {
    raw: NonNull<c::rd_kafka_consumer_group_metadata_t>,
}

// SAFETY: the object is never changed after it was made.
unsafe impl Send for ClientGroupMetadata {}
// SAFETY: as above.
unsafe impl Sync for ClientGroupMetadata {}

impl ClientGroupMetadata {
    /// The generation.
    pub fn generation(&self) -> i32 {
        // SAFETY: the object is ours.
        unsafe { c::rd_kafka_consumer_group_metadata_generation_id(self.raw.as_ptr()) }
    }

    pub(super) fn raw(&self) -> *const c::rd_kafka_consumer_group_metadata_t {
        self.raw.as_ptr()
    }
}

impl Drop for ClientGroupMetadata {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once.
        unsafe { c::rd_kafka_consumer_group_metadata_destroy(self.raw.as_ptr()) };
    }
}

impl Topic {
    /// Starts to read a partition into a queue, from an offset or one of the library's marks.
    pub fn read(&self, partition: i32, from: Offset, into: &Queue) -> Result<(), ClientError> {
        // SAFETY: topic and queue live, and belong to the same instance.
        let result = unsafe { c::rd_kafka_consume_start_queue(self.raw(), partition, from, into.raw.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(last()) }
    }

    /// Stops reading a partition; what of it stands in the queue is dropped when the queue is read.
    pub fn stop(&self, partition: i32) -> Result<(), ClientError> {
        // SAFETY: the topic lives.
        let result = unsafe { c::rd_kafka_consume_stop(self.raw(), partition) };
        if result == 0 { Ok(()) } else { Err(last()) }
    }
}

/// The error of this thread's last call of the older kind.
fn last() -> ClientError {
    // SAFETY: reads a number of this thread.
    ClientError::new(unsafe { c::rd_kafka_last_error() })
}

/// What to do with a message that was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It is done with.
    Drop,
    /// It stays where it is; go on with the next.
    Keep,
    /// It and all after it stay.
    Stop,
}

/// Messages that were taken out of a queue and are still to be handed on.
#[derive(Debug)]
pub struct Inbox {
    /// Before `queue`: messages must go before their instance.
    messages: VecDeque<NonNull<c::rd_kafka_message_t>>,
    pub(super) room: Vec<*mut c::rd_kafka_message_t>,
    pub(super) queue: Queue,
}

// SAFETY: messages are owned by the inbox alone, and may be read and freed on any thread.
unsafe impl Send for Inbox {}

impl Inbox {
    /// An empty inbox that takes up to `most` messages at a time.
    pub fn new(queue: Queue, most: usize) -> Inbox {
        Inbox {
            messages: VecDeque::with_capacity(most),
            room: vec![ptr::null_mut(); most],
            queue,
        }
    }

    /// The queue that it reads.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Takes what stands in the queue, without waiting, and says how many messages that was.
    pub fn fill(&mut self) -> usize {
        // SAFETY: the queue is ours, the room has the length given; the messages that come back are ours. `&mut`
        // makes this the only batch call at work.
        let taken = unsafe {
            c::rd_kafka_consume_batch_queue(self.queue.raw.as_ptr(), 0, self.room.as_mut_ptr(), self.room.len())
        };
        let taken = usize::try_from(taken).unwrap_or(0);
        self.messages
            .extend(self.room.iter().take(taken).filter_map(|m| NonNull::new(*m)));
        taken
    }

    /// Shows the messages in order and does with each as it is told.
    pub fn visit(&mut self, mut each: impl FnMut(Message<'_>) -> Disposition) {
        let mut kept = 0;
        while let Some(raw) = self.messages.get(kept).copied() {
            match each(Message {
                raw,
                inbox: PhantomData,
            }) {
                Disposition::Stop => return,
                Disposition::Keep => kept += 1,
                Disposition::Drop => {
                    self.messages.remove(kept);
                    // SAFETY: ours, no longer listed, and no `Message` of it is left.
                    unsafe { c::rd_kafka_message_destroy(raw.as_ptr()) };
                }
            }
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.visit(|_| Disposition::Drop);
    }
}

/// One message, or an error or end mark of a partition.
#[derive(Debug, Clone, Copy)]
pub struct Message<'i> {
    raw: NonNull<c::rd_kafka_message_t>,
    inbox: PhantomData<&'i Inbox>,
}

impl<'i> Message<'i> {
    fn get(&self) -> &'i c::rd_kafka_message_t {
        // SAFETY: the inbox holds the message for `'i`, and nobody changes it.
        unsafe { self.raw.as_ref() }
    }

    /// Which topic object it is of; equal to [`Topic::address`] while one is held.
    pub fn topic_address(&self) -> usize {
        self.get().rkt.addr()
    }

    /// The topic's name.
    pub fn topic(&self) -> String {
        // SAFETY: the message keeps its topic alive; the name is copied.
        unsafe {
            if self.get().rkt.is_null() {
                String::new()
            } else {
                text(c::rd_kafka_topic_name(self.get().rkt))
            }
        }
    }

    /// The partition's number.
    pub fn partition(&self) -> i32 {
        self.get().partition
    }

    /// The offset; of an end mark, the partition's end.
    pub fn offset(&self) -> Offset {
        self.get().offset
    }

    /// No error, the end mark, or what is wrong with the partition.
    pub fn code(&self) -> Code {
        self.get().err
    }

    /// What is wrong, in the library's words.
    pub fn fault(&self) -> ClientError {
        // SAFETY: the message is lent; its text is copied.
        ClientError::new(self.code()).with_text(text(unsafe { c::rd_kafka_message_errstr(self.raw.as_ptr()) }))
    }

    /// The key.
    pub fn key(&self) -> Option<&'i [u8]> {
        let message = self.get();
        // SAFETY: the message owns `key_len` bytes at `key` for `'i`. An empty key is not null.
        (!message.key.is_null()).then(|| unsafe { bytes(message.key, message.key_len) })
    }

    /// The value.
    pub fn value(&self) -> Option<&'i [u8]> {
        let message = self.get();
        // SAFETY: the message owns `len` bytes at `payload` for `'i`. An empty value is not null.
        (!message.payload.is_null()).then(|| unsafe { bytes(message.payload, message.len) })
    }

    /// The timestamp, and whose it is.
    pub fn timestamp(&self) -> (Millis, TimestampType) {
        let mut kind = c::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is lent; `kind` is ours.
        let millis = unsafe { c::rd_kafka_message_timestamp(self.raw.as_ptr(), &mut kind) };
        let append = kind == c::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME;
        (
            millis,
            if append {
                TimestampType::LogAppend
            } else {
                TimestampType::Create
            },
        )
    }

    /// The headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = Header<'i>> + use<'i> {
        let mut raw = ptr::null_mut();
        // SAFETY: the message is lent; it owns the headers that it lends.
        let found = unsafe { c::rd_kafka_message_headers(self.raw.as_ptr(), &mut raw) };
        let raw = if found == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            raw
        } else {
            ptr::null_mut()
        };
        (0..).map_while(move |at| {
            // SAFETY: the message lends the headers for `'i`.
            unsafe { header(raw, at) }
        })
    }
}

/// The header at an index; `None` past the last.
///
/// # Safety
/// `raw` is null, or headers that live as long as `'i`.
unsafe fn header<'i>(raw: *const c::rd_kafka_headers_t, at: usize) -> Option<Header<'i>> {
    if raw.is_null() {
        return None;
    }
    let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
    // SAFETY: the headers live, and the three places are ours.
    let found = unsafe { c::rd_kafka_header_get_all(raw, at, &mut name, &mut value, &mut size) };
    if found != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
        return None;
    }
    // SAFETY: name (ending with a null byte) and value belong to the headers.
    unsafe {
        let name = std::ffi::CStr::from_ptr(name).to_str().unwrap_or("\u{fffd}");
        Some((name, (!value.is_null()).then(|| bytes(value, size))))
    }
}

/// A queue of one's own that a group's partitions are gathered in, or that a reader reads.
pub fn inbox(handle: &Arc<Handle>, waker: &Arc<super::Waker>, most: usize) -> Inbox {
    let mut queue = Queue::new(handle);
    queue.wake_with(waker);
    Inbox::new(queue, most)
}
