//! A configuration as a tree whose values record their location, and a serde deserializer over it.
//!
//! An error refers to the innermost key that caused it. The text of an environment variable is converted to the type of
//! the field. Types, defaults and allowed keys are defined by the structs that are deserialized.

use serde::de::value::{MapAccessDeserializer, StringDeserializer};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};

/// Location of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// Byte offset in the file.
    File(usize),
    /// Environment variable.
    Variable(String),
    /// The key has no value in the file or the environment: it is a TOML table that exists only because a key in it is
    /// set.
    None,
}

/// An invalid value, and its location if it is already known.
#[derive(Debug)]
pub(super) struct NodeError {
    pub(super) message: String,
    pub(super) at: Option<(String, Origin)>,
}

impl std::fmt::Display for NodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NodeError {}

impl de::Error for NodeError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self {
            message: message.to_string(),
            at: None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Node {
    path: String,
    origin: Origin,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Table(BTreeMap<String, Node>),
    Array(Vec<Node>),
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// Text of a variable, converted to the type of its field.
    Variable(String),
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

impl Node {
    /// Parses TOML text.
    pub(super) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let table = DeTable::parse(text)?;
        Ok(Self::table(String::new(), Origin::None, table.get_ref()))
    }

    fn table(path: String, origin: Origin, table: &DeTable<'_>) -> Self {
        let members = table.iter().map(|(key, value)| {
            let origin = Origin::File(key.span().start);
            (
                key.get_ref().to_string(),
                Self::value(joined(&path, key.get_ref()), origin, value.get_ref()),
            )
        });
        Self {
            kind: Kind::Table(members.collect()),
            path,
            origin,
        }
    }

    fn value(path: String, origin: Origin, value: &DeValue<'_>) -> Self {
        let kind = match value {
            DeValue::Table(table) => return Self::table(path, origin, table),
            DeValue::Array(array) => {
                let item = |(at, item): (usize, &toml::Spanned<DeValue<'_>>)| {
                    Self::value(format!("{path}[{at}]"), Origin::File(item.span().start), item.get_ref())
                };
                Kind::Array(array.iter().enumerate().map(item).collect())
            }
            DeValue::String(text) => Kind::Text(text.to_string()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Kind::Integer(number),
                // The number is too large for any field. As text it causes a clear type error.
                Err(_) => Kind::Text(number.to_string()),
            },
            DeValue::Float(number) => Kind::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(value) => Kind::Bool(*value),
            DeValue::Datetime(time) => Kind::Text(time.to_string()),
        };
        Self { path, origin, kind }
    }

    /// Sets the text of a variable at a path and creates missing tables.
    pub(super) fn set(&mut self, path: &[&str], variable: &str, text: &str) -> Result<(), NodeError> {
        let (key, rest) = path.split_first().expect("the name of a variable contains a key");
        let at = joined(&self.path, key);
        let Kind::Table(members) = &mut self.kind else {
            let message = "is a value, not a table, so a variable cannot set a key in it".to_owned();
            return Err(NodeError {
                message,
                at: Some((self.path.clone(), Origin::Variable(variable.to_owned()))),
            });
        };
        let origin = Origin::Variable(variable.to_owned());
        if rest.is_empty() {
            members.insert(
                (*key).to_owned(),
                Node {
                    path: at,
                    origin,
                    kind: Kind::Variable(text.to_owned()),
                },
            );
            return Ok(());
        }
        let table = || Node {
            path: at,
            origin,
            kind: Kind::Table(BTreeMap::new()),
        };
        members
            .entry((*key).to_owned())
            .or_insert_with(table)
            .set(rest, variable, text)
    }

    /// Parses the text of a variable as a TOML value. Text that is not a TOML value remains text.
    fn parsed(self) -> Self {
        let Kind::Variable(text) = self.kind else { return self };
        match DeValue::parse(&text) {
            Ok(value) => {
                let mut parsed = Self::value(self.path, self.origin.clone(), value.get_ref());
                parsed.set_origin(&self.origin);
                parsed
            }
            Err(_) => Self {
                kind: Kind::Text(text),
                ..self
            },
        }
    }

    fn set_origin(&mut self, origin: &Origin) {
        self.origin = origin.clone();
        match &mut self.kind {
            Kind::Table(members) => members.values_mut().for_each(|member| member.set_origin(origin)),
            Kind::Array(items) => items.iter_mut().for_each(|item| item.set_origin(origin)),
            _ => {}
        }
    }

    /// Parses the text of a variable as a list: a TOML array, or items separated by commas.
    fn into_list(self) -> Self {
        let Kind::Variable(text) = &self.kind else { return self };
        if text.trim_start().starts_with('[') {
            return self.parsed();
        }
        let item = |(at, item): (usize, &str)| Self {
            path: format!("{}[{at}]", self.path),
            origin: self.origin.clone(),
            kind: Kind::Variable(item.trim().to_owned()),
        };
        let items = text
            .split(',')
            .filter(|item| !item.trim().is_empty())
            .enumerate()
            .map(item)
            .collect();
        Self {
            kind: Kind::Array(items),
            ..self
        }
    }

    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        let (path, origin) = (self.path, self.origin);
        let result = match self.kind {
            Kind::Table(members) => visitor.visit_map(Members {
                rest: members.into_iter(),
                value: None,
            }),
            Kind::Array(items) => visitor.visit_seq(Items(items.into_iter())),
            Kind::Text(text) | Kind::Variable(text) => visitor.visit_string(text),
            Kind::Integer(number) => visitor.visit_i64(number),
            Kind::Float(number) => visitor.visit_f64(number),
            Kind::Bool(value) => visitor.visit_bool(value),
        };
        result.map_err(|error| error.or_at(path, origin))
    }
}

