//! Decodes Avro bytes to values.
//!
//! The input is not trusted: every length is checked against the remaining bytes before memory is allocated, and no input
//! causes a panic.

use super::{DEPTH_MAX, Datum, Row, Step, write_path};
use crate::schema::{Kind, Record, Schema, TypeId};
use std::fmt;

/// Why bytes do not match a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    path: Vec<Step>,
    /// Offset in the body at which decoding stopped.
    pub at: usize,
    /// The reason.
    pub reason: &'static str,
}

impl DecodeError {
    /// The path of the field, such as `items[2].price`; empty for the whole body.
    pub fn path(&self) -> String {
        struct Path<'e>(&'e [Step]);
        impl fmt::Display for Path<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_path(f, self.0, "")
            }
        }
        Path(&self.path).to_string()
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot decode the Avro body: ")?;
        if !self.path.is_empty() {
            write_path(f, &self.path, "")?;
            f.write_str(": ")?;
        }
        write!(f, "{} at byte {}", self.reason, self.at)
    }
}

impl std::error::Error for DecodeError {}

type Failure = Box<DecodeError>;

/// Decodes one body.
pub(crate) struct Reader<'a> {
    schema: &'a Schema,
    body: &'a [u8],
    at: usize,
    /// Remaining number of array and map items. Items of zero length, such as null, do not consume bytes of the body,
    /// so without this limit a few bytes could cause any amount of memory to be allocated.
    items_left: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(schema: &'a Schema, body: &'a [u8]) -> Self {
        Reader {
            schema,
            body,
            at: 0,
            items_left: body.len() + 1024,
        }
    }

    #[cold]
    pub(crate) fn failure(&self, reason: &'static str) -> Failure {
        Box::new(DecodeError {
            path: Vec::new(),
            at: self.at,
            reason,
        })
    }

    pub(crate) fn end(&self) -> Result<(), Failure> {
        if self.at == self.body.len() {
            Ok(())
        } else {
            Err(self.failure("bytes remain after the value"))
        }
    }

    pub(super) fn fields(&mut self, record: &'a Record, row: &mut Row<'a>, depth: usize) -> Result<(), Failure> {
        for field in &record.fields {
            match self.value(field.ty, depth) {
                Ok(value) => row.push(value),
                Err(failure) => return Err(within(failure, || Step::Field(field.name.to_string()))),
            }
        }
        Ok(())
    }

    pub(crate) fn value(&mut self, ty: TypeId, depth: usize) -> Result<Datum<'a>, Failure> {
        match &self.schema.ty(ty).kind {
            Kind::Null => Ok(Datum::Null),
            Kind::Boolean => Ok(Datum::Bool(self.boolean()?)),
            Kind::Int => Ok(Datum::Int(self.int()?)),
            Kind::Long => Ok(Datum::Long(self.long()?)),
            Kind::Float => Ok(Datum::Float(f32::from_le_bytes(self.take_array()?))),
            Kind::Double => Ok(Datum::Double(f64::from_le_bytes(self.take_array()?))),
            Kind::Bytes => Ok(Datum::Bytes(self.bytes()?)),
            Kind::String => Ok(Datum::Str(self.string()?)),
            Kind::Fixed(fixed) => Ok(Datum::Bytes(self.take(fixed.size)?)),
            Kind::Optional { null_first, inner, .. } => {
                if self.optional_is_null(*null_first)? {
                    return Ok(Datum::Null);
                }
                self.value(*inner, depth)
            }
            Kind::Enum(e) => {
                let symbol = usize::try_from(self.int()?).ok().and_then(|at| e.symbols.get(at));
                symbol.map_or_else(|| Err(self.failure("invalid enum symbol")), |s| Ok(Datum::Str(s)))
            }
            _ if depth >= DEPTH_MAX => Err(self.failure("nested too deeply")),
            Kind::Array(items) => self.array(*items, depth + 1),
            Kind::Map(values) => self.map(*values, depth + 1),
            Kind::Record(record) => {
                let mut row = Vec::with_capacity(record.fields.len());
                self.fields(record, &mut row, depth + 1)?;
                Ok(Datum::Record(row))
            }
            Kind::Union(branches) => {
                let (at, branch) = self.branch(branches)?;
                Ok(Datum::Union(at, Box::new(self.value(branch, depth + 1)?)))
            }
        }
    }

    /// Skips a value without building it, and without the checks that only building it requires (UTF-8, enum symbols).
    pub(crate) fn skip(&mut self, ty: TypeId, depth: usize) -> Result<(), Failure> {
        match &self.schema.ty(ty).kind {
            Kind::Null => Ok(()),
            Kind::Boolean => self.take(1).map(drop),
            Kind::Int | Kind::Long | Kind::Enum(_) => self.long().map(drop),
            Kind::Float => self.take(4).map(drop),
            Kind::Double => self.take(8).map(drop),
            Kind::Bytes | Kind::String => self.bytes().map(drop),
            Kind::Fixed(fixed) => self.take(fixed.size).map(drop),
            Kind::Optional { null_first, inner, .. } => {
                if self.optional_is_null(*null_first)? {
                    return Ok(());
                }
                self.skip(*inner, depth)
            }
            _ if depth >= DEPTH_MAX => Err(self.failure("nested too deeply")),
            Kind::Array(items) => self.blocks(|reader, _| reader.skip(*items, depth + 1)),
            Kind::Map(values) => self.blocks(|reader, _| {
                reader.bytes()?;
                reader.skip(*values, depth + 1)
            }),
            Kind::Record(record) => record.fields.iter().try_for_each(|field| {
                self.skip(field.ty, depth + 1)
                    .map_err(|e| within(e, || Step::Field(field.name.to_string())))
            }),
            Kind::Union(branches) => {
                let (_, branch) = self.branch(branches)?;
                self.skip(branch, depth + 1)
            }
        }
    }

    pub(crate) fn optional_is_null(&mut self, null_first: bool) -> Result<bool, Failure> {
        match self.long()? {
            0 => Ok(null_first),
            1 => Ok(!null_first),
            _ => Err(self.failure("invalid union branch")),
        }
    }

    fn branch(&mut self, branches: &[TypeId]) -> Result<(usize, TypeId), Failure> {
        let at = self.long()?;
        let found = usize::try_from(at).ok().and_then(|at| Some((at, *branches.get(at)?)));
        found.ok_or_else(|| self.failure("invalid union branch"))
    }

    fn array(&mut self, items: TypeId, depth: usize) -> Result<Datum<'a>, Failure> {
        let mut values = Vec::new();
        self.blocks(|reader, at| {
            values.push(reader.value(items, depth).map_err(|e| within(e, || Step::Item(at)))?);
            Ok(())
        })?;
        Ok(Datum::Array(values))
    }

    fn map(&mut self, values: TypeId, depth: usize) -> Result<Datum<'a>, Failure> {
        let mut entries = Vec::new();
        self.blocks(|reader, at| {
            let key = reader.string().map_err(|e| within(e, || Step::Item(at)))?;
            let value = reader
                .value(values, depth)
                .map_err(|e| within(e, || Step::Entry(key.to_owned())))?;
            entries.push((key, value));
            Ok(())
        })?;
        Ok(Datum::Map(entries))
    }

    /// Decodes the blocks of an array or map: each has a count and its items, and a zero count ends the list. A negative
    /// count is followed by the size of the block in bytes.
    pub(super) fn blocks(
        &mut self,
        mut item: impl FnMut(&mut Self, usize) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut at = 0;
        loop {
            let mut count = self.long()?;
            if count == 0 {
                return Ok(());
            }
            if count < 0 {
                self.long()?;
                count = count.checked_neg().ok_or_else(|| self.failure("invalid item count"))?;
            }
            let left = usize::try_from(count)
                .ok()
                .and_then(|count| self.items_left.checked_sub(count));
            self.items_left = left.ok_or_else(|| self.failure("more items than the body can contain"))?;
            for _ in 0..count {
                item(self, at)?;
                at += 1;
            }
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Failure> {
        let rest = self.body.get(self.at..).unwrap_or_default();
        let Some(bytes) = rest.get(..length) else {
            return Err(self.failure("unexpected end of the body"));
        };
        self.at += length;
        Ok(bytes)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], Failure> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| self.failure("unexpected end of the body"))
    }

    pub(crate) fn boolean(&mut self) -> Result<bool, Failure> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(self.failure("a boolean is neither 0 nor 1")),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Failure> {
        let length = self.long()?;
        match usize::try_from(length) {
            Ok(length) => self.take(length),
            Err(_) => Err(self.failure("negative length")),
        }
    }

    pub(crate) fn string(&mut self) -> Result<&'a str, Failure> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map_err(|_| self.failure("a string is not UTF-8"))
    }

    fn int(&mut self) -> Result<i32, Failure> {
        i32::try_from(self.long()?).map_err(|_| self.failure("an int exceeds 32 bits"))
    }

    pub(crate) fn long(&mut self) -> Result<i64, Failure> {
        let rest = self.body.get(self.at..).unwrap_or_default();
        let mut value = 0u64;
        for (at, byte) in rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if *byte < 0x80 {
                if at == 9 && *byte > 1 {
                    break;
                }
                self.at += at + 1;
                return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        let reason = if rest.len() < 10 {
            "unexpected end of the body"
        } else {
            "an integer exceeds 64 bits"
        };
        Err(self.failure(reason))
    }
}

#[cold]
pub(crate) fn within(mut failure: Failure, step: impl FnOnce() -> Step) -> Failure {
    failure.path.push(step());
    failure
}
