//! Record formats: ids, keys, headers, versions, and Avro schemas with their codec and compatibility rules.
//!
//! The formats are specified in `docs/reference/formats.md`. Bytes and JSON from outside lead to an error that names the
//! location, never to a panic. This crate has no IO, async code or clock.

pub mod codec;
mod decimal;
pub mod device_json;
pub mod events;
pub mod evolution;
pub mod headers;
pub mod ids;
pub mod json;
pub mod key;
mod pg_text;
pub mod pg_types;
mod portable_json;
pub mod schema;
pub mod time;
pub mod version;
pub mod wire;
