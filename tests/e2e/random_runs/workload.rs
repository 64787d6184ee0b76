//! Random transactions: inserts, updates, deletes, key changes, large values, many rows, several tables.

use super::schema::{ColumnType, PARTITION_IDS, Table, quoted};
use super::values::identifier;
use streams_test::simulation::Rng;

/// Rows of a large transaction.
const LARGE: i64 = 400;

/// A transaction over the readable tables; empty if there is none.
pub fn transaction(tables: &mut [Table], rng: &mut Rng) -> Vec<String> {
    let mut readable: Vec<&mut Table> = tables.iter_mut().filter(|table| table.readable).collect();
    if readable.is_empty() {
        return Vec::new();
    }
    let mut statements = Vec::new();
    for _ in 0..=rng.below(4) {
        let at = rng.below(readable.len());
        statements.push(statement(readable[at], rng));
    }
    statements
}

/// One statement for a table.
pub fn statement(table: &mut Table, rng: &mut Rng) -> String {
    match rng.below(100) {
        0..=34 => insert(table, rng),
        35..=59 => update(table, rng),
        60..=74 => delete(table, rng),
        75..=86 => change_key(table, rng),
        87..=92 => insert_many(table, rng),
        93..=96 => format!("UPDATE {} SET seq = seq / 2 + 1", table.name()),
        97..=98 => delete_from(&table.name(), rng),
        _ => truncate(table),
    }
}

/// Inserts a row: a new one, or one whose key was deleted.
pub fn insert(table: &mut Table, rng: &mut Rng) -> String {
    let again = rng.below(table.ids.deleted.len().max(1) * 3);
    let id = if again < table.ids.deleted.len() {
        table.ids.deleted.swap_remove(again)
    } else {
        new_ids(table, 1, rng)
    };
    let target = table.name();
    insert_into(table, &target, id, rng)
}

/// Inserts a row with this id into the table, or into one that becomes its partition.
pub fn insert_into(table: &mut Table, target: &str, id: i64, rng: &mut Rng) -> String {
    table.ids.live.insert(id);
    let columns = columns(table);
    let values = (0..table.columns.len()).map(|at| value(table, at, rng));
    let values = values.collect::<Vec<_>>().join(", ");
    let key = key_values(table, &id.to_string());
    format!("INSERT INTO {target} ({columns}) VALUES ({key}, {values})")
}

/// Inserts many rows with equal values, and with no large ones.
fn insert_many(table: &mut Table, rng: &mut Rng) -> String {
    let count = if rng.chance(0.3) { LARGE } else { 20 };
    let first = new_ids(table, count, rng);
    table.ids.live.extend(first..first + count);
    let columns = columns(table);
    let values = (0..table.columns.len()).map(|at| match table.columns[at].name.as_str() {
        "note" => "NULL".to_owned(),
        _ => value(table, at, rng),
    });
    let values = values.collect::<Vec<_>>().join(", ");
    let key = key_values(table, "g");
    format!(
        "INSERT INTO {} ({columns}) SELECT {key}, {values} FROM generate_series({first}, {}) g",
        table.name(),
        first + count - 1
    )
}

fn update(table: &mut Table, rng: &mut Rng) -> String {
    let Some(id) = table.ids.any(rng) else {
        return insert(table, rng);
    };
    let mut changes: Vec<String> = Vec::new();
    for _ in 0..=rng.below(3) {
        let at = rng.below(table.columns.len());
        let column = identifier(&table.columns[at].name);
        if !changes.iter().any(|change| change.starts_with(&column)) {
            changes.push(format!("{column} = {}", value(table, at, rng)));
        }
    }
    format!(
        "UPDATE {} SET {} WHERE {}",
        table.name(),
        changes.join(", "),
        is(table, id)
    )
}

fn delete(table: &mut Table, rng: &mut Rng) -> String {
    let Some(id) = table.ids.any(rng) else {
        return insert(table, rng);
    };
    table.ids.live.remove(&id);
    table.ids.deleted.push(id);
    format!("DELETE FROM {} WHERE {}", table.name(), is(table, id))
}

