//! Producing: topics, records, delivery reports and transaction calls.
//!
//! librdkafka copies all bytes before a call returns. Only `flush` and the transaction calls wait for deliveries.

use super::group_metadata::ClientGroupMetadata;
use super::list::List;
use super::{ClientError, Code, Event, Handle, c, owned};
use crate::{Header, Millis, Offset, OutRecord};
use std::ffi::c_int;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// An open topic of a client.
#[derive(Debug)]
pub struct Topic {
    raw: NonNull<c::rd_kafka_topic_t>,
    handle: Arc<Handle>,
}

// SAFETY: topic objects are reference counted and may be used from any thread.
unsafe impl Send for Topic {}
// SAFETY: as for `Send`.
unsafe impl Sync for Topic {}

impl Topic {
    /// Opens a topic, which need not exist.
    pub fn new(handle: &Arc<Handle>, name: &str) -> Result<Topic, ClientError> {
        let name = owned(name);
        // SAFETY: the client is alive; the name is copied; null selects the client's default topic settings.
        let raw = unsafe { c::rd_kafka_topic_new(handle.raw(), name.as_ptr(), ptr::null_mut()) };
        // SAFETY: reads a thread-local number.
        let raw = NonNull::new(raw).ok_or_else(|| ClientError::new(unsafe { c::rd_kafka_last_error() }))?;
        Ok(Topic {
            raw,
            handle: handle.clone(),
        })
    }

    pub(super) fn raw(&self) -> *mut c::rd_kafka_topic_t {
        self.raw.as_ptr()
    }

    /// Returns the address by which messages and delivery reports identify the topic while it is open.
    pub fn address(&self) -> usize {
        self.raw.as_ptr().addr()
    }

    /// Queues a record. Its delivery report will carry `tag`. The headers are consumed on success.
    pub fn produce(
        &self,
        record: &OutRecord<'_>,
        headers: &mut Option<HeaderList>,
        tag: usize,
    ) -> Result<(), ClientError> {
        use c::rd_kafka_vtype_t as V;
        let unit = |vtype, u| c::rd_kafka_vu_t { vtype, u };
        let tag = ptr::without_provenance_mut(tag);
        let list = headers.as_ref().map_or(ptr::null_mut(), |list| list.raw.as_ptr());
        let units = [
            unit(V::RD_KAFKA_VTYPE_RKT, Value { rkt: self.raw.as_ptr() }),
            unit(
                V::RD_KAFKA_VTYPE_PARTITION,
                Value {
                    i32_: record.partition.unwrap_or(RD_KAFKA_PARTITION_UA),
                },
            ),
            unit(
                V::RD_KAFKA_VTYPE_MSGFLAGS,
                Value {
                    i: c::RD_KAFKA_MSG_F_COPY,
                },
            ),
            unit(V::RD_KAFKA_VTYPE_KEY, memory(record.key)),
            unit(V::RD_KAFKA_VTYPE_VALUE, memory(record.value)),
            unit(
                V::RD_KAFKA_VTYPE_TIMESTAMP,
                Value {
                    i64_: record.timestamp.unwrap_or(0),
                },
            ),
            unit(V::RD_KAFKA_VTYPE_OPAQUE, Value { ptr: tag }),
            unit(V::RD_KAFKA_VTYPE_HEADERS, Value { headers: list }),
        ];
        let used = if headers.is_some() {
            units.len()
        } else {
            units.len() - 1
        };
        // SAFETY: client and topic are valid; each unit sets the union member that its type selects; `F_COPY` makes
        // librdkafka copy key and value. It takes over the headers on success and leaves them to us on failure.
        unsafe { ClientError::from_owned(c::rd_kafka_produceva(self.handle.raw(), units.as_ptr(), used)) }?;
        if let Some(list) = headers.take() {
            std::mem::forget(list);
        }
        Ok(())
    }

