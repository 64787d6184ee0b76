//! The type checker: converts the syntax tree to the compiled tree.
//!
//! An error is reported once: an expression that contains a part with an error is not reported too. When a compiled
//! tree is evaluated, no operand has an unexpected type or is unexpectedly null.

mod calls;
mod facts;

use super::error::ExprError;
use super::eval::Node;
use super::parse::{Ast, Kind};
use super::types::{Field, RowType, Type};
use super::value::Value;
use crate::names;
use facts::Facts;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

/// A compiled condition.
pub(super) struct Checked {
    pub(super) node: Node,
    pub(super) columns: Vec<usize>,
    pub(super) paths: Vec<Vec<usize>>,
    pub(super) warnings: Vec<ExprError>,
}

/// Checks a condition.
pub(super) fn condition(text: &str, tree: &Ast, row: &RowType) -> Result<Checked, Vec<ExprError>> {
    let mut checker = Checker::new(text, row);
    let checked = checker
        .check(tree, &Facts::default())
        .and_then(|typed| checker.truth(typed, "the condition"));
    if checker.columns.is_empty() && checker.errors.is_empty() {
        let message = "the condition does not use any column";
        checker.warn(
            tree.span.clone(),
            message,
            "its result is the same for every row; compare a column, or remove the condition",
        );
    }
    match checked {
        Some(node) if checker.errors.is_empty() => Ok(Checked {
            node,
            columns: checker.columns.into_iter().collect(),
            paths: checker.paths.into_iter().collect(),
            warnings: checker.warnings,
        }),
        _ => Err(checker.errors),
    }
}

/// A compiled scalar expression.
pub(super) struct CheckedValue {
    pub(super) node: Node,
    pub(super) ty: Type,
    pub(super) nullable: bool,
    pub(super) paths: Vec<Vec<usize>>,
    pub(super) warnings: Vec<ExprError>,
}

/// Checks a scalar expression.
pub(super) fn value(text: &str, tree: &Ast, row: &RowType) -> Result<CheckedValue, Vec<ExprError>> {
    let mut checker = Checker::new(text, row);
    match checker.check(tree, &Facts::default()) {
        Some(typed) if checker.errors.is_empty() => Ok(CheckedValue {
            node: typed.node,
            ty: typed.ty,
            nullable: typed.nullable,
            paths: checker.paths.into_iter().collect(),
            warnings: checker.warnings,
        }),
        _ => Err(checker.errors),
    }
}

/// If an expression consists only of a column, or of a field of nested records: its path, its field, and whether the
/// field or a record that contains it can be null.
pub(super) fn plain_path<'r>(tree: &Ast, row: &'r RowType) -> Option<(Vec<usize>, &'r Field, bool)> {
    if matches!(tree.kind, Kind::Has { .. }) {
        return None;
    }
    let path = facts::path(tree, row)?;
    let (first, rest) = path.split_first()?;
    let mut field = row.fields.get(*first)?;
    let mut nullable = field.nullable;
    for step in rest {
        let Type::Row(inner) = &field.ty else { return None };
        field = inner.fields.get(*step)?;
        nullable |= field.nullable;
    }
    Some((path, field, nullable))
}

/// A checked subexpression.
#[derive(Debug)]
struct Typed {
    ty: Type,
    nullable: bool,
    node: Node,
    span: Range<usize>,
    /// Declared type, if the expression is a column.
    declared: Option<String>,
}

struct Checker<'c> {
    text: &'c str,
    row: &'c RowType,
    errors: Vec<ExprError>,
    warnings: Vec<ExprError>,
    columns: BTreeSet<usize>,
    /// Like `columns`, with the path into nested records.
    paths: BTreeSet<Vec<usize>>,
}

impl<'c> Checker<'c> {
    fn new(text: &'c str, row: &'c RowType) -> Self {
        Checker {
            text,
            row,
            errors: Vec::new(),
            warnings: Vec::new(),
            columns: BTreeSet::new(),
            paths: BTreeSet::new(),
        }
    }

