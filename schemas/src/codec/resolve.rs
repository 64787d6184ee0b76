//! Avro schema resolution: how values of a writer's type are read as a reader's type. Compiled once per pair of types, so
//! that decoding looks up no names and compares no schemas.
//!
//! A pair of types that can never be read is a [`Conflict`] when it is compiled. If only some values can be read, such as
//! all but null, the others are errors when they are decoded.

use super::decode::{DecodeError, Reader, within};
use super::{DEPTH_MAX, Datum, Step};
use crate::evolution::{is_alias_of, promotes, same_shape};
use crate::schema::{Enum, Kind, Record, Schema, TypeId};
use std::collections::HashMap;

type Failure = Box<DecodeError>;

/// Why values of a writer's type cannot be read as a reader's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conflict {
    /// Path of the field, such as `items[].price`; empty for the type itself.
    pub path: String,
    /// What is wrong with the field.
    pub problem: String,
}

impl Conflict {
    fn within(mut self, step: &str) -> Self {
        let separator = if self.path.is_empty() || self.path.starts_with(['[', '{']) {
            ""
        } else {
            "."
        };
        self.path = format!("{step}{separator}{}", self.path);
        self
    }
}

/// Index of a step in a [`Plan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(usize);

/// How the values of one type of the writer are read.
#[derive(Debug, Clone)]
enum Node {
    /// The reader's type has the same encoding and meaning.
    Same(TypeId),
    /// Read with this type of the writer, then promoted.
    Promoted(TypeId, Promotion),
    /// By symbol of the writer: the index of the reader's symbol, or `None` if the reader has neither the symbol nor a
    /// default.
    Enum {
        reader: TypeId,
        symbols: Box<[Option<usize>]>,
    },
    Array(NodeId),
    Map(NodeId),
    Record(Fields),
    /// By branch of the writer's union: how it is read, or why it cannot be read.
    Branches(Box<[Result<NodeId, &'static str>]>),
    /// A branch of the reader's union.
    Branch(usize, NodeId),
    /// A record that is being compiled. Recursive types refer to it.
    Unfinished,
}

#[derive(Debug, Clone, Copy)]
enum Promotion {
    Long,
    Float,
    Double,
    Bytes,
    Str,
}

/// What happens to a field of the writer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Take {
    /// Skip the field.
    Skip,
    /// Store the field at this index, unchanged.
    To(usize),
    /// Store it at this index, resolved to the reader's type.
    Resolved(usize, NodeId),
}

/// How the fields of a record are read.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    /// The record of the writer.
    pub writer: TypeId,
    /// The record of the reader.
    pub reader: TypeId,
    /// By field of the writer.
    pub takes: Vec<Take>,
    /// Fields that the writer does not have: index of the value, and of the reader's field.
    pub defaults: Vec<(usize, usize)>,
    /// Number of values.
    pub width: usize,
}

/// The compiled steps of a resolution.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    nodes: Vec<Node>,
}

/// The two schemas of a resolution.
#[derive(Clone, Copy)]
pub(super) struct Pair<'s> {
    /// Schema with which the data was written.
    pub writer: &'s Schema,
    /// Schema as which the data is read.
    pub reader: &'s Schema,
}

/// Compiles the steps of a resolution.
pub(super) struct Compiler<'s> {
    pair: Pair<'s>,
    plan: Plan,
    /// Records that are compiled or being compiled, by their types in the writer and the reader.
    records: HashMap<(TypeId, TypeId), NodeId>,
}

impl<'s> Compiler<'s> {
    pub(super) fn new(pair: Pair<'s>) -> Self {
        Compiler {
            pair,
            plan: Plan::default(),
            records: HashMap::new(),
        }
    }

    pub(super) fn finish(self) -> Plan {
        self.plan
    }

    fn push(&mut self, node: Node) -> NodeId {
        self.plan.nodes.push(node);
        NodeId(self.plan.nodes.len() - 1)
    }

