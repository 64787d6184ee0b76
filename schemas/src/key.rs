//! Record keys: canonical JSON arrays of scalars (docs/reference/formats.md, "Keys").
//!
//! Equal parts have equal bytes, so log compaction and partitioning work on bytes. The parser is strict: it accepts exactly
//! the bytes that [`KeyWriter`] writes.

use crate::json;
use std::borrow::Cow;
use std::fmt;

/// Maximum length of a key in bytes.
pub const KEY_BYTES_MAX: usize = 64 * 1024;

/// A part of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Part<'a> {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A 32-bit integer. Wider integers are strings.
    Int(i32),
    /// Any other number, from a floating-point column.
    Number(f64),
    /// A string; borrowed unless it contains escapes.
    Str(Cow<'a, str>),
}

impl Part<'_> {
    /// The string, if the part is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Part::Str(text) => Some(text),
            _ => None,
        }
    }
}

/// Why bytes are not a canonical key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key is not a canonical JSON array: {reason} at byte {at}")]
pub struct KeyError {
    /// Byte offset in the key.
    pub at: usize,
    /// The reason.
    pub reason: &'static str,
}

/// Appends a key to a buffer, part by part.
///
/// ```
/// use trunkline_schemas::key::KeyWriter;
/// let mut out = Vec::new();
/// KeyWriter::new(&mut out).str("orders").int(17).finish();
/// assert_eq!(out, br#"["orders",17]"#);
/// ```
#[derive(Debug)]
#[must_use = "a key ends with finish()"]
pub struct KeyWriter<'o> {
    out: &'o mut Vec<u8>,
    empty: bool,
}

impl<'o> KeyWriter<'o> {
    /// Starts a key.
    pub fn new(out: &'o mut Vec<u8>) -> Self {
        out.push(b'[');
        KeyWriter { out, empty: true }
    }

    /// Returns the buffer, ready for the next part.
    pub(crate) fn next_part(&mut self) -> &mut Vec<u8> {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        self.out
    }

    /// Adds a string.
    pub fn str(mut self, text: &str) -> Self {
        json::write_str(self.next_part(), text);
        self
    }

    /// Adds a 32-bit integer as a number.
    pub fn int(mut self, value: i32) -> Self {
        json::write_i64(self.next_part(), i64::from(value));
        self
    }

    /// Adds a 64-bit integer as a string of digits.
    pub fn long(mut self, value: i64) -> Self {
        let out = self.next_part();
        out.push(b'"');
        json::write_i64(out, value);
        out.push(b'"');
        self
    }

    /// Adds a boolean.
    pub fn bool(mut self, value: bool) -> Self {
        self.next_part()
            .extend_from_slice(if value { b"true" } else { b"false" });
        self
    }

    /// Adds a null.
    pub fn null(mut self) -> Self {
        self.next_part().extend_from_slice(b"null");
        self
    }

    /// Adds a part of another key.
    pub fn part(mut self, part: &Part<'_>) -> Self {
        match part {
            Part::Null => self.null(),
            Part::Bool(value) => self.bool(*value),
            Part::Int(value) => self.int(*value),
            Part::Str(text) => self.str(text),
            Part::Number(value) => {
                json::write_f64(self.next_part(), *value);
                self
            }
        }
    }

    /// Adds the parts of another key, given as the text between its brackets, as returned by [`Parts::rest`] and
    /// [`Key::inside`]. The caller must make sure that it is canonical.
    pub fn inside(mut self, parts: &str) -> Self {
        if !parts.is_empty() {
            self.next_part().extend_from_slice(parts.as_bytes());
        }
        self
    }

    /// Completes the key.
    pub fn finish(self) {
        self.out.push(b']');
    }
}

/// A key whose bytes are known to be canonical.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<[u8]>);

impl Key {
    /// Builds a key.
    pub fn build(parts: impl FnOnce(KeyWriter<'_>) -> KeyWriter<'_>) -> Self {
        let mut out = Vec::with_capacity(64);
        parts(KeyWriter::new(&mut out)).finish();
        Key(out.into_boxed_slice())
    }

    /// Builds a key of strings.
    pub fn of(parts: &[&str]) -> Self {
        Key::build(|key| parts.iter().fold(key, |key, part| key.str(part)))
    }

    /// Parses a key.
    ///
    /// # Errors
    /// [`KeyError`] if the bytes are not a canonical JSON array of scalars.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        check(bytes).map(|()| Key(bytes.into()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The text inside the brackets.
    pub fn inside(&self) -> &str {
        let text = self.as_str();
        text.get(1..text.len().saturating_sub(1)).unwrap_or_default()
    }

    /// The parts, in order.
    pub fn parts(&self) -> Vec<Part<'_>> {
        parts(&self.0).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Parses all parts of a key.
///
/// # Errors
/// [`KeyError`] if the bytes are not a canonical JSON array of scalars.
pub fn parts(key: &[u8]) -> Result<Vec<Part<'_>>, KeyError> {
    Parts::new(key)?.collect()
}

/// Checks that bytes are a canonical key, without building its parts.
///
/// # Errors
/// [`KeyError`] if they are not.
pub fn check(key: &[u8]) -> Result<(), KeyError> {
    Parts::new(key)?.try_for_each(|part| part.map(drop))
}

/// Iterator over the parts of a key. It ends after the first error.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    text: &'a str,
    at: usize,
    done: bool,
}

