//! `trunkline completions` and `trunkline man`: files for shells, generated from the definition of the command line.

use crate::args::Cli;
use crate::print;
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::path::Path;

/// Prints the completion script of a shell.
pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "trunkline", &mut script);
    print::bytes(&script)
}

/// Writes the manual page of each command to a directory.
pub fn manual_pages(dir: &Path) -> Result<()> {
    let cannot = || format!("cannot write manual pages to {}", dir.display());
    std::fs::create_dir_all(dir).with_context(cannot)?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        manual_pages(dir.path()).unwrap();
        for page in [
            "trunkline.1",
            "trunkline-dlq-redrive.1",
            "trunkline-profile-use.1",
            "trunkline-topics-tail.1",
        ] {
            let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
            assert!(text.contains(".SH NAME"), "{page}");
        }
    }

    #[test]
    fn definition_of_the_command_line_is_valid() {
        Cli::command().debug_assert();
    }
}