    /// Compiles a record. `wanted` contains the reader's field of each value; `None` leaves the value null.
    pub(super) fn fields(
        &mut self,
        writer: TypeId,
        reader: TypeId,
        wanted: &[Option<usize>],
    ) -> Result<Fields, Conflict> {
        let (Kind::Record(from), Kind::Record(to)) = self.kinds(writer, reader) else {
            return Err(self.conflict(writer, reader));
        };
        let mut takes = vec![Take::Skip; from.fields.len()];
        let mut defaults = Vec::new();
        for (index, number) in wanted.iter().enumerate() {
            let Some((number, field)) = number.and_then(|at| Some((at, to.fields.get(at)?))) else {
                continue;
            };
            let names = std::iter::once(&field.name).chain(&field.aliases);
            let at = names.filter_map(|name| from.position(name)).next();
            let slot = at.and_then(|at| Some((takes.get_mut(at)?, from.fields.get(at)?)));
            let Some((take, written)) = slot else {
                if field.default.is_none() {
                    return Err(Conflict {
                        path: field.name.to_string(),
                        problem: String::from("is missing and has no default"),
                    });
                }
                defaults.push((index, number));
                continue;
            };
            let node = self.types(written.ty, field.ty);
            let node = node.map_err(|conflict| conflict.within(&field.name))?;
            *take = match self.plan.nodes.get(node.0) {
                Some(Node::Same(_)) => Take::To(index),
                _ => Take::Resolved(index, node),
            };
        }
        Ok(Fields {
            writer,
            reader,
            takes,
            defaults,
            width: wanted.len(),
        })
    }

    fn kinds(&self, writer: TypeId, reader: TypeId) -> (&'s Kind, &'s Kind) {
        (&self.pair.writer.ty(writer).kind, &self.pair.reader.ty(reader).kind)
    }

    fn conflict(&self, writer: TypeId, reader: TypeId) -> Conflict {
        let (was, wanted) = (self.pair.writer.describe(writer), self.pair.reader.describe(reader));
        Conflict {
            path: String::new(),
            problem: format!("is {was}, but the reader wants {wanted}"),
        }
    }

    fn types(&mut self, writer: TypeId, reader: TypeId) -> Result<NodeId, Conflict> {
        let Pair {
            writer: from,
            reader: to,
        } = self.pair;
        if same_shape(from, writer, to, reader) {
            return Ok(self.push(Node::Same(writer)));
        }
        if !matches!(from.ty(writer).kind, Kind::Optional { .. } | Kind::Union(_)) {
            let node = self.one_to_any(writer, reader);
            // The whole types are more useful than one branch of the reader's union.
            return node.map_err(|conflict| match conflict.path.as_str() {
                "" => self.conflict(writer, reader),
                _ => conflict,
            });
        }
        let (mut nodes, mut is_readable) = (Vec::new(), false);
        for branch in from.branches(writer) {
            let is_null = matches!(from.ty(branch).kind, Kind::Null);
            let node = self.one_to_any(branch, reader).map_err(|_| match is_null {
                true => "null, which the reader's type does not accept",
                false => "the reader's type does not accept this branch of the union",
            });
            // A type is not accepted for its nulls alone.
            is_readable |= node.is_ok() && !is_null;
            nodes.push(node);
        }
        if is_readable {
            Ok(self.push(Node::Branches(nodes.into())))
        } else {
            Err(self.conflict(writer, reader))
        }
    }

    /// Resolves a type of the writer that is not a union.
    fn one_to_any(&mut self, writer: TypeId, reader: TypeId) -> Result<NodeId, Conflict> {
        let Pair {
            writer: from,
            reader: to,
        } = self.pair;
        match &to.ty(reader).kind {
            Kind::Optional { inner, .. } if !matches!(from.ty(writer).kind, Kind::Null) => {
                self.one_to_one(writer, *inner)
            }
            Kind::Optional { .. } => Ok(self.push(Node::Same(writer))),
            Kind::Union(branches) => {
                // A branch of the same kind and name comes before a branch to which the value would be promoted.
                let nearest = branches
                    .iter()
                    .enumerate()
                    .filter(|(_, to)| self.has_same_name(writer, **to));
                let nearest: Vec<_> = nearest.collect();
                for (at, branch) in nearest.into_iter().chain(branches.iter().enumerate()) {
                    if let Ok(node) = self.one_to_one(writer, *branch) {
                        return Ok(self.push(Node::Branch(at, node)));
                    }
                }
                Err(self.conflict(writer, reader))
            }
            _ => self.one_to_one(writer, reader),
        }
    }

    fn has_same_name(&self, writer: TypeId, reader: TypeId) -> bool {
        match self.kinds(writer, reader) {
            (Kind::Record(from), Kind::Record(to)) => is_alias_of(&to.name, &from.name),
            (Kind::Enum(from), Kind::Enum(to)) => is_alias_of(&to.name, &from.name),
            (Kind::Fixed(from), Kind::Fixed(to)) => is_alias_of(&to.name, &from.name),
            (from, to) => std::mem::discriminant(from) == std::mem::discriminant(to),
        }
    }

