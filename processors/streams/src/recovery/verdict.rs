//! Decides where a task starts, from the committed offsets of its group and the commit record of its state (C9).
//!
//! Both are written in one transaction, so if both exist for an input they must be equal. If the offset does not exist,
//! it has expired or the input is new. Without transactions the commit record is written before the offset, so the
//! greater position is used. The function is pure and never guesses: an operator resolves a difference.
//!
//! A topic that was deleted and created again has another id, and its offsets start at 0 again. The log deletes the
//! committed offsets together with a topic. So if there is no committed offset, the task reads the new topic from its first
//! record. If there is one, the topic may also be a copy that has the same offsets, and an operator decides.

use crate::task::commit_record::CommitRecord;
use event_log::{Offset, TopicId, TopicPartition};

/// The position at which an input starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// At this offset.
    At(Offset),
    /// At the first record, because the topic was created again.
    Earliest,
    /// At the `first_start` of the sub-topology, because the partition was never read.
    Declared,
}

/// Result of [`decide`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The task starts, each input at its position.
    Start {
        starts: Vec<Start>,
        warning: Option<String>,
    },
    /// Commit record and offsets differ.
    Differ { text: String },
    /// The state was built from other inputs.
    InputsReplaced { text: String },
    /// The state was built from another topic of the same name.
    InputRecreated { text: String },
}

/// Decides where a task starts. `ids` are the topic ids of the inputs, and `offsets` their committed offsets, both in the
/// order of `inputs`. `transactional` is false if commit record and offsets may not have been written in one transaction.
pub(crate) fn decide(
    inputs: &[TopicPartition],
    ids: &[TopicId],
    offsets: &[Option<Offset>],
    commit_record: Option<&CommitRecord>,
    transactional: bool,
) -> Verdict {
    if let Some(replaced) = commit_record.and_then(|commit_record| inputs_replaced(inputs, commit_record)) {
        return replaced;
    }
    let mut starts = Vec::with_capacity(inputs.len());
    let (mut expired, mut recreated) = (Vec::new(), Vec::new());
    for ((input, id), offset) in inputs.iter().zip(ids).zip(offsets) {
        let contained = commit_record.and_then(|commit_record| commit_record.next_offset(input));
        if commit_record.is_some_and(|commit_record| commit_record.is_of_other_topic(&input.topic, *id)) {
            if let Some(offset) = offset {
                let text = format!(
                    "topic {} has another id than the topic from which the state was built: it was deleted and created \
                     again, or copied from another cluster; its committed offset is {offset}",
                    input.topic
                );
                return Verdict::InputRecreated { text };
            }
            recreated.push(format!("{input}: {}", contained.unwrap_or_default()));
            starts.push(Start::Earliest);
            continue;
        }
        starts.push(match (offset, contained, commit_record) {
            (Some(offset), Some(contained), _) if *offset == contained => Start::At(contained),
            // If the commit record does not contain an input, the state includes nothing of it, so any position is
            // consistent. An operator may have set this offset.
            (Some(offset), None, Some(_)) => Start::At(*offset),
            (None, Some(contained), _) => {
                expired.push(format!("{input}: {contained}"));
                Start::At(contained)
            }
            (None, None, _) => Start::Declared,
            (Some(offset), Some(contained), _) if !transactional => Start::At(contained.max(*offset)),
            (Some(offset), Some(contained), _) => {
                return Verdict::Differ {
                    text: format!("state contains {input} up to {contained}, but the committed offset is {offset}"),
                };
            }
            (Some(offset), None, None) => {
                return Verdict::Differ {
                    text: format!("committed offset of {input} is {offset}, but the changelog contains no state"),
                };
            }
        });
    }
    let expired = (!expired.is_empty()).then(|| {
        format!(
            "no committed offset, using the position of the commit record for {}",
            expired.join(", ")
        )
    });
    let recreated = (!recreated.is_empty()).then(|| {
        format!(
            "topic was deleted and created again, reading it from its first record; records of the former topic after these \
             offsets were not processed: {}",
            recreated.join(", ")
        )
    });
    let warnings: Vec<String> = expired.into_iter().chain(recreated).collect();
    let warning = (!warnings.is_empty()).then(|| warnings.join("; "));
    Verdict::Start { starts, warning }
}

