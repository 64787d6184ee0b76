//! Parser of `COPY … TO STDOUT` rows in text format (PostgreSQL documentation of COPY, "Text Format").
//!
//! Buffers are reused, so rows need no allocation once the buffers have grown.

use super::pgoutput::Value;
use std::ops::Range;

/// The values of one line, in reused buffers.
#[derive(Debug, Default)]
pub(super) struct CopyLine {
    bytes: Vec<u8>,
    /// The range of each value in `bytes`; `None` is null.
    values: Vec<Option<Range<usize>>>,
}

impl CopyLine {
    /// Parses a line, with or without its newline; returns whether it has exactly `columns` values.
    pub(super) fn parse(&mut self, line: &[u8], columns: usize) -> bool {
        self.bytes.clear();
        self.values.clear();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if columns == 0 {
            return line.is_empty();
        }
        for field in line.split(|b| *b == b'\t') {
            if field == b"\\N" {
                self.values.push(None);
                continue;
            }
            let from = self.bytes.len();
            self.unescape(field);
            self.values.push(Some(from..self.bytes.len()));
        }
        self.values.len() == columns
    }

    /// The values in order.
    pub(super) fn values(&self) -> impl Iterator<Item = Value<'_>> {
        self.values.iter().map(|range| match range {
            Some(range) => Value::Text(self.bytes.get(range.clone()).unwrap_or_default()),
            None => Value::Null,
        })
    }

    fn unescape(&mut self, mut field: &[u8]) {
        while let Some(at) = field.iter().position(|b| *b == b'\\') {
            let (plain, escaped) = field.split_at(at);
            self.bytes.extend_from_slice(plain);
            let Some((escape, rest)) = escaped.get(1..).and_then(<[u8]>::split_first) else {
                return;
            };
            // COPY TO writes only these escapes. Any other character after a backslash stands for itself.
            self.bytes.push(match escape {
                b'b' => 0x08,
                b'f' => 0x0c,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 0x0b,
                other => *other,
            });
            field = rest;
        }
        self.bytes.extend_from_slice(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(line: &[u8], columns: usize) -> Option<Vec<Option<Vec<u8>>>> {
        let mut reader = CopyLine::default();
        reader.parse(line, columns).then(|| {
            let owned = |value| match value {
                Value::Text(bytes) => Some(bytes.to_vec()),
                _ => None,
            };
            reader.values().map(owned).collect()
        })
    }

    #[test]
    fn values_are_split_and_unescaped() {
        let line = b"1\t\\N\t\ta\\tb\\nc\\\\N\t\\\\N\n";
        let want = ["1", "\0null", "", "a\tb\nc\\N", "\\N"];
        let got = read(line, 5).unwrap();
        for (want, got) in want.iter().zip(got) {
            let got = got.map(|b| String::from_utf8(b).unwrap());
            assert_eq!(got.as_deref(), (*want != "\0null").then_some(*want));
        }
        assert_eq!(read(b"1\t2\n", 3), None);
        assert_eq!(read(b"\n", 0), Some(vec![]));
        assert_eq!(read(b"\n", 1), Some(vec![Some(vec![])]));
    }

    proptest! {
        #[test]
        fn escaped_values_round_trip(values in proptest::collection::vec(proptest::option::of(".*"), 1..6)) {
            let escape = |value: &Option<String>| match value {
                None => String::from("\\N"),
                Some(text) => text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
                    .replace('\u{8}', "\\b").replace('\u{c}', "\\f").replace('\u{b}', "\\v"),
            };
            let line = values.iter().map(escape).collect::<Vec<_>>().join("\t") + "\n";
            let want: Vec<_> = values.into_iter().map(|v| v.map(String::into_bytes)).collect();
            prop_assert_eq!(read(line.as_bytes(), want.len()), Some(want));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(line: Vec<u8>, columns in 0usize..5) {
            let _ = read(&line, columns);
        }
    }
}