impl NodeError {
    fn or_at(self, path: String, origin: Origin) -> Self {
        Self {
            at: self.at.or(Some((path, origin))),
            ..self
        }
    }
}

/// Keys of a TOML table that is being deserialized.
struct Members {
    rest: std::collections::btree_map::IntoIter<String, Node>,
    value: Option<Node>,
}

impl<'de> MapAccess<'de> for Members {
    type Error = NodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, NodeError> {
        let Some((key, value)) = self.rest.next() else {
            return Ok(None);
        };
        // An unknown key is reported at its own location, not at the location of its table.
        let (path, origin) = (value.path.clone(), value.origin.clone());
        self.value = Some(value);
        let key: StringDeserializer<NodeError> = key.into_deserializer();
        seed.deserialize(key)
            .map(Some)
            .map_err(|error| error.or_at(path, origin))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, NodeError> {
        seed.deserialize(self.value.take().expect("serde reads a value after its key"))
    }
}

struct Items(std::vec::IntoIter<Node>);

impl<'de> SeqAccess<'de> for Items {
    type Error = NodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, NodeError> {
        self.0.next().map(|node| seed.deserialize(node)).transpose()
    }
}

macro_rules! as_what_it_looks_like {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
            self.parsed().visit(visitor)
        })*
    };
}

macro_rules! as_it_is_written {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
            self.visit(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Node {
    type Error = NodeError;

    as_what_it_looks_like! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
        deserialize_map deserialize_ignored_any
    }

    as_it_is_written! {
        deserialize_char deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf
        deserialize_identifier deserialize_unit
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, NodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, NodeError> {
        self.visit(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        self.into_list().visit(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, NodeError> {
        self.into_list().visit(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        self.into_list().visit(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        self.parsed().visit(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        let (path, origin) = (self.path.clone(), self.origin.clone());
        let result = match self.kind {
            Kind::Text(text) | Kind::Variable(text) => {
                let name: StringDeserializer<NodeError> = text.into_deserializer();
                visitor.visit_enum(name)
            }
            Kind::Table(members) => {
                let members = Members {
                    rest: members.into_iter(),
                    value: None,
                };
                visitor.visit_enum(MapAccessDeserializer::new(members))
            }
            _ => Err(de::Error::custom("expected text, or a table with one key")),
        };
        result.map_err(|error| error.or_at(path, origin))
    }
}
