//! Secrets: values that are never printed.
//!
//! A secret prints and serializes as `***`. References `${env:NAME}` and `${file:PATH}` in its text are resolved when
//! the configuration is read, and again by [`Secret::reload`]. Errors name the variable or the file, never the value.

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::sync::Arc;

const NOT_TEXT: &str = "a secret must be a string";

/// A secret: literal text, `${env:NAME}` or `${file:PATH}` (trailing line ends of the file are removed). References may
/// be part of a longer text, such as a URL.
#[derive(Clone)]
pub struct Secret {
    value: String,
    /// The text with its references; `None` if it contains none.
    template: Option<Arc<str>>,
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eq for Secret {}

/// Why a secret cannot be resolved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The variable is not set.
    #[error("${{env:{name}}}: environment variable {name} is not set")]
    Variable {
        /// Its name.
        name: String,
    },
    /// Reading the file failed.
    #[error("${{file:{path}}}: cannot read the file: {reason}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        reason: String,
    },
    /// A reference that is not closed or has an unknown kind.
    #[error("invalid reference after `${{`; use ${{env:NAME}} or ${{file:PATH}}")]
    Reference,
}

impl Secret {
    /// Creates a secret from its value.
    pub fn new(secret: impl Into<String>) -> Self {
        Self {
            value: secret.into(),
            template: None,
        }
    }

    /// Resolves the references in a text.
    ///
    /// # Errors
    /// The reference that cannot be resolved, and the cause.
    pub fn resolve(text: &str) -> Result<Self, Error> {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, reference)) = rest.split_once("${") {
            let (reference, after) = reference.split_once('}').ok_or(Error::Reference)?;
            out.push_str(before);
            match reference.split_once(':') {
                Some(("env", name)) => {
                    out.push_str(&super::env(name).ok_or_else(|| Error::Variable { name: name.to_owned() })?);
                }
                Some(("file", path)) => {
                    let unreadable = |error: std::io::Error| Error::File {
                        path: path.to_owned(),
                        reason: error.to_string(),
                    };
                    out.push_str(
                        std::fs::read_to_string(path)
                            .map_err(unreadable)?
                            .trim_end_matches(['\r', '\n']),
                    );
                }
                _ => return Err(Error::Reference),
            }
            rest = after;
        }
        out.push_str(rest);
        Ok(Self {
            template: (out != text).then(|| Arc::from(text)),
            value: out,
        })
    }

    /// Resolves the references again, so that a file that was replaced is read again.
    ///
    /// # Errors
    /// The reference that cannot be resolved, and the cause.
    pub fn reload(&self) -> Result<Self, Error> {
        match &self.template {
            Some(template) => Self::resolve(template),
            None => Ok(self.clone()),
        }
    }

    /// The value. Pass it only to the code that authenticates with it.
    pub fn expose(&self) -> &str {
        &self.value
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Secret;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a secret: a string, ${env:NAME} or ${file:PATH}")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret, E> {
                Secret::resolve(text).map_err(E::custom)
            }

            // serde's default errors for a wrong type would contain the value.
            fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Secret, E> {
                Err(E::custom(NOT_TEXT))
            }

            fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Secret, E> {
                Err(E::custom(NOT_TEXT))
            }

            fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Secret, E> {
                Err(E::custom(NOT_TEXT))
            }

            fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Secret, E> {
                Err(E::custom(NOT_TEXT))
            }
        }
        deserializer.deserialize_str(Text)
    }
}