    fn one_to_one(&mut self, writer: TypeId, reader: TypeId) -> Result<NodeId, Conflict> {
        let Pair {
            writer: from,
            reader: to,
        } = self.pair;
        if same_shape(from, writer, to, reader) {
            return Ok(self.push(Node::Same(writer)));
        }
        match self.kinds(writer, reader) {
            (Kind::Enum(from), Kind::Enum(to)) => match symbols(from, to) {
                Some(symbols) => Ok(self.push(Node::Enum { reader, symbols })),
                None => Err(self.conflict(writer, reader)),
            },
            (Kind::Array(from), Kind::Array(to)) => {
                let items = self.types(*from, *to).map_err(|conflict| conflict.within("[]"))?;
                Ok(self.push(Node::Array(items)))
            }
            (Kind::Map(from), Kind::Map(to)) => {
                let values = self.types(*from, *to).map_err(|conflict| conflict.within("{}"))?;
                Ok(self.push(Node::Map(values)))
            }
            (Kind::Record(_), Kind::Record(to)) => self.record(writer, reader, to),
            (from_kind, to_kind) => {
                // The unit of a number and the scale of a decimal get lost if the value is promoted.
                let keeps_meaning = from.ty(writer).logical.is_none();
                match promotion(from_kind, to_kind) {
                    Some(promotion) if keeps_meaning => Ok(self.push(Node::Promoted(writer, promotion))),
                    _ => Err(self.conflict(writer, reader)),
                }
            }
        }
    }

    fn record(&mut self, writer: TypeId, reader: TypeId, to: &Record) -> Result<NodeId, Conflict> {
        if let Some(known) = self.records.get(&(writer, reader)) {
            return Ok(*known);
        }
        let node = self.push(Node::Unfinished);
        self.records.insert((writer, reader), node);
        let wanted: Vec<Option<usize>> = (0..to.fields.len()).map(Some).collect();
        match self.fields(writer, reader, &wanted) {
            Ok(fields) => {
                if let Some(slot) = self.plan.nodes.get_mut(node.0) {
                    *slot = Node::Record(fields);
                }
                Ok(node)
            }
            Err(conflict) => {
                // Steps that were compiled in the meantime may refer to this record.
                self.plan.nodes.truncate(node.0);
                self.records.retain(|_, known| known.0 < node.0);
                Err(conflict)
            }
        }
    }
}

/// The reader's symbol of each symbol of the writer; `None` if there is no value that the reader can read.
fn symbols(from: &Enum, to: &Enum) -> Option<Box<[Option<usize>]>> {
    let position = |symbol: &str| to.symbols.iter().position(|known| **known == *symbol);
    let default = to.default.as_deref().and_then(position);
    let symbols: Box<[_]> = from.symbols.iter().map(|symbol| position(symbol).or(default)).collect();
    symbols.iter().any(Option::is_some).then_some(symbols)
}

fn promotion(from: &Kind, to: &Kind) -> Option<Promotion> {
    if !promotes(from, to) {
        return None;
    }
    match (from, to) {
        (Kind::Int, Kind::Long) => Some(Promotion::Long),
        (Kind::Int | Kind::Long, Kind::Float) => Some(Promotion::Float),
        (Kind::Int | Kind::Long | Kind::Float, Kind::Double) => Some(Promotion::Double),
        (Kind::String, Kind::Bytes) => Some(Promotion::Bytes),
        (Kind::Bytes, Kind::String) => Some(Promotion::Str),
        // Types of the same kind that differ in their unit.
        _ => None,
    }
}

impl Plan {
    /// Decodes the fields of a record into `row`, which has the record's width and contains only nulls.
    pub(super) fn fields<'a>(
        &'a self,
        pair: Pair<'a>,
        fields: &'a Fields,
        input: &mut Reader<'a>,
        row: &mut [Datum<'a>],
    ) -> Result<(), Failure> {
        self.nested_fields(pair, fields, input, &mut Values { row, depth: 0 })
    }

