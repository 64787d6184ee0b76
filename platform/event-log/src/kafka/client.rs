//! The C library's calls, wrapped so that nothing above can misuse them: handles, queues and events here; lists of
//! partitions, consuming, producing and administration in the files below.
//!
//! Guarantees: every pointer has one owner that frees it; what the library lends is never kept longer than its
//! lender; nothing here waits longer than it was told. Library: librdkafka, through `rdkafka::bindings`.
//! Never: a decision. This module and its children are the only `unsafe` code of the workspace.
#![allow(unsafe_code, reason = "calls of a C library; each block says why it is sound")]

pub mod admin;
pub mod consumer;
pub mod limit;
pub mod list;
pub mod producer;
pub mod reach;

use rdkafka::bindings as c;
use reach::Reach;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use c::rd_kafka_resp_err_t as Code;

/// Why a call failed, in the library's words and flags.
#[derive(Debug, Clone)]
pub struct ClientError {
    /// The error's code.
    pub code: Code,
    /// The error's text.
    pub text: String,
    /// The handle is of no more use.
    pub fatal: bool,
    /// The same call may be made again.
    pub retriable: bool,
    /// The open transaction must be aborted.
    pub abort: bool,
}

impl ClientError {
    /// A fault that has a code only.
    pub fn new(code: Code) -> ClientError {
        // SAFETY: takes a number and returns a static string.
        let name = text(unsafe { c::rd_kafka_err2str(code) });
        ClientError {
            code,
            text: name,
            fatal: false,
            retriable: false,
            abort: false,
        }
    }

    /// Fails unless the code says that all went well.
    pub fn check(code: Code) -> Result<(), ClientError> {
        if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(())
        } else {
            Err(ClientError::new(code))
        }
    }

    /// The same fault with a better text, if there is one.
    fn with_text(mut self, better: String) -> ClientError {
        if !better.is_empty() {
            self.text = better;
        }
        self
    }

    /// Reads an error object that stays its lender's; null means that all went well.
    ///
    /// # Safety
    /// `error` is null or a valid error object.
    unsafe fn from_borrowed(error: *const c::rd_kafka_error_t) -> Result<(), ClientError> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: the object is valid, by the caller's promise; all five calls only read it.
        let fault = unsafe {
            ClientError {
                code: c::rd_kafka_error_code(error),
                text: text(c::rd_kafka_error_string(error)),
                fatal: c::rd_kafka_error_is_fatal(error) != 0,
                retriable: c::rd_kafka_error_is_retriable(error) != 0,
                abort: c::rd_kafka_error_txn_requires_abort(error) != 0,
            }
        };
        if fault.code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(())
        } else {
            Err(fault)
        }
    }

    /// Reads and frees an error object.
    ///
    /// # Safety
    /// `error` is null or a valid error object that the caller owns.
    unsafe fn from_owned(error: *mut c::rd_kafka_error_t) -> Result<(), ClientError> {
        // SAFETY: valid by the caller's promise; freed once, after the last use.
        unsafe {
            let result = ClientError::from_borrowed(error);
            if !error.is_null() {
                c::rd_kafka_error_destroy(error);
            }
            result
        }
    }
}

/// A setting that the library does not take.
#[derive(Debug)]
pub struct SettingError {
    /// Name of the setting; empty when it is their combination.
    pub setting: String,
    /// Why, in the library's words.
    pub reason: String,
}

/// The linked library's version: major, minor, revision.
pub fn version() -> (u8, u8, u8) {
    // SAFETY: reads a constant. Its bytes are major, minor, revision and the state of the release.
    let [major, minor, revision, _] = unsafe { c::rd_kafka_version() }.to_be_bytes();
    (major, minor, revision)
}

/// What a handle is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientKind {
    /// Produces and administers.
    Producer,
    /// Consumes.
    Consumer,
}

/// One client instance: its threads, connections and queues.
#[derive(Debug)]
pub struct Handle {
    rk: NonNull<c::rd_kafka_t>,
    reach: Arc<Reach>,
    bootstrap: CString,
}

