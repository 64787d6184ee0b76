//! Definition of the command line, from which clap generates parser and help.
//!
//! The doc comments are the help texts. `docs/reference/cli.md` lists the same options; a test compares both.

mod connect;
mod dlq;
mod profile;
mod target;

pub use connect::{ConnectChange, ConnectCommand, ConnectResync, ConnectSnapshot, ConnectWait};
pub use dlq::{Dlq, DlqCommand, DlqFilter};
pub use profile::ProfileCommand;
pub use target::{DEFAULT_DATA, Target};

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// An event-driven integration backbone for mobile: rows and events in, per-device sync views out.
#[derive(Debug, Parser)]
#[command(
    name = "trunkline",
    version,
    propagate_version = true,
    after_help = "Getting started:\n  trunkline dev                                 run everything locally, with a sample shop\n  trunkline topics tail shop.view.log --follow  watch the records that devices will receive\n  trunkline token --sub 2                       create a token for another customer\n\nYour own database:\n  trunkline init --postgres URL                 generate a topology.toml from its tables\n  trunkline topology check                      validate the topology without a network\n  trunkline dev --topology topology.toml --postgres URL\n\nExit codes: 0 success, 1 failure or errors found by a check, 2 invalid command line."
)]
pub struct Cli {
    /// Format of results on stdout. Progress and log lines go to stderr.
    #[arg(
        long,
        global = true,
        help_heading = "Output options",
        value_enum,
        default_value = "table"
    )]
    pub output: Output,
    /// Log level (error, warn, info, debug) or filter, such as `trunkline_edge=debug`.
    #[arg(long, global = true, help_heading = "Output options", env = "TRUNKLINE_LOG")]
    pub log: Option<String>,
    /// Format of log lines. `json` writes one object per line.
    #[arg(
        long,
        global = true,
        help_heading = "Output options",
        value_enum,
        default_value = "text"
    )]
    pub log_format: LogFormat,
    /// Subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// Format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns, as wide as the terminal.
    Table,
    /// As `table`, with more columns and without line breaks in them.
    Wide,
    /// JSON, and nothing else on stdout.
    Json,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human-readable text.
    Text,
    /// One JSON object per line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run all roles in one process, with an embedded log, an embedded registry and a sample shop.
    Dev(Dev),
    /// Run one node of the topology. Brokers, addresses and secrets come from a configuration file.
    Run(Run),
    /// Generate a commented topology.toml from the tables of a PostgreSQL database.
    Init(Init),
    /// Validate or draw a topology.
    Topology(Topology),
    /// List topics and show their records.
    Topics(Topics),
    /// Show the lag of consumer groups.
    Lag(Lag),
    /// Copy a range of a topic to another topic.
    Replay(Replay),
    /// List dead letters, show them, and process their records again.
    Dlq(Dlq),
    /// Compare the state and the committed offsets of a task, and resolve differences.
    Offsets(Offsets),
    /// Show the tasks of processors and their committed state.
    State(State),
    /// Show and control connectors: pause, resume, restart, resync, and snapshots of tables.
    Connect(Connect),
    /// List, show and choose profiles: connections to clusters, with credentials.
    Profile(Profile),
    /// Create a token for development.
    Token(Token),
    /// Check the log, the database and the topology, and name a fix for each problem.
    Doctor(Doctor),
    /// Print the completion script of a shell.
    Completions {
        /// Shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of all commands to a directory.
    Man {
        /// Directory; it is created if it does not exist.
        dir: PathBuf,
    },
}

