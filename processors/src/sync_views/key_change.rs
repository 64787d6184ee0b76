//! A row whose key changes: the columns that the source left out are in the state of its old key.
//!
//! The tombstone of the old key leaves those values in the old key's state, and the next record, which has the row under
//! its new key, takes them from there. If that record becomes a dead letter, they stay until it comes back, the old key is
//! used again, or the deleted row is forgotten. Only the state that this very tombstone wrote is used: after a later change
//! of the old key it may have the values of another row.

use super::input::{self, Change, Input, KeyChange};
use super::state::Row;
use super::{SyncViews, broken};
use streams::{Output, Result, State};

/// The old key of a row that arrives under a new one.
pub(super) struct Origin {
    state_key: Vec<u8>,
    /// What the tombstone left; `None` if the state is unknown or newer.
    row: Option<Row>,
}

impl Origin {
    /// The origin of a change's row, if its key changed.
    pub(super) fn of(input: &Input<'_>, change: &Change<'_>, state: &State) -> Result<Option<Origin>> {
        let KeyChange::Arrives { from, left } = change.key_change else {
            return Ok(None);
        };
        let state_key = input::state_key(input.table, from);
        let row = match state.get(&state_key)? {
            Some(bytes) => Some(Row::decode(&bytes).map_err(|e| broken(&e))?),
            None => None,
        };
        let row = row.filter(|row| row.gone_ms.is_some() && row.version == left);
        Ok(Some(Origin { state_key, row }))
    }

    /// Values of columns that the source may have left out.
    pub(super) fn kept(&self) -> Vec<(String, Vec<u8>)> {
        self.row.as_ref().map(|row| row.kept.clone()).unwrap_or_default()
    }
}

/// A change that was applied to its row.
pub(super) struct Applied<'c, 'a> {
    pub(super) change: &'c Change<'a>,
    pub(super) origin: Option<Origin>,
    /// No earlier value has gone into the row.
    pub(super) whole: bool,
}

impl SyncViews {
    /// Settles what rows lack after a change. What the old key lacks passes on to a row that builds on it.
    pub(super) fn settle(
        &mut self,
        input: &Input<'_>,
        applied: Applied<'_, '_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        let state_key = &applied.change.state_key;
        let Some(origin) = applied.origin else {
            // The row that leaves is not settled by its tombstone: the next record may build on it.
            let leaves = applied.change.key_change == KeyChange::Leaves;
            return self.mend(input, state_key, applied.whole && !leaves, state, output);
        };
        if !applied.whole && state.get(&input::missing_key(&origin.state_key))?.is_some() {
            self.miss(input.table, state_key, input.version, state, output)?;
        } else {
            // Nothing that was known of the new key before has gone into the row.
            self.mend(input, state_key, true, state, output)?;
        }
        self.mend(input, &origin.state_key, true, state, output)?;
        if let Some(mut row) = origin.row.filter(|row| !row.kept.is_empty()) {
            row.kept.clear();
            state.put(&origin.state_key, row.encode());
        }
        Ok(())
    }
}
