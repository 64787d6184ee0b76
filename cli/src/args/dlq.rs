//! Options of `trunkline dlq`.

use super::Target;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `trunkline dlq`.
#[derive(Debug, Args)]
#[command(
    after_help = "First fix the cause of a dead letter, then redrive it. A record is redriven once; --again repeats it.\n\nExamples:\n  trunkline dlq list --topology topology.toml\n  trunkline dlq show shop.change.shop.dlq --stage VALUE_CONVERTER\n  trunkline dlq redrive shop.change.shop.dlq --key '[\"orders\",\"17\"]' --dry-run"
)]
pub struct Dlq {
    /// Log to use.
    #[command(flatten)]
    pub target: Target,
    /// Subcommand.
    #[command(subcommand)]
    pub command: DlqCommand,
}

/// Subcommands of `trunkline dlq`.
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// List dead-letter topics: numbers, causes, and the tables and views that are stale because of them.
    List {
        /// Topology file. Only its dead-letter topics are listed, with the stale views.
        #[arg(long, value_name = "FILE")]
        topology: Option<PathBuf>,
    },
    /// Show the newest dead letters, decoded, newest last.
    Show {
        /// Which dead letters.
        #[command(flatten)]
        filter: DlqFilter,
        /// Maximum number of dead letters.
        #[arg(long, short = 'n', default_value_t = 20)]
        limit: usize,
    },
    /// Write the records of dead letters to their original topic again.
    Redrive {
        /// Which dead letters.
        #[command(flatten)]
        filter: DlqFilter,
        /// Maximum number of dead letters. Default: all.
        #[arg(long, short = 'n', value_name = "N")]
        limit: Option<u64>,
        /// Also redrive dead letters that were redriven before.
        #[arg(long)]
        again: bool,
        /// Count the dead letters without writing.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask for confirmation.
        #[arg(long, short = 'y')]
        yes: bool,
    },
}

/// Dead letters of a topic.
#[derive(Debug, Args)]
pub struct DlqFilter {
    /// Dead-letter topic.
    pub topic: String,
    /// Only this partition.
    #[arg(long)]
    pub partition: Option<i32>,
    /// Only the dead letter at this offset of the dead-letter topic.
    #[arg(long, requires = "partition")]
    pub offset: Option<i64>,
    /// Only this stage, such as VALUE_CONVERTER.
    #[arg(long)]
    pub stage: Option<String>,
    /// Only dead letters whose error type or message contains this text.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Only records with this key, written as JSON: '["orders","17"]'.
    #[arg(long)]
    pub key: Option<String>,
    /// Only dead letters since this time: RFC 3339, or a duration before now such as 2h.
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
}
