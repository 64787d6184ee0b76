//! `trunkline dlq`: lists dead letters, shows them, and redrives them.

use super::state;
use crate::args::{self, DlqCommand, DlqFilter, Output};
use crate::exit::Failed;
use crate::operations_api::{DeadLettersRequest, RedriveRequest, Request, Response};
use crate::operations_client::Client;
use crate::{print, time};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use operations::dead_letters::Filter;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use topology::{Input, Topology};

/// Runs the subcommand.
pub fn run(output: Output, dlq: &args::Dlq) -> Result<()> {
    match &dlq.command {
        DlqCommand::List { topology } => list(output, dlq, topology.as_deref()),
        DlqCommand::Show { filter, limit } => {
            let request = Request::DeadLetters(DeadLettersRequest {
                topic: filter.topic.clone(),
                filter: filter_of(filter)?,
                limit: *limit,
            });
            show(output, &Client::connect(&dlq.target)?, request)
        }
        DlqCommand::Redrive {
            filter,
            limit,
            again,
            dry_run,
            yes,
        } => {
            let request = RedriveRequest {
                topic: filter.topic.clone(),
                filter: filter_of(filter)?,
                limit: *limit,
                again: *again,
                dry_run: true,
            };
            let client = Client::connect(&dlq.target)?;
            if !dry_run && !yes && !is_confirmed(&client, &request)? {
                bail!("the redrive was not confirmed; nothing was written");
            }
            let request = RedriveRequest {
                dry_run: *dry_run,
                ..request
            };
            redrive(output, &client, request)
        }
    }
}

fn filter_of(filter: &DlqFilter) -> Result<Filter> {
    let now = service::clock::system().now_ms();
    Ok(Filter {
        partition: filter.partition,
        offset: filter.offset,
        stage: filter.stage.clone(),
        reason: filter.reason.clone(),
        key: filter.key.clone(),
        since: filter
            .since
            .as_deref()
            .map(|text| time::instant(text, now))
            .transpose()?,
    })
}

