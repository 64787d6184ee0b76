//! The one [`Processor`] of all declared processors: reads inputs, turns records into deltas, hands them to a sink.
//!
//! Guarantees: every record counts once, whatever is replayed or redriven; what cannot be counted is a dead letter
//! with the reason, and the row keeps what it gave before. State of another declaration stops the task.
//! Never: IO in a step.

use super::delta::{Delta, DeltaError};
use super::shape::{Shape, Shaped};
use super::table;
use crate::sync_views::{FetchSchema, Unavailable, input, schema_id};
use event_log::{ErrorAction, Millis, RecordBatch, RecordRef};
use schemas::codec::{Datum, Projection, Row};
use schemas::headers;
use schemas::schema::Schema;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use streams::{Context, Error, Output, Processor, Result, Stage, State, Timer};
use topology::Side;

/// Key of the declaration under which a task's state was written.
const DECLARATION: &[u8] = b"[\"declaration\"]";

/// What is done with deltas.
pub trait Sink: Send {
    /// Hears of every record's timestamp, also of those that give nothing; of one from the future as of now.
    fn advance(&mut self, _at: Millis) {}

    /// Takes a change of a side that was read at a time; returns why it does not count as it should, if it does not.
    fn take(
        &mut self,
        context: Context,
        change: Change<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<Option<String>>;

    /// Takes a timer that is due.
    fn on_timer(&mut self, _timer: &Timer, _state: &mut State, _effects: &mut Output) -> Result<()> {
        Ok(())
    }

    /// Writes what it has gathered.
    fn before_commit(&mut self, _state: &mut State, _effects: &mut Output) -> Result<()> {
        Ok(())
    }

    /// Forgets what it has gathered.
    fn restore(&mut self, _state: &State) -> Result<()> {
        Ok(())
    }
}

/// A delta with its circumstances.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// The side that changed.
    pub side: Side,
    /// What changed.
    pub delta: Delta<'a>,
    /// The record's timestamp in ms.
    pub at: Millis,
}

/// Projection of one writer's schema to the used columns.
#[derive(Debug)]
pub struct Bound {
    projection: Projection,
    /// Whether the list of unchanged columns stands behind them.
    pub lists_unchanged: bool,
}

impl Bound {
    fn new(text: &str, columns: &[String], relation: &str) -> Result<Self, String> {
        let writer = Schema::parse(text).map_err(|e| format!("the schema of `{relation}` cannot be read: {e}"))?;
        let mut names = Vec::with_capacity(columns.len() + 1);
        for column in columns {
            let field = writer.fields().iter().find(|field| field.column() == column.as_str());
            let missing =
                || format!("column `{column}` of `{relation}`, which is used, is not in the schema of its records");
            names.push(field.ok_or_else(missing)?.name.to_string());
        }
        let lists_unchanged = writer
            .fields()
            .iter()
            .any(|field| *field.name == *schemas::pg_types::UNCHANGED);
        if lists_unchanged {
            names.push(String::from(schemas::pg_types::UNCHANGED));
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let projection = Projection::of_fields(Arc::new(writer), &names).map_err(|e| e.to_string())?;
        Ok(Bound {
            projection,
            lists_unchanged,
        })
    }

    /// Decodes the used columns of a framed value.
    pub fn decode<'v>(&'v self, value: &'v [u8], row: &mut Row<'v>) -> Result<(), schemas::codec::DecodeError> {
        let body = value.get(schemas::wire::FRAME_LENGTH..).unwrap_or_default();
        self.projection.decode(body, row)
    }
}

/// One side of an input topic.
pub struct Relation {
    /// Which.
    pub side: Side,
    /// The table, event or processor as the input's records name it.
    pub name: String,
    /// What of its rows counts.
    pub shape: Shape,
    /// Its rows, if it is a table.
    pub rows: Option<super::rows::Rows>,
    bound: HashMap<u32, Arc<Bound>>,
    unknown: HashMap<u32, String>,
    last: Option<(u32, Arc<Bound>)>,
}

impl Relation {
    /// A side that has read nothing.
    pub fn new(side: Side, name: String, shape: Shape, rows: Option<super::rows::Rows>) -> Self {
        Relation {
            side,
            name,
            shape,
            rows,
            bound: HashMap::new(),
            unknown: HashMap::new(),
            last: None,
        }
    }

