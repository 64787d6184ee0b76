//! Decoder of `pgoutput` messages, protocol versions 1 and 2 without streaming, with values as text (PostgreSQL
//! documentation, "Logical Replication Message Formats").
//!
//! Every length is checked against the remaining bytes, nothing is copied, and no input causes a panic.

use schemas::version::Lsn;

/// Why a message could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends before the end of the field.
    #[error("the message ends within {field}")]
    Truncated {
        /// The field that was being read.
        field: &'static str,
    },
    /// Unknown kind of message, tuple or value.
    #[error("{what} of unknown kind {kind:#04x}")]
    UnknownKind {
        /// The element.
        what: &'static str,
        /// The kind byte.
        kind: u8,
    },
    /// A name is not UTF-8, or a count is negative.
    #[error("{field} is not valid")]
    InvalidField {
        /// The field.
        field: &'static str,
    },
    /// Bytes after the end of the message.
    #[error("{bytes} bytes after the end of the message")]
    TrailingBytes {
        /// Number of bytes.
        bytes: usize,
    },
}

type Result<T> = std::result::Result<T, DecodeError>;

/// Identity of a table in messages: its OID.
pub type RelationId = u32;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// A source transaction begins.
    Begin {
        /// LSN of its commit record.
        commit_lsn: Lsn,
        /// Commit time, µs since 2000-01-01 UTC.
        commit_time_micros: i64,
        /// Transaction id.
        xid: u32,
    },
    /// The source transaction ends.
    Commit {
        /// LSN of its commit record.
        commit_lsn: Lsn,
        /// LSN after the commit record. Acknowledging this LSN acknowledges the transaction.
        end_lsn: Lsn,
        /// Commit time, µs since 2000-01-01 UTC.
        commit_time_micros: i64,
    },
    /// Replication origin of a transaction that was itself replicated from another server.
    Origin {
        /// Its name.
        name: &'a str,
    },
    /// The definition of a table. It is valid until it is sent again.
    Relation(Relation<'a>),
    /// A type that is not a built-in type.
    Type {
        /// OID of the type.
        oid: u32,
        /// Schema.
        schema: &'a str,
        /// Name.
        name: &'a str,
    },
    /// A row was inserted.
    Insert {
        /// The table.
        relation: RelationId,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// The table.
        relation: RelationId,
        /// The old row, with the columns of the replica identity; absent if the key did not change.
        old: Option<Old<'a>>,
        /// The new row.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// The table.
        relation: RelationId,
        /// The old row, with the columns of the replica identity.
        old: Old<'a>,
    },
    /// Tables were truncated.
    Truncate {
        /// The tables, four bytes each.
        relations: Relations<'a>,
    },
    /// A logical message (`pg_logical_emit_message`).
    Logical {
        /// Whether the message belongs to the open transaction.
        transactional: bool,
        /// Its LSN.
        lsn: Lsn,
        /// Prefix given by the sender.
        prefix: &'a str,
        /// Its content.
        content: &'a [u8],
    },
}

/// The definition of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation<'a> {
    /// OID of the table.
    pub id: RelationId,
    /// Schema; empty for `pg_catalog`.
    pub schema: &'a str,
    /// Name.
    pub name: &'a str,
    /// `d` default, `n` nothing, `f` full, `i` index.
    pub replica_identity: u8,
    /// Columns, in the order of tuples.
    pub columns: Vec<Column<'a>>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column<'a> {
    /// Whether the column is part of the replica identity.
    pub key: bool,
    /// Name.
    pub name: &'a str,
    /// OID of the type.
    pub type_oid: u32,
    /// Type modifier, -1 for none.
    pub type_modifier: i32,
}

/// The row before a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Old<'a> {
    /// Whether the tuple is the full row (`REPLICA IDENTITY FULL`). Otherwise only the key columns are set.
    pub is_full: bool,
    /// The values.
    pub tuple: Tuple<'a>,
}

