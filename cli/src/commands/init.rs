//! `trunkline init`: a database's tables, written down as a topology to start from.

use crate::args;
use anyhow::{Context, Result, bail};
use std::path::Path;
use topology::infer::{FoundColumn, FoundTable};

/// Reads the database and writes the file.
pub fn run(init: &args::Init) -> Result<()> {
    let to_stdout = init.file == Path::new("-");
    if !to_stdout && init.file.exists() {
        bail!(
            "{} exists already; name another file with --file, or `-` for stdout",
            init.file.display()
        );
    }
    let found = connectors::discover::tables(&init.postgres).context("read the database")?;
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
    let text = topology::infer::topology(&found.name, &tables);
    if to_stdout {
        return crate::print::line(text.trim_end());
    }
    std::fs::write(&init.file, text).with_context(|| format!("write {}", init.file.display()))?;
    eprintln!(
        "wrote {} with {} tables; next: trunkline topology check {}",
        init.file.display(),
        tables.len(),
        init.file.display()
    );
    Ok(())
}
