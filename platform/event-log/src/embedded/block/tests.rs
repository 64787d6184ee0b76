//! Tests of the block format: records are read as they were written, even when a block is read in parts, and corrupt
//! bytes are errors.

use super::*;
use crate::{Error, TopicPartition};

fn sink(batch: &mut RecordBatch, partition: u16, max_bytes: usize) -> Sink<'_> {
    Sink {
        batch,
        partition,
        max_bytes,
    }
}

fn sample() -> Block {
    let mut builder = Builder::new();
    builder.push(
        1_000,
        Some(b"k"),
        Some(b"v"),
        [("a", Some(&b"\0\xff"[..])), ("a", None)].into_iter(),
    );
    builder.push(900, None, Some(b""), std::iter::empty());
    builder.push(-1, Some(b""), None, [("", Some(&b""[..]))].into_iter());
    builder.finish(40, 7, None)
}

type Plain = (
    Offset,
    Millis,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(String, Option<Vec<u8>>)>,
);

fn plain(batch: &RecordBatch) -> Vec<Plain> {
    let own = |b: Option<&[u8]>| b.map(<[u8]>::to_vec);
    let record = |r: crate::RecordRef<'_>| {
        let headers = r.headers().iter().map(|(n, v)| (n.to_owned(), own(v))).collect();
        (r.offset(), r.timestamp(), own(r.key()), own(r.value()), headers)
    };
    batch.iter().map(record).collect()
}

fn read(block: &Block, from: Offset, max_bytes: usize) -> Result<Vec<Plain>> {
    let (mut all, mut at, mut place) = (Vec::new(), from, None);
    while at < block.next() {
        let mut batch = RecordBatch::default();
        let partition = batch.intern(&TopicPartition::new("t", 0));
        (at, place) = block.read(at, place, sink(&mut batch, partition, max_bytes))?;
        all.extend(plain(&batch));
    }
    Ok(all)
}

#[test]
fn block_is_read_whole_and_in_parts() {
    let block = sample();
    let want = vec![
        (
            40,
            1_000,
            Some(b"k".to_vec()),
            Some(b"v".to_vec()),
            vec![("a".into(), Some(vec![0, 0xff])), ("a".into(), None)],
        ),
        (41, 900, None, Some(Vec::new()), vec![]),
        (42, -1, Some(Vec::new()), None, vec![(String::new(), Some(Vec::new()))]),
    ];
    let again = Block::parse(40, block.bytes.clone()).expect("parse");
    assert_eq!(again.head, block.head);
    assert_eq!((again.head.transaction, again.head.count, again.next()), (7, 3, 43));
    assert_eq!(read(&again, 40, usize::MAX).expect("whole"), want);
    assert_eq!(read(&again, 40, 1).expect("one at a time"), want);
    assert_eq!(read(&again, 41, 1).expect("from the second"), want[1..]);
}

#[test]
fn append_time_replaces_every_timestamp() {
    let mut builder = Builder::new();
    builder.push(1, None, None, std::iter::empty());
    builder.push(2, None, None, std::iter::empty());
    let block = builder.finish(0, 0, Some(77));
    assert_eq!(block.head.max_timestamp, 77);
    assert!(read(&block, 0, usize::MAX).expect("read").iter().all(|r| r.1 == 77));
}

#[test]
fn first_record_at_timestamp_is_found() {
    let block = sample();
    assert_eq!(block.first_at(40, 901).expect("look"), Some(40));
    assert_eq!(block.first_at(41, 900).expect("look"), Some(41));
    assert_eq!(block.first_at(40, 1_001).expect("look"), None);
}

#[test]
fn control_records_cover_one_offset() {
    let block = Block::control(9, 3, Marker::Abort, 5);
    let again = Block::parse(9, block.bytes.clone()).expect("parse");
    assert_eq!((again.head.control, again.next()), (Some(Marker::Abort), 10));
}

#[test]
fn damaged_bytes_are_errors() {
    let good = sample().bytes;
    for cut in 0..good.len() {
        let cut = Bytes::copy_from_slice(&good[..cut]);
        if let Ok(block) = Block::parse(40, cut) {
            let _ = read(&block, 40, usize::MAX);
        }
    }
    for (at, flip) in (2..good.len()).flat_map(|at| [1_u8, 0x80, 0xff].map(|flip| (at, flip))) {
        let mut bad = good.to_vec();
        bad[at] ^= flip;
        if let Ok(mut block) = Block::parse(40, Bytes::from(bad)) {
            block.head.span = 3;
            let _ = block.first_at(40, 0);
        }
    }
    let mut newer = good.to_vec();
    newer[0] = MERGED + 1;
    assert!(matches!(
        Block::parse(40, Bytes::from(newer)),
        Err(Error::Corrupt { .. })
    ));
}

#[test]
fn rewritten_block_keeps_records_unchanged() {
    let block = sample();
    let mut items: Vec<Item<'_>> = block.items().map(|item| item.expect("whole")).collect();
    assert_eq!(
        items.iter().map(|i| (i.offset, i.key, i.tombstone)).collect::<Vec<_>>(),
        [
            (40, Some(&b"k"[..]), false),
            (41, None, false),
            (42, Some(&b""[..]), true)
        ]
    );
    let want = read(&block, 40, usize::MAX).expect("read");
    items.remove(0);
    for horizon in [None, Some(-5)] {
        let new = block.rewritten(&items, horizon);
        let again = Block::parse(40, new.bytes.clone()).expect("parse");
        assert_eq!(again.head, new.head);
        assert_eq!(
            (again.head.count, again.next(), again.head.horizon),
            (2, block.next(), horizon)
        );
        assert_eq!((again.head.max_timestamp, again.head.transaction), (900, 7));
        assert_eq!(read(&again, 40, usize::MAX).expect("whole"), want[1..]);
        assert_eq!(read(&again, 40, 1).expect("one at a time"), want[1..]);
        assert!(again.size() < block.size(), "a horizon does not count");
        assert!(!again.is_over(42, None).expect("look"));
    }
    let less = block.rewritten(&items[..1], None);
    assert!(less.is_over(42, None).expect("look") && !less.is_over(41, None).expect("look"));
    assert_eq!(read(&less, 42, usize::MAX).expect("a gap"), []);
}

#[test]
fn place_in_rewritten_block_is_ignored() {
    let block = sample();
    let mut batch = RecordBatch::default();
    let (next, place) = block.read(40, None, sink(&mut batch, 0, 1)).expect("one");
    assert!(next == 41 && place.is_some());
    let items: Vec<Item<'_>> = block.items().map(|item| item.expect("whole")).collect();
    for new in [block.rewritten(&items[1..], None), block.rewritten(&items, Some(1))] {
        let mut batch = RecordBatch::default();
        let partition = batch.intern(&TopicPartition::new("t", 0));
        new.read(next, place, sink(&mut batch, partition, usize::MAX))
            .expect("the rest");
        assert_eq!(batch.iter().map(|r| r.offset()).collect::<Vec<_>>(), [41, 42]);
    }
}

#[test]
fn negative_deltas_roundtrip() {
    for value in [0, 1, -1, i64::MAX, i64::MIN, 300, -300] {
        assert_eq!(unzigzag(zigzag(value)), value);
    }
}
