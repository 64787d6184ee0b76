//! How a record is found of which something was made that the log refuses, so that it does not stop the line.
//!
//! A refusal names no record, and the transaction around it must be aborted. So the same records are processed again
//! in ever smaller transactions; the one record whose own transaction is still refused becomes a dead letter; if the
//! log refuses that too, a dead letter without key, value and headers, which only says where the record stood.
//!
//! Guarantees: pure; ends after a number of transactions logarithmic in the records of the first one.
//! Never: a record given up because of another one's refusal.

use crate::output::Body;
use event_log::{Offset, RecordBatch, TopicPartition};

/// The record that must not be processed as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Poison {
    pub at: TopicPartition,
    pub offset: Offset,
    pub body: Body,
    pub reason: String,
}

/// A task's way through the records of a refused transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caution {
    /// Records in one transaction, which is this task's alone.
    pub chunk: usize,
    until: Vec<Offset>,
    poison: Option<Poison>,
}

/// What a task had in the refused transaction.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    /// Records.
    pub records: usize,
    /// Where the first of them stood.
    pub first: Option<(TopicPartition, Offset)>,
    /// Next offset of each input behind them.
    pub until: Vec<Offset>,
    /// The log's words; `None` when it is not known whether a record is to blame, and then none is given up.
    pub reason: Option<String>,
}

impl Caution {
    /// The way on after a refusal; `None` when no record is left to give up.
    pub(crate) fn after(previous: Option<Caution>, refused: Refused) -> Option<Caution> {
        let before = previous.as_ref();
        let known = before.map_or(&[][..], |caution| &caution.until);
        let until = refused
            .until
            .iter()
            .enumerate()
            .map(|(i, next)| known.get(i).map_or(*next, |k| *next.max(k)));
        let until = until.collect();
        if refused.records > 1 {
            let chunk = before.map_or(refused.records, |caution| caution.chunk.min(refused.records));
            return Some(Caution {
                chunk: (chunk / 2).max(1),
                until,
                poison: None,
            });
        }
        let (at, offset) = refused.first?;
        let Some(reason) = refused.reason else {
            return Some(Caution {
                chunk: 1,
                until,
                poison: None,
            });
        };
        let earlier = before
            .and_then(|caution| caution.poison.as_ref())
            .filter(|p| p.at == at && p.offset == offset);
        let body = match earlier.map(|poison| poison.body) {
            None => Body::Whole,
            Some(Body::Whole) => Body::LeftOut,
            Some(Body::LeftOut) => return None,
        };
        Some(Caution {
            chunk: 1,
            until,
            poison: Some(Poison {
                at,
                offset,
                body,
                reason,
            }),
        })
    }

    /// A transaction was committed up to these offsets: larger ones may follow; `None` when the records are passed. A
    /// poison that is still ahead stays known, as another input's records may come before it at every attempt.
    pub(crate) fn committed<'a>(
        mut self,
        next: impl Iterator<Item = (&'a TopicPartition, Offset)> + Clone,
    ) -> Option<Caution> {
        if self.is_passed(next.clone().map(|(_, next)| next)) {
            return None;
        }
        let ahead = |poison: &Poison| next.clone().any(|(at, next)| *at == poison.at && next <= poison.offset);
        if !self.poison.as_ref().is_some_and(ahead) {
            self.chunk = self.chunk.saturating_mul(2);
            self.poison = None;
        }
        Some(self)
    }

    /// Whether these next offsets, one an input, lie behind all records of the refused transaction.
    pub(crate) fn is_passed(&self, next: impl Iterator<Item = Offset>) -> bool {
        next.zip(&self.until).all(|(next, until)| next >= *until)
    }

    /// The poison, if it is the record at this index.
    pub(crate) fn poison_at(&self, records: &RecordBatch, index: usize) -> Option<&Poison> {
        let poison = self.poison.as_ref()?;
        let record = records.get(index)?;
        (record.offset() == poison.offset && *record.partition() == poison.at).then_some(poison)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> TopicPartition {
        TopicPartition::new("in", 0)
    }

    /// Runs records 0..n through a log that refuses what is made of `bad`, and its dead letter `deaths` times.
    fn run(n: i64, bad: i64, deaths: usize) -> (Option<Body>, usize) {
        let (mut next, mut transactions, mut caution, mut letter) = (0, 0, None::<Caution>, None);
        let mut refused_letters = 0;
        while next < n {
            transactions += 1;
            assert!(transactions < 1000, "does not end");
            let chunk = caution.as_ref().map_or(n, |c| i64::try_from(c.chunk).unwrap());
            let end = (next + chunk).min(n);
            let poison = caution
                .as_ref()
                .and_then(|c| c.poison.clone())
                .filter(|p| p.offset == next);
            let end = if poison.is_some() { next + 1 } else { end };
            let refused = match &poison {
                Some(_) => refused_letters < deaths,
                None => (next..end).contains(&bad),
            };
            if refused {
                refused_letters += usize::from(poison.is_some());
                let refused = Refused {
                    records: usize::try_from(end - next).unwrap(),
                    first: Some((at(), next)),
                    until: vec![end],
                    reason: Some("too large".to_owned()),
                };
                caution = match Caution::after(caution, refused) {
                    Some(caution) => Some(caution),
                    None => return (None, transactions),
                };
            } else {
                letter = poison.map(|p| p.body).or(letter);
                next = end;
                caution = caution.and_then(|c| c.committed([(&at(), next)].into_iter()));
            }
        }
        (letter, transactions)
    }

    #[test]
    fn the_one_record_is_found_and_given_up_in_logarithmically_many_transactions() {
        for bad in [0, 1, 511, 998, 999] {
            let (letter, transactions) = run(1000, bad, 0);
            assert_eq!(letter, Some(Body::Whole));
            assert!(transactions < 40, "{transactions} transactions for record {bad}");
        }
    }

    #[test]
    fn a_dead_letter_that_is_refused_too_goes_without_its_body_and_then_the_task_stops() {
        assert_eq!(run(10, 3, 1).0, Some(Body::LeftOut));
        assert_eq!(run(10, 3, 2).0, None);
    }

    #[test]
    fn a_poison_stays_known_while_another_inputs_records_come_before_it() {
        let (poisoned, other) = (at(), TopicPartition::new("other", 0));
        let refused = Refused {
            records: 1,
            first: Some((at(), 5)),
            until: vec![6, 9],
            reason: Some("too large".to_owned()),
        };
        let caution = Caution::after(None, refused).unwrap();
        let caution = caution.committed([(&poisoned, 5), (&other, 4)].into_iter()).unwrap();
        assert!(caution.poison.is_some() && caution.chunk == 1, "{caution:?}");
        let caution = caution.committed([(&poisoned, 6), (&other, 4)].into_iter()).unwrap();
        assert!(caution.poison.is_none() && caution.chunk == 2, "{caution:?}");
    }

    #[test]
    fn the_records_are_passed_when_every_input_is() {
        let refused = Refused {
            records: 2,
            first: Some((at(), 5)),
            until: vec![7, 3],
            reason: None,
        };
        let caution = Caution::after(None, refused).unwrap();
        assert!(!caution.is_passed([7, 2].into_iter()));
        assert!(caution.is_passed([7, 3].into_iter()));
    }

    #[test]
    fn without_a_reason_no_record_is_given_up() {
        let refused = Refused {
            records: 1,
            first: Some((at(), 5)),
            until: vec![6],
            reason: None,
        };
        let caution = Caution::after(None, refused).unwrap();
        assert_eq!((caution.chunk, caution.poison), (1, None));
    }
}
