//! Typed control records of Trunkline: the records of `view.log`, change topics and the positions topic that are not
//! rows.
//!
//! Each record is encoded by its released schema `avro/<name>.v1.avsc`. Its first field is a format number: a newer format
//! is rejected before the rest is decoded, without the registry. Released schemas do not change; a change of the layout is
//! a new format in a new file.

use crate::codec::encode::{write_bytes, write_long};
use crate::codec::{DecodeError, decode::Reader};
use crate::ids::SchemaId;
use crate::schema::Schema;
use crate::wire;
use std::sync::LazyLock;

/// The format that is written, and the newest format that can be read.
pub const FORMAT: i64 = 1;

/// Why bytes are not the expected control record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The record was written by a newer version of Trunkline.
    #[error("{name} has format {found}, but this version of trunkline reads formats up to {FORMAT}; upgrade trunkline")]
    Newer {
        /// The record.
        name: &'static str,
        /// The format found.
        found: i64,
    },
    /// The body does not match the schema.
    #[error("cannot decode {name}")]
    Malformed {
        /// The record.
        name: &'static str,
        /// What is wrong.
        #[source]
        source: DecodeError,
    },
    /// The value does not start with a magic byte and a schema id.
    #[error("{name} has no valid frame")]
    Frame {
        /// The record.
        name: &'static str,
        /// What is wrong.
        #[source]
        source: wire::WireError,
    },
}

/// A control record.
pub trait Event<'a>: Sized {
    /// Full name of the record: `trunkline.TransactionEnd`.
    const NAME: &'static str;
    /// The text of the released schema, for the registry.
    const AVSC: &'static str;

    /// The released schema, compiled.
    fn schema() -> &'static Schema;

    /// Appends the Avro body.
    fn encode(&self, out: &mut Vec<u8>);

    /// Decodes an Avro body.
    ///
    /// # Errors
    /// [`EventError`] if it has a newer format or does not match the schema.
    fn decode(body: &'a [u8]) -> Result<Self, EventError>;

    /// Appends the value of a record, including the schema id.
    fn write(&self, id: SchemaId, out: &mut Vec<u8>) {
        wire::frame(id, out);
        self.encode(out);
    }

    /// Decodes the value of a record. The schema id at its start is ignored, because the format number identifies the
    /// layout.
    ///
    /// # Errors
    /// [`EventError`] if the schema id is missing, the format is newer, or the body does not match the schema.
    fn read(value: &'a [u8]) -> Result<Self, EventError> {
        let (_, body) = wire::unframe(value).map_err(|source| EventError::Frame {
            name: Self::NAME,
            source,
        })?;
        Self::decode(body)
    }

    /// The registry subject of this record on a topic.
    fn subject(topic: &str) -> String {
        wire::subject(topic, Self::NAME)
    }
}

/// Encodes and decodes a field of this type.
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

    /// Transaction end marker on `view.log`: makes all earlier records of its writer in the same partition visible.
    TransactionEnd<'a> {
        /// Version of the source transaction that ended: 17 bytes.
        version: &'a [u8],
        /// Commit time at the source, in ms since 1970; 0 if unknown.
        at: i64,
    }

    /// Begin marker on `view.log`: states that the writer's source transaction is still open at the end of the Kafka
    /// transaction that contains the marker.
    TransactionBegin<'a> {
        /// Version of the writer's last record: 17 bytes.
        version: &'a [u8],
    }

    /// Grant on `view.log`: gives a principal access to a bucket.
    Grant<'a> {
        /// The principal, `<issuer alias>:<subject>`.
        principal: &'a str,
    }

    /// Stale mark on `view.log`: whether the view lacks changes of this writer.
    Stale {
        /// Whether the view is stale.
        stale: bool,
    }

    /// Loaded mark on `view.log`: whether the first snapshot of the view's table has ended.
    Loaded {
        /// Whether the view is loaded.
        loaded: bool,
    }

    /// Last record of a snapshot chunk on a change topic. Rows in the chunk's range that are not in the chunk, and that
    /// have not changed since the chunk's low position, no longer exist.
    ChunkEnd<'a> {
        /// The table, as in record keys.
        table: &'a str,
        /// Key of the first row of the range, as a JSON array; `None` for the first row of the table.
        from: Option<&'a str>,
        /// Key of the last row of the range, as a JSON array; `None` for the last row of the table.
        to: Option<&'a str>,
        /// Id of the snapshot.
        snapshot: &'a str,
        /// Position of the source, as in the header `tx`: changes below it are older than the rows of the chunk.
        low: &'a str,
        /// Whether this is the last chunk of the table.
        is_final: bool,
    }

    /// Position record of a connector in the positions topic, written in the transaction of the records up to that
    /// position.
    ConnectorPosition<'a> {
        /// Where the connector continues, as JSON in the format of the connector's kind.
        position: &'a str,
        /// The last source transaction that is stored completely, in the notation of the connector's kind; empty if none.
        complete: &'a str,
        /// Time of writing, in ms since 1970.
        updated_at: i64,
    }
}

#[cfg(test)]
mod tests;
