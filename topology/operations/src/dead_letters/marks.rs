//! Redrive marks: which dead letters were redriven.

use crate::Result;
use crate::scan::{self, PartitionRange};
use event_log::{EventLog, Offset, RecordRef};
use schemas::headers::{REDRIVEN, errors};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Whether a record of a dead-letter topic is a redrive mark.
pub(super) fn is_mark(record: &RecordRef<'_>) -> bool {
    record.key().is_none()
        && record.value().is_none()
        && record.header(REDRIVEN).is_some()
        && record.header(errors::TOPIC).is_none()
}

/// Offsets, as ranges. A range can include offsets at which there is no dead letter.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Ranges {
    /// First and last offset of each range.
    all: Vec<(Offset, Offset)>,
}

impl Ranges {
    /// Adds an offset. `follows` if no dead letter is between it and the last added offset.
    pub fn add(&mut self, offset: Offset, follows: bool) {
        match self.all.last_mut().filter(|_| follows) {
            Some((_, last)) => *last = offset,
            None => self.all.push((offset, offset)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn clear(&mut self) {
        self.all.clear();
    }

    /// The value of a mark: `5-9,12`.
    pub fn write(&self) -> String {
        let mut text = String::new();
        for (first, last) in &self.all {
            let separator = if text.is_empty() { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = match first == last {
                true => write!(text, "{separator}{first}"),
                false => write!(text, "{separator}{first}-{last}"),
            };
        }
        text
    }

    /// The ranges of a mark. Parts that cannot be parsed are ignored.
    fn parse(text: &str) -> impl Iterator<Item = (Offset, Offset)> {
        text.split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.parse().ok()?, last.parse().ok()?))
        })
    }
}

/// The redriven offsets of a dead-letter topic.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Last offset of each range, by partition and first offset.
    ranges: BTreeMap<(i32, Offset), Offset>,
}

impl Marks {
    /// Reads the marks in these ranges.
    pub fn read(log: &dyn EventLog, ranges: &[PartitionRange]) -> Result<Self> {
        let mut marks = Marks::default();
        let mut add = |record: &RecordRef<'_>| {
            if let Some(value) = record.header(REDRIVEN).filter(|_| is_mark(record)) {
                marks.add(record.partition().partition, &String::from_utf8_lossy(value));
            }
            Ok(())
        };
        scan::read(log, ranges, &mut add, &mut |_| Ok(true))?;
        Ok(marks)
    }

    fn add(&mut self, partition: i32, text: &str) {
        for (mut first, mut last) in Ranges::parse(text).filter(|(first, last)| first <= last) {
            // A second redrive of a dead letter can write a range that overlaps others. The ranges are kept disjoint.
            if let Some((before, end)) = self.at_or_before(partition, first).filter(|(_, end)| *end >= first) {
                (first, last) = (before, last.max(end));
            }
            while let Some((next, end)) = self.at_or_before(partition, last).filter(|(next, _)| *next >= first) {
                self.ranges.remove(&(partition, next));
                last = last.max(end);
            }
            self.ranges.insert((partition, first), last);
        }
    }

    /// Whether the dead letter at this offset was redriven.
    pub fn contains(&self, partition: i32, offset: Offset) -> bool {
        self.at_or_before(partition, offset)
            .is_some_and(|(_, last)| last >= offset)
    }

    /// The last range that begins at or before an offset.
    fn at_or_before(&self, partition: i32, offset: Offset) -> Option<(Offset, Offset)> {
        let mut before = self.ranges.range((partition, Offset::MIN)..=(partition, offset));
        before.next_back().map(|((_, first), last)| (*first, *last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_written_and_parsed() {
        let mut ranges = Ranges::default();
        for (offset, follows) in [(5, true), (7, true), (9, true), (12, false), (20, false), (22, true)] {
            ranges.add(offset, follows);
        }
        assert_eq!(ranges.write(), "5-9,12,20-22");
        let mut marks = Marks::default();
        marks.add(1, &ranges.write());
        let marked: Vec<Offset> = (0..30).filter(|offset| marks.contains(1, *offset)).collect();
        assert_eq!(marked, [5, 6, 7, 8, 9, 12, 20, 21, 22]);
        assert!(!marks.contains(0, 5));
    }

    #[test]
    fn overlapping_ranges_are_merged() {
        let mut marks = Marks::default();
        for text in ["5-30", "8,x,9-,7-3", "40-50", "20-45", "2-3"] {
            marks.add(0, text);
        }
        let ranges: Vec<_> = marks.ranges.into_iter().collect();
        assert_eq!(ranges, [((0, 2), 3), ((0, 5), 50)]);
    }
}
