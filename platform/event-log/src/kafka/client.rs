//! Safe wrappers of librdkafka (`rdkafka::bindings`): clients, queues and events here; partition lists, consuming,
//! producing and administration in the child modules.
//!
//! This module tree contains all `unsafe` code of the workspace and no protocol decisions (ADR 4). Every pointer has
//! one owner that frees it, and memory that belongs to librdkafka is borrowed for as long as its owner lives. Every
//! call that can block takes a timeout.
#![allow(unsafe_code, reason = "calls of librdkafka; each block states why it is sound")]

pub mod admin;
pub mod admin_results;
pub mod baseline;
pub mod connectivity;
pub mod consumer;
mod ffi;
pub mod group_metadata;
pub mod list;
pub mod producer;

use connectivity::Connectivity;
pub use ffi::Code;
use ffi::{bytes, c, count, millis, owned, text};
use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_void};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An error of librdkafka with its flags.
#[derive(Debug, Clone)]
pub struct ClientError {
    /// The error code.
    pub code: Code,
    /// The error's text.
    pub text: String,
    /// The client can no longer be used.
    pub fatal: bool,
    /// The call can be repeated.
    pub retriable: bool,
    /// The open transaction must be aborted.
    pub abort: bool,
}

impl ClientError {
    /// Creates an error from a code.
    pub fn new(code: Code) -> ClientError {
        // SAFETY: the call accepts any number and returns a static string.
        let name = text(unsafe { c::rd_kafka_err2str(code) });
        ClientError {
            code,
            text: name,
            fatal: false,
            retriable: false,
            abort: false,
        }
    }

    /// Converts a code to a result.
    pub fn check(code: Code) -> Result<(), ClientError> {
        if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(())
        } else {
            Err(ClientError::new(code))
        }
    }

    /// Replaces the text unless the new one is empty.
    fn with_text(mut self, better: String) -> ClientError {
        if !better.is_empty() {
            self.text = better;
        }
        self
    }

    /// Reads an error object that librdkafka keeps; null is success.
    ///
    /// # Safety
    /// `error` is null or a valid error object.
    unsafe fn from_borrowed(error: *const c::rd_kafka_error_t) -> Result<(), ClientError> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: the caller guarantees a valid object; all five calls only read it.
        let error = unsafe {
            ClientError {
                code: c::rd_kafka_error_code(error),
                text: text(c::rd_kafka_error_string(error)),
                fatal: c::rd_kafka_error_is_fatal(error) != 0,
                retriable: c::rd_kafka_error_is_retriable(error) != 0,
                abort: c::rd_kafka_error_txn_requires_abort(error) != 0,
            }
        };
        if error.code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(())
        } else {
            Err(error)
        }
    }

    /// Reads an error object and frees it; null is success.
    ///
    /// # Safety
    /// `error` is null or a valid error object that the caller owns.
    unsafe fn from_owned(error: *mut c::rd_kafka_error_t) -> Result<(), ClientError> {
        // SAFETY: the caller guarantees a valid object, which is freed once, after its last use.
        unsafe {
            let result = ClientError::from_borrowed(error);
            if !error.is_null() {
                c::rd_kafka_error_destroy(error);
            }
            result
        }
    }
}

/// librdkafka rejected a setting.
#[derive(Debug)]
pub struct SettingError {
    /// Name of the setting; empty if the combination of settings is invalid.
    pub setting: String,
    /// Reason given by librdkafka.
    pub reason: String,
}

/// A version of librdkafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u8,
    minor: u8,
    revision: u8,
}

impl Version {
    /// Creates a version.
    pub const fn new(major: u8, minor: u8, revision: u8) -> Version {
        Version { major, minor, revision }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.revision)
    }
}

/// Returns the version of the linked librdkafka.
pub fn version() -> Version {
    // SAFETY: returns a constant whose bytes are major, minor, revision and pre-release id.
    let [major, minor, revision, _] = unsafe { c::rd_kafka_version() }.to_be_bytes();
    Version::new(major, minor, revision)
}

/// Purpose of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientKind {
    /// Produces, and sends admin requests.
    Producer,
    /// Consumes.
    Consumer,
}

/// A librdkafka client (`rd_kafka_t`) with its threads, connections and queues.
#[derive(Debug)]
pub struct Handle {
    rk: NonNull<c::rd_kafka_t>,
    connectivity: Arc<Connectivity>,
    bootstrap: CString,
}

// SAFETY: librdkafka documents `rd_kafka_t` as thread-safe, and `Connectivity` is `Sync`.
unsafe impl Send for Handle {}
// SAFETY: as for `Send`.
unsafe impl Sync for Handle {}

