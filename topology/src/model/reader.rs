//! Reads a TOML table key by key, with positions.
//!
//! All wrong types, missing keys and unknown keys are reported with their positions. Tables and maps preserve the order
//! of the file.

use crate::names;
use crate::problem::{Problem, Problems};
use std::cell::RefCell;
use std::ops::{Deref, Range};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Names and their strings, in the order of the file.
pub type Entries = Vec<(At<String>, At<String>)>;

/// A value and its position in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Byte range; for a string, including the quotes.
    pub span: Range<usize>,
}

impl<T> Deref for At<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// A table of which keys are read.
pub(super) struct Table<'r, 'i> {
    /// Name in messages, such as `[[view]]`.
    what: String,
    /// Byte range.
    pub(super) span: Range<usize>,
    table: &'r DeTable<'i>,
    problems: &'r Problems,
    requested: RefCell<Vec<&'static str>>,
}

impl<'r, 'i> Table<'r, 'i> {
    /// The root table of a file.
    pub(super) fn root(table: &'r Spanned<DeTable<'i>>, problems: &'r Problems) -> Self {
        Table::new(String::from("the topology"), 0..0, table.get_ref(), problems)
    }

    fn new(what: String, span: Range<usize>, table: &'r DeTable<'i>, problems: &'r Problems) -> Self {
        Table {
            what,
            span,
            table,
            problems,
            requested: RefCell::default(),
        }
    }

    fn get(&self, key: &'static str) -> Option<&'r Spanned<DeValue<'i>>> {
        self.requested.borrow_mut().push(key);
        self.table
            .iter()
            .find(|(name, _)| name.get_ref() == key)
            .map(|(_, value)| value)
    }

    fn wrong(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        let found = value.get_ref().type_str();
        let article = |noun: &str| {
            if noun.starts_with(['a', 'i', 'o', 'e']) {
                "an"
            } else {
                "a"
            }
        };
        self.problems.add(
            Problem::error(value.span(), format!("`{key}` of {} must be {wanted}", self.what))
                .label(format!("this is {} {found}", article(found)))
                .help(format!("write {wanted}")),
        );
    }

    /// An optional string.
    pub(super) fn text(&self, key: &'static str) -> Option<At<String>> {
        let value = self.get(key)?;
        let text = as_text(value);
        if text.is_none() {
            self.wrong(key, value, "a string");
        }
        text
    }

    /// A required string; `example` is shown if it is missing.
    pub(super) fn required(&self, key: &'static str, example: &str) -> Option<At<String>> {
        self.expect(key, example);
        self.text(key)
    }

    /// Reports a missing key; `example` is its value in the fix.
    pub(super) fn expect(&self, key: &'static str, example: &str) {
        if self.get(key).is_none() {
            self.problems.add(
                Problem::error(self.span.clone(), format!("{} has no `{key}`", self.what))
                    .label("in this table")
                    .help(format!("add `{key} = {example}`")),
            );
        }
    }

    /// An optional list of strings. A single string is an error.
    pub(super) fn texts(&self, key: &'static str) -> Option<At<Vec<At<String>>>> {
        let value = self.get(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.wrong(key, value, "a list of strings, such as [\"id\"]");
            return None;
        };
        let mut texts = Vec::with_capacity(array.len());
        for element in array.iter() {
            match as_text(element) {
                Some(text) => texts.push(text),
                None => self.wrong(key, element, "a list of strings, such as [\"id\"]"),
            }
        }
        Some(At {
            value: texts,
            span: value.span(),
        })
    }

    /// An optional integer.
    pub(super) fn integer(&self, key: &'static str) -> Option<At<i64>> {
        let value = self.get(key)?;
        let parsed = value
            .get_ref()
            .as_integer()
            .and_then(|n| i64::from_str_radix(n.as_str(), n.radix()).ok());
        if parsed.is_none() {
            self.wrong(key, value, "an integer");
        }
        Some(At {
            value: parsed?,
            span: value.span(),
        })
    }

    /// An optional map from names to strings, in the order of the file.
    pub(super) fn map(&self, key: &'static str) -> Option<At<Entries>> {
        let value = self.get(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.wrong(key, value, "a table of strings, such as { id = \"int8\" }");
            return None;
        };
        let mut entries = Vec::with_capacity(table.len());
        for (name, value) in table.iter() {
            match as_text(value) {
                Some(text) => {
                    entries.push((
                        At {
                            value: name.get_ref().to_string(),
                            span: name.span(),
                        },
                        text,
                    ));
                }
                None => self.wrong(name.get_ref(), value, "a string"),
            }
        }
        entries.sort_by_key(|(name, _)| name.span.start);
        Some(At {
            value: entries,
            span: value.span(),
        })
    }

