//! The [`Processor`] of every declarative processor: reads the inputs of a sub-topology, turns records into deltas, and
//! passes them to the sink.
//!
//! A record that cannot be evaluated becomes a dead letter with the reason, and its row keeps its earlier contribution.
//! State that was written under another declaration stops the task, because the contributions in it cannot be removed
//! from the output.

use super::delta::{Contribution, Delta, DeltaError};
use super::event_dedup;
use super::loading::Loading;
use super::relation::Relation;
use super::shape::Shaped;
use super::sink::{Change, Pipeline, Sink};
use super::table_input;
use super::table_rows::TableRows;
use super::value_types::ValueTypes;
use crate::dead_letter::{RecordError, StepError, stop};
use crate::input::{self, FetchSchema, LoadedMark, schema_id};
use crate::step::Step;
use event_log::{RecordRef, RecordSlice, TopicPartition};
use std::sync::Arc;
use streams::{Context, Error, Output, Processor, RejectedTimer, Result, Stage, State, Timer};

/// State key of the declaration under which a task's state was written.
const DECLARATION: &[u8] = b"[\"declaration\"]";

/// An input topic.
pub struct InputTopic {
    /// Its partition that the task reads.
    pub at: TopicPartition,
    /// What the topic's records are.
    pub content: TopicContent,
}

/// Which records a topic contains.
pub enum TopicContent {
    /// Records of tables, of one event type, or of one processor. `event` is set for an event type or a processor.
    Direct {
        /// Name of the event type or processor.
        event: Option<String>,
        /// The inputs of the processor (the input of an aggregate, or the sides of a join) whose records are in the
        /// topic.
        relations: Vec<Relation>,
    },
    /// Deltas of one input, which another sub-topology of the application has repartitioned.
    Repartitioned(ValueTypes),
}

/// Names of a processor.
pub struct Identity {
    /// The processor.
    pub name: Arc<str>,
    /// Its application, which its dead letters contain.
    pub application: String,
    /// Its declaration.
    pub declaration: Arc<str>,
}

/// What a sub-topology does with the deltas of its inputs.
pub struct Stages {
    /// Applies them.
    pub sink: Box<dyn Sink>,
    /// Writes the loaded mark when the first snapshots of the inputs have ended.
    pub loading: Loading,
}

/// Reads the inputs of one sub-topology.
pub struct Reader {
    identity: Identity,
    declaration_id: u64,
    inputs: Vec<InputTopic>,
    stages: Stages,
    fetch: FetchSchema,
    shaped: Shaped,
    /// Whether the declaration is not yet stored in the state.
    declaration_unwritten: bool,
}

impl Reader {
    /// Creates a reader of these topics.
    pub fn new(identity: Identity, inputs: Vec<InputTopic>, stages: Stages, fetch: FetchSchema) -> Self {
        Reader {
            declaration_id: id_of(&identity.declaration),
            identity,
            inputs,
            stages,
            fetch,
            shaped: Shaped::default(),
            declaration_unwritten: true,
        }
    }

    fn process_record(&mut self, record: RecordRef<'_>, step: &mut Step<'_>) -> Result<()> {
        let Some(input) = self.inputs.iter_mut().find(|input| input.at.topic == *record.topic()) else {
            return Ok(());
        };
        if input::is_redriven_for_another(&record, &self.identity.application) {
            return Ok(());
        }
        // A timestamp in the future must not advance stream time, because that would close windows that are still open.
        self.stages.sink.advance(record.timestamp().min(step.context.now));
        let mut pipeline = Pipeline {
            name: &self.identity.name,
            sink: &mut *self.stages.sink,
            loading: &mut self.stages.loading,
            shaped: &mut self.shaped,
            step: Step {
                context: step.context,
                state: &mut *step.state,
                output: &mut *step.output,
            },
        };
        let done = match &mut input.content {
            TopicContent::Repartitioned(types) => {
                let change = repartitioned(&self.identity.name, types, self.declaration_id, record);
                change.and_then(|(change, rejected)| {
                    if let Some(mark) = LoadedMark::of(&record) {
                        pipeline.loading.marked(types.side, mark);
                        return Ok(());
                    }
                    pipeline.apply(change)?;
                    rejected.map_or(Ok(()), |error| Err(error.into()))
                })
            }
            TopicContent::Direct { event, relations } => match relations.as_mut_slice() {
                [relation] if relation.rows.is_none() => event_dedup::process(relation, &record, &mut pipeline),
                relations => table_input::process(relations, event.as_deref(), &record, &mut pipeline),
            },
        };
        match done {
            Ok(()) => Ok(()),
            Err(StepError::Task(error)) => Err(error),
            Err(StepError::Record(error)) => {
                step.output.dead_letter(record, error.stage, error.source.as_ref());
                Ok(())
            }
        }
    }

