//! The stream runtime: runs processors over the event log with exactly-once processing.
//!
//! Implement [`Processor`], declare an [`Application`] of sub-topologies and start it with [`run`]. The runtime reads the
//! inputs in batches, keeps the state of each task in a store with a changelog topic, and commits output, changed state and
//! consumed offsets in one transaction of the log. A store is never ahead of the log: it contains rows of known commits
//! only, and missing rows are restored from the changelog.
//!
//! `docs/protocol/commit.md` specifies the protocol; comments cite its invariants by their numbers, C1 to C15.
//!
//! | Module | Content |
//! | --- | --- |
//! | `api` | what an author of a processor uses, re-exported here |
//! | `task` | a task, its store, checkpoint and commit record |
//! | `recovery` | recovery to the last commit, restore and standbys |
//! | `thread` | the stream thread: group membership, transactions, poison-record isolation |
//! | `admin` | queries, offset commands, metrics, readiness |
//! | [`testing`] | what the test kit `trunkline-streams-test` needs beyond this |

mod admin;
mod api;
mod clock;
mod plan;
mod recovery;
mod run;
mod shared;
mod stores;
mod task;
pub mod testing;
mod thread;

pub use admin::query::Handle;
pub use admin::{members, offsets, query};
pub use api::application::{
    Application, CommitConfig, Config, Factory, FirstStart, MembershipConfig, ProcessingGuarantee, StoreConfig,
    SubTopology, TopicDefaults,
};
pub use api::context::{Context, InputTopic, TaskId, TaskInfo, changelog_topic};
pub use api::error::{Error, FormatError, Result};
pub use api::output::{Output, Stage};
pub use api::processor::{Processor, RejectedTimer};
pub use api::state::State;
pub use api::timer::{Timer, TimerClock};
pub use clock::{Clock, ProcessClock};
pub use run::{Host, run};
pub use stores::{Directory, StoreName, Stores};
pub use task::checkpoint::{Checkpoint, Origin};
pub use task::commit_record::{CHANGELOG_VERSION, COMMIT_RECORD_KEY, CommitRecord};
