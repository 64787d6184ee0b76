//! Whether an instance's brokers answer, gathered from the library's own threads.
//!
//! Guarantees: a broker counts as answering from the end of its handshake to its disconnection; the library's log goes
//! to `tracing` with the library's own level. Never: a call back into the library from one of its own threads.

use super::{Code, c, text};
use crate::Error;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long no broker answers before a caller is told.
const SILENCE: Duration = Duration::from_secs(3);
/// How long an instance has no broker that answers before it is reminded of its bootstrap servers, at first and at most.
const REMIND_FIRST: Duration = Duration::from_secs(2);
const REMIND_MAX: Duration = Duration::from_secs(60);

/// The brokers of one instance.
#[derive(Debug, Default)]
pub struct Reach {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether each broker that was ever heard of answers now.
    brokers: BTreeMap<Broker, bool>,
    /// Since when none answers, and what was last said about it; from the first trouble on.
    silence: Option<(Instant, String)>,
    /// When a connection was last lost or refused: an answer may have been lost with it.
    broken_at: Option<Instant>,
    /// Since when none answers or the instance was last reminded, from the first sign of life on.
    quiet_since: Option<Instant>,
    /// How often the instance was reminded since a broker last answered.
    reminders: u32,
}

/// A broker's name: of one that the cluster named, its id; a bootstrap server has none, and may be the same machine.
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

impl Reach {
    /// Fails when no broker has answered for 3 s.
    pub fn check(&self, attempted: &str) -> crate::Result<()> {
        self.silence(SILENCE).map_or(Ok(()), |reason| {
            let attempted = attempted.to_owned();
            Err(Error::Unavailable { attempted, reason })
        })
    }

    /// What is wrong when no broker has answered for at least this long.
    pub fn silence(&self, at_least: Duration) -> Option<String> {
        let state = self.lock();
        let (since, said) = state.silence.as_ref()?;
        (since.elapsed() >= at_least).then(|| said.clone())
    }

    /// Whether a connection was lost or refused in this time, so that an answer may not have been heard.
    pub fn broken_within(&self, time: Duration) -> bool {
        let at = self.lock().broken_at;
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

    /// Whether no broker has answered for so long that the instance needs to be told of its bootstrap servers again:
    /// after 2 s, and then ever more seldom.
    ///
    /// An instance may have forgotten them. A broker that has just started, and knows of no other, answers with an
    /// empty list of brokers: the library then drops all that it has, and has none left to ask again (librdkafka issue
    /// 5301, open in 2.16). Or the brokers have come back under other addresses.
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
        // A bootstrap server is let go as soon as the cluster has named its brokers: that is no loss.
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

    fn failed(&self, said: String) {
        let mut state = self.lock();
        state.broken_at = Some(Instant::now());
        if state.answers() {
            return;
        }
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
    id: i32,
    _: *const c_char,
    name: *const c_char,
    port: c_int,
    state: *const c_char,
    opaque: *mut c_void,
) -> Code {
    // SAFETY: the opaque is the `Reach` that `install` was given, which outlives the instance.
    let reach = unsafe { &*opaque.cast::<Reach>() };
    // A coordinator's connection is beside its broker's, has no port of its own, and answers nobody else's questions.
    if port != 0 {
        let bootstrap = || Broker::Bootstrap(format!("{}:{port}", text(name)));
        let broker = if id < 0 { bootstrap() } else { Broker::Learned(id) };
        reach.changed(broker, text(state) == "UP", Instant::now());
    }
    Code::RD_KAFKA_RESP_ERR_NO_ERROR
}

unsafe extern "C" fn on_log(rk: *const c::rd_kafka_t, level: c_int, facility: *const c_char, words: *const c_char) {
    let (facility, words) = (text(facility), text(words));
    // A broker that is not there is said once by whoever needs it, not by every thread that tries to connect.
    let connection = facility == "FAIL" || facility == "ERROR";
    match level {
        0..=3 if !connection => tracing::error!(target: "event_log::kafka", facility, "{words}"),
        0..=4 => tracing::warn!(target: "event_log::kafka", facility, "{words}"),
        _ => tracing::debug!(target: "event_log::kafka", facility, "{words}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_connection_is_known_also_while_other_brokers_answer() {
        let reach = Reach::default();
        let broken = || reach.broken_within(Duration::from_secs(9));
        reach.changed(Broker::Learned(1), true, Instant::now());
        reach.changed(Broker::Learned(2), false, Instant::now());
        assert!(!broken(), "the second was never there");
        reach.changed(Broker::Learned(2), true, Instant::now());
        reach.changed(Broker::Learned(2), false, Instant::now());
        assert!(broken() && reach.silence(Duration::ZERO).is_none());
        let coordinator = Reach::default();
        coordinator.changed(Broker::Learned(1), true, Instant::now());
        coordinator.failed("GroupCoordinator: Connection refused".to_owned());
        assert!(coordinator.broken_within(Duration::from_secs(9)));
    }

    #[test]
    fn an_instance_without_brokers_is_reminded_ever_more_seldom() {
        let (reach, start) = (Reach::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let bootstrap = || Broker::Bootstrap("a:1".to_owned());
        assert!(!reach.needs_reminder(at(100)), "it has not begun");
        reach.changed(bootstrap(), true, at(0));
        reach.changed(Broker::Learned(1), false, at(1));
        reach.changed(bootstrap(), false, at(1));
        assert!(reach.silence(Duration::ZERO).is_none() && !reach.broken_within(Duration::from_secs(9)));
        reach.changed(Broker::Learned(1), true, at(2));
        assert!(!reach.needs_reminder(at(100)), "a broker answers");
        reach.changed(Broker::Learned(1), false, at(100));
        assert!(reach.silence(Duration::ZERO).is_some() && reach.broken_within(Duration::from_secs(9)));
        let reminded: Vec<u64> = (100..300).filter(|now| reach.needs_reminder(at(*now))).collect();
        assert_eq!(reminded, [102, 106, 114, 130, 162, 222, 282]);
        reach.changed(Broker::Learned(1), true, at(302));
        reach.changed(Broker::Learned(1), false, at(303));
        assert!(reach.needs_reminder(at(305)), "an outage later it begins anew");
    }
}
