//! Where a task starts, from what the group has committed and what its state says that it contains.
//!
//! Guarantees: pure. Offsets and commit_record are committed together, so where both exist they must agree; offsets that
//! are absent have expired or belong to an input that is new. Without transactions the commit_record is written first, so that
//! the greater place counts.
//! Never: a guess. What differs is for people to decide.

use crate::commit_record::CommitRecord;
use event_log::{Offset, TopicPartition};

/// Where one input starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// At this offset.
    At(Offset),
    /// Where the sub-topology declares for a partition that was never read.
    First,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The task can start here, each input at its place.
    Start {
        places: Vec<Start>,
        warning: Option<String>,
    },
    /// The two differ.
    Differ { text: String },
    /// The state was made from other inputs.
    Exchanged { text: String },
}

/// Decides; `offsets` are in the order of `inputs`. `alone` says that commit_record and offsets need not have been committed
/// together.
pub(crate) fn decide(
    inputs: &[TopicPartition],
    offsets: &[Option<Offset>],
    commit_record: Option<&CommitRecord>,
    alone: bool,
) -> Verdict {
    if let Some(exchanged) = commit_record.and_then(|commit_record| exchanged(inputs, commit_record)) {
        return exchanged;
    }
    let mut places = Vec::with_capacity(inputs.len());
    let mut expired = Vec::new();
    for (input, offset) in inputs.iter().zip(offsets) {
        let contained = commit_record.and_then(|commit_record| commit_record.next_offset(input));
        places.push(match (offset, contained, commit_record) {
            (Some(offset), Some(contained), _) if *offset == contained => Start::At(contained),
            // The state contains nothing of an input that the commit_record does not name, so any place is as good as another
            // and an operator's explicit one counts.
            (Some(offset), None, Some(_)) => Start::At(*offset),
            (None, Some(contained), _) => {
                expired.push(format!("{input}: {contained}"));
                Start::At(contained)
            }
            (None, None, _) => Start::First,
            (Some(offset), Some(contained), _) if alone => Start::At(contained.max(*offset)),
            (Some(offset), Some(contained), _) => {
                return Verdict::Differ {
                    text: format!("state contains {input} up to {contained}, and the committed offset is {offset}"),
                };
            }
            (Some(offset), None, None) => {
                return Verdict::Differ {
                    text: format!("committed offset of {input} is {offset}, and the changelog holds no state at all"),
                };
            }
        });
    }
    let warning = (!expired.is_empty()).then(|| {
        format!(
            "no committed offset, so the state's own place is taken as the truth for {}",
            expired.join(", ")
        )
    });
    Verdict::Start { places, warning }
}

/// An input that comes or one that goes is an edit like others; one in another's place makes the state another's too.
fn exchanged(inputs: &[TopicPartition], commit_record: &CommitRecord) -> Option<Verdict> {
    let known = commit_record.inputs();
    let without = |these: &[TopicPartition], those: &[TopicPartition]| -> Vec<String> {
        let left = these.iter().filter(|this| !those.contains(this));
        left.map(ToString::to_string).collect()
    };
    let (new, gone) = (without(inputs, &known), without(&known, inputs));
    if new.is_empty() || gone.is_empty() {
        return None;
    }
    let text = format!(
        "its state was made from {}, and it reads {} now",
        gone.join(", "),
        new.join(", ")
    );
    Some(Verdict::Exchanged { text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(offsets: &[Option<Offset>], commit_record: Option<&[(&str, Offset)]>) -> String {
        judged(offsets, commit_record, false)
    }

    fn judged(offsets: &[Option<Offset>], commit_record: Option<&[(&str, Offset)]>, alone: bool) -> String {
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
            alone: false,
        });
        match decide(&inputs, offsets, commit_record.as_ref(), alone) {
            Verdict::Start { places, warning } => {
                let places: Vec<_> = places.iter().map(|p| format!("{p:?}")).collect();
                format!("{}{}", places.join(" "), if warning.is_some() { " warned" } else { "" })
            }
            Verdict::Differ { text } | Verdict::Exchanged { text } => text,
        }
    }

    #[test]
    fn an_input_in_the_place_of_another_is_for_people_and_one_that_only_goes_is_not() {
        let text = verdict(&[Some(3)], Some(&[("x", 3)]));
        assert_eq!(text, "its state was made from x/0, and it reads a/0 now");
        assert!(verdict(&[Some(3), None], Some(&[("a", 3), ("x", 1)])).contains("it reads b/0 now"));
        assert_eq!(verdict(&[Some(3)], Some(&[("a", 3), ("x", 1)])), "At(3)");
        assert_eq!(verdict(&[None], Some(&[])), "First");
    }

    #[test]
    fn what_was_never_read_starts_where_it_is_declared() {
        assert_eq!(verdict(&[None, None], None), "First First");
    }

    #[test]
    fn offsets_and_marker_that_agree_are_the_place() {
        assert_eq!(verdict(&[Some(3), Some(0)], Some(&[("a", 3), ("b", 0)])), "At(3) At(0)");
    }

    #[test]
    fn expired_offsets_are_taken_from_the_marker_with_a_warning() {
        assert_eq!(
            verdict(&[None, None], Some(&[("a", 3), ("b", 4)])),
            "At(3) At(4) warned"
        );
    }

    #[test]
    fn a_newly_added_input_starts_where_it_is_declared_or_where_an_operator_put_it() {
        assert_eq!(verdict(&[Some(3), None], Some(&[("a", 3)])), "At(3) First");
        assert_eq!(verdict(&[Some(3), Some(7)], Some(&[("a", 3)])), "At(3) At(7)");
    }

    #[test]
    fn without_transactions_the_greater_place_counts_and_a_lost_changelog_is_still_for_people() {
        assert_eq!(judged(&[Some(2)], Some(&[("a", 3)]), true), "At(3)");
        assert_eq!(judged(&[Some(4)], Some(&[("a", 3)]), true), "At(4)");
        assert_eq!(judged(&[None], Some(&[("a", 3)]), true), "At(3) warned");
        assert!(judged(&[Some(4)], None, true).contains("no state at all"));
    }

    #[test]
    fn any_difference_is_for_people_also_beside_an_expired_offset() {
        assert_eq!(
            verdict(&[Some(2)], Some(&[("a", 3)])),
            "state contains a/0 up to 3, and the committed offset is 2"
        );
        assert!(verdict(&[Some(4), None], Some(&[("a", 3), ("b", 1)])).contains("is 4"));
        assert!(verdict(&[Some(4)], None).contains("no state at all"));
    }
}
