//! Parses expressions with the `cel` crate and converts its tree to [`Ast`].
//!
//! Every node has its byte range in the text. Language features that conditions do not support become
//! [`Kind::Unsupported`] with an alternative. No text causes a panic.

use super::error::ExprError;
use cel::common::ast::{Expr, IdedExpr, LiteralValue, SourceInfo};
use cel::parser::Parser;
use std::ops::Range;

/// Maximum length of an expression, in bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// Maximum nesting of parentheses, lists and calls.
const DEPTH_MAX: u16 = 32;
/// Maximum number of operators. A chain of n operators becomes a tree of depth n, and recursion over the tree must not
/// overflow the stack.
const OPERATORS_MAX: usize = 400;

/// A node of the syntax tree.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ast {
    pub(super) span: Range<usize>,
    pub(super) kind: Kind,
}

/// The kind of a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// A name: a column, or `row`.
    Name(String),
    /// `of.name`
    Field {
        of: Box<Ast>,
        name: String,
    },
    /// `has(of.name)`
    Has {
        of: Box<Ast>,
        name: String,
    },
    /// `[a, b]`
    List(Vec<Ast>),
    /// An operator or function; for a method, the receiver is the first argument.
    Call {
        function: String,
        method: bool,
        args: Vec<Ast>,
    },
    /// An unsupported feature, and what to write instead.
    Unsupported {
        what: &'static str,
        instead: &'static str,
    },
}

/// Parses an expression.
pub(super) fn parse(text: &str) -> Result<Ast, Vec<ExprError>> {
    if text.trim().is_empty() {
        let help = "write an expression such as `status != \"draft\"`, or remove the key";
        return Err(vec![ExprError::new(0..text.len(), "the expression is empty", help)]);
    }
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the expression is longer than {TEXT_BYTES_MAX} bytes");
        return Err(vec![ExprError::new(
            0..text.len(),
            message,
            "shorten the expression, or publish its result as a column",
        )]);
    }
    let operators = text.bytes().filter(|byte| b"+-*/%<>=!&|?.".contains(byte)).count();
    if operators > OPERATORS_MAX {
        let message = format!("the expression has more than {OPERATORS_MAX} operators");
        return Err(vec![ExprError::new(
            0..text.len(),
            message,
            "use `in` with a list, or publish the result as a column",
        )]);
    }
    // The depth is checked before parsing, because the parser's own check returns incomplete trees.
    if let Some(at) = too_deep(text) {
        let message = format!("brackets are nested more than {DEPTH_MAX} levels deep");
        return Err(vec![ExprError::new(
            at..at + 1,
            message,
            "split the condition with `&&` and `||`",
        )]);
    }
    let parser = Parser::new().max_recursion_depth(DEPTH_MAX * 3);
    let (tree, source) = parser
        .parse_with_source_info(text)
        .map_err(|errors| syntax_errors(text, &errors))?;
    let places = Places {
        text,
        source: &source,
        bytes: char_offsets(text),
    };
    Ok(places.convert(&tree))
}

/// Position of the first bracket that is nested too deeply. Brackets in strings count too, which is acceptable.
fn too_deep(text: &str) -> Option<usize> {
    let mut depth = 0u16;
    text.bytes().position(|byte| {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > DEPTH_MAX
    })
}

/// The first syntax error; later errors are usually its consequences.
fn syntax_errors(text: &str, errors: &cel::ParseErrors) -> Vec<ExprError> {
    let Some(error) = errors.errors.first() else {
        return vec![ExprError::new(
            0..text.len(),
            "cannot parse the expression",
            "an expression looks like `status != \"draft\" && total > 0`",
        )];
    };
    let start = offset_of(text, error.pos.0, error.pos.1);
    let end = text
        .get(start..)
        .and_then(|rest| rest.chars().next())
        .map_or(start, |c| start + c.len_utf8());
    let (message, help) = explain(text, start, &error.msg);
    vec![ExprError::new(start..end, message, help)]
}

