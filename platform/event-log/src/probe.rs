//! Named points of the log's own steps, where a test can make the process die, wait or look.
//!
//! Guarantees: without a hook a point costs one atomic load. Never: a hook that is replaced, so that no test can take
//! another's away.

use std::sync::OnceLock;

/// What runs at every point, with the point's name.
pub type Hook = fn(&'static str);

static HOOK: OnceLock<Hook> = OnceLock::new();

/// Installs the hook of this process; the first one stays. Says whether it was installed.
pub fn install(hook: Hook) -> bool {
    HOOK.set(hook).is_ok()
}

/// Runs the hook, if there is one.
pub fn hit(name: &'static str) {
    if let Some(hook) = HOOK.get() {
        hook(name);
    }
}
