//! Key ranges of snapshot chunks: which rows a chunk contains, and where their state keys are.
//!
//! The source orders integers by value, and state keys are ordered by their bytes: 10 is before 9. Integers with the same
//! number of digits have the same order in both, so a range of integers is a few ranges of state keys.

use super::change::ChunkEnd;
use super::keys::table_prefix;
use schemas::key::Part;
use std::cmp::Ordering;

/// A range of state keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpan {
    /// First key.
    pub from: Vec<u8>,
    /// End of the range, exclusive.
    pub end: Vec<u8>,
}

impl KeySpan {
    /// All rows of a table.
    pub fn of_table(table: &str) -> KeySpan {
        KeySpan::between(&table_prefix(table), "", "")
    }

    /// Keys that begin with `prefix` and continue with text from `from` up to and including all that begins with
    /// `through`.
    fn between(prefix: &[u8], from: &str, through: &str) -> KeySpan {
        KeySpan {
            from: [prefix, from.as_bytes()].concat(),
            // No byte of JSON text is 0xff.
            end: [prefix, through.as_bytes(), &[u8::MAX]].concat(),
        }
    }
}

impl ChunkEnd {
    /// Whether the range begins with the first row of the table.
    pub fn is_first(&self) -> bool {
        self.from.is_none()
    }

    /// Whether the chunk contains all rows of the table.
    pub fn is_whole_table(&self) -> bool {
        self.from.is_none() && self.to.is_none()
    }

    /// Whether a row key is in the chunk's range; both bounds are inclusive.
    pub fn contains(&self, row_key: &str) -> bool {
        let key = format!("[{row_key}]");
        let after = self.from.as_deref().is_none_or(|from| order(from, &key).is_le());
        after && self.to.as_deref().is_none_or(|to| order(&key, to).is_le())
    }

    /// Ranges of state keys, in order and without overlap, that contain the keys of all rows in the chunk's range. They
    /// contain other rows of the table too.
    pub fn spans(&self, table: &str) -> Vec<KeySpan> {
        let prefix = table_prefix(table);
        let first = |key: &Option<String>| key.as_deref().and_then(first_part);
        let spans = match (first(&self.from), first(&self.to)) {
            (Some(Comparable::Integer(from)), Some(Comparable::Integer(to))) => integers(&prefix, from, to),
            (Some(Comparable::Text(from)), Some(Comparable::Text(to))) => {
                let quoted = |text: &str| {
                    text.starts_with("[\"")
                        .then(|| text.trim_matches(['[', ']']).to_owned())
                };
                match (quoted(&from), quoted(&to)) {
                    (Some(from), Some(to)) => vec![KeySpan::between(&prefix, &from, &to)],
                    _ => vec![KeySpan::of_table(table)],
                }
            }
            _ => vec![KeySpan::of_table(table)],
        };
        merged(spans)
    }
}

/// Spans of the keys whose first part is an integer in a range, as a number or as text.
fn integers(prefix: &[u8], from: i64, to: i64) -> Vec<KeySpan> {
    let mut spans = Vec::new();
    for quote in ["", "\""] {
        let mut span = |from: &str, through: &str| {
            spans.push(KeySpan::between(
                prefix,
                &format!("{quote}{from}"),
                &format!("{quote}{through}"),
            ));
        };
        for digits in 1..=19_u32 {
            let lowest = 10_i64.checked_pow(digits - 1).filter(|_| digits > 1).unwrap_or(0);
            let highest = 10_i64.checked_pow(digits).map_or(i64::MAX, |next| next - 1);
            let (low, high) = (from.max(lowest), to.min(highest));
            if low <= high {
                span(&low.to_string(), &high.to_string());
            }
        }
        if from <= 0 {
            span("-", "-");
        }
        // Text that is an integer, but not in its canonical form.
        for first in ["+", "0", "[", "]"].into_iter().filter(|_| !quote.is_empty()) {
            span(first, first);
        }
    }
    spans
}

