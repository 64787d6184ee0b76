//! The `trunkline` binary: parses the command line and runs the command.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 failure, 2 invalid command line.

mod admin_client;
mod args;
mod backends;
mod commands;
mod config;
mod connect_api;
mod connection;
mod connectors_client;
mod data_dir;
mod exit;
mod issuers_api;
mod node;
mod operations_api;
mod operations_client;
mod print;
mod processes;
mod profiles;
mod running_dev;
mod state_api;
mod time;

use anyhow::Result;
use args::{Cli, Command, LogFormat, Output};
use clap::Parser;
use exit::{Failed, StdoutClosed};
use service::telemetry;
use std::process::ExitCode;

/// Allocator of the whole process including librdkafka; configured in `.cargo/config.toml`.
#[global_allocator]
static MEMORY: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Failed>() => ExitCode::FAILURE,
        // The reader of the pipe, such as `head`, has read enough.
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            match cli.output {
                Output::Table | Output::Wide => eprintln!("trunkline: {error:#}"),
                Output::Json => eprintln!("{}", serde_json::json!({ "error": format!("{error:#}") })),
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    start_logs(cli)?;
    match &cli.command {
        Command::Dev(dev) => commands::dev::run(cli.output, dev),
        Command::Run(run) => commands::run::run(run),
        Command::Init(init) => commands::init::run(init),
        Command::Topology(topology) => commands::topology::run(cli.output, &topology.command),
        Command::Topics(topics) => commands::topics::run(cli.output, topics),
        Command::Lag(lag) => commands::lag::run(cli.output, lag),
        Command::Replay(replay) => commands::replay::run(cli.output, replay),
        Command::Offsets(offsets) => commands::offsets::run(cli.output, offsets),
        Command::State(state) => commands::state::run(cli.output, state),
        Command::Connect(connect) => commands::connect::run(cli.output, connect),
        Command::Profile(profile) => commands::profile::run(cli.output, profile),
        Command::Token(token) => commands::token::run(cli.output, token),
        Command::Doctor(doctor) => commands::doctor::run(cli.output, doctor),
        Command::Dlq(dlq) => commands::dlq::run(cli.output, dlq),
        Command::Completions { shell } => commands::shell::completions(*shell),
        Command::Man { dir } => commands::shell::manual_pages(dir),
    }
}

fn start_logs(cli: &Cli) -> Result<()> {
    let level = cli.log.clone().unwrap_or_else(|| {
        match cli.command {
            // The sample posts orders, each of which would write an audit line.
            Command::Dev(_) => "info,audit=warn,fjall=warn,lsm_tree=warn,sled=warn",
            Command::Run(_) => "info,fjall=warn,lsm_tree=warn,sled=warn",
            _ => "warn",
        }
        .to_owned()
    });
    let format = match cli.log_format {
        LogFormat::Text => telemetry::Format::Text,
        LogFormat::Json => telemetry::Format::Json,
    };
    telemetry::logs(&telemetry::Config { level, format })?;
    Ok(())
}
