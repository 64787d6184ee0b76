//! JSON that every client can parse: PostgreSQL's `json` accepts more than common parsers do.

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Maximum nesting depth. Parsers reject documents that are nested deeper than 128 to 512 levels, and the text is part of
/// a page, which has more levels.
const DEPTH_MAX: usize = 100;

/// Whether a text is valid JSON without unpaired surrogates, without numbers that exceed the range of doubles, and
/// without deep nesting.
pub(crate) fn is_portable(text: &str) -> bool {
    let mut json = serde_json::Deserializer::from_str(text);
    let checked = Portable { depth: 0 }.deserialize(&mut json);
    checked.is_ok() && json.end().is_ok()
}

/// Checks one value at a nesting depth. serde_json rejects unpaired surrogates in strings that are read, and numbers
/// that are out of range.
#[derive(Clone, Copy)]
struct Portable {
    depth: usize,
}

impl Portable {
    fn inner<E: Error>(self) -> Result<Self, E> {
        if self.depth < DEPTH_MAX {
            Ok(Portable { depth: self.depth + 1 })
        } else {
            Err(E::custom("nested too deeply"))
        }
    }
}

impl<'de> DeserializeSeed<'de> for Portable {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Portable {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while items.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while entries.next_key_seed(inner)?.is_some() {
            entries.next_value_seed(inner)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_portable_if_common_parsers_read_it() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        for text in [
            "null",
            " {\"a\": [1, -2.5e300, true, \"\\ud83d\\ude00\"]} ",
            "{}",
            "18446744073709551616",
            &nested(DEPTH_MAX),
        ] {
            assert!(is_portable(text), "{text}");
        }
        for text in [
            "",
            "1 2",
            "{\"a\":}",
            "1e400",
            "-1e400",
            "{\"a\":[1e999]}",
            "\"\\ud800\"",
            "\"\\ude00\\ud83d\"",
            "{\"\\ud800\":1}",
            "NaN",
            &nested(DEPTH_MAX + 1),
            &"[".repeat(100_000),
        ] {
            assert!(!is_portable(text), "{text:.40}");
        }
    }
}
