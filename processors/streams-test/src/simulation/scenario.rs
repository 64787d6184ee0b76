//! What a simulation runs: an application, its environment, and the expected result.

use super::{Broker, Layout, ProcessLog, Rng};
use streams::{Application, Config};

/// An application, its environment, and the expected result.
pub trait Scenario {
    /// What a process needs to build the application; it is sent to the process's thread.
    type Program: Clone + Send + 'static;

    /// The topics.
    fn layout(&self) -> Layout;

    /// The program of a process that starts.
    fn program(&self) -> Self::Program;

    /// Builds the application in a process that starts.
    fn application(program: &Self::Program, log: &ProcessLog, config: &mut Config) -> Application;

    /// Changes the probabilities of faults.
    fn adjust(&mut self, _: &mut FaultRates) {}

    /// Performs one step of the environment, such as a write to an input topic. Called after each step of the
    /// processes.
    ///
    /// # Errors
    /// A violated invariant.
    fn step(&mut self, environment: &mut Environment<'_>) -> Result<(), String>;

    /// Whether the environment has nothing left to do. Called when the application has processed all input.
    fn is_idle(&mut self, _: &mut Broker) -> bool {
        true
    }

    /// Checks the result of the run.
    ///
    /// # Errors
    /// A violated invariant.
    fn verify(&mut self, broker: &mut Broker, rng: &mut Rng) -> Result<(), String>;
}

/// The parts of the simulation that a step of the environment may use.
pub struct Environment<'a> {
    /// The broker.
    pub broker: &'a mut Broker,
    /// The source of random choices.
    pub rng: &'a mut Rng,
    /// Whether the faults have ended, so that the application must become idle.
    pub draining: bool,
}

/// Probabilities of faults per step.
#[derive(Debug, Clone, Copy)]
pub struct FaultRates {
    /// Probability that a process is killed between two calls of the log.
    pub kill: f64,
    /// Probability that a process stops responding and resumes later.
    pub pause: f64,
    /// Probability that a second process starts with the name of a running process.
    pub respawn: f64,
    /// Probability that the clock jumps.
    pub jump: f64,
    /// The group rebalances.
    pub rebalance: f64,
    /// Probability that the commit or abort of a transaction is never applied to the group, as can happen when a single
    /// broker restarts. A recovery then takes as long as four transaction timeouts.
    pub forget: f64,
    /// Probability that an input or a changelog cannot be read for a while.
    pub unreadable: f64,
    /// Probability that a killed process finds its disk empty, in addition to a probability of 0.1 that always applies.
    pub wipe: f64,
}
