//! Trunkline's own records, typed: what `view.log`, change topics and `connect.positions` carry beside rows.
//!
//! Guarantees: what is written is a body of the released `avro/<name>.v1.avsc`; what is read borrows from the bytes;
//! a newer format is refused with both numbers before the rest is looked at, and without the registry. Never: a change
//! of a released schema: that is a new format beside the old one.

use crate::codec::encode::{write_bytes, write_long};
use crate::codec::{DecodeError, decode::Reader};
use crate::ids::SchemaId;
use crate::schema::Schema;
use crate::wire;
use std::sync::LazyLock;

/// The format that this program writes and the newest that it reads.
pub const FORMAT: i64 = 1;

/// Why bytes are not such a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Written by a newer program.
    #[error("{name} has format {found}, this program reads up to {FORMAT}; upgrade it")]
    Newer {
        /// The record.
        name: &'static str,
        /// The format found.
        found: i64,
    },
    /// Garbage.
    #[error("{name} cannot be read")]
    Malformed {
        /// The record.
        name: &'static str,
        /// What is wrong.
        #[source]
        source: DecodeError,
    },
    /// Not framed.
    #[error("{name} is not framed")]
    Frame {
        /// The record.
        name: &'static str,
        /// What is wrong.
        #[source]
        source: wire::WireError,
    },
}

/// A record of ours.
pub trait Event<'a>: Sized {
    /// Full name of the record: `trunkline.TransactionEnd`.
    const NAME: &'static str;
    /// The released schema's text, to be registered.
    const AVSC: &'static str;

    /// The released schema, compiled.
    fn schema() -> &'static Schema;

    /// Appends the Avro body.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads an Avro body.
    ///
    /// # Errors
    /// [`EventError`] when it is of a newer format, or garbage.
    fn decode(body: &'a [u8]) -> Result<Self, EventError>;

    /// Appends the framed value of a record.
    fn write(&self, id: SchemaId, out: &mut Vec<u8>) {
        wire::frame(id, out);
        self.encode(out);
    }

    /// Reads the framed value of a record. The schema id is not looked at: the format number says it all.
    ///
    /// # Errors
    /// [`EventError`] when it is not framed, of a newer format, or garbage.
    fn read(value: &'a [u8]) -> Result<Self, EventError> {
        let (_, body) = wire::unframe(value).map_err(|source| EventError::Frame {
            name: Self::NAME,
            source,
        })?;
        Self::decode(body)
    }

    /// The registry's subject of this record on a topic.
    fn subject(topic: &str) -> String {
        wire::subject(topic, Self::NAME)
    }
}

/// A field's kind: how it is written and read.
trait Value<'a>: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(reader: &mut Reader<'a>) -> Result<Self, Box<DecodeError>>;
}

impl<'a> Value<'a> for &'a [u8] {
    fn put(&self, out: &mut Vec<u8>) {
        write_bytes(out, self);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, Box<DecodeError>> {
        reader.bytes()
    }
}

impl<'a> Value<'a> for &'a str {
    fn put(&self, out: &mut Vec<u8>) {
        write_bytes(out, self.as_bytes());
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, Box<DecodeError>> {
        reader.string()
    }
}

impl<'a> Value<'a> for i64 {
    fn put(&self, out: &mut Vec<u8>) {
        write_long(out, *self);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, Box<DecodeError>> {
        reader.long()
    }
}

impl<'a> Value<'a> for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, Box<DecodeError>> {
        reader.boolean()
    }
}

