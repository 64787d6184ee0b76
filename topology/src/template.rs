//! Templates of bucket names: `user:{customer_id}`.
//!
//! A template consists of words and parameters separated by `:`; the first part is a word. Parameter values are
//! percent-encoded, so they contain no `:`. Therefore different values result in different names, and the values can be
//! parsed back from a name. A bucket name never begins with `~`, which is reserved for keys of control records.

use std::fmt;
use std::ops::Range;

/// Maximum length of a bucket name, in bytes. The name is part of every row's key.
pub const BUCKET_BYTES_MAX: usize = 512;
/// Maximum number of parts of a template.
const PARTS_MAX: usize = 8;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

/// One part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A literal word.
    Word(String),
    /// A parameter: its name, and the byte range of the name in the template.
    Param(String, Range<usize>),
}

/// A text is not a valid template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    /// Byte range in the template.
    pub span: Range<usize>,
    /// The error in the template.
    pub message: String,
    /// The fix.
    pub help: String,
}

/// A bucket name would be longer than [`BUCKET_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bucket name is longer than {BUCKET_BYTES_MAX} bytes; use a shorter parameter value")]
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
                    return Err(error(
                        at..at + c.len_utf8(),
                        format!("`{c}` directly after a parameter"),
                        "separate the parts with `:`, such as `store:{tenant}:{id}`",
                    ));
                }
            }
        }
        if let Some(Part::Param(name, span)) = parts.first() {
            let help = format!("begin the template with a word: `user:{{{name}}}`");
            return Err(error(
                span.clone(),
                String::from("a template must begin with a word"),
                &help,
            ));
        }
        if parts.len() > PARTS_MAX {
            return Err(error(
                0..text.len(),
                format!("the template has more than {PARTS_MAX} parts"),
                "remove parts",
            ));
        }
        Ok(Template { parts })
    }

    /// The parts, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Names and positions of the parameters, in order.
    pub fn params(&self) -> impl Iterator<Item = (&str, &Range<usize>)> {
        self.parts.iter().filter_map(|part| match part {
            Part::Word(_) => None,
            Part::Param(name, span) => Some((name.as_str(), span)),
        })
    }

    /// The first word, which identifies the bucket.
    pub fn kind(&self) -> &str {
        match self.parts.first() {
            Some(Part::Word(word) | Part::Param(word, _)) => word,
            None => "",
        }
    }

    /// Whether both templates have the same words, and parameters at the same positions.
    pub fn same_shape(&self, other: &Template) -> bool {
        self.parts.len() == other.parts.len()
            && self.parts.iter().zip(&other.parts).all(|pair| match pair {
                (Part::Word(a), Part::Word(b)) => a == b,
                (Part::Param(..), Part::Param(..)) => true,
                _ => false,
            })
    }

    /// Whether a name exists that matches both templates.
    pub fn overlaps(&self, other: &Template) -> bool {
        self.parts.len() == other.parts.len()
            && self.parts.iter().zip(&other.parts).all(|pair| match pair {
                (Part::Word(a), Part::Word(b)) => a == b,
                _ => true,
            })
    }

    /// The parts of a name with escaped parameters; `None` if the name does not match the template.
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
            return Err(error(
                at..at + 1,
                String::from("`{` without `}`"),
                "close the parameter: `{name}`",
            ));
        };
        let name = inner.get(..end).unwrap_or("");
        if name.trim().is_empty() || name.contains('{') {
            let help = "write a name between the braces: `user:{id}`";
            return Err(error(at..at + end + 2, String::from("the parameter has no name"), help));
        }
        return Ok((Part::Param(String::from(name), at + 1..at + 1 + end), end + 2));
    }
    let len = rest.find([':', '{']).unwrap_or(rest.len());
    let word = rest.get(..len).unwrap_or("");
    if rest.get(len..).is_some_and(|rest| rest.starts_with('{')) {
        return Err(error(
            at..at + len + 1,
            format!("`{word}` and a parameter are in the same part"),
            &format!("separate them with `:`: `{word}:{{…}}`"),
        ));
    }
    if word.is_empty() {
        let end = if rest.is_empty() { at } else { at + 1 };
        return Err(error(
            at..end,
            String::from("the template has an empty part"),
            "write a word or a `{parameter}` between the colons",
        ));
    }
    if let Some((offset, c)) = word.char_indices().find(|(_, c)| !is_plain(*c)) {
        return Err(error(
            at + offset..at + offset + c.len_utf8(),
            format!("`{c}` is not allowed in a template"),
            "use letters, digits, `_`, `-` and `.` in each part",
        ));
    }
    Ok((Part::Word(String::from(word)), len))
}

fn error(span: Range<usize>, message: String, help: &str) -> TemplateError {
    TemplateError {
        span,
        message,
        help: String::from(help),
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Appends a parameter value, percent-encoded: all bytes except letters, digits, `_`, `-` and `.` become `%XX` in upper
/// case.
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
    fn template_has_words_and_parameters() {
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
    fn invalid_template_is_rejected_with_position() {
        let cases = [
            ("", 0..0, "the template has an empty part"),
            ("user:", 5..5, "the template has an empty part"),
            (":a", 0..1, "the template has an empty part"),
            ("{id}", 1..3, "a template must begin with a word"),
            ("user:{id", 5..6, "`{` without `}`"),
            ("user:{}", 5..7, "the parameter has no name"),
            ("user{id}", 0..5, "`user` and a parameter are in the same part"),
            ("user:{id}x", 9..10, "`x` directly after a parameter"),
            ("~stale", 0..1, "`~` is not allowed in a template"),
            ("us er", 2..3, "` ` is not allowed in a template"),
        ];
        for (text, span, message) in cases {
            let error = Template::parse(text).unwrap_err();
            assert_eq!((error.span, error.message.as_str()), (span, message), "{text}");
        }
    }

    #[test]
    fn templates_overlap_if_a_name_matches_both() {
        let t = |text| Template::parse(text).unwrap();
        assert!(t("user:{id}").overlaps(&t("user:admin")));
        assert!(t("user:{id}").same_shape(&t("user:{customer}")));
        assert!(!t("user:{id}").same_shape(&t("user:admin")));
        assert!(!t("user:{id}").overlaps(&t("store:{id}")));
        assert!(!t("user:{id}").overlaps(&t("user:{a}:{b}")));
    }

    proptest! {
        #[test]
        fn escaping_is_injective(a in ".*", b in ".*") {
            let (mut x, mut y) = (String::new(), String::new());
            escape_into(&mut x, &a);
            escape_into(&mut y, &b);
            prop_assert_eq!(a == b, x == y);
            prop_assert!(!x.contains([':', '~', '"', '/']));
        }
    }
}
