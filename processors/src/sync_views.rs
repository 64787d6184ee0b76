//! sync-views: turns the changes of one line (a source's topic, or a partition of an event topic) into view rows.
//!
//! Per row it keeps the version and the last outputs, so that nothing older than what it has seen and nothing that did
//! not change is written. When a source transaction ends it closes what it touched (docs/reference/formats.md, `view.log`).
//! Guarantees: versions rise strictly; a row stands in exactly the buckets that its newest version gives; what a
//! reader is shown is a state at the end of a source transaction.
//! Never: IO in a step; an update in place of the records' own order.

mod bind;
pub(crate) mod input;
mod key_change;
#[cfg(test)]
mod simulation;
mod stale;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use bind::schema_id;
use event_log::{ErrorAction, Header, Millis, OutRecord, RecordBatch, RecordRef};
use input::{Change, Input, KeyChange, Kind};
use key_change::{Applied, Origin};
use schemas::version::Version;
use state::{LINE, Line, Row, Shown, StateError};
use std::collections::HashMap;
use std::error::Error as StdError;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use streams::{Context, Error, Output, Processor, Result, Stage, State};
use views::record::{self, Writer, Written};
use views::rules::{Bound, Relation, SourceRules, ViewOutputs};

/// How sync-views runs one line.
#[derive(Clone)]
pub struct Config {
    /// The line's rules.
    pub rules: Arc<SourceRules>,
    /// Writer id: `<processor>/<topic>/<topic id>/<partition>`.
    pub writer: String,
    /// Id of the input topic, 32 hexadecimal digits.
    pub topic_id: String,
    /// Topic of the view_output.
    pub view_log: Arc<str>,
    /// Its partition count.
    pub partitions: i32,
    /// Ids of the control records' schemas.
    pub schemas: record::SchemaIds,
    /// How long deleted rows are remembered, in ms: `delete.retention` of `view.log` less a margin.
    pub horizon_ms: i64,
    /// Fetches a schema by id; called outside the steps.
    pub fetch: FetchSchema,
}

/// Fetches a schema's text by its registry id.
pub type FetchSchema = Arc<dyn Fn(u32) -> Result<String, Unavailable> + Send + Sync>;

/// Why a schema could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// Why.
    pub reason: String,
    /// `Retry` when the registry is out of reach; `DeadLetter` when it does not know the id.
    pub fate: ErrorAction,
}

/// The processor of one line.
pub struct SyncViews {
    config: Config,
    writer: Writer,
    line: Line,
    floor: Version,
    line_dirty: bool,
    last: Version,
    bound: HashMap<(u32, Arc<str>), Arc<Bound>>,
    unknown: HashMap<u32, String>,
    outputs: ViewOutputs,
}

/// Why a record is refused; it becomes a dead letter.
#[derive(Debug)]
struct Refused {
    stage: Stage,
    error: Box<dyn StdError>,
}

impl Refused {
    fn new(stage: Stage, error: impl Into<Box<dyn StdError>>) -> Self {
        Refused {
            stage,
            error: error.into(),
        }
    }
}

/// A failure that is not the record's.
enum Trouble {
    Refused(Refused),
    Stop(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Stop(error)
    }
}

impl From<Refused> for Trouble {
    fn from(refused: Refused) -> Self {
        Trouble::Refused(refused)
    }
}

impl From<StateError> for Trouble {
    fn from(error: StateError) -> Self {
        Trouble::Stop(broken(&error))
    }
}

fn broken(error: &StateError) -> Error {
    Error::Processor {
        name: "sync-views".into(),
        reason: error.to_string(),
        fate: ErrorAction::Stop,
    }
}

impl SyncViews {
    /// A processor for one line.
    pub fn new(config: Config) -> Self {
        SyncViews {
            writer: Writer::new(config.writer.clone(), config.schemas),
            line: Line::new(&config.topic_id),
            floor: Version::default(),
            line_dirty: false,
            last: Version::default(),
            bound: HashMap::new(),
            unknown: HashMap::new(),
            outputs: ViewOutputs::default(),
            config,
        }
    }

