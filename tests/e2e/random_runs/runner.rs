//! Executes a generated run: a database, one process per role, and a device that polls. After each round, the device is
//! compared with the database, and what is reported is repaired with the reported command.

use super::operations::Operation;
use super::oracle::{self, Judgement, Observed, Outcome, Reported, Rows, TableState};
use super::processes::{Backend, Processes};
use super::report::Report;
use super::rounds::{Fault, Generator, ROLES, Round, Step};
use super::schema::{CONNECTOR, PUBLICATION, Schema, Table};
use super::session::Session;
use crate::pipeline::operators::{OPERATOR, Operators, VIEWER};
use crate::postgres::harness::Database;
use crate::support::{Broker, Phone, Polled, Postgres, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Maximum time until every table is equal or reported.
const LIMIT: Duration = Duration::from_secs(90);
/// How long that must remain so. The connector compares its tables every second.
const STEADY: Duration = Duration::from_millis(2_500);
/// How long a table that has to be reported may be equal and not reported, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Maximum time until a command of an operator is accepted, for example while a process starts.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Kinds of changes whose failures are known defects, with the reason. They are counted separately.
const KNOWN_FAILURES: [(&str, &str); 0] = [];

/// PostgreSQL and Kafka of all runs.
pub struct Services {
    postgres: Postgres,
    /// Started by the first run on Kafka.
    broker: Option<Broker>,
    kafka_is_down: bool,
}

impl Services {
    /// Starts PostgreSQL.
    pub fn start() -> Services {
        Services {
            postgres: Postgres::start(),
            broker: None,
            kafka_is_down: false,
        }
    }

    fn restart_kafka(&mut self) {
        let is_down = std::mem::take(&mut self.kafka_is_down);
        if let Some(broker) = self.broker.as_mut().filter(|_| is_down) {
            broker.restart();
        }
    }
}

/// A run, its processes and its device.
pub struct Run<'s> {
    services: &'s mut Services,
    /// The transaction that remains open.
    open: Option<Session>,
    // The processes end before the database is dropped.
    processes: Processes,
    database: Database,
    operators: Operators,
    phone: Phone,
    client: reqwest::blocking::Client,
    is_on_kafka: bool,
    /// The executed steps.
    log: Vec<String>,
    transactions: usize,
    rejected: usize,
}

/// Executes a run. Returns what failed, with the executed steps.
pub fn run(
    services: &mut Services,
    mut generator: Generator,
    backend: Backend,
    rounds: usize,
    report: &mut Report,
) -> Result<(), String> {
    services.restart_kafka();
    let mut run = Run::new(services, &generator.schema, backend);
    let result = run.execute(&mut generator, rounds, report);
    report.transactions += run.transactions;
    report.rejected += run.rejected;
    result.map_err(|failure| format!("{failure}\n  steps:\n    {}", run.log.join("\n    ")))
}

