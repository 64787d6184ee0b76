//! Schema compatibility by Avro's resolution rules (Avro 1.11, "Schema Resolution"). All conflicts are reported, each with
//! its path and reason.

use crate::schema::{Enum, Kind, Name, Record, Schema, TypeId};
use std::collections::HashSet;
use std::fmt;

/// A reason why a reader cannot read the data of a writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incompatibility {
    /// Path of the conflict, such as `items[].price`; empty for the root.
    pub path: String,
    /// Description of the conflict.
    pub message: String,
}

impl fmt::Display for Incompatibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// Checks that data written with `writer` can be read with `reader`.
///
/// # Errors
/// All conflicts, in the order of the reader's fields.
pub fn compatible(reader: &Schema, writer: &Schema) -> Result<(), Vec<Incompatibility>> {
    let mut check = Check {
        reader,
        writer,
        assumed: HashSet::new(),
        found: Vec::new(),
    };
    check.types(reader.root(), writer.root(), "");
    if check.found.is_empty() {
        Ok(())
    } else {
        Err(check.found)
    }
}

struct Check<'s> {
    reader: &'s Schema,
    writer: &'s Schema,
    /// Pairs of types that are being compared or have been compared, because types can be recursive.
    assumed: HashSet<(TypeId, TypeId)>,
    found: Vec<Incompatibility>,
}

impl Check<'_> {
    fn conflict(&mut self, path: &str, message: String) {
        self.found.push(Incompatibility {
            path: path.to_owned(),
            message,
        });
    }

    fn types(&mut self, reader: TypeId, writer: TypeId, path: &str) {
        let from = match &self.writer.ty(writer).kind {
            Kind::Optional { .. } | Kind::Union(_) => self.writer.branches(writer),
            _ => return self.one_to_any(reader, writer, path),
        };
        // The writer may have used any branch, so each branch must be readable.
        for branch in from {
            self.one_to_any(reader, branch, path);
        }
    }

    fn one_to_any(&mut self, reader: TypeId, writer: TypeId, path: &str) {
        let to = match &self.reader.ty(reader).kind {
            Kind::Optional { .. } | Kind::Union(_) => self.reader.branches(reader),
            _ => return self.one_to_one(reader, writer, path),
        };
        let before = (self.assumed.clone(), self.found.len());
        let mut nearest: Option<Vec<Incompatibility>> = None;
        for branch in to {
            self.assumed.clone_from(&before.0);
            self.one_to_one(branch, writer, path);
            let conflicts = self.found.split_off(before.1);
            if conflicts.is_empty() {
                return;
            }
            // The conflicts with a branch of the same kind are more useful than the statement that no branch matches.
            let same_kind = self.reader.type_name(branch) == self.writer.type_name(writer);
            if same_kind && nearest.is_none() {
                nearest = Some(conflicts);
            }
        }
        match nearest {
            Some(conflicts) => self.found.extend(conflicts),
            None => {
                let message = format!(
                    "writer's {} is not a branch of reader's {}",
                    self.writer.describe(writer),
                    self.reader.describe(reader)
                );
                self.conflict(path, message);
            }
        }
    }

    fn one_to_one(&mut self, reader: TypeId, writer: TypeId, path: &str) {
        if !self.assumed.insert((reader, writer)) {
            return;
        }
        let (to, from) = (self.reader, self.writer);
        match (&to.ty(reader).kind, &from.ty(writer).kind) {
            (Kind::Record(reader), Kind::Record(writer)) => {
                self.names(&reader.name, &writer.name, path);
                self.records(reader, writer, path);
            }
            (Kind::Enum(reader), Kind::Enum(writer)) => {
                self.names(&reader.name, &writer.name, path);
                self.enums(reader, writer, path);
            }
            (Kind::Fixed(reader), Kind::Fixed(writer)) => {
                self.names(&reader.name, &writer.name, path);
                if reader.size != writer.size {
                    self.conflict(
                        path,
                        format!("writer's fixed has {} bytes, reader's {}", writer.size, reader.size),
                    );
                }
            }
            (Kind::Array(reader), Kind::Array(writer)) => self.types(*reader, *writer, &format!("{path}[]")),
            (Kind::Map(reader), Kind::Map(writer)) => self.types(*reader, *writer, &format!("{path}{{}}")),
            (to_kind, from_kind) if promotes(from_kind, to_kind) => {}
            _ => {
                let message = format!(
                    "writer's {} cannot be read as {}",
                    from.describe(writer),
                    to.describe(reader)
                );
                self.conflict(path, message);
            }
        }
    }

    fn names(&mut self, reader: &Name, writer: &Name, path: &str) {
        if !is_alias_of(reader, writer) {
            self.conflict(
                path,
                format!("writer's name is {}, reader's {}", writer.full, reader.full),
            );
        }
    }

    fn records(&mut self, reader: &Record, writer: &Record, path: &str) {
        for field in &reader.fields {
            let inner = if path.is_empty() {
                field.name.to_string()
            } else {
                format!("{path}.{}", field.name)
            };
            let names = std::iter::once(&field.name).chain(&field.aliases);
            let written = names
                .filter_map(|name| writer.position(name))
                .find_map(|at| writer.fields.get(at));
            match written {
                Some(written) => self.types(field.ty, written.ty, &inner),
                None if field.default.is_some() => {}
                None => {
                    let message = "the writer lacks this field and the reader has no default for it".to_owned();
                    self.conflict(&inner, message);
                }
            }
        }
    }

    fn enums(&mut self, reader: &Enum, writer: &Enum, path: &str) {
        if reader.default.is_some() {
            return;
        }
        let unknown: Vec<&str> = writer
            .symbols
            .iter()
            .filter(|s| !reader.symbols.contains(s))
            .map(|s| &**s)
            .collect();
        if !unknown.is_empty() {
            let message = format!("reader's enum lacks symbol {} and has no default", unknown.join(", "));
            self.conflict(path, message);
        }
    }
}

