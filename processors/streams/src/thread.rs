//! The stream thread: one group member, one transactional producer, and the tasks of the partitions assigned to it.
//!
//! The caller of [`turn::StreamThread`] calls `turn` repeatedly. The thread owns a [`membership::Membership`], a
//! [`committer::Committer`] and the [`tasks::Tasks`], none of which refers to the thread. A failure that aborts the
//! transaction is returned as an [`abort::Abort`] and handled in one place, [`turn`].
//!
//! | Module | Content |
//! | --- | --- |
//! | `turn` | the loop, and the reaction to an abort |
//! | `rebalance` | partitions that are assigned, revoked or lost |
//! | `processing`, `tasks` | records and timers, and their way to the tasks |
//! | `recovering` | recovery of tasks, while other tasks continue to run |
//! | `committer`, `at_least_once`, `pacing` | commits with and without transactions, and when they are due |
//! | `producer`, `membership` | the two clients and their states |
//! | `poison_isolation` | the search for the record or timer whose effects are rejected |

mod abort;
mod at_least_once;
mod committer;
mod membership;
mod pacing;
pub(crate) mod poison_isolation;
mod processing;
mod producer;
mod rebalance;
mod recovering;
mod tasks;
pub(crate) mod turn;