    fn error(&mut self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        self.errors.push(ExprError::new(span, message, help));
    }

    fn warn(&mut self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        self.warnings.push(ExprError::new(span, message, help));
    }

    fn written(&self, span: &Range<usize>) -> &'c str {
        self.text.get(span.clone()).unwrap_or("")
    }

    /// Checks a subexpression; reports errors.
    fn check(&mut self, ast: &Ast, facts: &Facts) -> Option<Typed> {
        let span = ast.span.clone();
        let literal = |ty, value| {
            Some(Typed {
                ty,
                nullable: false,
                node: Node::Const(value),
                span,
                declared: None,
            })
        };
        match &ast.kind {
            Kind::Null => {
                let node = Node::Const(Value::Null);
                Some(Typed {
                    ty: Type::Null,
                    nullable: true,
                    node,
                    span: ast.span.clone(),
                    declared: None,
                })
            }
            Kind::Bool(b) => literal(Type::Bool, Value::Bool(*b)),
            Kind::Int(i) => literal(Type::Int, Value::Int(*i)),
            Kind::Double(d) => literal(Type::Double, Value::Double(*d)),
            Kind::Text(text) => literal(Type::Text, Value::Text(Cow::Owned(text.clone()))),
            Kind::Bytes(bytes) => literal(Type::Bytes, Value::Bytes(Cow::Owned(bytes.clone()))),
            Kind::Name(name) => self.column(ast, name, facts),
            Kind::Field { of, name } => self.field(ast, of, name, facts),
            Kind::Has { of, name } => self.has(ast, of, name, facts),
            Kind::List(_) => {
                let help = "use the list as the right operand of `in`: `status in [\"open\", \"paid\"]`";
                self.error(
                    ast.span.clone(),
                    "a list is only allowed as the right operand of `in`",
                    help,
                );
                None
            }
            Kind::Call { .. } => self.call(ast, facts),
            Kind::Unsupported { what, instead } => {
                self.error(
                    ast.span.clone(),
                    format!("{what} are not supported in conditions"),
                    *instead,
                );
                None
            }
        }
    }

    /// A column by its name.
    fn column(&mut self, ast: &Ast, name: &str, facts: &Facts) -> Option<Typed> {
        let Some(at) = self.row.fields.iter().position(|field| field.name == name) else {
            let (message, help) = self.unknown(name);
            self.error(ast.span.clone(), message, help);
            return None;
        };
        self.columns.insert(at);
        self.paths.insert(vec![at]);
        let field = self.row.fields.get(at)?;
        let nullable = field.nullable && !facts.holds(&[at]);
        let node = whole(field, Node::Column(at, field.form));
        Some(typed_field(field, nullable, node, ast.span.clone()))
    }

    fn unknown(&self, name: &str) -> (String, String) {
        let help = match name.to_ascii_lowercase().as_str() {
            "row" => String::from("write `row.name` or `row[\"name\"]`"),
            "null" | "nil" | "none" => String::from("write `null`"),
            "true" | "false" => format!("write `{}`", name.to_ascii_lowercase()),
            "and" => String::from("write `&&`"),
            "or" => String::from("write `||`"),
            "not" => String::from("write `!`"),
            _ => {
                let columns = self.row.fields.iter().map(|field| field.name.as_str());
                match names::nearest(name, columns.clone()) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => {
                        let known = names::known(name, columns, "there are no columns");
                        format!("{known}; a string literal needs quotes: \"{name}\"")
                    }
                }
            }
        };
        (format!("there is no column `{name}`"), help)
    }

    /// `of.name`: a column of `row`, or a field of a nested record.
    fn field(&mut self, ast: &Ast, of: &Ast, name: &str, facts: &Facts) -> Option<Typed> {
        if self.is_row(of) {
            return self.column(ast, name, facts);
        }
        let record = self.check(of, facts)?;
        if record.ty == Type::Json {
            return Some(json_field(record, name, ast.span.clone()));
        }
        // An unknown field is reported first, because a guard would not help.
        let at = match &record.ty {
            Type::Row(row) => self.field_of(ast, of, row, name)?,
            _ => 0,
        };
        let record = self.present(record, "fields of null cannot be read")?;
        let Type::Row(row) = &record.ty else {
            let message = format!("{}, which has no fields", self.describe(&record));
            self.error(
                ast.span.clone(),
                message,
                "only nested records of events and JSON documents have fields",
            );
            return None;
        };
        let field = row.fields.get(at)?;
        let path = facts::path(ast, self.row);
        let known = path.as_ref().is_some_and(|path| facts.holds(path));
        self.paths.extend(path);
        let node = whole(field, Node::Field(Box::new(record.node), at, field.form));
        Some(typed_field(field, field.nullable && !known, node, ast.span.clone()))
    }

    /// The index of a field in a nested record, or in a side of a join.
    fn field_of(&mut self, ast: &Ast, of: &Ast, row: &RowType, name: &str) -> Option<usize> {
        let names = row.fields.iter().map(|field| field.name.as_str());
        let found = names.clone().position(|known| known == name);
        if found.is_none() {
            let message = format!("`{}` has no field `{name}`", self.written(&of.span));
            self.error(ast.span.clone(), message, names::known(name, names, "it has no fields"));
        }
        found
    }

    /// Whether a node is the name `row`, and no column has this name.
    fn is_row(&self, ast: &Ast) -> bool {
        facts::is_row(ast, self.row)
    }

    /// `has(of.name)`: whether the field is not null.
    fn has(&mut self, ast: &Ast, of: &Ast, name: &str, facts: &Facts) -> Option<Typed> {
        let field = self.field(ast, of, name, facts)?;
        if !field.nullable {
            let message = format!("`{}` is always true", self.written(&ast.span));
            self.warn(
                ast.span.clone(),
                message,
                "the field is never null; remove the condition",
            );
        }
        let null = Box::new(Node::Const(Value::Null));
        let node = Node::Compare(super::eval::Compare::Ne, Box::new(field.node), null);
        Some(Typed {
            ty: Type::Bool,
            nullable: false,
            node,
            span: ast.span.clone(),
            declared: None,
        })
    }

    /// The node of a subexpression that must be a bool.
    fn truth(&mut self, typed: Typed, what: &str) -> Option<Node> {
        if typed.ty != Type::Bool {
            let message = format!("{what} must be a bool; {}", self.describe(&typed));
            let written = self.written(&typed.span);
            let help = match typed.ty {
                Type::Text => format!("compare it: `{written} == \"…\"`"),
                Type::Int => format!("compare it: `{written} != 0`"),
                _ => String::from("compare it with a value"),
            };
            self.error(typed.span, message, help);
            return None;
        }
        if typed.nullable {
            let written = self.written(&typed.span);
            let help = format!("write `{written} == true`, which is false for null");
            self.error(typed.span.clone(), format!("`{written}` may be null"), help);
            return None;
        }
        Some(typed.node)
    }

    /// Returns a subexpression if it cannot be null; otherwise reports an error. `why` is the reason in the fix.
    fn present(&mut self, typed: Typed, why: &str) -> Option<Typed> {
        let written = self.written(&typed.span);
        if typed.ty == Type::Null {
            self.error(
                typed.span,
                "`null` cannot be used here",
                "use `null` only with `==` and `!=`",
            );
            return None;
        }
        // Operations on a value of a JSON document are false for every value of another type, also for null.
        if typed.nullable && typed.ty != Type::Json {
            let help = format!("{why}; add a guard: `{written} != null && …`");
            self.error(typed.span.clone(), format!("`{written}` may be null"), help);
            return None;
        }
        if let Type::Opaque(name) = typed.ty {
            let message = format!("`{written}` is {name}, whose value cannot be used in conditions");
            let help =
                "only `== null` and `!= null` are supported; publish the value that you need as a separate column";
            self.error(typed.span, message, help);
            return None;
        }
        Some(typed)
    }

    /// Describes a subexpression for messages: "`status` is a string (text)".
    fn describe(&self, typed: &Typed) -> String {
        let written = self.written(&typed.span);
        match &typed.declared {
            Some(declared) if *declared != typed.ty.to_string() => {
                format!("`{written}` is {} ({declared})", typed.ty.with_article())
            }
            _ => format!("`{written}` is {}", typed.ty.with_article()),
        }
    }

    /// Evaluates a node whose operands are literals. If the evaluation fails, the expression has an error.
    fn fold(&mut self, typed: Typed) -> Option<Typed> {
        if !typed.node.is_constant() {
            return Some(typed);
        }
        match typed.node.eval(&[]).map(into_static) {
            Ok(value) => Some(Typed {
                node: Node::Const(value),
                ..typed
            }),
            Err(error) => {
                let written = self.written(&typed.span);
                let help = match typed.ty {
                    Type::Timestamp => "write a timestamp such as \"2026-01-31T10:00:00Z\"",
                    Type::Duration => "write a duration such as \"36h\", \"1h30m\" or \"90s\"",
                    _ => "use operands whose result can be computed",
                };
                self.error(typed.span, format!("`{written}`: {}", error.kind), help);
                None
            }
        }
    }
}

