//! Determines the tasks of which a process keeps standbys: those that it would be assigned if other processes failed.
//!
//! The group assigns ranges to the threads in the order of their names, so the assignment after a failure can be
//! computed in advance. A standby on any other process would never be used. Every process computes the same placement
//! from the same members, and no process keeps a standby of a task that it runs.

use crate::api::context::TaskId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Maximum number of simultaneous failures, because the number of cases grows exponentially with it.
const LOSSES_MAX: usize = 3;
/// With more processes than this, only single failures are considered.
const PROCESSES_MAX: usize = 32;

/// The live processes, each with its threads' names in the group.
pub(super) type Processes = BTreeMap<String, Vec<String>>;

/// A sub-topology and its number of tasks.
pub(super) struct TaskCount {
    pub subtopology: Arc<str>,
    pub partitions: i32,
}

/// The tasks that would be assigned to the process `own` if up to `losses` of the other processes failed.
pub(super) fn wanted(own: &str, processes: &Processes, tasks: &[TaskCount], losses: usize) -> BTreeSet<TaskId> {
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
        let group = Group { own, processes, tasks };
        group.add_after_losses(&others, losses, &mut BTreeSet::new(), &mut wanted);
        for task in group.assigned(&BTreeSet::new()) {
            wanted.remove(&task);
        }
    }
    wanted
}

struct Group<'g> {
    own: &'g str,
    processes: &'g Processes,
    tasks: &'g [TaskCount],
}

impl<'g> Group<'g> {
    /// Adds the tasks that `own` is assigned in each case in which up to `left` further processes of `others` fail.
    fn add_after_losses(
        &self,
        others: &[&'g str],
        left: usize,
        lost: &mut BTreeSet<&'g str>,
        wanted: &mut BTreeSet<TaskId>,
    ) {
        if left == 0 {
            return;
        }
        for (index, other) in others.iter().enumerate() {
            lost.insert(other);
            wanted.extend(self.assigned(lost));
            let rest = others.get(index + 1..).unwrap_or_default();
            self.add_after_losses(rest, left - 1, lost, wanted);
            lost.remove(other);
        }
    }

    /// The tasks that `own` is assigned if these processes have failed.
    fn assigned(&self, lost: &BTreeSet<&str>) -> Vec<TaskId> {
        let tasks = self.tasks.iter().flat_map(|count| {
            let partitions = assigned_partitions(self.own, self.processes, lost, count.partitions);
            partitions.into_iter().map(|partition| TaskId {
                subtopology: count.subtopology.clone(),
                partition,
            })
        });
        tasks.collect()
    }
}

/// The partitions that the range assignor assigns to `own` if these processes have failed: contiguous ranges in the
/// order of the threads' names, where the first threads get one partition more.
fn assigned_partitions(own: &str, processes: &Processes, lost: &BTreeSet<&str>, partitions: i32) -> Vec<i32> {
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
    let mut assigned = Vec::new();
    let mut next = 0;
    for (n, (_, is_own)) in (0..).zip(threads) {
        let end = next + each + i32::from(n < extra);
        if is_own {
            assigned.extend(next..end);
        }
        next = end;
    }
    assigned
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

    fn counts(partitions: i32) -> [TaskCount; 1] {
        [TaskCount {
            subtopology: "t".into(),
            partitions,
        }]
    }

    fn assigned(own: &str, processes: &Processes, partitions: i32) -> BTreeSet<i32> {
        let assigned = assigned_partitions(own, processes, &BTreeSet::new(), partitions);
        assigned.into_iter().collect()
    }

    fn task(partition: i32) -> TaskId {
        TaskId {
            subtopology: "t".into(),
            partition,
        }
    }

    fn shown(own: &str, processes: &Processes, partitions: i32, losses: usize) -> String {
        let wanted = wanted(own, processes, &counts(partitions), losses);
        let partitions: Vec<String> = wanted.iter().map(|task| task.partition.to_string()).collect();
        partitions.join(" ")
    }

    #[test]
    fn two_processes_keep_each_others_tasks() {
        let two = processes(&[("a", 1), ("b", 1)]);
        assert_eq!(shown("a", &two, 6, 1), "3 4 5");
        assert_eq!(shown("b", &two, 6, 1), "0 1 2");
    }

    #[test]
    fn three_processes_cover_each_single_loss() {
        let three = processes(&[("a", 1), ("b", 1), ("c", 1)]);
        // Without `b`: `a` 0-5, `c` 6-11. Without `c`: `a` 0-5, `b` 6-11. Without `a`: `b` 0-5, `c` 6-11.
        assert_eq!(shown("a", &three, 12, 1), "4 5");
        assert_eq!(shown("b", &three, 12, 1), "0 1 2 3 8 9 10 11");
        assert_eq!(shown("c", &three, 12, 1), "6 7");
        assert_eq!(shown("a", &three, 12, 2), "4 5 6 7 8 9 10 11");
    }

    #[test]
    fn tasks_are_warm_where_they_go_after_a_loss() {
        let all = processes(&[("a", 2), ("b", 1), ("c", 3), ("d", 1)]);
        for partitions in [1, 5, 16, 33] {
            for lost in all.keys() {
                let mut rest = all.clone();
                rest.remove(lost);
                for survivor in rest.keys() {
                    let after: BTreeSet<i32> = assigned(survivor, &rest, partitions);
                    let before: BTreeSet<i32> = assigned(survivor, &all, partitions);
                    let warm = wanted(survivor, &all, &counts(partitions), 1);
                    for partition in after.difference(&before) {
                        assert!(
                            warm.contains(&task(*partition)),
                            "{survivor} gets {partition} of {partitions} without {lost}"
                        );
                    }
                    assert!(before.iter().all(|p| !warm.contains(&task(*p))));
                }
            }
        }
    }

    #[test]
    fn single_or_unknown_process_keeps_nothing() {
        assert_eq!(shown("a", &processes(&[("a", 2)]), 8, 1), "");
        assert_eq!(shown("x", &processes(&[("a", 1), ("b", 1)]), 8, 1), "");
        assert_eq!(shown("a", &processes(&[("a", 1), ("b", 1)]), 8, 0), "");
    }
}
