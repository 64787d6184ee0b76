//! Producing: topics, records, delivery reports and the calls of a transaction.
//!
//! Guarantees: bytes are copied before a call returns. Never: a wait for delivery outside of the transaction calls.

use super::consumer::ClientGroupMetadata;
use super::list::List;
use super::{Code, Event, ClientError, Handle, c, owned};
use crate::{Header, Millis, Offset, OutRecord};
use std::ffi::c_int;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// A topic of an instance.
#[derive(Debug)]
pub struct Topic {
    raw: NonNull<c::rd_kafka_topic_t>,
    handle: Arc<Handle>,
}

// SAFETY: topic objects are counted references that may be used from any thread.
unsafe impl Send for Topic {}
// SAFETY: as above.
unsafe impl Sync for Topic {}

impl Topic {
    /// Opens a topic, which need not exist.
    pub fn new(handle: &Arc<Handle>, name: &str) -> Result<Topic, ClientError> {
        let name = owned(name);
        // SAFETY: the instance lives; the name is copied; null takes the instance's topic settings.
        let raw = unsafe { c::rd_kafka_topic_new(handle.raw(), name.as_ptr(), ptr::null_mut()) };
        // SAFETY: reads this thread's last error.
        let raw = NonNull::new(raw).ok_or_else(|| ClientError::new(unsafe { c::rd_kafka_last_error() }))?;
        Ok(Topic {
            raw,
            handle: handle.clone(),
        })
    }

    pub(super) fn raw(&self) -> *mut c::rd_kafka_topic_t {
        self.raw.as_ptr()
    }

    /// What messages and reports name it by, while it is held.
    pub fn address(&self) -> usize {
        self.raw.as_ptr().addr()
    }

    /// Queues a record; its report will carry `tag`. The headers are taken when that succeeds.
    pub fn produce(&self, record: &OutRecord<'_>, headers: &mut Option<HeaderList>, tag: usize) -> Result<(), ClientError> {
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
        // SAFETY: instance and topic live; every unit holds the member that its kind names; key and value are copied
        // by the flag. The headers become the library's when the call succeeds, and stay ours when it fails.
        unsafe { ClientError::from_owned(c::rd_kafka_produceva(self.handle.raw(), units.as_ptr(), used)) }?;
        if let Some(list) = headers.take() {
            std::mem::forget(list);
        }
        Ok(())
    }

    /// Asks the brokers for the topic's partition count; also tells the instance where its partitions are.
    pub fn partitions(&self, timeout: std::time::Duration) -> Result<i32, ClientError> {
        let mut metadata = ptr::null();
        // SAFETY: instance and topic live; the metadata is ours when the call succeeds, and freed after it was read.
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
        // SAFETY: ours, and given back once, before the instance.
        unsafe { c::rd_kafka_topic_destroy(self.raw.as_ptr()) };
    }
}

type Value = c::rd_kafka_vu_s__bindgen_ty_1;

/// Lets the instance's partitioner choose.
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

/// Headers of a record that is being made.
#[derive(Debug)]
pub struct HeaderList {
    raw: NonNull<c::rd_kafka_headers_t>,
    len: usize,
    bytes: usize,
}

impl HeaderList {
    /// Copies headers; `None` when there are none.
    pub fn of<'h>(headers: impl Iterator<Item = Header<'h>>) -> Option<HeaderList> {
        let mut headers = headers.peekable();
        headers.peek()?;
        // SAFETY: returns a new list, which is ours.
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
            // SAFETY: the list is ours; name and value are copied, by the lengths given.
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

    /// Bytes of their names and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for HeaderList {
    fn drop(&mut self) {
        // SAFETY: ours: a list that the library took over was forgotten.
        unsafe { c::rd_kafka_headers_destroy(self.raw.as_ptr()) };
    }
}

/// What became of one record.
#[derive(Debug, Clone, Copy)]
pub struct Report<'e> {
    message: &'e c::rd_kafka_message_t,
}

