//! Tracks whether the brokers of a client answer, from librdkafka's broker state and log callbacks.
//!
//! A broker answers from the end of its handshake until it disconnects. The callbacks run on librdkafka's own threads
//! and must not call back into the client. librdkafka's log lines are passed to `tracing` with their level.

use super::ffi::{Code, c, text};
use crate::Error;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time without an answering broker after which calls fail.
const SILENCE: Duration = Duration::from_secs(3);
/// Time without an answering broker after which the bootstrap servers are added again. Doubles up to the maximum.
const REMIND_FIRST: Duration = Duration::from_secs(2);
const REMIND_MAX: Duration = Duration::from_secs(60);

/// Connectivity of one client.
#[derive(Debug, Default)]
pub struct Connectivity {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Brokers seen so far, and whether each of them answers.
    brokers: BTreeMap<Broker, bool>,
    /// Since when no broker answers, and the last error; set by the first failure.
    silence: Option<(Instant, String)>,
    /// When a connection was last lost or refused. An answer may have been lost with it.
    broken_at: Option<Instant>,
    /// Start of the current wait before the bootstrap servers are added again; set when the first broker state is
    /// reported.
    quiet_since: Option<Instant>,
    /// How often the bootstrap servers have been added again since a broker last answered.
    reminders: u32,
}

/// A broker is identified by its id. Bootstrap servers have none and may be the same machines.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Broker {
    Learned(i32),
    Bootstrap(String),
}

impl State {
    fn answers(&self) -> bool {
        self.brokers.values().any(|up| *up)
    }
}

impl Connectivity {
    /// Fails if no broker has answered for 3 s.
    pub fn check(&self, attempted: &str) -> crate::Result<()> {
        self.silence(SILENCE).map_or(Ok(()), |reason| {
            let attempted = attempted.to_owned();
            Err(Error::Unavailable { attempted, reason })
        })
    }

    /// Returns the last error if no broker has answered for at least this long.
    pub fn silence(&self, at_least: Duration) -> Option<String> {
        let state = self.lock();
        let (since, reason) = state.silence.as_ref()?;
        (since.elapsed() >= at_least).then(|| reason.clone())
    }

    /// Returns whether a connection was lost or refused within this time, so that an answer may have been lost.
    pub fn broken_within(&self, time: Duration) -> bool {
        let at = self.lock().broken_at;
        at.is_some_and(|at| at.elapsed() <= time)
    }

