//! Keeping a seed's threads on one core.
//!
//! Of a seed's threads only one runs at a time, and they hand over some thousand times a second. On one core that is a
//! switch; across cores each hand-over wakes the other core first, and a seed takes six times as long.
//! Guarantees: a machine that does not let threads be placed runs the simulation all the same. Never: a seed's outcome.

/// Keeps this thread, and those that it starts, to one of the cores that it may run on.
#[cfg(target_os = "linux")]
pub fn keep_to(worker: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let Some(core) = worker.checked_rem(cores.len()).and_then(|at| cores.get(at)) else {
        return;
    };
    let mut one = CpuSet::new();
    one.set(*core);
    if let Err(error) = sched_setaffinity(None, &one) {
        tracing::debug!(%error, core, "a simulation's threads are not kept to one core");
    }
}

/// Threads are left where the system puts them.
#[cfg(not(target_os = "linux"))]
pub fn keep_to(_: usize) {}
