//! Errors of commands that print no message.

/// The command has already reported its failure, so the process only exits with code 1.
#[derive(Debug, thiserror::Error)]
#[error("failed")]
pub struct Failed;

/// The reader of stdout has closed the pipe. The command ends with code 0.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
pub struct StdoutClosed;