/// Message and fix for a syntax error of the parser.
fn explain(text: &str, start: usize, message: &str) -> (String, &'static str) {
    let here = text.get(start..).unwrap_or("");
    if message.contains("invalid argument to has()") {
        return (
            String::from("has() requires a field"),
            "to test a column, compare it with null: `note != null`",
        );
    }
    if here.starts_with(['"', '\'']) && message.contains("token recognition") {
        return (String::from("the string has no closing quote"), "add the closing quote");
    }
    if here.starts_with('=') {
        return (String::from("`=` is not an operator"), "write `==`");
    }
    if here.starts_with('&') || here.starts_with('|') {
        return (String::from("`&` and `|` are not operators"), "write `&&` or `||`");
    }
    if here.is_empty() {
        return (
            String::from("the expression is incomplete"),
            "complete it; an expression looks like `status != \"draft\"`",
        );
    }
    if message.contains("Recursion limit") {
        return (
            String::from("the expression is nested too deeply"),
            "split the condition with `&&` and `||`",
        );
    }
    let word: String = here.chars().take_while(|c| c.is_alphanumeric()).collect();
    match word.to_ascii_lowercase().as_str() {
        "and" => return (String::from("`and` is not an operator"), "write `&&`"),
        "or" => return (String::from("`or` is not an operator"), "write `||`"),
        "is" => return (String::from("`is` is not an operator"), "write `== null` or `!= null`"),
        "like" => {
            return (
                String::from("`like` is not an operator"),
                "write `name.startsWith(\"…\")` or `name.matches(\"…\")`",
            );
        }
        _ => {}
    }
    let message = message.trim_start_matches("Syntax error: ");
    (
        format!("cannot parse the expression: {message}"),
        "an expression looks like `status != \"draft\" && total > 0`",
    )
}

/// Byte offset of a line and column, which start at 1; the column is in characters.
fn offset_of(text: &str, line: isize, column: isize) -> usize {
    let skip = usize::try_from(line.saturating_sub(1)).unwrap_or_default();
    let line_start: usize = text.split_inclusive('\n').take(skip).map(str::len).sum();
    let column = usize::try_from(column.saturating_sub(1)).unwrap_or_default();
    let rest = text.get(line_start..).unwrap_or("");
    line_start + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at)
}

/// Byte offset of each character, and of the end.
fn char_offsets(text: &str) -> Vec<usize> {
    text.char_indices().map(|(at, _)| at).chain([text.len()]).collect()
}

struct Places<'t> {
    text: &'t str,
    source: &'t SourceInfo,
    bytes: Vec<usize>,
}

