//! Templates of bucket names: `user:{customer_id}`.
//!
//! A template is words and parameters with `:` between them; the first part is a word. A parameter's value is
//! percent-escaped, so it never holds a `:`: two templates give the same name only if their parts match one by one,
//! and the parameters can be read back from the name.
//!
//! Guarantees: different values give different names; a name never begins with `~` (control records do).
//! Never: decides what a parameter refers to (a column, a claim): that is the caller's.

use std::fmt;
use std::ops::Range;

/// Longest name of a bucket, in bytes. It stands in the key of every row.
pub const BUCKET_BYTES_MAX: usize = 512;
/// Most parts of a template.
const PARTS_MAX: usize = 8;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

/// One part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A word, as it stands.
    Word(String),
    /// A parameter: its name, and where the name stands in the template, in bytes.
    Param(String, Range<usize>),
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    /// Where in the template, in bytes.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// The fix.
    pub help: String,
}

/// A bucket's name would be longer than [`BUCKET_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a bucket's name is longer than {BUCKET_BYTES_MAX} bytes; use a shorter value as its parameter")]
pub struct TooLong;

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// Fails on the first part that is neither a word nor a parameter.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut at = 0;
        loop {
            let rest = text.get(at..).unwrap_or("");
            let (part, len) = parse_part(rest, at)?;
            parts.push(part);
            at += len;
            match text.get(at..).and_then(|rest| rest.chars().next()) {
                None => break,
                Some(':') => at += 1,
                Some(c) => {
                    return Err(refuse(
                        at..at + c.len_utf8(),
                        format!("`{c}` follows a parameter"),
                        "put `:` between a parameter and what follows: `store:{tenant}:{id}`",
                    ));
                }
            }
        }
        if let Some(Part::Param(name, span)) = parts.first() {
            let help = format!("say what kind of bucket it is: `user:{{{name}}}`");
            return Err(refuse(
                span.clone(),
                String::from("a template begins with a word"),
                &help,
            ));
        }
        if parts.len() > PARTS_MAX {
            return Err(refuse(
                0..text.len(),
                format!("more than {PARTS_MAX} parts"),
                "use fewer parts",
            ));
        }
        Ok(Template { parts })
    }

    /// The parts, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The parameters' names and places, in order.
    pub fn params(&self) -> impl Iterator<Item = (&str, &Range<usize>)> {
        self.parts.iter().filter_map(|part| match part {
            Part::Word(_) => None,
            Part::Param(name, span) => Some((name.as_str(), span)),
        })
    }

    /// The word that it begins with: the kind of the bucket.
    pub fn kind(&self) -> &str {
        match self.parts.first() {
            Some(Part::Word(word) | Part::Param(word, _)) => word,
            None => "",
        }
    }

    /// Whether both have the same words and have parameters at the same places.
    pub fn same_shape(&self, other: &Template) -> bool {
        self.parts.len() == other.parts.len()
            && self.parts.iter().zip(&other.parts).all(|pair| match pair {
                (Part::Word(a), Part::Word(b)) => a == b,
                (Part::Param(..), Part::Param(..)) => true,
                _ => false,
            })
    }

    /// Whether some name could be made by both.
    pub fn overlaps(&self, other: &Template) -> bool {
        self.parts.len() == other.parts.len()
            && self.parts.iter().zip(&other.parts).all(|pair| match pair {
                (Part::Word(a), Part::Word(b)) => a == b,
                _ => true,
            })
    }

    /// The parts of a name that this template made, the parameters still escaped; `None` if it did not make it.
    pub fn split<'n>(&self, name: &'n str) -> Option<Vec<&'n str>> {
        let found: Vec<&str> = name.split(':').collect();
        let matches = found.len() == self.parts.len()
            && self.parts.iter().zip(&found).all(|(part, found)| match part {
                Part::Word(word) => word == found,
                Part::Param(..) => true,
            });
        matches.then_some(found)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in self.parts.iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            match part {
                Part::Word(word) => write!(f, "{colon}{word}")?,
                Part::Param(name, _) => write!(f, "{colon}{{{name}}}")?,
            }
        }
        Ok(())
    }
}

