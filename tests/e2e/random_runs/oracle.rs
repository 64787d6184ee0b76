//! Compares devices with the database, and decides what the result of a change is: the table is equal, or it is reported
//! with an expected cause. Everything else is a failure.

use super::operations::{Operation, Unit};
use super::schema::Table;
use super::values::identifier;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Rows of a table in a canonical text form: column values by key.
pub type Rows = BTreeMap<String, BTreeMap<String, String>>;

/// Rows shown of each kind of difference.
const SHOWN: usize = 5;

/// The query whose rows [`rows_of_query`] reads. The session must have the output settings of [`SETTINGS`].
pub fn query(table: &Table) -> String {
    let columns = table.declared().into_iter().map(|(name, json)| {
        let expression = json.expression(&identifier(&name));
        format!("coalesce(({expression}), 'null')")
    });
    let columns = columns.collect::<Vec<_>>().join(", ");
    format!("{SETTINGS}; SELECT {columns} FROM {}", table.name())
}

/// Settings of the session that determine the text of values.
pub const SETTINGS: &str =
    "SET datestyle = ISO; SET timezone = UTC; SET intervalstyle = postgres; SET extra_float_digits = 3";

/// The rows of a table, from the result of its [`query`].
pub fn rows_of_query(table: &Table, result: &[Vec<Option<String>>]) -> Rows {
    let declared = table.declared();
    let rows = result.iter().map(|values| {
        let mut row = Map::new();
        for ((name, _), value) in declared.iter().zip(values) {
            let text = value.as_deref().unwrap_or("null");
            let value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{name}: {text}: {e}"));
            row.insert(name.clone(), value);
        }
        let key = table.key.iter().map(|column| row[column].clone()).collect();
        entry(&Value::Array(key), &Value::Object(row))
    });
    rows.collect()
}

/// A row of a device: its key, and its columns.
pub fn entry(key: &Value, row: &Value) -> (String, BTreeMap<String, String>) {
    let columns = row.as_object().into_iter().flatten();
    let columns = columns.map(|(name, value)| (name.clone(), canonical(value)));
    (canonical(key), columns.collect())
}

/// A text that is equal for equal JSON values: members are sorted, and numbers have one form.
fn canonical(value: &Value) -> String {
    match value {
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(float)) if float.fract() == 0.0 && float.abs() < 9e15 => {
                format!("{float:.0}").replace("-0", "0")
            }
            (None, Some(float)) => format!("{float:e}"),
            (None, None) => number.to_string(),
        },
        Value::Array(items) => {
            let items = items.iter().map(canonical).collect::<Vec<_>>();
            format!("[{}]", items.join(","))
        }
        Value::Object(members) => {
            let mut members: Vec<String> = members
                .iter()
                .map(|(name, value)| format!("{}:{}", Value::from(name.as_str()), canonical(value)))
                .collect();
            members.sort();
            format!("{{{}}}", members.join(","))
        }
        other => other.to_string(),
    }
}

/// What differs between a device and the database, as text; `None` if nothing does.
pub fn compare(device: &Rows, database: &Rows) -> Option<String> {
    let missing: Vec<&String> = database.keys().filter(|key| !device.contains_key(*key)).collect();
    let extra: Vec<&String> = device.keys().filter(|key| !database.contains_key(*key)).collect();
    let shared = database
        .iter()
        .filter_map(|(key, row)| Some((key, row, device.get(key)?)));
    let different: Vec<_> = shared.filter(|(_, row, seen)| row != seen).collect();
    if missing.is_empty() && extra.is_empty() && different.is_empty() {
        return None;
    }
    let mut text = format!(
        "{} rows on the device, {} in the database; {} missing, {} extra, {} different",
        device.len(),
        database.len(),
        missing.len(),
        extra.len(),
        different.len()
    );
    for key in missing.iter().take(SHOWN) {
        write!(text, "\n    missing on the device: {key}").expect("a string takes any text");
    }
    for key in extra.iter().take(SHOWN) {
        write!(text, "\n    only on the device: {key}").expect("a string takes any text");
    }
    for (key, row, seen) in different.iter().take(SHOWN) {
        write!(text, "\n    different: {key}: {}", differences(seen, row)).expect("a string takes any text");
    }
    Some(text)
}

