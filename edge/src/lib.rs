//! trunkline-edge

pub mod auth;
pub mod config;
pub mod keys;
pub mod token;
