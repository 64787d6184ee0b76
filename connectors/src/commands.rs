//! Commands of operators to a connector, and the state that they request.
//!
//! The connector's own loop executes commands and stores what they change, in transactions of its producer. A command
//! is answered once its effect is stored.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};
use tokio::sync::{mpsc, oneshot};

/// Maximum number of commands that wait for the connector.
const WAITING_MAX: usize = 16;
/// Format version of [`DesiredState`]: the one that this program writes, and the newest that it reads.
const VERSION: u32 = 1;

/// Whether a connector should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// It runs.
    #[default]
    Running,
    /// The source is closed until it is resumed.
    Paused,
    /// As [`Target::Paused`]; Kafka Connect distinguishes both, and so do clients of its API.
    Stopped,
}

/// A command of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Close the source until [`Command::Resume`]. A paused PostgreSQL source keeps its replication slot, so the server
    /// retains all WAL since the last acknowledgement.
    Pause,
    /// As [`Command::Pause`], with the target [`Target::Stopped`].
    Stop,
    /// Continue at the stored position.
    Resume,
    /// Close the source and open it again at the stored position. A connector that has stopped starts again.
    Restart,
    /// Start a new source epoch: everything is read again, and readers remove rows that no longer exist.
    Resync,
    /// Take a new snapshot of these tables while the changes of the others continue to be published.
    Snapshot {
        /// Names of the tables, as declared in the topology.
        tables: Vec<String>,
    },
}

impl Command {
    /// Whether the source must be closed before the command is executed.
    fn closes_source(&self) -> bool {
        !matches!(self, Command::Snapshot { .. })
    }

    /// Whether the connector must try again immediately, whatever its state was.
    fn starts(&self) -> bool {
        matches!(self, Command::Resume | Command::Restart | Command::Resync)
    }
}

/// A command was not executed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The connector cannot execute the command.
    #[error("{reason}; {fix}")]
    Rejected {
        /// Why.
        reason: String,
        /// What to do.
        fix: String,
    },
    /// Too many commands wait for the connector.
    #[error(
        "{} commands wait for connector {connector}; repeat the command when they are executed",
        WAITING_MAX
    )]
    Busy {
        /// The connector.
        connector: String,
    },
}

/// Result of a command. A dropped sender means that the connector failed before the effect was stored.
pub type Reply = oneshot::Receiver<Result<(), CommandError>>;

/// What operators have requested. It is stored in the positions topic and survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct DesiredState {
    /// Whether the connector should run.
    pub(crate) target: Target,
    /// Tables whose snapshot was requested while the source was closed.
    pub(crate) snapshot: BTreeSet<String>,
}

/// [`DesiredState`] as JSON.
#[derive(Serialize, Deserialize)]
struct Stored {
    v: u32,
    target: Target,
    snapshot: BTreeSet<String>,
}

impl DesiredState {
    pub(crate) fn to_json(&self) -> String {
        let stored = Stored {
            v: VERSION,
            target: self.target,
            snapshot: self.snapshot.clone(),
        };
        serde_json::to_string(&stored).expect("strings and numbers serialize to JSON")
    }

    /// Parses the stored state. Returns the reason if it cannot be read.
    pub(crate) fn from_json(json: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let Version { v } = serde_json::from_str(json).map_err(|error| error.to_string())?;
        if v > VERSION {
            return Err(format!("it has format {v}, but this version reads up to {VERSION}"));
        }
        let Stored { target, snapshot, .. } = serde_json::from_str(json).map_err(|error| error.to_string())?;
        Ok(DesiredState { target, snapshot })
    }
}

/// A command that waits for the connector.
#[derive(Debug)]
pub(crate) struct Waiting {
    command: Command,
    /// `None` for a command of the connector itself.
    reply: Option<oneshot::Sender<Result<(), CommandError>>>,
}

impl Waiting {
    /// A command of the connector itself.
    pub(crate) fn own(command: Command) -> Self {
        Waiting { command, reply: None }
    }

    fn answer(self, result: Result<(), CommandError>) {
        if let Some(reply) = self.reply {
            // The client may have disconnected.
            let _ = reply.send(result);
        }
    }
}

/// The sending side of the commands of one connector.
pub(crate) fn channel() -> (mpsc::Sender<Waiting>, Inbox) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let received = VecDeque::new();
    (sender, Inbox { receiver, received })
}

/// Queues a command.
pub(crate) fn send(sender: &mpsc::Sender<Waiting>, connector: &str, command: Command) -> Result<Reply, CommandError> {
    let (reply, result) = oneshot::channel();
    let reply = Some(reply);
    match sender.try_send(Waiting { command, reply }) {
        Ok(()) => Ok(result),
        Err(_) => Err(CommandError::Busy {
            connector: connector.to_owned(),
        }),
    }
}

/// The effect of all received commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requested {
    pub(crate) desired: DesiredState,
    pub(crate) resync: bool,
    /// Whether an operator asks the connector to try again immediately.
    pub(crate) starts: bool,
}

/// The commands that wait for a connector, in their order. They stay received until their effect is stored.
#[derive(Debug)]
pub(crate) struct Inbox {
    receiver: mpsc::Receiver<Waiting>,
    received: VecDeque<Waiting>,
}

impl Inbox {
    /// Waits for a command and receives it. Cancel safe.
    pub(crate) async fn wait(&mut self) {
        match self.receiver.recv().await {
            Some(waiting) => self.received.push_back(waiting),
            // All handles were dropped.
            None => std::future::pending().await,
        }
    }

