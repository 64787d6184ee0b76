//! Opening a log: reads the state from the store.
//!
//! Open transactions are aborted and interrupted deletions of topics are completed before the log is returned. Opening
//! a partition reads only its last index interval. Corruption is reported and never repaired, except at the end of a
//! journal (`backing`).
//!
//! If acknowledged writes may have been lost, the log gets a new epoch: offsets after the remaining end are assigned
//! again, so a client must not continue at an offset of the old epoch.

use super::backing::{Backing, Persist, Recovered, Space, Writes};
use super::block::Block;
use super::broker::{Broker, lock};
use super::config::Config;
use super::format::{self, Head, IndexEntry, PartId, PartRecord, TopicRecord};
use super::group::Group;
use super::state::{OpenTransaction, Part, State, Topic, Touched};
use crate::{Millis, Notice, Offset, Result};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use uuid::Uuid;

/// Bits of a transaction number that count transactions; the upper bits count openings of the log.
const TRANSACTION_BITS: u32 = 40;

type Backed<'b> = &'b dyn Backing;

/// Loads a log from its store, or creates one.
pub(super) fn load(config: &Config, backing: Box<dyn Backing>) -> Result<Broker> {
    let recovered = backing.recovered();
    let head = match backing.get(Space::Meta, format::HEAD)? {
        Some(bytes) => {
            let head = Head::decode(&bytes)?;
            Head {
                log_epoch: match recovered.lost {
                    Some(_) => Uuid::new_v4(),
                    None => head.log_epoch,
                },
                openings: head.openings + 1,
                ..head
            }
        }
        None => Head {
            log_epoch: Uuid::new_v4(),
            openings: 1,
            next_topic: 1,
        },
    };
    let mut writes = Writes::default();
    writes.put(Space::Meta, format::HEAD, head.encode());
    writes.use_reserve();
    // The epoch must be synced before the session begins, because the next opening does not detect this loss again.
    backing.commit(&writes, Persist::Sync)?;

    let mut state = State::new(config.cache_bytes);
    state.next_transaction = u64::from(head.openings) << TRANSACTION_BITS;
    for (key, value) in entries(&*backing, &[format::TOPICS])? {
        let topic = Topic::of(format::decode_topic_key(&key)?, TopicRecord::decode(&value)?);
        for id in topic.parts() {
            let mut part = part(&*backing, id)?;
            // An unfinished pass is recognizable only by its due time: `next` changes when a pass ends.
            let was_compacted = part.cleaned.next > 0 || part.cleaned.due < Millis::MAX;
            if topic.rules.compacts || was_compacted {
                part.thinned = part.end;
            }
            state.parts.insert(id, part);
        }
        state.add_topic(Arc::new(topic));
    }
    open_transactions(&*backing, &mut state)?;
    for (key, value) in entries(&*backing, &[format::COMMITTED])? {
        let (group, part, offset) = format::decode_committed(&key, &value)?;
        if let Some(at) = state.name(part) {
            state
                .groups
                .entry(group)
                .or_insert_with(Group::new)
                .offsets
                .insert(at, offset);
        }
    }
    for (key, value) in entries(&*backing, &[format::IDLE])? {
        let (name, since) = format::decode_idle(&key, &value)?;
        if let Some(group) = state.groups.get_mut(&name) {
            (group.idle, group.idle_stored) = (Some(since), Some(since));
        }
    }
    let deleted = entries(&*backing, &[format::DELETED])?;
    let mut broker = Broker::new(backing, config, head, state);
    let notice = notice(&recovered, &broker.state());
    broker.notice = notice;
    if let Some(notice) = &broker.notice {
        tracing::warn!(log = broker.place, notice = notice.text, "embedded log was repaired");
    }
    broker.backing.begin_session()?;
    broker.abort_open_transactions()?;
    let deleted = deleted.iter().map(|(key, _)| format::decode_topic_key(key));
    *lock(&broker.leftovers) = deleted.collect::<Result<_>>()?;
    if config.clean_every.is_none() {
        broker.remove_leftovers()?;
    }
    Ok(broker)
}

