//! The encoding and decoding methods of [`Schema`].
//!
//! Encoding appends to `out`, and leaves `out` unchanged if it fails.

use super::decode::{DecodeError, Reader};
use super::encode::{self, EncodeError, Encoder};
use super::from_json::{Dialect, JsonError, Writer};
use super::from_json_text::{TextWriter, UnknownFields};
use super::{Datum, Row};
use crate::schema::{Kind, Schema, TypeId};
use serde_json::Value;
use serde_json::value::RawValue;

impl Schema {
    /// Decodes the body of a record into its fields, in order. `row` is cleared first.
    ///
    /// # Errors
    /// [`DecodeError`] if the body is truncated, too long or does not match, or if the schema is not a record.
    pub fn decode<'a>(&'a self, body: &'a [u8], row: &mut Row<'a>) -> Result<(), DecodeError> {
        row.clear();
        let mut reader = Reader::new(self, body);
        let Kind::Record(record) = &self.ty(self.root()).kind else {
            return Err(*reader.failure("the schema is not a record"));
        };
        row.reserve(record.fields.len());
        reader
            .fields(record, row, 0)
            .and_then(|()| reader.end())
            .map_err(|e| *e)
    }

    /// Decodes a value of any type, which must use all of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes do not match the type.
    pub fn decode_value<'a>(&'a self, ty: TypeId, bytes: &'a [u8]) -> Result<Datum<'a>, DecodeError> {
        let mut reader = Reader::new(self, bytes);
        let value = reader.value(ty, 0).map_err(|e| *e)?;
        reader.end().map_err(|e| *e)?;
        Ok(value)
    }

    /// Appends the Avro body of a record; `row` contains its fields in order.
    ///
    /// # Errors
    /// [`EncodeError`] if a value does not match its field or the number of values is wrong.
    pub fn encode(&self, row: &[Datum<'_>], out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let from = out.len();
        let result = match &self.ty(self.root()).kind {
            Kind::Record(_) => Encoder { schema: self }.fields(self.root(), row, out, 0),
            _ => Err(encode::failure(format!(
                "expected a record schema, got {}",
                self.describe(self.root())
            ))),
        };
        result.map_err(|e| {
            out.truncate(from);
            *e
        })
    }

    /// Appends the Avro encoding of a value of any type.
    ///
    /// # Errors
    /// [`EncodeError`] if the value does not match the type.
    pub fn encode_value(&self, ty: TypeId, value: &Datum<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let from = out.len();
        Encoder { schema: self }.value(ty, value, out, 0).map_err(|e| {
            out.truncate(from);
            *e
        })
    }

    /// Appends the Avro body of a JSON value, which is an object if the schema is a record.
    ///
    /// 64-bit integers can be numbers or strings of digits, timestamps RFC 3339 strings or numbers in the unit of the
    /// type. Bytes are base64 strings. A `json` column accepts any JSON value. Fields with a default are optional.
    ///
    /// # Errors
    /// [`JsonError`] with the path of the first mismatch.
    pub fn encode_json(&self, value: &Value, out: &mut Vec<u8>) -> Result<(), JsonError> {
        self.encode_json_value(self.root(), value, out)
    }

    /// Like [`Schema::encode_json`], for one type of the schema.
    ///
    /// # Errors
    /// [`JsonError`] with the path of the first mismatch.
    pub fn encode_json_value(&self, ty: TypeId, value: &Value, out: &mut Vec<u8>) -> Result<(), JsonError> {
        let from = out.len();
        let writer = Writer {
            schema: self,
            dialect: Dialect::Row,
        };
        writer.value(ty, value, out, 0).map_err(|e| {
            out.truncate(from);
            *e
        })
    }

    /// Like [`Schema::encode_json`], for the text of a value. `json` columns keep their text.
    ///
    /// # Errors
    /// [`JsonError`] with the path of the first mismatch.
    pub fn encode_json_text(
        &self,
        text: &RawValue,
        unknown: UnknownFields,
        out: &mut Vec<u8>,
    ) -> Result<(), JsonError> {
        let from = out.len();
        let values = Writer {
            schema: self,
            dialect: Dialect::Row,
        };
        let writer = TextWriter { values, unknown };
        writer.value(self.root(), text, out, 0).map_err(|e| {
            out.truncate(from);
            *e
        })
    }

    /// Appends the Avro encoding of a default in the text of a schema.
    pub(crate) fn encode_default(&self, ty: TypeId, value: &Value, out: &mut Vec<u8>) -> Result<(), JsonError> {
        Writer {
            schema: self,
            dialect: Dialect::Default,
        }
        .value(ty, value, out, 0)
        .map_err(|e| *e)
    }
}
