//! Checks fjall's journals before fjall opens them.
//!
//! fjall silently truncates a journal at bytes that it cannot parse, and does not open a journal in which a batch has a
//! wrong checksum. A host crash leaves such a batch if the pages of a large unsynced write reached the disk in another
//! order. This module truncates a journal after its last intact batch, keeps a copy of the original file, and describes
//! the bytes that were cut.
//!
//! A journal is a sequence of batches in a file that is preallocated with zeros. A batch is a start marker (number of
//! items, sequence number), its items, and an end marker (checksum of the items, magic bytes).

use super::errors::io_refused;
use crate::embedded::backing::Cut;
use crate::embedded::block::Block;
use crate::embedded::format::{self, PartId};
use crate::{Error, Offset, Result};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: [u8; 4] = [b'F', b'J', b'L', 3];
/// Maximum sequence number. Sequence numbers have 63 bits.
const SEQNO_MAX: u64 = u64::MAX >> 1;
/// Kinds of values in a journal: value, tombstone, weak tombstone.
const VALUE_KIND_MAX: u8 = 2;
const BUFFER_BYTES: usize = 256 * 1024;

/// Result of reading a journal: the intact part and the bytes after it.
struct Scan {
    intact: u64,
    batches: u64,
    damage: Option<Damage>,
}

struct Damage {
    bytes: u64,
    is_unfinished_write: bool,
}

/// Why a batch could not be read.
enum Stop {
    Io(io::Error),
    /// The file ends, a marker is zero, or the end marker is incomplete.
    Empty,
    /// A batch of the right structure with the wrong checksum.
    Checksum,
    Invalid,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Stop::Empty,
            _ => Stop::Io(error),
        }
    }
}

/// An item of a batch. The value is empty unless values are kept.
struct Item {
    key: Vec<u8>,
    value: Vec<u8>,
}

/// Reads a journal and hashes what it reads.
struct Source {
    reader: BufReader<File>,
    position: u64,
    len: u64,
    hash: Xxh3,
    keeps_values: bool,
}

impl Source {
    fn open(path: &Path, from: u64, keeps_values: bool) -> io::Result<Source> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(from))?;
        Ok(Source {
            reader: BufReader::with_capacity(BUFFER_BYTES, file),
            position: from,
            len,
            hash: Xxh3::new(),
            keeps_values,
        })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Stop> {
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.check_left(count)?;
        self.reader.read_exact(bytes)?;
        self.position += count;
        self.hash.update(bytes);
        Ok(())
    }

    /// Fails if the file has fewer bytes left. The number comes from the file, so it is checked before memory is
    /// allocated.
    fn check_left(&mut self, count: u64) -> Result<(), Stop> {
        if count > self.len.saturating_sub(self.position) {
            self.position = self.len;
            return Err(Stop::Empty);
        }
        Ok(())
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, Stop> {
        self.check_left(count)?;
        let mut bytes = vec![0; usize::try_from(count).map_err(|_| Stop::Invalid)?];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, mut count: u64) -> Result<(), Stop> {
        self.check_left(count)?;
        let mut buffer = [0; 8 * 1024];
        while count > 0 {
            let step = usize::try_from(count).unwrap_or(usize::MAX).min(buffer.len());
            let Some(part) = buffer.get_mut(..step) else { break };
            self.fill(part)?;
            count -= u64::try_from(step).unwrap_or(count);
        }
        Ok(())
    }

    /// Reads a batch and returns its sequence number. Adds each item to `items` as soon as it is read.
    fn batch(&mut self, items: &mut Vec<Item>) -> Result<u64, Stop> {
        match self.take()? {
            [START] => {}
            [0] => return Err(Stop::Empty),
            _ => return Err(Stop::Invalid),
        }
        let count = u32::from_le_bytes(self.take()?);
        let seqno = u64::from_le_bytes(self.take()?);
        if seqno > SEQNO_MAX {
            return Err(Stop::Invalid);
        }
        self.hash.reset();
        for _ in 0..count {
            self.item(items)?;
        }
        let found = self.hash.digest();
        match self.take()? {
            [END] => {}
            [0] => return Err(Stop::Empty),
            _ => return Err(Stop::Invalid),
        }
        let expected = u64::from_le_bytes(self.take()?);
        let magic: [u8; 4] = self.take()?;
        match (magic == MAGIC, expected == found) {
            (true, true) => Ok(seqno),
            (true, false) => Err(Stop::Checksum),
            (false, _) if is_unfinished(magic) => Err(Stop::Empty),
            (false, _) => Err(Stop::Invalid),
        }
    }

    fn item(&mut self, items: &mut Vec<Item>) -> Result<(), Stop> {
        match self.take()? {
            [ITEM] => {}
            [CLEAR] => return self.skip(8),
            [0] => return Err(Stop::Empty),
            _ => return Err(Stop::Invalid),
        }
        let [kind, compression] = self.take()?;
        if kind > VALUE_KIND_MAX || compression > 1 {
            return Err(Stop::Invalid);
        }
        self.skip(8)?; // keyspace
        let key_bytes = u16::from_le_bytes(self.take()?);
        let value_bytes = u32::from_le_bytes(self.take()?);
        let stored_bytes = u32::from_le_bytes(self.take()?);
        if compression == 0 && value_bytes != stored_bytes {
            // A write can end between the two lengths. What follows are zeros, as after any unfinished write.
            return Err(if stored_bytes == 0 { Stop::Empty } else { Stop::Invalid });
        }
        let key = self.bytes(key_bytes.into())?;
        let value = match self.keeps_values {
            true => self.bytes(stored_bytes.into())?,
            false => {
                self.skip(stored_bytes.into())?;
                Vec::new()
            }
        };
        if self.keeps_values {
            items.push(Item { key, value });
        }
        Ok(())
    }

    /// Reads the rest of the file.
    fn rest(mut self) -> io::Result<Rest> {
        let mut rest = Rest::default();
        // A journal is mostly zeros, and comparing whole buffers is fast.
        let zeros = vec![0; BUFFER_BYTES + MAGIC.len()];
        let mut bytes = Vec::with_capacity(BUFFER_BYTES + MAGIC.len());
        loop {
            // Keep the end of the previous part, because the magic bytes may cross the boundary.
            let overlap = bytes.len().min(MAGIC.len() - 1);
            bytes.drain(..bytes.len() - overlap);
            let count = u64::try_from(BUFFER_BYTES).unwrap_or(u64::MAX);
            let count = self.reader.by_ref().take(count).read_to_end(&mut bytes)?;
            if count == 0 {
                return Ok(rest);
            }
            if zeros.get(..bytes.len()) != Some(bytes.as_slice()) {
                let begin = self.position - u64::try_from(overlap).unwrap_or(0);
                let last = bytes.iter().rposition(|byte| *byte != 0);
                rest.end = begin + last.map_or(0, |last| u64::try_from(last).unwrap_or(0) + 1);
                rest.has_end_marker |= bytes.windows(MAGIC.len()).any(|window| window == MAGIC);
            }
            self.position += u64::try_from(count).unwrap_or(0);
        }
    }
}

