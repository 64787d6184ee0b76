//! Typed ids, so that the names of a source, a table, a bucket and a device cannot be confused. Constructors validate, and
//! the text of a value parses back to the same value.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Maximum length of a declared name. Topic names consist of up to three names and fixed words and are limited to 249
/// characters by Kafka.
pub const NAME_CHARS_MAX: usize = 63;
/// Maximum length of a bucket name, table name or subject, in bytes.
pub const TEXT_BYTES_MAX: usize = 512;

/// Why a text is not a valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {text:?}: {reason}")]
pub struct IdError {
    /// The kind of id.
    pub what: &'static str,
    /// The text, truncated to 64 characters.
    pub text: String,
    /// The reason or the rule.
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

/// A declared name, which is valid in topic names, subjects and URLs without escaping.
fn name_rule(text: &str) -> Result<(), &'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !text.starts_with(|c: char| c.is_ascii_alphabetic()) || !text.bytes().all(legal) {
        return Err("use a letter followed by letters, digits, `_` or `-`");
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
        return Err("it contains a control character");
    }
    Ok(())
}

fn table_rule(text: &str) -> Result<(), &'static str> {
    text_rule(text)?;
    if text.starts_with('~') {
        return Err("names that start with `~` are reserved");
    }
    match text.split_once('.') {
        Some((schema, table)) if schema.is_empty() || table.is_empty() => Err("use the form `table` or `schema.table`"),
        Some(("public", _)) => Err("omit `public.`"),
        Some((_, table)) if table.contains('.') => Err("schema and table names must not contain a dot"),
        _ => Ok(()),
    }
}

fn bucket_rule(text: &str) -> Result<(), &'static str> {
    text_rule(text)?;
    if text.starts_with('~') {
        return Err("names that start with `~` are reserved");
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
    const SHAPE: &str = "use the form `<processor>/<topic>/<topic id, 32 hex digits>/<partition>`";
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
            /// Validates a text.
            ///
            /// # Errors
            /// [`IdError`] with the rule that it violates.
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
    /// A source; its changes are in topic `<topology>.change.<source>`.
    SourceName, "source", name_rule;
    /// A declared event, in topic `<topology>.event.<name>`.
    EventName, "event", name_rule;
    /// A connector.
    ConnectorName, "connector", name_rule;
    /// A processor.
    ProcessorName, "processor", name_rule;
    /// A view.
    ViewName, "view", name_rule;
    /// A table of a source: `orders` in schema `public`, `sales.orders` in other schemas.
    TableName, "table", table_rule;
    /// A bucket, such as `user:42`. Names that start with `~` are reserved.
    BucketName, "bucket", bucket_rule;
    /// A device of a principal; the device chooses the id.
    DeviceId, "device id", device_rule;
    /// A writer in `view.log`: `<processor>/<input topic>/<topic id, 32 hex digits>/<partition>`.
    WriterId, "writer", writer_rule;
}

impl TableName {
    /// The name of a table in a PostgreSQL schema.
    ///
    /// # Errors
    /// [`IdError`] if schema or table contains a dot or is empty.
    pub fn of(schema: &str, table: &str) -> Result<Self, IdError> {
        if table.contains('.') {
            let reason = "schema and table names must not contain a dot";
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

    /// The PostgreSQL schema; `public` if the name has none.
    pub fn schema(&self) -> &str {
        self.0.split_once('.').map_or("public", |(schema, _)| schema)
    }

    /// The table name without the schema.
    pub fn table(&self) -> &str {
        self.0.split_once('.').map_or(&*self.0, |(_, table)| table)
    }
}

impl WriterId {
    /// The writer id of a processor that reads one partition of a topic. The topic id distinguishes topics that were
    /// deleted and created again.
    ///
    /// # Errors
    /// [`IdError`] if a part is not valid.
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

/// The principal of a token: issuer alias and subject. As text `<issuer>:<subject>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal {
    issuer: Arc<str>,
    subject: Arc<str>,
}

impl Principal {
    /// Creates a principal. The issuer alias is a declared name; the subject is any text of 1 to 512 bytes without control
    /// characters.
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

    /// The subject, as set by the issuer.
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
            reason: "use the form `<issuer alias>:<subject>`",
        })?;
        Self::new(issuer, subject)
    }
}

/// Id of a schema in the registry. An id always refers to the same schema.
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
    fn names_are_valid_in_topic_names() {
        for good in ["shop", "order_viewed", "A-1", "x"] {
            assert_eq!(SourceName::new(good).unwrap().to_string(), good);
        }
        for bad in ["", "1st", "a.b", "a b", "ü", "_a", &"x".repeat(64)] {
            assert!(SourceName::new(bad).is_err(), "{bad}");
        }
        let text = SourceName::new("a.b").unwrap_err().to_string();
        assert_eq!(
            text,
            "invalid source \"a.b\": use a letter followed by letters, digits, `_` or `-`"
        );
    }

    #[test]
    fn tables_have_one_spelling() {
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
    fn writer_ids_round_trip() {
        let id = uuid::Uuid::from_u128(7);
        let writer = WriterId::of("sync-views", "shop.change.shop", id, 0).unwrap();
        assert_eq!(
            writer.as_str(),
            "sync-views/shop.change.shop/00000000000000000000000000000007/0"
        );
        assert_eq!((writer.processor(), writer.topic()), ("sync-views", "shop.change.shop"));
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
    fn principals_round_trip_for_any_subject() {
        let principal = Principal::new("corp", "auth0|a:b/c").unwrap();
        assert_eq!(principal.to_string().parse::<Principal>().unwrap(), principal);
        assert!("nobody".parse::<Principal>().is_err());
        assert!(Principal::new("corp", "").is_err());
    }

    #[test]
    fn reserved_and_malformed_ids_are_rejected() {
        assert!(BucketName::new("~end").is_err());
        assert!(BucketName::new("user:42").is_ok());
        assert!(DeviceId::new("a/b").is_err());
        assert!(serde_json::from_str::<DeviceId>("\"a b\"").is_err());
        assert_eq!(serde_json::from_str::<DeviceId>("\"p-1\"").unwrap().as_str(), "p-1");
    }
}
