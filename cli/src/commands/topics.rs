//! `topics`, `lag` and `replay`: what operators look at and copy.

use crate::admin_api::{Ask, Begin, Performer, Said};
use crate::args::{self, Output, TopicsCommand};
use crate::backends;
use crate::{print, time};
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// All items of an answer.
pub fn collect(performer: &Performer, ask: Ask) -> Result<Vec<Value>> {
    let mut items = Vec::new();
    performer.ask(ask, &mut |said| {
        if let Said::Item(item) = said {
            items.push(item);
        }
        Ok(true)
    })?;
    Ok(items)
}

/// `trunkline topics`.
pub fn topics(output: Output, topics: &args::Topics) -> Result<()> {
    let performer = backends::performer(&topics.target)?;
    match &topics.command {
        TopicsCommand::List => {
            let items = collect(&performer, Ask::Topics)?;
            print::items(output, &items, &["name", "partitions", "offsets", "cleanup"])
        }
        TopicsCommand::Show { topic } => {
            let items = collect(&performer, Ask::Topic(topic.clone()))?;
            let Some(detail) = items.first() else { return Ok(()) };
            if output == Output::Json {
                return print::json(detail);
            }
            print::line(format!(
                "topic {}  id {}",
                print::cell(detail, "name"),
                print::cell(detail, "id")
            ))?;
            let parts = detail
                .get("parts")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            print::items(output, &parts, &["partition", "start", "stable", "end"])?;
            for (name, value) in detail.get("settings").and_then(Value::as_object).into_iter().flatten() {
                print::line(format!("{name} = {}", value.as_str().unwrap_or_default()))?;
            }
            Ok(())
        }
        TopicsCommand::Tail(tail) => follow(output, &performer, tail),
    }
}

fn follow(output: Output, performer: &Performer, tail: &args::Tail) -> Result<()> {
    let now = service::clock::system().now_ms();
    let from = match (&tail.from_time, tail.from_offset) {
        (Some(text), _) => Begin::Time(time::instant(text, now)?),
        (None, Some(offset)) => Begin::Offset(offset),
        (None, None) if tail.from_start => Begin::Open,
        // Control records take offsets too, so more are asked for than are shown.
        (None, None) => Begin::Last(i64::try_from(tail.limit).unwrap_or(i64::MAX).saturating_mul(2)),
    };
    let ask = Ask::Tail {
        topic: tail.topic.clone(),
        partition: tail.partition,
        from,
        key: tail.key.clone(),
        limit: tail.limit,
        follow: tail.follow,
        uncommitted: tail.uncommitted,
    };
    performer.ask(ask, &mut |said| {
        if let Said::Item(record) = said {
            if output == Output::Json {
                print::json(&record)?;
            } else {
                print::line(record_line(&record))?;
            }
        }
        Ok(true)
    })
}

fn record_line(record: &Value) -> String {
    let number = |name: &str| record.get(name).and_then(Value::as_i64).unwrap_or_default();
    let at = time::show(number("timestamp_ms"));
    let mut line = format!(
        "{}/{}  {at}  {}",
        number("partition"),
        number("offset"),
        print::cell(record, "key")
    );
    line.push_str(&format!("  {}", print::cell(record, "value")));
    let headers = record
        .get("headers")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    for header in &headers {
        let name = header.get(0).and_then(Value::as_str).unwrap_or_default();
        line.push_str(&format!(
            "  {name}={}",
            header.get(1).map(ToString::to_string).unwrap_or_default()
        ));
    }
    if let Some(error) = record.get("error").and_then(Value::as_str) {
        line.push_str(&format!("  [not decoded: {error}]"));
    }
    line
}

/// `trunkline lag`.
pub fn lag(output: Output, lag: &args::Lag) -> Result<()> {
    let performer = backends::performer(&lag.target)?;
    let mut items = collect(&performer, Ask::Lag(lag.group.clone()))?;
    let restoring = super::state::restoring(&lag.target);
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        let text = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let partition = item.get("partition").and_then(Value::as_i64).unwrap_or_default();
        let left = restoring.get(&(text("group"), text("topic"), partition)).copied();
        item.insert("restore_left".to_owned(), left.into());
    }
    let columns = [
        "group",
        "state",
        "topic",
        "partition",
        "committed",
        "stable",
        "lag_records",
        "lag_ms",
        "restore_left",
        "member",
    ];
    print::items(output, &items, &columns)
}

/// `trunkline replay`.
pub fn replay(output: Output, replay: &args::Replay) -> Result<()> {
    let performer = backends::performer(&replay.target)?;
    let now = service::clock::system().now_ms();
    let border = |time: &Option<String>, offset: Option<i64>| {
        Ok::<_, anyhow::Error>(match (time, offset) {
            (Some(text), _) => Begin::Time(time::instant(text, now)?),
            (None, Some(offset)) => Begin::Offset(offset),
            (None, None) => Begin::Open,
        })
    };
    let ask = Ask::Replay {
        topic: replay.topic.clone(),
        to: replay.to.clone(),
        partition: replay.partition,
        from: border(&replay.from_time, replay.from_offset)?,
        until: border(&replay.to_time, replay.to_offset)?,
        key: replay.key.clone(),
        rate: replay.rate,
        dry_run: replay.dry_run,
    };
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{bar:40} {percent:>3}%  {msg}  {elapsed} gone, {eta} to go")?;
    bar.set_style(style);
    let number = |of: &Value, name: &str| of.get(name).and_then(Value::as_u64).unwrap_or_default();
    performer.ask(ask, &mut |said| {
        match said {
            Said::Progress(progress) => {
                bar.set_length(number(&progress, "offsets_total"));
                bar.set_position(number(&progress, "offsets_done"));
                bar.set_message(format!("{} records", number(&progress, "records_replayed")));
            }
            Said::Item(done) => {
                bar.finish_and_clear();
                if output == Output::Json {
                    print::json(&done)?;
                } else {
                    let verb = if replay.dry_run { "would copy" } else { "copied" };
                    let (count, bytes) = (number(&done, "records_replayed"), number(&done, "bytes"));
                    let read = number(&done, "records_read");
                    print::line(format!(
                        "{verb} {count} of {read} records ({bytes} bytes) to {}",
                        replay.to
                    ))?;
                }
            }
            Said::Error(_) => {}
        }
        Ok(true)
    })
}
