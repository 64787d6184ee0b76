//! The subcommands, one room each.

pub mod dev;
pub mod doctor;
pub mod init;
pub mod offsets;
pub mod run;
pub mod state;
pub mod token;
pub mod topics;
pub mod topology;
