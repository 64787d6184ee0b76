//! The limit of open files (RLIMIT_NOFILE) of the process.
//!
//! Many systems start processes with a soft limit of 1,024 and a much higher hard limit. A few hundred connections and
//! the files of the stores exhaust the soft limit.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit is not raised above this value. Containers may have a hard limit of 2³⁰, for which the kernel would
/// need gigabytes of memory if all descriptors were used.
const LIMIT_MAX: u64 = 1 << 20;

/// Raises the soft limit towards the hard limit. Returns the resulting soft limit.
pub fn raise() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(LIMIT_MAX).min(LIMIT_MAX);
    if current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, ?current, wanted, "cannot raise the limit of open files");
        }
    }
    limit()
}

/// The current soft limit.
pub fn limit() -> usize {
    let current = getrlimit(Resource::Nofile).current.unwrap_or(LIMIT_MAX);
    usize::try_from(current).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limit_is_raised_to_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(LIMIT_MAX).min(LIMIT_MAX);
        assert!(raise() >= usize::try_from(hard).unwrap());
    }
}