fn differences(device: &BTreeMap<String, String>, database: &BTreeMap<String, String>) -> String {
    let names = device
        .keys()
        .chain(database.keys().filter(|name| !device.contains_key(*name)));
    let short = |value: Option<&String>| match value {
        Some(text) if text.len() > 80 => {
            let start: String = text.chars().take(60).collect();
            format!("{start}… ({} bytes)", text.len())
        }
        Some(text) => text.clone(),
        None => "no such column".to_owned(),
    };
    let differences = names
        .filter(|name| device.get(*name) != database.get(*name))
        .map(|name| {
            let (seen, row) = (short(device.get(name)), short(database.get(name)));
            format!("{name} is {seen} on the device, {row} in the database")
        });
    differences.collect::<Vec<_>>().join("; ")
}

/// The report of a table or a connector that needs an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    pub state: String,
    pub cause: String,
    pub fix: String,
}

/// What was observed of a table.
#[derive(Debug, Clone, Default)]
pub struct TableState {
    pub name: String,
    /// The difference between the device and the database.
    pub difference: Option<String>,
    pub reported: Option<Reported>,
    /// Whether the device knows that the view lacks changes.
    pub stale: bool,
    /// Whether it was reported or copied, and is no longer.
    pub repaired: bool,
}

/// What was observed at the end of a round.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub tables: Vec<TableState>,
    /// The report of the connector, if it needs an operator.
    pub connector: Option<Reported>,
}

impl Observed {
    /// Whether every table is equal and nothing is reported.
    pub fn is_clean(&self) -> bool {
        let equal = |t: &TableState| t.difference.is_none() && t.reported.is_none() && !t.stale;
        self.connector.is_none() && self.tables.iter().all(equal)
    }
}

/// Result of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The device is equal to the database, and nothing was reported.
    Equal,
    /// The affected unit was reported or copied again, and is equal without a command.
    RepairedAutomatically,
    /// The affected unit is reported with an expected cause.
    Reported,
    /// Anything else.
    Failed,
}

/// The outcome of each change of a round, and what is wrong.
#[derive(Debug, Default)]
pub struct Judgement {
    pub outcomes: Vec<Outcome>,
    pub failures: Vec<String>,
}

/// Judges a round.
pub fn judge(operations: &[Operation], observed: &Observed) -> Judgement {
    let mut judgement = Judgement {
        outcomes: vec![Outcome::Equal; operations.len()],
        failures: Vec::new(),
    };
    if let Some(reported) = &observed.connector {
        let of_connector = operations.iter().map(|o| matches!(o.unit, Unit::All | Unit::Connector));
        let affected: Vec<bool> = of_connector.collect();
        let result = judge_report("the connector", reported, operations, &affected);
        judgement.add(&affected, result);
        return judgement;
    }
    for table in &observed.tables {
        let affected: Vec<bool> = operations.iter().map(|o| affects(o, &table.name)).collect();
        let oversized = operations
            .iter()
            .zip(&affected)
            .any(|(o, affected)| *affected && o.oversized);
        let result = match (&table.reported, &table.difference) {
            (Some(reported), _) => match judge_report(&table.name, reported, operations, &affected) {
                Ok(_) if !table.stale => Err(format!("{}: is reported, but its view is not stale", table.name)),
                result => result,
            },
            (None, difference) if table.stale && oversized && is_one_row(difference.as_deref()) => {
                Ok(Outcome::Reported)
            }
            (None, Some(difference)) => Err(format!("{}: wrong and not reported: {difference}", table.name)),
            (None, None) if table.stale => Err(format!("{}: its view is stale, but nothing is reported", table.name)),
            (None, None) if table.repaired => Ok(Outcome::RepairedAutomatically),
            (None, None) => Ok(Outcome::Equal),
        };
        judgement.add(&affected, result);
    }
    judgement
}

