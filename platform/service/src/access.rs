//! Access to the admin listener: tokens with roles.
//!
//! A token is configured as a secret, or in a file with one token per line, which is read again when it changes. To
//! rotate a token, add the new token, change the clients, then remove the old token. Only digests are kept in memory.

use crate::{BoxError, Drain, Secret, chain};
use arc_swap::ArcSwap;
use aws_lc_rs::{constant_time, digest};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How often token files are read.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// Prefix of a token that is configured as its SHA-256 digest in hexadecimal digits.
const DIGEST_PREFIX: &str = "sha256:";
/// Shorter tokens could be guessed. 16 random bytes in base64 have 22 characters.
const LENGTH_MIN: usize = 16;

/// Role of a token. Each role includes the permissions of the roles before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read the metrics.
    Metrics,
    /// Read everything: readiness, topics with their records, lag, and state.
    Viewer,
    /// Also replay records and change offsets.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// All roles, from the smallest.
    pub const ALL: [Role; 4] = [Role::Metrics, Role::Viewer, Role::Operator, Role::Admin];

    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Role::Metrics => "metrics",
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

/// A client with its role and its token or tokens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// Name of the client, for logs and errors.
    pub name: String,
    /// Role of the client.
    pub role: Role,
    /// The token, or `sha256:` and its SHA-256 in hexadecimal digits. Exactly one of `token` and `file` is required.
    #[serde(default)]
    pub token: Option<Secret>,
    /// File with one token per line, in the same form. It is read again when it changes.
    #[serde(default)]
    pub file: Option<PathBuf>,
}

/// Error of a token that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("admin.tokens: token `{name}` cannot be used: {problem}")]
pub struct TokenError {
    /// Name of the token.
    name: String,
    /// Cause and fix.
    problem: String,
    /// The system's error.
    #[source]
    source: Option<BoxError>,
}

/// An authenticated client, as an extension of its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Name of the token that the client sent.
    pub name: Arc<str>,
    /// Role of the client.
    pub role: Role,
}

/// SHA-256 of a token.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenDigest(Vec<u8>);

impl TokenDigest {
    /// The digest of a token that a client sent.
    pub fn of(token: &str) -> Self {
        Self(digest::digest(&digest::SHA256, token.as_bytes()).as_ref().to_vec())
    }

    /// Reads tokens, one per line, each as text or as `sha256:` and its digest. Lines that begin with `#` are comments.
    ///
    /// # Errors
    /// Cause and fix. The text contains no token.
    pub fn parse_lines(text: &str) -> Result<Vec<Self>, String> {
        let lines = text.lines().map(str::trim);
        let tokens = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let digests: Vec<Self> = tokens.map(Self::parse).collect::<Result<_, _>>()?;
        if digests.is_empty() {
            return Err("it is empty".to_owned());
        }
        Ok(digests)
    }

    fn parse(token: &str) -> Result<Self, String> {
        match token.strip_prefix(DIGEST_PREFIX) {
            Some(digits) => from_hex(digits)
                .map(Self)
                .ok_or_else(|| "sha256: must be followed by 64 hexadecimal digits".to_owned()),
            None if token.len() < LENGTH_MIN => Err(format!(
                "it is shorter than {LENGTH_MIN} characters; generate one: openssl rand -hex 32"
            )),
            None => Ok(Self::of(token)),
        }
    }

