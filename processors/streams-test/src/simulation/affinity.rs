//! Pins the threads of a seed to one core.
//!
//! Only one thread of a seed runs at a time, and control passes between them several thousand times per second. On one
//! core this is a context switch. Between cores, the other core must be woken each time, and a seed takes six times as
//! long. If pinning is not possible, the simulation is only slower.

/// Pins this thread, and the threads that it spawns, to one of its allowed cores.
#[cfg(target_os = "linux")]
pub fn pin_thread(worker: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let Some(core) = worker.checked_rem(cores.len()).and_then(|at| cores.get(at)) else {
        return;
    };
    let mut one = CpuSet::new();
    one.set(*core);
    if let Err(error) = sched_setaffinity(None, &one) {
        tracing::debug!(%error, core, "pinning simulation threads to a core failed");
    }
}

/// Pinning is implemented for Linux only.
#[cfg(not(target_os = "linux"))]
pub fn pin_thread(_: usize) {}