    /// An optional table, such as `[view_log]`.
    pub(super) fn table(&self, key: &'static str) -> Option<Table<'r, 'i>> {
        let value = self.get(key)?;
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong(key, value, &format!("a table, written [{key}]"));
        }
        Some(Table::new(format!("[{key}]"), value.span(), table?, self.problems))
    }

    /// An optional list of tables, such as `[[view]]`.
    pub(super) fn tables(&self, key: &'static str) -> Vec<Table<'r, 'i>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let wanted = format!("a list of tables, each written [[{key}]]");
        let Some(array) = value.get_ref().as_array() else {
            self.wrong(key, value, &wanted);
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(array.len());
        for element in array.iter() {
            match element.get_ref().as_table() {
                Some(table) => tables.push(Table::new(format!("[[{key}]]"), element.span(), table, self.problems)),
                None => self.wrong(key, element, &wanted),
            }
        }
        tables
    }

    /// Adds the value of `name` to the table's name in messages.
    pub(super) fn called(&mut self, name: Option<&At<String>>) {
        if let Some(name) = name {
            self.what = format!("{} `{}`", self.what, name.value);
        }
    }

    /// Reports keys that were not read.
    pub(super) fn finish(self) {
        let mut requested = self.requested.into_inner();
        requested.dedup();
        for (name, _) in self
            .table
            .iter()
            .filter(|(name, _)| !requested.contains(&name.get_ref().as_ref()))
        {
            self.problems.add(
                Problem::error(name.span(), format!("{} has no key `{}`", self.what, name.get_ref()))
                    .label("unknown key")
                    .help(names::known(
                        name.get_ref(),
                        requested.iter().copied(),
                        "remove the key",
                    )),
            );
        }
    }
}

fn as_text(value: &Spanned<DeValue<'_>>) -> Option<At<String>> {
    value.get_ref().as_str().map(|text| At {
        value: String::from(text),
        span: value.span(),
    })
}

/// Position in the file of a part of a string. `inner` is a byte range of the string's value, `outer` the position of the
/// string including its quotes. Falls back to the whole string if an escape cannot be interpreted.
pub(crate) fn inside(file: &str, outer: &Range<usize>, inner: &Range<usize>) -> Range<usize> {
    let Some(raw) = file.get(outer.clone()) else {
        return outer.clone();
    };
    let quote = if raw.starts_with("\"\"\"") || raw.starts_with("'''") {
        3
    } else {
        1
    };
    let body = raw.get(quote..raw.len().saturating_sub(quote)).unwrap_or("");
    // A newline immediately after the opening `"""` is not part of the value.
    let newline = match quote {
        3 if body.starts_with("\r\n") => 2,
        3 if body.starts_with('\n') => 1,
        _ => 0,
    };
    let body = body.get(newline..).unwrap_or("");
    let escapes = raw.starts_with('"');
    let at = |wanted: usize| raw_offset(body, wanted, escapes).map(|offset| outer.start + quote + newline + offset);
    match (at(inner.start), at(inner.end)) {
        (Some(start), Some(end)) if start <= end => start..end,
        _ => outer.clone(),
    }
}

/// Offset in the source text of byte `wanted` of the value.
fn raw_offset(body: &str, wanted: usize, escapes: bool) -> Option<usize> {
    if !escapes || !body.contains('\\') {
        return (wanted <= body.len()).then_some(wanted);
    }
    let (mut value_at, mut raw_at) = (0, 0);
    while value_at < wanted {
        let rest = body.get(raw_at..)?;
        let first = rest.chars().next()?;
        let (raw_len, value_len) = match (first, rest.chars().nth(1)) {
            ('\\', Some('u')) => (6, escaped_len(rest.get(2..6)?)?),
            ('\\', Some('U')) => (10, escaped_len(rest.get(2..10)?)?),
            ('\\', Some('x')) => (4, escaped_len(rest.get(2..4)?)?),
            ('\\', Some(c)) if c.is_whitespace() => {
                let after = rest.get(1..)?;
                (1 + after.len() - after.trim_start().len(), 0)
            }
            ('\\', Some(_)) => (2, 1),
            (c, _) => (c.len_utf8(), c.len_utf8()),
        };
        raw_at += raw_len;
        value_at += value_len;
    }
    Some(raw_at)
}

fn escaped_len(hex: &str) -> Option<usize> {
    u32::from_str_radix(hex, 16)
        .ok()
        .and_then(char::from_u32)
        .map(char::len_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_inside_strings_follow_escapes() {
        let cases = [
            (r#"'a != "b"'"#, r#"a != "b""#),
            (r#""a != \"b\"""#, r#"a != "b""#),
            (r#""\u00e9 != \"b\"""#, r#"é != "b""#),
            ("'''\nx\n != \"b\"'''", "x\n != \"b\""),
            ("\"\"\"a\\\n   != \\\"b\\\"\"\"\"", "a!= \"b\""),
        ];
        for (written, value) in cases {
            let file = format!("where = {written}\n");
            let start = value.find('b').unwrap();
            let found = inside(&file, &(8..8 + written.len()), &(start..start + 1));
            assert_eq!(&file[found], "b", "{written}");
        }
    }
}
