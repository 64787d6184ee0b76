//! Ids as types: what names a source, a table, a bucket, a device cannot be taken for one another.
//!
//! Guarantees: a value of such a type has passed its rule, and its text reads back as itself. Never: a look-up.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest declared name, in characters: two of them and a prefix make a topic's name (249).
pub const NAME_CHARS_MAX: usize = 63;
/// Longest bucket name, table name or subject, in bytes.
pub const TEXT_BYTES_MAX: usize = 512;

/// Why a text is not such an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is refused: {reason}")]
pub struct IdError {
    /// What it was to name.
    pub what: &'static str,
    /// The text, cut after 64 characters.
    pub text: String,
    /// Why, with the fix.
    pub reason: &'static str,
}

type Rule = fn(&str) -> Result<(), &'static str>;

fn checked(what: &'static str, text: &str, rule: Rule) -> Result<Arc<str>, IdError> {
    match rule(text) {
        Ok(()) => Ok(Arc::from(text)),
        Err(reason) => Err(IdError {
            what,
            text: text.chars().take(64).collect(),
            reason,
        }),
    }
}

/// A declared name: a legal part of a topic's name, of a subject and of a URL as it stands.
fn name_rule(text: &str) -> Result<(), &'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !text.starts_with(|c: char| c.is_ascii_alphabetic()) || !text.bytes().all(legal) {
        return Err("use a letter, then letters, digits, `_` or `-`");
    }
    if text.len() > NAME_CHARS_MAX {
        return Err("use at most 63 characters");
    }
    Ok(())
}

fn text_rule(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err("use at most 512 bytes");
    }
    if text.chars().any(char::is_control) {
        return Err("it holds a control character");
    }
    Ok(())
}

fn table_rule(text: &str) -> Result<(), &'static str> {
    text_rule(text)?;
    if text.starts_with('~') {
        return Err("`~` begins reserved names");
    }
    match text.split_once('.') {
        Some((schema, table)) if schema.is_empty() || table.is_empty() => Err("write `table` or `schema.table`"),
        Some(("public", _)) => Err("leave `public.` out"),
        Some((_, table)) if table.contains('.') => Err("a schema or table name with a dot cannot be told apart"),
        _ => Ok(()),
    }
}

fn bucket_rule(text: &str) -> Result<(), &'static str> {
    text_rule(text)?;
    if text.starts_with('~') {
        return Err("`~` begins reserved names");
    }
    Ok(())
}

fn device_rule(text: &str) -> Result<(), &'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
    if text.is_empty() || text.len() > 128 || !text.bytes().all(legal) {
        return Err("use 1 to 128 letters, digits, `_`, `-`, `.` or `:`");
    }
    Ok(())
}

fn writer_rule(text: &str) -> Result<(), &'static str> {
    const SHAPE: &str = "write `<processor>/<topic>/<topic id, 32 hex digits>/<partition>`";
    let mut parts = text.split('/');
    let (Some(processor), Some(topic), Some(id), Some(partition), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(SHAPE);
    };
    name_rule(processor)?;
    text_rule(topic)?;
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let number = partition.parse::<u16>().map(|n| n.to_string());
    if id.len() != 32 || !id.bytes().all(hex) || number.as_deref() != Ok(partition) {
        return Err(SHAPE);
    }
    Ok(())
}

