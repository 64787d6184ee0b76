//! Failpoints: named places in the log's code where a test can stop, delay or kill the process.
//!
//! Without a hook a failpoint costs one atomic load. The first hook stays installed for the lifetime of the process, so
//! one test cannot replace the hook of another.

use std::sync::OnceLock;

/// Called at every failpoint with its name.
pub type Hook = fn(&'static str);

static HOOK: OnceLock<Hook> = OnceLock::new();

/// Installs the hook of this process. Returns false if a hook is already installed.
pub fn install(hook: Hook) -> bool {
    HOOK.set(hook).is_ok()
}

/// Marks a failpoint: runs the hook, if one is installed.
pub fn hit(name: &'static str) {
    if let Some(hook) = HOOK.get() {
        hook(name);
    }
}
