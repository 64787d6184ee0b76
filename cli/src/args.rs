//! The command line: what can be asked, and the help that teaches it.
//!
//! Guarantees: a wrong word exits with 2 and says which words there are. Never: does anything.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// An event-driven integration backbone for mobile: rows and events in, per-device sync views out.
#[derive(Debug, Parser)]
#[command(
    name = "trunkline",
    version,
    propagate_version = true,
    after_help = "Start here:\n  trunkline dev                      all roles in one process, with a sample shop\n  trunkline topology check           is the declared graph right?\n  trunkline topics tail view.log     what goes by, decoded\n\nExit codes: 0 done, 1 failed or the check found errors, 2 the command line is wrong."
)]
pub struct Cli {
    /// How results are printed; progress and log lines go to stderr.
    #[arg(long, global = true, value_enum, default_value = "table")]
    pub output: Output,
    /// Which log lines are shown: error, warn, info, debug, or targets such as `trunkline_edge=debug`.
    #[arg(long, global = true, env = "TRUNKLINE_LOG")]
    pub log: Option<String>,
    /// Log lines as text or as JSON, one object a line.
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// How log lines are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in one process: embedded log and registry, the sample shop and orders that keep coming.
    Dev(Dev),
    /// Run one node of the topology, with its place (brokers, addresses, secrets) from a configuration file.
    Run(Run),
    /// Read a PostgreSQL database and write a commented topology.toml to start from.
    Init(Init),
    /// Look at the declared graph.
    Topology(Topology),
    /// Look at topics and their records.
    Topics(Topics),
    /// How far each consumer group is behind.
    Lag(Lag),
    /// Copy a stretch of a topic to another topic.
    Replay(Replay),
    /// What a processor's state contains beside what its group has committed, and the ways out when they differ.
    Offsets(Offsets),
    /// What the processors' tasks do, and what their committed state holds.
    State(State),
    /// Mint a token for development.
    Token(Token),
    /// Look for what is wrong here, and say the command that mends it.
    Doctor(Doctor),
}

/// `trunkline dev`.
#[derive(Debug, Clone, Args)]
pub struct Dev {
    /// Topology to run instead of the sample shop.
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// Where logs and stores are kept; a later start goes on from there.
    #[arg(long, value_name = "DIR", default_value = ".trunkline")]
    pub data: PathBuf,
    /// Starts with an empty data directory; the previous one is moved to DIR.aside-N.
    #[arg(long)]
    pub fresh: bool,
    /// Uses this Kafka instead of the embedded log.
    #[arg(long, value_name = "ADDR")]
    pub kafka: Option<String>,
    /// Uses this schema registry (Confluent's API) instead of the embedded one.
    #[arg(long, value_name = "URL")]
    pub registry: Option<String>,
    /// Reads the rows of this database instead of posted ones; its `[[connector]]` must be of kind `postgres`, or the
    /// topology's only connector is read from it.
    #[arg(long, value_name = "URL")]
    pub postgres: Option<String>,
    /// Orders a second that the generator posts to the sample shop; 0 posts none.
    #[arg(long, default_value_t = 2.0, value_name = "N")]
    pub orders_per_s: f64,
    /// Engine of the stores.
    #[arg(long, value_enum, default_value = "fjall")]
    pub store: Engine,
    /// Port of the devices' listener; 0 takes a free one.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Port of the backends' ingest listener; 0 takes a free one.
    #[arg(long, default_value_t = 8081)]
    pub ingest_port: u16,
    /// Port of the operators' listener; 0 takes a free one.
    #[arg(long, default_value_t = 8082)]
    pub admin_port: u16,
}

/// A store engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// An LSM tree.
    Fjall,
    /// sled 0.34.
    Sled,
    /// Nothing on disk: restored from the log at each start.
    Memory,
}

/// `trunkline run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The node, as `[[node]]` names it.
    pub node: String,
    /// The topology.
    #[arg(long, default_value = "topology.toml", value_name = "FILE")]
    pub topology: PathBuf,
    /// Where it runs: brokers, addresses, secrets. Environment variables TRUNKLINE_A__B override it.
    #[arg(long, default_value = "trunkline.toml", value_name = "FILE")]
    pub config: PathBuf,
}

/// `trunkline init`.
#[derive(Debug, Args)]
pub struct Init {
    /// The database: postgres://user:password@host:port/database.
    #[arg(long, value_name = "URL", env = "TRUNKLINE_POSTGRES")]
    pub postgres: String,
    /// File to write; `-` is stdout. A file that exists is not overwritten.
    #[arg(long, default_value = "topology.toml", value_name = "FILE")]
    pub file: PathBuf,
}

