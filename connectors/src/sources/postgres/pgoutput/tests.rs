//! Decoder tests with valid messages, truncated messages and random bytes. `tests/e2e/postgres` tests the messages of a
//! real server.

use super::*;
use proptest::prelude::*;

/// Encodes messages as PostgreSQL does.
#[derive(Default, Clone)]
struct Writer(Vec<u8>);

impl Writer {
    fn kind(kind: u8) -> Self {
        Writer(vec![kind])
    }
    fn u8(mut self, v: u8) -> Self {
        self.0.push(v);
        self
    }
    fn u16(mut self, v: u16) -> Self {
        self.0.extend(v.to_be_bytes());
        self
    }
    fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_be_bytes());
        self
    }
    fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_be_bytes());
        self
    }
    fn str(mut self, v: &str) -> Self {
        self.0.extend(v.as_bytes());
        self.0.push(0);
        self
    }
    fn text(mut self, v: &str) -> Self {
        self.0.push(b't');
        self = self.u32(u32::try_from(v.len()).unwrap());
        self.0.extend(v.as_bytes());
        self
    }
}

fn relation() -> Writer {
    Writer::kind(b'R')
        .u32(7)
        .str("public")
        .str("orders")
        .u8(b'd')
        .u16(2)
        .u8(1)
        .str("id")
        .u32(20)
        .u32(u32::MAX)
        .u8(0)
        .str("note")
        .u32(25)
        .u32(u32::MAX)
}

fn update() -> Writer {
    Writer::kind(b'U')
        .u32(7)
        .u8(b'K')
        .u16(2)
        .text("1")
        .u8(b'n')
        .u8(b'N')
        .u16(2)
        .text("2")
        .u8(b'u')
}

fn samples() -> Vec<Vec<u8>> {
    [
        Writer::kind(b'B').u64(0x1_0000_0002).u64(5).u32(9),
        Writer::kind(b'C').u8(0).u64(3).u64(4).u64(5),
        Writer::kind(b'O').u64(1).str("elsewhere"),
        relation(),
        Writer::kind(b'Y').u32(9000).str("public").str("mood"),
        Writer::kind(b'I').u32(7).u8(b'N').u16(2).text("1").text("hello"),
        update(),
        Writer::kind(b'D').u32(7).u8(b'O').u16(2).text("1").u8(b'n'),
        Writer::kind(b'T').u32(2).u8(1).u32(7).u32(8),
        Writer::kind(b'M')
            .u8(1)
            .u64(77)
            .str("trunkline")
            .u32(2)
            .u8(b'h')
            .u8(b'i'),
    ]
    .map(|w| w.0)
    .to_vec()
}

#[test]
fn transaction_and_relation_messages_are_decoded() {
    let all = samples();
    let read: Vec<Message<'_>> = all.iter().map(|bytes| decode(bytes).unwrap()).collect();
    assert_eq!(
        read[0],
        Message::Begin {
            commit_lsn: Lsn(0x1_0000_0002),
            commit_time_micros: 5,
            xid: 9
        }
    );
    assert_eq!(
        read[1],
        Message::Commit {
            commit_lsn: Lsn(3),
            end_lsn: Lsn(4),
            commit_time_micros: 5
        }
    );
    assert_eq!(read[2], Message::Origin { name: "elsewhere" });
    let Message::Relation(relation) = &read[3] else {
        panic!("{:?}", read[3])
    };
    assert_eq!(
        (relation.schema, relation.name, relation.replica_identity),
        ("public", "orders", b'd')
    );
    assert_eq!(
        relation.columns[0],
        Column {
            key: true,
            name: "id",
            type_oid: 20,
            type_modifier: -1
        }
    );
    assert_eq!(
        read[4],
        Message::Type {
            oid: 9000,
            schema: "public",
            name: "mood"
        }
    );
    let want = Message::Logical {
        transactional: true,
        lsn: Lsn(77),
        prefix: "trunkline",
        content: b"hi",
    };
    assert_eq!(read[9], want);
}

#[test]
fn change_messages_are_decoded() {
    let all = samples();
    let read: Vec<Message<'_>> = all.iter().map(|bytes| decode(bytes).unwrap()).collect();
    let Message::Insert { relation: 7, new } = read[5] else {
        panic!("{:?}", read[5])
    };
    assert_eq!(
        new.iter().collect::<Vec<_>>(),
        [Value::Text(b"1"), Value::Text(b"hello")]
    );
    let Message::Update {
        relation: 7,
        old: Some(old),
        new,
    } = read[6]
    else {
        panic!("{:?}", read[6])
    };
    assert!(!old.is_full);
    assert_eq!(old.tuple.iter().collect::<Vec<_>>(), [Value::Text(b"1"), Value::Null]);
    assert_eq!(new.iter().collect::<Vec<_>>(), [Value::Text(b"2"), Value::Unchanged]);
    let Message::Delete { relation: 7, old } = read[7] else {
        panic!("{:?}", read[7])
    };
    assert!(old.is_full);
    let Message::Truncate { relations } = read[8] else {
        panic!("{:?}", read[8])
    };
    assert_eq!(relations.iter().collect::<Vec<_>>(), [7, 8]);
}

#[test]
fn errors_name_the_field() {
    assert_eq!(decode(b""), Err(DecodeError::Truncated { field: "kind" }));
    assert_eq!(
        decode(b"S"),
        Err(DecodeError::UnknownKind {
            what: "message",
            kind: b'S'
        })
    );
    let binary = Writer::kind(b'I').u32(7).u8(b'N').u16(1).u8(b'b').0;
    assert_eq!(
        decode(&binary),
        Err(DecodeError::UnknownKind {
            what: "value",
            kind: b'b'
        })
    );
    let negative = Writer::kind(b'I').u32(7).u8(b'N').u16(0x8000).0;
    assert_eq!(
        decode(&negative),
        Err(DecodeError::InvalidField { field: "value count" })
    );
    let huge = Writer::kind(b'I').u32(7).u8(b'N').u16(1).u8(b't').u32(0x7fff_ffff).0;
    assert_eq!(decode(&huge), Err(DecodeError::Truncated { field: "value" }));
    let excess = Writer::kind(b'Y').u32(1).str("a").str("b").u8(0).0;
    assert_eq!(decode(&excess), Err(DecodeError::TrailingBytes { bytes: 1 }));
}

#[test]
fn every_truncation_is_an_error() {
    for sample in samples() {
        for end in 0..sample.len() {
            assert!(
                decode(&sample[..end]).is_err(),
                "{:?} cut at {end}",
                char::from(sample[0])
            );
        }
    }
}

/// Reads every field and value of a message.
fn exhaust(bytes: &[u8]) {
    match decode(bytes) {
        Ok(Message::Insert { new, .. }) => assert_eq!(new.iter().count(), usize::from(new.columns)),
        Ok(Message::Update { old, new, .. }) => {
            assert_eq!(new.iter().count(), usize::from(new.columns));
            assert!(old.is_none_or(|old| old.tuple.iter().count() == usize::from(old.tuple.columns)));
        }
        Ok(Message::Delete { old, .. }) => assert_eq!(old.tuple.iter().count(), usize::from(old.tuple.columns)),
        Ok(Message::Truncate { relations }) => assert_eq!(relations.iter().count(), relations.iter().len()),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        exhaust(&bytes);
    }

    #[test]
    fn mutated_messages_never_panic(
        which in 0usize..10,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = samples()[which].clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        exhaust(&bytes);
    }
}
