//! Parses declared column types such as `int8`, `text?` or `numeric(10,2)`.
//!
//! Unknown types are accepted, because they can be enums or types of extensions; their columns are published as text.
//! If an unknown name is probably a misspelled built-in type, it is reported.

use crate::names;
use schemas::pg_types;

/// Built-in types of PostgreSQL, by their names in `pg_type`.
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
    /// Name in `pg_type`, without length and precision: `int8`, `_text`.
    pub(crate) name: String,
    /// Whether the column is nullable.
    pub(crate) nullable: bool,
}

impl Declared {
    /// Whether the type is a built-in type, or an array of a built-in type.
    pub(crate) fn is_built_in(&self) -> bool {
        let item = self.name.strip_prefix('_').unwrap_or(&self.name);
        BUILT_IN.contains(&item)
    }

    /// The built-in type of which the name is probably a misspelling.
    pub(crate) fn meant(&self) -> Option<&'static str> {
        let near = names::nearest(&self.name, BUILT_IN)?;
        // Names of user-defined types often differ from a long built-in name by three letters; misspellings differ by
        // one or two.
        (strsim::damerau_levenshtein(&self.name, near) <= 2).then_some(near)
    }
}

/// Parses a declared type; `None` if the text cannot be a type name.
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
    fn parses_type_names_and_nullability() {
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
    fn typos_are_distinguished_from_user_types() {
        assert_eq!(parse("tiemstamp").unwrap().meant(), Some("timestamp"));
        assert_eq!(parse("int88").unwrap().meant(), Some("int8"));
        assert_eq!(parse("order_status").unwrap().meant(), None);
    }
}