/// Whether a unit that has to be reported is not reported yet. Its rows may be equal for some time.
pub fn awaits_report(operations: &[Operation], observed: &Observed) -> bool {
    let is_reported = |operation: &Operation| {
        let mut tables = observed.tables.iter().filter(|table| affects(operation, &table.name));
        observed.connector.is_some() || tables.any(|table| table.reported.is_some())
    };
    let mut expected = operations
        .iter()
        .filter(|operation| !operation.causes.is_empty() && !operation.kind.is_report_optional());
    expected.any(|operation| !is_reported(operation))
}

/// Whether at most one row differs.
fn is_one_row(difference: Option<&str>) -> bool {
    let one = ["1 missing, 0 extra, 0 different", "0 missing, 0 extra, 1 different"];
    difference.is_none_or(|text| one.iter().any(|counts| text.contains(&format!("; {counts}"))))
}

fn affects(operation: &Operation, table: &str) -> bool {
    match &operation.unit {
        Unit::Table(name) => name == table,
        Unit::All | Unit::Connector => true,
    }
}

fn judge_report(
    unit: &str,
    reported: &Reported,
    operations: &[Operation],
    affected: &[bool],
) -> Result<Outcome, String> {
    let mut changes = operations.iter().zip(affected).filter(|(_, affected)| **affected);
    let expected = changes.any(|(o, _)| o.causes.iter().any(|cause| reported.cause.contains(cause)));
    if !expected {
        return Err(format!("{unit}: reported with an unexpected cause: {reported:?}"));
    }
    if command(&reported.fix).is_none() {
        return Err(format!("{unit}: the fix names no command: {reported:?}"));
    }
    Ok(Outcome::Reported)
}

impl Judgement {
    fn add(&mut self, affected: &[bool], result: Result<Outcome, String>) {
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(failure) => {
                self.failures.push(failure);
                Outcome::Failed
            }
        };
        for (at, _) in affected.iter().enumerate().filter(|(_, affected)| **affected) {
            self.outcomes[at] = self.outcomes[at].max(outcome);
        }
    }
}

/// The words of the trunkline command in a fix, without `trunkline`.
pub fn command(fix: &str) -> Option<Vec<String>> {
    let (_, rest) = fix.rsplit_once("trunkline ")?;
    let command = rest.split(['`', ';', ',']).next()?;
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    (words.first().map(String::as_str) == Some("connect")).then_some(words)
}