fn parse_part(rest: &str, at: usize) -> Result<(Part, usize), TemplateError> {
    if let Some(inner) = rest.strip_prefix('{') {
        let Some(end) = inner.find('}') else {
            return Err(refuse(
                at..at + 1,
                String::from("`{` without `}`"),
                "close the parameter: `{name}`",
            ));
        };
        let name = inner.get(..end).unwrap_or("");
        if name.trim().is_empty() || name.contains('{') {
            let help = "name the parameter: `user:{id}`";
            return Err(refuse(at..at + end + 2, String::from("a parameter needs a name"), help));
        }
        return Ok((Part::Param(String::from(name), at + 1..at + 1 + end), end + 2));
    }
    let len = rest.find([':', '{']).unwrap_or(rest.len());
    let word = rest.get(..len).unwrap_or("");
    if rest.get(len..).is_some_and(|rest| rest.starts_with('{')) {
        return Err(refuse(
            at..at + len + 1,
            format!("`{word}` and a parameter in one part"),
            &format!("put `:` between them: `{word}:{{…}}`"),
        ));
    }
    if word.is_empty() {
        let end = if rest.is_empty() { at } else { at + 1 };
        return Err(refuse(
            at..end,
            String::from("an empty part"),
            "write a word or a `{parameter}`",
        ));
    }
    if let Some((offset, c)) = word.char_indices().find(|(_, c)| !is_plain(*c)) {
        return Err(refuse(
            at + offset..at + offset + c.len_utf8(),
            format!("`{c}` in a bucket's name"),
            "use letters, digits, `_`, `-` and `.` between the `:`",
        ));
    }
    Ok((Part::Word(String::from(word)), len))
}

fn refuse(span: Range<usize>, message: String, help: &str) -> TemplateError {
    TemplateError {
        span,
        message,
        help: String::from(help),
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Appends a parameter's value: letters, digits, `_`, `-` and `.` as they are, every other byte of its UTF-8 as `%`
/// and two hexadecimal digits in upper case.
pub fn escape_into(out: &mut String, value: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for c in value.chars() {
        if is_plain(c) {
            out.push(c);
            continue;
        }
        let mut buffer = [0; 4];
        for byte in c.encode_utf8(&mut buffer).bytes() {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_template_is_words_and_parameters_with_colons_between() {
        let template = Template::parse("store:{tenant}:{id}").unwrap();
        assert_eq!(template.kind(), "store");
        assert_eq!(
            template.params().map(|(name, _)| name).collect::<Vec<_>>(),
            ["tenant", "id"]
        );
        assert_eq!(template.to_string(), "store:{tenant}:{id}");
        assert_eq!(template.split("store:a:7"), Some(vec!["store", "a", "7"]));
        assert_eq!(template.split("shop:a:7"), None);
        assert_eq!(template.split("store:a"), None);
        assert_eq!(Template::parse("global").unwrap().params().count(), 0);
        let claim = Template::parse("store:{https://example.com/stores}").unwrap();
        assert_eq!(
            claim.params().next().map(|(name, _)| name),
            Some("https://example.com/stores")
        );
    }

    #[test]
    fn what_is_no_template_is_refused_at_its_place() {
        let cases = [
            ("", 0..0, "an empty part"),
            ("user:", 5..5, "an empty part"),
            (":a", 0..1, "an empty part"),
            ("{id}", 1..3, "a template begins with a word"),
            ("user:{id", 5..6, "`{` without `}`"),
            ("user:{}", 5..7, "a parameter needs a name"),
            ("user{id}", 0..5, "`user` and a parameter in one part"),
            ("user:{id}x", 9..10, "`x` follows a parameter"),
            ("~close", 0..1, "`~` in a bucket's name"),
            ("us er", 2..3, "` ` in a bucket's name"),
        ];
        for (text, span, message) in cases {
            let error = Template::parse(text).unwrap_err();
            assert_eq!((error.span, error.message.as_str()), (span, message), "{text}");
        }
    }

    #[test]
    fn templates_overlap_when_some_name_fits_both() {
        let t = |text| Template::parse(text).unwrap();
        assert!(t("user:{id}").overlaps(&t("user:admin")));
        assert!(t("user:{id}").same_shape(&t("user:{customer}")));
        assert!(!t("user:{id}").same_shape(&t("user:admin")));
        assert!(!t("user:{id}").overlaps(&t("store:{id}")));
        assert!(!t("user:{id}").overlaps(&t("user:{a}:{b}")));
    }

    proptest! {
        #[test]
        fn different_values_give_different_names(a in ".*", b in ".*") {
            let (mut x, mut y) = (String::new(), String::new());
            escape_into(&mut x, &a);
            escape_into(&mut y, &b);
            prop_assert_eq!(a == b, x == y);
            prop_assert!(!x.contains([':', '~', '"', '/']));
        }
    }
}