fn list(output: Output, dlq: &args::Dlq, topology: Option<&Path>) -> Result<()> {
    let topology = topology.map(super::topology::load).transpose()?;
    let prefix = topology.as_ref().map(|topology| topology.names().prefix());
    let client = Client::connect(&dlq.target)?;
    let mut topics = client.collect(Request::DeadLetterTopics(prefix.unwrap_or_default()))?;
    // Opened by this process, the log of a stopped `dev` has no process that could answer.
    for topic in &mut topics {
        let stale = stale(dlq, topic, topology.as_ref());
        if let Some(topic) = topic.as_object_mut() {
            topic.insert("stale".to_owned(), stale.map_or(Value::Null, Value::Array));
        }
    }
    if output == Output::Json {
        return print::json(&topics);
    }
    let mut rows = Vec::new();
    for topic in topics.iter().filter(|topic| number(topic, "dead_letters") > 0) {
        for group in array(topic, "groups") {
            let mut row = group.clone();
            let newest = time::show(group.get("newest_ms").and_then(Value::as_i64).unwrap_or_default());
            if let Some(row) = row.as_object_mut() {
                row.insert("topic".to_owned(), topic.get("topic").cloned().unwrap_or_default());
                row.insert("newest".to_owned(), newest.into());
            }
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return print::line(format!("no dead letters in {} dead-letter topics", topics.len()));
    }
    let columns = [
        "topic",
        "application",
        "stage",
        "error",
        "dead_letters",
        "open",
        "newest",
        "reason",
    ];
    print::items(output, &rows, &columns)?;
    topics.iter().try_for_each(print_stale)
}

fn print_stale(topic: &Value) -> Result<()> {
    let origin = print::cell(topic, "origin");
    for table in array(topic, "stale") {
        let views: Vec<&str> = array(table, "views").iter().filter_map(Value::as_str).collect();
        let views = match views.as_slice() {
            [] => String::new(),
            views => format!(", so these views are stale: {}", views.join(", ")),
        };
        print::line(format!(
            "{origin}: {} rows of {} lack changes{views}",
            number(table, "rows"),
            print::cell(table, "table")
        ))?;
    }
    Ok(())
}

/// Tables of a topic whose rows lack changes, with their views if the topology is given; `None` if no process with the
/// state answers.
fn stale(dlq: &args::Dlq, topic: &Value, topology: Option<&Topology>) -> Option<Vec<Value>> {
    if number(topic, "dead_letters") == 0 {
        return Some(Vec::new());
    }
    let origin = topic.get("origin")?.as_str()?;
    let partitions = i32::try_from(topic.get("partitions")?.as_i64()?).ok()?;
    let tables = state::missing_rows(&dlq.target, origin, partitions)?;
    let of_table = |(table, rows): (String, u64)| {
        let views = topology.map(|topology| views_of(topology, origin, &table));
        json!({ "table": table, "rows": rows, "views": views })
    };
    Some(tables.into_iter().map(of_table).collect())
}

/// The views that show rows of a table, event or processor.
fn views_of(topology: &Topology, topic: &str, table: &str) -> Vec<String> {
    let shows = |input: Input| {
        topology.topic_of(input) == topic
            && match input {
                Input::Table { source, table: at } => topology
                    .sources
                    .get(source)
                    .and_then(|source| source.tables.get(at))
                    .is_some_and(|found| found.name.as_str() == table),
                Input::Event(_) | Input::Processor(_) => true,
            }
    };
    let views = topology.views.iter().filter(|view| shows(view.input));
    views.map(|view| view.name.to_string()).collect()
}

fn show(output: Output, client: &Client, request: Request) -> Result<()> {
    let mut count = 0;
    client.request(request, &mut |response| {
        if let Response::Item(letter) = response {
            count += 1;
            match output {
                Output::Json => print::json(&letter)?,
                Output::Table | Output::Wide => print::line(letter_text(&letter))?,
            }
        }
        Ok(true)
    })?;
    if count == 0 {
        eprintln!("no dead letter matches");
    }
    Ok(())
}

fn letter_text(letter: &Value) -> String {
    let origin = letter.get("origin").cloned().unwrap_or_default();
    let is_redriven = letter.get("redriven").and_then(Value::as_bool) == Some(true);
    let at = time::show(letter.get("timestamp_ms").and_then(Value::as_i64).unwrap_or_default());
    let cell = |name: &str| print::cell(letter, name);
    let mut lines = vec![format!(
        "{} partition {} offset {}  {at}{}",
        cell("topic"),
        cell("partition"),
        cell("offset"),
        if is_redriven { "  redriven" } else { "" }
    )];
    let mut line = |name: &str, text: String| lines.push(format!("  {name:<8} {text}"));
    line(
        "record",
        format!(
            "{} partition {} offset {}",
            print::cell(&origin, "topic"),
            print::cell(&origin, "partition"),
            print::cell(&origin, "offset")
        ),
    );
    line(
        "failed",
        format!("{} in {}: {}", cell("stage"), cell("application"), cell("error_type")),
    );
    line("reason", cell("reason"));
    line("key", cell("key"));
    line("value", cell("value"));
    for header in array(letter, "headers") {
        let name = header.get(0).and_then(Value::as_str).unwrap_or_default();
        if !name.starts_with("__connect.errors.") {
            line(
                "header",
                format!("{name} = {}", header.get(1).cloned().unwrap_or_default()),
            );
        }
    }
    for (name, field) in [("decoding", "error"), ("redrive", "refusal")] {
        if let Some(text) = letter.get(field).and_then(Value::as_str) {
            line(name, format!("not possible: {text}"));
        }
    }
    lines.join("\n")
}

/// Counts the dead letters and asks on the terminal.
fn is_confirmed(client: &Client, request: &RedriveRequest) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("the redrive needs a confirmation, and stdin is not a terminal; use --yes, or --dry-run to count only");
    }
    let counted = client.collect(Request::Redrive(request.clone()))?;
    let counted = counted.first().context("the count is missing from the response")?;
    eprint!(
        "Redrive {} dead letters of {}? [y/N] ",
        number(counted, "redriven"),
        request.topic
    );
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn redrive(output: Output, client: &Client, request: RedriveRequest) -> Result<()> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {percent:>3}%  {msg}  elapsed {elapsed}, remaining {eta}",
    )?);
    let mut outcome = Value::Null;
    client.request(Request::Redrive(request.clone()), &mut |response| {
        match response {
            Response::Progress(progress) => {
                bar.set_length(number(&progress, "offsets_total"));
                bar.set_position(number(&progress, "offsets_done"));
                bar.set_message(format!("{} redriven", number(&progress, "redriven")));
            }
            Response::Item(done) => outcome = done,
            Response::Error(_) => unreachable!("the client returns errors as `Err`"),
        }
        Ok(true)
    })?;
    bar.finish_and_clear();
    print_outcome(output, &request, &outcome)?;
    if is_success(&request, &outcome) {
        Ok(())
    } else {
        Err(Failed.into())
    }
}

