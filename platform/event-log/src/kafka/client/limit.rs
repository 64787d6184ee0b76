//! The library's calls alone, for the measurement of what they cost.
//!
//! Guarantees: one call of the library a record each way. Never: used by the log.

use super::consumer::Inbox;
use super::producer::Topic;
use super::{Code, ClientError, c, millis};
use crate::Offset;
use std::ptr;
use std::time::Duration;

impl Inbox {
    /// Produces what stands in the queue, as it is and to partitions of the same numbers, and tells of each where it
    /// was. Waits at most `timeout` for the first message.
    pub fn forward(
        &mut self,
        to: &Topic,
        timeout: Duration,
        mut read: impl FnMut(i32, Offset),
    ) -> Result<usize, ClientError> {
        // SAFETY: the queue is ours, the room has the length given; the messages that come back are ours.
        let taken = unsafe {
            let (room, most) = (self.room.as_mut_ptr(), self.room.len());
            c::rd_kafka_consume_batch_queue(self.queue.raw.as_ptr(), millis(timeout), room, most)
        };
        let taken = usize::try_from(taken).unwrap_or(0);
        let mut result = Ok(0);
        for raw in self.room.iter().take(taken).copied() {
            // SAFETY: the message is ours until it is destroyed, once, at the end of this turn; the topic lives; key
            // and value are copied by the flag.
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
/// The message is valid, with its key and value.
unsafe fn produce(to: &Topic, message: &c::rd_kafka_message_t) -> Result<(), ClientError> {
    loop {
        // SAFETY: by the caller's promise; the topic lives.
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
        // SAFETY: reads this thread's last error.
        let code = unsafe { c::rd_kafka_last_error() };
        if code != Code::RD_KAFKA_RESP_ERR__QUEUE_FULL {
            return Err(ClientError::new(code));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
