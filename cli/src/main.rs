//! `trunkline`: the one binary, and the place where the parts are put together.
//!
//! Guarantees: results on stdout, talk on stderr; exit code 0 done, 1 failed, 2 a wrong command line.
//! Never: logic that a library of this workspace could hold.

mod admin_api;
mod args;
mod backends;
mod commands;
mod config;
mod data_dir;
mod node;
mod print;
mod roles;
mod state;
mod time;

use anyhow::Result;
use args::{Cli, Command, LogFormat};
use clap::Parser;
use service::telemetry;
use std::process::ExitCode;

/// The memory of everything here, librdkafka's too. How it is set up is in `.cargo/config.toml`.
#[global_allocator]
static MEMORY: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The command has said why it failed; only the exit code is left.
#[derive(Debug, thiserror::Error)]
#[error("failed")]
struct Failed;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Failed>() => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("trunkline: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    start_logs(cli)?;
    match &cli.command {
        Command::Dev(dev) => commands::dev::run(dev),
        Command::Run(run) => commands::run::run(run),
        Command::Init(init) => commands::init::run(init),
        Command::Topology(topology) => commands::topology::run(cli.output, &topology.command),
        Command::Topics(topics) => commands::topics::topics(cli.output, topics),
        Command::Lag(lag) => commands::topics::lag(cli.output, lag),
        Command::Replay(replay) => commands::topics::replay(cli.output, replay),
        Command::Offsets(offsets) => commands::offsets::run(cli.output, offsets),
        Command::State(state) => commands::state::run(cli.output, state),
        Command::Token(token) => commands::token::run(cli.output, token),
        Command::Doctor(doctor) => commands::doctor::run(cli.output, doctor),
    }
}

fn start_logs(cli: &Cli) -> Result<()> {
    let quiet = !matches!(cli.command, Command::Dev(_) | Command::Run(_));
    let level = cli.log.clone().unwrap_or_else(|| {
        if quiet {
            "warn"
        } else {
            "info,fjall=warn,lsm_tree=warn,sled=warn"
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
