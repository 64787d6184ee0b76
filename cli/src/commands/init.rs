//! `trunkline init`: generates a topology from the tables of a database.

use crate::args;
use anyhow::{Context, Result, bail};
use std::path::Path;
use topology::infer::{FoundColumn, FoundTable, LeftOut};

/// Reads the database and writes the file.
pub fn run(init: &args::Init) -> Result<()> {
    let to_stdout = init.file == Path::new("-");
    if !to_stdout && init.file.exists() {
        bail!(
            "{} already exists; choose another file with --file, or `-` for stdout",
            init.file.display()
        );
    }
    let found = connectors::discover::tables(&init.postgres).context("cannot read the tables of the database")?;
    let tables: Vec<FoundTable> = found
        .tables
        .into_iter()
        .map(|t| FoundTable {
            schema: t.schema,
            name: t.name,
            columns: t
                .columns
                .into_iter()
                .map(|c| FoundColumn {
                    name: c.name,
                    pg_type: c.type_name,
                    nullable: c.nullable,
                })
                .collect(),
            key: t.primary_key,
        })
        .collect();
    let left_out: Vec<LeftOut> = found
        .left_out
        .into_iter()
        .map(|(what, reason)| LeftOut { what, reason })
        .collect();
    let inferred = topology::infer::topology(&found.name, &tables, &left_out);
    for LeftOut { what, reason } in &inferred.left_out {
        eprintln!("Left out {what}: {reason}");
    }
    if to_stdout {
        return crate::print::line(inferred.text.trim_end());
    }
    std::fs::write(&init.file, inferred.text).with_context(|| format!("cannot write {}", init.file.display()))?;
    eprintln!(
        "Wrote {} with {} tables.\nNext: decide the lines marked DECIDE, then run `trunkline topology check {}`",
        init.file.display(),
        inferred.tables,
        init.file.display()
    );
    Ok(())
}
