//! Type rules of operators and functions. There are no implicit conversions; an error shows the conversion that must be
//! written.

use super::facts::Facts;
use super::{Checker, Typed, json_field};
use crate::expr::eval::{Arith, Compare, Convert, Node, TextTest};
use crate::expr::parse::{Ast, Kind};
use crate::expr::types::Type;
use crate::expr::value::Value;
use crate::names;
use regex::RegexBuilder;
use std::ops::Range;

/// The functions and their usage.
const FUNCTIONS: [&str; 11] = [
    "startsWith",
    "endsWith",
    "contains",
    "matches",
    "size",
    "has",
    "int",
    "double",
    "string",
    "timestamp",
    "duration",
];
/// Size limit of a compiled regular expression, in bytes.
const REGEX_BYTES_MAX: usize = 256 * 1024;

fn typed(ty: Type, node: Node, span: Range<usize>) -> Typed {
    Typed {
        ty,
        nullable: false,
        node,
        span,
        declared: None,
    }
}

/// The function that converts a string to a number for use with `other`.
fn number_of(other: &Type) -> Type {
    match other {
        Type::Decimal => Type::Double,
        other => other.clone(),
    }
}

/// The text of a literal. A date is completed to a timestamp.
fn instant_of(written: &str) -> String {
    let date = written
        .get(1..11)
        .filter(|date| written.len() == 12 && date.bytes().filter(|b| *b == b'-').count() == 2);
    date.map_or_else(|| String::from(written), |date| format!("\"{date}T00:00:00Z\""))
}

/// The place at which a call is checked.
struct CallSite<'f> {
    /// Which columns are known not to be null at this place.
    facts: &'f Facts,
    /// Byte range of the call.
    span: Range<usize>,
}

impl Arith {
    fn sign(self) -> char {
        match self {
            Arith::Add => '+',
            Arith::Sub => '-',
            Arith::Mul => '*',
            Arith::Div => '/',
            Arith::Rem => '%',
        }
    }
}

