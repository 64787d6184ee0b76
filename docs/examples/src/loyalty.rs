//! Loyalty points: orders become points, which are doubled for customers of the gold tier and expire after a year.
//!
//! Two topics are read together: `orders` is a stream, `customers` is a table whose current row is the newest record of
//! a key. Both have the key `["customer", ID]` and the same number of partitions, so one task has all records of a
//! customer. Every change of a balance is a record of `points`.
//!
//! Each order is counted once and its points expire once, even after a crash. A record that cannot be parsed becomes a
//! dead letter. The processor does no IO and reads no clock: its output depends only on records and state.

use event_log::{ErrorAction, OutRecord, RecordRef, RecordSlice};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::sync::Arc;
use streams::{
    Application, Context, Error, FirstStart, Output, Processor, Result, Stage, State, SubTopology, Timer, TimerClock,
};

/// Points expire a year after the timestamp of their order.
pub const EXPIRES_AFTER_MS: i64 = 365 * 24 * 60 * 60 * 1000;
/// Cents per point.
const CENTS_PER_POINT: i64 = 100;

/// Names of the topics of an application.
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
    /// The topics `<name>.orders`, `<name>.customers` and `<name>.points`.
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

/// A row of the customers table, in the topic and in the state.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Customer {
    tier: String,
}

/// A change of a customer's balance.
struct BalanceChange<'c> {
    customer: &'c str,
    points: i64,
    why: String,
}

/// Points of one order that have not expired.
#[derive(Debug, Serialize, Deserialize)]
struct Lot {
    order: String,
    points: i64,
}

/// A record of `points`: the new balance and its change.
#[derive(Debug, Serialize)]
struct Balance {
    points: i64,
    change: i64,
    why: String,
}

/// Why a record is a dead letter. The message is part of the dead letter's headers, so it states what is expected.
#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error("the key is not [\"customer\", ID]")]
    Key,
    #[error("the value is not {wanted}")]
    Value {
        wanted: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("order {order} has {cents} cents; the amount must not be negative")]
    Negative { order: String, cents: i64 },
}

impl RecordError {
    fn stage(&self) -> Stage {
        match self {
            RecordError::Key => Stage::KeyConverter,
            RecordError::Value { .. } => Stage::ValueConverter,
            RecordError::Negative { .. } => Stage::Transformation,
        }
    }
}

/// Why processing a record failed.
enum StepError {
    /// The record is the cause, and becomes a dead letter.
    Record(RecordError),
    /// The task is the cause, for example because its state is corrupt. The task stops.
    Task(Error),
}

impl From<RecordError> for StepError {
    fn from(error: RecordError) -> Self {
        StepError::Record(error)
    }
}

impl From<Error> for StepError {
    fn from(error: Error) -> Self {
        StepError::Task(error)
    }
}

/// The processor of one task.
pub struct Loyalty {
    /// Its input and output topics.
    pub topics: Topics,
}