    /// Requests the partition count from the brokers, which also makes the client learn the partition leaders.
    pub fn partitions(&self, timeout: std::time::Duration) -> Result<i32, ClientError> {
        let mut metadata = ptr::null();
        // SAFETY: client and topic are valid; on success we own the metadata and free it after reading it.
        unsafe {
            let rk = self.handle.raw();
            let code = c::rd_kafka_metadata(rk, 0, self.raw(), &mut metadata, super::millis(timeout));
            ClientError::check(code)?;
            let topic = (*metadata).topics.as_ref().filter(|_| (*metadata).topic_cnt > 0);
            let found = topic.map_or((Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, 0), |t| {
                (t.err, t.partition_cnt)
            });
            c::rd_kafka_metadata_destroy(metadata);
            ClientError::check(found.0).map(|()| found.1)
        }
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: `self` owns the reference and releases it once, before its client.
        unsafe { c::rd_kafka_topic_destroy(self.raw.as_ptr()) };
    }
}

type Value = c::rd_kafka_vu_s__bindgen_ty_1;

/// librdkafka's constant for a partition chosen by the client's partitioner.
const RD_KAFKA_PARTITION_UA: i32 = -1;

fn memory(of: Option<&[u8]>) -> Value {
    let (ptr, size) = of.map_or((ptr::null(), 0), |b| (b.as_ptr(), b.len()));
    Value {
        mem: c::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
            ptr: ptr.cast_mut().cast(),
            size,
        },
    }
}

/// Headers of a record to produce.
#[derive(Debug)]
pub struct HeaderList {
    raw: NonNull<c::rd_kafka_headers_t>,
    len: usize,
    bytes: usize,
}

impl HeaderList {
    /// Copies headers; `None` if there are none.
    pub fn of<'h>(headers: impl Iterator<Item = Header<'h>>) -> Option<HeaderList> {
        let mut headers = headers.peekable();
        headers.peek()?;
        // SAFETY: the call has no preconditions; we own the list that is returned.
        let raw = unsafe { c::rd_kafka_headers_new(4) };
        let mut list = HeaderList {
            raw: NonNull::new(raw).expect("new headers are never null"),
            len: 0,
            bytes: 0,
        };
        for (name, value) in headers {
            let (bytes, size) = value.map_or((ptr::null(), 0), |v| (v.as_ptr(), v.len()));
            list.len += 1;
            list.bytes += name.len() + size;
            // SAFETY: the list is valid; librdkafka copies name and value by the lengths passed.
            unsafe {
                let name_size = isize::try_from(name.len()).unwrap_or(0);
                let size = isize::try_from(size).unwrap_or(0);
                c::rd_kafka_header_add(list.raw.as_ptr(), name.as_ptr().cast(), name_size, bytes.cast(), size);
            }
        }
        Some(list)
    }

    /// Number of headers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Total size of the names and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for HeaderList {
    fn drop(&mut self) {
        // SAFETY: `self` owns the list; a list that librdkafka took over was passed to `forget`.
        unsafe { c::rd_kafka_headers_destroy(self.raw.as_ptr()) };
    }
}

/// The delivery report of a record.
#[derive(Debug, Clone, Copy)]
pub struct Report<'e> {
    message: &'e c::rd_kafka_message_t,
}

impl Report<'_> {
    /// Returns [`Topic::address`] of the record's topic.
    pub fn topic_address(&self) -> usize {
        self.message.rkt.addr()
    }

    /// Returns the partition number.
    pub fn partition(&self) -> i32 {
        self.message.partition
    }

    /// Returns the record's offset.
    pub fn offset(&self) -> Offset {
        self.message.offset
    }

    /// Returns the error code: no error if the record was written.
    pub fn code(&self) -> Code {
        self.message.err
    }

    /// Returns the size of key and value.
    pub fn size(&self) -> usize {
        self.message.key_len + self.message.len
    }

    /// Returns the tag that was passed to [`Topic::produce`].
    pub fn tag(&self) -> usize {
        self.message._private.addr()
    }

    /// Returns the timestamp: the broker's if the topic uses `LogAppendTime`.
    pub fn timestamp(&self) -> Millis {
        // SAFETY: the event keeps the message alive; null omits the timestamp type.
        unsafe { c::rd_kafka_message_timestamp(self.message, ptr::null_mut()) }
    }
}

