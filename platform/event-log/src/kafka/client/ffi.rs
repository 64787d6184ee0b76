//! Conversions between Rust and C values for calls of librdkafka.

pub use rdkafka::bindings as c;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::time::Duration;

pub use c::rd_kafka_resp_err_t as Code;

/// Copies a string of librdkafka; null is the empty string.
pub fn text(from: *const c_char) -> String {
    if from.is_null() {
        return String::new();
    }
    // SAFETY: librdkafka's strings are null-terminated and live as long as their owner, which the caller holds.
    unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned()
}

/// Converts a string for librdkafka. A null byte is replaced by a character that no topic name may contain, so that the
/// broker rejects the name.
pub fn owned(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).expect("null bytes were replaced")
}

/// Borrows bytes of librdkafka; null is the empty slice.
///
/// # Safety
/// `from` is null or points to `length` bytes that live for `'a`.
pub unsafe fn bytes<'a>(from: *const c_void, length: usize) -> &'a [u8] {
    if from.is_null() || length == 0 {
        return &[];
    }
    // SAFETY: the caller guarantees `length` valid bytes.
    unsafe { std::slice::from_raw_parts(from.cast(), length) }
}

/// Converts a duration to milliseconds for librdkafka.
pub fn millis(limit: Duration) -> c_int {
    c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX)
}

/// Converts a length to C's `int`. All lengths in this crate are far below its maximum.
pub fn count(length: usize) -> c_int {
    c_int::try_from(length).unwrap_or(c_int::MAX)
}
