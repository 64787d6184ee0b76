//! What all checks share: the topology file, access to schema files, and the problems that were found.

use crate::checked::Topology;
use crate::files::Files;
use crate::model::{At, inside};
use crate::names;
use crate::outcome::Outcome;
use crate::problem::{FileId, Problem, Problems, SourceFile};
use crate::template::Template;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Shared by all checks.
pub(super) struct Context<'c> {
    text: &'c str,
    files: &'c dyn Files,
    problems: Problems,
    /// The topology file and the schema files that were read, by [`FileId`].
    sources: RefCell<Vec<SourceFile>>,
}

impl<'c> Context<'c> {
    pub(super) fn new(name: &str, text: &'c str, files: &'c dyn Files) -> Self {
        Context {
            text,
            files,
            problems: Problems::default(),
            sources: RefCell::new(vec![SourceFile {
                name: String::from(name),
                text: Arc::from(text),
            }]),
        }
    }

    pub(super) fn problems(&self) -> &Problems {
        &self.problems
    }

    /// Number of errors so far.
    pub(super) fn errors(&self) -> usize {
        self.problems.errors()
    }

    /// The outcome, without a topology if there are errors.
    pub(super) fn finish(self, topology: Option<Topology>) -> Outcome {
        let topology = topology.filter(|_| self.problems.errors() == 0);
        Outcome {
            topology,
            report: self.problems.into_report(self.sources.into_inner()),
        }
    }

    /// The text of the topology file in a span.
    pub(super) fn source_text(&self, span: &Range<usize>) -> &'c str {
        self.text.get(span.clone()).unwrap_or_default()
    }

    pub(super) fn add(&self, problem: Problem) {
        self.problems.add(problem);
    }

    /// Reports an invalid name.
    pub(super) fn name(&self, name: &At<String>, what: &str) {
        if let Some(fix) = names::rejected(name) {
            self.add(Problem::error(name.span.clone(), format!("{what} name `{}` is invalid", name.value)).help(fix));
        }
    }

    /// Reports duplicate names.
    pub(super) fn unique<'n>(&self, names: impl IntoIterator<Item = &'n At<String>>, what: &str) {
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

    /// Reports an unknown name, together with the most similar known name. `none` is the fix if no name is known.
    pub(super) fn unknown<'n>(
        &self,
        name: &At<String>,
        what: &str,
        known: impl IntoIterator<Item = &'n str> + Clone,
        none: &str,
    ) {
        let problem = Problem::error(name.span.clone(), format!("there is no {what} `{}`", name.value));
        self.add(problem.help(names::known(name, known, none)));
    }

    /// Parses a template. Reports an error if it is invalid.
    pub(super) fn template(&self, text: &At<String>) -> Option<Template> {
        match Template::parse(text) {
            Ok(template) => Some(template),
            Err(error) => {
                let span = self.inside(text, &error.span);
                self.add(Problem::error(span, format!("`{}`: {}", text.value, error.message)).help(error.help));
                None
            }
        }
    }

    /// Position in the file of a part of a string.
    pub(super) fn inside(&self, text: &At<String>, part: &Range<usize>) -> Range<usize> {
        inside(self.text, &text.span, part)
    }

    pub(super) fn partitions(&self, partitions: Option<&At<i64>>, what: &str, max: i64, default: i32) -> i32 {
        let Some(partitions) = partitions else { return default };
        if partitions.value < 1 || partitions.value > max {
            let message = format!("{what} cannot have {} partitions; the limit is {max}", partitions.value);
            self.add(
                Problem::error(partitions.span.clone(), message)
                    .help(format!("set `partitions` to a number from 1 to {max}")),
            );
        }
        i32::try_from(partitions.value).unwrap_or(default)
    }

    /// Reads a schema file that is named in the topology.
    pub(super) fn read(&self, path: &At<String>) -> Option<(FileId, Arc<str>)> {
        match self.files.read(path) {
            Ok(text) => {
                let text: Arc<str> = Arc::from(text);
                let mut read = self.sources.borrow_mut();
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