// SAFETY: the library documents its handles as thread-safe; `Reach` is `Sync` by itself.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// Starts an instance. Delivery reports, errors and rebalances arrive as events.
    pub fn new(kind: ClientKind, settings: &BTreeMap<String, String>) -> Result<Arc<Handle>, SettingError> {
        let mut reason: [c_char; 512] = [0; 512];
        // SAFETY: returns a new configuration, which this function owns until it hands it over or frees it.
        let conf = unsafe { c::rd_kafka_conf_new() };
        for (name, value) in settings {
            let (c_name, c_value) = (owned(name), owned(value));
            // SAFETY: all pointers are valid for the call, and the length is the buffer's.
            let result = unsafe {
                c::rd_kafka_conf_set(
                    conf,
                    c_name.as_ptr(),
                    c_value.as_ptr(),
                    reason.as_mut_ptr(),
                    reason.len(),
                )
            };
            if result != c::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
                // SAFETY: the configuration is still ours, and this is its last use.
                unsafe { c::rd_kafka_conf_destroy(conf) };
                return Err(SettingError {
                    setting: name.clone(),
                    reason: text(reason.as_ptr()),
                });
            }
        }
        let reach = Arc::new(Reach::default());
        let events = c::RD_KAFKA_EVENT_DR | c::RD_KAFKA_EVENT_ERROR | c::RD_KAFKA_EVENT_REBALANCE;
        let kind = match kind {
            ClientKind::Producer => c::rd_kafka_type_t::RD_KAFKA_PRODUCER,
            ClientKind::Consumer => c::rd_kafka_type_t::RD_KAFKA_CONSUMER,
        };
        // SAFETY: the configuration is valid. `rd_kafka_new` takes it over when it succeeds; else it is freed here.
        // `reach` outlives the instance: the handle below owns both and ends the instance first.
        let rk = unsafe {
            c::rd_kafka_conf_set_events(conf, events);
            reach::install(conf, &reach);
            let rk = c::rd_kafka_new(kind, conf, reason.as_mut_ptr(), reason.len());
            if rk.is_null() {
                c::rd_kafka_conf_destroy(conf);
            }
            rk
        };
        let bootstrap = owned(settings.get("bootstrap.servers").map_or("", String::as_str));
        match NonNull::new(rk) {
            Some(rk) => Ok(Arc::new(Handle { rk, reach, bootstrap })),
            None => Err(SettingError {
                setting: String::new(),
                reason: text(reason.as_ptr()),
            }),
        }
    }

    fn raw(&self) -> *mut c::rd_kafka_t {
        self.rk.as_ptr()
    }

    /// Whether brokers answer, and what was last said about it.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Tells the instance of its bootstrap servers again when it has forgotten every broker. Whoever waits for the
    /// instance calls this now and then.
    pub fn remind(&self) {
        if !self.reach.needs_reminder(Instant::now()) {
            return;
        }
        tracing::debug!(target: "event_log::kafka", "no broker is known any more; the bootstrap servers are named again");
        // SAFETY: the instance lives; the list is copied.
        unsafe { c::rd_kafka_brokers_add(self.raw(), self.bootstrap.as_ptr()) };
    }

    /// The fatal error that ended this instance's usefulness, if there was one.
    pub fn fatal(&self) -> Option<ClientError> {
        let mut reason: [c_char; 512] = [0; 512];
        // SAFETY: the instance lives; the buffer's length is its own.
        let code = unsafe { c::rd_kafka_fatal_error(self.raw(), reason.as_mut_ptr(), reason.len()) };
        let fault = ClientError::check(code).err()?;
        Some(ClientError {
            fatal: true,
            ..fault.with_text(text(reason.as_ptr()))
        })
    }

    /// The cluster's id; `None` when no broker answered in time.
    pub fn cluster(&self, timeout: Duration) -> Option<String> {
        // SAFETY: the instance lives; the string is freed by the library's own function after it was copied.
        unsafe {
            let id = c::rd_kafka_clusterid(self.raw(), millis(timeout));
            if id.is_null() {
                return None;
            }
            let copy = text(id);
            c::rd_kafka_mem_free(self.raw(), id.cast());
            Some(copy)
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the last owner is gone, so no queue, topic, message or event of the instance is left. A consumer
        // that wanted to leave its group has done so in `Queue::close`.
        unsafe { c::rd_kafka_destroy_flags(self.raw(), c::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE) };
    }
}

/// Wakes one waiting thread when a queue gets its first entry.
#[derive(Debug, Default)]
pub struct Waker {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Waker {
    fn wake(&self) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    /// Waits for an entry, at most this long.
    pub fn wait(&self, timeout: Duration) {
        let guard = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(guard, timeout, |woken| !*woken);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

unsafe extern "C" fn wake(_: *mut c::rd_kafka_t, waker: *mut c_void) {
    // SAFETY: `Queue::wake_with` passed this pointer, and its queue keeps the waker until the callback is taken away.
    unsafe { &*waker.cast::<Waker>() }.wake();
}

/// A queue of an instance.
#[derive(Debug)]
pub struct Queue {
    raw: NonNull<c::rd_kafka_queue_t>,
    waker: Option<Arc<Waker>>,
    handle: Arc<Handle>,
}

// SAFETY: the library's queues may be used from any thread, and they keep their instance alive.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    /// # Safety
    /// `raw` is a queue reference of this instance that the caller owns.
    unsafe fn own(raw: *mut c::rd_kafka_queue_t, handle: &Arc<Handle>) -> Option<Queue> {
        NonNull::new(raw).map(|raw| Queue {
            raw,
            waker: None,
            handle: handle.clone(),
        })
    }

    /// A new queue of one's own.
    pub fn new(handle: &Arc<Handle>) -> Queue {
        // SAFETY: the instance lives; the reference is ours.
        unsafe { Queue::own(c::rd_kafka_queue_new(handle.raw()), handle) }.expect("a new queue is never null")
    }

    /// The instance's main queue: delivery reports and errors.
    pub fn main(handle: &Arc<Handle>) -> Queue {
        // SAFETY: the instance lives; the reference is ours.
        unsafe { Queue::own(c::rd_kafka_queue_get_main(handle.raw()), handle) }
            .expect("every instance has a main queue")
    }

    /// The queue of a group's member, with rebalances and the main queue's entries; `None` without a group.
    pub fn member(handle: &Arc<Handle>) -> Option<Queue> {
        // SAFETY: the instance lives; the reference is ours.
        unsafe {
            c::rd_kafka_poll_set_consumer(handle.raw());
            Queue::own(c::rd_kafka_queue_get_consumer(handle.raw()), handle)
        }
    }

    /// Makes the waker wake whenever this queue gets its first entry.
    pub fn wake_with(&mut self, waker: &Arc<Waker>) {
        let opaque = Arc::as_ptr(waker).cast_mut().cast();
        self.waker = Some(waker.clone());
        // SAFETY: the waker is kept until the callback is taken away, in `drop`.
        unsafe { c::rd_kafka_queue_cb_event_enable(self.raw.as_ptr(), Some(wake), opaque) };
    }

    /// Takes the next event; waits at most `timeout`.
    pub fn poll(&self, timeout: Duration) -> Option<Event<'_>> {
        // SAFETY: the queue is ours; the event is owned by the value that is returned.
        let event = unsafe { c::rd_kafka_queue_poll(self.raw.as_ptr(), millis(timeout)) };
        NonNull::new(event).map(|raw| Event {
            raw,
            queue: PhantomData,
        })
    }

