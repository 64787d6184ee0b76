//! Exit status of commands that have already reported their failure.

/// The command has reported its failure; only the exit code 1 is left to set.
#[derive(Debug, thiserror::Error)]
#[error("failed")]
pub struct Failed;
