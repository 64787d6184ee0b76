//! Proof that entries of a publication were replaced at once, kept in the comment of the publication.
//!
//! A column list can be changed only by removing the table's entry and adding another one. If both happen in one
//! transaction, no change is lost. The catalog does not show that, so the transaction writes it into the comment, where it
//! also survives the end of the process.

use std::collections::{BTreeMap, BTreeSet};

/// Precedes the proof in the comment. Text before it is kept.
const MARK: &str = "replaced by Trunkline: ";
/// Maximum number of entries that are remembered.
const ENTRIES_MAX: usize = 1_000;

/// Entries and the entry that has replaced each of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replacements {
    text: String,
    by: BTreeMap<String, String>,
}

impl Replacements {
    /// Reads a comment.
    pub(super) fn parse(comment: &str) -> Self {
        match comment.split_once(MARK) {
            Some((text, json)) => Replacements {
                text: text.to_owned(),
                by: serde_json::from_str(json).unwrap_or_default(),
            },
            None => Replacements {
                text: comment.to_owned(),
                by: BTreeMap::new(),
            },
        }
    }

    /// The comment.
    pub(super) fn comment(&self) -> String {
        let json = serde_json::to_string(&self.by).expect("strings always serialize");
        let space = if self.text.is_empty() || self.text.ends_with([' ', '\n']) {
            ""
        } else {
            "\n"
        };
        format!("{}{space}{MARK}{json}", self.text)
    }

    /// Records that the entries `old` were replaced by `new`.
    pub(super) fn record(&mut self, old: &BTreeSet<String>, new: &str) {
        for by in self.by.values_mut().filter(|by| old.contains(*by)) {
            new.clone_into(by);
        }
        for old in old {
            self.by.insert(old.clone(), new.to_owned());
        }
    }

    /// Forgets what leads to other entries than these.
    pub(super) fn keep(&mut self, present: &BTreeSet<String>) {
        self.by.retain(|_, by| present.contains(by));
        while self.by.len() > ENTRIES_MAX {
            self.by.pop_first();
        }
    }

    /// Whether one of the present entries is one of those before, or has replaced it.
    pub(super) fn connect(&self, before: &BTreeSet<String>, present: &BTreeSet<String>) -> bool {
        let is_present =
            |entry: &String| present.contains(entry) || self.by.get(entry).is_some_and(|by| present.contains(by));
        before.iter().any(is_present)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(entries: &[&str]) -> BTreeSet<String> {
        entries.iter().map(|entry| (*entry).to_owned()).collect()
    }

    #[test]
    fn replaced_entries_lead_to_the_present_one() {
        let mut found = Replacements::parse("of the shop");
        found.record(&set(&["table 1"]), "table 2");
        found.record(&set(&["table 2"]), "table 3");
        found.record(&set(&["table 7"]), "table 8");
        let mut found = Replacements::parse(&found.comment());
        assert!(found.comment().starts_with("of the shop\nreplaced by Trunkline: {"));
        assert_eq!(Replacements::parse(&found.comment()), found);
        for before in ["table 1", "table 2", "table 3"] {
            assert!(found.connect(&set(&[before]), &set(&["table 3"])), "{before}");
        }
        // Somebody removed the table and added it again.
        assert!(!found.connect(&set(&["table 1"]), &set(&["table 4"])));
        found.keep(&set(&["table 3", "table 9"]));
        assert!(!found.connect(&set(&["table 7"]), &set(&["table 8"])));
        assert!(found.connect(&set(&["table 1"]), &set(&["table 3"])));
    }
}
