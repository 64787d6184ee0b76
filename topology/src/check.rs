//! The offline check of a whole topology: all errors at once, each with its place, reason and fix.
//!
//! Guarantees: a topology comes out only if nothing in it is wrong; a part that is wrong is reported once, not again
//! by what refers to it. A function of the texts alone.
//! Never: connects to anything; reads a file but through [`Files`].

mod buckets;
mod inputs;
mod memberships;
mod nodes;
mod processors;
mod rules;
mod views;

use crate::checked::Topology;
use crate::expr::RowType;
use crate::model::{At, Declared, inside};
use crate::names;
use crate::problem::{FileId, Problem, Problems, SourceFile};
use crate::template::Template;
use crate::{Files, Outcome};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Most partitions of `view.log`: a cursor holds a position for each.
pub const VIEW_LOG_PARTITIONS_MAX: i64 = 128;
/// Default partitions of `view.log`.
pub const VIEW_LOG_PARTITIONS: i32 = 16;
/// Default partitions of an event's topic.
pub const EVENT_PARTITIONS: i32 = 12;
/// Most partitions of an event's topic.
pub const EVENT_PARTITIONS_MAX: i64 = 1024;

/// Checks the text of a topology file.
pub(crate) fn check(name: &str, text: &str, files: &dyn Files) -> Outcome {
    let check = Check {
        text,
        files,
        problems: Problems::default(),
        read: RefCell::new(vec![SourceFile {
            name: String::from(name),
            text: Arc::from(text),
        }]),
    };
    let declared = Declared::parse(text, &check.problems);
    let topology = check.topology(&declared);
    let topology = topology.filter(|_| check.problems.errors() == 0);
    Outcome {
        topology,
        report: check.problems.into_report(check.read.into_inner()),
    }
}

/// What is being checked, and what was found.
struct Check<'c> {
    text: &'c str,
    files: &'c dyn Files,
    problems: Problems,
    read: RefCell<Vec<SourceFile>>,
}

/// An input that views can name, as far as it is known.
struct KnownInput {
    /// `shop.orders` or `event:order_viewed`.
    from: String,
    input: crate::checked::Input,
    row: RowType,
    /// The key's columns, if they are known.
    key: Option<Vec<usize>>,
    /// Whether the columns are known; if not, that was reported, and what refers to them is not looked at.
    complete: bool,
    /// What its records mean.
    meaning: Meaning,
    /// Partitions of its topic.
    partitions: i32,
}

/// What the records of an input mean to a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Rows by key, put and deleted.
    Rows,
    /// Each record stands for itself.
    Events,
    /// A window's row, put again and again while it is open.
    Windows,
}

impl Check<'_> {
    fn topology(&self, declared: &Declared) -> Option<Topology> {
        if let Some(name) = &declared.name {
            self.name(name, "topology");
        }
        let mut known = Vec::new();
        let mut sources = self.connectors(&declared.connectors);
        self.tables(&declared.tables, &declared.connectors, &mut sources, &mut known);
        let events = self.events(&declared.events, &mut known);
        let processors = self.processors(&declared.processors, &mut known);
        let buckets = self.buckets(&declared.buckets);
        let views = self.views(&declared.views, &known, &buckets);
        let issuers = self.issuers(&declared.issuers);
        let memberships = self.memberships(declared, &buckets, &known);
        self.unused_buckets(&buckets, &declared.views, &declared.memberships);
        let nodes = self.nodes(&declared.nodes, declared);
        let view_log_partitions = self.partitions(
            declared.view_log.partitions.as_ref(),
            "view.log",
            VIEW_LOG_PARTITIONS_MAX,
            VIEW_LOG_PARTITIONS,
        );
        if self.problems.errors() > 0 {
            return None;
        }
        let mut topology = Topology {
            name: declared.name.as_ref()?.value.clone(),
            sources,
            events,
            processors,
            buckets: buckets.into_iter().filter_map(|known| known.bucket).collect(),
            views,
            memberships,
            issuers,
            nodes,
            view_log_partitions,
            rules_version: 0,
        };
        rules::set_versions(&mut topology);
        Some(topology)
    }

    fn add(&self, problem: Problem) {
        self.problems.add(problem);
    }

    /// Reports a name that is not allowed.
    fn name(&self, name: &At<String>, what: &str) {
        if let Some(fix) = names::rejected(name) {
            self.add(
                Problem::error(
                    name.span.clone(),
                    format!("{what} name `{}` is not allowed", name.value),
                )
                .help(fix),
            );
        }
    }

    /// Reports names that were given before.
    fn unique<'n>(&self, names: impl IntoIterator<Item = &'n At<String>>, what: &str) {
        let mut seen: HashMap<&str, Range<usize>> = HashMap::new();
        for name in names {
            match seen.get(name.value.as_str()) {
                Some(first) => self.add(
                    Problem::error(name.span.clone(), format!("{what} `{}` is declared twice", name.value))
                        .label("declared again here")
                        .also(first.clone(), "first declared here")
                        .help("rename one of them, or remove it"),
                ),
                None => {
                    seen.insert(&name.value, name.span.clone());
                }
            }
        }
    }

    /// Reports a name that is not known.
    fn unknown<'n>(&self, name: &At<String>, what: &str, known: impl IntoIterator<Item = &'n str> + Clone, none: &str) {
        let problem = Problem::error(name.span.clone(), format!("there is no {what} `{}`", name.value));
        self.add(problem.help(names::known(name, known, none)));
    }

    /// Parses a template; reports it and gives `None` if it is none.
    fn template(&self, text: &At<String>) -> Option<Template> {
        match Template::parse(text) {
            Ok(template) => Some(template),
            Err(error) => {
                let span = self.inside(text, &error.span);
                self.add(Problem::error(span, format!("`{}`: {}", text.value, error.message)).help(error.help));
                None
            }
        }
    }

    /// The place in the file of a part of a string.
    fn inside(&self, text: &At<String>, part: &Range<usize>) -> Range<usize> {
        inside(self.text, &text.span, part)
    }

    fn partitions(&self, partitions: Option<&At<i64>>, topic: &str, max: i64, default: i32) -> i32 {
        let Some(partitions) = partitions else { return default };
        if partitions.value < 1 || partitions.value > max {
            let message = format!(
                "{topic} cannot have {} partitions; the limit is {max}",
                partitions.value
            );
            self.add(
                Problem::error(partitions.span.clone(), message)
                    .help(format!("set `partitions` to a number from 1 to {max}")),
            );
        }
        i32::try_from(partitions.value).unwrap_or(default)
    }

    /// Reads a file that the topology names.
    fn read(&self, path: &At<String>) -> Option<(FileId, Arc<str>)> {
        match self.files.read(path) {
            Ok(text) => {
                let text: Arc<str> = Arc::from(text);
                let mut read = self.read.borrow_mut();
                read.push(SourceFile {
                    name: path.value.clone(),
                    text: Arc::clone(&text),
                });
                Some((read.len() - 1, text))
            }
            Err(error) => {
                let message = format!("cannot read the schema `{}`: {error}", path.value);
                let help = "create the file (paths are relative to the topology file), or replace `schema` with `fields = { … }`";
                self.add(Problem::error(path.span.clone(), message).help(help));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