/// `trunkline dev`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  trunkline dev\n  trunkline dev --fresh --orders-per-s 10\n  trunkline dev --topology topology.toml --postgres postgres://user:password@127.0.0.1/shop\n\nListeners bind to 127.0.0.1 only. The data directory keeps the log, the stores and the keys; a later start continues there."
)]
pub struct Dev {
    /// Topology file to run instead of the sample shop.
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// Data directory of the log and the stores. A later start continues with its contents.
    #[arg(long, value_name = "DIR", default_value = ".trunkline")]
    pub data: PathBuf,
    /// Start with an empty data directory; the previous one is renamed to DIR.aside-N.
    #[arg(long)]
    pub fresh: bool,
    /// Bootstrap servers of a Kafka cluster to use instead of the embedded log.
    #[arg(long, value_name = "ADDR")]
    pub kafka: Option<String>,
    /// Durability of acknowledged writes to the embedded log if the host crashes.
    #[arg(long, value_enum, default_value = "os")]
    pub durability: Durability,
    /// Interval between syncs with `--durability interval`, in ms.
    #[arg(long, default_value_t = 1000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub sync_interval_ms: u64,
    /// URL of a schema registry (Confluent API) to use instead of the embedded one.
    #[arg(long, value_name = "URL")]
    pub registry: Option<String>,
    /// Read rows from this database. The topology needs a connector of kind `postgres`, or exactly one connector, which
    /// then reads this database.
    #[arg(long, value_name = "URL")]
    pub postgres: Option<String>,
    /// Use the sections [connectors.NAME] of this configuration of a node, for settings other than the URL.
    #[arg(long, value_name = "FILE", conflicts_with = "postgres")]
    pub config: Option<PathBuf>,
    /// Orders per second that the generator of the sample shop creates; 0 disables it.
    #[arg(long, default_value_t = 2.0, value_name = "N", value_parser = rate)]
    pub orders_per_s: f64,
    /// Storage engine of the state stores.
    #[arg(long, value_enum, default_value = "fjall")]
    pub store: Engine,
    /// Port for devices (sync API); 0 selects a free port.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Port for backends (ingest API); 0 selects a free port.
    #[arg(long, default_value_t = 8081)]
    pub ingest_port: u16,
    /// Port for operators (readiness, metrics, admin API); 0 selects a free port.
    #[arg(long, default_value_t = 8082)]
    pub admin_port: u16,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "write a number, such as 2 or 0.5")?;
    let valid = (0.0..=1000.0).contains(&rate);
    valid
        .then_some(rate)
        .ok_or_else(|| String::from("write a number from 0 to 1000"))
}

/// Durability of the embedded log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// The operating system decides when to write to the disk.
    Os,
    /// Writes are synced at an interval.
    Interval,
    /// Each write is synced before it is acknowledged.
    Commit,
}

/// Storage engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// fjall, an LSM tree.
    Fjall,
    /// sled 0.34.
    Sled,
    /// In memory only; restored from the log at each start.
    Memory,
}

/// `trunkline run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  trunkline run edge-1\n  trunkline run views --topology topology.toml --config /etc/trunkline/trunkline.toml --log-format json\n\nThe node runs until SIGTERM or Ctrl-C. /readyz on the admin listener shows what it waits for."
)]
pub struct Run {
    /// Name of a `[[node]]` of the topology.
    pub node: String,
    /// Topology file.
    #[arg(long, default_value = "topology.toml", value_name = "FILE")]
    pub topology: PathBuf,
    /// Configuration file: brokers, addresses, secrets. Environment variables such as TRUNKLINE_KAFKA__BROKERS override
    /// its keys.
    #[arg(long, default_value = "trunkline.toml", value_name = "FILE")]
    pub config: PathBuf,
}

/// `trunkline init`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  trunkline init --postgres postgres://user:password@127.0.0.1/shop\n\nThe database is only read. The generated file marks open decisions with DECIDE."
)]
pub struct Init {
    /// Database URL: postgres://user:password@host:port/database.
    #[arg(long, value_name = "URL", env = "TRUNKLINE_POSTGRES")]
    pub postgres: String,
    /// Output file, `-` for stdout. An existing file is not overwritten.
    #[arg(long, default_value = "topology.toml", value_name = "FILE")]
    pub file: PathBuf,
}

/// `trunkline topology`.
#[derive(Debug, Args)]
pub struct Topology {
    /// Subcommand.
    #[command(subcommand)]
    pub command: TopologyCommand,
}

/// Subcommands of `trunkline topology`.
#[derive(Debug, Subcommand)]
pub enum TopologyCommand {
    /// Validate a topology without network access. Reports all errors with position and fix; exits with 1 on errors.
    Check {
        /// Topology file.
        #[arg(default_value = "topology.toml")]
        file: PathBuf,
        /// The topology that runs now: shows what the change does to each view. Exits with 1 if it needs a snapshot.
        #[arg(long, value_name = "OLD")]
        against: Option<PathBuf>,
    },
    /// Draw the data flow and list views, buckets, topics and nodes.
    Graph {
        /// Topology file.
        #[arg(default_value = "topology.toml")]
        file: PathBuf,
        /// Output format.
        #[arg(long, value_enum, default_value = "text")]
        format: GraphFormat,
    },
}

