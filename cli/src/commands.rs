//! The subcommands, with one file for each.

pub mod connect;
pub mod dev;
pub mod dlq;
pub mod doctor;
pub mod init;
pub mod lag;
pub mod offsets;
pub mod profile;
pub mod replay;
pub mod run;
pub mod shell;
pub mod state;
pub mod token;
pub mod topics;
pub mod topology;
