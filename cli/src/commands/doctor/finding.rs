//! Result of a check.

use crate::connectors_client::Level;
use serde::Serialize;

/// Result of one check.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: &'static str,
    /// Whether it is not a problem; a warning is none.
    pub ok: bool,
    /// How serious it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What helps: a command, a statement, or a description.
    pub fix: String,
    /// The command of the fix, if it contains exactly one: of several, the operator has to choose.
    pub command: Option<String>,
}

/// A check that found what is expected.
pub fn good(check: &'static str, found: impl Into<String>) -> Finding {
    new(check, Level::Ok, found, "")
}

/// A state that is intended, temporary, or not a problem yet.
pub fn warning(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    new(check, Level::Warn, found, fix)
}

/// A problem.
pub fn bad(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    new(check, Level::Bad, found, fix)
}

/// A finding of any level.
pub fn new(check: &'static str, level: Level, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    let fix = fix.into();
    Finding {
        check,
        ok: level < Level::Bad,
        level,
        found: found.into(),
        command: command_of(&fix),
        fix,
    }
}

/// Commands that resolve or show a state. Others start processes.
const COMMANDS: [&str; 6] = ["connect", "dlq", "lag", "offsets", "state", "topics"];

/// The only command in a text: text between backticks, or a last part that begins with `trunkline`.
fn command_of(fix: &str) -> Option<String> {
    let quoted = fix.split('`').skip(1).step_by(2);
    let unquoted = fix.split('`').step_by(2).filter_map(|text| {
        let begin = text.find("trunkline ")?;
        let is_word = text
            .get(..begin)
            .is_none_or(|before| before.is_empty() || before.ends_with(' '));
        text.get(begin..).filter(|_| is_word)
    });
    let is_command = |text: &&str| {
        let mut words = text.split_whitespace();
        words.next() == Some("trunkline") && words.next().is_some_and(|word| COMMANDS.contains(&word))
    };
    let mut commands = quoted.chain(unquoted).filter(is_command);
    match (commands.next(), commands.next()) {
        (Some(only), None) => Some(only.trim().to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_of_a_fix_is_a_field() {
        let resync = "verify that this is the right database, then run `trunkline connect resync shop`; it takes a new \
                      snapshot";
        let reset = "to keep the state: `trunkline offsets accept app counts/0`; to set the offsets: `trunkline offsets restore \
                     app counts/0`";
        for (fix, command) in [
            (
                "trunkline connect snapshot shop orders",
                Some("trunkline connect snapshot shop orders"),
            ),
            (
                "ALTER PUBLICATION p ADD TABLE t; COMMIT; then trunkline connect resync shop",
                Some("trunkline connect resync shop"),
            ),
            (resync, Some("trunkline connect resync shop")),
            (reset, None),
            (
                "start `trunkline dev` or a node, or name a process with --admin URL",
                None,
            ),
            ("remove /var/lib/trunkline lag", None),
            ("", None),
        ] {
            let finding = bad("connectors", "it failed", fix);
            assert_eq!((finding.fix.as_str(), finding.command.as_deref()), (fix, command));
        }
    }
}