impl Event<'_> {
    /// Passes each delivery report of the event to `each`, in order.
    pub fn reports(&self, mut each: impl FnMut(Report<'_>)) {
        loop {
            // SAFETY: `self` owns the event, which owns the messages that it returns until it is dropped, after this loop.
            let Some(message) = (unsafe { c::rd_kafka_event_message_next(self.raw.as_ptr()).as_ref() }) else {
                return;
            };
            each(Report { message });
        }
    }
}

impl Handle {
    /// Initializes transactions: fences older producers of the transactional id and aborts their open transaction.
    pub fn init_transactions(&self, timeout: std::time::Duration) -> Result<(), ClientError> {
        // SAFETY: the client is alive; we own the error object that is returned. The same holds for the calls below.
        unsafe { ClientError::from_owned(c::rd_kafka_init_transactions(self.raw(), super::millis(timeout))) }
    }

    /// Begins a transaction without a round trip.
    pub fn begin_transaction(&self) -> Result<(), ClientError> {
        // SAFETY: as in `init_transactions`.
        unsafe { ClientError::from_owned(c::rd_kafka_begin_transaction(self.raw())) }
    }

    /// Adds consumed offsets to the transaction. Waits for what remains of the transaction timeout.
    pub fn send_offsets(&self, offsets: &List, member: &ClientGroupMetadata) -> Result<(), ClientError> {
        // SAFETY: as in `init_transactions`; list and group metadata are copied.
        unsafe {
            let error = c::rd_kafka_send_offsets_to_transaction(
                self.raw(),
                offsets.raw(),
                member.raw(),
                REMAINING_TRANSACTION_TIME,
            );
            ClientError::from_owned(error)
        }
    }

    /// Flushes and commits within a time limit. Without a limit librdkafka would repeat its request for as long as no
    /// broker answers. After a timeout the request may still be in flight, so the client must be destroyed.
    pub fn commit_transaction(&self, timeout: std::time::Duration) -> Result<(), ClientError> {
        // SAFETY: as in `init_transactions`.
        unsafe { ClientError::from_owned(c::rd_kafka_commit_transaction(self.raw(), super::millis(timeout))) }
    }

    /// Aborts within a time limit; see [`Handle::commit_transaction`].
    pub fn abort_transaction(&self, timeout: std::time::Duration) -> Result<(), ClientError> {
        // SAFETY: as in `init_transactions`.
        unsafe { ClientError::from_owned(c::rd_kafka_abort_transaction(self.raw(), super::millis(timeout))) }
    }

    /// Discards all records that are not yet written. Their delivery reports contain an error.
    pub fn purge(&self) {
        let what = c::RD_KAFKA_PURGE_F_QUEUE | c::RD_KAFKA_PURGE_F_INFLIGHT;
        // SAFETY: the client is alive.
        unsafe { c::rd_kafka_purge(self.raw(), what) };
    }

    /// Sends queued records without waiting for `linger.ms`, and waits up to `timeout` for all delivery reports.
    pub fn flush(&self, timeout: std::time::Duration) -> Result<(), ClientError> {
        // SAFETY: the client is alive. The call requires another thread to take the reports; `ProducerClient` has one.
        ClientError::check(unsafe { c::rd_kafka_flush(self.raw(), super::millis(timeout)) })
    }
}

/// librdkafka's value for "use what remains of the transaction timeout".
const REMAINING_TRANSACTION_TIME: c_int = -1;
