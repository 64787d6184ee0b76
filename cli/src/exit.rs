//! Exit status of commands that have already reported their failure.

/// The command has already reported its failure, so the process only exits with code 1.
#[derive(Debug, thiserror::Error)]
#[error("failed")]
pub struct Failed;