/// Sorts spans and joins those that overlap.
fn merged(mut spans: Vec<KeySpan>) -> Vec<KeySpan> {
    spans.sort_by(|a, b| a.from.cmp(&b.from));
    let mut out: Vec<KeySpan> = Vec::with_capacity(spans.len());
    for span in spans {
        match out.last_mut() {
            Some(last) if span.from <= last.end => last.end = span.end.max(std::mem::take(&mut last.end)),
            _ => out.push(span),
        }
    }
    out
}

/// Orders two keys as the source does: integers by value, including integers in strings, and text by its bytes.
fn order(a: &str, b: &str) -> Ordering {
    let parts = |key: &str| schemas::key::parts(key.as_bytes()).map(comparable).unwrap_or_default();
    parts(a).cmp(&parts(b))
}

fn first_part(key: &str) -> Option<Comparable> {
    comparable(schemas::key::parts(key.as_bytes()).ok()?).into_iter().next()
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Comparable {
    Integer(i64),
    Text(String),
}

fn comparable(parts: Vec<Part<'_>>) -> Vec<Comparable> {
    let comparable = |part: &Part<'_>| {
        let mut text = Vec::new();
        schemas::key::KeyWriter::new(&mut text).part(part).finish();
        let text = String::from_utf8_lossy(&text).into_owned();
        let bare = text.trim_matches(|c| matches!(c, '[' | ']' | '"'));
        bare.parse()
            .map_or_else(|_| Comparable::Text(text.clone()), Comparable::Integer)
    };
    parts.iter().map(comparable).collect()
}

#[cfg(test)]
mod tests {
    use super::super::keys::row_state_key;
    use super::*;

    fn chunk(from: Option<&str>, to: Option<&str>) -> ChunkEnd {
        ChunkEnd {
            low: 1,
            last: false,
            snapshot: "s".into(),
            from: from.map(|key| format!("[{key}]")),
            to: to.map(|key| format!("[{key}]")),
        }
    }

    #[test]
    fn chunk_keys_compare_as_numbers_even_as_strings() {
        let end = chunk(Some("\"9\""), Some("\"100\""));
        let contained: Vec<bool> = ["\"8\"", "\"9\"", "\"100\"", "\"101\""]
            .iter()
            .map(|key| end.contains(key))
            .collect();
        assert_eq!(contained, [false, true, true, false]);
    }

    #[test]
    fn spans_contain_every_key_of_the_chunk() {
        let integers = [-1000, -12, -1, 0, 1, 5, 9, 10, 12, 99, 100, 101, 999, 1000, 9_999_999].map(|n| n.to_string());
        let long = integers.iter().map(|n| format!("\"{n}\""));
        let other = [
            "\"+7\"", "\"007\"", "\"a\"", "\"ab\"", "\"ab!\"", "\"b\"", "1.5", "true", "null", "\"[5]\"",
        ];
        let keys: Vec<String> = integers
            .iter()
            .cloned()
            .chain(long)
            .chain(other.map(str::to_owned))
            .collect();
        let composite = keys.iter().map(|key| format!("{key},3"));
        let rows: Vec<String> = keys.iter().cloned().chain(composite).collect();
        let bounds: Vec<Option<&str>> = std::iter::once(None)
            .chain(rows.iter().map(|key| Some(key.as_str())))
            .collect();
        for from in &bounds {
            for to in &bounds {
                let end = chunk(*from, *to);
                let spans = end.spans("t");
                assert!(
                    spans.windows(2).all(|pair| pair[0].end < pair[1].from),
                    "{from:?} to {to:?}"
                );
                for row in rows.iter().filter(|row| end.contains(row)) {
                    let key = row_state_key("t", row);
                    let found = spans.iter().any(|span| span.from <= key && key < span.end);
                    assert!(found, "{row} of {from:?} to {to:?} is not in {spans:?}");
                }
            }
        }
    }

    #[test]
    fn spans_of_a_chunk_of_integers_are_small() {
        let span = |from: &str, through: &str| KeySpan::between(&table_prefix("t"), from, through);
        let spans = chunk(Some("1000001"), Some("1010000")).spans("t");
        assert_eq!(spans.first(), Some(&span("\"+", "\"+")));
        assert_eq!(spans.last(), Some(&span("1000001", "1010000")));
    }
}
