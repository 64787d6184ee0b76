//! Checks the masks of tables.

use super::context::Context;
use crate::checked::{Mask, SourceKind};
use crate::model;
use crate::problem::Problem;
use schemas::pg_types::Column;
use std::collections::BTreeMap;

/// Checks the masks of a table. A masked column keeps its declared type, so a mask is possible only for types that have
/// the replacement as a value.
pub(super) fn check_masks(
    cx: &Context<'_>,
    table: &model::Table,
    kind: Option<SourceKind>,
    columns: &[Column],
) -> Option<BTreeMap<String, Mask>> {
    let mut masks = BTreeMap::new();
    let Some(declared) = &table.mask else {
        return Some(masks);
    };
    if kind == Some(SourceKind::Http) {
        let message = format!(
            "table `{}` belongs to an http source, which cannot mask columns",
            table.name.value
        );
        cx.add(Problem::error(declared.span.clone(), message).help("mask the values before they are posted"));
        return None;
    }
    cx.unique(declared.iter().map(|(name, _)| name), "masked column");
    let mut is_valid = true;
    for (name, mask) in declared.iter() {
        let Some(column) = columns.iter().find(|column| column.name == name.value) else {
            let names = columns.iter().map(|column| column.name.as_str());
            cx.unknown(
                name,
                "column",
                names,
                "a column that is not in `columns` is not published",
            );
            is_valid = false;
            continue;
        };
        let kind = match mask.as_str() {
            "null" => Mask::Null,
            "hash" => Mask::Hash,
            "partial" => Mask::Partial,
            _ => {
                cx.unknown(mask, "mask", ["null", "hash", "partial"], "");
                is_valid = false;
                continue;
            }
        };
        let misfit = misfit(kind, column, table);
        is_valid &= misfit.is_none();
        if let Some((message, help)) = misfit {
            cx.add(Problem::error(mask.span.clone(), message).help(help));
        }
        masks.insert(column.name.clone(), kind);
    }
    is_valid.then_some(masks)
}

/// Why a column cannot have a mask, and the fix.
fn misfit(mask: Mask, column: &Column, table: &model::Table) -> Option<(String, String)> {
    let name = &column.name;
    let key = table.key.iter().flat_map(|key| key.iter());
    if key.map(|key| &key.value).any(|key| key == name) {
        return Some((
            format!("column `{name}` is part of the key, which cannot be masked"),
            String::from("use another column as the key, such as an id without a meaning"),
        ));
    }
    match mask {
        Mask::Null if !column.nullable => Some((
            format!("column `{name}` is masked with null, but is declared as not null"),
            format!("write {name} = \"{}?\"", column.pg_type),
        )),
        Mask::Hash | Mask::Partial if column.pg_type != "text" => {
            let mark = if column.nullable { "?" } else { "" };
            Some((
                format!(
                    "the masked values of column `{name}` are texts, but it is declared as {}",
                    column.pg_type
                ),
                format!("write {name} = \"text{mark}\", whatever its type in the database is"),
            ))
        }
        _ => None,
    }
}
