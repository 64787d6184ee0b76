//! Counts outcomes by kind of change and fault, as a table and as JSON.

use super::oracle::Outcome;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// How often a kind had each outcome.
#[derive(Debug, Clone, Default)]
struct Counts {
    equal: usize,
    repaired_automatically: usize,
    reported_and_repaired: usize,
    known_failures: usize,
    failed: usize,
}

/// The outcomes of all runs.
#[derive(Debug, Default)]
pub struct Report {
    kinds: BTreeMap<String, Counts>,
    /// Runs by seed, with what failed.
    pub runs: Vec<(u64, Option<String>)>,
    pub rounds: usize,
    pub transactions: usize,
    /// Transactions that PostgreSQL rejected.
    pub rejected: usize,
}

impl Report {
    /// Counts an outcome.
    pub fn add(&mut self, kind: &str, outcome: Outcome, is_known: bool) {
        let counts = self.kinds.entry(kind.to_owned()).or_default();
        let count = match outcome {
            Outcome::Equal => &mut counts.equal,
            Outcome::RepairedAutomatically => &mut counts.repaired_automatically,
            Outcome::Reported => &mut counts.reported_and_repaired,
            Outcome::Failed if is_known => &mut counts.known_failures,
            Outcome::Failed => &mut counts.failed,
        };
        *count += 1;
    }

    /// The seeds of failed runs.
    pub fn failed_seeds(&self) -> Vec<u64> {
        let failed = self.runs.iter().filter(|(_, failure)| failure.is_some());
        failed.map(|(seed, _)| *seed).collect()
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let kinds = self.kinds.iter().map(|(kind, counts)| {
            json!({
                "kind": kind,
                "equal": counts.equal,
                "repaired_automatically": counts.repaired_automatically,
                "reported_and_repaired": counts.reported_and_repaired,
                "known_failures": counts.known_failures,
                "failed": counts.failed,
            })
        });
        let runs = self
            .runs
            .iter()
            .map(|(seed, failure)| json!({"seed": seed, "failure": failure}));
        json!({
            "runs": runs.collect::<Vec<_>>(),
            "rounds": self.rounds,
            "transactions": self.transactions,
            "rejected_transactions": self.rejected,
            "kinds": kinds.collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds = self.runs.iter().map(|(seed, _)| seed.to_string()).collect::<Vec<_>>();
        writeln!(
            f,
            "seeds {}: {} rounds, {} transactions ({} rejected by PostgreSQL)",
            seeds.join(", "),
            self.rounds,
            self.transactions,
            self.rejected
        )?;
        writeln!(
            f,
            "{:44} {:>6} {:>9} {:>9} {:>6} {:>7}",
            "change or fault", "equal", "automatic", "reported", "known", "failed"
        )?;
        for (kind, counts) in &self.kinds {
            writeln!(
                f,
                "{kind:44} {:>6} {:>9} {:>9} {:>6} {:>7}",
                counts.equal,
                counts.repaired_automatically,
                counts.reported_and_repaired,
                counts.known_failures,
                counts.failed
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted_by_kind() {
        let mut report = Report::default();
        for outcome in [Outcome::Equal, Outcome::Reported, Outcome::Reported, Outcome::Failed] {
            report.add("rename a table", outcome, false);
        }
        report.add("rename a table", Outcome::Failed, true);
        report.runs.push((7, Some("it is wrong".to_owned())));
        let expected = json!({
            "kind": "rename a table", "equal": 1, "repaired_automatically": 0, "reported_and_repaired": 2,
            "known_failures": 1, "failed": 1,
        });
        assert_eq!(report.json()["kinds"], json!([expected]));
        assert_eq!(report.failed_seeds(), [7]);
        let table = report.to_string();
        assert!(table.lines().any(|line| {
            line.split_whitespace()
                .eq(["rename", "a", "table", "1", "0", "2", "1", "1"])
        }));
    }
}
