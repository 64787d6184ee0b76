//! Consuming: group membership, explicitly assigned partitions, and batches of messages.
//!
//! A [`Message`] borrows from the [`Inbox`] that owns it. librdkafka allows one thread at a time in its batch calls on a
//! queue; `&mut Inbox` enforces that. Offsets are never committed automatically.

use super::group_metadata::ClientGroupMetadata;
use super::list::{Entry, List, entries};
use super::producer::Topic;
use super::{ClientError, Code, Event, Handle, Queue, bytes, c, millis, owned, text};
use crate::{Header, Millis, Offset, TimestampType, TopicPartition};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

impl Handle {
    /// Subscribes to topics and joins the group of the client's settings.
    pub fn subscribe(&self, topics: &List) -> Result<(), ClientError> {
        // SAFETY: `self` keeps the client alive, `topics` is a valid list; librdkafka copies it.
        ClientError::check(unsafe { c::rd_kafka_subscribe(self.raw(), topics.raw()) })
    }

    /// Ends the subscription and leaves the group after its partitions were revoked. A static member leaves too. (When
    /// it is only closed, it stays in the group, see KIP-345.)
    pub fn unsubscribe(&self) -> Result<(), ClientError> {
        // SAFETY: `self` keeps the client alive.
        ClientError::check(unsafe { c::rd_kafka_unsubscribe(self.raw()) })
    }

    /// Replaces the assignment; `None` removes it.
    pub fn assign(&self, partitions: Option<&List>) -> Result<(), ClientError> {
        // SAFETY: client and list are valid; librdkafka copies the list and accepts null.
        ClientError::check(unsafe {
            c::rd_kafka_assign(
                self.raw(),
                partitions.map_or(ptr::null(), |list| list.raw().cast_const()),
            )
        })
    }

    /// Adds partitions to the assignment.
    pub fn incremental_assign(&self, partitions: &List) -> Result<(), ClientError> {
        // SAFETY: client and list are valid; librdkafka copies the list and passes us the error object.
        unsafe {
            ClientError::from_owned(c::rd_kafka_incremental_assign(
                self.raw(),
                partitions.raw().cast_const(),
            ))
        }
    }

    /// Removes partitions from the assignment.
    pub fn incremental_unassign(&self, partitions: &List) -> Result<(), ClientError> {
        // SAFETY: as in `incremental_assign`.
        unsafe {
            ClientError::from_owned(c::rd_kafka_incremental_unassign(
                self.raw(),
                partitions.raw().cast_const(),
            ))
        }
    }

    /// Returns whether the partitions that are being revoked already belong to another member.
    pub fn assignment_lost(&self) -> bool {
        // SAFETY: `self` keeps the client alive.
        unsafe { c::rd_kafka_assignment_lost(self.raw()) != 0 }
    }

    /// Stops fetching partitions and discards what was fetched. Waits for partitions that are being stopped.
    pub fn pause(&self, partitions: &List) -> Result<(), ClientError> {
        // SAFETY: client and list are valid; the call only writes error codes into the list's entries.
        ClientError::check(unsafe { c::rd_kafka_pause_partitions(self.raw(), partitions.raw()) })
    }

    /// Resumes fetching partitions.
    pub fn resume(&self, partitions: &List) -> Result<(), ClientError> {
        // SAFETY: as in `pause`.
        ClientError::check(unsafe { c::rd_kafka_resume_partitions(self.raw(), partitions.raw()) })
    }

    /// Moves assigned partitions to the offsets of the list and discards what was fetched. The entries of the list
    /// receive an error code each.
    pub fn seek(&self, partitions: &List, timeout: Duration) -> Result<(), ClientError> {
        // SAFETY: client and list are valid; we own the error object that is returned.
        unsafe {
            ClientError::from_owned(c::rd_kafka_seek_partitions(
                self.raw(),
                partitions.raw(),
                millis(timeout),
            ))
        }
    }

    /// Queries the offsets of a partition from its leader and discards them. The request only wakes up the connection
    /// to the leader.
    pub fn query_watermarks(&self, at: &TopicPartition, timeout: Duration) {
        let (topic, mut low, mut high) = (owned(&at.topic), 0, 0);
        // SAFETY: the client is alive, the name is copied, and both numbers outlive the call, which is synchronous.
        unsafe {
            let rk = self.raw();
            c::rd_kafka_query_watermark_offsets(rk, topic.as_ptr(), at.partition, &mut low, &mut high, millis(timeout));
        }
    }

