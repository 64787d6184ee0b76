//! Parser of PostgreSQL's text output of arrays: `{1,NULL,"a \"quoted\" item"}`.
//!
//! Subscripts that do not begin with 1 (`[0:1]={1,2}`) are not kept. An array of several dimensions has no equivalent
//! and is rejected.

use std::ops::Range;

/// Why a text was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArrayError {
    /// The array has several dimensions.
    Dimensions,
    /// The text is not an array.
    Syntax,
}

/// Appends the items of an array: their bytes without quotes and escapes to `bytes`, and their ranges in `bytes` to
/// `items`, `None` for a null.
pub(super) fn parse(text: &[u8], bytes: &mut Vec<u8>, items: &mut Vec<Option<Range<usize>>>) -> Result<(), ArrayError> {
    let body = strip_bounds(text)?;
    let body = body.strip_prefix(b"{").and_then(|body| body.strip_suffix(b"}"));
    let mut rest = body.ok_or(ArrayError::Syntax)?;
    while !rest.is_empty() {
        let from = bytes.len();
        let (is_null, after) = item(rest, bytes)?;
        items.push((!is_null).then_some(from..bytes.len()));
        rest = match after.split_first() {
            None => return Ok(()),
            Some((b',', rest)) if !rest.is_empty() => rest,
            Some(_) => return Err(ArrayError::Syntax),
        };
    }
    Ok(())
}

/// Removes `[0:1]=`.
fn strip_bounds(text: &[u8]) -> Result<&[u8], ArrayError> {
    if !text.starts_with(b"[") {
        return Ok(text);
    }
    let at = text.iter().position(|b| *b == b'=').ok_or(ArrayError::Syntax)?;
    let (bounds, body) = text.split_at_checked(at).ok_or(ArrayError::Syntax)?;
    match bounds.iter().filter(|b| **b == b'[').count() {
        1 => Ok(body.get(1..).unwrap_or_default()),
        _ => Err(ArrayError::Dimensions),
    }
}

/// Appends one item; returns whether it is null, and the text after it.
fn item<'t>(text: &'t [u8], bytes: &mut Vec<u8>) -> Result<(bool, &'t [u8]), ArrayError> {
    if text.starts_with(b"{") {
        return Err(ArrayError::Dimensions);
    }
    let (mut rest, is_quoted) = match text.strip_prefix(b"\"") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let from = bytes.len();
    loop {
        match rest.split_first() {
            Some((b'"', after)) if is_quoted => return Ok((false, after)),
            Some((b',', _)) | None if !is_quoted => break,
            Some((b'\\', after)) => {
                let (byte, after) = after.split_first().ok_or(ArrayError::Syntax)?;
                bytes.push(*byte);
                rest = after;
            }
            Some((b'{' | b'}' | b'"', _)) if !is_quoted => return Err(ArrayError::Syntax),
            Some((byte, after)) => {
                bytes.push(*byte);
                rest = after;
            }
            None => return Err(ArrayError::Syntax),
        }
    }
    match bytes.get(from..) {
        None | Some([]) => Err(ArrayError::Syntax),
        Some(b"NULL") => {
            bytes.truncate(from);
            Ok((true, rest))
        }
        Some(_) => Ok((false, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn items(text: &str) -> Result<Vec<Option<String>>, ArrayError> {
        let (mut bytes, mut items) = (Vec::new(), Vec::new());
        parse(text.as_bytes(), &mut bytes, &mut items)?;
        let text = |range: Range<usize>| String::from_utf8(bytes[range].to_vec()).unwrap();
        Ok(items.into_iter().map(|range| range.map(text)).collect())
    }

    #[test]
    fn items_nulls_and_quotes() {
        let cases: [(&str, &[Option<&str>]); 6] = [
            ("{}", &[]),
            ("{1,-2,NULL}", &[Some("1"), Some("-2"), None]),
            (r#"{"NULL","",null}"#, &[Some("NULL"), Some(""), Some("null")]),
            (
                r#"{"a,b","c\"d\\","{e}",f g}"#,
                &[Some("a,b"), Some("c\"d\\"), Some("{e}"), Some("f g")],
            ),
            ("[0:1]={x,y}", &[Some("x"), Some("y")]),
            (
                r#"{"2024-02-29 12:34:56.789+00"}"#,
                &[Some("2024-02-29 12:34:56.789+00")],
            ),
        ];
        for (text, expected) in cases {
            let expected: Vec<Option<String>> = expected.iter().map(|item| item.map(str::to_owned)).collect();
            assert_eq!(items(text), Ok(expected), "{text}");
        }
        for text in ["{{1,2},{3,4}}", "[1:1][2:2]={{1}}"] {
            assert_eq!(items(text), Err(ArrayError::Dimensions), "{text}");
        }
        for text in [
            "", "{", "1,2", "{1,}", "{,1}", "{\"a}", "{\"a\"b}", "{a\\", "[0:1]", "{a\"b}",
        ] {
            assert_eq!(items(text), Err(ArrayError::Syntax), "{text}");
        }
    }

    proptest! {
        #[test]
        fn quoted_items_round_trip(list: Vec<Option<String>>) {
            let quoted = |item: &Option<String>| match item {
                Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
                None => String::from("NULL"),
            };
            let text = format!("{{{}}}", list.iter().map(quoted).collect::<Vec<_>>().join(","));
            prop_assert_eq!(items(&text), Ok(list));
        }

        #[test]
        fn arbitrary_text_does_not_panic(text: Vec<u8>, near in r#"[{}",\\\[\]=a-c]{0,20}"#) {
            for text in [&text[..], near.as_bytes()] {
                let _ = parse(text, &mut Vec::new(), &mut Vec::new());
            }
        }
    }
}
