//! Secrets: values that are used and never shown.
//!
//! Guarantees: prints as `***` in every form, serialised too; `${env:NAME}` and `${file:PATH}` in its text are replaced
//! when the configuration is read, and only here.
//! Never: a secret in an error; errors name the variable or the file.

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const NOT_TEXT: &str = "a secret is written as text";

/// A secret. Write it as it is, or as `${env:NAME}`, or as `${file:PATH}` (line ends at the file's end are dropped);
/// both may stand inside a longer text, such as a URL.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a secret cannot be resolved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A variable is not set.
    #[error("${{env:{name}}}: the environment variable {name} is not set")]
    Variable {
        /// Its name.
        name: String,
    },
    /// A file cannot be read.
    #[error("${{file:{path}}}: the file cannot be read: {reason}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        reason: String,
    },
    /// A reference without its end, or of another kind.
    #[error("`${{` begins a reference: write ${{env:NAME}} or ${{file:PATH}}")]
    Reference,
}

impl Secret {
    /// A secret that is known already.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// Resolves the references in a text.
    ///
    /// # Errors
    /// Which reference cannot be resolved, and why.
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
        Ok(Self(out))
    }

    /// The secret itself, to be handed to whoever needs it and to nobody else.
    pub fn expose(&self) -> &str {
        &self.0
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
                f.write_str("a secret: text, ${env:NAME} or ${file:PATH}")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret, E> {
                Secret::resolve(text).map_err(E::custom)
            }

            // serde's own answers to a wrong type would print the value.
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