    /// The projection of a value's schema, which `prepare` has fetched.
    pub fn bound(&self, value: &[u8]) -> Result<Arc<Bound>, String> {
        let id = schema_id(value).ok_or("the value has no schema id")?;
        if let Some((last, bound)) = &self.last
            && *last == id
        {
            return Ok(bound.clone());
        }
        self.bound.get(&id).cloned().ok_or_else(|| {
            let why = self.unknown.get(&id).cloned();
            why.unwrap_or_else(|| format!("schema {id} does not fit `{}`", self.name))
        })
    }

    fn prepare(&mut self, id: u32, fetch: &FetchSchema) -> Result<(), Unavailable> {
        if self.last.as_ref().is_some_and(|(last, _)| *last == id) || self.unknown.contains_key(&id) {
            return Ok(());
        }
        if !self.bound.contains_key(&id) {
            let text = match fetch(id) {
                Ok(text) => text,
                Err(error) if error.fate == ErrorAction::DeadLetter => {
                    self.unknown.insert(id, error.reason);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            match Bound::new(&text, &self.shape.feed().columns, &self.name) {
                Ok(bound) => drop(self.bound.insert(id, Arc::new(bound))),
                Err(why) => drop(self.unknown.insert(id, why)),
            }
        }
        self.last = self.bound.get(&id).map(|bound| (id, bound.clone()));
        Ok(())
    }
}

/// An input topic.
pub enum Line {
    /// Records of tables, of one event, or of one processor; `event` names the latter two.
    Direct {
        /// The event's or processor's name.
        event: Option<String>,
        /// What of it is read.
        relations: Vec<Relation>,
    },
    /// Deltas that the same application has keyed anew.
    Repartitioned(Side),
}

/// A record that does not count, and why.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    stage: Stage,
    reason: String,
}

impl Refused {
    /// Refuses at a stage.
    pub fn new(stage: Stage, reason: impl ToString) -> Self {
        Refused {
            stage,
            reason: reason.to_string(),
        }
    }
}

/// What happened to a record.
pub enum Trouble {
    /// It is a dead letter.
    Refused(Refused),
    /// The task stops.
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

/// What every step of a declared processor needs beside the record.
pub struct Hands<'h> {
    /// Now and stream time.
    pub context: Context,
    /// The processor's name.
    pub name: &'h str,
    /// Where deltas go.
    pub sink: &'h mut dyn Sink,
    /// Memory for contributions.
    pub shaped: &'h mut Shaped,
    /// The task's state.
    pub state: &'h mut State,
    /// What it says.
    pub output: &'h mut Output,
}

impl Hands<'_> {
    /// Hands a delta on; a complaint makes the record a dead letter, although it was taken.
    pub fn give(&mut self, change: Change<'_>) -> Result<(), Trouble> {
        match self.sink.take(self.context, change, self.state, self.output)? {
            None => Ok(()),
            Some(complaint) => Err(Refused::new(Stage::Transformation, complaint).into()),
        }
    }

    /// State that cannot be read stops the task.
    pub fn broken(&self, reason: impl ToString) -> Error {
        stop(self.name, reason)
    }
}

/// An error that stops the task.
pub fn stop(name: &str, reason: impl ToString) -> Error {
    Error::Processor {
        name: name.to_owned(),
        reason: reason.to_string(),
        fate: ErrorAction::Stop,
    }
}

/// Reads the inputs of one sub-topology.
pub struct Reader {
    name: Arc<str>,
    declaration: Arc<str>,
    id: u64,
    lines: Vec<(Arc<str>, Line)>,
    sink: Box<dyn Sink>,
    fetch: FetchSchema,
    shaped: Shaped,
    unsaid: bool,
}

impl Reader {
    /// A reader of these topics.
    pub fn new(
        name: Arc<str>,
        declaration: Arc<str>,
        lines: Vec<(Arc<str>, Line)>,
        sink: Box<dyn Sink>,
        fetch: FetchSchema,
    ) -> Self {
        Reader {
            id: id_of(&declaration),
            name,
            declaration,
            lines,
            sink,
            fetch,
            shaped: Shaped::default(),
            unsaid: true,
        }
    }

