//! Cursor keys: loads the configured ones, or generates one.
//!
//! Without configured keys, an edge generates one and stores it in its data directory, readable by the owner only, so that
//! cursors survive a restart. Errors and log lines contain no key material.

use crate::config::{ConfigError, CursorKeyConfig};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use std::io::Write;
use std::path::{Path, PathBuf};
use views::cursor::{Key, Keyring};

/// File of the generated cursor key, in the data directory.
pub const CURSOR_KEY_FILE: &str = "cursor.key";

/// Why keys cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// A configured key is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key file cannot be read or written.
    #[error("cannot {attempted} {path}; check that the directory exists and is writable by this process")]
    File {
        /// The attempt.
        attempted: &'static str,
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// A key file does not contain a key.
    #[error(
        "{path} does not contain a valid key; move it away to generate a new one (cursors and development tokens of the old key become invalid)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// Creates the keyring of the configured keys, or of the key in `dir`, which is generated if it does not exist.
///
/// # Errors
/// The field that is invalid, or the file that cannot be used.
pub fn cursor_keyring(configured: &[CursorKeyConfig], dir: &Path) -> Result<Keyring, KeysError> {
    if configured.is_empty() {
        let text = read_or_create(&dir.join(CURSOR_KEY_FILE), || STANDARD.encode(random::<32>()))?;
        let damaged = || KeysError::Damaged {
            path: dir.join(CURSOR_KEY_FILE),
        };
        let secret = secret_of(&text).ok_or_else(damaged)?;
        return Keyring::new(&[Key { id: 0, secret }]).ok_or_else(damaged);
    }
    let keys = configured.iter().enumerate().map(|(index, key)| {
        let problem = "is not 32 bytes in base64; generate one with `openssl rand -base64 32`";
        let invalid = || ConfigError::new(format!("cursor_keys[{index}].secret"), problem);
        Ok(Key {
            id: key.id,
            secret: secret_of(key.secret.expose()).ok_or_else(invalid)?,
        })
    });
    let keys = keys.collect::<Result<Vec<Key>, ConfigError>>()?;
    let problem = "must contain one or two keys with different ids; the first encrypts new cursors, both decrypt";
    Keyring::new(&keys).ok_or_else(|| ConfigError::new("cursor_keys", problem).into())
}

fn secret_of(text: &str) -> Option<[u8; 32]> {
    let text = text.trim();
    let bytes = STANDARD
        .decode(text)
        .or_else(|_| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')));
    bytes.ok()?.try_into().ok()
}

/// Generates random bytes for a secret.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the operating system has a random source");
    bytes
}

/// Reads a file with a secret, or creates it atomically, readable by its owner only.
pub(crate) fn read_or_create(path: &Path, generate: impl FnOnce() -> String) -> Result<String, KeysError> {
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
        std::fs::create_dir_all(dir).map_err(|e| failed("create the directory of", e))?;
    }
    let text = generate();
    let temporary = path.with_extension(format!("tmp-{}", uuid::Uuid::new_v4().simple()));
    write_private(&temporary, &text).map_err(|e| failed("write", e))?;
    // Unlike a rename, a link fails if the file exists. Two processes that start at the same time therefore both use the
    // key of the first one.
    let linked = std::fs::hard_link(&temporary, path);
    let removed = std::fs::remove_file(&temporary);
    match linked {
        Ok(()) => removed
            .map_err(|e| failed("remove the temporary file of", e))
            .map(|()| text),
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
            points: [].into(),
            seen: [].into(),
            covered: vec![],
            round: None,
            complete: true,
            settled: true,
        }
    }

    fn key(id: u8, byte: u8) -> CursorKeyConfig {
        CursorKeyConfig {
            id,
            secret: Secret::new(STANDARD.encode([byte; 32])),
        }
    }

    #[test]
    fn generated_key_is_private_and_survives_a_restart() {
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
    fn second_key_opens_cursors_after_a_rotation() {
        let dir = Path::new("/nonexistent/never/touched");
        let ring = |keys: &[CursorKeyConfig]| cursor_keyring(keys, dir).unwrap();
        let text = ring(&[key(1, 7)]).seal(&cursor());
        assert_eq!(ring(&[key(2, 9), key(1, 7)]).open(&text), Some(cursor()));
        assert_eq!(ring(&[key(2, 9)]).open(&text), None);
    }

    #[test]
    fn invalid_configured_key_is_named() {
        let short = CursorKeyConfig {
            id: 1,
            secret: Secret::new("c2hvcnQ="),
        };
        let dir = Path::new("/nonexistent");
        for (keys, want) in [
            (
                vec![key(1, 7), short],
                "edge.cursor_keys[1].secret: is not 32 bytes in base64",
            ),
            (
                vec![key(1, 7), key(1, 8)],
                "edge.cursor_keys: must contain one or two keys",
            ),
            (
                vec![key(1, 7), key(2, 8), key(3, 9)],
                "edge.cursor_keys: must contain one or two keys",
            ),
        ] {
            let got = cursor_keyring(&keys, dir).err().unwrap().to_string();
            assert!(got.starts_with(want), "{got}");
        }
    }
}
