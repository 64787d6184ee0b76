//! What exists and who is wired to whom: the declared graph of `topology.toml`, checked before anything runs.

pub mod expr;
pub mod model;
mod names;
pub mod problem;
pub mod template;
