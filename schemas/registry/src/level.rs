//! How far a new schema of a subject must get on with the earlier ones.
//!
//! Guarantees: the seven levels and what they compare are Confluent's. Never: IO.

use crate::{Error, Result};
use schemas::evolution::compatible;
use schemas::schema::Schema;
use std::fmt;
use std::str::FromStr;

/// A compatibility level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// Anything goes.
    None,
    /// The new schema reads what the latest wrote.
    #[default]
    Backward,
    /// The new schema reads what any earlier one wrote.
    BackwardTransitive,
    /// The latest reads what the new schema writes.
    Forward,
    /// Every earlier one reads what the new schema writes.
    ForwardTransitive,
    /// Both, with the latest.
    Full,
    /// Both, with every earlier one.
    FullTransitive,
}

impl Level {
    /// Confluent's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Level::None => "NONE",
            Level::Backward => "BACKWARD",
            Level::BackwardTransitive => "BACKWARD_TRANSITIVE",
            Level::Forward => "FORWARD",
            Level::ForwardTransitive => "FORWARD_TRANSITIVE",
            Level::Full => "FULL",
            Level::FullTransitive => "FULL_TRANSITIVE",
        }
    }

    /// Whether it looks at all earlier versions, not only at the latest.
    pub fn is_transitive(self) -> bool {
        matches!(
            self,
            Level::BackwardTransitive | Level::ForwardTransitive | Level::FullTransitive
        )
    }

    fn reads_old(self) -> bool {
        matches!(
            self,
            Level::Backward | Level::BackwardTransitive | Level::Full | Level::FullTransitive
        )
    }

    fn is_read_by_old(self) -> bool {
        matches!(
            self,
            Level::Forward | Level::ForwardTransitive | Level::Full | Level::FullTransitive
        )
    }

    /// The conflicts of a new schema with one earlier version.
    pub fn conflicts(self, new: &Schema, old: &Schema, old_version: u32) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |reader: &Schema, writer: &Schema, who: &str| {
            for conflict in compatible(reader, writer).err().unwrap_or_default() {
                found.push(format!("{who} version {old_version}: {conflict}"));
            }
        };
        if self.reads_old() {
            compare(new, old, "new schema cannot read");
        }
        if self.is_read_by_old() {
            compare(old, new, "new schema cannot be read by");
        }
        found
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Level {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [
            Level::None,
            Level::Backward,
            Level::BackwardTransitive,
            Level::Forward,
            Level::ForwardTransitive,
            Level::Full,
            Level::FullTransitive,
        ];
        let found = all.into_iter().find(|level| level.word().eq_ignore_ascii_case(text));
        found.ok_or_else(|| Error::InvalidLevel {
            level: text.chars().take(64).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(fields: &str) -> Schema {
        Schema::parse(&format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#)).unwrap()
    }

    #[test]
    fn each_level_compares_its_directions() {
        let old = schema(r#"{"name":"a","type":"int"}"#);
        let field_added = schema(r#"{"name":"a","type":"int"},{"name":"b","type":"int"}"#);
        let field_dropped = schema("");
        for (level, added_fits, dropped_fits) in [
            (Level::None, true, true),
            (Level::Backward, false, true),
            (Level::Forward, true, false),
            (Level::Full, false, false),
        ] {
            assert_eq!(level.conflicts(&field_added, &old, 1).is_empty(), added_fits, "{level}");
            assert_eq!(
                level.conflicts(&field_dropped, &old, 1).is_empty(),
                dropped_fits,
                "{level}"
            );
        }
        let conflicts = Level::Full.conflicts(&field_dropped, &old, 3);
        let text =
            "new schema cannot be read by version 3: a: writer has no such field, and reader has no default for it";
        assert_eq!(conflicts, [text]);
    }

    #[test]
    fn words_read_back_in_any_case() {
        for word in [
            "NONE",
            "backward",
            "Backward_Transitive",
            "FORWARD",
            "FORWARD_TRANSITIVE",
            "FULL",
            "full_transitive",
        ] {
            assert!(word.parse::<Level>().unwrap().word().eq_ignore_ascii_case(word));
        }
        assert_eq!("SIDEWAYS".parse::<Level>().unwrap_err().code(), 42203);
    }
}
