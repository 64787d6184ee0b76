//! Configuration of the registry client. `Debug` never prints credentials.

use std::fmt;
use std::time::Duration;

/// Address and credentials of a registry.
#[derive(Clone)]
pub struct Config {
    /// Base URL, including a path if there is one: `http://127.0.0.1:8081`, `https://host/apis/ccompat/v7`.
    pub url: String,
    /// Credentials.
    pub auth: Auth,
    /// Timeout of one attempt. Default: 5 s.
    pub timeout: Duration,
    /// Maximum number of attempts if the registry is unreachable or responds with 429 or 5xx. Default: 4, with pauses
    /// of up to 0.1, 0.2 and 0.4 s.
    pub attempts: u32,
}

/// Credentials for a registry.
#[derive(Clone, Default)]
pub enum Auth {
    /// None.
    #[default]
    None,
    /// HTTP basic authentication.
    Basic {
        /// User, or API key.
        user: String,
        /// Password, or API secret.
        password: String,
    },
    /// A bearer token.
    Bearer(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::None => "none",
            Auth::Basic { .. } => "basic",
            Auth::Bearer(_) => "bearer",
        })
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({}, {:?})", self.url, self.auth)
    }
}

impl Config {
    /// Configuration for a registry without credentials.
    pub fn new(url: &str) -> Self {
        Config {
            url: url.to_owned(),
            auth: Auth::None,
            timeout: Duration::from_secs(5),
            attempts: 4,
        }
    }
}
