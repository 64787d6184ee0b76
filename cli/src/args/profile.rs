//! Subcommands of `trunkline profile`.

use clap::{Args, Subcommand};

/// Subcommands of `trunkline profile`.
#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    /// List the profiles.
    List,
    /// Show a profile. Secrets are not printed.
    Show(ProfileShow),
    /// Choose the profile that commands use if no option and no variable chooses a log.
    Use(ProfileUse),
}

/// `trunkline profile show`.
#[derive(Debug, Args)]
pub struct ProfileShow {
    /// Name. Default: the profile in use.
    pub name: Option<String>,
}

/// `trunkline profile use`.
#[derive(Debug, Args)]
pub struct ProfileUse {
    /// Name.
    #[arg(required_unless_present = "none")]
    pub name: Option<String>,
    /// Use no profile.
    #[arg(long, conflicts_with = "name")]
    pub none: bool,
}
