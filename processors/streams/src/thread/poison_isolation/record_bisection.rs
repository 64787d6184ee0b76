//! Isolates a poison record by bisection, so that one rejected output does not block the partition (C13).
//!
//! A rejection does not show which input record caused it, and it aborts the whole transaction. The same records are
//! therefore processed again in smaller and smaller transactions. The record whose own transaction is rejected becomes
//! a dead letter. If that is rejected too, the dead letter is written without key, value and headers.
//!
//! The number of transactions is logarithmic in the number of records. A record never becomes a dead letter because
//! another record was rejected. The code is pure.

use crate::api::output::Body;
use event_log::{Offset, RecordRef, TopicPartition};

/// The poison record: it becomes a dead letter instead of being processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoisonRecord {
    pub at: TopicPartition,
    pub offset: Offset,
    pub body: Body,
    pub reason: String,
}

/// Progress of a bisection through the records of a rejected transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordBisection {
    /// Maximum number of records in a transaction, which contains no other task's records.
    pub chunk: usize,
    /// For each input, the offset after the last rejected record.
    until: Vec<Offset>,
    poison: Option<PoisonRecord>,
}

/// What a task had processed in a rejected transaction.
#[derive(Debug, Clone)]
pub(crate) struct RejectedRecords {
    /// Number of records.
    pub records: usize,
    /// Partition and offset of the first of these records.
    pub first: Option<(TopicPartition, Offset)>,
    /// For each input, the offset after the last of these records.
    pub until: Vec<Offset>,
    /// Why they were rejected; `None` if it is unknown whether a record caused the abort. Then no record is treated as
    /// poison.
    pub reason: Option<String>,
}

impl RecordBisection {
    /// Next state of the bisection after a rejection; `None` if even the dead letter without a body was rejected.
    pub(crate) fn after(previous: Option<RecordBisection>, rejected: RejectedRecords) -> Option<RecordBisection> {
        let before = previous.as_ref();
        let known = before.map_or(&[][..], |bisection| &bisection.until);
        let until = rejected
            .until
            .iter()
            .enumerate()
            .map(|(i, next)| known.get(i).map_or(*next, |k| *next.max(k)));
        let until = until.collect();
        if rejected.records > 1 {
            let chunk = before.map_or(rejected.records, |bisection| bisection.chunk.min(rejected.records));
            return Some(RecordBisection {
                chunk: (chunk / 2).max(1),
                until,
                poison: None,
            });
        }
        let (at, offset) = rejected.first?;
        let Some(reason) = rejected.reason else {
            return Some(RecordBisection {
                chunk: 1,
                until,
                poison: None,
            });
        };
        let earlier = before
            .and_then(|bisection| bisection.poison.as_ref())
            .filter(|p| p.at == at && p.offset == offset);
        let body = match earlier.map(|poison| poison.body) {
            None => Body::Whole,
            Some(Body::Whole) => Body::LeftOut,
            Some(Body::LeftOut) => return None,
        };
        Some(RecordBisection {
            chunk: 1,
            until,
            poison: Some(PoisonRecord {
                at,
                offset,
                body,
                reason,
            }),
        })
    }

    /// Next state after a transaction was committed up to these positions: transactions get larger. `None` if all
    /// rejected records are committed. A poison record that was not processed yet stays known, because records of
    /// another input may come before it in every attempt.
    pub(crate) fn committed<'a>(
        mut self,
        next: impl Iterator<Item = (&'a TopicPartition, Offset)> + Clone,
    ) -> Option<RecordBisection> {
        if self.is_passed(next.clone().map(|(_, next)| next)) {
            return None;
        }
        let ahead = |poison: &PoisonRecord| next.clone().any(|(at, next)| *at == poison.at && next <= poison.offset);
        if !self.poison.as_ref().is_some_and(ahead) {
            self.chunk = self.chunk.saturating_mul(2);
            self.poison = None;
        }
        Some(self)
    }

    /// Whether these positions, one per input, are after all rejected records.
    pub(crate) fn is_passed(&self, next: impl Iterator<Item = Offset>) -> bool {
        next.zip(&self.until).all(|(next, until)| next >= *until)
    }

