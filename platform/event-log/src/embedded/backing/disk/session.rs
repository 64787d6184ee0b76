//! The session file describes the last process that opened the log: whether it closed the log, and during which boot of
//! the host it ran.
//!
//! If a process ended without closing the log, its writes are in the page cache, and they may be lost only if the host
//! was rebooted since. The session's id is also in the store. This detects a store that lost the beginning of the
//! session or was replaced by another store.

use super::journal::sync_directory;
use crate::embedded::config::Durability;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::Command;
use uuid::Uuid;

const FILE: &str = "session.json";
/// The boot id on Linux.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The command that prints the boot id on macOS.
const BOOT_ID_COMMAND: [&str; 3] = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"];

/// The last session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub id: Uuid,
    /// Boot id of the host; `None` if the system provides none.
    pub boot: Option<String>,
    pub is_closed: bool,
    /// Whether every acknowledged write was synced.
    pub syncs_commits: bool,
}

impl Session {
    pub fn begin(durability: Durability) -> Session {
        Session {
            id: Uuid::new_v4(),
            boot: boot_id(),
            is_closed: false,
            syncs_commits: durability == Durability::Commit,
        }
    }

    /// Reads the last session; `None` if there is none or the file is corrupt.
    pub fn read(dir: &Path) -> Option<Session> {
        serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()
    }

    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let (file, new) = (dir.join(FILE), dir.join("session.new"));
        let mut written = File::create(&new)?;
        written.write_all(&serde_json::to_vec(self)?)?;
        written.sync_all()?;
        std::fs::rename(&new, &file)?;
        sync_directory(&file)
    }

    /// Returns why acknowledged writes may be missing in a store that was written by this session.
    ///
    /// `stored` are the ids in the store: that of the session that wrote it last, and that of the session before. The
    /// latter's file is still current if the process died between writing the store and the file.
    pub fn possible_loss(&self, now: &Session, stored: &[Uuid]) -> Option<&'static str> {
        if !stored.contains(&self.id) {
            return Some("the store is older than the last session, or was replaced");
        }
        let same_boot = self.boot.is_some() && self.boot == now.boot;
        match self.is_closed || self.syncs_commits || same_boot {
            true => None,
            false => Some("the host was restarted without closing the log, and not every write was synced"),
        }
    }
}

/// The id of the host's boot; `None` if the system provides none. Then, every session that was not closed counts as a
/// possible loss.
fn boot_id() -> Option<String> {
    let text = if cfg!(target_os = "macos") {
        let [command, arguments @ ..] = BOOT_ID_COMMAND;
        let printed = Command::new(command).args(arguments).output().ok()?;
        String::from_utf8(printed.stdout).ok()?
    } else {
        std::fs::read_to_string(BOOT_ID).ok()?
    };
    let id = text.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(boot: Option<&str>) -> Session {
        Session {
            boot: boot.map(str::to_owned),
            ..Session::begin(Durability::Os)
        }
    }

    #[test]
    fn writes_may_be_lost_only_by_an_unclosed_session_of_another_boot() {
        let now = session(Some("b"));
        let lost = |last: &Session| last.possible_loss(&now, &[last.id]).is_some();
        assert!(!lost(&session(Some("b"))), "killed");
        assert!(lost(&session(Some("a"))), "host crashed");
        assert!(lost(&session(None)), "unknown boot");
        let closed = Session {
            is_closed: true,
            ..session(Some("a"))
        };
        assert!(!lost(&closed), "host was restarted in order");
        let synced = Session {
            syncs_commits: true,
            ..session(Some("a"))
        };
        assert!(!lost(&synced), "host crashed, every commit was synced");
    }

    #[test]
    fn store_without_the_last_session_has_lost_writes() {
        let last = Session {
            is_closed: true,
            ..session(Some("a"))
        };
        let (now, other) = (session(Some("a")), Uuid::new_v4());
        assert!(last.possible_loss(&now, &[other]).is_some());
        assert!(last.possible_loss(&now, &[other, last.id]).is_none());
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    fn boot_id_is_known_and_stays() {
        let id = boot_id().expect("a boot id");
        assert_eq!(boot_id(), Some(id));
    }

    #[test]
    fn written_session_is_read_and_damaged_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Session::read(dir.path()), None);
        let written = session(Some("a"));
        written.write(dir.path()).unwrap();
        assert_eq!(Session::read(dir.path()), Some(written));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(Session::read(dir.path()), None);
    }
}
