//! Compiled conditions.

use super::error::ExprError;
use super::eval::{self, EvalError};
use super::types::RowType;
use super::{check, parse};
use schemas::codec::Datum;
use std::sync::Arc;

/// A compiled condition.
#[derive(Debug, Clone)]
pub struct Program {
    text: Arc<str>,
    node: Arc<eval::Node>,
    columns: Arc<[usize]>,
    paths: Arc<[Vec<usize>]>,
    warnings: Arc<[ExprError]>,
}

impl Program {
    /// Compiles a condition over rows of a type.
    ///
    /// # Errors
    /// All errors of the text, with positions.
    pub fn compile(text: &str, row: &RowType) -> Result<Self, Vec<ExprError>> {
        let tree = parse::parse(text)?;
        let checked = check::condition(text, &tree, row)?;
        Ok(Program {
            text: Arc::from(text),
            node: Arc::new(checked.node),
            columns: checked.columns.into(),
            paths: checked.paths.into(),
            warnings: checked.warnings.into(),
        })
    }

    /// Whether the condition is true for a row.
    ///
    /// The row contains the fields of the row type by index. Missing fields are null.
    ///
    /// # Errors
    /// Overflow, division by zero, or a string that cannot be converted, if the result depends on it.
    pub fn matches(&self, row: &[Datum<'_>]) -> Result<bool, EvalError> {
        self.node.truth(row).map_err(|fail| fail.in_text(&self.text))
    }

    /// The source text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The top-level columns that the condition reads, in ascending order.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// The paths that the condition reads, as indexes starting at the row.
    pub fn paths(&self) -> &[Vec<usize>] {
        &self.paths
    }

    /// Warnings about likely mistakes, such as the comparison of a column that is never null with null.
    pub fn warnings(&self) -> &[ExprError] {
        &self.warnings
    }
}

impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
