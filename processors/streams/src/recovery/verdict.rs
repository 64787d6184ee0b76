//! Decides where a task starts, from the committed offsets of its group and the commit record of its state (C9).
//!
//! Both are written in one transaction, so if both exist for an input they must be equal. If the offset does not exist,
//! it has expired or the input is new. Without transactions the commit record is written before the offset, so the
//! greater position is used. The function is pure and never guesses: an operator resolves a difference.

use crate::task::commit_record::CommitRecord;
use event_log::{Offset, TopicPartition};

/// The position at which an input starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// At this offset.
    At(Offset),
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
}

/// Decides where a task starts. `offsets` are in the same order as `inputs`. `transactional` is false if commit record
/// and offsets may not have been written in one transaction.
pub(crate) fn decide(
    inputs: &[TopicPartition],
    offsets: &[Option<Offset>],
    commit_record: Option<&CommitRecord>,
    transactional: bool,
) -> Verdict {
    if let Some(replaced) = commit_record.and_then(|commit_record| inputs_replaced(inputs, commit_record)) {
        return replaced;
    }
    let mut starts = Vec::with_capacity(inputs.len());
    let mut expired = Vec::new();
    for (input, offset) in inputs.iter().zip(offsets) {
        let contained = commit_record.and_then(|commit_record| commit_record.next_offset(input));
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
    let warning = (!expired.is_empty()).then(|| {
        format!(
            "no committed offset, using the position of the commit record for {}",
            expired.join(", ")
        )
    });
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

    fn verdict(offsets: &[Option<Offset>], commit_record: Option<&[(&str, Offset)]>) -> String {
        judged(offsets, commit_record, true)
    }

    fn judged(offsets: &[Option<Offset>], commit_record: Option<&[(&str, Offset)]>, transactional: bool) -> String {
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
            stream_time: 0,
            at_least_once: false,
        });
        match decide(&inputs, offsets, commit_record.as_ref(), transactional) {
            Verdict::Start { starts, warning } => {
                let starts: Vec<_> = starts.iter().map(|p| format!("{p:?}")).collect();
                format!("{}{}", starts.join(" "), if warning.is_some() { " warned" } else { "" })
            }
            Verdict::Differ { text } | Verdict::InputsReplaced { text } => text,
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
    fn any_difference_needs_an_operator() {
        assert_eq!(
            verdict(&[Some(2)], Some(&[("a", 3)])),
            "state contains a/0 up to 3, but the committed offset is 2"
        );
        assert!(verdict(&[Some(4), None], Some(&[("a", 3), ("b", 1)])).contains("is 4"));
        assert!(verdict(&[Some(4)], None).contains("no state"));
    }
}
