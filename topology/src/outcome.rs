//! Result of a check.

use crate::checked::Topology;
use crate::problem::Report;

/// Result of a check.
#[derive(Debug)]
pub struct Outcome {
    /// The checked topology; `None` if the report has errors.
    pub topology: Option<Topology>,
    /// Errors and warnings.
    pub report: Report,
}

impl Outcome {
    /// The topology without its warnings.
    ///
    /// # Errors
    /// The report, if it has errors.
    pub fn into_result(self) -> Result<Topology, Report> {
        self.topology.ok_or(self.report)
    }
}
