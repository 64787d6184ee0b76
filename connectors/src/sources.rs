//! The kinds of sources, a room each.

pub mod http;
pub mod postgres;
