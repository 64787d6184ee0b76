//! Changes of partitions: appends, commits and aborts of transactions, and commits of offsets.
//!
//! A change is staged against the state, committed to the store in one batch, and then published in the state, all under
//! the writer lock, so nothing is visible before it is stored. The control records of a transaction, its offsets and the
//! removal of its open entries are one batch (C2 of `docs/protocol/commit.md`).

use super::backing::{Space, Writes};
use super::block::{Block, Builder, Marker};
use super::broker::{Broker, Writer};
use super::format::{self, IndexEntry, PartId};
use super::group::{self, CommitRejection, Group};
use super::state::{OpenTransaction, ProducerState, State, Topic, Touched, unknown};
use crate::consumer::MemberToken;
use crate::{Error, GroupMetadata, Millis, Offset, Outcome, Produced, Result, TopicPartition};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// An index entry is written after this number of bytes in a partition.
pub(super) const INDEX_BYTES: u64 = 256 * 1024;

/// Records of one partition that have no offsets yet.
pub(super) struct Draft {
    pub topic: Arc<Topic>,
    pub part: PartId,
    pub block: Builder,
}

/// The transactional producer that writes.
#[derive(Clone, Copy)]
pub(super) struct By<'a> {
    pub transactional_id: &'a str,
    pub epoch: u64,
    pub timeout_ms: Millis,
}

/// A commit or abort of a transaction.
pub(super) struct Ending {
    /// The transaction; `None` if it has written nothing.
    transaction: Option<u64>,
    marker: Marker,
    /// Further writes of the same batch.
    writes: Writes,
}

impl Ending {
    pub(super) fn abort(transaction: Option<u64>) -> Ending {
        Ending {
            transaction,
            marker: Marker::Abort,
            writes: Writes::default(),
        }
    }
}

/// The end offset of a partition while a batch is prepared.
struct End {
    next: Offset,
    bytes: u64,
    indexed: u64,
    max_timestamp: Millis,
}

/// Blocks that will be stored and then published.
#[derive(Default)]
struct Stage {
    writes: Writes,
    ends: BTreeMap<PartId, End>,
    blocks: Vec<(PartId, Block, Option<IndexEntry>)>,
}

impl Stage {
    /// Assigns the next offsets of a partition to a block.
    fn add(&mut self, state: &State, id: PartId, make: impl FnOnce(Offset) -> Block) -> Option<&Block> {
        let part = state.parts.get(&id)?;
        let end = self.ends.entry(id).or_insert_with(|| End {
            next: part.end,
            bytes: part.bytes,
            indexed: part.index.back().map_or(part.gone_bytes(), |entry| entry.bytes),
            max_timestamp: part.max_timestamp.unwrap_or(Millis::MIN),
        });
        let block = make(end.next);
        let entry = IndexEntry {
            offset: end.next,
            max_timestamp: end.max_timestamp,
            bytes: end.bytes,
        };
        let entry = (end.bytes.saturating_sub(end.indexed) >= INDEX_BYTES).then_some(entry);
        self.writes
            .put(Space::Records, format::block_key(id, block.base), block.bytes.clone());
        if let Some(entry) = entry {
            end.indexed = entry.bytes;
            self.writes
                .put(Space::Meta, format::index_key(id, entry.offset), entry.encode());
        }
        end.next = block.next();
        end.bytes += block.size();
        if block.head.control.is_none() {
            end.max_timestamp = end.max_timestamp.max(block.head.max_timestamp);
        }
        self.blocks.push((id, block, entry));
        self.blocks.last().map(|(_, block, _)| block)
    }

    /// Publishes the blocks. `change` makes the other changes that become visible with them.
    fn publish(self, state: &mut State, change: impl FnOnce(&mut State)) {
        let stable: Vec<(PartId, Offset)> = self
            .ends
            .keys()
            .filter_map(|id| Some((*id, state.parts.get(id)?.stable())))
            .collect();
        for (id, block, entry) in self.blocks {
            state.push(id, block);
            if let Some(part) = state.parts.get_mut(&id) {
                part.index.extend(entry);
            }
        }
        change(state);
        for (id, before) in stable {
            if let Some(part) = state.parts.get(&id) {
                part.wake(before);
            }
        }
    }
}

/// Fails if the producer was fenced.
fn check(state: &State, by: By<'_>, attempted: &'static str) -> Result<()> {
    match state.producers.get(by.transactional_id) {
        Some(producer) if producer.epoch == by.epoch => Ok(()),
        _ => Err(Error::Fenced {
            attempted,
            who: by.transactional_id.to_owned(),
        }),
    }
}