/// Format of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// Text for the terminal.
    Text,
    /// DOT for Graphviz.
    Dot,
}

/// `trunkline topics`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  trunkline topics list\n  trunkline topics tail shop.view.log --follow\n  trunkline topics tail shop.change.shop --key '[\"orders\",\"17\"]' --from-time 1h"
)]
pub struct Topics {
    /// Log to use.
    #[command(flatten)]
    pub target: Target,
    /// Subcommand.
    #[command(subcommand)]
    pub command: TopicsCommand,
}

/// Subcommands of `trunkline topics`.
#[derive(Debug, Subcommand)]
pub enum TopicsCommand {
    /// List topics with their partitions and offsets.
    List {
        /// Only topics whose names contain this text.
        filter: Option<String>,
    },
    /// Show the partitions, offsets and settings of a topic.
    Show {
        /// Topic name.
        topic: String,
    },
    /// Print decoded records of a topic, newest last.
    Tail(Tail),
}

/// `trunkline topics tail`.
#[derive(Debug, Args)]
pub struct Tail {
    /// Topic name.
    pub topic: String,
    /// Wait for new records until Ctrl-C.
    #[arg(long, short)]
    pub follow: bool,
    /// Only this partition. Default: all.
    #[arg(long)]
    pub partition: Option<i32>,
    /// Start at the earliest offset instead of the last records.
    #[arg(long, conflicts_with_all = ["from_offset", "from_time"])]
    pub from_start: bool,
    /// Start at this offset in every partition.
    #[arg(long, conflicts_with = "from_time")]
    pub from_offset: Option<i64>,
    /// Start at this time: RFC 3339, or a duration before now such as 15m.
    #[arg(long)]
    pub from_time: Option<String>,
    /// Only records with this key, written as JSON: '["orders","17"]'.
    #[arg(long)]
    pub key: Option<String>,
    /// Maximum number of records. Ignored with --follow.
    #[arg(long, short = 'n', default_value_t = 20)]
    pub limit: usize,
    /// Include records of open and aborted transactions.
    #[arg(long)]
    pub uncommitted: bool,
}

/// `trunkline lag`.
#[derive(Debug, Args)]
pub struct Lag {
    /// Log to use.
    #[command(flatten)]
    pub target: Target,
    /// Only this consumer group. Default: all.
    #[arg(long)]
    pub group: Option<String>,
    /// Also show the consumer groups of this topology that have never run, with everything that they have to read.
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
}

/// `trunkline replay`.
#[derive(Debug, Args)]
#[command(
    after_help = "The target must be a topic that no processor reads. Replaying into a processor and rebuilding a view are not supported.\n\nExample, the changes of one order during the last hour:\n  trunkline replay shop.change.shop --to debug.orders --create --from-time 1h --key '[\"orders\",\"17\"]'"
)]
pub struct Replay {
    /// Log to use.
    #[command(flatten)]
    pub target: Target,
    /// Source topic.
    pub topic: String,
    /// Target topic.
    #[arg(long, value_name = "TOPIC")]
    pub to: String,
    /// Create the target with the partition count of the source if it does not exist.
    #[arg(long)]
    pub create: bool,
    /// Only this partition. Default: all.
    #[arg(long)]
    pub partition: Option<i32>,
    /// First offset to copy. Default: earliest.
    #[arg(long, conflicts_with = "from_time")]
    pub from_offset: Option<i64>,
    /// First time to copy: RFC 3339, or a duration before now such as 1h.
    #[arg(long)]
    pub from_time: Option<String>,
    /// End offset (exclusive). Default: the last stable offset.
    #[arg(long, conflicts_with = "to_time")]
    pub to_offset: Option<i64>,
    /// End time (exclusive).
    #[arg(long)]
    pub to_time: Option<String>,
    /// Only records with this key, written as JSON.
    #[arg(long)]
    pub key: Option<String>,
    /// Maximum number of records per second. Default: unlimited.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Count the matching records without writing.
    #[arg(long)]
    pub dry_run: bool,
}

