//! Column types as they are declared: `int8`, `text?`, `numeric(10,2)`.
//!
//! Guarantees: a type is known by the name that `schemas::pg_types` gives it; a slip in a built-in type's name is
//! noticed.
//! Never: refuses a type that PostgreSQL may know (an enum, an extension's): such a column is published as its text.

use crate::names;
use schemas::pg_types;

/// PostgreSQL's built-in types, in the catalog's spelling.
const BUILT_IN: [&str; 34] = [
    "bool",
    "int2",
    "int4",
    "int8",
    "float4",
    "float8",
    "numeric",
    "text",
    "varchar",
    "bpchar",
    "name",
    "citext",
    "uuid",
    "bytea",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
    "json",
    "jsonb",
    "xml",
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    "money",
    "oid",
    "bit",
    "varbit",
    "tsvector",
    "point",
    "hstore",
];

/// A declared type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Declared {
    /// The type in the catalog's spelling, without length and precision: `int8`, `_text`.
    pub(crate) name: String,
    /// Whether the column may be null.
    pub(crate) nullable: bool,
}

impl Declared {
    /// Whether it is built in, or an array of such.
    pub(crate) fn is_built_in(&self) -> bool {
        let item = self.name.strip_prefix('_').unwrap_or(&self.name);
        BUILT_IN.contains(&item)
    }

    /// The built-in type that was probably meant.
    pub(crate) fn meant(&self) -> Option<&'static str> {
        let near = names::nearest(&self.name, BUILT_IN)?;
        // A name of one's own may well be three letters away from a long built-in one; a slip is one or two.
        (strsim::damerau_levenshtein(&self.name, near) <= 2).then_some(near)
    }
}

/// Reads a declared type; `None` when the text cannot be a type's name.
pub(crate) fn parse(text: &str) -> Option<Declared> {
    let trimmed = text.trim();
    let (base, nullable) = match trimmed.strip_suffix('?') {
        Some(base) => (base.trim_end(), true),
        None => (trimmed, false),
    };
    let legal = |c: char| c.is_alphanumeric() || matches!(c, '_' | ' ' | '.' | '[' | ']' | '$' | '(' | ')' | ',');
    let balanced = base.matches('(').count() == base.matches(')').count();
    let begins = base.starts_with(|c: char| c.is_alphabetic() || c == '_');
    (begins && balanced && base.chars().all(legal)).then(|| Declared {
        name: pg_types::canonical(base),
        nullable,
    })
}

/// The names of the built-in types.
pub(crate) fn built_in() -> impl Iterator<Item = &'static str> + Clone {
    BUILT_IN.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_type_is_a_name_and_perhaps_a_question_mark() {
        let cases = [
            ("int8", "int8", false, true),
            ("bigint", "int8", false, true),
            ("text?", "text", true, true),
            ("VARCHAR(20) ?", "varchar", true, true),
            ("timestamp(3) with time zone", "timestamptz", false, true),
            ("integer[]", "_int4", false, true),
            ("order_status", "order_status", false, false),
        ];
        for (text, name, nullable, built_in) in cases {
            let declared = parse(text).unwrap();
            assert_eq!(
                (declared.name.as_str(), declared.nullable, declared.is_built_in()),
                (name, nullable, built_in),
                "{text}"
            );
        }
        for text in ["", "?", "int8)", "8int", "int8;", "int8??"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_slip_is_told_from_a_name_of_ones_own() {
        assert_eq!(parse("tiemstamp").unwrap().meant(), Some("timestamp"));
        assert_eq!(parse("int88").unwrap().meant(), Some("int8"));
        assert_eq!(parse("order_status").unwrap().meant(), None);
    }
}