impl<'s> Run<'s> {
    /// Creates the database and configures the processes, without starting them.
    fn new(services: &'s mut Services, schema: &Schema, backend: Backend) -> Run<'s> {
        let database = Database::at(&services.postgres.url());
        let role = format!("reader_{}", database.name);
        let statements = schema.create(&role);
        for statement in &statements {
            database.sql(statement);
        }
        let url = match schema.superuser {
            true => database.url.clone(),
            false => database.url.replace("postgres@", &format!("{role}@")),
        };
        let connector = format!("url = \"{url}\"\npublication = \"{PUBLICATION}\"\nheartbeat_seconds = 1\n");
        let brokers =
            (backend == Backend::Kafka).then(|| services.broker.get_or_insert_with(Broker::start).bootstrap());
        let topology = schema.topology();
        let processes = Processes::new(&topology, brokers.as_deref(), &connector);
        let operators = processes.operators(&topology, brokers.as_deref());
        Run {
            open: None,
            processes,
            database,
            operators,
            phone: Phone::new("phone", ""),
            client: reqwest::blocking::Client::new(),
            is_on_kafka: backend == Backend::Kafka,
            log: statements,
            services,
            transactions: 0,
            rejected: 0,
        }
    }

    fn execute(&mut self, generator: &mut Generator, rounds: usize, report: &mut Report) -> Result<(), String> {
        self.steps(&generator.rows_before_the_snapshot())?;
        ROLES.iter().for_each(|role| self.processes.start(role));
        self.phone = Phone::new("phone", &self.processes.token());
        self.settle_clean(&generator.schema, "after the start")?;
        for number in 1..=rounds {
            self.log.push(format!("-- round {number}"));
            let (round, began) = (generator.round(), Instant::now());
            self.round(generator, &round, report)?;
            let changes = round
                .operations
                .iter()
                .map(|operation| operation.kind.name().to_owned());
            let all: Vec<String> = changes.chain(round.faults.iter().map(|fault| fault.name())).collect();
            eprintln!("  round {number}: {} ({:.0?})", all.join(", "), began.elapsed());
            report.rounds += 1;
        }
        self.compare_new_device(&generator.schema)
    }

    fn round(&mut self, generator: &mut Generator, round: &Round, report: &mut Report) -> Result<(), String> {
        let result = self.change_and_repair(generator, round);
        let (outcomes, failure) = match result {
            Ok(outcomes) => (outcomes, None),
            Err(failure) => (vec![Outcome::Failed; round.operations.len()], Some(failure)),
        };
        let mut all_known = !round.operations.is_empty();
        for (operation, outcome) in round.operations.iter().zip(&outcomes) {
            let name = operation.kind.name();
            let is_known = KNOWN_FAILURES.iter().any(|(kind, _)| *kind == name);
            all_known &= is_known;
            report.add(name, *outcome, is_known);
        }
        for fault in &round.faults {
            let outcome = if failure.is_some() {
                Outcome::Failed
            } else {
                Outcome::Equal
            };
            report.add(&fault.name(), outcome, all_known);
        }
        if round.has_open_transaction {
            let outcome = if failure.is_some() {
                Outcome::Failed
            } else {
                Outcome::Equal
            };
            report.add("transaction open during the changes", outcome, all_known);
        }
        match failure {
            Some(failure) if !all_known => Err(failure),
            Some(failure) => {
                eprintln!("known failure: {failure}");
                let resync = ["connect", "resync", CONNECTOR].map(str::to_owned);
                self.command(&resync)?;
                self.settle_clean(&generator.schema, "after a resync")
            }
            None => Ok(()),
        }
    }

    fn change_and_repair(&mut self, generator: &mut Generator, round: &Round) -> Result<Vec<Outcome>, String> {
        self.steps(&round.steps)?;
        let observed = self.settle(&generator.schema, &round.operations)?;
        let Judgement { outcomes, failures } = oracle::judge(&round.operations, &observed);
        let (succeeded, findings) = self.operators.doctor();
        let named = oracle::check_doctor(&observed, succeeded, &findings);
        let (prepared, during) = (generator.repair(round), generator.during_repair());
        if !failures.is_empty() {
            return Err(failures.join("\n  "));
        }
        let of_dead_letters = named?;
        self.steps(&prepared)?;
        let reported = observed.tables.iter().filter_map(|table| table.reported.as_ref());
        let reported: Vec<&Reported> = match &observed.connector {
            Some(connector) => vec![connector],
            None => reported.collect(),
        };
        for report in reported {
            self.log.push(format!("reported: {}: {}", report.cause, report.fix));
            let words = oracle::command(&report.fix).ok_or_else(|| format!("no command in {:?}", report.fix))?;
            self.command(&words)?;
        }
        for words in of_dead_letters {
            self.command(&words)?;
        }
        self.steps(&during)?;
        self.steps(round.close.as_slice())?;
        self.settle_clean(&generator.schema, "after the repair")?;
        Ok(outcomes)
    }

    fn steps(&mut self, steps: &[Step]) -> Result<(), String> {
        steps.iter().try_for_each(|step| self.step(step))
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        self.log.push(step.to_string());
        match step {
            Step::Transaction(statements) => self.transaction(&statements.join("; ")),
            Step::Change(statement) => {
                let changed = self.database.try_sql(statement);
                changed.map_err(|error| format!("PostgreSQL rejected a change: {statement}: {error:?}"))?;
            }
            Step::Open(statements) => {
                let session = Session::open(&self.database)?;
                let began = session.run("BEGIN; SET lock_timeout = '1s'");
                began.map_err(|reason| format!("cannot begin a transaction: {reason}"))?;
                self.open = Some(session);
                self.in_open_transaction(statements);
            }
            Step::Continue(statements) => self.in_open_transaction(statements),
            Step::Close { commit } => {
                let statement = if *commit { "COMMIT" } else { "ROLLBACK" };
                self.in_open_transaction(&[statement.to_owned()]);
                self.open = None;
            }
            Step::Poll(times) => (0..*times).for_each(|_| self.poll()),
            Step::Begin(Fault::Kill(role)) => self.processes.kill(role),
            Step::Begin(Fault::Postgres) => {
                self.services.postgres.kill();
                self.services.postgres.restart();
            }
            Step::Begin(Fault::Kafka) => {
                match &mut self.services.broker {
                    Some(broker) if self.is_on_kafka => {
                        broker.kill();
                        self.services.kafka_is_down = true;
                    }
                    // The embedded log ends with its process.
                    _ => self.processes.kill("connector"),
                }
            }
            Step::End(Fault::Kill(role)) => self.processes.start(role),
            Step::End(Fault::Postgres) => {}
            Step::End(Fault::Kafka) => {
                self.services.restart_kafka();
                self.processes.start("connector");
            }
            Step::DropSlot => self.drop_slot(),
            Step::Declare(topology) => {
                ROLES.iter().for_each(|role| self.processes.kill(role));
                self.services.restart_kafka();
                self.processes.declare(topology);
                self.operators.declare(topology);
                ROLES.iter().for_each(|role| self.processes.start(role));
            }
        }
        Ok(())
    }

    fn transaction(&mut self, statements: &str) {
        self.transactions += 1;
        // The open transaction may have locked a row.
        let statements = format!("SET lock_timeout = '1s'; {statements}");
        if let Err(error) = self.database.try_sql(&statements) {
            self.rejected += 1;
            let reason = error
                .as_db_error()
                .map_or_else(|| error.to_string(), ToString::to_string);
            self.log.push(format!("  rejected by PostgreSQL: {reason}"));
        }
    }

    /// Executes statements in the open transaction. It is aborted by the first one that fails, or ends with the server.
    fn in_open_transaction(&mut self, statements: &[String]) {
        let Some(session) = &self.open else { return };
        for statement in statements {
            if let Err(reason) = session.run(statement) {
                self.log.push(format!("  the open transaction is aborted: {reason}"));
                return;
            }
        }
    }

    fn drop_slot(&self) {
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                    WHERE database = current_database() AND NOT active";
        wait_for("an inactive slot", LIMIT, || {
            let dropped = self.database.try_sql(drop).ok()?;
            (!dropped.is_empty()).then_some(())
        });
    }

    fn poll(&mut self) {
        let edge = self.processes.edge();
        if self.phone.poll(&edge, 1) == Polled::Later {
            std::thread::park_timeout(Duration::from_millis(200));
        }
    }

    /// Executes a command that a report names. It is repeated while processes start.
    fn command(&mut self, words: &[String]) -> Result<(), String> {
        self.log.push(format!("command: trunkline {}", words.join(" ")));
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        if words.contains(&"resync") {
            words.push("--yes");
        }
        // Earlier runs have announced their processes on the same brokers.
        let admin = self.processes.admin();
        words.extend(["--admin", &admin]);
        let end = Instant::now() + COMMAND_LIMIT;
        loop {
            let out = self.operators.run(OPERATOR, &words);
            if out.status.success() {
                return Ok(());
            }
            if Instant::now() > end {
                let (out, error) = (
                    String::from_utf8_lossy(&out.stdout),
                    String::from_utf8_lossy(&out.stderr),
                );
                return Err(format!("trunkline {} failed: {out}{error}", words.join(" ")));
            }
            self.poll();
        }
    }

    /// Waits until every table is equal and nothing is reported.
    fn settle_clean(&mut self, schema: &Schema, when: &str) -> Result<(), String> {
        let observed = self.settle(schema, &[])?;
        if observed.is_clean() {
            return Ok(());
        }
        let failures = oracle::judge(&[], &observed).failures;
        Err(format!("{when}: {}", failures.join("\n  ")))
    }

    /// Follows until every table is as expected after these changes, equal or reported, and remains so. Returns what is
    /// observed then, or after a limit.
    fn settle(&mut self, schema: &Schema, operations: &[Operation]) -> Result<Observed, String> {
        let (end, mut since, mut seen) = (Instant::now() + LIMIT, None, BTreeSet::new());
        loop {
            self.poll();
            for role in ROLES {
                if let Some((status, log)) = self.processes.ended(role) {
                    return Err(format!("the {role} ended by itself with {status}: {log}"));
                }
            }
            let is_late = Instant::now() > end;
            let Some((observed, is_stable)) = self.observe(schema, &mut seen) else {
                if is_late {
                    return Err("the connector does not answer".to_owned());
                }
                continue;
            };
            if is_late {
                return Ok(observed);
            }
            let is_settled = is_stable && oracle::judge(operations, &observed).failures.is_empty();
            since = is_settled.then(|| since.unwrap_or_else(Instant::now));
            let required = match oracle::awaits_report(operations, &observed) {
                true => PATIENCE,
                false => STEADY,
            };
            if since.is_some_and(|since| since.elapsed() >= required) {
                return Ok(observed);
            }
        }
    }

    /// The state of all tables, and whether the connector and its tables are in states that do not end by themselves.
    fn observe(&mut self, schema: &Schema, seen: &mut BTreeSet<String>) -> Option<(Observed, bool)> {
        let report = self.status()?;
        let state = report["state"].as_str()?;
        let mut is_stable = matches!(state, "RUNNING" | "NEEDS_RESYNC" | "FAILED" | "STOPPED");
        let reported = |of: &Value| Reported {
            state: text(of, "state"),
            cause: text(of, "cause"),
            fix: text(of, "fix"),
        };
        let mut observed = Observed {
            tables: Vec::new(),
            connector: (state != "RUNNING").then(|| reported(&report)),
        };
        for table in &schema.tables {
            let name = table.name();
            let found = report["tables"]
                .as_array()?
                .iter()
                .find(|found| found["table"] == name.as_str());
            let table_state = found.map_or_else(String::new, |found| text(found, "state"));
            if table_state != "RUNNING" {
                seen.insert(name.clone());
            }
            is_stable &= table_state != "SNAPSHOTTING";
            observed.tables.push(TableState {
                difference: if is_stable {
                    self.difference(table)
                } else {
                    Some("not compared".to_owned())
                },
                reported: found.filter(|_| table_state == "NEEDS_SNAPSHOT").map(reported),
                stale: self.phone.stale.contains(&table.short),
                repaired: table_state == "RUNNING" && seen.contains(&name),
                name,
            });
        }
        Some((observed, is_stable))
    }

    /// The report of the connector, from its process.
    fn status(&self) -> Option<Value> {
        let url = format!("{}/connectors?expand=status", self.processes.admin());
        let answer: Value = self.client.get(url).bearer_auth(VIEWER).send().ok()?.json().ok()?;
        let report = &answer[CONNECTOR]["status"]["trunkline"];
        report.is_object().then(|| report.clone())
    }

    fn difference(&self, table: &Table) -> Option<String> {
        match self.rows(table) {
            Ok(rows) => oracle::compare(&rows_of(&self.phone, table), &rows),
            Err(reason) => Some(reason),
        }
    }

    /// The rows of a table in the database.
    fn rows(&self, table: &Table) -> Result<Rows, String> {
        if !table.readable {
            return Err("the table cannot be read as declared".to_owned());
        }
        match self.database.try_sql(&oracle::query(table)) {
            Ok(result) => Ok(oracle::rows_of_query(table, &result)),
            Err(error) => Err(format!("the table cannot be read: {error:?}")),
        }
    }

    /// A device without a cursor receives the same rows.
    fn compare_new_device(&mut self, schema: &Schema) -> Result<(), String> {
        let edge = self.processes.edge();
        let mut phone = Phone::new("another", &self.processes.token());
        let end = Instant::now() + LIMIT;
        loop {
            let polled = phone.poll(&edge, 1);
            let differences = schema.tables.iter().map(|table| {
                let rows = self.rows(table)?;
                oracle::compare(&rows_of(&phone, table), &rows).map_or(Ok(()), Err)
            });
            match differences.collect::<Result<(), String>>() {
                Ok(()) => return Ok(()),
                Err(difference) if Instant::now() > end => {
                    return Err(format!("a new device differs: {difference}"));
                }
                Err(_) if polled == Polled::Later => std::thread::park_timeout(Duration::from_millis(200)),
                Err(_) => {}
            }
        }
    }
}

/// The rows of a table on a device.
fn rows_of(phone: &Phone, table: &Table) -> Rows {
    let rows = phone.rows.iter().filter(|((_, view, _), _)| *view == table.short);
    let rows = rows.map(|((.., key), row)| {
        let key: Value = serde_json::from_str(key).expect("a key is JSON");
        oracle::entry(&key, row)
    });
    rows.collect()
}

fn text(of: &Value, name: &str) -> String {
    of[name].as_str().unwrap_or_default().to_owned()
}