/// The node of a field; of a JSON document, the node of its root.
fn whole(field: &Field, node: Node) -> Node {
    match field.ty {
        Type::Json => Node::JsonPath(Box::new(node), Vec::new()),
        _ => node,
    }
}

/// A field of a value in a JSON document.
fn json_field(of: Typed, name: &str, span: Range<usize>) -> Typed {
    let node = match of.node {
        Node::JsonPath(document, mut path) => {
            path.push(name.to_owned());
            Node::JsonPath(document, path)
        }
        other => other,
    };
    Typed {
        ty: Type::Json,
        nullable: true,
        node,
        span,
        declared: None,
    }
}

fn typed_field(field: &Field, nullable: bool, node: Node, span: Range<usize>) -> Typed {
    Typed {
        ty: field.ty.clone(),
        nullable,
        node,
        span,
        declared: Some(field.declared.clone()),
    }
}

fn into_static(value: Value<'_>) -> Value<'static> {
    match value {
        Value::Text(text) => Value::Text(Cow::Owned(text.into_owned())),
        Value::Bytes(bytes) => Value::Bytes(Cow::Owned(bytes.into_owned())),
        Value::Bool(b) => Value::Bool(b),
        Value::Int(i) => Value::Int(i),
        Value::Double(d) => Value::Double(d),
        Value::Timestamp(t) => Value::Timestamp(t),
        Value::Duration(d) => Value::Duration(d),
        // Constants are never columns.
        Value::Null
        | Value::Row(_)
        | Value::List(..)
        | Value::Decimal(_)
        | Value::JsonText(_)
        | Value::Json(_)
        | Value::Opaque => Value::Null,
    }
}

impl Type {
    pub(super) fn with_article(&self) -> String {
        match self {
            Type::Null => String::from("null"),
            Type::Bytes | Type::Opaque(_) => self.to_string(),
            Type::Int => String::from("an int"),
            other => format!("a {other}"),
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Type::Int | Type::Double | Type::Decimal)
    }

    /// Whether `==` and `in` can compare values of the two types.
    fn comparable(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Null, _) | (_, Type::Null) => true,
            (Type::List(_) | Type::Row(_) | Type::Opaque(_), _) => false,
            (Type::Json, other) | (other, Type::Json) => {
                other.is_number() || matches!(other, Type::Json | Type::Text | Type::Bool)
            }
            (a, b) => a == b || (a.is_number() && b.is_number()),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Double => "double",
            Type::Text => "string",
            Type::Bytes => "bytes",
            Type::Timestamp => "timestamp",
            Type::Duration => "duration",
            Type::List(_) => "list",
            Type::Row(_) => "record",
            Type::Decimal => "decimal",
            Type::Json => "JSON value",
            Type::Opaque(name) => name,
            Type::Null => "null",
        })
    }
}