/// `trunkline topology`.
#[derive(Debug, Args)]
pub struct Topology {
    /// What to do with it.
    #[command(subcommand)]
    pub command: TopologyCommand,
}

/// What can be done with a topology.
#[derive(Debug, Subcommand)]
pub enum TopologyCommand {
    /// Check it without a network: every error at once, with its place and its fix. Exits with 1 if there is one.
    Check {
        /// The topology.
        #[arg(default_value = "topology.toml")]
        file: PathBuf,
    },
    /// Draw it.
    Graph {
        /// The topology.
        #[arg(default_value = "topology.toml")]
        file: PathBuf,
        /// As text for the terminal, or as DOT for Graphviz.
        #[arg(long, value_enum, default_value = "text")]
        format: GraphFormat,
    },
}

/// How a graph is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// For the terminal.
    Text,
    /// For Graphviz.
    Dot,
}

/// Which log an operator's command looks at.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Kafka brokers; without it, the `trunkline dev` of the data directory.
    #[arg(long, value_name = "ADDR", env = "TRUNKLINE_KAFKA")]
    pub kafka: Option<String>,
    /// Schema registry (Confluent's API), for decoding; with --kafka.
    #[arg(long, value_name = "URL", env = "TRUNKLINE_REGISTRY_URL")]
    pub registry: Option<String>,
    /// Data directory of `trunkline dev`, running or not.
    #[arg(long, value_name = "DIR", default_value = ".trunkline")]
    pub data: PathBuf,
}

/// `trunkline topics`.
#[derive(Debug, Args)]
pub struct Topics {
    /// Which log.
    #[command(flatten)]
    pub target: Target,
    /// What to do.
    #[command(subcommand)]
    pub command: TopicsCommand,
}

/// What can be done with topics.
#[derive(Debug, Subcommand)]
pub enum TopicsCommand {
    /// All topics.
    List,
    /// One topic: partitions, offsets, settings.
    Show {
        /// Its name.
        topic: String,
    },
    /// Its records, decoded, the newest last.
    Tail(Tail),
}

/// `trunkline topics tail`.
#[derive(Debug, Args)]
pub struct Tail {
    /// The topic.
    pub topic: String,
    /// Goes on as records come; end it with Ctrl-C.
    #[arg(long, short)]
    pub follow: bool,
    /// Only this partition.
    #[arg(long)]
    pub partition: Option<i32>,
    /// From the first record kept, not from the last ones.
    #[arg(long, conflicts_with_all = ["from_offset", "from_time"])]
    pub from_start: bool,
    /// From this offset, in every partition.
    #[arg(long, conflicts_with = "from_time")]
    pub from_offset: Option<i64>,
    /// From this time: RFC 3339, or a span back from now such as 15m.
    #[arg(long)]
    pub from_time: Option<String>,
    /// Only records with this key, as its JSON text: '["orders","17"]'.
    #[arg(long)]
    pub key: Option<String>,
    /// At most so many records.
    #[arg(long, short = 'n', default_value_t = 20)]
    pub limit: usize,
    /// Also records of open and aborted transactions.
    #[arg(long)]
    pub uncommitted: bool,
}

/// `trunkline lag`.
#[derive(Debug, Args)]
pub struct Lag {
    /// Which log.
    #[command(flatten)]
    pub target: Target,
    /// Only this group.
    #[arg(long)]
    pub group: Option<String>,
}

/// `trunkline replay`.
#[derive(Debug, Args)]
#[command(
    after_help = "A replay into a processor or a rebuild of a view is not in this release: replay to a topic of your own, and read that.\n\nExample: the last hour of one order, to a topic that exists:\n  trunkline replay change.shop --to debug.orders --from-time 1h --key '[\"orders\",\"17\"]'"
)]
pub struct Replay {
    /// Which log.
    #[command(flatten)]
    pub target: Target,
    /// Topic to read.
    pub topic: String,
    /// Topic to write; it must exist.
    #[arg(long, value_name = "TOPIC")]
    pub to: String,
    /// Only this partition.
    #[arg(long)]
    pub partition: Option<i32>,
    /// First offset.
    #[arg(long, conflicts_with = "from_time")]
    pub from_offset: Option<i64>,
    /// First time: RFC 3339, or a span back from now such as 1h.
    #[arg(long)]
    pub from_time: Option<String>,
    /// First offset that is left out.
    #[arg(long, conflicts_with = "to_time")]
    pub to_offset: Option<i64>,
    /// First time that is left out.
    #[arg(long)]
    pub to_time: Option<String>,
    /// Only records with this key, as its JSON text.
    #[arg(long)]
    pub key: Option<String>,
    /// At most so many records a second.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Counts what would be copied and writes nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// `trunkline offsets`.
#[derive(Debug, Args)]
#[command(
    after_help = "A task whose state and committed offsets differ stops and names both commands. `accept` keeps the state and goes on from the committed offsets: what lies between is not in the state. `restore` keeps the state and puts the offsets back to it: nothing is lost, and what lies between is processed again. `again` is for a task without state. Stop the processor first.\n\nExample:\n  trunkline offsets show sync-views change.shop/0"
)]
pub struct Offsets {
    /// Which log.
    #[command(flatten)]
    pub target: Target,
    /// What to do.
    #[command(subcommand)]
    pub command: OffsetsCommand,
}

