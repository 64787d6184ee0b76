//! Changes of a row's key: the values of columns that the source omitted are in the state of the old key.
//!
//! The tombstone of the old key keeps those values in the old key's state, and the next record, the row under its new
//! key, reads them from there. If that record becomes a dead letter, the values are kept until the record is redriven,
//! the old key is used again, or the deleted row is removed from the state. Only the state that this tombstone wrote is
//! used: after a later change of the old key it may contain the values of another row.

use super::state::{Row, damaged};
use crate::input::{Change, ChangeRecord, KeyChange, keys};
use streams::{Result, State};
use views::rules::Kept;

/// The old key of a row whose key changed.
pub(super) struct Origin {
    pub(super) state_key: Vec<u8>,
    /// The state of the old key after the tombstone; `None` if it is unknown or has changed since.
    pub(super) row: Option<Row>,
}

impl Origin {
    /// The origin of a change's row, if its key changed.
    pub(super) fn of(input: &ChangeRecord<'_>, change: &Change<'_>, state: &State) -> Result<Option<Origin>> {
        let KeyChange::Arrives { from, left } = change.key_change else {
            return Ok(None);
        };
        let state_key = keys::row_state_key(input.table, from);
        let row = match state.get(&state_key)? {
            Some(bytes) => Some(Row::decode(&bytes).map_err(|e| damaged(&e))?),
            None => None,
        };
        let row = row.filter(|row| row.deleted_ms.is_some() && row.version == left);
        Ok(Some(Origin { state_key, row }))
    }

    /// Values of columns that the source may have omitted.
    pub(super) fn kept(&self) -> &[Kept] {
        self.row.as_ref().map_or(&[], |row| row.kept.as_slice())
    }
}

/// A change that was applied to its row.
pub(super) struct Applied<'c, 'a> {
    pub(super) change: &'c Change<'a>,
    pub(super) origin: Option<Origin>,
    /// Whether the row contains no values from earlier changes.
    pub(super) complete: bool,
}
