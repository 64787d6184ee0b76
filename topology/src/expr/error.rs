//! Errors and warnings of the compilation of expressions.

use std::ops::Range;

/// An error or a warning of an expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExprError {
    /// Byte range in the text.
    pub span: Range<usize>,
    /// Message.
    pub message: String,
    /// Fix.
    pub help: String,
}

impl ExprError {
    pub(super) fn new(span: Range<usize>, message: impl Into<String>, help: impl Into<String>) -> Self {
        ExprError {
            span,
            message: message.into(),
            help: help.into(),
        }
    }
}
