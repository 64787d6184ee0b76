//! The kinds of sources, one module each.

pub mod http;
pub mod postgres;
