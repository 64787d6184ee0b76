//! The built-in stream processors: topics to topics.
//!
//! Guarantees: each is a [`streams::Processor`], deterministic over its inputs. Never: a consumer or producer of its own.

pub mod declared;
pub mod sync_views;