/// Whether all dead letters that match were redriven, now or before. A single dead letter that is named and was redriven
/// before is a failure, because nothing was done.
fn is_success(request: &RedriveRequest, outcome: &Value) -> bool {
    let is_named = request.filter.offset.is_some();
    number(outcome, "refused") == 0 && (!is_named || number(outcome, "redriven") > 0)
}

fn print_outcome(output: Output, request: &RedriveRequest, outcome: &Value) -> Result<()> {
    if output == Output::Json {
        return print::json(outcome);
    }
    let verb = if request.dry_run { "would redrive" } else { "redrove" };
    let (redriven, matched) = (number(outcome, "redriven"), number(outcome, "matched"));
    print::line(format!(
        "{verb} {redriven} of {matched} dead letters of {}",
        request.topic
    ))?;
    let before = number(outcome, "redriven_before");
    if before > 0 {
        print::line(format!("{before} were redriven before; --again redrives them again"))?;
    }
    let refused = number(outcome, "refused");
    if refused > 0 {
        print::line(format!("{refused} cannot be redriven:"))?;
    }
    for refusal in array(outcome, "refusals") {
        print::line(format!(
            "  {} (first: {}): {}",
            number(refusal, "count"),
            print::cell(refusal, "first"),
            print::cell(refusal, "reason")
        ))?;
    }
    Ok(())
}

fn array<'v>(of: &'v Value, name: &str) -> &'v [Value] {
    of.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn number(of: &Value, name: &str) -> u64 {
    of.get(name).and_then(Value::as_u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_a_table_are_found_by_its_topic() {
        let shop = topology::samples::SHOP.check().into_result().unwrap();
        let first = &shop.views[0];
        let table = match first.input {
            Input::Table { source, table } => shop.sources[source].tables[table].name.to_string(),
            other => panic!("{other:?}"),
        };
        let found = views_of(&shop, "shop.change.shop", &table);
        assert!(found.contains(&first.name.to_string()), "{found:?}");
        assert!(views_of(&shop, "shop.change.shop", "nothing").is_empty());
        assert_eq!(views_of(&shop, "shop.event.delivery_moved", "delivery_moved").len(), 1);
    }

    #[test]
    fn refusals_and_a_named_dead_letter_that_was_redriven_before_fail() {
        let mut request = RedriveRequest {
            topic: String::from("t.dlq"),
            filter: Filter::default(),
            limit: None,
            again: false,
            dry_run: false,
        };
        let outcome = |redriven: u64, before: u64, refused: u64| json!({ "redriven": redriven, "redriven_before": before, "refused": refused });
        assert!(is_success(&request, &outcome(2, 1, 0)));
        assert!(is_success(&request, &outcome(0, 3, 0)));
        assert!(!is_success(&request, &outcome(2, 0, 1)));
        request.filter.offset = Some(4);
        assert!(is_success(&request, &outcome(1, 0, 0)));
        assert!(!is_success(&request, &outcome(0, 1, 0)));
    }
}