    fn take(&mut self, context: Context, record: RecordRef<'_>, state: &mut State, output: &mut Output) -> Result<()> {
        let Some((_, line)) = self.lines.iter_mut().find(|(topic, _)| **topic == **record.topic()) else {
            return Ok(());
        };
        self.sink.advance(record.timestamp().min(context.now));
        let mut hands = Hands {
            context,
            name: &self.name,
            sink: &mut *self.sink,
            shaped: &mut self.shaped,
            state,
            output,
        };
        let taken = match line {
            Line::Repartitioned(side) => keyed_anew(*side, self.id, &record, &mut hands),
            Line::Direct { event, relations } => match relations.as_mut_slice() {
                [relation] if relation.rows.is_none() => event_record(relation, &record, &mut hands),
                relations => table::take(relations, event.as_deref(), &record, &mut hands),
            },
        };
        match taken {
            Ok(()) => Ok(()),
            Err(Trouble::Stop(error)) => Err(error),
            Err(Trouble::Refused(refused)) => {
                output.dead_letter(record, refused.stage, &refused);
                Ok(())
            }
        }
    }
}

/// The number that stands for a declaration in records.
pub fn id_of(declaration: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(declaration.as_bytes())
}

fn keyed_anew(side: Side, id: u64, record: &RecordRef<'_>, hands: &mut Hands<'_>) -> Result<(), Trouble> {
    let (key, value) = (record.key().unwrap_or_default(), record.value().unwrap_or_default());
    match Delta::read(id, key, value) {
        Ok(delta) => hands.give(Change {
            side,
            delta,
            at: record.timestamp(),
        }),
        Err(DeltaError::Damaged) => Err(Refused::new(Stage::ValueConverter, DeltaError::Damaged).into()),
        Err(error) => Err(hands
            .broken(format!("{} of {}: {error}", record.offset(), record.topic()))
            .into()),
    }
}

/// An event counts once: a replayed one has counted already, and a redriven one counts if it has not.
fn event_record(relation: &Relation, record: &RecordRef<'_>, hands: &mut Hands<'_>) -> Result<(), Trouble> {
    let Some(place) = event_place(record) else {
        return Ok(());
    };
    if record.header(headers::REPLAYED).is_some() {
        let key = failed_key(place);
        if hands.state.get(&key)?.is_none() {
            return Ok(());
        }
        hands.state.delete(&key);
    }
    let taken = event(relation, record, hands);
    if let Err(Trouble::Refused(_)) = &taken {
        hands.state.put(&failed_key(place), vec![1]);
    }
    // A complaint comes after the record has counted: it must not count again.
    match taken {
        Ok(Some(complaint)) => {
            hands.state.delete(&failed_key(place));
            Err(Refused::new(Stage::Transformation, complaint).into())
        }
        Ok(None) => Ok(()),
        Err(trouble) => Err(trouble),
    }
}

fn event(relation: &Relation, record: &RecordRef<'_>, hands: &mut Hands<'_>) -> Result<Option<String>, Trouble> {
    let refuse = |stage, reason: &dyn std::fmt::Display| Trouble::Refused(Refused::new(stage, reason));
    let key = record
        .key()
        .ok_or_else(|| refuse(Stage::KeyConverter, &"the key is null"))?;
    schemas::key::check(key).map_err(|e| refuse(Stage::KeyConverter, &e))?;
    let inside = key.get(1..key.len().saturating_sub(1)).unwrap_or_default();
    let inside = std::str::from_utf8(inside).map_err(|e| refuse(Stage::KeyConverter, &e))?;
    let Some(value) = record.value() else { return Ok(None) };
    let bound = relation.bound(value).map_err(|e| refuse(Stage::ValueConverter, &e))?;
    let mut row: Row<'_> = Vec::new();
    bound
        .decode(value, &mut row)
        .map_err(|e| refuse(Stage::ValueConverter, &e))?;
    let counts = relation.shape.shape(inside, &row, hands.shaped);
    if !counts.map_err(|e| refuse(Stage::Transformation, &e))? {
        return Ok(None);
    }
    let shaped = std::mem::take(hands.shaped);
    let at = record.timestamp();
    let part = super::delta::Part {
        key: &shaped.key,
        order: order_by_time(at, record.offset()),
        time: relation.shape.time_of(&shaped, at),
        values: &shaped.values,
    };
    let delta = Delta {
        row: b"",
        old: None,
        new: Some(part),
    };
    let change = Change {
        side: relation.side,
        delta,
        at,
    };
    let taken = hands.sink.take(hands.context, change, hands.state, hands.output);
    *hands.shaped = shaped;
    Ok(taken?)
}

/// Order of records that have no source's position: by time, then as they were read.
pub fn order_by_time(at: Millis, offset: i64) -> u128 {
    u128::from(at.cast_unsigned() ^ (1 << 63)) << 64 | u128::from(offset.cast_unsigned())
}

/// Where an event that may count was at first; `None` for a replayed one.
fn event_place(record: &RecordRef<'_>) -> Option<i64> {
    match record.header(headers::REPLAYED) {
        None => Some(record.offset()),
        Some(again) => original_place(record).filter(|_| again == headers::REDRIVE.as_bytes()),
    }
}

