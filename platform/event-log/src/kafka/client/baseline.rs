//! Copies messages with one librdkafka call per record and direction, for the baseline of [`crate::kafka::baseline`].

use super::consumer::Inbox;
use super::producer::Topic;
use super::{ClientError, Code, c, millis};
use crate::Offset;
use std::ptr;
use std::time::Duration;

impl Inbox {
    /// Produces the messages of the queue unchanged, to the partitions with the same numbers, and passes the partition
    /// and offset of each to `read`. Waits up to `timeout` for the first message.
    pub fn forward(
        &mut self,
        to: &Topic,
        timeout: Duration,
        mut read: impl FnMut(i32, Offset),
    ) -> Result<usize, ClientError> {
        // SAFETY: the queue is valid and `room` has the length passed; we own the messages that are returned.
        let taken = unsafe {
            let (room, most) = (self.room.as_mut_ptr(), self.room.len());
            c::rd_kafka_consume_batch_queue(self.queue.raw.as_ptr(), millis(timeout), room, most)
        };
        let taken = usize::try_from(taken).unwrap_or(0);
        let mut result = Ok(0);
        for raw in self.room.iter().take(taken).copied() {
            // SAFETY: we own the message until it is destroyed, once, at the end of this iteration. The topic is valid, and
            // the flag makes librdkafka copy key and value.
            unsafe {
                let message = &*raw;
                if message.err == Code::RD_KAFKA_RESP_ERR_NO_ERROR && result.is_ok() {
                    result = produce(to, message).and(result).map(|count| count + 1);
                    read(message.partition, message.offset);
                }
                c::rd_kafka_message_destroy(raw);
            }
        }
        result
    }
}

/// # Safety
/// The message and the key and value that it points to are valid.
unsafe fn produce(to: &Topic, message: &c::rd_kafka_message_t) -> Result<(), ClientError> {
    loop {
        // SAFETY: the caller guarantees a valid message; `to` keeps the topic alive.
        let failed = unsafe {
            c::rd_kafka_produce(
                to.raw(),
                message.partition,
                c::RD_KAFKA_MSG_F_COPY,
                message.payload,
                message.len,
                message.key,
                message.key_len,
                ptr::null_mut(),
            )
        };
        if failed == 0 {
            return Ok(());
        }
        // SAFETY: reads a thread-local number.
        let code = unsafe { c::rd_kafka_last_error() };
        if code != Code::RD_KAFKA_RESP_ERR__QUEUE_FULL {
            return Err(ClientError::new(code));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
