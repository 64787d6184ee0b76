//! Generates a run from its seed: the schema, the rows before the first snapshot, and rounds of transactions, changes and
//! faults. Nothing depends on what the processes do, so a seed always results in the same steps.

use super::kinds::Kind;
use super::operations::{self, Declares, Operation, Unit};
use super::schema::{Schema, Table};
use super::workload;
use std::fmt;
use streams_test::simulation::Rng;

/// A process of the pipeline: the name of its node.
pub type Role = &'static str;

/// The processes.
pub const ROLES: [Role; 3] = ["connector", "processor", "edge"];

/// A fault that lasts from one step to a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Kill(Role),
    Postgres,
    Kafka,
}

impl Fault {
    /// Its name in the report.
    pub fn name(self) -> String {
        match self {
            Fault::Kill(role) => format!("kill -9 of the {role}"),
            Fault::Postgres => "restart of PostgreSQL".to_owned(),
            Fault::Kafka => "restart of Kafka".to_owned(),
        }
    }
}

/// What is executed.
#[derive(Debug, Clone)]
pub enum Step {
    /// Statements in one transaction. PostgreSQL may reject it, for example while a table lacks a replica identity.
    Transaction(Vec<String>),
    /// A statement of a change, which must succeed.
    Change(String),
    /// Begins a transaction that remains open, with these statements.
    Open(Vec<String>),
    /// Further statements of the open transaction.
    Continue(Vec<String>),
    /// Ends the open transaction.
    Close {
        commit: bool,
    },
    /// Polls the device this many times, so that the processes notice what happened.
    Poll(usize),
    Begin(Fault),
    End(Fault),
    /// Another session drops the slot.
    DropSlot,
    /// Stops all processes and starts them with this topology.
    Declare(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Step::Transaction(statements) => format!("transaction: {}", statements.join("; ")),
            Step::Change(statement) => format!("change: {statement}"),
            Step::Open(statements) => format!("open a transaction: {}", statements.join("; ")),
            Step::Continue(statements) => format!("in the open transaction: {}", statements.join("; ")),
            Step::Close { commit: true } => "commit the open transaction".to_owned(),
            Step::Close { commit: false } => "roll back the open transaction".to_owned(),
            Step::Poll(times) => format!("poll {times} times"),
            Step::Begin(fault) => format!("begin: {}", fault.name()),
            Step::End(fault) => format!("end: {}", fault.name()),
            Step::DropSlot => "drop the slot".to_owned(),
            Step::Declare(_) => "restart all processes with the changed topology".to_owned(),
        };
        match text.char_indices().nth(600) {
            Some((end, _)) => write!(f, "{}…", &text[..end]),
            None => f.write_str(&text),
        }
    }
}

/// Steps between two comparisons.
#[derive(Debug, Clone, Default)]
pub struct Round {
    pub steps: Vec<Step>,
    pub operations: Vec<Operation>,
    pub faults: Vec<Fault>,
    /// Whether a transaction is open during the changes.
    pub has_open_transaction: bool,
    /// Ends the open transaction after the repair, if it is still open then.
    pub close: Option<Step>,
}

/// Generates the rounds of a seed.
#[derive(Debug)]
pub struct Generator {
    rng: Rng,
    /// Decides about open transactions.
    open_rng: Rng,
    /// The tables after the last generated round.
    pub schema: Schema,
    /// Kinds of changes, in the order in which they are used.
    deck: Vec<Kind>,
    /// Faults, in the order in which they are used.
    faults: Vec<Fault>,
}

impl Generator {
    /// A generator of these kinds of changes; of all if there are none.
    pub fn new(seed: u64, name: &str, kinds: &[Kind]) -> Generator {
        let mut rng = Rng::of_seed(seed);
        let schema = Schema::random(name, &mut rng);
        let mut deck = match kinds {
            [] => Kind::ALL.iter().map(|(kind, _)| *kind).collect(),
            kinds => kinds.to_vec(),
        };
        rng.shuffle(&mut deck);
        let mut faults = ROLES.map(Fault::Kill).to_vec();
        faults.extend([Fault::Postgres, Fault::Kafka]);
        rng.shuffle(&mut faults);
        Generator {
            rng,
            open_rng: Rng::of_seed(!seed),
            schema,
            deck,
            faults,
        }
    }

    /// Transactions before the processes are started.
    pub fn rows_before_the_snapshot(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for table in &mut self.schema.tables {
            for _ in 0..8 {
                steps.push(Step::Transaction(vec![workload::insert(table, &mut self.rng)]));
            }
        }
        steps.extend((0..6).map(|_| self.transaction()));
        steps
    }

