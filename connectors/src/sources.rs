//! The kinds of sources, a room each.

pub mod postgres;
