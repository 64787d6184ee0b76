//! The compatibility levels of Confluent's registry.

use crate::{Error, Result};
use schemas::evolution::compatible;
use schemas::schema::Schema;
use std::fmt;
use std::str::FromStr;

/// A compatibility level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// No check.
    None,
    /// The new schema can read data of the latest schema.
    #[default]
    Backward,
    /// The new schema can read data of all earlier schemas.
    BackwardTransitive,
    /// The latest schema can read data of the new schema.
    Forward,
    /// All earlier schemas can read data of the new schema.
    ForwardTransitive,
    /// Backward and forward compatible with the latest schema.
    Full,
    /// Backward and forward compatible with all earlier schemas.
    FullTransitive,
}

impl Level {
    /// Confluent's name of the level.
    pub fn name(self) -> &'static str {
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

    /// Whether the level applies to all earlier versions instead of only the latest one.
    pub fn is_transitive(self) -> bool {
        matches!(
            self,
            Level::BackwardTransitive | Level::ForwardTransitive | Level::FullTransitive
        )
    }

    fn is_backward(self) -> bool {
        matches!(
            self,
            Level::Backward | Level::BackwardTransitive | Level::Full | Level::FullTransitive
        )
    }

    fn is_forward(self) -> bool {
        matches!(
            self,
            Level::Forward | Level::ForwardTransitive | Level::Full | Level::FullTransitive
        )
    }

    /// The incompatibilities of a new schema with an earlier version.
    pub fn conflicts(self, new: &Schema, old: &Schema, old_version: u32) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |reader: &Schema, writer: &Schema, who: &str| {
            for conflict in compatible(reader, writer).err().unwrap_or_default() {
                found.push(format!("{who} version {old_version}: {conflict}"));
            }
        };
        if self.is_backward() {
            compare(new, old, "new schema cannot read");
        }
        if self.is_forward() {
            compare(old, new, "new schema cannot be read by");
        }
        found
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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
        let found = all.into_iter().find(|level| level.name().eq_ignore_ascii_case(text));
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
        let text = "new schema cannot be read by version 3: a: the writer lacks this field and the reader has no default for it";
        assert_eq!(conflicts, [text]);
    }

    #[test]
    fn names_parse_in_any_case() {
        for word in [
            "NONE",
            "backward",
            "Backward_Transitive",
            "FORWARD",
            "FORWARD_TRANSITIVE",
            "FULL",
            "full_transitive",
        ] {
            assert!(word.parse::<Level>().unwrap().name().eq_ignore_ascii_case(word));
        }
        assert_eq!("SIDEWAYS".parse::<Level>().unwrap_err().code(), 42203);
    }
}
