//! Changes of tables: rows put and deleted, tables truncated, rows that a snapshot did not find.
//!
//! Guarantees: what a row gave before is taken back exactly once, also when it is deleted by a truncate or a chunk.
//! Never: a delta for a change that changes nothing.

use super::delta::Delta;
use super::reader::{Change, Hands, Refused, Relation, Trouble, is_large, order_by_time};
use super::rows::{Given, Kept, Row, Rows};
use crate::sync_views::input::{self, Input, KeyChange, Kind};
use event_log::RecordRef;
use schemas::codec::{Datum, Row as Datums};
use schemas::version::Version;
use streams::Stage;

/// Takes a record of a change topic, or of a processor that writes a table.
pub fn take(
    relations: &mut [Relation],
    event: Option<&str>,
    record: &RecordRef<'_>,
    hands: &mut Hands<'_>,
) -> Result<(), Trouble> {
    let incarnation = relations
        .iter()
        .filter_map(|r| r.rows.as_ref())
        .map(|rows| rows.incarnation)
        .max();
    let input = Input::read(record, event, incarnation.unwrap_or(1));
    let input = input.map_err(|(stage, error)| Refused::new(stage, error))?;
    for relation in relations.iter_mut() {
        let Some(mut rows) = relation.rows.take() else { continue };
        rows.begin(&input);
        let taken = if relation.name == input.table {
            change(relation, &mut rows, event.is_some(), record, &input, hands)
        } else {
            Ok(())
        };
        relation.rows = Some(rows);
        taken?;
    }
    Ok(())
}

fn change(
    relation: &Relation,
    rows: &mut Rows,
    by_offset: bool,
    record: &RecordRef<'_>,
    input: &Input<'_>,
    hands: &mut Hands<'_>,
) -> Result<(), Trouble> {
    match &input.kind {
        Kind::Row(change) => {
            let order = if by_offset {
                order_by_time(record.timestamp(), record.offset())
            } else {
                order_of(input.version)
            };
            let put = Put {
                relation,
                record,
                version: input.version,
                order,
            };
            put.row(rows, change, hands)
        }
        Kind::Truncate => sweep(relation, rows, record, input, hands, &|_, row| {
            row.version < input.version
        }),
        Kind::ChunkEnd(end) => {
            let low = Version {
                incarnation: input.version.incarnation,
                position: end.low,
                ordinal: 0,
            };
            // The chunk's own rows stand at its position, which may lie just below `low`: nothing else does.
            let chunk = (input.version.incarnation, input.version.position);
            sweep(relation, rows, record, input, hands, &|key, row| {
                let in_chunk = (row.version.incarnation, row.version.position) == chunk;
                row.version < input.version && row.version < low && !in_chunk && end.holds(key)
            })
        }
    }
}

fn order_of(version: Version) -> u128 {
    u128::from(version.incarnation) << 96 | u128::from(version.position) << 32 | u128::from(version.ordinal)
}

/// A row that is put or deleted.
struct Put<'p, 'r> {
    relation: &'p Relation,
    record: &'p RecordRef<'r>,
    version: Version,
    order: u128,
}

impl Put<'_, '_> {
    fn row(&self, rows: &Rows, change: &input::Change<'_>, hands: &mut Hands<'_>) -> Result<(), Trouble> {
        let row_key = change.row_key;
        let state_key = rows.state_key(row_key);
        let old = rows
            .get(&state_key, hands.state)?
            .transpose()
            .map_err(|e| hands.broken(e))?;
        if self.version <= old.as_ref().map_or(rows.floor, |old| old.version) {
            return Ok(());
        }
        let old = old.unwrap_or_default();
        let mut row = Row {
            version: self.version,
            gone_ms: change.value.is_none().then_some(hands.context.now),
            ..Row::default()
        };
        let origin = match change.key_change {
            KeyChange::Arrives { from, left } => Origin::read(rows, from, left, hands)?,
            KeyChange::None | KeyChange::Leaves => None,
        };
        // What a deleted row left is for its new key, not for another row under the old one.
        let alive = if old.gone_ms.is_none() {
            old.kept.as_slice()
        } else {
            &[]
        };
        let kept = match change.key_change {
            KeyChange::Arrives { .. } => origin.as_ref().map_or(&[][..], |origin| &origin.row.kept),
            KeyChange::None | KeyChange::Leaves => alive,
        };
        if let Some(value) = change.value {
            (row.given, row.kept) = self.given(row_key, value, kept, hands)?;
        } else if change.key_change == KeyChange::Leaves {
            // The next record, which has the row under its new key, may leave the same columns out.
            row.kept = alive.to_vec();
        }
        let delta = Delta {
            row: row_key.as_bytes(),
            old: old.given.as_ref().map(Given::part),
            new: row.given.as_ref().map(Given::part),
        };
        let given = if self.changes(&old, &row) {
            hands.give(Change {
                side: self.relation.side,
                delta,
                at: self.record.timestamp(),
            })
        } else {
            Ok(())
        };
        // A complaint comes after the change has counted, so that the row is remembered all the same.
        if let Err(Trouble::Stop(error)) = given {
            return Err(Trouble::Stop(error));
        }
        rows.put(&state_key, old.gone_ms, &row, hands.state);
        if let Some(origin) = origin {
            origin.release(hands);
        }
        given
    }