/// Returns whether the bytes are a prefix of the magic bytes, followed by zeros.
fn is_unfinished(magic: [u8; 4]) -> bool {
    let written = magic.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    magic.get(..written) == MAGIC.get(..written)
}

/// Contents of a part of a journal.
#[derive(Default)]
struct Rest {
    /// End of the last byte that is not zero.
    end: u64,
    /// Whether the part contains the magic bytes of an end marker.
    has_end_marker: bool,
}

/// Reads a journal up to the first batch that is corrupt or has a sequence number of at least `below`.
fn scan(path: &Path, below: u64) -> io::Result<Scan> {
    let mut source = Source::open(path, 0, false)?;
    let (mut intact, mut batches) = (0, 0);
    let stop = loop {
        match source.batch(&mut Vec::new()) {
            Ok(seqno) if seqno < below => (intact, batches) = (source.position, batches + 1),
            Ok(_) => break Stop::Invalid,
            Err(Stop::Io(error)) => return Err(error),
            Err(stop) => break stop,
        }
    };
    let rest = Source::open(path, intact, false)?.rest()?;
    let damage = (rest.end > intact).then(|| Damage {
        bytes: rest.end - intact,
        is_unfinished_write: matches!(stop, Stop::Empty) && rest.end <= source.position && !rest.has_end_marker,
    });
    Ok(Scan {
        intact,
        batches,
        damage,
    })
}

/// Returns the offsets of the records that can be read after the intact part of a journal.
fn records(path: &Path, from: u64) -> io::Result<BTreeMap<PartId, Range<Offset>>> {
    let mut source = Source::open(path, from, true)?;
    let (mut items, mut found) = (Vec::new(), BTreeMap::<PartId, Range<Offset>>::new());
    loop {
        let read = source.batch(&mut items);
        for item in items.drain(..) {
            let Some((part, base)) = format::decode_block_key(&item.key) else {
                continue;
            };
            let Ok(block) = Block::parse(base, Bytes::from(item.value)) else {
                continue;
            };
            let range = found.entry(part).or_insert(base..base);
            *range = range.start.min(base)..range.end.max(block.next());
        }
        match read {
            Ok(_) | Err(Stop::Checksum) => {}
            Err(Stop::Io(error)) => return Err(error),
            Err(Stop::Empty | Stop::Invalid) => return Ok(found),
        }
    }
}

