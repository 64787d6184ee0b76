//! Subcommands of `trunkline connect`.

use clap::{Args, Subcommand};

/// Subcommands of `trunkline connect`.
#[derive(Debug, Subcommand)]
pub enum ConnectCommand {
    /// List the connectors of all processes.
    List,
    /// Show connectors and their tables, with cause and fix. Exits with 1 if a connector does not work or a table needs a
    /// snapshot; a paused connector is not a failure.
    Status(ConnectStatus),
    /// Close the source of a connector until it is resumed. A PostgreSQL slot remains and retains WAL.
    Pause(ConnectChange),
    /// Continue a paused connector at its stored position.
    Resume(ConnectChange),
    /// Close a source and open it again at its stored position, without waiting for the next attempt.
    Restart(ConnectChange),
    /// Read a source again from the start, under a new source epoch. Rows that no longer exist are removed from the views.
    Resync(ConnectResync),
    /// Take a new snapshot of some tables, while the other changes continue to be published.
    Snapshot(ConnectSnapshot),
}

/// `trunkline connect status`.
#[derive(Debug, Args)]
pub struct ConnectStatus {
    /// Names of connectors: those of `[[connector]]` in the topology. Default: all.
    pub connector: Vec<String>,
}

/// `trunkline connect pause`, `resume` and `restart`.
#[derive(Debug, Args)]
pub struct ConnectChange {
    /// Names of connectors.
    #[arg(required = true)]
    pub connector: Vec<String>,
    /// How long to wait.
    #[command(flatten)]
    pub wait: ConnectWait,
}

/// `trunkline connect resync`.
#[derive(Debug, Args)]
pub struct ConnectResync {
    /// Name of a connector.
    pub connector: String,
    /// Do not ask for confirmation.
    #[arg(long, short)]
    pub yes: bool,
    /// How long to wait.
    #[command(flatten)]
    pub wait: ConnectWait,
}

/// `trunkline connect snapshot`.
#[derive(Debug, Args)]
pub struct ConnectSnapshot {
    /// Name of a connector.
    pub connector: String,
    /// Names of tables, as declared in the topology. Default: those that need a snapshot.
    pub table: Vec<String>,
    /// How long to wait.
    #[command(flatten)]
    pub wait: ConnectWait,
}

/// Whether a command waits for its result.
#[derive(Debug, Clone, Args)]
pub struct ConnectWait {
    /// Wait until the new state is reached, and show the progress. Exits with 1 if it is not reached.
    #[arg(long, short)]
    pub wait: bool,
    /// Maximum time to wait, in seconds. Default: unlimited.
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    pub timeout: Option<u64>,
}
