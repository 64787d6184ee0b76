//! Random runs: random tables, transactions, changes of tables and publications, and faults, all generated from a seed. At
//! the end of each round, the device is equal to the database, or exactly the affected table is reported with an expected
//! cause, and is equal after the command that the report names.
//!
//! `tests/random-runs` runs new seeds for an hour, or a single seed again. docs/develop/testing.md describes the files.
#![cfg_attr(
    not(feature = "external"),
    allow(dead_code, reason = "only the generator and the oracle are tested without services")
)]

mod kinds;
mod operations;
mod oracle;
#[cfg(feature = "external")]
mod processes;
mod report;
mod rounds;
#[cfg(feature = "external")]
mod runner;
mod schema;
#[cfg(feature = "external")]
mod session;
mod values;
mod workload;

#[cfg(feature = "external")]
mod runs {
    use super::kinds::Kind;
    use super::processes::Backend;
    use super::report::Report;
    use super::rounds::Generator;
    use super::runner::{self, Services};
    use std::time::{Duration, Instant};

    /// Seeds of the test, and rounds of each.
    const SEEDS: [u64; 2] = [1, 2];
    const ROUNDS: usize = 8;

    /// Variables that `tests/random-runs` sets: seed, minutes and rounds; kinds of changes; backend; file for the report.
    const PLAN: &str = "TRUNKLINE_TEST_RANDOM_RUNS";
    const KINDS: &str = "TRUNKLINE_TEST_RANDOM_RUNS_KINDS";
    const BACKEND: &str = "TRUNKLINE_TEST_RANDOM_RUNS_BACKEND";
    const REPORT: &str = "TRUNKLINE_TEST_RANDOM_RUNS_REPORT";

    struct Plan {
        /// The seeds, and when the last run starts.
        seeds: Box<dyn Iterator<Item = u64>>,
        until: Instant,
        rounds: usize,
        kinds: Vec<Kind>,
    }

    impl Plan {
        fn read() -> Plan {
            let Some(plan) = service::config::env(PLAN) else {
                return Plan {
                    seeds: Box::new(SEEDS.into_iter()),
                    until: Instant::now() + Duration::from_secs(3600),
                    rounds: ROUNDS,
                    kinds: Vec::new(),
                };
            };
            let numbers: Vec<u64> = plan.split(',').map(|number| number.parse().expect("numbers")).collect();
            let [seed, minutes, rounds] = numbers[..] else {
                panic!("{PLAN} must be SEED,MINUTES,ROUNDS, not {plan}");
            };
            let names = service::config::env(KINDS).unwrap_or_default();
            let kind_of = |name: &str| {
                let mut all = Kind::ALL.iter().filter(|(_, known)| *known == name.trim());
                all.next()
                    .unwrap_or_else(|| panic!("no kind of change is called {name:?}; known: {:?}", Kind::ALL))
                    .0
            };
            Plan {
                // Without a time, the plan is a single seed.
                seeds: match minutes {
                    0 => Box::new(std::iter::once(seed)),
                    _ => Box::new(seed..),
                },
                until: Instant::now() + Duration::from_secs(60 * if minutes == 0 { 600 } else { minutes }),
                rounds: usize::try_from(rounds).expect("a number of rounds"),
                kinds: names.split(',').filter(|name| !name.is_empty()).map(kind_of).collect(),
            }
        }
    }

    #[test]
    fn devices_are_equal_or_the_table_is_reported_under_random_changes_and_faults() {
        let (plan, mut services, mut report) = (Plan::read(), Services::start(), Report::default());
        let backend = service::config::env(BACKEND).filter(|name| !name.is_empty());
        let backend =
            backend.map(|name| Backend::named(&name).unwrap_or_else(|| panic!("no backend is called {name}")));
        for seed in plan.seeds.take_while(|_| Instant::now() < plan.until) {
            let backend = backend.unwrap_or_else(|| Backend::of_seed(seed));
            eprintln!("seed {seed}, {} rounds, backend {}", plan.rounds, backend.name());
            let generator = Generator::new(seed, &format!("r{seed}"), &plan.kinds);
            let result = runner::run(&mut services, generator, backend, plan.rounds, &mut report);
            if let Err(failure) = &result {
                eprintln!(
                    "seed {seed} failed: {failure}\n  again: tests/random-runs --seed {seed} --rounds {} --backend {}",
                    plan.rounds,
                    backend.name()
                );
            }
            report.runs.push((seed, result.err()));
        }
        eprintln!("{report}");
        if let Some(file) = service::config::env(REPORT) {
            std::fs::write(format!("{file}.table"), report.to_string()).expect("write the report");
            std::fs::write(file, format!("{:#}\n", report.json())).expect("write the report");
        }
        let failed = report.failed_seeds();
        assert!(failed.is_empty(), "failed seeds: {failed:?}; see above");
    }
}