/// Deletes about a fifth of the rows of this relation.
pub fn delete_from(target: &str, rng: &mut Rng) -> String {
    let remainder = rng.below(5);
    format!("DELETE FROM {target} WHERE abs(hashtext(id::text)) % 5 = {remainder}")
}

/// Moves a row to a new key, possibly in another partition.
pub fn change_key(table: &mut Table, rng: &mut Rng) -> String {
    let Some(id) = table.ids.any(rng) else {
        return insert(table, rng);
    };
    let to = new_ids(table, 1, rng);
    table.ids.live.remove(&id);
    table.ids.deleted.push(id);
    table.ids.live.insert(to);
    let new = table.id.expression(&to.to_string());
    let region = if table.has_region {
        format!(", region = 'r{}'", to % 3)
    } else {
        String::new()
    };
    format!("UPDATE {} SET id = {new}{region} WHERE {}", table.name(), is(table, id))
}

/// Statements of a transaction that remains open while others continue. Other transactions do not know its new rows, and
/// wait for the row that it updates.
pub fn open_transaction(table: &mut Table, rng: &mut Rng) -> Vec<String> {
    let (name, mut statements) = (table.name(), Vec::new());
    if table.ids.any(rng).is_some() {
        statements.push(update(table, rng));
    }
    let ids: Vec<i64> = (0..3).map(|_| new_ids(table, 1, rng)).collect();
    for id in &ids {
        statements.push(insert_into(table, &name, *id, rng));
        table.ids.live.remove(id);
    }
    let changed = is(table, ids[0]);
    statements.push(format!("UPDATE {name} SET seq = seq + 1 WHERE {changed}"));
    statements.push(format!("DELETE FROM {name} WHERE {}", is(table, ids[1])));
    statements
}

/// Deletes all rows.
pub fn truncate(table: &mut Table) -> String {
    table.ids.live.clear();
    table.ids.deleted.clear();
    format!("TRUNCATE {}", table.name())
}

/// The condition for a row.
pub fn is(table: &Table, id: i64) -> String {
    format!("id = {}", table.id.expression(&id.to_string()))
}

/// An unused id, in the range of an attached partition.
pub fn new_id(table: &mut Table, rng: &mut Rng) -> i64 {
    new_ids(table, 1, rng)
}

/// Unused consecutive ids, in the range of an attached partition.
fn new_ids(table: &mut Table, count: i64, rng: &mut Rng) -> i64 {
    let first = table.ids.reserve(count);
    let attached = table.partitions.as_ref().map_or(&[][..], |p| p.attached.as_slice());
    let partition = if attached.is_empty() { 0 } else { rng.pick(attached) };
    i64::from(partition) * PARTITION_IDS + first
}

/// Values of the key columns for the number of a row, in the order of [`columns`].
fn key_values(table: &Table, number: &str) -> String {
    let id = table.id.expression(number);
    if table.has_region {
        format!("{id}, 'r' || ({number}) % 3")
    } else {
        id
    }
}

/// The columns that a row has values for, the key first.
fn columns(table: &Table) -> String {
    let mut columns = vec!["id".to_owned()];
    if table.has_region {
        columns.push("region".to_owned());
    }
    columns.extend(table.columns.iter().map(|column| identifier(&column.name)));
    columns.join(", ")
}

/// A random value of a column.
fn value(table: &Table, at: usize, rng: &mut Rng) -> String {
    let column = &table.columns[at];
    if column.nullable && rng.chance(0.25) {
        return "NULL".to_owned();
    }
    let label = |rng: &mut Rng| quoted(&rng.pick(&table.labels));
    match column.column_type {
        ColumnType::Plain(plain) => (plain.value)(rng),
        ColumnType::Enum => label(rng),
        ColumnType::EnumArray => format!("ARRAY[{}, NULL, {}]::{}[]", label(rng), label(rng), table.mood()),
    }
}
