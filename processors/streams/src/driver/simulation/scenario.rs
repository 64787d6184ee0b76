//! What a simulation runs: an application, its environment, and the expected result.

use super::{Broker, Layout, ProcessLog, Rng};
use crate::{Application, Config};

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

    /// One step of the environment, such as a write to an input topic. Called after each step of the processes.
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

/// What a step of the environment can use.
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
    /// A process is killed between two calls of the log.
    pub kill: f64,
    /// A process stops responding, and resumes later.
    pub pause: f64,
    /// A second process starts under the name of a live one.
    pub respawn: f64,
    /// The clock jumps.
    pub jump: f64,
    /// The group rebalances.
    pub rebalance: f64,
    /// The end of a transaction never reaches the group, as after the restart of a single broker. A recovery then takes as
    /// long as four transactions.
    pub forget: f64,
    /// A killed process finds its disk empty, in addition to a probability of 0.1 that always applies.
    pub wipe: f64,
}
