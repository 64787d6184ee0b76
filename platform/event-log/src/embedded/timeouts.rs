//! Aborts of transactions that exceeded their timeout, or that were open when the log was last closed.

use super::broker::Broker;
use super::state::State;
use super::write::Ending;
use crate::{Error, Millis, Result};

/// Pause between attempts to abort a transaction while the storage rejects writes.
const RETRY_MS: Millis = 1_000;

impl Broker {
    /// Aborts transactions that exceeded their timeout and fences their producers, as Kafka's coordinator does.
    ///
    /// While the storage rejects writes, the abort is attempted again later, because readers call this too, and what was
    /// committed can still be read.
    pub fn expire(&self) -> Result<()> {
        let now = self.now();
        let due = |state: &State| state.next_deadline().is_some_and(|deadline| deadline <= now);
        if !due(&self.state()) {
            return Ok(());
        }
        let mut writer = self.writer();
        loop {
            let (transaction, id, epoch) = {
                let mut state = self.state();
                let late = state.transactions.iter().find(|(_, open)| open.deadline <= now);
                let Some((transaction, id)) = late.map(|(t, open)| (*t, open.transactional_id.clone())) else {
                    return Ok(());
                };
                let epoch = state.number();
                if let Some(producer) = state.producers.get_mut(&id) {
                    producer.epoch = epoch;
                }
                (transaction, id, epoch)
            };
            match self.end(&mut writer, Ending::abort(Some(transaction)), |_| {}) {
                Err(Error::StorageUnavailable { .. }) => {
                    if let Some(open) = self.state().transactions.get_mut(&transaction) {
                        open.deadline = now.saturating_add(RETRY_MS);
                    }
                    continue;
                }
                ended => ended?,
            }
            tracing::warn!(transactional_id = id, "transaction timed out and was aborted");
            // The producer is fenced, whether or not it has an entry.
            self.state().forget_producer(&id, epoch);
        }
    }

    /// Aborts the transactions that were open when the log was last closed or its process was killed.
    pub fn abort_open_transactions(&self) -> Result<()> {
        let mut writer = self.writer();
        let left: Vec<u64> = self.state().transactions.keys().copied().collect();
        for transaction in left {
            self.end(&mut writer, Ending::abort(Some(transaction)), |_| {})?;
        }
        Ok(())
    }
}