/// OIDs of truncated tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relations<'a> {
    bytes: &'a [u8],
}

impl<'a> Relations<'a> {
    /// The OIDs in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = RelationId> + use<'a> {
        self.bytes
            .chunks_exact(4)
            .map(|b| u32::from_be_bytes(b.try_into().expect("chunks of four")))
    }
}

/// A row's values, checked when the message was decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: u16,
    bytes: &'a [u8],
}

/// One value of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL null.
    Null,
    /// An unchanged TOAST value, which is not sent.
    Unchanged,
    /// The value as text in the client encoding, UTF-8; not validated here.
    Text(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// The values in the order of the relation's columns.
    pub fn iter(self) -> Values<'a> {
        Values {
            left: self.columns,
            bytes: self.bytes,
        }
    }
}

/// Iterator over the values of a [`Tuple`].
#[derive(Debug, Clone)]
pub struct Values<'a> {
    left: u16,
    bytes: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        let mut reader = Reader { bytes: self.bytes };
        // The tuple was checked when it was decoded, so this is never an error.
        let value = reader.value().ok()?;
        self.bytes = reader.bytes;
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

/// Decodes one message.
///
/// # Errors
/// [`DecodeError`] with the field that could not be decoded.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>> {
    let mut reader = Reader { bytes };
    let message = reader.message()?;
    match reader.bytes.len() {
        0 => Ok(message),
        bytes => Err(DecodeError::TrailingBytes { bytes }),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn message(&mut self) -> Result<Message<'a>> {
        Ok(match self.u8("kind")? {
            b'B' => Message::Begin {
                commit_lsn: self.lsn("commit LSN")?,
                commit_time_micros: self.i64("commit time")?,
                xid: self.u32("transaction id")?,
            },
            b'C' => {
                self.u8("flags")?;
                Message::Commit {
                    commit_lsn: self.lsn("commit LSN")?,
                    end_lsn: self.lsn("end LSN")?,
                    commit_time_micros: self.i64("commit time")?,
                }
            }
            b'O' => {
                self.lsn("origin LSN")?;
                Message::Origin {
                    name: self.string("origin")?,
                }
            }
            b'R' => Message::Relation(self.relation()?),
            b'Y' => Message::Type {
                oid: self.u32("type")?,
                schema: self.string("schema")?,
                name: self.string("type name")?,
            },
            b'I' => self.insert()?,
            b'U' => self.update()?,
            b'D' => self.delete()?,
            b'T' => self.truncate()?,
            b'M' => self.logical()?,
            kind => return Err(DecodeError::UnknownKind { what: "message", kind }),
        })
    }

    fn relation(&mut self) -> Result<Relation<'a>> {
        let id = self.u32("relation")?;
        let schema = self.string("schema")?;
        let name = self.string("table name")?;
        let replica_identity = self.u8("replica identity")?;
        let count = self.count("column count")?;
        let mut columns = Vec::with_capacity(usize::from(count.min(1664)));
        for _ in 0..count {
            columns.push(Column {
                key: self.u8("column flags")? & 1 != 0,
                name: self.string("column name")?,
                type_oid: self.u32("column type")?,
                type_modifier: i32::from_be_bytes(self.u32("type modifier")?.to_be_bytes()),
            });
        }
        Ok(Relation {
            id,
            schema,
            name,
            replica_identity,
            columns,
        })
    }

    fn insert(&mut self) -> Result<Message<'a>> {
        let relation = self.u32("relation")?;
        self.new_marker()?;
        Ok(Message::Insert {
            relation,
            new: self.tuple()?,
        })
    }

    fn update(&mut self) -> Result<Message<'a>> {
        let relation = self.u32("relation")?;
        let old = match self.bytes.first() {
            Some(b'K' | b'O') => Some(self.old()?),
            _ => None,
        };
        self.new_marker()?;
        Ok(Message::Update {
            relation,
            old,
            new: self.tuple()?,
        })
    }

    fn delete(&mut self) -> Result<Message<'a>> {
        let relation = self.u32("relation")?;
        Ok(Message::Delete {
            relation,
            old: self.old()?,
        })
    }

    fn truncate(&mut self) -> Result<Message<'a>> {
        let count = self.u32("relation count")?;
        self.u8("truncate options")?;
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(4));
        let length = length.ok_or(DecodeError::InvalidField {
            field: "relation count",
        })?;
        Ok(Message::Truncate {
            relations: Relations {
                bytes: self.take(length, "relations")?,
            },
        })
    }

    fn logical(&mut self) -> Result<Message<'a>> {
        let flags = self.u8("flags")?;
        let lsn = self.lsn("LSN")?;
        let prefix = self.string("prefix")?;
        let length = self.length("content length")?;
        let content = self.take(length, "content")?;
        Ok(Message::Logical {
            transactional: flags & 1 != 0,
            lsn,
            prefix,
            content,
        })
    }

    fn new_marker(&mut self) -> Result<()> {
        match self.u8("tuple kind")? {
            b'N' => Ok(()),
            kind => Err(DecodeError::UnknownKind {
                what: "new tuple",
                kind,
            }),
        }
    }

    fn old(&mut self) -> Result<Old<'a>> {
        let is_full = match self.u8("tuple kind")? {
            b'O' => true,
            b'K' => false,
            kind => {
                return Err(DecodeError::UnknownKind {
                    what: "old tuple",
                    kind,
                });
            }
        };
        Ok(Old {
            is_full,
            tuple: self.tuple()?,
        })
    }

    /// Validates a tuple, so that reading its values later cannot fail.
    fn tuple(&mut self) -> Result<Tuple<'a>> {
        let columns = self.count("value count")?;
        let start = self.bytes;
        for _ in 0..columns {
            self.value()?;
        }
        let length = start.len() - self.bytes.len();
        Ok(Tuple {
            columns,
            bytes: start.get(..length).unwrap_or_default(),
        })
    }

    fn value(&mut self) -> Result<Value<'a>> {
        match self.u8("value kind")? {
            b'n' => Ok(Value::Null),
            b'u' => Ok(Value::Unchanged),
            b't' => {
                let length = self.length("value length")?;
                Ok(Value::Text(self.take(length, "value")?))
            }
            kind => Err(DecodeError::UnknownKind { what: "value", kind }),
        }
    }

    fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(length)
            .ok_or(DecodeError::Truncated { field })?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N]> {
        let (taken, rest) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated { field })?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8> {
        let [byte] = self.array(field)?;
        Ok(byte)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    fn i64(&mut self, field: &'static str) -> Result<i64> {
        Ok(i64::from_be_bytes(self.array(field)?))
    }

    fn lsn(&mut self, field: &'static str) -> Result<Lsn> {
        Ok(Lsn(u64::from_be_bytes(self.array(field)?)))
    }

    /// A number of columns: a non-negative 16-bit integer.
    fn count(&mut self, field: &'static str) -> Result<u16> {
        let count = u16::from_be_bytes(self.array(field)?);
        if count > 0x7fff {
            Err(DecodeError::InvalidField { field })
        } else {
            Ok(count)
        }
    }

    /// A length: a non-negative 32-bit integer.
    fn length(&mut self, field: &'static str) -> Result<usize> {
        let length = i32::from_be_bytes(self.array(field)?);
        usize::try_from(length).map_err(|_| DecodeError::InvalidField { field })
    }

    /// A zero-terminated string.
    fn string(&mut self, field: &'static str) -> Result<&'a str> {
        let end = self
            .bytes
            .iter()
            .position(|b| *b == 0)
            .ok_or(DecodeError::Truncated { field })?;
        let text = self.take(end, field)?;
        self.take(1, field)?;
        std::str::from_utf8(text).map_err(|_| DecodeError::InvalidField { field })
    }
}

#[cfg(test)]
mod tests;
