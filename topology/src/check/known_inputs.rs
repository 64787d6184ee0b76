//! Inputs that views, processors and memberships can name, and look-ups in them.

use super::context::Context;
use crate::checked::Input;
use crate::expr::RowType;
use crate::model::At;
use crate::names;
use crate::problem::Problem;

/// A declared input. Its declaration may contain errors.
pub(super) struct KnownInput {
    /// Its name in `from`, such as `shop.orders` or `event:order_viewed`.
    pub(super) from: String,
    pub(super) input: Input,
    pub(super) row: RowType,
    /// Key columns, if known.
    pub(super) key: Option<Vec<usize>>,
    /// Whether the columns are known. If not, an error was already reported, and references to columns are not checked.
    pub(super) complete: bool,
    pub(super) meaning: Meaning,
    /// Number of partitions of its topic.
    pub(super) partitions: i32,
}

/// How a processor interprets the records of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Changes of a table: rows are written and deleted by key.
    Rows,
    /// Independent events.
    Events,
    /// Updates of windows, which are put repeatedly while a window is open.
    Windows,
}

/// The input that `from` names.
pub(super) fn find_input<'k>(cx: &Context<'_>, from: &At<String>, known: &'k [KnownInput]) -> Option<&'k KnownInput> {
    if let Some(found) = known.iter().find(|input| input.from == from.value) {
        return Some(found);
    }
    if from.starts_with("topic:") {
        let problem = Problem::error(from.span.clone(), "views of a topic are not supported");
        let help = "use \"<source>.<table>\", \"event:<name>\" or \"processor:<name>\"";
        cx.add(problem.help(help));
        return None;
    }
    let message = format!("there is no input `{}`", from.value);
    let names = known.iter().map(|input| input.from.as_str());
    // The most frequent mistakes: the name of the source, or the prefix of an event type, is missing.
    let suffixed = known
        .iter()
        .find(|input| input.from.rsplit(['.', ':']).next() == Some(from.value.as_str()));
    let help = match suffixed {
        Some(input) => format!("did you mean `{}`?", input.from),
        None => names::known(
            from,
            names,
            "declare a [[table]] or an [[event]], then write `from = \"<source>.<table>\"`",
        ),
    };
    cx.add(Problem::error(from.span.clone(), message).help(help));
    None
}

pub(super) fn find_column(cx: &Context<'_>, name: &At<String>, from: &str, row: &RowType) -> Option<usize> {
    let found = row.fields.iter().position(|field| field.name == name.value);
    if found.is_none() {
        let names = row.fields.iter().map(|field| field.name.as_str());
        cx.unknown(
            name,
            &format!("column of `{from}` named"),
            names,
            "the input has no columns",
        );
    }
    found
}