impl<'a> Parts<'a> {
    /// Starts parsing a key.
    ///
    /// # Errors
    /// [`KeyError`] if it is too long, not UTF-8, or does not start with `[`.
    pub fn new(key: &'a [u8]) -> Result<Self, KeyError> {
        if key.len() > KEY_BYTES_MAX {
            return Err(KeyError {
                at: KEY_BYTES_MAX,
                reason: "it is longer than 65,536 bytes",
            });
        }
        let text = std::str::from_utf8(key).map_err(|e| KeyError {
            at: e.valid_up_to(),
            reason: "it is not UTF-8",
        })?;
        if !text.starts_with('[') {
            return Err(KeyError {
                at: 0,
                reason: "expected `[`",
            });
        }
        let mut parts = Parts {
            text,
            at: 1,
            done: false,
        };
        if text == "[]" {
            parts.at = 2;
            parts.done = true;
        }
        Ok(parts)
    }

    /// The text of the remaining parts, without the closing bracket. It is not checked. Empty at the end.
    pub fn rest(&self) -> &'a str {
        if self.done {
            return "";
        }
        self.text
            .get(self.at..)
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or_default()
    }

    fn error<T>(&self, reason: &'static str) -> Result<T, KeyError> {
        Err(KeyError { at: self.at, reason })
    }

    fn part(&mut self) -> Result<Part<'a>, KeyError> {
        let part = match self.text.as_bytes().get(self.at) {
            Some(b'"') => self.string()?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word("true", Part::Bool(true))?,
            Some(b'f') => self.word("false", Part::Bool(false))?,
            Some(b'n') => self.word("null", Part::Null)?,
            _ => return self.error("expected a string, a number, true, false or null"),
        };
        match self.text.as_bytes().get(self.at) {
            Some(b',') => self.at += 1,
            Some(b']') if self.at + 1 == self.text.len() => {
                self.at += 1;
                self.done = true;
            }
            _ => return self.error("expected `,` or the final `]`"),
        }
        Ok(part)
    }

    fn word(&mut self, word: &str, part: Part<'a>) -> Result<Part<'a>, KeyError> {
        if !self.text[self.at..].starts_with(word) {
            return self.error("expected a string, a number, true, false or null");
        }
        self.at += word.len();
        Ok(part)
    }

    fn number(&mut self) -> Result<Part<'a>, KeyError> {
        let rest = &self.text[self.at..];
        let length = rest.find([',', ']']).unwrap_or(rest.len());
        let token = &rest[..length];
        let mut written = Vec::with_capacity(32);
        let part = if let Ok(value) = token.parse::<i32>() {
            json::write_i64(&mut written, i64::from(value));
            Part::Int(value)
        } else {
            // Rust accepts more notations than JSON. Comparing with the canonical output rejects all others.
            let Some(value) = token.parse::<f64>().ok().filter(|value| value.is_finite()) else {
                return self.error("this is not a number");
            };
            json::write_f64(&mut written, value);
            Part::Number(value)
        };
        if written != token.as_bytes() {
            return self.error("this number is not in its canonical form");
        }
        self.at += length;
        Ok(part)
    }

    fn string(&mut self) -> Result<Part<'a>, KeyError> {
        self.at += 1;
        let bytes = self.text.as_bytes();
        let from = self.at;
        let mut plain = from;
        let mut unescaped: Option<String> = None;
        loop {
            match bytes.get(self.at) {
                None => return self.error("the string does not end"),
                Some(b'"') => break,
                Some(b'\\') => {
                    let text = unescaped.get_or_insert_default();
                    text.push_str(&self.text[plain..self.at]);
                    text.push(self.escape()?);
                    plain = self.at;
                }
                Some(0..=0x1f) => return self.error("a control character must be escaped"),
                Some(_) => self.at += 1,
            }
        }
        let tail = &self.text[plain..self.at];
        self.at += 1;
        Ok(Part::Str(match unescaped {
            None => Cow::Borrowed(tail),
            Some(mut text) => {
                text.push_str(tail);
                Cow::Owned(text)
            }
        }))
    }

    /// Parses an escape, which must be the shortest escape for its character.
    fn escape(&mut self) -> Result<char, KeyError> {
        let bytes = self.text.as_bytes();
        let letter = bytes.get(self.at + 1).copied().unwrap_or_default();
        let short = match letter {
            b'"' | b'\\' => Some(char::from(letter)),
            b'b' => Some('\u{8}'),
            b't' => Some('\t'),
            b'n' => Some('\n'),
            b'f' => Some('\u{c}'),
            b'r' => Some('\r'),
            _ => None,
        };
        if let Some(c) = short {
            self.at += 2;
            return Ok(c);
        }
        let digits = bytes.get(self.at + 2..self.at + 6).unwrap_or_default();
        for code in 0..0x20u8 {
            let mut written = Vec::with_capacity(4);
            written.extend_from_slice(b"00");
            json::push_hex(&mut written, code);
            if letter == b'u' && digits == written && json::escape_of(code) == b'u' {
                self.at += 6;
                return Ok(char::from(code));
            }
        }
        self.error("the escape is invalid, or not the shortest escape for its character")
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<Part<'a>, KeyError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.done = true;
        }
        Some(part)
    }
}

#[cfg(test)]
mod tests;