fn original_place(record: &RecordRef<'_>) -> Option<i64> {
    if let Some(tx) = record.header(headers::TX) {
        return i64::try_from(headers::Tx::parse(tx).ok()?.position.0).ok();
    }
    let offset = record.header(headers::errors::OFFSET)?;
    std::str::from_utf8(offset).ok()?.parse().ok()
}

fn failed_key(offset: i64) -> Vec<u8> {
    format!("[\"failed\",\"{offset}\"]").into_bytes()
}

impl Processor for Reader {
    fn prepare(&mut self, records: &RecordBatch, range: Range<usize>) -> Result<()> {
        for record in range.filter_map(|index| records.get(index)) {
            let Some(id) = record.value().and_then(schema_id) else {
                continue;
            };
            let found = self.lines.iter_mut().find(|(topic, _)| **topic == **record.topic());
            let Some((_, Line::Direct { event, relations })) = found else {
                continue;
            };
            let table = match event {
                Some(event) => Some(event.as_str()),
                None => input::table_of(&record, None),
            };
            for relation in relations.iter_mut().filter(|r| Some(r.name.as_str()) == table) {
                relation.prepare(id, &self.fetch).map_err(|error| Error::Processor {
                    name: self.name.to_string(),
                    reason: error.reason,
                    fate: error.fate,
                })?;
            }
        }
        Ok(())
    }

    fn process(
        &mut self,
        context: Context,
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        for record in range.filter_map(|index| records.get(index)) {
            self.take(context, record, state, output)?;
        }
        Ok(())
    }

    fn on_dead_letter(&mut self, _: Context, record: RecordRef<'_>, state: &mut State, _: &mut Output) -> Result<()> {
        let line = self.lines.iter().find(|(topic, _)| **topic == **record.topic());
        let Some((_, Line::Direct { relations, .. })) = line else {
            return Ok(());
        };
        // An event that did not count may count later; a table's row is only older than what it has then.
        let is_event = matches!(relations.as_slice(), [relation] if relation.rows.is_none());
        if let Some(place) = event_place(&record).filter(|_| is_event) {
            state.put(&failed_key(place), vec![1]);
        }
        Ok(())
    }

    fn on_timer(&mut self, _: Context, timer: &Timer, state: &mut State, output: &mut Output) -> Result<()> {
        self.sink.on_timer(timer, state, output)
    }

    fn before_commit(&mut self, context: Context, state: &mut State, output: &mut Output) -> Result<()> {
        if self.unsaid {
            state.put(DECLARATION, self.declaration.as_bytes().to_vec());
            self.unsaid = false;
        }
        self.sink.before_commit(state, output)?;
        for (_, line) in &mut self.lines {
            let Line::Direct { relations, .. } = line else { continue };
            for rows in relations.iter_mut().filter_map(|relation| relation.rows.as_mut()) {
                rows.before_commit(context.now, state)?
                    .map_err(|e| stop(&self.name, e))?;
            }
        }
        Ok(())
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let written = state.get(DECLARATION)?;
        self.unsaid = written.is_none();
        if let Some(written) = written
            && *written != *self.declaration.as_bytes()
        {
            let written = String::from_utf8_lossy(&written);
            let reason = format!(
                "it is declared otherwise than when its state was written, and the two cannot be mixed; give it a new \
                 name, under which it begins anew from what its inputs still hold, or declare it as before. Its state \
                 was written as {written}, declared is {}",
                self.declaration
            );
            return Err(stop(&self.name, reason));
        }
        for (_, line) in &mut self.lines {
            let Line::Direct { relations, .. } = line else { continue };
            for rows in relations.iter_mut().filter_map(|relation| relation.rows.as_mut()) {
                rows.reset(state)?.map_err(|e| stop(&self.name, e))?;
                if self.unsaid {
                    rows.note();
                }
            }
        }
        self.sink.restore(state)
    }
}

/// Values of columns that the source left out, and those that it may leave out next time.
pub fn is_large(datum: &Datum<'_>) -> bool {
    match datum {
        Datum::Str(text) => text.len() > KEPT_BYTES_MIN,
        Datum::Bytes(bytes) => bytes.len() > KEPT_BYTES_MIN,
        _ => false,
    }
}

/// Values up to this are never left out by a source: PostgreSQL's pointer to a large value is as long.
const KEPT_BYTES_MIN: usize = 18;