/// Describes to operators what was cut or lost.
fn notice(recovered: &Recovered, state: &State) -> Option<Notice> {
    let mut parts = Vec::new();
    if let Some(cut) = &recovered.cut {
        let what = match cut.is_unfinished_write {
            true => "an unfinished write, which was never acknowledged",
            false => "corrupt bytes",
        };
        let (file, at, bytes) = (cut.file.display(), cut.at, cut.bytes);
        parts.push(format!("cut {bytes} bytes of {what}, from {file} at byte {at}"));
        let records = cut.records.iter().filter_map(|(part, range)| {
            let last = range.end.max(range.start + 1) - 1;
            Some(format!("offsets {} to {last} of {}", range.start, state.name(*part)?))
        });
        let records: Vec<String> = records.collect();
        if !records.is_empty() {
            parts.push(format!("they contained {}", records.join(", ")));
        }
        if let Some(aside) = &cut.aside {
            parts.push(format!("the corrupt file is kept as {}", aside.display()));
        }
    }
    if let Some(lost) = recovered.lost {
        parts.push(format!(
            "acknowledged writes may be lost ({lost}), so the log has a new epoch: state stores and edges are rebuilt"
        ));
    }
    (!parts.is_empty()).then(|| Notice {
        text: parts.join("; "),
        is_loss: recovered.lost.is_some(),
    })
}

fn entries(backing: Backed<'_>, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Bytes)>> {
    let mut found = Vec::new();
    backing.prefix(Space::Meta, prefix, &mut |key, value| {
        found.push((key.to_vec(), value));
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

fn part(backing: Backed<'_>, id: PartId) -> Result<Part> {
    let mut part = Part::default();
    if let Some(bytes) = backing.get(Space::Meta, &format::part_key(format::PARTITIONS, id))? {
        let record = PartRecord::decode(&bytes)?;
        (part.start, part.start_bytes, part.cleaned) = (record.start, record.start_bytes, record.cleaned);
    }
    // If no index entry is at or above the start, compaction has removed nothing there.
    (part.end, part.bytes) = (part.start, part.gone_bytes());
    for (key, value) in entries(backing, &format::part_key(format::INDEX, id))? {
        let entry = IndexEntry::decode(&key, &value)?;
        if entry.offset >= part.start {
            part.index.push_back(entry);
        }
    }
    if let Some(last) = part.index.back() {
        (part.end, part.bytes) = (last.offset, last.bytes);
        part.max_timestamp = Some(last.max_timestamp);
    }
    let aborted = entries(backing, &format::part_key(format::ABORTED, id))?;
    let aborted = aborted.iter().map(|(key, value)| format::decode_aborted(key, value));
    part.aborted = Arc::new(aborted.collect::<Result<BTreeMap<u64, Offset>>>()?);

    let (from, to) = (format::block_key(id, part.end), format::block_key(id, Offset::MAX));
    let mut bad = None;
    backing.scan(
        Space::Records,
        &from,
        &to,
        &mut |key, value| match format::block_base(key).and_then(|base| Block::parse(base, value)) {
            Ok(block) => {
                part.end = block.next();
                part.bytes += block.size();
                if block.head.control.is_none() {
                    part.max_timestamp = part.max_timestamp.max(Some(block.head.max_timestamp));
                }
                ControlFlow::Continue(())
            }
            Err(error) => {
                bad = Some(error);
                ControlFlow::Break(())
            }
        },
    )?;
    bad.map_or(Ok(part), Err)
}

/// Loads the transactions that were open when the process was killed. No producer can commit them.
fn open_transactions(backing: Backed<'_>, state: &mut State) -> Result<()> {
    for (key, value) in entries(backing, &[format::OPEN])? {
        let (transaction, id, first) = format::decode_open(&key, &value)?;
        let Some(part) = state.parts.get_mut(&id) else {
            continue;
        };
        part.open.insert(first, transaction);
        let open = state
            .transactions
            .entry(transaction)
            .or_insert_with(|| OpenTransaction {
                transactional_id: String::new(),
                deadline: Millis::MAX,
                parts: BTreeMap::new(),
            });
        open.parts.insert(
            id,
            Touched {
                first,
                next: first,
                timestamp: 0,
            },
        );
    }
    Ok(())
}