/// `trunkline offsets`.
#[derive(Debug, Args)]
#[command(
    after_help = "A task stops if its state and its committed offsets differ, or if an input cannot be read. Stop the processor, compare both with `show`, then choose:\n  restore   set the committed offsets to those of the state: no record is lost, the records between are processed again\n  accept    keep the state and continue at the committed offsets: the records between are not in the state\n  reset     for a task without state: process its inputs again from the earliest offset\n  skip      continue after records that retention deleted before they were processed, or with --to after damaged records\n\nExamples:\n  trunkline offsets show shop.sync-views.change.shop rows/0\n  trunkline offsets restore shop.sync-views.change.shop rows/0\n  trunkline offsets reset --to-earliest shop.sync-views.change.shop rows/0 --input shop.change.shop\n  trunkline offsets skip shop.sync-views.change.shop rows/0 --to 4711"
)]
pub struct Offsets {
    /// Log to use.
    #[command(flatten)]
    pub target: Target,
    /// Subcommand.
    #[command(subcommand)]
    pub command: OffsetsCommand,
}

/// Subcommands of `trunkline offsets`.
#[derive(Debug, Subcommand)]
pub enum OffsetsCommand {
    /// Show the offsets of the state and the committed offsets.
    Show(Task),
    /// Continue at the committed offsets and keep the state.
    Accept(Accept),
    /// Reset the offsets of a task that has no state, so that its inputs are processed again.
    Reset(Reset),
    /// Set the committed offsets to the offsets of the state.
    Restore(Task),
    /// Continue after records that were deleted before they were processed, or that are damaged.
    Skip(Skip),
}

/// A task of a processor.
#[derive(Debug, Args)]
pub struct Task {
    /// Consumer group of the processor: `<topology>.<processor>`; for views `<topology>.sync-views.<input>`, such as
    /// `shop.sync-views.change.shop`.
    pub processor: String,
    /// Task, as STORE/PARTITION, such as `rows/0`.
    pub task: String,
}

/// `trunkline offsets skip`.
#[derive(Debug, Args)]
pub struct Skip {
    /// The task.
    #[command(flatten)]
    pub task: Task,
    /// Continue at this offset. Default: at the first record that was not deleted.
    #[arg(long, value_name = "OFFSET")]
    pub to: Option<i64>,
    /// Input topic of `--to`, required if the task has several inputs.
    #[arg(long, value_name = "TOPIC", requires = "to")]
    pub input: Option<String>,
}

/// `trunkline offsets accept`.
#[derive(Debug, Args)]
pub struct Accept {
    /// The task.
    #[command(flatten)]
    pub task: Task,
    /// Input topic of the task, required if its inputs were changed or it has no state. May be repeated.
    #[arg(long = "input", value_name = "TOPIC")]
    pub inputs: Vec<String>,
}

/// `trunkline offsets reset`.
#[derive(Debug, Args)]
pub struct Reset {
    /// Continue at the earliest offset of each input. This is the only target.
    #[arg(long, required = true)]
    pub to_earliest: bool,
    /// The task.
    #[command(flatten)]
    pub task: Task,
    /// Input topic of the task. May be repeated; all inputs are required.
    #[arg(long = "input", value_name = "TOPIC", required = true)]
    pub inputs: Vec<String>,
}

/// `trunkline state`.
#[derive(Debug, Args)]
#[command(
    after_help = "The process that owns the task answers; other processes redirect to it. With --kafka, the addresses of the processes are read from the topics `<topology>._trunkline.members`.\n\nExamples:\n  trunkline state list\n  trunkline state scan shop.sync-views.change.shop rows --limit 20\n  trunkline state get shop.sync-views.change.shop rows '[\"row\",\"orders\",\"17\"]' --partition 0"
)]
pub struct State {
    /// Log to use.
    #[command(flatten)]
    pub target: Target,
    /// URL of the admin listener of a process, instead of looking it up.
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// Subcommand.
    #[command(subcommand)]
    pub command: StateCommand,
}