    /// Commits offsets as this member of its group and waits for the result.
    pub fn commit(&self, offsets: &List) -> Result<(), ClientError> {
        // SAFETY: client and list are valid.
        ClientError::check(unsafe { c::rd_kafka_commit(self.raw(), offsets.raw(), 0) })
    }

    /// Returns the current group metadata; `None` if the client has no group.
    pub fn group_metadata(&self) -> Option<ClientGroupMetadata> {
        // SAFETY: the client is alive; we own the object that is returned.
        unsafe { ClientGroupMetadata::from_owned(c::rd_kafka_consumer_group_metadata(self.raw())) }
    }

    /// Returns whether the member has left its group.
    pub fn left(&self) -> bool {
        // SAFETY: `self` keeps the client alive.
        unsafe { c::rd_kafka_consumer_closed(self.raw()) != 0 }
    }
}

impl Queue {
    /// Starts to leave the group. The final revocation arrives in this queue; wait for [`Handle::left`].
    pub fn leave(&self) -> Result<(), ClientError> {
        // SAFETY: client and queue are valid; we own the error object that is returned.
        unsafe { ClientError::from_owned(c::rd_kafka_consumer_close_queue(self.handle.raw(), self.raw.as_ptr())) }
    }

    /// Forwards the queue of a partition to this one. Must be called before the partition is assigned; otherwise its
    /// records go to the consumer queue.
    pub fn forward_partition(&self, at: &TopicPartition) {
        let name = owned(&at.topic);
        // SAFETY: `from` is a reference of ours, released after use; the forwarding outlives it.
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
    /// Returns the partitions of a rebalance event.
    pub fn partitions(&self) -> Vec<Entry> {
        // SAFETY: the event owns the list for as long as `self`; the entries are copied.
        unsafe { entries(c::rd_kafka_event_topic_partition_list(self.raw.as_ptr())) }
    }
}

impl Topic {
    /// Starts to read a partition into a queue, from an offset or a special offset.
    pub fn read(&self, partition: i32, from: Offset, into: &Queue) -> Result<(), ClientError> {
        // SAFETY: topic and queue are valid and belong to the same client.
        let result = unsafe { c::rd_kafka_consume_start_queue(self.raw(), partition, from, into.raw.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(last()) }
    }

    /// Stops reading a partition. librdkafka discards its remaining entries when the queue is polled.
    pub fn stop(&self, partition: i32) -> Result<(), ClientError> {
        // SAFETY: `self` keeps the topic alive.
        let result = unsafe { c::rd_kafka_consume_stop(self.raw(), partition) };
        if result == 0 { Ok(()) } else { Err(last()) }
    }
}

/// Returns the error of this thread's last call of librdkafka's older (simple consumer) API.
fn last() -> ClientError {
    // SAFETY: reads a thread-local number.
    ClientError::new(unsafe { c::rd_kafka_last_error() })
}

/// What [`Inbox::visit`] does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Free the message.
    Drop,
    /// Keep the message and continue with the next one.
    Keep,
    /// Keep the message and all later ones.
    Stop,
}

/// Messages that were taken from a queue and not yet returned to the application.
#[derive(Debug)]
pub struct Inbox {
    /// Declared before `queue`, so that messages are freed before their client.
    messages: VecDeque<NonNull<c::rd_kafka_message_t>>,
    pub(super) room: Vec<*mut c::rd_kafka_message_t>,
    pub(super) queue: Queue,
}

// SAFETY: the inbox is the only owner of its messages, which may be read and freed on any thread.
unsafe impl Send for Inbox {}

impl Inbox {
    /// Creates an inbox that takes up to `most` messages at a time.
    pub fn new(queue: Queue, most: usize) -> Inbox {
        Inbox {
            messages: VecDeque::with_capacity(most),
            room: vec![ptr::null_mut(); most],
            queue,
        }
    }

    /// Returns the queue from which the inbox takes messages.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Takes available messages from the queue without waiting and returns their number.
    pub fn fill(&mut self) -> usize {
        // SAFETY: the queue is valid and `room` has the length passed; we own the messages that are returned. `&mut self`
        // guarantees that no other batch call runs on this queue.
        let taken = unsafe {
            c::rd_kafka_consume_batch_queue(self.queue.raw.as_ptr(), 0, self.room.as_mut_ptr(), self.room.len())
        };
        let taken = usize::try_from(taken).unwrap_or(0);
        self.messages
            .extend(self.room.iter().take(taken).filter_map(|m| NonNull::new(*m)));
        taken
    }