impl Places<'_> {
    /// Position of a node's token.
    fn token(&self, id: u64) -> Range<usize> {
        let Some((start, stop)) = self.source.offset_for(id) else {
            return 0..self.text.len();
        };
        let byte = |at: u32| usize::try_from(at).ok().and_then(|at| self.bytes.get(at)).copied();
        match (byte(start), byte(stop.saturating_add(1))) {
            (Some(start), Some(end)) if start <= end => start..end,
            _ => 0..self.text.len(),
        }
    }

    fn convert(&self, node: &IdedExpr) -> Ast {
        let token = self.token(node.id);
        let unsupported = |what, instead| Ast {
            span: token.clone(),
            kind: Kind::Unsupported { what, instead },
        };
        match &node.expr {
            Expr::Literal(literal) => Ast {
                span: token,
                kind: literal_kind(literal),
            },
            Expr::Ident(name) => Ast {
                span: token,
                kind: Kind::Name(name.trim_start_matches('.').to_string()),
            },
            Expr::Select(select) => self.select(token, select),
            Expr::List(list) => {
                let elements: Vec<Ast> = list.elements.iter().map(|e| self.convert(e)).collect();
                let span = self.closed(cover(token, &elements), ']');
                Ast {
                    span,
                    kind: Kind::List(elements),
                }
            }
            Expr::Call(call) => self.call(token, call),
            Expr::Comprehension(_) => unsupported("loops (all, exists, map, filter)", "use `value in list`"),
            Expr::Map(_) | Expr::Struct(_) => unsupported("maps and messages", "compare the columns individually"),
            Expr::Unspecified => unsupported("expressions of this kind", "write a condition over columns"),
        }
    }

    fn select(&self, token: Range<usize>, select: &cel::common::ast::SelectExpr) -> Ast {
        let of = Box::new(self.convert(&select.operand));
        let name = select.field.clone();
        if select.test {
            // The token of `has(a.b)` is its opening parenthesis.
            let before = self.text.get(..of.span.start).unwrap_or("");
            let start = before.rfind("has").unwrap_or(of.span.start);
            let dot = self.after(of.span.end, ".");
            let span = self.closed(start..dot + self.field_len(dot, &name), ')');
            return Ast {
                span,
                kind: Kind::Has { of, name },
            };
        }
        let end = token.end + self.field_len(token.end, &name);
        let span = of.span.start.min(token.start)..end.max(of.span.end);
        Ast {
            span,
            kind: Kind::Field { of, name },
        }
    }

    fn call(&self, token: Range<usize>, call: &cel::common::ast::CallExpr) -> Ast {
        let mut args: Vec<Ast> = call.target.iter().map(|target| self.convert(target)).collect();
        args.extend(call.args.iter().map(|arg| self.convert(arg)));
        let mut span = cover(token.clone(), &args);
        let named = call.func_name.starts_with(|c: char| c.is_alphabetic());
        if named {
            // The token of a call is its opening parenthesis; the name precedes it.
            let before = self.text.get(..token.start).unwrap_or("").trim_end();
            span.start = span.start.min(before.len().saturating_sub(call.func_name.len()));
            span = self.closed(span, ')');
        } else {
            span = self.balanced(span);
        }
        let function = call.func_name.trim_start_matches('.').to_string();
        Ast {
            span,
            kind: Kind::Call {
                function,
                method: call.target.is_some(),
                args,
            },
        }
    }

    /// Number of bytes from the end of the dot to the end of the field name.
    fn field_len(&self, after_dot: usize, field: &str) -> usize {
        let rest = self.text.get(after_dot..).unwrap_or("");
        let blank = rest.len() - rest.trim_start().len();
        if rest.trim_start().starts_with(field) {
            blank + field.len()
        } else {
            0
        }
    }

    /// The position after `sign` if it follows, else the given position.
    fn after(&self, at: usize, sign: &str) -> usize {
        let rest = self.text.get(at..).unwrap_or("");
        let blank = rest.len() - rest.trim_start().len();
        if rest.trim_start().starts_with(sign) {
            at + blank + sign.len()
        } else {
            at
        }
    }

    /// Extends a range by the closing bracket that follows it.
    fn closed(&self, span: Range<usize>, bracket: char) -> Range<usize> {
        let end = self.after(span.end, bracket.encode_utf8(&mut [0; 4]));
        span.start..end
    }

    /// Extends a range to include the parentheses around its first and last part, which are not part of any node.
    fn balanced(&self, mut span: Range<usize>) -> Range<usize> {
        let (mut open, mut unopened) = (0usize, 0usize);
        for byte in self.text.get(span.clone()).unwrap_or("").bytes() {
            match byte {
                b'(' => open += 1,
                b')' if open > 0 => open -= 1,
                b')' => unopened += 1,
                _ => {}
            }
        }
        for _ in 0..open {
            span.end = self.after(span.end, ")");
        }
        for _ in 0..unopened {
            let before = self.text.get(..span.start).unwrap_or("").trim_end();
            if before.ends_with('(') {
                span.start = before.len() - 1;
            }
        }
        span
    }
}

fn cover(token: Range<usize>, parts: &[Ast]) -> Range<usize> {
    parts.iter().fold(token, |all, part| {
        all.start.min(part.span.start)..all.end.max(part.span.end)
    })
}

fn literal_kind(literal: &LiteralValue) -> Kind {
    match literal {
        LiteralValue::Null => Kind::Null,
        LiteralValue::Boolean(b) => Kind::Bool(*b.inner()),
        LiteralValue::Int(i) => Kind::Int(*i.inner()),
        LiteralValue::Double(d) => Kind::Double(*d.inner()),
        LiteralValue::String(s) => Kind::Text(s.inner().to_string()),
        LiteralValue::Bytes(b) => Kind::Bytes(b.inner().to_vec()),
        LiteralValue::UInt(_) => Kind::Unsupported {
            what: "unsigned numbers",
            instead: "write the number without `u`",
        },
    }
}