impl Checker<'_> {
    /// Checks an operator or a function call.
    pub(super) fn call(&mut self, ast: &Ast, facts: &Facts) -> Option<Typed> {
        let Kind::Call { function, method, args } = &ast.kind else {
            unreachable!("only calls are passed");
        };
        let method = *method;
        let site = CallSite {
            facts,
            span: ast.span.clone(),
        };
        match (function.as_str(), args.as_slice()) {
            ("_&&_", [a, b]) => self.logic(a, b, true, site),
            ("_||_", [a, b]) => self.logic(a, b, false, site),
            ("!_", [a]) => {
                let a = self.check(a, facts)?;
                let node = self.truth(a, "the operand of `!`")?;
                Some(typed(Type::Bool, Node::Not(Box::new(node)), site.span))
            }
            ("_?_:_", [condition, yes, no]) => self.choice(condition, yes, no, site),
            ("_==_", [a, b]) => self.equality(Compare::Eq, a, b, site),
            ("_!=_", [a, b]) => self.equality(Compare::Ne, a, b, site),
            ("_<_", [a, b]) => self.ordering(Compare::Lt, a, b, site),
            ("_<=_", [a, b]) => self.ordering(Compare::Le, a, b, site),
            ("_>_", [a, b]) => self.ordering(Compare::Gt, a, b, site),
            ("_>=_", [a, b]) => self.ordering(Compare::Ge, a, b, site),
            ("@in", [value, list]) => self.membership(value, list, site),
            ("_+_", [a, b]) => self.arithmetic(Arith::Add, a, b, site),
            ("_-_", [a, b]) => self.arithmetic(Arith::Sub, a, b, site),
            ("_*_", [a, b]) => self.arithmetic(Arith::Mul, a, b, site),
            ("_/_", [a, b]) => self.arithmetic(Arith::Div, a, b, site),
            ("_%_", [a, b]) => self.arithmetic(Arith::Rem, a, b, site),
            ("-_", [a]) => self.negation(a, site),
            (
                "_[_]",
                [
                    of,
                    Ast {
                        kind: Kind::Text(name), ..
                    },
                ],
            ) if self.is_row(of) => self.column(ast, name, facts),
            (
                "_[_]",
                [
                    of,
                    Ast {
                        kind: Kind::Text(name), ..
                    },
                ],
            ) => {
                let of = self.check(of, facts)?;
                if of.ty == Type::Json {
                    return Some(json_field(of, name, site.span));
                }
                self.cannot_index(site.span)
            }
            ("_[_]", _) => self.cannot_index(site.span),
            ("startsWith", [a, b]) if method => self.text_test(TextTest::StartsWith, a, b, site),
            ("endsWith", [a, b]) if method => self.text_test(TextTest::EndsWith, a, b, site),
            ("contains", [a, b]) if method => self.text_test(TextTest::Contains, a, b, site),
            ("matches", [a, b]) => self.regex(a, b, site),
            ("size", [a]) => self.size(a, site),
            ("int", [a]) if !method => self.convert(Convert::Int, Type::Int, a, site),
            ("double", [a]) if !method => self.convert(Convert::Double, Type::Double, a, site),
            ("string", [a]) if !method => self.convert(Convert::Text, Type::Text, a, site),
            ("timestamp", [a]) if !method => self.convert(Convert::Timestamp, Type::Timestamp, a, site),
            ("duration", [a]) if !method => self.convert(Convert::Duration, Type::Duration, a, site),
            _ => self.unknown_function(function, site.span),
        }
    }

    fn cannot_index(&mut self, span: Range<usize>) -> Option<Typed> {
        let help = "to read a column, write `row[\"name\"]`; to read a field of a JSON document, write `doc[\"name\"]`";
        self.error(span, "indexing is only supported for names of fields", help);
        None
    }

    fn unknown_function(&mut self, function: &str, span: Range<usize>) -> Option<Typed> {
        let (message, help) = match function {
            "now" | "today" | "currentTimestamp" => (
                String::from("the current time is not available in conditions"),
                String::from(
                    "a condition depends on the row only; compare columns with each other, or with `timestamp(\"2026-01-31T10:00:00Z\")`",
                ),
            ),
            "startsWith" | "endsWith" | "contains" => (
                format!("`{function}` is a method of strings, not a function"),
                format!("write `name.{function}(\"…\")`"),
            ),
            known if FUNCTIONS.contains(&known) => {
                let usage = if known == "has" {
                    "has(row.name)".to_string()
                } else {
                    format!("{known}(value)")
                };
                (format!("`{known}` takes one argument"), format!("write `{usage}`"))
            }
            other => (
                format!("there is no function `{other}`"),
                names::known(other, FUNCTIONS, ""),
            ),
        };
        self.error(span, message, help);
        None
    }

    /// Checks `&&` and `||`. The right operand is checked with the facts that hold if the left operand did not decide
    /// the result.
    fn logic(&mut self, a: &Ast, b: &Ast, and: bool, site: CallSite<'_>) -> Option<Typed> {
        let CallSite { facts, span } = site;
        let left = self
            .check(a, facts)
            .and_then(|left| self.truth(left, "the left operand"));
        let known = facts.and(a, and, self.row);
        let right = self
            .check(b, &known)
            .and_then(|right| self.truth(right, "the right operand"));
        let (left, right) = (Box::new(left?), Box::new(right?));
        Some(typed(
            Type::Bool,
            if and {
                Node::And(left, right)
            } else {
                Node::Or(left, right)
            },
            span,
        ))
    }

    fn choice(&mut self, condition: &Ast, yes: &Ast, no: &Ast, site: CallSite<'_>) -> Option<Typed> {
        let CallSite { facts, span } = site;
        let node = self
            .check(condition, facts)
            .and_then(|c| self.truth(c, "the condition before `?`"));
        let (if_true, if_false) = (
            facts.and(condition, true, self.row),
            facts.and(condition, false, self.row),
        );
        let (yes, no) = (self.check(yes, &if_true), self.check(no, &if_false));
        let (node, yes, no) = (node?, yes?, no?);
        if yes.ty != no.ty && yes.ty != Type::Null && no.ty != Type::Null {
            let message = format!(
                "the branches of `?:` have different types: {}, {}",
                self.describe(&yes),
                self.describe(&no)
            );
            self.error(
                span,
                message,
                "convert one of them with int(), double(), string() or timestamp()",
            );
            return None;
        }
        let ty = if yes.ty == Type::Null {
            no.ty.clone()
        } else {
            yes.ty.clone()
        };
        let nullable = yes.nullable || no.nullable;
        let node = Node::If(Box::new(node), Box::new(yes.node), Box::new(no.node));
        Some(Typed {
            ty,
            nullable,
            node,
            span,
            declared: None,
        })
    }

    fn equality(&mut self, compare: Compare, a: &Ast, b: &Ast, site: CallSite<'_>) -> Option<Typed> {
        let CallSite { facts, span } = site;
        let (a, b) = (self.check(a, facts), self.check(b, facts));
        let (a, b) = (a?, b?);
        if !a.ty.comparable(&b.ty) {
            self.incomparable(&a, &b, span);
            return None;
        }
        for (value, null) in [(&a, &b), (&b, &a)] {
            if null.ty == Type::Null && !value.nullable {
                let (written, answer) = (self.written(&value.span), compare == Compare::Ne);
                let message = format!("`{written}` is never null, so this is always {answer}");
                self.warn(
                    span.clone(),
                    message,
                    "remove the comparison, or append `?` to the column's type if it is nullable",
                );
            }
        }
        self.fold(typed(
            Type::Bool,
            Node::Compare(compare, Box::new(a.node), Box::new(b.node)),
            span,
        ))
    }

    fn ordering(&mut self, compare: Compare, a: &Ast, b: &Ast, site: CallSite<'_>) -> Option<Typed> {
        let CallSite { facts, span } = site;
        let (a, b) = (self.check(a, facts), self.check(b, facts));
        let (a, b) = (
            self.present(a?, "null has no order"),
            self.present(b?, "null has no order"),
        );
        let (a, b) = (a?, b?);
        if !a.ty.comparable(&b.ty) {
            self.incomparable(&a, &b, span);
            return None;
        }
        self.fold(typed(
            Type::Bool,
            Node::Compare(compare, Box::new(a.node), Box::new(b.node)),
            span,
        ))
    }

    /// Reports two types that cannot be compared, with the conversion to write.
    fn incomparable(&mut self, a: &Typed, b: &Typed, span: Range<usize>) {
        let message = format!("cannot compare: {} and {}", self.describe(a), self.describe(b));
        let (text, other) = if a.ty == Type::Text { (a, b) } else { (b, a) };
        let (text_written, other_written) = (self.written(&text.span), self.written(&other.span));
        let is_literal = matches!(text.node, Node::Const(_));
        let help = match (&text.ty, &other.ty) {
            (Type::Text, ty) if ty.is_number() => match &text.node {
                Node::Const(Value::Text(value)) if value.parse::<f64>().is_ok() => {
                    format!("remove the quotes: `{value}`")
                }
                _ => format!("convert the string: `{}({text_written})`", number_of(ty)),
            },
            (Type::Text, Type::Timestamp) if is_literal => {
                format!("convert it: `timestamp({})`", instant_of(text_written))
            }
            (Type::Text, Type::Duration) if is_literal => format!("write `duration({text_written})`"),
            (Type::Text, Type::Bool) => format!("write `{other_written} == true` or `{other_written} == false`"),
            (Type::Text, Type::Timestamp) => format!("convert the string: `timestamp({text_written})`"),
            (_, Type::Row(_) | Type::List(_) | Type::Opaque(_))
            | (Type::Row(_) | Type::List(_) | Type::Opaque(_), _) => {
                String::from("only `== null` and `!= null` are supported for it")
            }
            _ => String::from("compare values of the same type; convert with int(), double(), string() or timestamp()"),
        };
        self.error(span, message, help);
    }

    fn membership(&mut self, value: &Ast, list: &Ast, site: CallSite<'_>) -> Option<Typed> {
        let CallSite { facts, span } = site;
        let value = self.check(value, facts);
        let Kind::List(elements) = &list.kind else {
            return self.in_column(value, list, CallSite { facts, span });
        };
        let checked: Vec<Option<Typed>> = elements.iter().map(|element| self.check(element, facts)).collect();
        let value = value?;
        if elements.is_empty() {
            self.warn(
                span.clone(),
                "`in` with an empty list is always false",
                "add at least one value to the list",
            );
        }
        let mut nodes = Vec::with_capacity(checked.len());
        for element in checked {
            let element = element?;
            if !value.ty.comparable(&element.ty) {
                self.incomparable(&value, &element, element.span.clone());
                return None;
            }
            nodes.push(element.node);
        }
        let value = Box::new(value.node);
        if nodes.iter().all(|node| matches!(node, Node::Const(_))) {
            let constants = nodes.into_iter().filter_map(|node| match node {
                Node::Const(value) => Some(value),
                _ => None,
            });
            return Some(typed(Type::Bool, Node::InSet(value, constants.collect()), span));
        }
        Some(typed(Type::Bool, Node::InList(value, nodes), span))
    }

    fn in_column(&mut self, value: Option<Typed>, list: &Ast, site: CallSite<'_>) -> Option<Typed> {
        let CallSite { facts, span } = site;
        let list = self.check(list, facts)?;
        let list = self.present(list, "null cannot be searched")?;
        let value = value?;
        if list.ty == Type::Json && value.ty.comparable(&Type::Json) {
            let node = Node::InColumn(Box::new(value.node), Box::new(list.node));
            return Some(typed(Type::Bool, node, span));
        }
        let Type::List(element) = &list.ty else {
            let message = format!("{}, not a list", self.describe(&list));
            self.error(
                list.span,
                message,
                "the right operand of `in` must be a list: `status in [\"open\", \"paid\"]`",
            );
            return None;
        };
        if !value.ty.comparable(&element.ty) {
            let message = format!("{}, but the list holds {}", self.describe(&value), element.ty);
            self.error(span, message, "search for a value of the list's item type");
            return None;
        }
        Some(typed(
            Type::Bool,
            Node::InColumn(Box::new(value.node), Box::new(list.node)),
            span,
        ))
    }

    fn arithmetic(&mut self, op: Arith, a: &Ast, b: &Ast, site: CallSite<'_>) -> Option<Typed> {
        let CallSite { facts, span } = site;
        let (a, b) = (self.check(a, facts), self.check(b, facts));
        let why = "null cannot be used in arithmetic";
        let (a, b) = (self.present(a?, why), self.present(b?, why));
        let (a, b) = (a?, b?);
        let ty = match (&a.ty, op, &b.ty) {
            (Type::Int, _, Type::Int) => Some(Type::Int),
            (Type::Double, Arith::Add | Arith::Sub | Arith::Mul | Arith::Div, Type::Double) => Some(Type::Double),
            (Type::Text, Arith::Add, Type::Text) => Some(Type::Text),
            (Type::Timestamp, Arith::Sub, Type::Timestamp) => Some(Type::Duration),
            (Type::Timestamp, Arith::Add | Arith::Sub, Type::Duration) => Some(Type::Timestamp),
            (Type::Duration, Arith::Add, Type::Timestamp) => Some(Type::Timestamp),
            (Type::Duration, Arith::Add | Arith::Sub, Type::Duration) => Some(Type::Duration),
            _ => None,
        };
        let Some(ty) = ty else {
            let message = format!(
                "`{}` does not support these operands: {}, {}",
                op.sign(),
                self.describe(&a),
                self.describe(&b)
            );
            let help = match (&a.ty, &b.ty) {
                (Type::Decimal, _) => format!("convert one operand: `double({})`", self.written(&a.span)),
                (_, Type::Decimal) => format!("convert one operand: `double({})`", self.written(&b.span)),
                (Type::Int, Type::Double) => format!("convert one operand: `double({})`", self.written(&a.span)),
                (Type::Double, Type::Int) => format!("convert one operand: `double({})`", self.written(&b.span)),
                (Type::Text, ty) if ty.is_number() => {
                    format!("convert one operand: `{}({})`", number_of(ty), self.written(&a.span))
                }
                (ty, Type::Text) if ty.is_number() => {
                    format!("convert one operand: `{}({})`", number_of(ty), self.written(&b.span))
                }
                (Type::Double, Type::Double) => String::from("`%` requires integers; convert with int()"),
                _ => String::from(
                    "supported are two integers, two doubles, two strings (`+`), and timestamps with durations",
                ),
            };
            self.error(span, message, help);
            return None;
        };
        let node = Node::Arith(op, Box::new(a.node), Box::new(b.node), span.clone());
        self.fold(typed(ty, node, span))
    }

    fn negation(&mut self, a: &Ast, site: CallSite<'_>) -> Option<Typed> {
        let CallSite { facts, span } = site;
        let a = self.check(a, facts)?;
        let a = self.present(a, "null cannot be used in arithmetic")?;
        if !matches!(a.ty, Type::Int | Type::Double) {
            let message = format!("unary `-` requires a number; {}", self.describe(&a));
            self.error(span, message, "convert it with int() or double()");
            return None;
        }
        self.fold(typed(a.ty.clone(), Node::Negate(Box::new(a.node), span.clone()), span))
    }

    /// Checks an operand that must be a string.
    fn text(&mut self, ast: &Ast, facts: &Facts) -> Option<Typed> {
        let a = self.check(ast, facts)?;
        let a = self.present(a, "string methods do not accept null")?;
        if !matches!(a.ty, Type::Text | Type::Json) {
            let message = format!("string methods require a string; {}", self.describe(&a));
            self.error(
                a.span.clone(),
                message,
                format!("convert it: `string({})`", self.written(&a.span)),
            );
            return None;
        }
        Some(a)
    }

    fn text_test(&mut self, test: TextTest, a: &Ast, b: &Ast, site: CallSite<'_>) -> Option<Typed> {
        let CallSite { facts, span } = site;
        let (a, b) = (self.text(a, facts), self.text(b, facts));
        let node = Node::Text(test, Box::new(a?.node), Box::new(b?.node));
        self.fold(typed(Type::Bool, node, span))
    }

    fn regex(&mut self, a: &Ast, pattern: &Ast, site: CallSite<'_>) -> Option<Typed> {
        let CallSite { facts, span } = site;
        let a = self.text(a, facts);
        let Kind::Text(text) = &pattern.kind else {
            let help = "write the pattern as a string literal: `name.matches(\"^[A-Z]+$\")`";
            self.error(pattern.span.clone(), "the pattern of `matches` must be a literal", help);
            return None;
        };
        match RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build() {
            Ok(regex) => Some(typed(Type::Bool, Node::Matches(Box::new(a?.node), regex), span)),
            Err(error) => {
                let reason = error.to_string();
                let reason = reason
                    .lines()
                    .last()
                    .unwrap_or("")
                    .trim_start_matches("error: ")
                    .to_string();
                let help = format!("{reason}; in \"…\" write a backslash twice, or use r\"…\"");
                self.error(pattern.span.clone(), "invalid regular expression", help);
                None
            }
        }
    }

    fn size(&mut self, a: &Ast, site: CallSite<'_>) -> Option<Typed> {
        let CallSite { facts, span } = site;
        let a = self.check(a, facts)?;
        let a = self.present(a, "null has no size")?;
        if !matches!(a.ty, Type::Text | Type::Bytes | Type::List(_)) {
            let message = format!("size() is not defined here: {}", self.describe(&a));
            self.error(
                a.span,
                message,
                "size() accepts strings (counted in characters), bytes and lists",
            );
            return None;
        }
        self.fold(typed(Type::Int, Node::Size(Box::new(a.node)), span))
    }

    fn convert(&mut self, to: Convert, ty: Type, a: &Ast, site: CallSite<'_>) -> Option<Typed> {
        let CallSite { facts, span } = site;
        let a = self.check(a, facts)?;
        let a = self.present(a, "null cannot be converted")?;
        let from: &[Type] = match to {
            Convert::Int => &[Type::Int, Type::Double, Type::Decimal, Type::Text, Type::Timestamp],
            Convert::Double => &[Type::Double, Type::Int, Type::Decimal, Type::Text],
            Convert::Text => &[Type::Text, Type::Int, Type::Decimal, Type::Bool, Type::Timestamp],
            Convert::Timestamp => &[Type::Timestamp, Type::Text, Type::Int],
            Convert::Duration => &[Type::Duration, Type::Text],
        };
        if !from.contains(&a.ty) {
            let message = format!("cannot convert to {ty}: {}", self.describe(&a));
            let list = from.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
            self.error(a.span, message, format!("{ty}() accepts: {list}"));
            return None;
        }
        self.fold(typed(ty, Node::Convert(to, Box::new(a.node), span.clone()), span))
    }
}

impl Node {
    /// Whether all operands are literals, so that the node can be evaluated at compile time.
    pub(super) fn is_constant(&self) -> bool {
        let literal = |node: &Node| matches!(node, Node::Const(_));
        match self {
            Node::Compare(_, a, b) | Node::Arith(_, a, b, _) | Node::Text(_, a, b) => literal(a) && literal(b),
            Node::Negate(a, _) | Node::Size(a) | Node::Convert(_, a, _) => literal(a),
            _ => false,
        }
    }
}
