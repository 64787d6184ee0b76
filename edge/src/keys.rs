//! Secrets of an edge's own: the keys that seal cursors.
//!
//! Guarantees: configured keys are used as they are; without any, one is made once and kept in the data directory,
//! readable by the owner only, so that cursors survive a restart.
//! Never: a made key where keys are configured; key material in an error or a log line.

use crate::config::{ConfigError, CursorKeyConfig};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use std::io::Write;
use std::path::{Path, PathBuf};
use views::cursor::{Key, Keyring};

/// Name of the file with a made cursor key, in the data directory.
pub const CURSOR_KEY_FILE: &str = "cursor.key";

/// Why an edge has no keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The configured keys cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key file cannot be read or written.
    #[error("cannot {attempted} {path}; check that the directory exists and is this process's own")]
    File {
        /// What was attempted.
        attempted: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A key file holds something else.
    #[error(
        "{path} does not hold a key of this process; move it away and a new one is made (cursors and development tokens made under it end)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// The keyring of the configured keys; without any, of the key in `dir`, which is made when it is not there.
///
/// # Errors
/// The field that is wrong, or the file that cannot be used.
pub fn cursor_keyring(configured: &[CursorKeyConfig], dir: &Path) -> Result<Keyring, KeysError> {
    if configured.is_empty() {
        let text = read_or_make(&dir.join(CURSOR_KEY_FILE), || STANDARD.encode(random::<32>()))?;
        let damaged = || KeysError::Damaged {
            path: dir.join(CURSOR_KEY_FILE),
        };
        let secret = secret_of(&text).ok_or_else(damaged)?;
        return Keyring::new(&[Key { id: 0, secret }]).ok_or_else(damaged);
    }
    let keys = configured.iter().enumerate().map(|(index, key)| {
        let problem = "is not 32 bytes of base64; make one with `openssl rand -base64 32`";
        let wrong = || ConfigError::new(format!("cursor_keys[{index}].secret"), problem);
        Ok(Key {
            id: key.id,
            secret: secret_of(key.secret.expose()).ok_or_else(wrong)?,
        })
    });
    let keys = keys.collect::<Result<Vec<Key>, ConfigError>>()?;
    let problem = "needs one or two keys with different ids: the first seals, the second only opens";
    Keyring::new(&keys).ok_or_else(|| ConfigError::new("cursor_keys", problem).into())
}

fn secret_of(text: &str) -> Option<[u8; 32]> {
    let text = text.trim();
    let bytes = STANDARD
        .decode(text)
        .or_else(|_| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')));
    bytes.ok()?.try_into().ok()
}

/// Random bytes for a secret.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system's random source works");
    bytes
}

/// Reads a secret's file, or makes it: whole or not at all, readable by its owner only.
pub(crate) fn read_or_make(path: &Path, make: impl FnOnce() -> String) -> Result<String, KeysError> {
    let failed = |attempted, source| KeysError::File {
        attempted,
        path: path.to_owned(),
        source,
    };
    match std::fs::read_to_string(path) {
        Ok(text) => return Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("read", e)),
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|e| failed("make the directory of", e))?;
    }
    let text = make();
    let draft = path.with_extension(format!("draft-{}", uuid::Uuid::new_v4().simple()));
    write_private(&draft, &text).map_err(|e| failed("write", e))?;
    // A link fails when the file is there already: of two processes that start at once, both use the first one's.
    let linked = std::fs::hard_link(&draft, path);
    let removed = std::fs::remove_file(&draft);
    match linked {
        Ok(()) => removed.map_err(|e| failed("clean up beside", e)).map(|()| text),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::read_to_string(path).map_err(|e| failed("read", e))
        }
        Err(e) => Err(failed("write", e)),
    }
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::Secret;
    use views::cursor::{Cursor, Owner};

    fn cursor() -> Cursor {
        Cursor {
            log: 1,
            owner: Owner::new("main:42", "phone"),
            rules: 2,
            points: [].into(),
            seen: [].into(),
            covered: vec![],
            round: None,
            complete: true,
        }
    }

    fn key(id: u8, byte: u8) -> CursorKeyConfig {
        CursorKeyConfig {
            id,
            secret: Secret::new(STANDARD.encode([byte; 32])),
        }
    }

    #[test]
    fn a_made_key_survives_a_restart_and_is_the_owners_only() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("not-there-yet");
        let text = cursor_keyring(&[], &data).unwrap().seal(&cursor());
        assert_eq!(cursor_keyring(&[], &data).unwrap().open(&text), Some(cursor()));
        let names: Vec<_> = std::fs::read_dir(&data)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, [CURSOR_KEY_FILE]);
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(data.join(CURSOR_KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(data.join(CURSOR_KEY_FILE), "something else").unwrap();
        assert!(matches!(cursor_keyring(&[], &data), Err(KeysError::Damaged { .. })));
    }

    #[test]
    fn keys_rotate_without_a_reset() {
        let dir = Path::new("/nonexistent/never/touched");
        let ring = |keys: &[CursorKeyConfig]| cursor_keyring(keys, dir).unwrap();
        let text = ring(&[key(1, 7)]).seal(&cursor());
        assert_eq!(ring(&[key(2, 9), key(1, 7)]).open(&text), Some(cursor()));
        assert_eq!(ring(&[key(2, 9)]).open(&text), None);
    }

    #[test]
    fn configured_keys_that_cannot_be_used_are_named() {
        let short = CursorKeyConfig {
            id: 1,
            secret: Secret::new("c2hvcnQ="),
        };
        let dir = Path::new("/nonexistent");
        for (keys, want) in [
            (
                vec![key(1, 7), short],
                "edge.cursor_keys[1].secret: is not 32 bytes of base64",
            ),
            (vec![key(1, 7), key(1, 8)], "edge.cursor_keys: needs one or two keys"),
            (
                vec![key(1, 7), key(2, 8), key(3, 9)],
                "edge.cursor_keys: needs one or two keys",
            ),
        ] {
            let got = cursor_keyring(&keys, dir).err().unwrap().to_string();
            assert!(got.starts_with(want), "{got}");
        }
    }
}
