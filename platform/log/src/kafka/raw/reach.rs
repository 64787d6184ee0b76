//! Whether an instance's brokers answer, gathered from the library's own threads.
//!
//! Guarantees: a broker counts as answering from the end of its handshake to its disconnection; the library's log goes
//! to `tracing` with the library's own level. Never: a call back into the library.

use super::{Code, c, text};
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The brokers of one instance.
#[derive(Debug, Default)]
pub struct Reach {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether each broker that was ever heard of answers now.
    brokers: BTreeMap<String, bool>,
    /// Since when none answers, and what was last said about it.
    silence: Option<(Instant, String)>,
    /// When there was none that answered for the last time.
    silent_at: Option<Instant>,
}

impl Reach {
    /// What is wrong when no broker has answered for at least this long.
    pub fn silence(&self, at_least: Duration) -> Option<String> {
        let state = self.lock();
        let (since, said) = state.silence.as_ref()?;
        (since.elapsed() >= at_least).then(|| said.clone())
    }

    /// Whether there was a moment in this time in which no broker answered.
    pub fn silent_within(&self, time: Duration) -> bool {
        let at = self.lock().silent_at;
        at.is_some_and(|at| at.elapsed() <= time)
    }

    /// Adds what was last said of the brokers to the library's bare words, such as `Local: Timed out`.
    pub fn explain(&self, words: &str) -> String {
        match self.silence(Duration::ZERO) {
            Some(said) if !said.is_empty() && !words.contains(&said) => format!("{words}; {said}"),
            _ => words.to_owned(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, broker: String, up: bool) {
        let mut state = self.lock();
        state.brokers.insert(broker, up);
        if state.brokers.values().any(|up| *up) {
            state.silence = None;
        }
    }

    fn failed(&self, said: String) {
        let mut state = self.lock();
        if state.brokers.values().any(|up| *up) {
            return;
        }
        state.silent_at = Some(Instant::now());
        let since = state.silence.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        state.silence = Some((since, said));
    }
}

/// Makes an instance report to `reach`.
///
/// # Safety
/// `conf` is valid, and `reach` outlives every instance made from it.
pub unsafe fn install(conf: *mut c::rd_kafka_conf_t, reach: &Arc<Reach>) {
    let opaque: *mut c_void = Arc::as_ptr(reach).cast_mut().cast();
    // SAFETY: the name is static, the callbacks are static functions, and the opaque lives by the caller's promise.
    unsafe {
        c::rd_kafka_conf_set_opaque(conf, opaque);
        c::rd_kafka_conf_set_log_cb(conf, Some(on_log));
        c::rd_kafka_conf_interceptor_add_on_new(conf, c"reach".as_ptr(), Some(on_new), opaque);
    }
}

unsafe extern "C" fn on_new(
    rk: *mut c::rd_kafka_t,
    _: *const c::rd_kafka_conf_t,
    opaque: *mut c_void,
    _: *mut c_char,
    _: usize,
) -> Code {
    // SAFETY: the library calls this while it makes the instance, with the opaque that `install` gave it.
    unsafe { c::rd_kafka_interceptor_add_on_broker_state_change(rk, c"reach".as_ptr(), Some(on_state), opaque) }
}

unsafe extern "C" fn on_state(
    _: *mut c::rd_kafka_t,
    _: i32,
    _: *const c_char,
    name: *const c_char,
    port: c_int,
    state: *const c_char,
    opaque: *mut c_void,
) -> Code {
    // SAFETY: the opaque is the `Reach` that `install` was given, which outlives the instance.
    let reach = unsafe { &*opaque.cast::<Reach>() };
    reach.changed(format!("{}:{port}", text(name)), text(state) == "UP");
    Code::RD_KAFKA_RESP_ERR_NO_ERROR
}

unsafe extern "C" fn on_log(rk: *const c::rd_kafka_t, level: c_int, facility: *const c_char, words: *const c_char) {
    let (facility, words) = (text(facility), text(words));
    // A broker that is not there is said once by whoever needs it, not by every thread that tries to connect.
    let connection = facility == "FAIL" || facility == "ERROR";
    match level {
        0..=3 if !connection => tracing::error!(target: "log::kafka", facility, "{words}"),
        0..=4 => tracing::warn!(target: "log::kafka", facility, "{words}"),
        _ => tracing::debug!(target: "log::kafka", facility, "{words}"),
    }
    if connection && !rk.is_null() {
        // SAFETY: the instance lives while it logs; the opaque is the `Reach` that `install` was given, or null while
        // the instance is being made.
        let reach = unsafe { c::rd_kafka_opaque(rk) }.cast::<Reach>();
        // SAFETY: as above.
        if let Some(reach) = unsafe { ptr::NonNull::new(reach).map(|r| r.as_ref()) } {
            reach.failed(
                words
                    .split_once("]: ")
                    .map_or(words.clone(), |(_, rest)| rest.to_owned()),
            );
        }
    }
}
