//! Keys of the state: rows, deleted rows by age, and rows that lack changes.
//!
//! All are JSON arrays whose first element is the kind. The byte order of the keys of deleted rows is the order of
//! their deletion, so that a scan finds the row that was deleted first.

use event_log::Millis;

/// Prefix of the keys that list deleted rows by age.
pub const DELETED: &[u8] = b"[\"gone\",";

/// Prefix of the keys of rows.
const ROW: &[u8] = b"[\"row\",";

/// Prefix of the keys of missing entries.
const MISSING: &[u8] = b"[\"missing\",";

/// Digits of the time in a key of a deleted row; 14 digits suffice for milliseconds until the year 5138.
const TIME_DIGITS: usize = 14;

/// Prefix of the keys of a table's rows.
pub fn table_prefix(table: &str) -> Vec<u8> {
    let mut prefix = ROW.to_vec();
    schemas::json::write_str(&mut prefix, table);
    prefix.push(b',');
    prefix
}

/// Key of a row. `row_key` has the elements of the JSON array that is the row key, without the table.
pub fn row_state_key(table: &str, row_key: &str) -> Vec<u8> {
    let mut key = table_prefix(table);
    key.extend_from_slice(row_key.as_bytes());
    key.push(b']');
    key
}

/// State key of a missing entry that applies to all rows of a table. No row has this key, because a row key is never
/// empty.
pub fn whole_table_key(table: &str) -> Vec<u8> {
    row_state_key(table, "")
}

/// The row key in a state key that begins with a table's prefix of this length.
pub fn row_key_of(state_key: &[u8], prefix: usize) -> &str {
    let content = state_key
        .get(prefix..state_key.len().saturating_sub(1))
        .unwrap_or_default();
    std::str::from_utf8(content).unwrap_or_default()
}

/// Key of a row's missing entry.
pub fn missing_key(state_key: &[u8]) -> Vec<u8> {
    [MISSING, state_key.strip_prefix(ROW).unwrap_or_default()].concat()
}

/// State key of the row to which a missing entry belongs.
pub fn row_of_missing_key(key: &[u8]) -> Vec<u8> {
    [ROW, key.strip_prefix(MISSING).unwrap_or_default()].concat()
}

/// Prefix of the missing entries of a table.
pub fn missing_prefix(table: &str) -> Vec<u8> {
    missing_key(&table_prefix(table))
}

/// Key that lists a deleted row by the time of its deletion.
pub fn deleted_key(at: Millis, state_key: &[u8]) -> Vec<u8> {
    let mut key = DELETED.to_vec();
    key.extend_from_slice(format!("\"{:0TIME_DIGITS$}\",", at.max(0)).as_bytes());
    key.extend_from_slice(state_key.strip_prefix(ROW).unwrap_or_default());
    key
}

/// Time of deletion and state key of the row in such a key.
pub fn parse_deleted_key(key: &[u8]) -> Option<(Millis, Vec<u8>)> {
    let rest = key.strip_prefix(DELETED)?.strip_prefix(b"\"")?;
    let (digits, rest) = rest.split_at_checked(TIME_DIGITS)?;
    let at = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some((at, [ROW, rest.strip_prefix(b"\",")?].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleted_rows_are_listed_by_age() {
        let state_key = b"[\"row\",\"orders\",17]";
        let key = deleted_key(1_732_390_000_123, state_key);
        assert_eq!(parse_deleted_key(&key), Some((1_732_390_000_123, state_key.to_vec())));
        assert!(deleted_key(9, state_key) < deleted_key(10, state_key));
    }
}