    /// The next round.
    pub fn round(&mut self) -> Round {
        let mut round = Round::default();
        let fault = self.rng.chance(0.6).then(|| self.next_fault());
        self.work(&mut round, 2);
        let at = self.rng.below(2);
        if at == 0 {
            round.steps.extend(fault.map(Step::Begin));
        }
        let before_changes = round.steps.len();
        self.changes(&mut round, fault.filter(|_| at == 0));
        let first = self.open_transaction(&round);
        round.has_open_transaction = first.is_some();
        first
            .into_iter()
            .for_each(|step| round.steps.insert(before_changes, step));
        if at == 1 {
            round.steps.extend(fault.map(Step::Begin));
            self.work(&mut round, 1);
        }
        round.steps.extend(fault.map(Step::End));
        round.faults.extend(fault);
        self.work(&mut round, 3);
        self.close_transaction(&mut round);
        round
    }

    /// Sometimes a transaction over tables whose changes in this round do not wait for it.
    fn open_transaction(&mut self, round: &Round) -> Option<Step> {
        if !self.open_rng.chance(0.4) {
            return None;
        }
        let statements = self.open_statements(round);
        (!statements.is_empty()).then_some(Step::Open(statements))
    }

    fn open_statements(&mut self, round: &Round) -> Vec<String> {
        let conflicts = |table: &Table| {
            let mut changes = round.operations.iter();
            changes.any(|o| o.unit == Unit::Table(table.name()) && !o.kind.permits_open_transactions())
        };
        let tables = self.schema.tables.iter_mut();
        let tables = tables.filter(|table| table.readable && !conflicts(table));
        tables
            .flat_map(|table| workload::open_transaction(table, &mut self.open_rng))
            .collect()
    }

    /// Ends the open transaction before the comparison, or after the repair.
    fn close_transaction(&mut self, round: &mut Round) {
        if !round.has_open_transaction {
            return;
        }
        if self.open_rng.chance(0.5) {
            let statements = self.open_statements(round);
            round.steps.push(Step::Continue(statements));
        }
        let close = Step::Close {
            commit: self.open_rng.chance(0.7),
        };
        if self.open_rng.chance(0.4) {
            round.steps.push(close);
        } else {
            round.close = Some(close);
        }
    }

    /// The statements with which an operator prepares the repair of a round, after which all tables can be read.
    pub fn repair(&mut self, round: &Round) -> Vec<Step> {
        let statements = round.operations.iter().flat_map(|operation| &operation.repair);
        let mut steps: Vec<Step> = statements.map(|statement| Step::Change(statement.clone())).collect();
        for table in &mut self.schema.tables {
            table.readable = true;
        }
        if round.operations.iter().any(|o| o.declares == Declares::WithRepair) {
            steps.push(Step::Declare(self.schema.topology()));
        }
        steps
    }

    /// Transactions while tables are copied again, and sometimes a kill of the connector. A command whose answer the
    /// operator has received survives it.
    pub fn during_repair(&mut self) -> Vec<Step> {
        let mut steps: Vec<Step> = (0..1 + self.rng.below(3)).map(|_| self.transaction()).collect();
        if self.rng.chance(0.25) {
            let connector = Fault::Kill("connector");
            steps.insert(0, Step::Begin(connector));
            steps.push(Step::End(connector));
        }
        steps
    }

    fn next_fault(&mut self) -> Fault {
        self.faults.rotate_left(1);
        self.faults.last().copied().expect("there are faults")
    }

    fn transaction(&mut self) -> Step {
        Step::Transaction(workload::transaction(&mut self.schema.tables, &mut self.rng))
    }

    /// Adds transactions, with pauses in which the processes follow.
    fn work(&mut self, round: &mut Round, least: usize) {
        for _ in 0..least + self.rng.below(3) {
            let step = self.transaction();
            round.steps.push(step);
            if self.rng.chance(0.15) {
                round.steps.push(Step::Poll(2));
            }
        }
    }

    /// Adds one or two changes of different tables, while this fault lasts.
    fn changes(&mut self, round: &mut Round, fault: Option<Fault>) {
        let mut free: Vec<usize> = (0..self.schema.tables.len()).collect();
        self.rng.shuffle(&mut free);
        let count = 1 + self.rng.below(2);
        for number in 0..count {
            let Some((kind, table)) = self.next_kind(&free, number == 0) else {
                return;
            };
            free.retain(|at| *at != table);
            let operation = operations::apply(kind, &mut self.schema, table, &mut self.rng);
            self.change(round, &operation, fault);
            round.operations.push(operation);
            if kind.is_global() {
                return;
            }
        }
    }