impl Handle {
    /// Starts a client. Delivery reports, errors and rebalances arrive as events.
    pub fn new(kind: ClientKind, settings: &BTreeMap<String, String>) -> Result<Arc<Handle>, SettingError> {
        let mut reason: [c_char; 512] = [0; 512];
        // SAFETY: returns a new configuration, owned by this function until `rd_kafka_new` takes it over or it is freed.
        let conf = unsafe { c::rd_kafka_conf_new() };
        for (name, value) in settings {
            let (c_name, c_value) = (owned(name), owned(value));
            // SAFETY: all pointers are valid for the call; `reason.len()` is the length of the buffer.
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
                // SAFETY: we still own the configuration and do not use it again.
                unsafe { c::rd_kafka_conf_destroy(conf) };
                return Err(SettingError {
                    setting: name.clone(),
                    reason: text(reason.as_ptr()),
                });
            }
        }
        let connectivity = Arc::new(Connectivity::default());
        let events = c::RD_KAFKA_EVENT_DR | c::RD_KAFKA_EVENT_ERROR | c::RD_KAFKA_EVENT_REBALANCE;
        let kind = match kind {
            ClientKind::Producer => c::rd_kafka_type_t::RD_KAFKA_PRODUCER,
            ClientKind::Consumer => c::rd_kafka_type_t::RD_KAFKA_CONSUMER,
        };
        // SAFETY: the configuration is valid; `rd_kafka_new` takes it over on success, and it is freed here on failure.
        // `connectivity` outlives the client: the handle below owns both, and its `drop` destroys the client first.
        let rk = unsafe {
            c::rd_kafka_conf_set_events(conf, events);
            connectivity::install(conf, &connectivity);
            let rk = c::rd_kafka_new(kind, conf, reason.as_mut_ptr(), reason.len());
            if rk.is_null() {
                c::rd_kafka_conf_destroy(conf);
            }
            rk
        };
        let bootstrap = owned(settings.get("bootstrap.servers").map_or("", String::as_str));
        match NonNull::new(rk) {
            Some(rk) => Ok(Arc::new(Handle {
                rk,
                connectivity,
                bootstrap,
            })),
            None => Err(SettingError {
                setting: String::new(),
                reason: text(reason.as_ptr()),
            }),
        }
    }

    fn raw(&self) -> *mut c::rd_kafka_t {
        self.rk.as_ptr()
    }

    /// Returns the tracker of broker connectivity.
    pub fn connectivity(&self) -> &Connectivity {
        &self.connectivity
    }

    /// Adds the bootstrap servers again if the client has lost all its brokers; see [`Connectivity::needs_reminder`]. Must be
    /// called from time to time while waiting for the client.
    pub fn remind(&self) {
        if !self.connectivity.needs_reminder(Instant::now()) {
            return;
        }
        tracing::debug!(target: "event_log::kafka", "no broker answers; adding the bootstrap servers again");
        // SAFETY: the client is alive; the string is copied.
        unsafe { c::rd_kafka_brokers_add(self.raw(), self.bootstrap.as_ptr()) };
    }

    /// Returns the fatal error that made this client unusable, if there is one.
    pub fn fatal(&self) -> Option<ClientError> {
        let mut reason: [c_char; 512] = [0; 512];
        // SAFETY: the client is alive; `reason.len()` is the length of the buffer.
        let code = unsafe { c::rd_kafka_fatal_error(self.raw(), reason.as_mut_ptr(), reason.len()) };
        let error = ClientError::check(code).err()?;
        Some(ClientError {
            fatal: true,
            ..error.with_text(text(reason.as_ptr()))
        })
    }

    /// Returns the cluster id, or `None` if no broker answered in time.
    pub fn cluster(&self, timeout: Duration) -> Option<String> {
        // SAFETY: the client is alive; the string is copied and then freed by librdkafka's function for that.
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
        // SAFETY: this is the last owner, so no queue, topic, message or event of the client is left. A consumer that
        // wanted to leave its group has called `Queue::leave` before.
        unsafe { c::rd_kafka_destroy_flags(self.raw(), c::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE) };
    }
}