    /// Returns the record if it is the poison record.
    pub(crate) fn poison_at(&self, record: RecordRef<'_>) -> Option<&PoisonRecord> {
        let poison = self.poison.as_ref()?;
        (record.offset() == poison.offset && *record.partition() == poison.at).then_some(poison)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> TopicPartition {
        TopicPartition::new("in", 0)
    }

    /// Processes records 0..n with a log that rejects the output of `bad`, and its dead letter `rejections` times.
    fn run(n: i64, bad: i64, rejections: usize) -> (Option<Body>, usize) {
        let (mut next, mut transactions, mut bisection, mut letter) = (0, 0, None::<RecordBisection>, None);
        let mut rejected_letters = 0;
        while next < n {
            transactions += 1;
            assert!(transactions < 1000, "does not end");
            let chunk = bisection.as_ref().map_or(n, |c| i64::try_from(c.chunk).unwrap());
            let end = (next + chunk).min(n);
            let poison = bisection
                .as_ref()
                .and_then(|c| c.poison.clone())
                .filter(|p| p.offset == next);
            let end = if poison.is_some() { next + 1 } else { end };
            let is_rejected = match &poison {
                Some(_) => rejected_letters < rejections,
                None => (next..end).contains(&bad),
            };
            if is_rejected {
                rejected_letters += usize::from(poison.is_some());
                let rejected = RejectedRecords {
                    records: usize::try_from(end - next).unwrap(),
                    first: Some((at(), next)),
                    until: vec![end],
                    reason: Some("too large".to_owned()),
                };
                bisection = match RecordBisection::after(bisection, rejected) {
                    Some(bisection) => Some(bisection),
                    None => return (None, transactions),
                };
            } else {
                letter = poison.map(|p| p.body).or(letter);
                next = end;
                bisection = bisection.and_then(|c| c.committed([(&at(), next)].into_iter()));
            }
        }
        (letter, transactions)
    }

    #[test]
    fn poison_record_is_found_in_logarithmic_transactions() {
        for bad in [0, 1, 511, 998, 999] {
            let (letter, transactions) = run(1000, bad, 0);
            assert_eq!(letter, Some(Body::Whole));
            assert!(transactions < 40, "{transactions} transactions for record {bad}");
        }
    }

    #[test]
    fn rejected_dead_letter_loses_its_body_then_stops() {
        assert_eq!(run(10, 3, 1).0, Some(Body::LeftOut));
        assert_eq!(run(10, 3, 2).0, None);
    }

    #[test]
    fn poison_record_stays_known_until_it_is_passed() {
        let (poisoned, other) = (at(), TopicPartition::new("other", 0));
        let rejected = RejectedRecords {
            records: 1,
            first: Some((at(), 5)),
            until: vec![6, 9],
            reason: Some("too large".to_owned()),
        };
        let bisection = RecordBisection::after(None, rejected).unwrap();
        let bisection = bisection.committed([(&poisoned, 5), (&other, 4)].into_iter()).unwrap();
        assert!(bisection.poison.is_some() && bisection.chunk == 1, "{bisection:?}");
        let bisection = bisection.committed([(&poisoned, 6), (&other, 4)].into_iter()).unwrap();
        assert!(bisection.poison.is_none() && bisection.chunk == 2, "{bisection:?}");
    }

    #[test]
    fn records_are_passed_when_every_input_is() {
        let rejected = RejectedRecords {
            records: 2,
            first: Some((at(), 5)),
            until: vec![7, 3],
            reason: None,
        };
        let bisection = RecordBisection::after(None, rejected).unwrap();
        assert!(!bisection.is_passed([7, 2].into_iter()));
        assert!(bisection.is_passed([7, 3].into_iter()));
    }

    #[test]
    fn no_record_is_blamed_without_a_reason() {
        let rejected = RejectedRecords {
            records: 1,
            first: Some((at(), 5)),
            until: vec![6],
            reason: None,
        };
        let bisection = RecordBisection::after(None, rejected).unwrap();
        assert_eq!((bisection.chunk, bisection.poison), (1, None));
    }
}
