//! The built-in stream processors: sync views, and the declarative aggregates and joins.
//!
//! Each is a [`streams::Processor`]. Its output depends only on its inputs and their order, so that a task that is
//! restored and reprocesses records writes the same output.

mod aggregate;
mod dead_letter;
pub mod declarative;
mod input;
mod join;
mod repartition;
mod step;
pub mod sync_views;