/// What can be done with a task's offsets.
#[derive(Debug, Subcommand)]
pub enum OffsetsCommand {
    /// Shows both.
    Show(Task),
    /// Goes on from the committed offsets, with the state as it is.
    Accept(Accept),
    /// Lets a task that has no state any more process its inputs again from their beginning.
    Again(Again),
    /// Puts the committed offsets back to what the state contains.
    Restore(Task),
    /// Goes on without records that retention has removed before they were processed.
    Skip(Task),
}

/// A processor's task.
#[derive(Debug, Args)]
pub struct Task {
    /// The processor, which is also its consumer group.
    pub processor: String,
    /// The task as messages name it: its store and partition, such as `change.shop/0`.
    pub task: String,
}

/// A processor's task, and the inputs that it goes on with.
#[derive(Debug, Args)]
pub struct Accept {
    /// Which task.
    #[command(flatten)]
    pub task: Task,
    /// A topic that it reads, where its inputs were exchanged or it has no state. May be given again.
    #[arg(long = "input", value_name = "TOPIC")]
    pub inputs: Vec<String>,
}

/// A processor's task, and all inputs that it reads.
#[derive(Debug, Args)]
pub struct Again {
    /// Which task.
    #[command(flatten)]
    pub task: Task,
    /// A topic that it reads. May be given again.
    #[arg(long = "input", value_name = "TOPIC", required = true)]
    pub inputs: Vec<String>,
}

/// `trunkline state`.
#[derive(Debug, Args)]
#[command(
    after_help = "The process that has the task answers; any other sends on to it. With --kafka the processes are found by what they have told in the topic `members`.\n\nExamples:\n  trunkline state list\n  trunkline state scan sync-views change.shop --limit 20\n  trunkline state get sync-views change.shop '[\"row\",\"orders\",\"17\"]' --partition 0"
)]
pub struct State {
    /// Which log.
    #[command(flatten)]
    pub target: Target,
    /// Asks this process: the URL of its operators' listener.
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// What to ask.
    #[command(subcommand)]
    pub command: StateCommand,
}

/// What can be asked of state.
#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// Tasks and standbys of every process that answers: what each does, and how much a restore has left.
    List,
    /// One key's value.
    Get {
        /// The processor.
        processor: String,
        /// Its store, as `state list` names it.
        store: String,
        /// The key, as its JSON text.
        key: String,
        /// The task's partition; without it, that in which a record of this key is.
        #[arg(long)]
        partition: Option<i32>,
    },
    /// Keys and values, in the order of the keys' bytes.
    Scan {
        /// The processor.
        processor: String,
        /// Its store, as `state list` names it.
        store: String,
        /// Only keys that begin so.
        #[arg(long, default_value = "")]
        prefix: String,
        /// Only this partition.
        #[arg(long)]
        partition: Option<i32>,
        /// At most so many rows.
        #[arg(long, short = 'n', default_value_t = 100)]
        limit: usize,
    },
}

/// `trunkline token`.
#[derive(Debug, Args)]
pub struct Token {
    /// The subject: whose device it is.
    #[arg(long)]
    pub sub: String,
    /// A claim, as name=value; JSON values are taken as such. May be given again.
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    pub claims: Vec<String>,
    /// How long it is good for, such as 1h.
    #[arg(long, default_value = "12h")]
    pub expires_in: String,
    /// Data directory of the `trunkline dev` that is to take it.
    #[arg(long, value_name = "DIR", default_value = ".trunkline")]
    pub data: PathBuf,
    /// Configuration of an edge that is to take it instead; an issuer of it must share a `secret` with it.
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub config: Option<PathBuf>,
}

/// `trunkline doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Which log.
    #[command(flatten)]
    pub target: Target,
    /// Also looks at this database.
    #[arg(long, value_name = "URL", env = "TRUNKLINE_POSTGRES")]
    pub postgres: Option<String>,
    /// Also checks this topology.
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
}
