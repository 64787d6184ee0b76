//! What an event is: ids, keys, headers, versions, Avro schemas and their codec, and the rules of evolution.
//!
//! Guarantees: every format here is that of `docs/reference/formats.md`; bytes and JSON from outside are an error that names the
//! place, never a panic. Never: IO, async, a clock.

pub mod codec;
mod decimal;
pub mod device_json;
pub mod events;
pub mod evolution;
pub mod headers;
pub mod ids;
pub mod json;
pub mod key;
pub mod pg_types;
pub mod schema;
pub mod time;
pub mod version;
pub mod wire;