    /// Appends the last connection error to a librdkafka text that does not contain the cause, such as `Local: Timed
    /// out`.
    pub fn explain(&self, words: &str) -> String {
        match self.silence(Duration::ZERO) {
            Some(reason) if !reason.is_empty() && !words.contains(&reason) => format!("{words}; {reason}"),
            _ => words.to_owned(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the bootstrap servers must be added to the client again, because no broker has answered for 2 s.
    /// They are added again after further intervals, which double up to 60 s.
    ///
    /// A client can lose all its brokers. A broker that has just started and knows no other broker answers a metadata
    /// request with an empty broker list; librdkafka then removes every broker and has none left to query (librdkafka
    /// issue 5301, open in 2.16). The brokers may also have come back under other addresses.
    pub fn needs_reminder(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let patience = REMIND_MAX.min(REMIND_FIRST * (1 << state.reminders.min(5)));
        let over = |at: Instant| now.saturating_duration_since(at) >= patience;
        if state.answers() || !state.quiet_since.is_some_and(over) {
            return false;
        }
        state.reminders += 1;
        state.quiet_since = Some(now);
        true
    }

    fn changed(&self, broker: Broker, up: bool, now: Instant) {
        let mut state = self.lock();
        // librdkafka drops the bootstrap servers as soon as it knows the brokers of the cluster. That is not a lost
        // connection.
        let learned = matches!(broker, Broker::Learned(_));
        let lost = !up && learned && state.answers();
        if state.brokers.insert(broker, up) == Some(true) && !up && learned {
            state.broken_at = Some(now);
        }
        if state.answers() {
            (state.silence, state.quiet_since, state.reminders) = (None, None, 0);
            return;
        }
        state.quiet_since.get_or_insert(now);
        if lost {
            state.silence = Some((now, "no broker is connected".to_owned()));
        }
    }

    fn failed(&self, reason: String) {
        let mut state = self.lock();
        state.broken_at = Some(Instant::now());
        if state.answers() {
            return;
        }
        let since = state.silence.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        state.silence = Some((since, reason));
    }
}

/// Configures a client to report its broker states and log lines to `connectivity`.
///
/// # Safety
/// `conf` is valid, and `connectivity` outlives every client created from it.
pub unsafe fn install(conf: *mut c::rd_kafka_conf_t, connectivity: &Arc<Connectivity>) {
    let opaque: *mut c_void = Arc::as_ptr(connectivity).cast_mut().cast();
    // SAFETY: name and callbacks are static; the caller guarantees that the opaque pointer outlives the client.
    unsafe {
        c::rd_kafka_conf_set_opaque(conf, opaque);
        c::rd_kafka_conf_set_log_cb(conf, Some(on_log));
        c::rd_kafka_conf_interceptor_add_on_new(conf, c"connectivity".as_ptr(), Some(on_new), opaque);
    }
}

unsafe extern "C" fn on_new(
    rk: *mut c::rd_kafka_t,
    _: *const c::rd_kafka_conf_t,
    opaque: *mut c_void,
    _: *mut c_char,
    _: usize,
) -> Code {
    // SAFETY: librdkafka calls this while it creates the client, with the opaque pointer that `install` passed.
    unsafe { c::rd_kafka_interceptor_add_on_broker_state_change(rk, c"connectivity".as_ptr(), Some(on_state), opaque) }
}

unsafe extern "C" fn on_state(
    _: *mut c::rd_kafka_t,
    id: i32,
    _: *const c_char,
    name: *const c_char,
    port: c_int,
    state: *const c_char,
    opaque: *mut c_void,
) -> Code {
    // SAFETY: the opaque pointer is the `Connectivity` that `install` received, which outlives the client.
    let connectivity = unsafe { &*opaque.cast::<Connectivity>() };
    // Coordinator connections have port 0. They exist in addition to the connection to the same broker and are used for
    // group requests only, so their state says nothing about other requests.
    if port != 0 {
        let bootstrap = || Broker::Bootstrap(format!("{}:{port}", text(name)));
        let broker = if id < 0 { bootstrap() } else { Broker::Learned(id) };
        connectivity.changed(broker, text(state) == "UP", Instant::now());
    }
    Code::RD_KAFKA_RESP_ERR_NO_ERROR
}

unsafe extern "C" fn on_log(rk: *const c::rd_kafka_t, level: c_int, facility: *const c_char, words: *const c_char) {
    let (facility, words) = (text(facility), text(words));
    // Connection failures are reported by the call that needs the broker, not by every connection attempt.
    let connection = facility == "FAIL" || facility == "ERROR";
    match level {
        0..=3 if !connection => {
            tracing::error!(target: "event_log::kafka", facility, text = words, "librdkafka log line")
        }
        0..=4 => tracing::warn!(target: "event_log::kafka", facility, text = words, "librdkafka log line"),
        _ => tracing::debug!(target: "event_log::kafka", facility, text = words, "librdkafka log line"),
    }
    if connection && !rk.is_null() {
        // SAFETY: the client is alive while it logs; its opaque pointer is the `Connectivity` that `install` received, or null
        // while the client is being created.
        let connectivity = unsafe { c::rd_kafka_opaque(rk) }.cast::<Connectivity>();
        // SAFETY: as above.
        if let Some(connectivity) = unsafe { ptr::NonNull::new(connectivity).map(|r| r.as_ref()) } {
            connectivity.failed(
                words
                    .split_once("]: ")
                    .map_or(words.clone(), |(_, rest)| rest.to_owned()),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_connection_is_recorded_while_others_answer() {
        let connectivity = Connectivity::default();
        let broken = || connectivity.broken_within(Duration::from_secs(9));
        connectivity.changed(Broker::Learned(1), true, Instant::now());
        connectivity.changed(Broker::Learned(2), false, Instant::now());
        assert!(!broken(), "broker 2 never answered");
        connectivity.changed(Broker::Learned(2), true, Instant::now());
        connectivity.changed(Broker::Learned(2), false, Instant::now());
        assert!(broken() && connectivity.silence(Duration::ZERO).is_none());
        let coordinator = Connectivity::default();
        coordinator.changed(Broker::Learned(1), true, Instant::now());
        coordinator.failed("GroupCoordinator: Connection refused".to_owned());
        assert!(coordinator.broken_within(Duration::from_secs(9)));
    }

    #[test]
    fn reminders_back_off_while_no_broker_answers() {
        let (connectivity, start) = (Connectivity::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let bootstrap = || Broker::Bootstrap("a:1".to_owned());
        assert!(!connectivity.needs_reminder(at(100)), "no state reported yet");
        connectivity.changed(bootstrap(), true, at(0));
        connectivity.changed(Broker::Learned(1), false, at(1));
        connectivity.changed(bootstrap(), false, at(1));
        assert!(connectivity.silence(Duration::ZERO).is_none() && !connectivity.broken_within(Duration::from_secs(9)));
        connectivity.changed(Broker::Learned(1), true, at(2));
        assert!(!connectivity.needs_reminder(at(100)), "a broker answers");
        connectivity.changed(Broker::Learned(1), false, at(100));
        assert!(connectivity.silence(Duration::ZERO).is_some() && connectivity.broken_within(Duration::from_secs(9)));
        let reminded: Vec<u64> = (100..300).filter(|now| connectivity.needs_reminder(at(*now))).collect();
        assert_eq!(reminded, [102, 106, 114, 130, 162, 222, 282]);
        connectivity.changed(Broker::Learned(1), true, at(302));
        connectivity.changed(Broker::Learned(1), false, at(303));
        assert!(
            connectivity.needs_reminder(at(305)),
            "a new outage starts with the shortest wait"
        );
    }
}
