//! The API for authors of processors: what a processor implements, reads and writes, and how an application is declared.
//!
//! Everything here is re-exported from the crate root.

pub(crate) mod application;
pub(crate) mod context;
pub(crate) mod error;
pub(crate) mod output;
pub(crate) mod processor;
pub(crate) mod state;
pub(crate) mod timer;
