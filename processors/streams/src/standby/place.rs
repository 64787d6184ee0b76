//! Which tasks a process keeps warm: those that it would get if other processes were lost.
//!
//! The group assigns by range over the threads in the order of their names, so what it will assign when some of them
//! are gone can be computed now. A store that is warm anywhere else would be of no use.
//!
//! Guarantees: pure; every process computes the same from the same members. Never: a task that the process has.

use crate::TaskId;
use std::collections::{BTreeMap, BTreeSet};

/// Losses at once that are provided for, at most: the number of cases grows with the power of it.
pub(crate) const LOSSES_MAX: usize = 3;
/// Beyond so many processes only single losses are provided for.
const PROCESSES_MAX: usize = 32;

/// A live process: its threads' names, as the group knows them.
pub(super) type Processes = BTreeMap<String, Vec<String>>;

/// A sub-topology's name and number of tasks.
pub(super) type Tasks = (std::sync::Arc<str>, i32);

/// The tasks that process `own` would get if up to `losses` of the others were lost.
pub(super) fn wanted(own: &str, processes: &Processes, tasks: &[Tasks], losses: usize) -> BTreeSet<TaskId> {
    let others: Vec<&str> = processes
        .keys()
        .map(String::as_str)
        .filter(|name| *name != own)
        .collect();
    let losses = losses.min(LOSSES_MAX).min(others.len());
    let losses = if others.len() > PROCESSES_MAX {
        losses.min(1)
    } else {
        losses
    };
    let mut wanted = BTreeSet::new();
    if processes.contains_key(own) {
        let mut lost = BTreeSet::new();
        lose(own, processes, tasks, &others, losses, &mut lost, &mut wanted);
        for (sub, partitions) in tasks {
            for partition in held(own, processes, &BTreeSet::new(), *partitions) {
                wanted.remove(&task(sub, partition));
            }
        }
    }
    wanted
}

/// Adds what `own` holds in every case in which more of `others` are lost beside those that are.
fn lose<'p>(
    own: &str,
    processes: &Processes,
    tasks: &[Tasks],
    others: &[&'p str],
    left: usize,
    lost: &mut BTreeSet<&'p str>,
    wanted: &mut BTreeSet<TaskId>,
) {
    if left == 0 {
        return;
    }
    for (index, other) in others.iter().enumerate() {
        lost.insert(other);
        for (sub, partitions) in tasks {
            wanted.extend(held(own, processes, lost, *partitions).map(|partition| task(sub, partition)));
        }
        let rest = others.get(index + 1..).unwrap_or_default();
        lose(own, processes, tasks, rest, left - 1, lost, wanted);
        lost.remove(other);
    }
}

fn task(sub: &std::sync::Arc<str>, partition: i32) -> TaskId {
    TaskId {
        subtopology: sub.clone(),
        partition,
    }
}

/// The partitions that `own` holds when these processes are lost: contiguous ranges in the order of the threads'
/// names, the first threads get one more.
fn held(own: &str, processes: &Processes, lost: &BTreeSet<&str>, partitions: i32) -> impl Iterator<Item = i32> {
    let mut threads: Vec<(&str, bool)> = processes
        .iter()
        .filter(|(process, _)| !lost.contains(process.as_str()))
        .flat_map(|(process, threads)| threads.iter().map(move |thread| (thread.as_str(), process == own)))
        .collect();
    threads.sort_unstable();
    let count = i32::try_from(threads.len()).unwrap_or(i32::MAX);
    let (each, extra) = (
        partitions.checked_div(count).unwrap_or(0),
        partitions.checked_rem(count).unwrap_or(0),
    );
    let mut held = Vec::new();
    let mut next = 0;
    for (n, (_, is_own)) in (0..).zip(threads) {
        let end = next + each + i32::from(n < extra);
        if is_own {
            held.extend(next..end);
        }
        next = end;
    }
    held.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processes(of: &[(&str, usize)]) -> Processes {
        of.iter()
            .map(|(name, threads)| {
                (
                    (*name).to_owned(),
                    (0..*threads).map(|n| format!("app-{name}-{n}")).collect(),
                )
            })
            .collect()
    }

    fn shown(own: &str, processes: &Processes, partitions: i32, losses: usize) -> String {
        let wanted = wanted(own, processes, &[("t".into(), partitions)], losses);
        let partitions: Vec<String> = wanted.iter().map(|task| task.partition.to_string()).collect();
        partitions.join(" ")
    }

    #[test]
    fn of_two_processes_each_keeps_all_that_the_other_has() {
        let two = processes(&[("a", 1), ("b", 1)]);
        assert_eq!(shown("a", &two, 6, 1), "3 4 5");
        assert_eq!(shown("b", &two, 6, 1), "0 1 2");
    }

    #[test]
    fn of_three_each_keeps_what_any_one_loss_would_give_it() {
        let three = processes(&[("a", 1), ("b", 1), ("c", 1)]);
        // Without b: a 0-5, c 6-11; without c: a 0-5, b 6-11; without a: b 0-5, c 6-11.
        assert_eq!(shown("a", &three, 12, 1), "4 5");
        assert_eq!(shown("b", &three, 12, 1), "0 1 2 3 8 9 10 11");
        assert_eq!(shown("c", &three, 12, 1), "6 7");
        assert_eq!(shown("a", &three, 12, 2), "4 5 6 7 8 9 10 11");
    }

    #[test]
    fn every_task_is_warm_at_the_process_that_gets_it_after_a_loss() {
        let all = processes(&[("a", 2), ("b", 1), ("c", 3), ("d", 1)]);
        for partitions in [1, 5, 16, 33] {
            for lost in all.keys() {
                let mut rest = all.clone();
                rest.remove(lost);
                for survivor in rest.keys() {
                    let after: BTreeSet<i32> = held(survivor, &rest, &BTreeSet::new(), partitions).collect();
                    let before: BTreeSet<i32> = held(survivor, &all, &BTreeSet::new(), partitions).collect();
                    let warm = wanted(survivor, &all, &[("t".into(), partitions)], 1);
                    for partition in after.difference(&before) {
                        assert!(
                            warm.contains(&task(&"t".into(), *partition)),
                            "{survivor} gets {partition} of {partitions} without {lost}"
                        );
                    }
                    assert!(before.iter().all(|p| !warm.contains(&task(&"t".into(), *p))));
                }
            }
        }
    }

    #[test]
    fn a_process_alone_or_unknown_to_the_group_keeps_nothing() {
        assert_eq!(shown("a", &processes(&[("a", 2)]), 8, 1), "");
        assert_eq!(shown("x", &processes(&[("a", 1), ("b", 1)]), 8, 1), "");
        assert_eq!(shown("a", &processes(&[("a", 1), ("b", 1)]), 8, 0), "");
    }
}
