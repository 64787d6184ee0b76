//! `trunkline replay`: copies a range of a topic to another topic, with a progress bar.

use crate::args::{self, Output};
use crate::operations_api::{Position, ReplayRequest, Request, Response};
use crate::operations_client::Client;
use crate::{print, time};
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// Copies, and prints the number of copied records.
pub fn run(output: Output, replay: &args::Replay) -> Result<()> {
    let client = Client::connect(&replay.target)?;
    let now = service::clock::system().now_ms();
    let position = |time: &Option<String>, offset: Option<i64>| {
        Ok::<_, anyhow::Error>(match (time, offset) {
            (Some(text), _) => Position::Time(time::instant(text, now)?),
            (None, Some(offset)) => Position::Offset(offset),
            (None, None) => Position::Unbounded,
        })
    };
    let request = Request::Replay(ReplayRequest {
        topic: replay.topic.clone(),
        to: replay.to.clone(),
        create: replay.create,
        partition: replay.partition,
        from: position(&replay.from_time, replay.from_offset)?,
        until: position(&replay.to_time, replay.to_offset)?,
        key: replay.key.clone(),
        rate: replay.rate,
        dry_run: replay.dry_run,
    });
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{bar:40} {percent:>3}%  {msg}  elapsed {elapsed}, remaining {eta}")?;
    bar.set_style(style);
    client.request(request, &mut |response| {
        match response {
            Response::Progress(progress) => {
                bar.set_length(number(&progress, "offsets_total"));
                bar.set_position(number(&progress, "offsets_done"));
                bar.set_message(format!("{} records", number(&progress, "records_replayed")));
            }
            Response::Item(done) => {
                bar.finish_and_clear();
                print_result(output, replay, &done)?;
            }
            Response::Error(_) => unreachable!("the client returns errors as `Err`"),
        }
        Ok(true)
    })
}

fn print_result(output: Output, replay: &args::Replay, done: &Value) -> Result<()> {
    if output == Output::Json {
        return print::json(done);
    }
    let verb = if replay.dry_run { "would copy" } else { "copied" };
    print::line(format!(
        "{verb} {} of {} records ({} bytes) to {}",
        number(done, "records_replayed"),
        number(done, "records_read"),
        number(done, "bytes"),
        replay.to
    ))
}

fn number(of: &Value, name: &str) -> u64 {
    of.get(name).and_then(Value::as_u64).unwrap_or_default()
}
