//! Loyalty points: orders become points, which are twice as many for customers of the gold tier and expire after a year.
//!
//! Two topics are read together: `orders` is a stream, `customers` a table whose newest record of each key counts. Both
//! have the key `["customer", ID]` and as many partitions as each other, so that one task sees everything of a
//! customer. Every change of a balance is a record of `points`.
//! Guarantees: each order counts once, and its points expire once, after any crash; a record that cannot be read is a
//! dead letter and holds up nothing. Never: IO, a clock, a value that is neither in a record nor in the state.

use event_log::{ErrorAction, OutRecord, RecordBatch, RecordRef};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::ops::Range;
use std::sync::Arc;
use streams::{
    Application, Context, Error, FirstStart, Output, Processor, Result, Stage, State, SubTopology, Timer, TimerClock,
};

/// Points stay for a year after the order's own time.
pub const EXPIRES_AFTER_MS: i64 = 365 * 24 * 60 * 60 * 1000;
/// One point is given for so many cents.
const CENTS_A_POINT: i64 = 100;

/// Names of the topics of a programme of this name.
#[derive(Debug, Clone)]
pub struct Topics {
    /// Orders: `{"order":"o-1","cents":1250}`.
    pub orders: Arc<str>,
    /// Customers: `{"tier":"gold"}`, or a tombstone.
    pub customers: Arc<str>,
    /// Balances: `{"points":25,"change":25,"why":"order o-1"}`.
    pub points: Arc<str>,
}

impl Topics {
    /// `<name>.orders` and its sisters.
    pub fn of(name: &str) -> Self {
        let topic = |what: &str| format!("{name}.{what}").into();
        Topics {
            orders: topic("orders"),
            customers: topic("customers"),
            points: topic("points"),
        }
    }
}

/// The application: one sub-topology that reads orders and customers together.
pub fn application(name: &str) -> Application {
    let topics = Topics::of(name);
    let (orders, customers) = (topics.orders.to_string(), topics.customers.to_string());
    Application {
        name: name.to_owned(),
        subtopologies: vec![SubTopology {
            name: "points".to_owned(),
            inputs: vec![orders, customers],
            store: "points".to_owned(),
            factory: Arc::new(move |_task| Box::new(Loyalty { topics: topics.clone() })),
            first_start: FirstStart::Earliest,
        }],
    }
}

#[derive(Debug, Deserialize)]
struct Order {
    order: String,
    cents: i64,
}

/// A row of the customers' table, as it is read and as it is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Customer {
    tier: String,
}

/// Points of one order that have not expired.
#[derive(Debug, Serialize, Deserialize)]
struct Lot {
    order: String,
    points: i64,
}

/// A change of a balance.
#[derive(Debug, Serialize)]
struct Balance {
    points: i64,
    change: i64,
    why: String,
}

/// Why a record is given up. It goes into the dead letter's headers, so it says what would have been right.
#[derive(Debug, thiserror::Error)]
enum Bad {
    #[error("the key is not [\"customer\", ID]")]
    Key,
    #[error("the value is not {wanted}")]
    Value {
        wanted: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("order {order} has {cents} cents; they must not be negative")]
    Negative { order: String, cents: i64 },
}

impl Bad {
    fn stage(&self) -> Stage {
        match self {
            Bad::Key => Stage::KeyConverter,
            Bad::Value { .. } => Stage::ValueConverter,
            Bad::Negative { .. } => Stage::Transformation,
        }
    }
}

/// What ends the processing of one record: the record's own fault, or the task's.
enum Trouble {
    Bad(Bad),
    Stop(Error),
}

impl From<Bad> for Trouble {
    fn from(bad: Bad) -> Self {
        Trouble::Bad(bad)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Stop(error)
    }
}

/// The processor of one task.
pub struct Loyalty {
    /// Where it reads and writes.
    pub topics: Topics,
}

