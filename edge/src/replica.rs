//! The edge's replica of `view.log`: the handle through which polls access it, and the thread that keeps it current.
//!
//! `views` interprets the records; this module opens the store, reads the log and reports readiness.

mod backlog;
mod follow;
mod handle;
mod position;

pub use follow::{FollowConfig, FollowError, Follower, FollowerContext};
pub use handle::{ReadinessIssue, ReplicaHandle};
pub use position::ReplicaPosition;