    /// Compares in constant time.
    pub fn is_same(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

/// Calls `reload` at an interval until the drain. `reload` returns whether the tokens of the listener changed. Logs a failure
/// once, and again only if the failure changes.
pub async fn reload_tokens<E>(
    listener: &'static str,
    drain: Drain,
    reload: impl Fn() -> Result<bool, E> + Clone + Send + 'static,
) where
    E: std::error::Error + Send + 'static,
{
    let mut failure = None;
    while drain.sleep(RELOAD_INTERVAL).await {
        let Ok(result) = tokio::task::spawn_blocking(reload.clone()).await else {
            continue;
        };
        let now = match result {
            Ok(true) => {
                tracing::info!(target: "audit", listener, "tokens reloaded");
                None
            }
            Ok(false) => None,
            Err(error) => Some(chain(&error)),
        };
        if let Some(cause) = now.as_ref().filter(|_| now != failure) {
            tracing::warn!(listener, %cause, "tokens not reloaded, the previous ones stay valid");
        }
        failure = now;
    }
}

/// Compares texts in constant time, so that the duration does not reveal the position of a difference between secrets.
pub fn equal_in_constant_time(a: &str, b: &str) -> bool {
    constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

/// The valid tokens.
pub struct Tokens {
    configured: Vec<TokenConfig>,
    /// The tokens of each configured entry, in the same order.
    current: ArcSwap<Vec<Vec<Entry>>>,
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    digest: TokenDigest,
    caller: Caller,
}

impl Tokens {
    /// Reads the tokens and their files.
    ///
    /// # Errors
    /// The first token that cannot be used.
    pub fn load(configured: &[TokenConfig]) -> Result<Self, TokenError> {
        let tokens = Self {
            configured: configured.to_vec(),
            current: ArcSwap::default(),
        };
        tokens.reload()?;
        Ok(tokens)
    }

    /// Reads the files again. Returns whether the valid tokens changed. A file that cannot be used keeps its previous
    /// tokens. The other files are still read, so that it does not delay the removal of a token in one of them.
    ///
    /// # Errors
    /// The first token that cannot be used.
    pub fn reload(&self) -> Result<bool, TokenError> {
        let before = self.current.load_full();
        let (mut entries, mut failure) = (Vec::with_capacity(self.configured.len()), None);
        for (at, config) in self.configured.iter().enumerate() {
            entries.push(config.entries().unwrap_or_else(|error| {
                failure.get_or_insert(error);
                before.get(at).cloned().unwrap_or_default()
            }));
        }
        let changed = *before != entries;
        if changed {
            self.current.store(Arc::new(entries));
        }
        failure.map_or(Ok(changed), Err)
    }

    /// Whether any token is configured.
    pub fn is_empty(&self) -> bool {
        self.configured.is_empty()
    }

    /// Whether tokens can change while the process runs.
    pub fn has_files(&self) -> bool {
        self.configured.iter().any(|config| config.file.is_some())
    }

    /// Returns the client with this token. Always compares the digest with those of all tokens, so that the duration
    /// reveals nothing about them.
    pub fn find(&self, token: &str) -> Option<Caller> {
        let digest = TokenDigest::of(token);
        let entries = self.current.load();
        let is_same = |entry: &&Entry| entry.digest.is_same(&digest);
        // `find` is not used, because it ends at the first match. If a token has two roles, the greater one applies.
        let found = entries
            .iter()
            .flatten()
            .filter(is_same)
            .max_by_key(|entry| entry.caller.role);
        found.map(|entry| entry.caller.clone())
    }
}

impl TokenConfig {
    fn error(&self, problem: impl Into<String>, source: Option<BoxError>) -> TokenError {
        TokenError {
            name: self.name.clone(),
            problem: problem.into(),
            source,
        }
    }

    fn entries(&self) -> Result<Vec<Entry>, TokenError> {
        let text = match (&self.token, &self.file) {
            (Some(token), None) => token.expose().to_owned(),
            (None, Some(file)) => std::fs::read_to_string(file)
                .map_err(|source| self.error(format!("cannot read {}", file.display()), Some(source.into())))?,
            _ => return Err(self.error("set exactly one of token and file", None)),
        };
        let digests = TokenDigest::parse_lines(&text).map_err(|problem| self.error(problem, None))?;
        let entry = |digest| Entry {
            digest,
            caller: Caller {
                name: self.name.as_str().into(),
                role: self.role,
            },
        };
        Ok(digests.into_iter().map(entry).collect())
    }
}

/// The bytes of a SHA-256 in hexadecimal digits.
fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if digits.len() != 2 * digest::SHA256_OUTPUT_LEN || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";
    /// `printf %s 0123456789abcdef | sha256sum`
    const DIGEST: &str = "sha256:9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f";

    fn config(token: &str, role: Role) -> TokenConfig {
        TokenConfig {
            name: "test".to_owned(),
            role,
            token: Some(Secret::new(token)),
            file: None,
        }
    }

    #[test]
    fn token_is_found_by_text_or_digest() {
        for text in [TOKEN, DIGEST] {
            let tokens = Tokens::load(&[config(text, Role::Viewer)]).unwrap();
            assert_eq!(tokens.find(TOKEN).unwrap().role, Role::Viewer, "{text}");
            for other in ["", "0123456789abcdeF", "0123456789abcdef0", DIGEST] {
                assert!(tokens.find(other).is_none(), "{other}");
            }
        }
        let both = [config(TOKEN, Role::Viewer), config(DIGEST, Role::Operator)];
        assert_eq!(Tokens::load(&both).unwrap().find(TOKEN).unwrap().role, Role::Operator);
    }

    #[test]
    fn equal_texts_have_the_same_bytes_and_length() {
        assert!(equal_in_constant_time("secret", "secret") && equal_in_constant_time("", ""));
        for other in ["", "secre", "secrets", "Secret", "secreT"] {
            assert!(!equal_in_constant_time("secret", other), "{other}");
        }
    }

    #[test]
    fn unusable_token_is_named_and_never_printed() {
        let rejected = |config: TokenConfig| Tokens::load(&[config]).err().unwrap().to_string();
        let text = rejected(config("hunter2", Role::Admin));
        assert!(text.contains("`test`") && text.contains("shorter than 16"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        let text = rejected(config("sha256:12", Role::Admin));
        assert!(text.contains("64 hexadecimal digits"), "{text}");
        let neither = TokenConfig {
            token: None,
            ..config("", Role::Admin)
        };
        assert!(rejected(neither).contains("exactly one of token and file"));
        assert!(rejected(config("# only a comment", Role::Admin)).contains("empty"));
    }

    #[test]
    fn file_with_several_tokens_rotates_without_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write("old-token-0123456789\n");
        let config = TokenConfig {
            name: "console".to_owned(),
            role: Role::Operator,
            token: None,
            file: Some(file.clone()),
        };
        let tokens = Tokens::load(&[config]).unwrap();
        assert!(!tokens.reload().unwrap(), "nothing changed");
        let valid = || ["old-token-0123456789", "new-token-0123456789"].map(|token| tokens.find(token).is_some());
        assert_eq!(valid(), [true, false]);
        write("# since November\nnew-token-0123456789\nold-token-0123456789\n");
        assert!(tokens.reload().unwrap());
        assert_eq!(valid(), [true, true]);
        write("");
        assert!(tokens.reload().is_err());
        assert_eq!(valid(), [true, true], "an unusable file changes nothing");
        write("new-token-0123456789\n");
        assert!(tokens.reload().unwrap());
        assert_eq!(valid(), [false, true]);
    }

    #[test]
    fn unusable_file_does_not_delay_the_removal_of_another_token() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| dir.path().join(name));
        let configs = files.clone().map(|file| TokenConfig {
            name: "console".to_owned(),
            role: Role::Operator,
            token: None,
            file: Some(file),
        });
        std::fs::write(&files[0], "first-token-0123456789").unwrap();
        std::fs::write(&files[1], "leaked-token-0123456789").unwrap();
        let tokens = Tokens::load(&configs).unwrap();
        std::fs::remove_file(&files[0]).unwrap();
        std::fs::write(&files[1], "second-token-0123456789").unwrap();
        assert!(tokens.reload().is_err());
        let valid = [
            "first-token-0123456789",
            "leaked-token-0123456789",
            "second-token-0123456789",
        ];
        assert_eq!(valid.map(|token| tokens.find(token).is_some()), [true, false, true]);
    }
}
