//! Checks of dead-letter topics. Rows that lack changes because of a dead letter are a problem until they are corrected;
//! other dead letters are reported for some time.

use super::finding::{Finding, bad, good, warning};
use crate::operations_api::{DeadLettersRequest, Position, Request, TailRequest};
use crate::operations_client::Client;
use event_log::{in_parallel, origin_of_dead_letters};
use operations::dead_letters::Filter;
use serde_json::Value;
use std::collections::BTreeMap;
use topology::Names;

/// Number of rows that lack changes, by table, of a topic with this number of partitions; `None` if no process with the
/// state of sync-views answers.
pub type MissingRows<'m> = dyn Fn(&str, i32) -> Option<BTreeMap<String, u64>> + Sync + 'm;

/// Which dead letters are reported as a warning. Older ones do not matter any more: they remain until the retention of
/// their topic, also if they were written again or are not needed.
pub struct DeadLetters {
    /// Begin of the time, in ms since 1970.
    pub since_ms: i64,
    /// The time, for texts.
    pub span: String,
}

impl DeadLetters {
    /// Number of dead letters after which counting stops, and number of the newest ones in which the cause of missing
    /// rows is looked up.
    const COUNT_MAX: usize = 1_000;

    /// Checks the dead-letter topics among these topics.
    pub fn check(&self, client: &Client, topics: &[&str], missing_rows: &MissingRows<'_>) -> Vec<Finding> {
        let topics: Vec<&&str> = topics.iter().filter(|name| name.ends_with(".dlq")).collect();
        let findings = in_parallel(&topics, |topic| {
            let mut missing = check_missing_rows(client, topic, missing_rows);
            if missing.is_empty() {
                missing.extend(self.check_topic(client, topic));
            }
            missing
        });
        let findings: Vec<Finding> = findings.into_iter().flatten().collect();
        if findings.is_empty() {
            return vec![good("dead letters", format!("none within {}", self.span))];
        }
        findings
    }

    /// Returns a warning if the topic has records of the time.
    fn check_topic(&self, client: &Client, topic: &str) -> Option<Finding> {
        let request = Request::Tail(TailRequest {
            topic: topic.to_owned(),
            partition: None,
            from: Position::Time(self.since_ms),
            key: None,
            limit: Self::COUNT_MAX,
            follow: false,
            uncommitted: false,
        });
        let count = match client.collect(request) {
            Ok(records) => records.len(),
            Err(error) => {
                return Some(bad(
                    "dead letters",
                    format!("cannot read {topic}: {error:#}"),
                    format!("trunkline topics show {topic}"),
                ));
            }
        };
        let more = if count >= Self::COUNT_MAX { "at least " } else { "" };
        let found = format!("{topic} has {more}{count} dead letters within {}", self.span);
        let fix = format!("trunkline topics tail {topic} --from-time {}", self.span);
        (count > 0).then(|| warning("dead letters", found, fix))
    }
}

/// Returns a finding for each table whose rows lack changes and that has dead letters that were not redriven. A table
/// without dead letters lacks changes because it needs a snapshot, which another check reports.
fn check_missing_rows(client: &Client, topic: &str, missing_rows: &MissingRows<'_>) -> Vec<Finding> {
    let Some(origin) = origin_of_dead_letters(topic) else {
        return Vec::new();
    };
    let request = Request::DeadLetters(DeadLettersRequest {
        topic: topic.to_owned(),
        filter: Filter::default(),
        limit: DeadLetters::COUNT_MAX,
    });
    let letters = match client.collect(request) {
        Ok(letters) => letters,
        Err(error) => {
            let found = format!("cannot read {topic}: {error:#}");
            return vec![bad("dead letters", found, format!("trunkline topics show {topic}"))];
        }
    };
    if letters.is_empty() {
        return Vec::new();
    }
    let described = match client.collect(Request::Topic(origin.to_owned())) {
        Ok(described) => described,
        Err(error) => {
            let found = format!("{topic} has dead letters, but whether rows lack changes is unknown: {error:#}");
            return vec![warning(
                "dead letters",
                found,
                format!("trunkline topics show {origin}"),
            )];
        }
    };
    let partitions = described.first().and_then(|topic| topic.get("partitions")?.as_i64());
    let count = partitions.and_then(|count| i32::try_from(count).ok());
    let missing = count.and_then(|count| missing_rows(origin, count)).unwrap_or_default();
    let finding = |(table, rows): (&String, &u64)| {
        let fix = fix(topic, origin, table, &letters)?;
        let found = format!(
            "{rows} rows of table {table} lack changes because of dead letters in {topic}, so the table's views are stale"
        );
        Some(bad("dead letters", found, fix))
    };
    missing.iter().filter_map(finding).collect()
}

/// What resolves the dead letters of a table; `None` if there are none to resolve.
fn fix(topic: &str, origin: &str, table: &str, letters: &[Value]) -> Option<String> {
    let is_open = |letter: &&Value| letter.get("redriven") == Some(&Value::Bool(false));
    let mut fixes = Vec::new();
    for letter in letters.iter().filter(is_open) {
        let is_unpublished = letter.pointer("/key/0").and_then(Value::as_str) == Some("~missing");
        let of_table = letter.pointer(if is_unpublished { "/key/1" } else { "/key/0" });
        if of_table.and_then(Value::as_str) != Some(table) {
            continue;
        }
        let fix = match letter.get("refusal").and_then(Value::as_str) {
            None => format!("resolve the cause, then trunkline dlq redrive {topic}"),
            Some(refusal) => match source_of(origin).filter(|_| is_unpublished) {
                Some(source) => format!(
                    "update the rows in the database so that they can be published; or do so and then trunkline connect \
                     snapshot {source} {table}"
                ),
                None => refusal.to_owned(),
            },
        };
        if !fixes.contains(&fix) {
            fixes.push(fix);
        }
    }
    (!fixes.is_empty()).then(|| fixes.join("; "))
}

fn source_of(origin: &str) -> Option<String> {
    let names = Names::owning(origin)?;
    names.local(origin).strip_prefix("change.").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TOPIC: &str = "shop.change.db.dlq";
    const ORIGIN: &str = "shop.change.db";

    #[test]
    fn fix_is_the_redrive_or_the_row_in_the_database() {
        let unpublished = json!({"key": ["~missing", "orders", "1"], "redriven": false, "refusal": "it has no row"});
        let rejected = json!({"key": ["orders", "2"], "redriven": false, "refusal": null});
        let redriven = json!({"key": ["orders", "3"], "redriven": true, "refusal": null});
        let fix_of = |letters: &[&Value]| {
            let letters: Vec<Value> = letters.iter().map(|letter| (*letter).clone()).collect();
            fix(TOPIC, ORIGIN, "orders", &letters)
        };
        let update = "update the rows in the database so that they can be published; or do so and then trunkline connect \
                      snapshot db orders";
        let redrive = "resolve the cause, then trunkline dlq redrive shop.change.db.dlq";
        assert_eq!(
            fix_of(&[&unpublished, &unpublished, &redriven]).as_deref(),
            Some(update)
        );
        assert_eq!(fix_of(&[&rejected]).as_deref(), Some(redrive));
        assert_eq!(fix_of(&[&rejected, &unpublished]), Some(format!("{redrive}; {update}")));
        assert_eq!(fix_of(&[&redriven]), None);
        assert_eq!(fix(TOPIC, ORIGIN, "users", &[unpublished, rejected]), None);
    }
}