impl Processor for Loyalty {
    fn process(&mut self, _: Context, records: RecordSlice<'_>, state: &mut State, output: &mut Output) -> Result<()> {
        for record in records.iter() {
            // The output continues the trace of the record, if it has one.
            output.caused_by(record);
            match self.process_record(record, state, output) {
                Ok(()) => {}
                Err(StepError::Record(error)) => output.dead_letter(record, error.stage(), &error),
                Err(StepError::Task(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// The points of an order expire. The timer is removed in the same transaction, so this happens once.
    fn on_timer(&mut self, _: Context, timer: &Timer, state: &mut State, output: &mut Output) -> Result<()> {
        let lot_key = timer.key.as_bytes();
        let Some(lot) = read::<Lot>(state, lot_key)? else {
            return Ok(());
        };
        state.delete(lot_key);
        let (_, id, _): (String, String, i64) = serde_json::from_slice(lot_key).map_err(|e| damaged(lot_key, &e))?;
        let why = format!("order {} has expired", lot.order);
        let change = BalanceChange {
            customer: &id,
            points: -lot.points,
            why,
        };
        self.change_balance(change, state, output)
    }
}

impl Loyalty {
    /// Processes a record of either topic. There is no order between the two topics: an order of an unknown customer is
    /// treated like an order of a customer without a tier.
    fn process_record(&self, record: RecordRef<'_>, state: &mut State, output: &mut Output) -> Result<(), StepError> {
        let (kind, id): (String, String) =
            serde_json::from_slice(record.key().unwrap_or_default()).map_err(|_| RecordError::Key)?;
        if kind != "customer" {
            return Err(RecordError::Key.into());
        }
        if *record.topic() == self.topics.customers {
            return table(&id, record, state);
        }
        let order: Order = parse(record.value().unwrap_or_default(), "{\"order\":TEXT,\"cents\":NUMBER}")?;
        if order.cents < 0 {
            let Order { order, cents } = order;
            return Err(RecordError::Negative { order, cents }.into());
        }
        let customer: Customer = read(state, &row_key(&id))?.unwrap_or_default();
        let factor = if customer.tier == "gold" { 2 } else { 1 };
        let points = (order.cents / CENTS_PER_POINT).saturating_mul(factor);
        if points == 0 {
            return Ok(());
        }
        // The offset identifies the order within the partition, even if the record is processed again after a crash.
        let lot_key = key(&("lot", &id, record.offset()));
        let why = format!("order {}", order.order);
        let at = record.timestamp().saturating_add(EXPIRES_AFTER_MS);
        let order = order.order;
        state.put(&lot_key, json(&Lot { order, points }));
        state.set_timer(Timer::new(TimerClock::Stream, at, String::from_utf8_lossy(&lot_key)));
        let change = BalanceChange {
            customer: &id,
            points,
            why,
        };
        Ok(self.change_balance(change, state, output)?)
    }

    /// Changes a balance and sends the new one.
    fn change_balance(&self, change: BalanceChange<'_>, state: &mut State, output: &mut Output) -> Result<()> {
        let balance_key = key(&("points", change.customer));
        let points = read::<i64>(state, &balance_key)?
            .unwrap_or_default()
            .saturating_add(change.points);
        if points == 0 {
            state.delete(&balance_key);
        } else {
            state.put(&balance_key, json(&points));
        }
        let value = json(&Balance {
            points,
            change: change.points,
            why: change.why,
        });
        let record = OutRecord {
            topic: &self.topics.points,
            partition: None,
            timestamp: None,
            key: Some(&row_key(change.customer)),
            value: Some(&value),
        };
        output.send(record, []);
        Ok(())
    }
}

/// Stores or deletes a customer's row.
fn table(id: &str, record: RecordRef<'_>, state: &mut State) -> Result<(), StepError> {
    match record.value() {
        Some(value) => {
            let row: Customer = parse(value, "{\"tier\":TEXT}")?;
            state.put(&row_key(id), json(&row));
        }
        None => state.delete(&row_key(id)),
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(bytes: &[u8], wanted: &'static str) -> Result<T, RecordError> {
    serde_json::from_slice(bytes).map_err(|source| RecordError::Value { wanted, source })
}

/// Key of a customer: in the topics, and of the row in the state.
fn row_key(id: &str) -> Vec<u8> {
    key(&("customer", id))
}

/// State keys are JSON arrays whose first element is the kind of row, so that rows of different kinds cannot collide.
fn key(parts: &impl Serialize) -> Vec<u8> {
    json(parts)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers always have a JSON form")
}

/// Reads and parses a row of the state.
fn read<T: DeserializeOwned>(state: &State, key: &[u8]) -> Result<Option<T>> {
    let found = state.get(key)?;
    found
        .map(|bytes| serde_json::from_slice(&bytes).map_err(|error| damaged(key, &error)))
        .transpose()
}

/// State that cannot be parsed stops the task, because no later record can correct it.
fn damaged(key: &[u8], error: &serde_json::Error) -> Error {
    Error::Processor {
        name: "loyalty".to_owned(),
        reason: format!(
            "the row {} of its state cannot be parsed: {error}",
            String::from_utf8_lossy(key)
        ),
        action: ErrorAction::Stop,
    }
}

#[cfg(test)]
mod tests;
