//! The application that the cluster's stage kills: a join of a stream with a table, and a count of what it joined.
//!
//! Guarantees: each output follows from the order of its input's partition alone. Never: a commit of its own.

use super::stage::Seat;
use log::{OutRecord, RecordBatch};
use process::{Readiness, Service, telemetry};
use runtime::{Application, Config, Context, Effects, Factory, FirstStart, Processor, State, SubTopology, TaskInfo};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Set in the child only: its [`Seat`] as JSON.
pub const SEAT: &str = "TRUNKLINE_TEST_CLUSTER_SEAT";

/// Says each order with its key's price, which is `0` when there is none.
struct Join(Arc<str>);

/// Says each joined order's number among those of its key, and the sum so far of amount × price.
struct Count(Arc<str>);

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the input is text")
}

fn emit(effects: &mut Effects, topic: &Arc<str>, partition: i32, key: &[u8], value: &str) {
    let out = OutRecord {
        topic,
        partition: Some(partition),
        timestamp: None,
        key: Some(key),
        value: Some(value.as_bytes()),
    };
    effects.emit(out, []);
}

impl Processor for Join {
    fn step(
        &mut self,
        _: Context,
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        effects: &mut Effects,
    ) -> runtime::Result<()> {
        for record in range.filter_map(|index| records.get(index)) {
            let Some(key) = record.key() else { continue };
            match (&*record.partition().topic, record.value()) {
                ("prices", Some(price)) => state.put(key, price.to_vec()),
                ("prices", None) => state.delete(key),
                (_, Some(order)) => {
                    let price = state.get(key)?;
                    let mut words = text(order).split(' ');
                    let (id, amount) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                    let value = format!("{id} {amount} {}", price.as_deref().map_or("0", text));
                    emit(effects, &self.0, record.partition().partition, key, &value);
                }
                (_, None) => {}
            }
        }
        Ok(())
    }
}

impl Processor for Count {
    fn step(
        &mut self,
        _: Context,
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        effects: &mut Effects,
    ) -> runtime::Result<()> {
        let number = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        for record in range.filter_map(|index| records.get(index)) {
            let (Some(key), Some(joined)) = (record.key(), record.value()) else {
                continue;
            };
            let mut words = text(joined).split(' ');
            let id = words.next().unwrap_or_default();
            let amount = number(words.next()) * number(words.next());
            let before = state.get(key)?;
            let mut words = before.as_deref().map_or("", text).split(' ');
            let (count, sum) = (number(words.next()) + 1, number(words.next()) + amount);
            state.put(key, format!("{count} {sum}").into_bytes());
            let value = format!("{id} {count} {sum}");
            emit(effects, &self.0, record.partition().partition, key, &value);
        }
        Ok(())
    }
}

fn sub_topology(name: &str, inputs: &[&str], factory: Factory) -> SubTopology {
    SubTopology {
        name: name.to_owned(),
        inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
        store: name.to_owned(),
        factory,
        first_start: FirstStart::Earliest,
    }
}

/// Runs a seat until it is asked to end; returns at once where there is none in the environment.
pub fn run() -> bool {
    let Some(seat) = process::config::env(SEAT) else {
        return false;
    };
    let seat: Seat = serde_json::from_str(&seat).expect("a seat");
    telemetry::logs(&telemetry::Config::default()).expect("log");
    let log = log::kafka::KafkaLog::connect(log::kafka::Config::new(seat.kafka.clone())).expect("connect");
    let join: Factory = Arc::new(|_: &TaskInfo| Box::new(Join("joined".into())));
    let count: Factory = Arc::new(|_: &TaskInfo| Box::new(Count("counts".into())));
    let application = Application {
        name: seat.application.clone(),
        subtopologies: vec![
            sub_topology("join", &["orders", "prices"], join),
            sub_topology("count", &["joined"], count),
        ],
    };
    let mut config = Config::new(&seat.instance, &seat.dir);
    config.threads = seat.threads;
    config.session_timeout = Duration::from_secs(6);
    config.store_memory_bytes = 8 << 20;
    let ended = Service::new().worker_threads(1).run(move |tasks| async move {
        let clock = process::clock::system();
        runtime::run(application, config, log, clock, &tasks, &Readiness::new());
        tasks.drain().started().await;
    });
    ended.expect("a clean end");
    true
}
