//! Null analysis: determines which columns cannot be null at a place in an expression, because of the conditions around
//! it.
//!
//! The analysis is conservative: where it cannot derive a fact, the checker requires an explicit guard.

use crate::expr::parse::{Ast, Kind};
use crate::expr::types::{RowType, Type};

/// A column, or a field of a nested record, as indexes starting at the row.
pub(super) type Path = Vec<usize>;

/// The columns and fields that are known not to be null.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    present: Vec<Path>,
}

impl Facts {
    /// Whether the column or field is known not to be null.
    pub(super) fn holds(&self, path: &[usize]) -> bool {
        self.present.iter().any(|known| known == path)
    }

    /// These facts, and those that follow from `condition == truth`.
    pub(super) fn and(&self, condition: &Ast, truth: bool, row: &RowType) -> Facts {
        let mut present = self.present.clone();
        learn(condition, truth, row, &mut present);
        Facts { present }
    }
}

fn learn(ast: &Ast, truth: bool, row: &RowType, out: &mut Vec<Path>) {
    match &ast.kind {
        Kind::Has { .. } if truth => out.extend(path(ast, row)),
        Kind::Call { function, args, .. } => match (function.as_str(), args.as_slice()) {
            ("!_", [a]) => learn(a, !truth, row, out),
            ("_&&_", [a, b]) | ("_||_", [a, b]) => {
                if truth == (function == "_&&_") {
                    learn(a, truth, row, out);
                    learn(b, truth, row, out);
                } else {
                    // Either operand may have decided the result, so only facts that follow from both are known.
                    let (mut left, mut right) = (Vec::new(), Vec::new());
                    learn(a, truth, row, &mut left);
                    learn(b, truth, row, &mut right);
                    out.extend(left.into_iter().filter(|path| right.contains(path)));
                }
            }
            ("_==_", [a, b]) => learn_equal(a, b, truth, row, out),
            ("_!=_", [a, b]) => learn_equal(a, b, !truth, row, out),
            ("@in", [value, list]) if truth => {
                if let Kind::List(elements) = &list.kind
                    && elements.iter().all(|element| never_null(element, row))
                {
                    out.extend(path(value, row));
                }
            }
            _ => {}
        },
        _ => {}
    }
}

fn learn_equal(a: &Ast, b: &Ast, equal: bool, row: &RowType, out: &mut Vec<Path>) {
    for (this, other) in [(a, b), (b, a)] {
        let known = if equal {
            never_null(other, row)
        } else {
            other.kind == Kind::Null
        };
        if known {
            out.extend(path(this, row));
        }
    }
}

/// Whether the value of an expression cannot be null because of its kind.
fn never_null(ast: &Ast, row: &RowType) -> bool {
    match &ast.kind {
        Kind::Bool(_) | Kind::Int(_) | Kind::Double(_) | Kind::Text(_) | Kind::Bytes(_) => true,
        _ => match path(ast, row).as_deref() {
            Some([column]) => row.fields.get(*column).is_some_and(|field| !field.nullable),
            _ => false,
        },
    }
}

/// Whether a node is the name `row` and no column has this name.
pub(super) fn is_row(ast: &Ast, row: &RowType) -> bool {
    matches!(&ast.kind, Kind::Name(name) if name == "row") && row.fields.iter().all(|field| field.name != "row")
}

/// The path of a column or field; `None` if the expression is neither.
pub(super) fn path(ast: &Ast, row: &RowType) -> Option<Path> {
    let column = |name: &str| {
        row.fields
            .iter()
            .position(|field| field.name == name)
            .map(|at| vec![at])
    };
    match &ast.kind {
        Kind::Name(name) => column(name),
        Kind::Field { of, name } | Kind::Has { of, name } if is_row(of, row) => column(name),
        Kind::Field { of, name } | Kind::Has { of, name } => {
            let mut path = path(of, row)?;
            let mut record = row;
            for at in &path {
                let Type::Row(inner) = &record.fields.get(*at)?.ty else {
                    return None;
                };
                record = inner;
            }
            path.push(record.fields.iter().position(|field| field.name == *name)?);
            Some(path)
        }
        Kind::Call { function, args, .. } => match (function.as_str(), args.as_slice()) {
            (
                "_[_]",
                [
                    of,
                    Ast {
                        kind: Kind::Text(name), ..
                    },
                ],
            ) if is_row(of, row) => column(name),
            _ => None,
        },
        _ => None,
    }
}