    fn tables(&mut self) -> impl Iterator<Item = &mut TableRows> {
        let relations = self.inputs.iter_mut().flat_map(|input| match &mut input.content {
            TopicContent::Direct { relations, .. } => relations.as_mut_slice(),
            TopicContent::Repartitioned(_) => &mut [],
        });
        relations.filter_map(|relation| relation.rows.as_mut())
    }
}

/// The error of a step that belongs to no record.
fn stopped(name: &str, error: StepError) -> Error {
    match error {
        StepError::Task(error) => error,
        StepError::Record(error) => stop(name, error.source),
    }
}

/// A number that identifies a declaration in repartitioned records.
pub fn id_of(declaration: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(declaration.as_bytes())
}

/// Returns the change in a record of a repartition topic, and an error if the record becomes a dead letter although the
/// change is applied.
fn repartitioned<'r>(
    name: &str,
    types: &ValueTypes,
    declaration: u64,
    record: RecordRef<'r>,
) -> Result<(Change<'r>, Option<RecordError>), StepError> {
    let (key, value) = (record.key().unwrap_or_default(), record.value().unwrap_or_default());
    let delta = match Delta::read(declaration, key, value) {
        Ok(delta) => delta,
        Err(error @ (DeltaError::Damaged | DeltaError::Types)) => {
            return Err(RecordError::new(Stage::ValueConverter, error).into());
        }
        // All later records would fail for the same reason, so the task stops instead of making them dead letters.
        Err(error @ (DeltaError::Newer(_) | DeltaError::Foreign)) => {
            let at = record.partition();
            return Err(stop(name, format!("record {at}@{}: {error}", record.offset())).into());
        }
    };
    let accepted = |contribution: &Contribution<'_>| types.accept(contribution);
    let new = delta.new.filter(accepted);
    let is_rejected = delta.new.is_some() && new.is_none();
    let change = Change {
        side: types.side,
        delta: Delta {
            // If the old contribution is not accepted, it was not added either.
            old: delta.old.filter(accepted),
            new,
            ..delta
        },
        at: record.timestamp(),
    };
    let rejected = is_rejected.then(|| RecordError::new(Stage::ValueConverter, DeltaError::Types));
    Ok((change, rejected))
}

impl Processor for Reader {
    fn prepare(&mut self, records: RecordSlice<'_>) -> Result<()> {
        let mut failed = None;
        for record in records.iter() {
            let Some(id) = record
                .value()
                .and_then(schema_id)
                .filter(|_| !LoadedMark::is_in(&record))
            else {
                continue;
            };
            let found = self.inputs.iter_mut().find(|input| input.at.topic == *record.topic());
            let Some(TopicContent::Direct { event, relations }) = found.map(|input| &mut input.content) else {
                continue;
            };
            let table = match event {
                Some(event) => Some(event.as_str()),
                None => input::table_of(&record, None),
            };
            for relation in relations.iter_mut().filter(|r| Some(r.name.as_str()) == table) {
                // The other schemas are fetched as well, so that those of one batch are waited for together.
                failed = failed.or(relation.prepare(id, &self.fetch).err());
            }
        }
        match failed {
            None => Ok(()),
            Some(error) => Err(Error::Processor {
                name: self.identity.name.to_string(),
                reason: error.reason,
                action: error.action,
            }),
        }
    }

    fn process(
        &mut self,
        context: Context,
        records: RecordSlice<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        self.tables().for_each(|rows| rows.sweeps.begin_step());
        let mut step = Step { context, state, output };
        for record in records.iter() {
            self.process_record(record, &mut step)?;
        }
        Ok(())
    }