/// Subcommands of `trunkline state`.
#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// List the tasks and standbys of all processes, with the remaining records of restores.
    List,
    /// Get the value of a key.
    Get {
        /// Consumer group of the processor: `<topology>.<processor>`; for views `<topology>.sync-views.<input>`, such as
        /// `shop.sync-views.change.shop`.
        processor: String,
        /// Store name, as listed by `state list`.
        store: String,
        /// Key, written as JSON.
        key: String,
        /// Partition of the task. Default: the partition of a record with this key.
        #[arg(long)]
        partition: Option<i32>,
    },
    /// List keys and values, ordered by the bytes of the key.
    Scan {
        /// Consumer group of the processor: `<topology>.<processor>`; for views `<topology>.sync-views.<input>`, such as
        /// `shop.sync-views.change.shop`.
        processor: String,
        /// Store name, as listed by `state list`.
        store: String,
        /// Only keys with this prefix.
        #[arg(long, default_value = "")]
        prefix: String,
        /// Only this partition. Default: all.
        #[arg(long)]
        partition: Option<i32>,
        /// Maximum number of rows.
        #[arg(long, short = 'n', default_value_t = 100)]
        limit: usize,
    },
}

/// `trunkline token`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  trunkline token --sub 2\n  trunkline token --sub 2 --claim stores=[1,2] --expires-in 1h\n\nIn production your identity provider issues the tokens."
)]
pub struct Token {
    /// Subject of the token: the user of the device.
    #[arg(long)]
    pub sub: String,
    /// Additional claim. The value is parsed as JSON if possible. May be repeated.
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    pub claims: Vec<String>,
    /// Lifetime, such as 1h.
    #[arg(long, default_value = "12h")]
    pub expires_in: String,
    /// Data directory of the `trunkline dev` that will accept the token.
    #[arg(long, value_name = "DIR", default_value = ".trunkline")]
    pub data: PathBuf,
    /// Configuration of an edge that will accept the token instead. One of its issuers must have a `secret`.
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub config: Option<PathBuf>,
}

/// `trunkline connect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --admin and --kafka, the command controls the `trunkline dev` of the data directory. With --kafka, the addresses of the processes are read from the topics `<topology>._trunkline.members`. Commands that change something need a token with the role operator; what they change survives a restart.\n\nExamples:\n  trunkline connect status\n  trunkline connect pause shop --wait\n  trunkline connect snapshot shop orders --wait\n  trunkline connect resync shop --yes --wait\n  trunkline connect --admin https://connector-1:9464 --admin-token-file token status --output json"
)]
pub struct Connect {
    /// Log to use.
    #[command(flatten)]
    pub target: Target,
    /// URL of the admin listener of a process, instead of looking it up. May be repeated.
    #[arg(long, global = true, value_name = "URL")]
    pub admin: Vec<String>,
    /// Subcommand.
    #[command(subcommand)]
    pub command: ConnectCommand,
}

/// `trunkline profile`.
#[derive(Debug, Args)]
#[command(
    after_help = "A profile is the file NAME.toml in `trunkline/profiles` of the user's configuration directory; see docs/guides/command-line.md.\n\nExamples:\n  trunkline profile use prod\n  trunkline profile show\n  trunkline profile use --none"
)]
pub struct Profile {
    /// Subcommand.
    #[command(subcommand)]
    pub command: ProfileCommand,
}

/// `trunkline doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Checks the log, every process that it can find, connectors and their tables, consumer groups and dead letters; with --topology and --postgres or --config also the databases of the sources: settings, slots, publications, tables and permissions.\n\nExamples:\n  trunkline doctor\n  trunkline doctor --kafka kafka:9092 --admin https://connector-1:9464 --admin-token-file token\n  trunkline doctor --topology topology.toml --config /etc/trunkline/trunkline.toml\n  trunkline doctor --topology topology.toml --postgres postgres://user:password@127.0.0.1/shop\n\nExits with 1 if a problem was found. A warning, such as a paused connector or a new dead letter, does not change the exit code."
)]
pub struct Doctor {
    /// Log to use.
    #[command(flatten)]
    pub target: Target,
    /// URL of the admin listener of a process, in addition to those that are found. May be repeated.
    #[arg(long, value_name = "URL")]
    pub admin: Vec<String>,
    /// Also check this database, and compare it with --topology.
    #[arg(long, value_name = "URL", env = "TRUNKLINE_POSTGRES")]
    pub postgres: Option<String>,
    /// Also check this topology file.
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// Warn about dead letters of this time: a duration before now.
    #[arg(long, value_name = "SPAN", default_value = "24h")]
    pub dead_letters: String,
}
