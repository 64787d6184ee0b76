//! Problems of a topology, and reports of them.
//!
//! A problem has a position (file, line, column), a message and a fix. Reports list problems in the order of the file. The
//! rendered text does not depend on the terminal or the machine.

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource};
use serde::Serialize;
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Severity of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The topology cannot run.
    Error,
    /// The topology can run, but probably not as intended.
    Warning,
}

/// A file of a topology: 0 is the topology file, the others are schema files.
pub(crate) type FileId = usize;

/// A byte range in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: FileId,
    pub(crate) span: Range<usize>,
}

/// One problem.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    severity: Severity,
    message: String,
    place: Place,
    label: String,
    help: String,
    also: Option<(Range<usize>, String)>,
}

impl Problem {
    /// An error in the topology file.
    pub(crate) fn error(span: Range<usize>, message: impl Into<String>) -> Self {
        Problem {
            severity: Severity::Error,
            message: message.into(),
            place: Place { file: 0, span },
            label: String::from("here"),
            help: String::new(),
            also: None,
        }
    }

    /// A warning in the topology file.
    pub(crate) fn warning(span: Range<usize>, message: impl Into<String>) -> Self {
        Problem {
            severity: Severity::Warning,
            ..Problem::error(span, message)
        }
    }

    /// Sets the label at the position.
    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Sets the fix.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    /// Adds a second position in the same file, such as a first declaration.
    pub(crate) fn also(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.also = Some((span, label.into()));
        self
    }

    /// Moves the problem into another file.
    pub(crate) fn in_file(mut self, file: FileId) -> Self {
        self.place.file = file;
        self
    }
}

/// Collects problems while a topology is read and checked.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    found: RefCell<Vec<Problem>>,
}

impl Problems {
    /// Adds a problem.
    pub(crate) fn add(&self, problem: Problem) {
        self.found.borrow_mut().push(problem);
    }

    /// The number of errors so far.
    pub(crate) fn errors(&self) -> usize {
        self.found
            .borrow()
            .iter()
            .filter(|p| p.severity == Severity::Error)
            .count()
    }

    /// The report, in the order of the files.
    pub(crate) fn into_report(self, files: Vec<SourceFile>) -> Report {
        let mut problems = self.found.into_inner();
        problems.sort_by_key(|p| (p.place.file, p.place.span.start, p.severity));
        Report { files, problems }
    }
}

/// A file that was read: its name for messages, and its text.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    pub(crate) name: String,
    pub(crate) text: Arc<str>,
}

/// The problems of a topology.
#[derive(Debug, Clone, Default)]
pub struct Report {
    files: Vec<SourceFile>,
    problems: Vec<Problem>,
}

/// A problem for `--output json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Error or warning.
    pub severity: Severity,
    /// File name.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// Message.
    pub message: String,
    /// The fix.
    pub help: String,
}

impl Report {
    /// Whether there are errors.
    pub fn has_errors(&self) -> bool {
        self.errors() > 0
    }

    /// Number of errors.
    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    /// Number of warnings.
    pub fn warnings(&self) -> usize {
        self.count(Severity::Warning)
    }

    fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|p| p.severity == severity).count()
    }

    /// The problems for `--output json`.
    pub fn findings(&self) -> Vec<Finding> {
        self.problems.iter().map(|p| self.finding(p)).collect()
    }

    fn finding(&self, problem: &Problem) -> Finding {
        let (file, line, column) = match self.files.get(problem.place.file) {
            Some(file) => {
                let (line, column) = line_and_column(&file.text, problem.place.span.start);
                (file.name.clone(), line, column)
            }
            None => (String::new(), 1, 1),
        };
        Finding {
            severity: problem.severity,
            file,
            line,
            column,
            message: problem.message.clone(),
            help: problem.help.clone(),
        }
    }

    /// The report as text: each problem with its source line and fix, then a summary. `color` adds ANSI colors.
    pub fn render(&self, color: bool) -> String {
        let theme = if color {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::unicode_nocolor()
        };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_width(110)
            .with_links(false);
        let mut out = String::new();
        for problem in &self.problems {
            let report = self.diagnostic(problem);
            if handler.render_report(&mut out, report.as_ref()).is_err() {
                out.push_str(&problem.message);
            }
            out.push('\n');
        }
        out.push_str(&self.to_string());
        out.push('\n');
        out
    }

    fn diagnostic(&self, problem: &Problem) -> miette::Report {
        let mut labels = vec![LabeledSpan::new_primary_with_span(
            Some(problem.label.clone()),
            (problem.place.span.start, problem.place.span.len()),
        )];
        if let Some((span, label)) = &problem.also {
            labels.push(LabeledSpan::new_with_span(
                Some(label.clone()),
                (span.start, span.len()),
            ));
        }
        let mut diagnostic = MietteDiagnostic::new(problem.message.clone())
            .with_severity(match problem.severity {
                Severity::Error => miette::Severity::Error,
                Severity::Warning => miette::Severity::Warning,
            })
            .and_labels(labels);
        if !problem.help.is_empty() {
            diagnostic = diagnostic.with_help(problem.help.clone());
        }
        let report = miette::Report::new(diagnostic);
        match self.files.get(problem.place.file) {
            Some(file) => report.with_source_code(NamedSource::new(&file.name, Arc::clone(&file.text))),
            None => report,
        }
    }
}

impl fmt::Display for Report {
    /// The topology file and the number of problems.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.files.first().map_or("topology", |file| file.name.as_str());
        let counted = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        match (self.errors(), self.warnings()) {
            (0, 0) => write!(f, "{name}: no problems"),
            (0, w) => write!(f, "{name}: {}", counted(w, "warning")),
            (e, 0) => write!(f, "{name}: {}", counted(e, "error")),
            (e, w) => write!(f, "{name}: {}, {}", counted(e, "error"), counted(w, "warning")),
        }
    }
}

impl std::error::Error for Report {}

/// Line and column of a byte offset, starting at 1.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let column = before.get(line_start..).map_or(0, |line| line.chars().count());
    (before.matches('\n').count() + 1, column + 1)
}