    /// Passes each message in order to `each`, and then keeps or frees the message, according to the result of `each`.
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
                    // SAFETY: we own the message, it is no longer in the list, and no `Message` that refers to it is left.
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

/// A message, or an error or end-of-partition event.
#[derive(Debug, Clone, Copy)]
pub struct Message<'i> {
    raw: NonNull<c::rd_kafka_message_t>,
    inbox: PhantomData<&'i Inbox>,
}

impl<'i> Message<'i> {
    fn get(&self) -> &'i c::rd_kafka_message_t {
        // SAFETY: the inbox keeps the message unchanged for `'i`.
        unsafe { self.raw.as_ref() }
    }

    /// Returns the address of the message's topic object: equal to [`Topic::address`] while the topic is open.
    pub fn topic_address(&self) -> usize {
        self.get().rkt.addr()
    }

    /// Returns the topic's name.
    pub fn topic(&self) -> String {
        // SAFETY: the message keeps its topic object alive; the name is copied.
        unsafe {
            if self.get().rkt.is_null() {
                String::new()
            } else {
                text(c::rd_kafka_topic_name(self.get().rkt))
            }
        }
    }

    /// Returns the partition number.
    pub fn partition(&self) -> i32 {
        self.get().partition
    }

    /// Returns the offset. For an end-of-partition event, the end of the partition.
    pub fn offset(&self) -> Offset {
        self.get().offset
    }

    /// Returns the error code: no error, end of partition, or an error of the partition.
    pub fn code(&self) -> Code {
        self.get().err
    }

    /// Returns the error with its text.
    pub fn error(&self) -> ClientError {
        // SAFETY: the message is valid for `'i`; its text is copied.
        ClientError::new(self.code()).with_text(text(unsafe { c::rd_kafka_message_errstr(self.raw.as_ptr()) }))
    }

    /// Returns the key.
    pub fn key(&self) -> Option<&'i [u8]> {
        let message = self.get();
        // SAFETY: the message owns `key_len` bytes at `key` for `'i`. An empty key is not null.
        (!message.key.is_null()).then(|| unsafe { bytes(message.key, message.key_len) })
    }

    /// Returns the value.
    pub fn value(&self) -> Option<&'i [u8]> {
        let message = self.get();
        // SAFETY: the message owns `len` bytes at `payload` for `'i`. An empty value is not null.
        (!message.payload.is_null()).then(|| unsafe { bytes(message.payload, message.len) })
    }

    /// Returns the timestamp and its type.
    pub fn timestamp(&self) -> (Millis, TimestampType) {
        let mut kind = c::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid for `'i`; `kind` is a local variable.
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

    /// Iterates over the headers in order.
    pub fn headers(&self) -> impl Iterator<Item = Header<'i>> + use<'i> {
        let mut raw = ptr::null_mut();
        // SAFETY: the message is valid for `'i` and owns the header list that it returns.
        let found = unsafe { c::rd_kafka_message_headers(self.raw.as_ptr(), &mut raw) };
        let raw = if found == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            raw
        } else {
            ptr::null_mut()
        };
        (0..).map_while(move |at| {
            // SAFETY: the message keeps the header list alive for `'i`.
            unsafe { header(raw, at) }
        })
    }
}

/// Returns the header at an index, or `None` after the last header.
///
/// # Safety
/// `raw` is null or a header list that lives for `'i`.
unsafe fn header<'i>(raw: *const c::rd_kafka_headers_t, at: usize) -> Option<Header<'i>> {
    if raw.is_null() {
        return None;
    }
    let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
    // SAFETY: the header list is valid; the three out parameters are local variables.
    let found = unsafe { c::rd_kafka_header_get_all(raw, at, &mut name, &mut value, &mut size) };
    if found != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
        return None;
    }
    // SAFETY: the header list owns the name, which is null-terminated, and `size` bytes of the value.
    unsafe {
        let name = std::ffi::CStr::from_ptr(name).to_str().unwrap_or("\u{fffd}");
        Some((name, (!value.is_null()).then(|| bytes(value, size))))
    }
}

/// Creates an inbox with a new queue, for the partitions of a group member or reader.
pub fn inbox(handle: &Arc<Handle>, waker: &Arc<super::Waker>, most: usize) -> Inbox {
    let mut queue = Queue::new(handle);
    queue.wake_with(waker);
    Inbox::new(queue, most)
}
