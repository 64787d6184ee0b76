//! `trunkline topics`: lists and describes topics, and prints decoded records.

use crate::args::{self, Output, TopicsCommand};
use crate::operations_api::{Position, Request, Response, TailRequest};
use crate::operations_client::Client;
use crate::{print, time};
use anyhow::Result;
use serde_json::Value;

/// Runs the subcommand.
pub fn run(output: Output, topics: &args::Topics) -> Result<()> {
    let client = Client::connect(&topics.target)?;
    match &topics.command {
        TopicsCommand::List { filter } => {
            let mut items = client.collect(Request::Topics)?;
            if let Some(text) = filter {
                items.retain(|topic| print::cell(topic, "name").contains(text.as_str()));
            }
            for topic in items.iter().filter(|topic| topic.get("problem").is_some()) {
                eprintln!("{}: {}", print::cell(topic, "name"), print::cell(topic, "problem"));
            }
            let mut columns = vec!["name", "partitions", "offsets", "cleanup"];
            if output == Output::Wide {
                columns.push("id");
            }
            print::items(output, &items, &columns)
        }
        TopicsCommand::Show { topic } => {
            let items = client.collect(Request::Topic(topic.clone()))?;
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
        TopicsCommand::Tail(tail) => print_records(output, &client, tail),
    }
}

fn print_records(output: Output, client: &Client, tail: &args::Tail) -> Result<()> {
    let now = service::clock::system().now_ms();
    let from = match (&tail.from_time, tail.from_offset) {
        (Some(text), _) => Position::Time(time::instant(text, now)?),
        (None, Some(offset)) => Position::Offset(offset),
        (None, None) if tail.from_start => Position::Unbounded,
        (None, None) => Position::Newest(tail.limit),
    };
    let request = Request::Tail(TailRequest {
        topic: tail.topic.clone(),
        partition: tail.partition,
        from,
        key: tail.key.clone(),
        limit: tail.limit,
        follow: tail.follow,
        uncommitted: tail.uncommitted,
    });
    let mut count = 0;
    client.request(request, &mut |response| {
        if let Response::Item(record) = response {
            count += 1;
            if output == Output::Json {
                print::json(&record)?;
            } else {
                print::line(record_line(&record))?;
            }
        }
        Ok(true)
    })?;
    if count == 0 && tail.key.is_some() {
        eprintln!("no record of {} has the key", tail.topic);
    } else if count == tail.limit && !matches!(from, Position::Newest(_)) {
        eprintln!("{count} records shown; there may be more, see --limit");
    }
    Ok(())
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
        line.push_str(&format!("  [cannot decode: {error}]"));
    }
    line
}