macro_rules! text_ids {
    ($($(#[$doc:meta])* $name:ident, $what:literal, $rule:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a text.
            ///
            /// # Errors
            /// [`IdError`] with the reason and the fix.
            pub fn new(text: &str) -> Result<Self, IdError> {
                checked($what, text, $rule).map($name)
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                $name::new(text)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                $name::new(&text).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

text_ids! {
    /// A source: its changes are on `change.<source>`.
    SourceName, "source", name_rule;
    /// A declared event: `event.<name>`.
    EventName, "event", name_rule;
    /// A connector.
    ConnectorName, "connector", name_rule;
    /// A processor.
    ProcessorName, "processor", name_rule;
    /// A view.
    ViewName, "view", name_rule;
    /// A table of a source: `orders` in schema `public`, else `sales.orders`.
    TableName, "table", table_rule;
    /// A bucket: `user:42`. Never begins with `~`.
    BucketName, "bucket", bucket_rule;
    /// A device of a principal, as the device names itself.
    DeviceId, "device id", device_rule;
    /// A writer of `view.log`: `<processor>/<input topic>/<topic id, 32 hex digits>/<partition>`.
    WriterId, "writer", writer_rule;
}

impl TableName {
    /// Names a table by PostgreSQL's schema and table.
    ///
    /// # Errors
    /// [`IdError`] when one of them holds a dot or is empty.
    pub fn of(schema: &str, table: &str) -> Result<Self, IdError> {
        if table.contains('.') {
            let reason = "a schema or table name with a dot cannot be told apart";
            return Err(IdError {
                what: "table",
                text: table.chars().take(64).collect(),
                reason,
            });
        }
        if schema == "public" {
            Self::new(table)
        } else {
            Self::new(&format!("{schema}.{table}"))
        }
    }

    /// PostgreSQL's schema, `public` when none is written.
    pub fn schema(&self) -> &str {
        self.0.split_once('.').map_or("public", |(schema, _)| schema)
    }

    /// The table's name without its schema.
    pub fn table(&self) -> &str {
        self.0.split_once('.').map_or(&*self.0, |(_, table)| table)
    }
}

impl WriterId {
    /// Names a writer: a processor reading one partition of one life of a topic.
    ///
    /// # Errors
    /// [`IdError`] when a part breaks its rule.
    pub fn of(processor: &str, topic: &str, topic_id: uuid::Uuid, partition: i32) -> Result<Self, IdError> {
        Self::new(&format!("{processor}/{topic}/{}/{partition}", topic_id.simple()))
    }

    fn part(&self, at: usize) -> &str {
        self.0.split('/').nth(at).unwrap_or_default()
    }

    /// The processor.
    pub fn processor(&self) -> &str {
        self.part(0)
    }

    /// The input topic.
    pub fn topic(&self) -> &str {
        self.part(1)
    }

    /// The input topic's id.
    pub fn topic_id(&self) -> uuid::Uuid {
        uuid::Uuid::try_parse(self.part(2)).unwrap_or_default()
    }

    /// The input partition.
    pub fn partition(&self) -> i32 {
        self.part(3).parse().unwrap_or_default()
    }
}

/// Who a token speaks for: the issuer's alias and the subject. As text `<issuer>:<subject>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal {
    issuer: Arc<str>,
    subject: Arc<str>,
}

impl Principal {
    /// Names a principal. The issuer is an alias by the rule of declared names, the subject any text of 1 to 512 bytes
    /// without control characters.
    ///
    /// # Errors
    /// [`IdError`] with the reason.
    pub fn new(issuer: &str, subject: &str) -> Result<Self, IdError> {
        Ok(Principal {
            issuer: checked("issuer alias", issuer, name_rule)?,
            subject: checked("subject", subject, text_rule)?,
        })
    }

    /// The issuer's alias.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The subject, as the issuer names it.
    pub fn subject(&self) -> &str {
        &self.subject
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.issuer, self.subject)
    }
}

impl FromStr for Principal {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (issuer, subject) = text.split_once(':').ok_or_else(|| IdError {
            what: "principal",
            text: text.chars().take(64).collect(),
            reason: "write `<issuer alias>:<subject>`",
        })?;
        Self::new(issuer, subject)
    }
}

/// Id of a schema in the registry. Ids are immutable: one id is one schema for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SchemaId(pub u32);

impl fmt::Display for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_legal_parts_of_a_topic() {
        for good in ["shop", "order_viewed", "A-1", "x"] {
            assert_eq!(SourceName::new(good).unwrap().to_string(), good);
        }
        for bad in ["", "1st", "a.b", "a b", "ü", "_a", &"x".repeat(64)] {
            assert!(SourceName::new(bad).is_err(), "{bad}");
        }
        let text = SourceName::new("a.b").unwrap_err().to_string();
        assert_eq!(
            text,
            "source \"a.b\" is refused: use a letter, then letters, digits, `_` or `-`"
        );
    }

    #[test]
    fn a_table_has_one_spelling() {
        assert_eq!(TableName::of("public", "orders").unwrap().as_str(), "orders");
        let table = TableName::of("sales", "order lines").unwrap();
        assert_eq!(
            (table.schema(), table.table(), table.as_str()),
            ("sales", "order lines", "sales.order lines")
        );
        for bad in ["", "public.orders", "a.b.c", ".x", "x.", "~chunk", "a\nb"] {
            assert!(TableName::new(bad).is_err(), "{bad}");
        }
        assert!(TableName::of("public", "a.b").is_err());
        assert!(TableName::of("a.b", "c").is_err());
    }

    #[test]
    fn a_writer_reads_back() {
        let id = uuid::Uuid::from_u128(7);
        let writer = WriterId::of("sync-views", "change.shop", id, 0).unwrap();
        assert_eq!(
            writer.as_str(),
            "sync-views/change.shop/00000000000000000000000000000007/0"
        );
        assert_eq!((writer.processor(), writer.topic()), ("sync-views", "change.shop"));
        assert_eq!((writer.topic_id(), writer.partition()), (id, 0));
        for bad in [
            "a/b/c/0",
            "a/b/00000000000000000000000000000007/00",
            "a/b",
            "a/b/00000000000000000000000000000007/0/1",
        ] {
            assert!(WriterId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_principal_reads_back_whatever_its_subject_holds() {
        let principal = Principal::new("corp", "auth0|a:b/c").unwrap();
        assert_eq!(principal.to_string().parse::<Principal>().unwrap(), principal);
        assert!("nobody".parse::<Principal>().is_err());
        assert!(Principal::new("corp", "").is_err());
    }

    #[test]
    fn reserved_and_malformed_ids_are_refused() {
        assert!(BucketName::new("~close").is_err());
        assert!(BucketName::new("user:42").is_ok());
        assert!(DeviceId::new("a/b").is_err());
        assert!(serde_json::from_str::<DeviceId>("\"a b\"").is_err());
        assert_eq!(serde_json::from_str::<DeviceId>("\"p-1\"").unwrap().as_str(), "p-1");
    }
}