    /// The next kind of the deck that can be applied to one of these tables. It moves to the end of the deck.
    fn next_kind(&mut self, free: &[usize], first: bool) -> Option<(Kind, usize)> {
        let superuser = self.schema.superuser;
        let table_of = |kind: Kind| {
            let mut tables = free.iter().copied();
            tables.find(|at| kind.applies(&self.schema.tables[*at], superuser))
        };
        let allowed = |kind: &Kind| first || !(kind.is_global() || kind.declares());
        let mut kinds = self.deck.iter().copied().enumerate().filter(|(_, kind)| allowed(kind));
        let (at, kind, table) = kinds.find_map(|(at, kind)| Some((at, kind, table_of(kind)?)))?;
        let used = self.deck.remove(at);
        self.deck.push(used);
        Some((kind, table))
    }

    fn change(&mut self, round: &mut Round, operation: &Operation, fault: Option<Fault>) {
        for statement in &operation.statements {
            round.steps.push(Step::Change(statement.clone()));
            if self.rng.chance(0.2) {
                let step = self.transaction();
                round.steps.push(step);
            }
            if self.rng.chance(0.2) {
                round.steps.push(Step::Poll(2));
            }
        }
        if operation.kind == Kind::DropSlot {
            // A slot can be dropped only while nothing uses it.
            let connector = Fault::Kill("connector");
            let runs = fault != Some(connector);
            round.steps.extend(runs.then_some(Step::Begin(connector)));
            round.steps.push(Step::DropSlot);
            let step = self.transaction();
            round.steps.push(step);
            round.steps.extend(runs.then_some(Step::End(connector)));
        }
        if operation.declares == Declares::WithChange {
            round.steps.push(Step::Declare(self.schema.topology()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(seed: u64) -> Vec<String> {
        let mut generator = Generator::new(seed, "r", &[]);
        let mut all = generator.schema.create("role");
        all.push(generator.schema.topology());
        all.extend(generator.rows_before_the_snapshot().iter().map(Step::to_string));
        for _ in 0..40 {
            let round = generator.round();
            all.extend(round.steps.iter().map(Step::to_string));
            all.extend(generator.repair(&round).iter().map(Step::to_string));
            all.extend(generator.during_repair().iter().map(Step::to_string));
        }
        all
    }

    #[test]
    fn seed_determines_the_steps() {
        for seed in 0..20 {
            assert_eq!(steps(seed), steps(seed), "seed {seed}");
        }
        assert_ne!(steps(1), steps(2));
    }

    #[test]
    fn every_kind_of_change_and_fault_is_generated() {
        let (mut kinds, mut faults) = (Vec::new(), Vec::new());
        for seed in 0..10 {
            let mut generator = Generator::new(seed, "r", &[]);
            for _ in 0..40 {
                let round = generator.round();
                kinds.extend(round.operations.iter().map(|operation| operation.kind));
                faults.extend(round.faults.iter().map(|fault| fault.name()));
                generator.repair(&round);
            }
        }
        for (kind, name) in Kind::ALL {
            assert!(kinds.contains(&kind), "{name} is never generated");
        }
        faults.sort();
        faults.dedup();
        assert_eq!(faults.len(), 5, "{faults:?}");
    }

    #[test]
    fn transactions_remain_open_during_changes_and_repairs() {
        let (mut opened, mut until_repair, mut committed) = (0, 0, 0);
        for seed in 0..10 {
            let mut generator = Generator::new(seed, "r", &[]);
            for _ in 0..20 {
                let round = generator.round();
                let all = round.steps.iter().chain(&round.close);
                let closes: Vec<&Step> = all.filter(|step| matches!(step, Step::Close { .. })).collect();
                assert_eq!(closes.len(), usize::from(round.has_open_transaction), "seed {seed}");
                opened += usize::from(round.has_open_transaction);
                until_repair += usize::from(round.close.is_some());
                committed += closes
                    .iter()
                    .filter(|s| matches!(s, Step::Close { commit: true }))
                    .count();
                generator.repair(&round);
            }
        }
        let remaining = [opened - until_repair, opened - committed, until_repair, committed];
        assert!(remaining.iter().all(|count| *count > 5), "{opened}: {remaining:?}");
    }

    #[test]
    fn topologies_are_valid() {
        for seed in 0..50 {
            let mut generator = Generator::new(seed, "r", &[]);
            for _ in 0..10 {
                let round = generator.round();
                generator.repair(&round);
            }
            let text = generator.schema.topology();
            let outcome = topology::check("topology.toml", &text, &topology::Embedded(&[]));
            assert!(outcome.topology.is_some(), "{text}\n{}", outcome.report.render(false));
        }
    }
}