impl Broker {
    /// Appends records, in the producer's open transaction or outside transactions.
    pub fn append(&self, drafts: Vec<Draft>, by: Option<By<'_>>) -> Result<Vec<Produced>> {
        if by.is_some() {
            self.expire()?;
        }
        let _writer = self.writer();
        let now = self.now();
        let mut stage = Stage::default();
        let mut touched: BTreeMap<PartId, (Arc<str>, Touched)> = BTreeMap::new();
        let mut transaction = 0;
        {
            let mut state = self.state();
            let mut opened = None;
            if let Some(by) = by {
                check(&state, by, "append to a transaction")?;
                opened = state.producers.get(by.transactional_id).and_then(|p| p.transaction);
                transaction = opened.unwrap_or_else(|| state.new_transaction());
            }
            for Draft { topic, part, block } in drafts {
                let append_time = topic.rules.log_append.then_some(now);
                let timestamp = append_time.unwrap_or(block.last_timestamp());
                let block = stage.add(&state, part, |base| block.finish(base, transaction, append_time));
                let block = block.ok_or_else(|| unknown(&topic.name))?;
                let here = Touched {
                    first: block.base,
                    next: block.next(),
                    timestamp,
                };
                match touched.entry(part) {
                    Entry::Vacant(vacant) => {
                        vacant.insert((topic.name.clone(), here));
                    }
                    Entry::Occupied(mut occupied) => {
                        let (_, before) = occupied.get_mut();
                        *before = Touched {
                            first: before.first,
                            ..here
                        };
                    }
                }
            }
            if by.is_some() {
                let known = opened.and_then(|t| state.transactions.get(&t)).map(|open| &open.parts);
                for (part, (_, here)) in &touched {
                    if known.is_none_or(|parts| !parts.contains_key(part)) {
                        let key = format::open_key(transaction, *part);
                        stage.writes.put(Space::Meta, key, format::encode_offset(here.first));
                    }
                }
            }
        }
        if stage.writes.is_empty() {
            return Ok(Vec::new());
        }
        self.store(&std::mem::take(&mut stage.writes))?;
        let mut state = self.state();
        let parts = touched.iter().map(|(part, (_, here))| (*part, *here));
        stage.publish(&mut state, |state| {
            if let Some(by) = by {
                state.touch(by, transaction, now, parts);
            }
        });
        let deadline = state.transactions.get(&transaction).map(|open| open.deadline);
        drop(state);
        if let Some(deadline) = deadline {
            self.wake_cleaner_by(deadline);
        }
        Ok(touched
            .into_iter()
            .map(|(part, (topic, here))| produced(&topic, part, here))
            .collect())
    }

    /// Commits the producer's transaction with the consumed offsets.
    pub fn commit(&self, by: By<'_>, consumed: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>) -> Outcome {
        let attempt = self.expire().and_then(|()| self.try_commit(by, consumed));
        match attempt {
            Ok(outcome) => outcome,
            Err(error @ Error::Fenced { .. }) => Outcome::Aborted {
                fenced: true,
                reason: error.to_string(),
            },
            Err(error) => {
                let source = std::error::Error::source(&error)
                    .map(|s| format!(": {s}"))
                    .unwrap_or_default();
                Outcome::Unknown {
                    reason: format!("{error}{source}"),
                }
            }
        }
    }

    fn try_commit(
        &self,
        by: By<'_>,
        consumed: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>,
    ) -> Result<Outcome> {
        if consumed.is_some() {
            failpoint::hit("log.offsets.before");
        }
        let mut writer = self.writer();
        let mut writes = Writes::default();
        let mut state = self.state();
        check(&state, by, "commit a transaction")?;
        let transaction = state.producers.get(by.transactional_id).and_then(|p| p.transaction);
        if let Some((member, offsets)) = consumed {
            if let Err(rejection) = state.stage_offsets(member, offsets, &mut writes, self.now()) {
                drop(state);
                self.end(&mut writer, Ending::abort(transaction), |_| {})?;
                return Ok(Outcome::Aborted {
                    fenced: rejection.fenced,
                    reason: rejection.reason,
                });
            }
            let partitions = offsets.iter().map(|(at, _)| at.clone()).collect();
            let group = state
                .groups
                .get_mut(&member.group)
                .expect("`stage_offsets` found the member in the group");
            group.pending.insert(by.epoch, partitions);
        }
        let mut produced_here = Vec::new();
        if let Some(open) = transaction.and_then(|t| state.transactions.get(&t)) {
            let of = |(part, here): (&PartId, &Touched)| Some(produced(&state.name(*part)?.topic, *part, *here));
            produced_here = open.parts.iter().filter_map(of).collect();
        }
        drop(state);
        failpoint::hit("log.commit.before");
        let ending = Ending {
            transaction,
            marker: Marker::Commit,
            writes,
        };
        let ended = self.end(&mut writer, ending, |state| {
            if let Some((member, offsets)) = consumed
                && let Some(group) = state.groups.get_mut(&member.group)
            {
                group.offsets.extend(offsets.iter().cloned());
            }
        });
        if let Some((member, _)) = consumed {
            if let Some(group) = self.state().groups.get_mut(&member.group) {
                group.pending.remove(&by.epoch);
            }
            self.decided.notify_all();
        }
        ended?;
        failpoint::hit("log.commit.after");
        Ok(Outcome::Committed(produced_here))
    }