    fn on_dead_letter(
        &mut self,
        context: Context,
        record: RecordRef<'_>,
        state: &mut State,
        _: &mut Output,
    ) -> Result<()> {
        let input = self.inputs.iter_mut().find(|input| input.at.topic == *record.topic());
        let Some(TopicContent::Direct { event, relations }) = input.map(|input| &mut input.content) else {
            return Ok(());
        };
        if matches!(relations.as_slice(), [relation] if relation.rows.is_none()) {
            event_dedup::note_rejected(&record, context.now, state);
        } else {
            // A row needs no such entry: the redriven row is applied unless a newer version was applied.
            table_input::rejected(relations, event.as_deref(), &record, &mut self.stages.loading);
        }
        Ok(())
    }

    fn on_timer(&mut self, context: Context, timer: &Timer, state: &mut State, output: &mut Output) -> Result<()> {
        if event_dedup::expire(timer, state)? {
            return Ok(());
        }
        let mut pipeline = Pipeline {
            name: &self.identity.name,
            sink: &mut *self.stages.sink,
            loading: &mut self.stages.loading,
            shaped: &mut self.shaped,
            step: Step { context, state, output },
        };
        for InputTopic { at, content } in &mut self.inputs {
            let TopicContent::Direct { relations, .. } = content else {
                continue;
            };
            for relation in relations {
                if !relation.rows.as_mut().is_some_and(|rows| rows.sweeps.fired(timer)) {
                    continue;
                }
                return table_input::continue_sweeps(relation, at, &mut pipeline)
                    .map_err(|e| stopped(&self.identity.name, e));
            }
        }
        self.stages.sink.on_timer(timer, state, output)
    }

    fn on_rejected_timer(
        &mut self,
        context: Context,
        timer: &Timer,
        state: &mut State,
        output: &mut Output,
    ) -> Result<RejectedTimer> {
        let mut pipeline = Pipeline {
            name: &self.identity.name,
            sink: &mut *self.stages.sink,
            loading: &mut self.stages.loading,
            shaped: &mut self.shaped,
            step: Step { context, state, output },
        };
        let relations = self.inputs.iter_mut().flat_map(|input| match &mut input.content {
            TopicContent::Direct { relations, .. } => relations.as_mut_slice(),
            TopicContent::Repartitioned(_) => &mut [],
        });
        for relation in relations {
            if relation.rows.as_mut().is_some_and(|rows| rows.sweeps.fired(timer)) {
                return table_input::step_rejected(relation, &mut pipeline)
                    .map_err(|e| stopped(&self.identity.name, e));
            }
        }
        Ok(RejectedTimer::DeadLetter)
    }

    fn before_commit(&mut self, context: Context, state: &mut State, output: &mut Output) -> Result<()> {
        if self.declaration_unwritten {
            state.put(DECLARATION, self.identity.declaration.as_bytes().to_vec());
            self.declaration_unwritten = false;
        }
        self.stages.sink.before_commit(state, output)?;
        let name = self.identity.name.clone();
        for rows in self.tables() {
            rows.before_commit(context.now, state)?.map_err(|e| stop(&name, e))?;
        }
        self.stages.loading.before_commit(state, output);
        Ok(())
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let written = state.get(DECLARATION)?;
        self.declaration_unwritten = written.is_none();
        if let Some(written) = written
            && *written != *self.identity.declaration.as_bytes()
        {
            let written = String::from_utf8_lossy(&written);
            let reason = format!(
                "its state was written under another declaration and cannot be used with this one; restore the old \
                 declaration, or give the processor a new name, under which it starts over from its inputs' earliest \
                 records. The state's declaration is {written}, the topology's is {}",
                self.identity.declaration
            );
            return Err(stop(&self.identity.name, reason));
        }
        let (name, is_new) = (self.identity.name.clone(), self.declaration_unwritten);
        for rows in self.tables() {
            rows.restore(state)?.map_err(|e| stop(&name, e))?;
            if is_new {
                rows.write_progress();
            }
        }
        let loading = self.stages.loading.restore(is_new, state)?;
        loading.map_err(|e| stop(&self.identity.name, e))?;
        self.stages.sink.restore(state)
    }

    fn wants_commit(&self) -> bool {
        self.stages.loading.is_due()
    }
}