    /// Receives all commands that are ready.
    pub(crate) fn receive(&mut self) {
        while let Ok(waiting) = self.receiver.try_recv() {
            self.received.push_back(waiting);
        }
    }

    /// Adds a command of the connector itself.
    pub(crate) fn push(&mut self, command: Command) {
        self.received.push_back(Waiting::own(command));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// Whether a received command requires that the source is closed.
    pub(crate) fn closes_source(&self) -> bool {
        self.received.iter().any(|waiting| waiting.command.closes_source())
    }

    /// Whether a received command restarts the connector.
    pub(crate) fn restarts(&self) -> bool {
        self.received.iter().any(|waiting| waiting.command == Command::Restart)
    }

    /// The effect of the received commands on the stored state.
    pub(crate) fn requested(&self, stored: &DesiredState) -> Requested {
        let mut requested = Requested {
            desired: stored.clone(),
            resync: false,
            starts: false,
        };
        for Waiting { command, reply } in &self.received {
            requested.starts |= command.starts() && reply.is_some();
            match command {
                Command::Pause => requested.desired.target = Target::Paused,
                Command::Stop => requested.desired.target = Target::Stopped,
                Command::Resume => requested.desired.target = Target::Running,
                Command::Restart => {}
                Command::Resync => {
                    // A resync reads all tables.
                    requested.desired.snapshot.clear();
                    requested.resync = true;
                }
                Command::Snapshot { tables } => requested.desired.snapshot.extend(tables.iter().cloned()),
            }
        }
        requested
    }

    /// Removes the received commands and reports their success.
    pub(crate) fn succeed(&mut self) {
        for waiting in self.received.drain(..) {
            waiting.answer(Ok(()));
        }
    }

    /// Removes the received commands for which `fails` returns an error and reports it. Returns whether one of them was
    /// the connector's own.
    pub(crate) fn reject(&mut self, fails: impl Fn(&Command) -> Option<CommandError>) -> bool {
        let mut own = false;
        for waiting in std::mem::take(&mut self.received) {
            match fails(&waiting.command) {
                Some(error) => {
                    own |= waiting.reply.is_none();
                    waiting.answer(Err(error));
                }
                None => self.received.push_back(waiting),
            }
        }
        own
    }

    /// Removes the received snapshot commands. `request` executes them; the commands for which it succeeds are returned
    /// and must be answered once the effect is stored.
    pub(crate) fn take_snapshots(
        &mut self,
        mut request: impl FnMut(&[String]) -> Result<(), CommandError>,
    ) -> Vec<Waiting> {
        let mut unconfirmed = Vec::new();
        for waiting in std::mem::take(&mut self.received) {
            let Command::Snapshot { tables } = &waiting.command else {
                self.received.push_back(waiting);
                continue;
            };
            match request(tables) {
                Ok(()) => unconfirmed.push(waiting),
                Err(error) => waiting.answer(Err(error)),
            }
        }
        unconfirmed
    }
}

/// Reports the success of commands.
pub(crate) fn confirm(commands: Vec<Waiting>) {
    for waiting in commands {
        waiting.answer(Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> CommandError {
        CommandError::Rejected {
            reason: String::from("no"),
            fix: String::from("none"),
        }
    }

    #[test]
    fn commands_apply_in_their_order() {
        let (sender, mut inbox) = channel();
        let snapshot = |table: &str| Command::Snapshot {
            tables: vec![table.to_owned()],
        };
        for command in [
            snapshot("a"),
            Command::Resync,
            snapshot("b"),
            Command::Stop,
            Command::Pause,
        ] {
            drop(send(&sender, "shop", command).unwrap());
        }
        inbox.receive();
        let requested = inbox.requested(&DesiredState::default());
        assert!(requested.resync && requested.starts && inbox.closes_source());
        assert_eq!(requested.desired.target, Target::Paused);
        // A snapshot that was requested before the resync is part of it.
        assert_eq!(requested.desired.snapshot, BTreeSet::from([String::from("b")]));
    }

    #[test]
    fn rejected_command_is_removed_with_its_error_and_the_others_stay() {
        let (sender, mut inbox) = channel();
        let mut resync = send(&sender, "shop", Command::Resync).unwrap();
        let mut pause = send(&sender, "shop", Command::Pause).unwrap();
        inbox.receive();
        let own = inbox.reject(|command| (*command == Command::Resync).then(error));
        assert!(!own && resync.try_recv().unwrap().is_err());
        assert!(!inbox.requested(&DesiredState::default()).resync);
        assert!(pause.try_recv().is_err(), "it is not answered before it is stored");
        inbox.succeed();
        assert_eq!(pause.try_recv().unwrap(), Ok(()));
        inbox.push(Command::Resync);
        assert!(inbox.reject(|_| Some(error())));
    }

    #[test]
    fn commands_that_wait_are_limited() {
        let (sender, _inbox) = channel();
        let sent = (0..).take_while(|_| send(&sender, "shop", Command::Restart).is_ok());
        assert_eq!(sent.count(), WAITING_MAX);
    }

    #[test]
    fn desired_state_is_read_as_it_was_written_and_newer_formats_are_rejected() {
        let state = DesiredState {
            target: Target::Paused,
            snapshot: BTreeSet::from([String::from("sales.orders")]),
        };
        let json = r#"{"v":1,"target":"paused","snapshot":["sales.orders"]}"#;
        assert_eq!(state.to_json(), json);
        assert_eq!(DesiredState::from_json(json), Ok(state));
        let error = DesiredState::from_json(r#"{"v":2}"#).unwrap_err();
        assert!(error.contains("format 2"), "{error}");
    }
}