    fn nested_fields<'a>(
        &'a self,
        pair: Pair<'a>,
        fields: &'a Fields,
        input: &mut Reader<'a>,
        into: &mut Values<'_, 'a>,
    ) -> Result<(), Failure> {
        let depth = into.depth;
        let (Kind::Record(from), Kind::Record(to)) =
            (&pair.writer.ty(fields.writer).kind, &pair.reader.ty(fields.reader).kind)
        else {
            unreachable!("only records have fields");
        };
        for (field, take) in from.fields.iter().zip(&fields.takes) {
            let in_field = |failure| within(failure, || Step::Field(field.name.to_string()));
            let (index, value) = match take {
                Take::Skip => {
                    input.skip(field.ty, depth).map_err(in_field)?;
                    continue;
                }
                Take::To(index) => (*index, input.value(field.ty, depth).map_err(in_field)?),
                Take::Resolved(index, node) => {
                    let value = self.value(pair, *node, input, depth);
                    (*index, value.map_err(in_field)?)
                }
            };
            if let Some(slot) = into.row.get_mut(index) {
                *slot = value;
            }
        }
        for (index, number) in &fields.defaults {
            let default = to.fields.get(*number);
            let default = default.and_then(|field| Some((field.ty, field.default.as_deref()?)));
            if let (Some(slot), Some((ty, bytes))) = (into.row.get_mut(*index), default) {
                *slot = pair.reader.decode_value(ty, bytes)?;
            }
        }
        Ok(())
    }

    fn value<'a>(
        &'a self,
        pair: Pair<'a>,
        node: NodeId,
        input: &mut Reader<'a>,
        depth: usize,
    ) -> Result<Datum<'a>, Failure> {
        let node = self.nodes.get(node.0).expect("the steps of a plan refer to each other");
        match node {
            Node::Same(ty) => input.value(*ty, depth),
            Node::Promoted(ty, promotion) => {
                let value = promote(input.value(*ty, depth)?, *promotion);
                value.ok_or_else(|| input.failure("bytes that are read as a string are not UTF-8"))
            }
            Node::Enum { reader, symbols } => {
                let number = usize::try_from(input.long()?).ok();
                let Some(symbol) = number.and_then(|at| symbols.get(at)) else {
                    return Err(input.failure("invalid enum symbol"));
                };
                let Kind::Enum(to) = &pair.reader.ty(*reader).kind else {
                    unreachable!("an enum is read as an enum");
                };
                match symbol.and_then(|at| to.symbols.get(at)) {
                    Some(symbol) => Ok(Datum::Str(symbol)),
                    None => Err(input.failure("the reader's enum has neither the symbol nor a default")),
                }
            }
            Node::Branches(nodes) => {
                let number = usize::try_from(input.long()?).ok();
                match number.and_then(|at| nodes.get(at)) {
                    Some(Ok(node)) => self.value(pair, *node, input, depth),
                    Some(Err(reason)) => Err(input.failure(reason)),
                    None => Err(input.failure("invalid union branch")),
                }
            }
            _ if depth >= DEPTH_MAX => Err(input.failure("nested too deeply")),
            Node::Branch(at, node) => {
                let value = self.value(pair, *node, input, depth + 1)?;
                Ok(Datum::Union(*at, Box::new(value)))
            }
            Node::Array(node) => {
                let mut values = Vec::new();
                input.blocks(|input, at| {
                    let value = self.value(pair, *node, input, depth + 1);
                    values.push(value.map_err(|failure| within(failure, || Step::Item(at)))?);
                    Ok(())
                })?;
                Ok(Datum::Array(values))
            }
            Node::Map(node) => {
                let mut entries = Vec::new();
                input.blocks(|input, _| {
                    let key = input.string()?;
                    let value = self.value(pair, *node, input, depth + 1);
                    let value = value.map_err(|failure| within(failure, || Step::Entry(key.to_owned())))?;
                    entries.push((key, value));
                    Ok(())
                })?;
                Ok(Datum::Map(entries))
            }
            Node::Record(fields) => {
                let mut row = vec![Datum::Null; fields.width];
                let values = &mut Values {
                    row: &mut row,
                    depth: depth + 1,
                };
                self.nested_fields(pair, fields, input, values)?;
                Ok(Datum::Record(row))
            }
            Node::Unfinished => unreachable!("a compiled plan contains no unfinished record"),
        }
    }
}

/// Values of a record that is being decoded, and its nesting depth.
struct Values<'r, 'a> {
    row: &'r mut [Datum<'a>],
    depth: usize,
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "Avro's promotion of long to float loses precision"
)]
fn promote(value: Datum<'_>, promotion: Promotion) -> Option<Datum<'_>> {
    Some(match (value, promotion) {
        (Datum::Int(value), Promotion::Long) => Datum::Long(i64::from(value)),
        (Datum::Int(value), Promotion::Float) => Datum::Float(value as f32),
        (Datum::Long(value), Promotion::Float) => Datum::Float(value as f32),
        (Datum::Int(value), Promotion::Double) => Datum::Double(f64::from(value)),
        (Datum::Long(value), Promotion::Double) => Datum::Double(value as f64),
        (Datum::Float(value), Promotion::Double) => Datum::Double(f64::from(value)),
        (Datum::Str(text), Promotion::Bytes) => Datum::Bytes(text.as_bytes()),
        (Datum::Bytes(bytes), Promotion::Str) => Datum::Str(std::str::from_utf8(bytes).ok()?),
        (other, _) => other,
    })
}