/// Whether a reader's type matches a writer's by its unqualified name or by an alias.
pub(crate) fn is_alias_of(reader: &Name, writer: &Name) -> bool {
    reader.short() == writer.short() || reader.aliases.contains(&writer.full)
}

/// Whether a reader promotes the writer's primitive type to its own.
pub(crate) fn promotes(from: &Kind, to: &Kind) -> bool {
    use Kind::{Boolean, Bytes, Double, Float, Int, Long, Null, String};
    matches!(
        (from, to),
        (Null, Null)
            | (Boolean, Boolean)
            | (Int, Int | Long | Float | Double)
            | (Long, Long | Float | Double)
            | (Float, Float | Double)
            | (Double, Double)
            | (Bytes | String, Bytes | String)
    )
}

/// Whether two types have the same encoding and meaning. Names of records are ignored.
pub(crate) fn same_shape(a: &Schema, a_id: TypeId, b: &Schema, b_id: TypeId) -> bool {
    shape(a, a_id, b, b_id, &mut HashSet::new())
}

fn shape(a: &Schema, a_id: TypeId, b: &Schema, b_id: TypeId, assumed: &mut HashSet<(TypeId, TypeId)>) -> bool {
    if !assumed.insert((a_id, b_id)) {
        return true;
    }
    let (left, right) = (a.ty(a_id), b.ty(b_id));
    // The same bytes can have different units, such as milliseconds and microseconds.
    if let (Some(l), Some(r)) = (left.logical, right.logical)
        && l != r
    {
        return false;
    }
    let mut same = |l: &TypeId, r: &TypeId| shape(a, *l, b, *r, assumed);
    match (&left.kind, &right.kind) {
        (Kind::Fixed(l), Kind::Fixed(r)) => l.size == r.size,
        (Kind::Enum(l), Kind::Enum(r)) => l.symbols == r.symbols,
        (Kind::Array(l), Kind::Array(r)) | (Kind::Map(l), Kind::Map(r)) => same(l, r),
        (
            Kind::Optional {
                inner: l,
                null_first: x,
                ..
            },
            Kind::Optional {
                inner: r,
                null_first: y,
                ..
            },
        ) => x == y && same(l, r),
        (Kind::Union(l), Kind::Union(r)) => l.len() == r.len() && l.iter().zip(r).all(|(l, r)| same(l, r)),
        (Kind::Record(l), Kind::Record(r)) => {
            l.fields.len() == r.fields.len()
                && l.fields
                    .iter()
                    .zip(&r.fields)
                    .all(|(l, r)| l.name == r.name && same(&l.ty, &r.ty))
        }
        (l, r) => {
            let bytes_and_string = matches!((l, r), (Kind::Bytes, Kind::String) | (Kind::String, Kind::Bytes));
            !bytes_and_string && std::mem::discriminant(l) == std::mem::discriminant(r)
        }
    }
}

#[cfg(test)]
mod tests;