impl Report<'_> {
    /// Which topic: [`Topic::address`].
    pub fn topic_address(&self) -> usize {
        self.message.rkt.addr()
    }

    /// The partition's number.
    pub fn partition(&self) -> i32 {
        self.message.partition
    }

    /// The record's offset.
    pub fn offset(&self) -> Offset {
        self.message.offset
    }

    /// No error when it was written.
    pub fn code(&self) -> Code {
        self.message.err
    }

    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        self.message.key_len + self.message.len
    }

    /// The tag that it was sent with.
    pub fn tag(&self) -> usize {
        self.message._private.addr()
    }

    /// The timestamp: the broker's where the topic stamps at the append.
    pub fn timestamp(&self) -> Millis {
        // SAFETY: the event lends the message; null asks for no kind.
        unsafe { c::rd_kafka_message_timestamp(self.message, ptr::null_mut()) }
    }
}

impl Event<'_> {
    /// Shows each delivery report, in order.
    pub fn reports(&self, mut each: impl FnMut(Report<'_>)) {
        loop {
            // SAFETY: the event is ours; it owns the message that it shows until it is dropped, after this loop.
            let Some(message) = (unsafe { c::rd_kafka_event_message_next(self.raw.as_ptr()).as_ref() }) else {
                return;
            };
            each(Report { message });
        }
    }
}

impl Handle {
    /// Takes over the transactional id: fences older producers and ends their transaction.
    pub fn init_transactions(&self, timeout: std::time::Duration) -> Result<(), ClientError> {
        // SAFETY: the instance lives; the error object is ours. The same holds for the calls below.
        unsafe { ClientError::from_owned(c::rd_kafka_init_transactions(self.raw(), super::millis(timeout))) }
    }

    /// Begins a transaction; no round trip.
    pub fn begin_transaction(&self) -> Result<(), ClientError> {
        // SAFETY: as in `init_transactions`.
        unsafe { ClientError::from_owned(c::rd_kafka_begin_transaction(self.raw())) }
    }

    /// Adds consumed offsets; waits at most for what is left of the transaction's time.
    pub fn send_offsets(&self, offsets: &List, member: &ClientGroupMetadata) -> Result<(), ClientError> {
        // SAFETY: as in `init_transactions`; list and membership are copied.
        unsafe {
            let error = c::rd_kafka_send_offsets_to_transaction(self.raw(), offsets.raw(), member.raw(), REMAINING_TRANSACTION_TIME);
            ClientError::from_owned(error)
        }
    }

    /// Flushes and commits, within a time: without one the library would repeat its request for as long as no broker
    /// answers. After a time-out the request may still be under way, so that the instance must go.
    pub fn commit_transaction(&self, timeout: std::time::Duration) -> Result<(), ClientError> {
        // SAFETY: as in `init_transactions`.
        unsafe { ClientError::from_owned(c::rd_kafka_commit_transaction(self.raw(), super::millis(timeout))) }
    }

    /// Aborts, within a time, as [`Handle::commit_transaction`] does.
    pub fn abort_transaction(&self, timeout: std::time::Duration) -> Result<(), ClientError> {
        // SAFETY: as in `init_transactions`.
        unsafe { ClientError::from_owned(c::rd_kafka_abort_transaction(self.raw(), super::millis(timeout))) }
    }

    /// Drops every record that is not written yet; their reports say so.
    pub fn purge(&self) {
        let what = c::RD_KAFKA_PURGE_F_QUEUE | c::RD_KAFKA_PURGE_F_INFLIGHT;
        // SAFETY: the instance lives.
        unsafe { c::rd_kafka_purge(self.raw(), what) };
    }

    /// Sends what is queued now rather than when its linger ends, and waits at most this long until all is reported.
    pub fn flush(&self, timeout: std::time::Duration) -> Result<(), ClientError> {
        // SAFETY: the instance lives. Another thread takes the reports, as the call demands.
        ClientError::check(unsafe { c::rd_kafka_flush(self.raw(), super::millis(timeout)) })
    }
}

/// The library's tag for what is left of the transaction's time.
const REMAINING_TRANSACTION_TIME: c_int = -1;