    /// Takes a record in; one that is given up counts for its transaction, and its row lacks it.
    fn take(
        &mut self,
        context: Context,
        (record, on_dead_letter): (RecordRef<'_>, bool),
        state: &mut State,
        output: &mut Output,
    ) -> Result<(), Error> {
        output.caused_by(record);
        let rules = self.config.rules.clone();
        let input = match Input::read(&record, rules.event(), self.line.incarnation) {
            Ok(input) => input,
            Err((stage, error)) => {
                if !on_dead_letter {
                    output.dead_letter(record, stage, error.as_ref());
                }
                self.missed(record, None, state, output)?;
                if !self.line.open {
                    self.close(record.timestamp(), output);
                }
                return Ok(());
            }
        };
        if input.version.incarnation > self.line.incarnation {
            // The touched partitions stay: what a lost transaction left there is closed by the next end. What comes again
            // from before it must not bring back a row of which nothing is known.
            self.floor = self.floor.max(Version {
                incarnation: input.version.incarnation - 1,
                position: u64::MAX,
                ordinal: u32::MAX,
            });
            self.line.incarnation = input.version.incarnation;
            self.line.open = false;
            self.line_dirty = true;
        }
        self.last = input.version;
        let changed = if on_dead_letter {
            self.missed(record, Some(&input), state, output).map_err(Trouble::Stop)
        } else {
            self.change(context, &input, state, output)
        };
        match changed {
            Ok(()) => {}
            Err(Trouble::Stop(error)) => return Err(error),
            Err(Trouble::Refused(refused)) => {
                output.dead_letter(record, refused.stage, refused.error.as_ref());
                self.missed(record, Some(&input), state, output)?;
            }
        }
        if input.again.is_none() {
            self.line_dirty |= self.line.open == input.last;
            self.line.open = !input.last;
        }
        if !self.line.open {
            self.close(input.at_ms, output);
        }
        Ok(())
    }

    fn change(
        &mut self,
        context: Context,
        input: &Input<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<(), Trouble> {
        let Some(relation) = self.config.rules.relation(input.table).cloned() else {
            return Ok(());
        };
        match &input.kind {
            Kind::Row(change) => self.row(context, input, &relation, change, state, output),
            Kind::Truncate => {
                self.sweep(context, input, state, output, &|_, _| true)?;
                self.cover(context, (input, input.version), &|_| true, state, output)?;
                Ok(())
            }
            Kind::ChunkEnd(end) => {
                let low = Version {
                    incarnation: input.version.incarnation,
                    position: end.low,
                    ordinal: 0,
                };
                // The chunk's own rows stand at its position, which may lie just below `low`: nothing else does.
                let chunk = (input.version.incarnation, input.version.position);
                self.sweep(context, input, state, output, &|key, row| {
                    let in_chunk = (row.version.incarnation, row.version.position) == chunk;
                    row.version < low && !in_chunk && end.holds(key)
                })?;
                self.cover_chunk(context, (input, low), end, state, output)?;
                Ok(())
            }
        }
    }

    fn row(
        &mut self,
        context: Context,
        input: &Input<'_>,
        relation: &Arc<Relation>,
        change: &Change<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<(), Trouble> {
        let old = match state.get(&change.state_key)? {
            Some(bytes) => Some(Row::decode(&bytes)?),
            None => None,
        };
        if input.version <= old.as_ref().map_or(self.floor, |o| o.version) {
            if input.again == Some(input::Again::Redrive) && old.is_none() {
                self.miss(input.table, &change.state_key, self.floor, state, output)?;
            }
            return Ok(());
        }
        let origin = Origin::of(input, change, state)?;
        let mut row = old.unwrap_or_default();
        let was_gone = row.gone_ms;
        self.outputs.clear();
        let mut whole = true;
        match change.value {
            Some(value) => {
                let bound = self.bound(value, input.table, relation)?;
                let kept = match &origin {
                    Some(origin) => origin.kept(),
                    None if was_gone.is_none() => std::mem::take(&mut row.kept),
                    // What a deleted row left is for its new key, not for another row under the old one.
                    None => Vec::new(),
                };
                let body = value.get(schemas::wire::FRAME_LENGTH..).unwrap_or_default();
                let evaluated = bound.evaluate(body, kept, &mut self.outputs);
                let evaluated = evaluated.map_err(|e| Refused::new(Stage::Transformation, e))?;
                (row.kept, whole) = (evaluated.kept, evaluated.whole);
                row.gone_ms = None;
            }
            None => {
                // A row that leaves keeps its values for the next record, unless it had left before.
                if change.key_change != KeyChange::Leaves || was_gone.is_some() {
                    row.kept.clear();
                }
                row.gone_ms = Some(context.now);
            }
        }
        row.version = input.version;
        let outputs = std::mem::take(&mut self.outputs);
        self.write(
            relation,
            change.row_key,
            &mut row.shown,
            &outputs,
            input.version,
            output,
        );
        self.outputs = outputs;
        self.remember(&change.state_key, was_gone, &row, state);
        let applied = Applied { change, origin, whole };
        self.settle(input, applied, state, output)?;
        Ok(())
    }

    /// Writes the difference between where a row stood and where it stands now.
    fn write(
        &mut self,
        relation: &Relation,
        row_key: &str,
        shown: &mut Vec<Shown>,
        outputs: &ViewOutputs,
        version: Version,
        output: &mut Output,
    ) {
        for old in shown.iter() {
            let stays = outputs
                .iter()
                .any(|o| relation.view(o.view) == old.view && o.bucket == old.bucket);
            if !stays {
                self.emit_row(&old.bucket, &old.view, row_key, None, old.partition, version, output);
            }
        }
        let mut now = Vec::with_capacity(outputs.len());
        for view_output in outputs.iter() {
            let view = relation.view(view_output.view);
            let hash = xxhash_rust::xxh3::xxh3_128(view_output.json);
            let same = shown
                .iter()
                .any(|s| s.view == view && s.bucket == view_output.bucket && s.hash == hash);
            if !same {
                let (bucket, json) = (view_output.bucket, Some(view_output.json));
                self.emit_row(bucket, view, row_key, json, view_output.partition, version, output);
            }
            let (view, bucket) = (view.to_owned(), view_output.bucket.to_owned());
            now.push(Shown {
                view,
                bucket,
                partition: view_output.partition,
                hash,
            });
        }
        *shown = now;
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one record, which its two callers borrow from different owners"
    )]
    fn emit_row(
        &mut self,
        bucket: &str,
        view: &str,
        row_key: &str,
        json: Option<&[u8]>,
        partition: i32,
        version: Version,
        output: &mut Output,
    ) {
        let version = version.to_bytes();
        let writer = self.config.writer.as_bytes();
        let headers: [Header<'_>; 2] = [(record::WRITER, Some(writer)), (record::VERSION, Some(&version))];
        let written = self.writer.row(bucket, view, row_key, json);
        emit(&self.config.view_log, partition, written, headers, output);
        self.line_dirty |= self.line.touched.insert(partition);
    }

    fn remember(&self, state_key: &[u8], was_gone: Option<Millis>, row: &Row, state: &mut State) {
        if let Some(at) = was_gone {
            state.delete(&gone_key(at, state_key));
        }
        if let Some(at) = row.gone_ms {
            state.put(&gone_key(at, state_key), vec![1]);
        }
        state.put(state_key, row.encode());
    }

    /// Removes the rows of a table that `goes` says, at the version of the record that calls for it.
    fn sweep(
        &mut self,
        context: Context,
        input: &Input<'_>,
        state: &mut State,
        output: &mut Output,
        goes: &dyn Fn(&str, &Row) -> bool,
    ) -> Result<(), Trouble> {
        let Some(relation) = self.config.rules.relation(input.table).cloned() else {
            return Ok(());
        };
        let prefix = input::table_prefix(input.table);
        let mut gone: Vec<(Vec<u8>, Row)> = Vec::new();
        let mut damaged = None;
        state.scan(&prefix, &mut |key, value| {
            match Row::decode(value) {
                Ok(row) if row.gone_ms.is_none() && row.version < input.version => {
                    if goes(input::row_key_of(key, prefix.len()), &row) {
                        gone.push((key.to_vec(), row));
                    }
                }
                Ok(_) => {}
                Err(error) => damaged = Some(error),
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = damaged {
            return Err(error.into());
        }
        for (state_key, mut row) in gone {
            let row_key = input::row_key_of(&state_key, prefix.len()).to_owned();
            self.write(
                &relation,
                &row_key,
                &mut row.shown,
                &ViewOutputs::default(),
                input.version,
                output,
            );
            row.version = input.version;
            row.gone_ms = Some(context.now);
            row.kept.clear();
            self.remember(&state_key, None, &row, state);
        }
        Ok(())
    }

    fn close(&mut self, at_ms: i64, output: &mut Output) {
        if self.line.touched.is_empty() {
            return;
        }
        for partition in std::mem::take(&mut self.line.touched) {
            let written = self.writer.closing(self.last, at_ms);
            emit(&self.config.view_log, partition, written, [], output);
        }
        self.line_dirty = true;
    }

    /// Forgets rows that were deleted before the horizon; the floor stands for them from then on.
    fn forget(&mut self, now: Millis, state: &mut State) -> Result<(), Error> {
        let mut old: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let before = now - self.config.horizon_ms;
        state.scan(input::GONE, &mut |key, _| {
            match input::gone_of(key) {
                Some((at, state_key)) if at < before && old.len() < 256 => old.push((key.to_vec(), state_key)),
                _ => return ControlFlow::Break(()),
            }
            ControlFlow::Continue(())
        })?;
        for (gone, state_key) in old {
            if let Some(bytes) = state.get(&state_key)? {
                let row = Row::decode(&bytes).map_err(|e| broken(&e))?;
                // The next record of an open transaction may be the row under its new key.
                if self.line.open && !row.kept.is_empty() {
                    continue;
                }
                self.floor = self.floor.max(row.version);
            }
            state.delete(&gone);
            state.delete(&state_key);
            self.line_dirty = true;
        }
        Ok(())
    }
}

impl Processor for SyncViews {
    fn prepare(&mut self, records: &RecordBatch, range: Range<usize>) -> Result<()> {
        self.learn(records, range)
    }

    fn process(
        &mut self,
        context: Context,
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        for record in range.filter_map(|i| records.get(i)) {
            self.take(context, (record, false), state, output)?;
        }
        Ok(())
    }

    fn on_dead_letter(
        &mut self,
        context: Context,
        record: RecordRef<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        self.take(context, (record, true), state, output)
    }

    fn before_commit(&mut self, context: Context, state: &mut State, output: &mut Output) -> Result<()> {
        self.forget(context.now, state)?;
        for partition in &self.line.touched {
            let headers: [Header<'_>; 1] = [(record::WRITER, Some(self.config.writer.as_bytes()))];
            let written = self.writer.transaction_begin(self.last);
            emit(&self.config.view_log, *partition, written, headers, output);
        }
        if self.line_dirty {
            self.line.floor = self.floor.to_string();
            state.put(LINE, self.line.encode());
            self.line_dirty = false;
        }
        Ok(())
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.line_dirty = false;
        self.line = match state.get(LINE)? {
            Some(bytes) => Line::decode(&bytes).map_err(|e| broken(&e))?,
            None => Line::new(&self.config.topic_id),
        };
        if self.line.topic_id != self.config.topic_id {
            // The topic was made anew: its offsets begin again, so what they version begins a new incarnation.
            self.line.topic_id.clone_from(&self.config.topic_id);
            self.line.incarnation += 1;
            self.line_dirty = true;
        }
        self.floor = self
            .line
            .floor
            .parse()
            .map_err(|_| broken(&StateError::Damaged("the floor")))?;
        self.last = self.floor;
        Ok(())
    }
}

fn emit<'h>(
    topic: &Arc<str>,
    partition: i32,
    (key, value): Written<'_>,
    headers: impl IntoIterator<Item = Header<'h>>,
    output: &mut Output,
) {
    let record = OutRecord {
        topic,
        partition: Some(partition),
        timestamp: None,
        key: Some(key),
        value,
    };
    output.send(record, headers);
}

fn gone_key(at: Millis, state_key: &[u8]) -> Vec<u8> {
    input::gone_key(at, state_key)
}