/// Checks that `doctor` names each reported unit with the same fix, and each table that is stale because of a dead letter
/// with a command. Returns these commands.
pub fn check_doctor(observed: &Observed, succeeded: bool, findings: &Value) -> Result<Vec<Vec<String>>, String> {
    let fix_of = |unit: &str| {
        let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        let mut bad = findings.as_array().into_iter().flatten();
        let found = bad.find(|finding| finding["level"] == "bad" && text(finding, "found").contains(unit))?;
        Some(text(found, "fix"))
    };
    let tables = observed.tables.iter().filter_map(|table| {
        let reported = table.reported.as_ref()?;
        Some((format!("table {} needs a snapshot", table.name), reported))
    });
    let connector = observed.connector.iter().map(|r| (format!("is {}", r.state), r));
    let reported: Vec<(String, &Reported)> = match observed.connector {
        Some(_) => connector.collect(),
        None => tables.collect(),
    };
    for (unit, reported) in &reported {
        if fix_of(unit).as_ref() != Some(&reported.fix) {
            return Err(format!(
                "doctor does not say that {unit} with fix {:?}: {findings:#}",
                reported.fix
            ));
        }
    }
    let mut commands = Vec::new();
    let is_dead_letter = |table: &&TableState| table.stale && table.reported.is_none() && observed.connector.is_none();
    for table in observed.tables.iter().filter(is_dead_letter) {
        let unit = format!("rows of table {} lack changes because of dead letters", table.name);
        let command = fix_of(&unit).and_then(|fix| command(&fix));
        commands.push(command.ok_or_else(|| format!("doctor does not say that {unit} with a command: {findings:#}"))?);
    }
    if succeeded && !(reported.is_empty() && commands.is_empty()) {
        return Err(format!("doctor succeeded: {findings:#}"));
    }
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::super::kinds::Kind;
    use super::super::operations::Declares;
    use super::*;
    use serde_json::json;

    fn rows(rows: &[Value]) -> Rows {
        rows.iter().map(|row| entry(&json!([row["id"]]), row)).collect()
    }

    fn database() -> Vec<Value> {
        vec![
            json!({"id": "1", "n": 1.0, "doc": {"a": 1, "b": [0.1, null]}}),
            json!({"id": "2", "n": null, "doc": "x"}),
        ]
    }

    #[test]
    fn equal_rows_are_equal_in_any_number_form_and_member_order() {
        let device = vec![
            json!({"id": "2", "doc": "x", "n": null}),
            json!({"id": "1", "doc": {"b": [1e-1, null], "a": 1}, "n": 1}),
        ];
        assert_eq!(compare(&rows(&device), &rows(&database())), None);
        assert_eq!(canonical(&json!(-0.0)), canonical(&json!(0)));
    }

    #[test]
    fn wrong_missing_and_extra_rows_and_columns_are_found() {
        type Mutation = (&'static str, fn(&mut Vec<Value>));
        let mutations: [Mutation; 7] = [
            ("1 different", |rows| rows[0]["n"] = json!(2)),
            ("1 different", |rows| rows[0]["doc"]["b"] = json!([null, 0.1])),
            ("1 different", |rows| rows[1]["n"] = json!("null")),
            ("1 different", |rows| rows[1]["more"] = Value::Null),
            ("1 missing", |rows| drop(rows.remove(0))),
            ("1 extra", |rows| rows.push(json!({"id": "3"}))),
            ("1 missing, 1 extra", |rows| rows[0]["id"] = json!(1)),
        ];
        for (expected, mutate) in mutations {
            let mut device = database();
            mutate(&mut device);
            let found = compare(&rows(&device), &rows(&database())).unwrap_or_default();
            assert!(found.contains(expected), "{expected}: {found}");
        }
    }

    fn operation(causes: &'static [&'static str]) -> Operation {
        Operation {
            kind: Kind::RenameTable,
            unit: Unit::Table("t0".to_owned()),
            statements: Vec::new(),
            causes,
            oversized: false,
            repair: Vec::new(),
            declares: Declares::Never,
        }
    }

    fn observed(difference: bool, cause: Option<&str>) -> Observed {
        let reported = cause.map(|cause| Reported {
            state: "NEEDS_SNAPSHOT".to_owned(),
            cause: cause.to_owned(),
            fix: "GRANT it; then trunkline connect snapshot db t0".to_owned(),
        });
        let affected = TableState {
            name: "t0".to_owned(),
            difference: difference.then(|| "it differs".to_owned()),
            stale: reported.is_some(),
            reported,
            repaired: false,
        };
        let other = TableState {
            name: "t1".to_owned(),
            ..TableState::default()
        };
        Observed {
            tables: vec![affected, other],
            connector: None,
        }
    }

    #[test]
    fn table_is_equal_or_reported_with_an_expected_cause() {
        let outcome = |causes, observed: &Observed| {
            let judgement = judge(&[operation(causes)], observed);
            (judgement.outcomes[0], judgement.failures.len())
        };
        let causes: &[&str] = &["was renamed"];
        assert_eq!(outcome(causes, &observed(false, None)), (Outcome::Equal, 0));
        assert_eq!(
            outcome(causes, &observed(true, Some("table t0 was renamed"))),
            (Outcome::Reported, 0)
        );
        assert_eq!(outcome(causes, &observed(true, None)), (Outcome::Failed, 1));
        assert_eq!(outcome(causes, &observed(true, Some("no idea"))), (Outcome::Failed, 1));
        assert_eq!(
            outcome(&[], &observed(false, Some("table t0 was renamed"))),
            (Outcome::Failed, 1)
        );
    }

    #[test]
    fn expected_report_is_awaited() {
        let operations = [operation(&["was renamed"])];
        assert!(awaits_report(&operations, &observed(false, None)));
        assert!(!awaits_report(
            &operations,
            &observed(true, Some("table t0 was renamed"))
        ));
        assert!(!awaits_report(&[operation(&[])], &observed(false, None)));
    }

    #[test]
    fn other_table_that_is_stopped_is_a_failure() {
        let mut observed = observed(false, None);
        observed.tables[1] = TableState {
            name: "t1".to_owned(),
            ..observed_report()
        };
        let judgement = judge(&[operation(&["was renamed"])], &observed);
        assert_eq!((judgement.outcomes[0], judgement.failures.len()), (Outcome::Equal, 1));
        observed.tables[1].reported = None;
        observed.tables[1].stale = true;
        assert_eq!(judge(&[], &observed).failures.len(), 1);
    }

    fn observed_report() -> TableState {
        observed(true, Some("table t0 was renamed")).tables.remove(0)
    }

    #[test]
    fn reported_table_whose_view_is_not_stale_is_a_failure() {
        let mut observed = observed(true, Some("table t0 was renamed"));
        observed.tables[0].stale = false;
        assert_eq!(judge(&[operation(&["was renamed"])], &observed).failures.len(), 1);
    }

    #[test]
    fn row_that_is_too_large_makes_only_itself_differ() {
        let oversized = Operation {
            oversized: true,
            ..operation(&[])
        };
        for (counts, failures) in [
            ("1 missing, 0 extra, 0 different", 0),
            ("1 missing, 0 extra, 1 different", 1),
        ] {
            let mut observed = observed(true, None);
            observed.tables[0].difference = Some(format!("3 rows on the device, 4 in the database; {counts}"));
            assert_eq!(
                judge(std::slice::from_ref(&oversized), &observed).failures.len(),
                1,
                "it is not stale"
            );
            observed.tables[0].stale = true;
            assert_eq!(
                judge(std::slice::from_ref(&oversized), &observed).failures.len(),
                failures
            );
        }
    }

    #[test]
    fn doctor_must_fail_and_name_the_table_and_the_fix() {
        let observed = observed(true, Some("table t0 was renamed"));
        let fix = observed.tables[0].reported.as_ref().unwrap().fix.clone();
        let finding = |found: &str, fix: &str| json!([{"level": "bad", "found": found, "fix": fix}]);
        let found = "connector db: table t0 needs a snapshot: table t0 was renamed";
        assert!(check_doctor(&observed, false, &finding(found, &fix)).is_ok());
        assert!(check_doctor(&observed, true, &finding(found, &fix)).is_err());
        assert!(check_doctor(&observed, false, &finding(found, "restart it")).is_err());
        assert!(check_doctor(&observed, false, &finding("table t1 needs a snapshot", &fix)).is_err());
    }

    #[test]
    fn doctor_must_fail_and_name_the_command_for_a_row_that_is_a_dead_letter() {
        let mut observed = observed(true, None);
        observed.tables[0].stale = true;
        let finding = |level: &str, fix: &str| {
            let found = "1 rows of table t0 lack changes because of dead letters in r.change.db.dlq";
            json!([{"level": level, "found": found, "fix": fix}])
        };
        let fix = "update the rows; or do so and then trunkline connect snapshot db t0";
        let commands = check_doctor(&observed, false, &finding("bad", fix)).unwrap();
        assert_eq!(commands, [["connect", "snapshot", "db", "t0"]]);
        assert!(check_doctor(&observed, true, &finding("bad", fix)).is_err());
        assert!(check_doctor(&observed, false, &finding("warn", fix)).is_err());
        assert!(check_doctor(&observed, false, &finding("bad", "look at it")).is_err());
    }

    #[test]
    fn command_is_found_in_a_fix() {
        let words = command("ALTER ROLE x BYPASSRLS; then trunkline connect snapshot db sales.t1").unwrap();
        assert_eq!(words, ["connect", "snapshot", "db", "sales.t1"]);
        let words = command("`trunkline connect resync db`; it takes a new snapshot").unwrap();
        assert_eq!(words, ["connect", "resync", "db"]);
        assert_eq!(command("drop the slot"), None);
    }
}
