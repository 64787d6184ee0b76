//! The commit without transactions: writes output, changed rows, commit records and offsets in this order, each after
//! the previous ones are durable.
//!
//! When a commit record is written, the output and rows that belong to it are therefore durable, and when offsets are
//! committed, so is their commit record. A task that starts at the greater of the two positions skips nothing. After a
//! failure every task returns to its last commit record.

use super::abort::{Abort, Interrupt};
use super::committer::Committer;
use super::membership::Membership;
use crate::api::error::Result;
use crate::task::{Input, Task};
use event_log::Produced;
use failpoint::hit;
use service::chain;

impl Committer {
    pub(super) fn commit_at_least_once(
        &mut self,
        tasks: &mut [&mut Task],
        membership: &mut Membership,
    ) -> Result<(), Interrupt> {
        let began = self.shared.clock.elapsed();
        hit("streams.commit.begin");
        if !membership.has_metadata() {
            return Err(Abort::Failed("not a member of the group".to_owned()).into());
        }
        for task in tasks.iter_mut() {
            self.prepare_commit(task)?;
        }
        self.flush()?;
        hit("streams.at_least_once.outputs");
        check_membership(tasks, membership)?;
        for task in tasks.iter() {
            self.out.clear();
            task.push_rows(&mut self.out, &mut self.scratch);
            if !self.out.is_empty() {
                self.send_out(task)?;
            }
        }
        self.flush()?;
        hit("streams.at_least_once.rows");
        for task in tasks.iter_mut() {
            self.out.clear();
            task.push_commit_record(&mut self.out, &mut self.scratch, false);
            self.send_out(task)?;
        }
        let produced = self.flush()?;
        hit("streams.commit.sent");
        self.collect_offsets(tasks);
        self.measure(tasks);
        self.apply(tasks, &produced)?;
        membership.commit_offsets(&self.offsets)?;
        hit("streams.commit.committed");
        self.producer.mark_committed();
        self.note_commit(tasks, began);
        Ok(())
    }

    /// Waits until everything that was sent is durable.
    fn flush(&mut self) -> Result<Vec<Produced>, Abort> {
        self.producer.flush().map_err(|error| Abort::Failed(chain(&error)))
    }
}

/// Checks that the thread is still a member of the group before it writes rows, if it has not polled for a long time,
/// for example because the process was suspended. The check commits the last known offsets again, which the group
/// rejects if the member was replaced.
fn check_membership(tasks: &[&mut Task], membership: &mut Membership) -> Result<(), Abort> {
    if !membership.may_be_expired() {
        return Ok(());
    }
    let mut known = Vec::new();
    for task in tasks {
        let commit_record = task.store.as_ref().and_then(|store| store.commit_record.as_ref());
        let offset = |input: &Input| Some((input.at.clone(), commit_record?.next_offset(&input.at)?));
        known.extend(task.inputs.iter().filter_map(offset));
    }
    if known.is_empty() {
        return Ok(());
    }
    membership.commit_offsets(&known)
}
