//! trunkline-edge

pub mod auth;
pub mod config;