impl Processor for Loyalty {
    fn process(
        &mut self,
        _: Context,
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        for record in range.filter_map(|index| records.get(index)) {
            // What is made of the record continues its trace, if it has one.
            output.caused_by(record);
            match self.take(record, state, output) {
                Ok(()) => {}
                Err(Trouble::Bad(bad)) => output.dead_letter(record, bad.stage(), &bad),
                Err(Trouble::Stop(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// A lot has expired. Its timer was removed with this transaction, so this happens once.
    fn on_timer(&mut self, _: Context, timer: &Timer, state: &mut State, output: &mut Output) -> Result<()> {
        let lot_key = timer.key.as_bytes();
        let Some(lot) = read::<Lot>(state, lot_key)? else {
            return Ok(());
        };
        state.delete(lot_key);
        let (_, id, _): (String, String, i64) = serde_json::from_slice(lot_key).map_err(|e| damaged(lot_key, &e))?;
        let why = format!("order {} has expired", lot.order);
        self.change(&id, -lot.points, why, state, output)
    }
}

impl Loyalty {
    /// Takes one record of either topic. Which of the two comes first is not promised: an order of a customer who is not
    /// known yet counts as one of no tier.
    fn take(&self, record: RecordRef<'_>, state: &mut State, output: &mut Output) -> Result<(), Trouble> {
        let (kind, id): (String, String) =
            serde_json::from_slice(record.key().unwrap_or_default()).map_err(|_| Bad::Key)?;
        if kind != "customer" {
            return Err(Bad::Key.into());
        }
        if *record.topic() == self.topics.customers {
            return table(&id, record, state);
        }
        let order: Order = parse(record.value().unwrap_or_default(), "{\"order\":TEXT,\"cents\":NUMBER}")?;
        if order.cents < 0 {
            let Order { order, cents } = order;
            return Err(Bad::Negative { order, cents }.into());
        }
        let customer: Customer = read(state, &row_key(&id))?.unwrap_or_default();
        let factor = if customer.tier == "gold" { 2 } else { 1 };
        let points = (order.cents / CENTS_A_POINT).saturating_mul(factor);
        if points == 0 {
            return Ok(());
        }
        // An offset names the order for good: the same record has it after every crash, and a task reads one partition.
        let lot_key = key(&("lot", &id, record.offset()));
        let why = format!("order {}", order.order);
        let at = record.timestamp().saturating_add(EXPIRES_AFTER_MS);
        let order = order.order;
        state.put(&lot_key, json(&Lot { order, points }));
        state.set_timer(Timer::new(TimerClock::Stream, at, String::from_utf8_lossy(&lot_key)));
        Ok(self.change(&id, points, why, state, output)?)
    }

    /// Changes a balance and says so.
    fn change(&self, id: &str, change: i64, why: String, state: &mut State, output: &mut Output) -> Result<()> {
        let balance_key = key(&("points", id));
        let points = read::<i64>(state, &balance_key)?
            .unwrap_or_default()
            .saturating_add(change);
        if points == 0 {
            state.delete(&balance_key);
        } else {
            state.put(&balance_key, json(&points));
        }
        let value = json(&Balance { points, change, why });
        let record = OutRecord {
            topic: &self.topics.points,
            partition: None,
            timestamp: None,
            key: Some(&row_key(id)),
            value: Some(&value),
        };
        output.send(record, []);
        Ok(())
    }
}

/// Keeps a customer's row, or forgets it.
fn table(id: &str, record: RecordRef<'_>, state: &mut State) -> Result<(), Trouble> {
    match record.value() {
        Some(value) => {
            let row: Customer = parse(value, "{\"tier\":TEXT}")?;
            state.put(&row_key(id), json(&row));
        }
        None => state.delete(&row_key(id)),
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(bytes: &[u8], wanted: &'static str) -> Result<T, Bad> {
    serde_json::from_slice(bytes).map_err(|source| Bad::Value { wanted, source })
}

/// Key of a customer: in the topics, and of the row in the state.
fn row_key(id: &str) -> Vec<u8> {
    key(&("customer", id))
}

/// State keys are JSON arrays, so that no two kinds of them can be mistaken for each other.
fn key(parts: &impl Serialize) -> Vec<u8> {
    json(parts)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts and numbers always have a JSON form")
}

/// Reads a row of the state.
fn read<T: DeserializeOwned>(state: &State, key: &[u8]) -> Result<Option<T>> {
    let found = state.get(key)?;
    found
        .map(|bytes| serde_json::from_slice(&bytes).map_err(|error| damaged(key, &error)))
        .transpose()
}

/// State that this program did not write is nothing that another record would mend: the task stops and says so.
fn damaged(key: &[u8], error: &serde_json::Error) -> Error {
    Error::Processor {
        name: "loyalty".to_owned(),
        reason: format!("the row {} of its state: {error}", String::from_utf8_lossy(key)),
        fate: ErrorAction::Stop,
    }
}

#[cfg(test)]
mod tests;