    /// Stores the commit or abort of a transaction and publishes it. `change` makes the changes of `ending.writes`.
    pub(super) fn end(&self, _writer: &mut Writer, ending: Ending, change: impl FnOnce(&mut State)) -> Result<()> {
        let Ending {
            transaction,
            marker,
            writes,
        } = ending;
        let now = self.now();
        let mut stage = Stage {
            writes,
            ..Stage::default()
        };
        let mut parts = Vec::new();
        if let Some(transaction) = transaction {
            let state = self.state();
            if let Some(open) = state.transactions.get(&transaction) {
                parts.extend(open.parts.iter().map(|(part, here)| (*part, here.first)));
            }
            for (part, _) in &parts {
                let placed = stage.add(&state, *part, |base| Block::control(base, transaction, marker, now));
                let Some(at) = placed.map(|block| block.base) else {
                    continue;
                };
                stage.writes.remove(Space::Meta, format::open_key(transaction, *part));
                if marker == Marker::Abort {
                    let key = format::aborted_key(*part, transaction);
                    stage.writes.put(Space::Meta, key, format::encode_offset(at));
                }
            }
        }
        if !stage.writes.is_empty() {
            if marker == Marker::Abort {
                stage.writes.use_reserve(); // open transactions stop retention, and opening the log aborts them
            }
            self.store(&std::mem::take(&mut stage.writes))?;
        }
        let markers: Vec<(PartId, Offset)> = stage.blocks.iter().map(|(id, block, _)| (*id, block.base)).collect();
        let mut state = self.state();
        stage.publish(&mut state, |state| {
            for (id, first) in &parts {
                if let Some(part) = state.parts.get_mut(id) {
                    part.open.remove(first);
                }
            }
            if let Some(transaction) = transaction {
                if marker == Marker::Abort {
                    for (id, at) in markers {
                        let part = state
                            .parts
                            .get_mut(&id)
                            .expect("no topic is deleted while the writer is locked");
                        Arc::make_mut(&mut part.aborted).insert(transaction, at);
                    }
                }
                if let Some(open) = state.transactions.remove(&transaction)
                    && let Some(producer) = state.producers.get_mut(&open.transactional_id)
                {
                    producer.transaction = None;
                }
            }
            change(state);
        });
        Ok(())
    }

    /// Fences the current producer of a transactional id, aborts its transaction, and returns the epoch of the new one.
    pub fn init_producer(&self, transactional_id: &str) -> Result<u64> {
        let mut writer = self.writer();
        let open = {
            let mut state = self.state();
            let epoch = state.number();
            let producer = state
                .producers
                .entry(transactional_id.to_owned())
                .or_insert(ProducerState {
                    epoch,
                    transaction: None,
                });
            producer.epoch = epoch;
            producer.transaction
        };
        self.end(&mut writer, Ending::abort(open), |_| {})?;
        let state = self.state();
        Ok(state.producers.get(transactional_id).expect("inserted above").epoch)
    }

    /// Aborts the producer's transaction, if one is open.
    pub fn abort(&self, by: By<'_>) -> Result<()> {
        self.expire()?;
        let mut writer = self.writer();
        let open = {
            let state = self.state();
            check(&state, by, "abort a transaction")?;
            state.producers.get(by.transactional_id).and_then(|p| p.transaction)
        };
        self.end(&mut writer, Ending::abort(open), |_| {})
    }

    /// Fails if the producer was fenced.
    pub fn check(&self, by: By<'_>, attempted: &'static str) -> Result<()> {
        self.expire()?;
        check(&self.state(), by, attempted)
    }