    fn changes(&self, old: &Row, new: &Row) -> bool {
        match (&old.given, &new.given) {
            (None, None) => false,
            (Some(old), Some(new)) => {
                (&old.key, old.time, &old.values) != (&new.key, new.time, &new.values)
                    || self.relation.shape.is_ordered()
            }
            _ => true,
        }
    }

    /// What a row gives, and what must be kept of it for the next change.
    fn given(
        &self,
        row_key: &str,
        value: &[u8],
        known: &[Kept],
        hands: &mut Hands<'_>,
    ) -> Result<(Option<Given>, Vec<Kept>), Refused> {
        let bound = self
            .relation
            .bound(value)
            .map_err(|e| Refused::new(Stage::ValueConverter, e))?;
        let mut datums: Datums<'_> = Vec::new();
        bound
            .decode(value, &mut datums)
            .map_err(|e| Refused::new(Stage::ValueConverter, e))?;
        let shape = &self.relation.shape;
        let columns = &shape.feed().columns;
        let mut kept = Vec::new();
        if bound.lists_unchanged {
            merge(columns, &mut datums, known)?;
            let large = columns.iter().zip(&datums).filter(|(_, datum)| is_large(datum));
            kept.extend(large.filter_map(|(name, datum)| {
                let bytes = datum.as_str().map(str::as_bytes).or(datum.as_bytes())?;
                Some((name.clone(), bytes.to_vec()))
            }));
        }
        let counts = shape.shape(row_key, &datums, hands.shaped);
        if !counts.map_err(|e| Refused::new(Stage::Transformation, e))? {
            return Ok((None, kept));
        }
        let given = Given {
            key: hands.shaped.key.clone(),
            order: self.order,
            time: shape.time_of(hands.shaped, self.record.timestamp()),
            values: hands.shaped.values.clone(),
        };
        Ok((Some(given), kept))
    }
}

/// The state of a row's old key as the tombstone left it that came just before the row under its new key.
struct Origin {
    state_key: Vec<u8>,
    row: Row,
}

impl Origin {
    /// `None` if the old key's state is unknown or newer, since then it may have the values of another row.
    fn read(rows: &Rows, from: &str, left: Version, hands: &Hands<'_>) -> Result<Option<Origin>, Trouble> {
        let state_key = rows.state_key(from);
        let row = rows
            .get(&state_key, hands.state)?
            .transpose()
            .map_err(|e| hands.broken(e))?;
        let row = row.filter(|row| row.gone_ms.is_some() && row.version == left);
        Ok(row.map(|row| Origin { state_key, row }))
    }

    /// Drops the values, which the new key has now.
    fn release(mut self, hands: &mut Hands<'_>) {
        if !self.row.kept.is_empty() {
            self.row.kept.clear();
            hands.state.put(&self.state_key, self.row.encode());
        }
    }
}

/// Puts kept values where the source left a column out as unchanged.
fn merge<'d>(columns: &[String], datums: &mut Datums<'d>, kept: &'d [Kept]) -> Result<(), Refused> {
    let listed = datums
        .get(columns.len())
        .and_then(Datum::as_array)
        .map(<[Datum<'_>]>::to_vec);
    for name in listed.iter().flatten().filter_map(Datum::as_str) {
        let Some(at) = columns.iter().position(|column| column == name) else {
            continue;
        };
        let missing = || {
            let reason = format!(
                "column `{name}` was left out as unchanged in a row that was never seen whole; snapshot the table"
            );
            Refused::new(Stage::Transformation, reason)
        };
        let (_, value) = kept.iter().find(|(kept, _)| kept == name).ok_or_else(missing)?;
        let slot = datums.get_mut(at).ok_or_else(missing)?;
        *slot = match (std::str::from_utf8(value), &slot) {
            (Ok(text), Datum::Str(_) | Datum::Null) => Datum::Str(text),
            _ => Datum::Bytes(value),
        };
    }
    Ok(())
}

/// Removes the rows that `goes` says, at the version of the record that calls for it.
fn sweep(
    relation: &Relation,
    rows: &Rows,
    record: &RecordRef<'_>,
    input: &Input<'_>,
    hands: &mut Hands<'_>,
    goes: &dyn Fn(&str, &Row) -> bool,
) -> Result<(), Trouble> {
    let prefix = rows.prefix().len();
    let gone = rows.select(hands.state, goes)?.map_err(|e| hands.broken(e))?;
    let mut complaint = Ok(());
    for (state_key, row) in gone {
        let row_key = input::row_key_of(&state_key, prefix);
        if let Some(given) = &row.given {
            let delta = Delta {
                row: row_key.as_bytes(),
                old: Some(given.part()),
                new: None,
            };
            let taken = hands.give(Change {
                side: relation.side,
                delta,
                at: record.timestamp(),
            });
            if let Err(Trouble::Stop(error)) = taken {
                return Err(Trouble::Stop(error));
            }
            complaint = complaint.and(taken);
        }
        let row = Row {
            version: input.version,
            gone_ms: Some(hands.context.now),
            ..Row::default()
        };
        rows.put(&state_key, None, &row, hands.state);
    }
    complaint
}