/// Returns the journals of a directory in the order in which they were written.
fn journals(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|extension| extension == "jnl")) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Returns whether no journal of the directory has a batch.
pub(super) fn are_empty(dir: &Path) -> io::Result<bool> {
    for path in journals(dir)? {
        if scan(&path, u64::MAX)?.batches > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Cuts the bytes after the last intact batch. No process may have the directory open. `mark_loss` is called before bytes are
/// cut that may contain acknowledged batches: afterwards, nothing else shows that they existed.
///
/// # Errors
/// [`Error::Corrupt`] if a later journal contains batches, which cannot be kept without a gap.
pub(super) fn repair(dir: &Path, mark_loss: impl FnOnce() -> io::Result<()>) -> Result<Option<Cut>> {
    let failed = |source: io::Error| io_refused(dir, &source);
    let mut damaged: Option<(PathBuf, Scan)> = None;
    for path in journals(dir).map_err(failed)? {
        let scanned = scan(&path, u64::MAX).map_err(failed)?;
        match &damaged {
            Some((first, scan)) if scanned.batches > 0 => {
                return Err(Error::Corrupt {
                    place: first.display().to_string(),
                    reason: format!(
                        "the journal is corrupt at byte {}, and {} contains later batches; restore the directory from a \
                         backup, or move it away to start with an empty log",
                        scan.intact,
                        path.display()
                    ),
                });
            }
            None if scanned.damage.is_some() => damaged = Some((path, scanned)),
            _ => {}
        }
    }
    let Some((
        file,
        Scan {
            intact,
            damage: Some(damage),
            ..
        },
    )) = damaged
    else {
        return Ok(None);
    };
    let records = records(&file, intact).map_err(failed)?;
    let aside = match damage.is_unfinished_write {
        // The bytes contain no acknowledged batch.
        true => truncate(&file, intact).map(|()| None),
        false => mark_loss()
            .and_then(|()| keep_aside(&file))
            .and_then(|aside| replace(&file, intact).map(|()| Some(aside))),
    };
    Ok(Some(Cut {
        aside: aside.map_err(failed)?,
        file,
        at: intact,
        bytes: damage.bytes,
        is_unfinished_write: damage.is_unfinished_write,
        records,
    }))
}

/// Cuts the batches that were never acknowledged, which have sequence numbers of at least `acknowledged_below`, and
/// everything after them. The database may still have the file open and write to it later, so the file is replaced.
pub(super) fn cut_unacknowledged(dir: &Path, acknowledged_below: u64) -> io::Result<()> {
    let mut cut = false;
    let journals = journals(dir)?;
    for path in &journals {
        let found = scan(path, acknowledged_below)?;
        let is_active = journals.last() == Some(path);
        // The active file is always replaced, because the database may have buffered a part of a batch.
        if cut || is_active || found.damage.is_some() {
            replace(path, if cut { 0 } else { found.intact })?;
        }
        cut |= found.damage.is_some();
    }
    Ok(())
}

fn truncate(path: &Path, at: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(at)?;
    file.sync_all()
}

/// Replaces a file by a copy of its first `len` bytes.
fn replace(path: &Path, len: u64) -> io::Result<()> {
    let copy = path.with_extension("copy");
    let written = (|| {
        let mut file = File::create(&copy)?;
        io::copy(&mut File::open(path)?.take(len), &mut file)?;
        file.sync_all()?;
        std::fs::rename(&copy, path)?;
        sync_directory(path)
    })();
    if written.is_err() {
        // The copy is left only if the disk is full or fails. The error of the copy is reported.
        std::fs::remove_file(&copy).ok();
    }
    written
}

/// Creates a second name (hard link) for a journal, so that its content is kept.
fn keep_aside(path: &Path) -> io::Result<PathBuf> {
    let free = (1_u32..).map(|n| path.with_extension(format!("jnl.damaged-{n}")));
    let aside = free.into_iter().find(|aside| !aside.exists());
    let aside = aside.expect("a directory has fewer entries than u32 has values");
    std::fs::hard_link(path, &aside).or_else(|_| std::fs::copy(path, &aside).map(drop))?;
    Ok(aside)
}

/// Makes a rename in the directory of a file durable.
pub(super) fn sync_directory(file: &Path) -> io::Result<()> {
    match file.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Makes the newest journal durable. fjall syncs each journal before it starts the next one.
pub(super) fn sync_newest(dir: &Path) -> io::Result<()> {
    match journals(dir)?.last() {
        Some(newest) => File::open(newest)?.sync_data(),
        None => Ok(()),
    }
}

/// Returns the end of each intact batch of a journal.
#[cfg(test)]
pub(super) fn batch_ends(path: &Path) -> Vec<u64> {
    let mut source = Source::open(path, 0, false).expect("open a journal");
    std::iter::from_fn(|| source.batch(&mut Vec::new()).ok().map(|_| source.position)).collect()
}
