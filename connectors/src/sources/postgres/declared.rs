//! The tables as declared in the topology, with their masks.

use super::masks::{HashKey, KEY_BYTES_MIN, Masking};
use crate::error::{Error, Result};
use schemas::ids::TableName;
use schemas::pg_types::Column as DeclaredColumn;
use service::Secret;
use std::collections::BTreeMap;
use topology::Mask;

/// A table, as declared in the topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: TableName,
    /// The published columns, in order.
    pub columns: Vec<DeclaredColumn>,
    /// The columns of the record key; `None` if it is the table's primary key.
    pub key: Option<Vec<String>>,
    /// Masked columns.
    pub masks: BTreeMap<String, Mask>,
    /// The key of hashes.
    pub(super) hash_key: Option<HashKey>,
}

impl Declared {
    /// A table without masks.
    pub fn new(name: TableName, columns: Vec<DeclaredColumn>, key: Option<Vec<String>>) -> Self {
        Declared {
            name,
            columns,
            key,
            masks: BTreeMap::new(),
            hash_key: None,
        }
    }

    /// The mask of a column.
    pub(super) fn masking(&self, column: &str) -> Option<Masking> {
        match self.masks.get(column)? {
            Mask::Null => Some(Masking::Null),
            Mask::Partial => Some(Masking::Partial),
            // Without its key the value is hidden completely. A source is not created without the key.
            Mask::Hash => Some(self.hash_key.clone().map_or(Masking::Null, Masking::Hash)),
        }
    }

    /// Whether the values of a column become texts, so that its type in the database does not matter.
    pub(super) fn hides_type(&self, column: &str) -> bool {
        self.masks.contains_key(column)
    }
}

/// Adds the key to the tables with hashes.
///
/// # Errors
/// [`Error::Rejected`] if a key is required and there is none, or it is too short.
pub(super) fn with_key(connector: &str, tables: Vec<Declared>, key: Option<&Secret>) -> Result<Vec<Declared>> {
    let rejected = |reason: String| Error::Rejected {
        reason: format!("connector {connector}: {reason}"),
        fix: format!(
            "set mask_key in [connectors.{connector}] to \"${{file:PATH}}\" of a file with at least {KEY_BYTES_MIN} random \
             bytes as text, for example from `openssl rand -hex 32`"
        ),
    };
    let key = key.map(HashKey::new).transpose().map_err(rejected)?;
    let with_key = |table: Declared| {
        let hashed = table.masks.iter().find(|(_, mask)| **mask == Mask::Hash);
        match (hashed, &key) {
            (Some((column, _)), None) => Err(rejected(format!(
                "column {column} of table {} is masked with a hash, and mask_key is not set",
                table.name
            ))),
            _ => Ok(Declared {
                hash_key: key.clone(),
                ..table
            }),
        }
    };
    tables.into_iter().map(with_key).collect()
}

#[cfg(test)]
mod tests {
    use super::super::pgoutput::Value;
    use super::super::rows::{Buffers, Table};
    use super::*;
    use schemas::ids::{SchemaId, SourceName};
    use schemas::pg_types::{self, Column};
    use schemas::schema::Schema;
    use std::sync::Arc;

    const HASH: &str = "b2eadfbaaca8f7b30b76563378bedc2fe183e5b392a7710ab8166987238c66ef";

    #[test]
    fn masked_values_are_in_no_record() {
        let (source, name) = (SourceName::new("shop").unwrap(), TableName::new("users").unwrap());
        let columns = [("id", "int8"), ("email", "text"), ("phone", "text?"), ("name", "text?")];
        let columns: Vec<Column> = columns.iter().map(|(name, ty)| Column::declared(name, ty)).collect();
        let text = pg_types::table_schema(&source, &name, &columns).unwrap();
        let mut declared = Declared::new(name.clone(), columns, None);
        declared.masks = BTreeMap::from([
            (String::from("email"), Mask::Hash),
            (String::from("phone"), Mask::Null),
            (String::from("name"), Mask::Partial),
        ]);
        let missing = with_key("shop", vec![declared.clone()], None).unwrap_err().to_string();
        assert!(
            missing.contains("column email of table users is masked with a hash"),
            "{missing}"
        );
        let declared = with_key("shop", vec![declared], Some(&Secret::new("0123456789abcdef"))).unwrap();
        let table = Table::new(name, Arc::new(Schema::parse(&text).unwrap()), SchemaId(1), vec![0]).unwrap();
        let table = table.masked(|column| declared[0].masking(column));
        let row = |values: &[Value<'_>]| {
            let mut out = Vec::new();
            table.write_value(values, &mut Buffers::default(), &mut out).unwrap();
            String::from_utf8_lossy(&out).into_owned()
        };
        let id = Value::Text(b"7");
        let text = row(&[
            id,
            Value::Text(b"ann@example.org"),
            Value::Text(b"555-1234"),
            Value::Text(b"Zacharias"),
        ]);
        assert!(text.contains(HASH) && text.contains("Z***"), "{text}");
        for secret in ["ann@", "555", "acharias"] {
            assert!(!text.contains(secret), "{text}");
        }
        // Null stays null, and a value that was not sent is named. That of a hidden column is known to be null.
        let text = row(&[id, Value::Unchanged, Value::Unchanged, Value::Null]);
        assert!(
            text.contains("email") && !text.contains("phone") && !text.contains("***"),
            "{text}"
        );
    }
}