    /// Commits offsets of a member outside a transaction.
    pub fn commit_offsets(
        &self,
        member: &GroupMetadata,
        who: &str,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<()> {
        failpoint::hit("log.offsets.before");
        let _writer = self.writer();
        let mut writes = Writes::default();
        if let Err(rejection) = self.state().stage_offsets(member, offsets, &mut writes, self.now()) {
            if rejection.fenced {
                tracing::debug!(who, reason = rejection.reason, "commit of offsets rejected");
                return Err(Error::Fenced {
                    attempted: "commit offsets",
                    who: who.to_owned(),
                });
            }
            return Err(Error::Rejected {
                attempted: format!("commit offsets of group {}", member.group),
                reason: rejection.reason,
            });
        }
        if writes.is_empty() {
            return Ok(());
        }
        self.store(&writes)?;
        let mut state = self.state();
        if let Some(group) = state.groups.get_mut(&member.group) {
            group.offsets.extend(offsets.iter().cloned());
        }
        failpoint::hit("log.offsets.after");
        Ok(())
    }

    /// Sets committed offsets of a group from outside the group.
    pub fn set_committed(&self, name: &str, offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        group::check_group_id(name)?;
        let _writer = self.writer();
        let mut writes = Writes::default();
        let now = self.now();
        {
            let mut state = self.state();
            if let Some(group) = state.groups.get_mut(name) {
                group.tick(now);
                if let Some((at, _)) = offsets.iter().find(|(at, _)| group.reads(at)) {
                    return Err(Error::Rejected {
                        attempted: format!("set offsets of group {name}"),
                        reason: format!("an active member reads {at}; stop it first"),
                    });
                }
            }
            for (at, offset) in offsets {
                let part = state.resolve(at)?;
                if *offset < 0 {
                    return Err(Error::Rejected {
                        attempted: format!("set offsets of group {name}"),
                        reason: format!("offset {offset} of {at} is negative"),
                    });
                }
                writes.put(
                    Space::Meta,
                    format::committed_key(name, part),
                    format::encode_offset(*offset),
                );
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        let idle = self.state().groups.get(name).is_none_or(Group::is_empty);
        if idle {
            // The retention time of offsets in a group without members starts now.
            writes.put(Space::Meta, format::idle_key(name), format::encode_offset(now));
        }
        self.store(&writes)?;
        let mut state = self.state();
        let group = state.groups.entry(name.to_owned()).or_insert_with(Group::new);
        group.offsets.extend(offsets.iter().cloned());
        if idle {
            group.idle_stored = Some(now);
            group.idle = group.is_empty().then_some(now);
        }
        drop(state);
        self.clear_idle_locked(name)
    }
}

fn produced(topic: &Arc<str>, part: PartId, here: Touched) -> Produced {
    Produced {
        at: TopicPartition {
            topic: topic.clone(),
            partition: part.number(),
        },
        first_offset: here.first,
        next_offset: here.next,
        timestamp: here.timestamp,
    }
}

impl State {
    fn new_transaction(&mut self) -> u64 {
        self.next_transaction += 1;
        self.next_transaction
    }

    /// Records what a transaction has written.
    fn touch(&mut self, by: By<'_>, transaction: u64, now: Millis, parts: impl Iterator<Item = (PartId, Touched)>) {
        let open = self.transactions.entry(transaction).or_insert_with(|| OpenTransaction {
            transactional_id: by.transactional_id.to_owned(),
            deadline: now.saturating_add(by.timeout_ms),
            parts: BTreeMap::new(),
        });
        for (id, here) in parts {
            match open.parts.entry(id) {
                Entry::Vacant(vacant) => {
                    vacant.insert(here);
                    if let Some(part) = self.parts.get_mut(&id) {
                        part.open.insert(here.first, transaction);
                    }
                }
                Entry::Occupied(mut occupied) => {
                    let first = occupied.get().first;
                    occupied.insert(Touched { first, ..here });
                }
            }
        }
        if let Some(producer) = self.producers.get_mut(by.transactional_id) {
            producer.transaction = Some(transaction);
        }
    }

    /// Checks a commit of these offsets and adds its writes to the batch.
    fn stage_offsets(
        &mut self,
        member: &GroupMetadata,
        offsets: &[(TopicPartition, Offset)],
        writes: &mut Writes,
        now: Millis,
    ) -> Result<(), CommitRejection> {
        let invalid = |reason: String| CommitRejection { fenced: false, reason };
        let MemberToken::Embedded(id) = member.token else {
            return Err(invalid("the group metadata belongs to another event log".to_owned()));
        };
        let Some(group) = self.groups.get_mut(&member.group) else {
            return Err(CommitRejection {
                fenced: true,
                reason: format!("group {} has no members", member.group),
            });
        };
        group.tick(now);
        group
            .check_commit(id, member.generation)
            .map_err(|rejection| CommitRejection {
                reason: format!("group {}: {}", member.group, rejection.reason),
                ..rejection
            })?;
        for (at, offset) in offsets {
            let part = self.resolve(at).map_err(|error| invalid(error.to_string()))?;
            if *offset < 0 {
                return Err(invalid(format!("offset {offset} of {at} is negative")));
            }
            let key = format::committed_key(&member.group, part);
            writes.put(Space::Meta, key, format::encode_offset(*offset));
        }
        Ok(())
    }
}
