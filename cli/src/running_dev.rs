//! The file `dev.json`, in which a running `trunkline dev` publishes its addresses to other commands.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Addresses of a running `trunkline dev`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunningDev {
    /// URL of the admin listener.
    pub admin: String,
    /// URL of the edge listener.
    pub edge: String,
    /// URL of the ingest listener.
    pub ingest: String,
    /// Process id.
    pub pid: u32,
}

fn file(data: &Path) -> PathBuf {
    data.join("dev.json")
}

/// Writes the file to a data directory.
pub fn write(data: &Path, dev: &RunningDev) -> Result<()> {
    let file = file(data);
    std::fs::write(&file, serde_json::to_vec_pretty(dev)?).with_context(|| format!("cannot write {}", file.display()))
}

/// Reads the file of a data directory.
pub fn read(data: &Path) -> Result<RunningDev> {
    let file = file(data);
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!(
            "cannot read {}; start `trunkline dev` in this directory, or choose a log with --data or --kafka",
            file.display()
        )
    })?;
    serde_json::from_str(&text).with_context(|| format!("cannot parse {}", file.display()))
}