impl<'a, T: Value<'a>> Value<'a> for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            None => out.push(0),
            Some(value) => {
                out.push(2);
                value.put(out);
            }
        }
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, Box<DecodeError>> {
        if reader.optional_is_null(true)? {
            Ok(None)
        } else {
            T::take(reader).map(Some)
        }
    }
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident $(<$life:lifetime>)? { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub struct $name $(<$life>)? { $($(#[$field_doc])* pub $field: $ty,)* }

            events!(@event $name [$($life)?] $($field: $ty,)*);
        )*

        /// Names and texts of all released schemas.
        pub const RELEASED: &[(&str, &str)] = &[
            $((concat!(stringify!($name), ".v1"), include_str!(concat!("../avro/", stringify!($name), ".v1.avsc"))),)*
        ];
    };
    (@event $name:ident [$life:lifetime] $($fields:tt)*) => { events!(@impl $life, $name, $name<$life>, $($fields)*); };
    (@event $name:ident [] $($fields:tt)*) => { events!(@impl 'a, $name, $name, $($fields)*); };
    (@impl $life:lifetime, $name:ident, $ty:ty, $($field:ident: $field_ty:ty,)*) => {
        impl<$life> Event<$life> for $ty {
            const NAME: &'static str = concat!("trunkline.", stringify!($name));
            const AVSC: &'static str = include_str!(concat!("../avro/", stringify!($name), ".v1.avsc"));

            fn schema() -> &'static Schema {
                static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
                    let text = include_str!(concat!("../avro/", stringify!($name), ".v1.avsc"));
                    Schema::parse(text).expect("a released schema compiles")
                });
                &SCHEMA
            }

            fn encode(&self, out: &mut Vec<u8>) {
                write_long(out, FORMAT);
                $(self.$field.put(out);)*
            }

            fn decode(body: &$life [u8]) -> Result<Self, EventError> {
                let name = Self::NAME;
                let mut reader = Reader::new(Self::schema(), body);
                let malformed = |source: Box<DecodeError>| EventError::Malformed { name, source: *source };
                let format = reader.long().map_err(malformed)?;
                if format != FORMAT {
                    return Err(EventError::Newer { name, found: format });
                }
                $(let $field = <$field_ty as Value<$life>>::take(&mut reader).map_err(malformed)?;)*
                reader.end().map_err(malformed)?;
                Ok(Self { $($field,)* })
            }
        }
    };
}

events! {
    /// A row of a view in a bucket, on `view.log`.
    ViewRow<'a> {
        /// The JSON for the device.
        row: &'a [u8],
    }

    /// Everything of a writer before this record, in its partition of `view.log`, may be shown.
    TransactionEnd<'a> {
        /// Version of the source transaction that ended: 17 bytes.
        version: &'a [u8],
        /// Commit time at the source, in ms since 1970; 0 when unknown.
        at: i64,
    }

    /// The Kafka transaction that this record of `view.log` is in leaves its source transaction open.
    TransactionBegin<'a> {
        /// Version of the last record that was written: 17 bytes.
        version: &'a [u8],
    }

    /// A bucket is granted to a principal, on `view.log`.
    Grant<'a> {
        /// The principal's text.
        principal: &'a str,
    }

    /// Whether a view's rows may be behind their source until a snapshot, on `view.log`.
    Stale {
        /// Whether it is.
        stale: bool,
    }

    /// The last record of a snapshot chunk on a change topic: rows of its range that were neither in it nor changed
    /// since its low position are gone.
    ChunkEnd<'a> {
        /// The table, as in keys.
        table: &'a str,
        /// Key of the range's first row, as JSON array text; `None`: the table's first.
        from: Option<&'a str>,
        /// Key of the range's last row, as JSON array text; `None`: the table's last.
        to: Option<&'a str>,
        /// Id of the snapshot.
        snapshot: &'a str,
        /// Position of the source below which the chunk's rows are newer, as in the header `tx`.
        low: &'a str,
        /// Whether the table's snapshot ends with this chunk.
        is_final: bool,
    }

    /// Where a connector stands, on `connect.positions`; written in the transaction of the records up to there.
    ConnectorPosition<'a> {
        /// Where it goes on, as JSON of the connector's own kind.
        position: &'a str,
        /// The last source transaction that is stored whole, in the connector's own words; empty: none yet.
        complete: &'a str,
        /// When, in ms since 1970.
        updated_at: i64,
    }
}

#[cfg(test)]
mod tests;