    /// Makes a waiting `poll` return.
    pub fn interrupt(&self) {
        // SAFETY: the queue is ours.
        unsafe { c::rd_kafka_queue_yield(self.raw.as_ptr()) };
    }

    /// The instance.
    pub fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the callback is taken away before its waker and the reference go.
        unsafe {
            if self.waker.is_some() {
                c::rd_kafka_queue_cb_event_enable(self.raw.as_ptr(), None, ptr::null_mut());
            }
            c::rd_kafka_queue_destroy(self.raw.as_ptr());
        }
    }
}

/// What an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Delivery reports.
    Reports,
    /// A change of the assignment.
    Rebalance,
    /// An error of the instance.
    Error,
    /// Something else, such as the answer to a request.
    Other,
}

/// An event; freed when dropped, before its queue.
#[derive(Debug)]
pub struct Event<'q> {
    raw: NonNull<c::rd_kafka_event_t>,
    queue: PhantomData<&'q Queue>,
}

impl Event<'_> {
    /// What it is.
    pub fn kind(&self) -> EventKind {
        // SAFETY: the event is ours.
        match unsafe { c::rd_kafka_event_type(self.raw.as_ptr()) } {
            c::RD_KAFKA_EVENT_DR => EventKind::Reports,
            c::RD_KAFKA_EVENT_REBALANCE => EventKind::Rebalance,
            c::RD_KAFKA_EVENT_ERROR => EventKind::Error,
            _ => EventKind::Other,
        }
    }

    /// The error that it carries; a rebalance says here which way it goes.
    pub fn fault(&self) -> Result<(), ClientError> {
        // SAFETY: the event is ours; the text is copied before the event goes. Only an error's event has room for the
        // flag: of any other the library would read what lies behind it.
        let (code, said, fatal) = unsafe {
            let raw = self.raw.as_ptr();
            let fatal = self.kind() == EventKind::Error && c::rd_kafka_event_error_is_fatal(raw) != 0;
            (
                c::rd_kafka_event_error(raw),
                text(c::rd_kafka_event_error_string(raw)),
                fatal,
            )
        };
        ClientError::check(code).map_err(|fault| ClientError {
            fatal,
            ..fault.with_text(said)
        })
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        // SAFETY: the event is ours, and nothing borrowed from it is left.
        unsafe { c::rd_kafka_event_destroy(self.raw.as_ptr()) };
    }
}

/// Copies a string of the library; null is the empty string.
fn text(from: *const c_char) -> String {
    if from.is_null() {
        return String::new();
    }
    // SAFETY: the library's strings end with a null byte and live until their lender goes; the caller holds it.
    unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned()
}

/// A string for the library. A null byte, which no name may have, becomes a character that the broker refuses.
fn owned(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).expect("null bytes were replaced")
}

/// Bytes that the library lends; null or empty is the empty slice.
///
/// # Safety
/// `from` is null or points to `length` bytes that live as long as `'a`.
unsafe fn bytes<'a>(from: *const c_void, length: usize) -> &'a [u8] {
    if from.is_null() || length == 0 {
        return &[];
    }
    // SAFETY: by the caller's promise.
    unsafe { std::slice::from_raw_parts(from.cast(), length) }
}

/// A time limit in the library's unit.
fn millis(limit: Duration) -> c_int {
    c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX)
}

/// A length in C's unit; nothing that is counted here comes near its limit.
fn count(length: usize) -> c_int {
    c_int::try_from(length).unwrap_or(c_int::MAX)
}
