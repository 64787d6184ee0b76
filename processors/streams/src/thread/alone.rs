//! The commit at least once: outputs, then changed state, then markers, then the stores, then the offsets, each durable
//! before the next begins. There is no transaction.
//!
//! Guarantees: a commit_record stands for outputs and rows that are durable, and committed offsets for a commit_record; so whoever
//! starts at the greater of the two skips nothing. A failure anywhere takes every task back to its last commit_record.
//! Never: a row written by a thread that stood still for long and did not ask whether it still is a member.

use super::{Broken, StreamThread};
use crate::Result;
use event_log::{GroupProtocol, Offset, Produced, TopicPartition};
use failpoint::hit;
use service::chain;

impl StreamThread {
    /// Commits what these tasks have done; says whether all of it is committed now.
    pub(super) fn commit_alone(&mut self, who: &[usize]) -> Result<bool> {
        let began = self.env.clock.elapsed();
        hit("runtime.commit.begin");
        if self.member.is_none() {
            self.broke(Broken::Failed("not a member of the group".to_owned()));
            return Ok(false);
        }
        if !who.iter().all(|&index| self.send_last_words(index)) || self.flush().is_none() {
            return Ok(false);
        }
        hit("runtime.alone.outputs");
        if !self.still_seated(who) || !self.send_rows(who) || self.flush().is_none() {
            return Ok(false);
        }
        hit("runtime.alone.rows");
        if !self.send_markers(who) {
            return Ok(false);
        }
        let Some(produced) = self.flush() else {
            return Ok(false);
        };
        hit("runtime.commit.sent");
        self.collect_offsets(who);
        self.count(who);
        for &index in who {
            self.apply(index, &produced)?;
            hit("runtime.commit.applied");
        }
        let offsets = std::mem::take(&mut self.offsets);
        let committed = self.commit_places(&offsets);
        self.offsets = offsets;
        if committed {
            hit("runtime.commit.committed");
            self.writer.settled();
            self.note_commit(who, began);
        }
        Ok(committed)
    }

    /// Waits until what was sent is durable; `None` when it is not, and every task is on its way back.
    fn flush(&mut self) -> Option<Vec<Produced>> {
        match self.writer.flush() {
            Ok(produced) => Some(produced),
            Err(error) => {
                self.broke(Broken::Failed(chain(&error)));
                None
            }
        }
    }

    fn send_rows(&mut self, who: &[usize]) -> bool {
        who.iter().all(|&index| {
            let Some(task) = self.tasks.get(index) else { return true };
            self.out.clear();
            task.drain_rows(&mut self.out, &mut self.scratch);
            let now = self.env.clock.elapsed();
            let sent = match self.out.is_empty() {
                true => Ok(()),
                false => self.writer.send(now, &self.out),
            };
            self.sent(index, sent)
        })
    }

    fn send_markers(&mut self, who: &[usize]) -> bool {
        who.iter().all(|&index| {
            let Some(task) = self.tasks.get_mut(index) else {
                return true;
            };
            self.out.clear();
            task.drain_marker(&mut self.out, true);
            let now = self.env.clock.elapsed();
            let sent = self.writer.send(now, &self.out);
            self.sent(index, sent)
        })
    }

    /// Whether the tasks are still this thread's: where it has not heard from the group for long, as after a sleep of the
    /// process, their last places are committed once more, which is refused to who is no member.
    fn still_seated(&mut self, who: &[usize]) -> bool {
        let silent = self.env.clock.elapsed().saturating_sub(self.polled);
        if silent < self.env.config.session_timeout / 2 {
            return true;
        }
        let mut known = Vec::new();
        for task in who.iter().filter_map(|&index| self.tasks.get(index)) {
            let commit_record = task.live.as_ref().and_then(|live| live.commit_record.as_ref());
            let place = |input: &crate::task::Input| Some((input.at.clone(), commit_record?.next_offset(&input.at)?));
            known.extend(task.inputs.iter().filter_map(place));
        }
        known.is_empty() || self.commit_places(&known)
    }

    /// Commits places as a member; says whether they are committed. If not, every task is on its way back.
    fn commit_places(&mut self, places: &[(TopicPartition, Offset)]) -> bool {
        let Some(consumer) = &mut self.consumer else {
            return false;
        };
        let error = match consumer.commit(places) {
            Ok(()) => return true,
            Err(error) => error,
        };
        let reason = chain(&error);
        // With the newer protocol the loss is told by the next events, and is no other process of the same name.
        let newer = self.env.config.group_protocol == GroupProtocol::Consumer;
        self.broke(match error {
            event_log::Error::Fenced { .. } if !newer => Broken::Fenced(reason),
            _ => Broken::Failed(reason),
        });
        false
    }
}
