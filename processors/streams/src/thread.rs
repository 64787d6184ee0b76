//! The stream thread: one group member, one transactional producer, and the tasks of the partitions assigned to it.
//!
//! Each call of [`turn::StreamThread::turn`] is one iteration of the thread's loop. The thread owns a
//! [`membership::Membership`], a [`transaction::Transaction`] and the [`tasks::Tasks`], which do not refer to the
//! thread. A failure that aborts the transaction is returned as an [`abort::Abort`] and handled in one place, [`turn`].

mod abort;
mod at_least_once;
pub(crate) mod bisect;
mod membership;
mod pacing;
mod processing;
mod producer;
mod recovering;
mod tasks;
mod transaction;
pub(crate) mod turn;
