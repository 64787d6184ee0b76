//! What the loop and the pump of a connector share: the commands, the desired state and the state that is reported.

use super::context::Context;
use crate::commands::{Command, CommandError, DesiredState, Inbox, Requested, Target};
use crate::error::Error;
use crate::status::State;
use service::{Drain, chain};
use std::time::Duration;

/// State of a connector between its attempts.
pub(super) struct Lifecycle<'c> {
    pub(super) context: &'c Context,
    pub(super) drain: &'c Drain,
    pub(super) inbox: Inbox,
    /// The desired state that was last read or stored.
    pub(super) desired: DesiredState,
    /// The last error that was logged, so that a persistent error is logged only once.
    pub(super) last_error: Option<String>,
}

impl Lifecycle<'_> {
    /// Publishes an error as the connector's state. Logs it unless it is the same as before.
    pub(super) fn report_error(&mut self, error: &Error) {
        let name = &self.context.name;
        let (state, text, fix) = (error.state(), chain(error), error.fix(name));
        if self.last_error.as_ref() != Some(&text) {
            tracing::error!(connector = %name, state = state.name(), error = text, fix, "connector failed");
            self.last_error = Some(text.clone());
        }
        metrics::counter!("trunkline_connector_errors_total", "connector" => name.clone()).increment(1);
        self.context.handle.set(state, Some(text), Some(fix));
    }

    /// Reports that an attempt begins, unless the cause of the last failure is still reported.
    pub(super) fn report_starting(&self) {
        if self.last_error.is_none() && self.desired.target == Target::Running {
            self.context.handle.set(State::Starting, None, None);
        }
    }

    /// Reports the target and the pending snapshots.
    pub(super) fn set_desired(&mut self, desired: DesiredState) {
        self.desired = desired;
        self.context.handle.set_desired(&self.desired);
    }

    /// Called when the effect of all received commands is stored. Reports their success.
    pub(super) fn commands_stored(&mut self, requested: Requested) {
        self.set_desired(requested.desired);
        if requested.starts {
            self.last_error = None;
        }
        // Before the commands are answered, so that a client that then reads the state does not see the previous one.
        match self.desired.target {
            Target::Running if requested.starts => self.report_starting(),
            Target::Running => {}
            Target::Paused | Target::Stopped => self.context.handle.set(State::Paused, None, None),
        }
        self.inbox.succeed();
    }

    /// Rejects the resync commands. Returns whether one of them was the connector's own.
    pub(super) fn reject_resync(&mut self, error: &Error) -> bool {
        let (reason, fix) = (chain(error), error.fix(&self.context.name));
        tracing::warn!(connector = %self.context.name, reason, fix, "resync rejected");
        self.inbox.reject(|command| {
            (*command == Command::Resync).then(|| CommandError::Rejected {
                reason: reason.clone(),
                fix: fix.clone(),
            })
        })
    }

    /// Waits until the drain starts, a command arrives or `limit` has elapsed. Commands that were received before do not
    /// end it, because their effect could not be stored in the last attempt.
    pub(super) fn wait(&mut self, limit: Option<Duration>) {
        let Lifecycle {
            context, drain, inbox, ..
        } = self;
        context.runtime.block_on(async {
            tokio::select! {
                () = drain.started() => {}
                () = inbox.wait() => {}
                () = async { match limit {
                    Some(limit) => tokio::time::sleep(limit).await,
                    None => std::future::pending().await,
                }} => {}
            }
        });
    }

    /// Waits until an operator restarts the connector. Every other command is rejected: it would fence the process that
    /// has taken over.
    pub(super) fn wait_for_restart(&mut self) {
        let name = &self.context.name;
        let error = CommandError::Rejected {
            reason: format!("another process runs connector {name} on this log and has taken over"),
            fix: format!("send the command to that process, or stop it and run `trunkline connect restart {name}`"),
        };
        while !self.drain.is_draining() {
            self.inbox.receive();
            if self.inbox.restarts() {
                return;
            }
            self.inbox.reject(|_| Some(error.clone()));
            self.wait(None);
        }
    }
}