/// If inputs were only added, or only removed, the application was extended or reduced. If inputs were both added and
/// removed, the state was built from other inputs.
fn inputs_replaced(inputs: &[TopicPartition], commit_record: &CommitRecord) -> Option<Verdict> {
    let known = commit_record.inputs();
    let without = |these: &[TopicPartition], those: &[TopicPartition]| -> Vec<String> {
        let left = these.iter().filter(|this| !those.contains(this));
        left.map(ToString::to_string).collect()
    };
    let (added, removed) = (without(inputs, &known), without(&known, inputs));
    if added.is_empty() || removed.is_empty() {
        return None;
    }
    let text = format!(
        "its state was built from {}, but it now reads {}",
        removed.join(", "),
        added.join(", ")
    );
    Some(Verdict::InputsReplaced { text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn id(n: u8) -> TopicId {
        TopicId(format!("00000000-0000-4000-8000-{n:012}").parse().unwrap())
    }

    fn verdict(offsets: &[Option<Offset>], commit_record: Option<&[(&str, Offset)]>) -> String {
        judged(offsets, commit_record, true)
    }

    fn judged(offsets: &[Option<Offset>], commit_record: Option<&[(&str, Offset)]>, transactional: bool) -> String {
        judged_with(&[id(1), id(2)], offsets, commit_record, transactional)
    }

    fn judged_with(
        ids: &[TopicId],
        offsets: &[Option<Offset>],
        commit_record: Option<&[(&str, Offset)]>,
        transactional: bool,
    ) -> String {
        let inputs: Vec<_> = ["a", "b"]
            .into_iter()
            .take(offsets.len())
            .map(|t| TopicPartition::new(t, 0))
            .collect();
        let commit_record = commit_record.map(|known| CommitRecord {
            seq: 1,
            offsets: known
                .iter()
                .map(|(topic, offset)| ((*topic).to_owned(), 0, *offset))
                .collect(),
            topic_ids: BTreeMap::from([("a".to_owned(), id(1).to_string())]),
            stream_time: 0,
            at_least_once: false,
        });
        match decide(&inputs, ids, offsets, commit_record.as_ref(), transactional) {
            Verdict::Start { starts, warning } => {
                let starts: Vec<_> = starts.iter().map(|p| format!("{p:?}")).collect();
                format!("{}{}", starts.join(" "), if warning.is_some() { " warned" } else { "" })
            }
            Verdict::Differ { text } | Verdict::InputsReplaced { text } | Verdict::InputRecreated { text } => text,
        }
    }

    #[test]
    fn replaced_input_needs_an_operator_removed_one_does_not() {
        let text = verdict(&[Some(3)], Some(&[("x", 3)]));
        assert_eq!(text, "its state was built from x/0, but it now reads a/0");
        assert!(verdict(&[Some(3), None], Some(&[("a", 3), ("x", 1)])).contains("it now reads b/0"));
        assert_eq!(verdict(&[Some(3)], Some(&[("a", 3), ("x", 1)])), "At(3)");
        assert_eq!(verdict(&[None], Some(&[])), "Declared");
    }

    #[test]
    fn unread_input_starts_where_declared() {
        assert_eq!(verdict(&[None, None], None), "Declared Declared");
    }

    #[test]
    fn equal_offsets_and_commit_record_are_the_start() {
        assert_eq!(verdict(&[Some(3), Some(0)], Some(&[("a", 3), ("b", 0)])), "At(3) At(0)");
    }

    #[test]
    fn expired_offsets_use_the_commit_record() {
        assert_eq!(
            verdict(&[None, None], Some(&[("a", 3), ("b", 4)])),
            "At(3) At(4) warned"
        );
    }

    #[test]
    fn added_input_starts_where_declared_or_set() {
        assert_eq!(verdict(&[Some(3), None], Some(&[("a", 3)])), "At(3) Declared");
        assert_eq!(verdict(&[Some(3), Some(7)], Some(&[("a", 3)])), "At(3) At(7)");
    }

    #[test]
    fn without_transactions_the_greater_position_is_used() {
        assert_eq!(judged(&[Some(2)], Some(&[("a", 3)]), false), "At(3)");
        assert_eq!(judged(&[Some(4)], Some(&[("a", 3)]), false), "At(4)");
        assert_eq!(judged(&[None], Some(&[("a", 3)]), false), "At(3) warned");
        assert!(judged(&[Some(4)], None, false).contains("no state"));
    }

    #[test]
    fn recreated_input_is_read_from_its_first_record_unless_it_has_an_offset() {
        let recreated = |offsets: &[Option<Offset>]| {
            let commit_record: &[(&str, Offset)] = &[("a", 3), ("b", 4)];
            judged_with(&[id(9), id(2)], offsets, Some(commit_record), true)
        };
        assert_eq!(recreated(&[None, Some(4)]), "Earliest At(4) warned");
        let text = recreated(&[Some(3), Some(4)]);
        assert!(
            text.contains("topic a has another id") && text.contains("offset is 3"),
            "{text}"
        );
        assert_eq!(judged_with(&[id(9)], &[Some(3)], None, true), verdict(&[Some(3)], None));
    }

    #[test]
    fn any_difference_needs_an_operator() {
        assert_eq!(
            verdict(&[Some(2)], Some(&[("a", 3)])),
            "state contains a/0 up to 3, but the committed offset is 2"
        );
        assert!(verdict(&[Some(4), None], Some(&[("a", 3), ("b", 1)])).contains("is 4"));
        assert!(verdict(&[Some(4)], None).contains("no state"));
    }
}