/// Wakes a waiting thread when a queue that was empty receives an entry.
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

    /// Waits until it is woken or the timeout expires.
    pub fn wait(&self, timeout: Duration) {
        let guard = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(guard, timeout, |woken| !*woken);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

unsafe extern "C" fn wake(_: *mut c::rd_kafka_t, waker: *mut c_void) {
    // SAFETY: `Queue::wake_with` passed this pointer, and the queue keeps the waker until it removes the callback.
    unsafe { &*waker.cast::<Waker>() }.wake();
}

/// A queue of a client.
#[derive(Debug)]
pub struct Queue {
    raw: NonNull<c::rd_kafka_queue_t>,
    waker: Option<Arc<Waker>>,
    handle: Arc<Handle>,
}

// SAFETY: librdkafka's queues may be used from any thread, and `handle` keeps the client alive.
unsafe impl Send for Queue {}
// SAFETY: as for `Send`.
unsafe impl Sync for Queue {}

impl Queue {
    /// Takes ownership of a queue reference; `None` for null.
    ///
    /// # Safety
    /// `raw` is null or a queue reference of this client that the caller owns.
    unsafe fn own(raw: *mut c::rd_kafka_queue_t, handle: &Arc<Handle>) -> Option<Queue> {
        NonNull::new(raw).map(|raw| Queue {
            raw,
            waker: None,
            handle: handle.clone(),
        })
    }

    /// Creates a queue.
    pub fn new(handle: &Arc<Handle>) -> Queue {
        // SAFETY: the client is alive; we own the reference that is returned.
        unsafe { Queue::own(c::rd_kafka_queue_new(handle.raw()), handle) }.expect("a new queue is never null")
    }

    /// Returns the client's main queue: delivery reports and errors.
    pub fn main(handle: &Arc<Handle>) -> Queue {
        // SAFETY: the client is alive; we own the reference that is returned.
        unsafe { Queue::own(c::rd_kafka_queue_get_main(handle.raw()), handle) }.expect("every client has a main queue")
    }

    /// Returns the consumer queue, which receives rebalances and the entries of the main queue; `None` if the client has
    /// no group.
    pub fn member(handle: &Arc<Handle>) -> Option<Queue> {
        // SAFETY: the client is alive; we own the reference that is returned.
        unsafe {
            c::rd_kafka_poll_set_consumer(handle.raw());
            Queue::own(c::rd_kafka_queue_get_consumer(handle.raw()), handle)
        }
    }

    /// Wakes `waker` whenever this queue receives an entry while it is empty.
    pub fn wake_with(&mut self, waker: &Arc<Waker>) {
        let opaque = Arc::as_ptr(waker).cast_mut().cast();
        self.waker = Some(waker.clone());
        // SAFETY: `self` keeps the waker alive until `drop` removes the callback.
        unsafe { c::rd_kafka_queue_cb_event_enable(self.raw.as_ptr(), Some(wake), opaque) };
    }

    /// Takes the next event; waits up to `timeout`.
    pub fn poll(&self, timeout: Duration) -> Option<Event<'_>> {
        // SAFETY: the queue is valid; the returned value owns the event.
        let event = unsafe { c::rd_kafka_queue_poll(self.raw.as_ptr(), millis(timeout)) };
        NonNull::new(event).map(|raw| Event {
            raw,
            queue: PhantomData,
        })
    }

    /// Makes a waiting `poll` return.
    pub fn interrupt(&self) {
        // SAFETY: the queue is valid.
        unsafe { c::rd_kafka_queue_yield(self.raw.as_ptr()) };
    }

    /// Returns the client.
    pub fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the callback is removed before its waker is dropped and before the reference is released.
        unsafe {
            if self.waker.is_some() {
                c::rd_kafka_queue_cb_event_enable(self.raw.as_ptr(), None, ptr::null_mut());
            }
            c::rd_kafka_queue_destroy(self.raw.as_ptr());
        }
    }
}

/// Kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Delivery reports.
    Reports,
    /// A rebalance.
    Rebalance,
    /// An error of the client.
    Error,
    /// Any other event, such as the result of an admin request.
    Other,
}

/// An event. The lifetime ensures that it is freed before its queue.
#[derive(Debug)]
pub struct Event<'q> {
    raw: NonNull<c::rd_kafka_event_t>,
    queue: PhantomData<&'q Queue>,
}

impl Event<'_> {
    /// Returns the kind of the event.
    pub fn kind(&self) -> EventKind {
        // SAFETY: `self` owns the event.
        match unsafe { c::rd_kafka_event_type(self.raw.as_ptr()) } {
            c::RD_KAFKA_EVENT_DR => EventKind::Reports,
            c::RD_KAFKA_EVENT_REBALANCE => EventKind::Rebalance,
            c::RD_KAFKA_EVENT_ERROR => EventKind::Error,
            _ => EventKind::Other,
        }
    }

    /// Returns the error of the event. For a rebalance, the code states whether partitions are assigned or revoked.
    pub fn error(&self) -> Result<(), ClientError> {
        // SAFETY: `self` owns the event, and the text is copied. `rd_kafka_event_error_is_fatal` is only valid for error
        // events: for others it reads past the event's data.
        let (code, reason, fatal) = unsafe {
            let raw = self.raw.as_ptr();
            let fatal = self.kind() == EventKind::Error && c::rd_kafka_event_error_is_fatal(raw) != 0;
            (
                c::rd_kafka_event_error(raw),
                text(c::rd_kafka_event_error_string(raw)),
                fatal,
            )
        };
        ClientError::check(code).map_err(|error| ClientError {
            fatal,
            ..error.with_text(reason)
        })
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        // SAFETY: `self` owns the event, and nothing that borrows from it is left.
        unsafe { c::rd_kafka_event_destroy(self.raw.as_ptr()) };
    }
}
