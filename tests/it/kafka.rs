//! What only the Kafka home of the log has to stand: brokers that die and come back, settings, TLS.
//!
//! Guarantees: each test has a broker of its own, which it may kill; random kills print their seed.
//! Never: what the conformance suite of both homes holds already.

mod secure;

use crate::world::{self, Broker};
use log::kafka::{Config, KafkaLog};
use log::{
    At, Cleanup, Error, Event, GroupConfig, GroupConsumer, Isolation, Offset, OutBatch, OutRecord, Outcome,
    RecordBatch, Session, SessionConfig, SharedLog, StartFrom, TopicConfig, TopicPartition, TopicSpec,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

fn connect(broker: &Broker) -> SharedLog {
    let mut config = Config::new(broker.bootstrap());
    config.request_timeout = Duration::from_secs(3);
    KafkaLog::connect(config).expect("these settings are fine")
}

fn line(log: &SharedLog) -> TopicPartition {
    let name = world::unique("line");
    let config = TopicConfig::new(Cleanup::Delete);
    let spec = TopicSpec {
        name: name.clone(),
        partitions: 1,
        replication: None,
        config,
    };
    // In its first seconds a broker is not ready for everything.
    world::wait_for("the topic", LIMIT, || {
        log.create_topics(std::slice::from_ref(&spec)).ok()
    });
    TopicPartition::new(name, 0)
}

fn one(at: &TopicPartition, value: &str) -> OutBatch {
    let mut batch = OutBatch::default();
    let value = Some(value.as_bytes());
    batch.push(
        OutRecord {
            topic: &at.topic,
            partition: Some(at.partition),
            timestamp: None,
            key: None,
            value,
        },
        [],
    );
    batch
}

/// Every committed record, once nothing is open.
fn committed(log: &SharedLog, at: &TopicPartition) -> Vec<(Offset, u32)> {
    let end_or_why = || {
        let end = log.offset(at, At::End).map_err(|e| format!("the end: {e:?}"))?;
        let stable = log
            .offset(at, At::Stable)
            .map_err(|e| format!("the stable end: {e:?}"))?;
        if stable == end {
            Ok(end)
        } else {
            Err(format!("a transaction is open from {stable}, the end is {end}"))
        }
    };
    let limit = Instant::now() + LIMIT;
    let end = loop {
        let why = match end_or_why() {
            Ok(end) => break end,
            Err(why) => why,
        };
        assert!(
            Instant::now() < limit,
            "waited {LIMIT:?} in vain for no open transaction: {why}"
        );
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut reader = log.reader(Isolation::ReadCommitted).expect("a reader");
    world::wait_for("the assignment", LIMIT, || {
        reader.assign(&[(at.clone(), StartFrom::Start)]).ok()
    });
    let (mut seen, mut batch) = (Vec::new(), RecordBatch::default());
    world::wait_for("the end", LIMIT, || {
        reader.poll(&mut batch, 1 << 20, SHORT).ok()?;
        let number = |value: Option<&[u8]>| {
            std::str::from_utf8(value.expect("a value"))
                .expect("text")
                .parse()
                .expect("a number")
        };
        seen.extend(batch.iter().map(|r| (r.offset(), number(r.value()))));
        (reader.position(at) >= Some(end)).then_some(())
    });
    seen
}

/// A writer that looks before it repeats loses and doubles nothing, whenever the broker dies: what was reported as
/// committed is there, what was reported as aborted is not, and only `Unknown` may be either.
#[test]
fn transactions_outlive_a_broker_that_is_killed_at_any_moment() {
    let mut broker = Broker::start();
    let log = connect(&broker);
    let at = line(&log);
    let config = SessionConfig {
        transactional_id: "writer".to_owned(),
        transaction_timeout: Duration::from_secs(5),
    };
    let mut session = world::wait_for("a session", LIMIT, || log.session(config.clone()).ok());
    let seed = uuid::Uuid::new_v4().as_u128();
    println!("seed {seed}");
    let (stop, done) = (AtomicBool::new(false), AtomicU32::new(0));
    let (mut next, mut outcomes) = (0_u32, [0_u32; 3]);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            for round in 0..4_u32 {
                let before = done.load(Ordering::SeqCst);
                let busy = || (done.load(Ordering::SeqCst) > before + 20).then_some(());
                world::wait_for("the writer to be busy", LIMIT, busy);
                let micros = u64::try_from((seed >> (round * 16)) & 0xffff).expect("16 bits");
                std::thread::sleep(Duration::from_micros(micros));
                broker.kill();
                broker.restart();
            }
            stop.store(true, Ordering::SeqCst);
        });
        // A killer that failed ends it too: the scope then hands its panic on.
        while !stop.load(Ordering::SeqCst) && !killer.is_finished() {
            done.store(next, Ordering::SeqCst);
            let outcome = transact(&mut *session, &at, &next.to_string());
            let (which, may_be_there) = match &outcome {
                Outcome::Committed(_) => (0, true),
                Outcome::Aborted { .. } => (1, false),
                Outcome::Unknown { .. } => (2, true),
            };
            if let Some(count) = outcomes.get_mut(which) {
                *count += 1;
            }
            if matches!(outcome, Outcome::Committed(_)) {
                next += 1;
                continue;
            }
            world::wait_for("the session to be renewed", LIMIT, || session.renew().ok());
            let there = committed(&log, &at).last().is_some_and(|(_, last)| *last == next);
            assert!(
                may_be_there || !there,
                "seed {seed}: {outcome:?}, and yet {next} is there"
            );
            next += u32::from(there);
        }
    });
    let numbers: Vec<u32> = committed(&log, &at).into_iter().map(|(_, number)| number).collect();
    println!("{next} records; committed, aborted, unknown: {outcomes:?}");
    assert!(
        numbers.iter().copied().eq(0..next),
        "seed {seed}: {} records for {next} commits",
        numbers.len()
    );
}

fn transact(session: &mut dyn Session, at: &TopicPartition, value: &str) -> Outcome {
    let sent = session.begin().and_then(|()| session.send(&one(at, value)));
    match sent {
        Ok(()) => session.commit(None),
        Err(error) => Outcome::Aborted {
            fenced: false,
            reason: error.to_string(),
        },
    }
}

fn join(log: &SharedLog, at: &TopicPartition, session_timeout: Duration) -> Box<dyn GroupConsumer> {
    let config = GroupConfig {
        group: world::unique("group"),
        instance: None,
        topics: vec![at.topic.clone()],
        session_timeout,
    };
    let mut member = log.group(config).expect("a member");
    let mut batch = RecordBatch::default();
    world::wait_for("the assignment", LIMIT, || {
        matches!(member.poll(&mut batch, 1 << 20, SHORT), Ok(Event::Assigned(_))).then_some(())
    });
    member.start(at, 0).expect("start");
    member
}

/// While no broker answers, every call says so, in time and with the reason; when it is back, the same values go on.
#[test]
fn a_broker_that_is_away_is_told_and_everything_goes_on_when_it_is_back() {
    let mut broker = Broker::start();
    let log = connect(&broker);
    let at = line(&log);
    let mut member = join(&log, &at, Duration::from_secs(30));
    let mut reader = log.reader(Isolation::ReadCommitted).expect("a reader");
    reader.assign(&[(at.clone(), StartFrom::Start)]).expect("assign");
    log.append(&one(&at, "0")).expect("append");
    let mut batch = RecordBatch::default();
    let mut next = |member: &mut dyn GroupConsumer, reader: &mut dyn log::Reader, offset: Offset| {
        world::wait_for("the member's record", LIMIT, || {
            match member.poll(&mut batch, 1 << 20, SHORT) {
                Ok(Event::Records) => {
                    batch.iter().for_each(|r| assert_eq!(r.offset(), offset));
                    Some(())
                }
                // A member may be away for longer than its session: it then joins again.
                Ok(Event::Assigned(_)) => member.start(&at, offset).ok().and(None),
                _ => None,
            }
        });
        world::wait_for("the reader's record", LIMIT, || {
            (reader.poll(&mut batch, 1 << 20, SHORT).ok()? > 0)
                .then(|| assert_eq!(batch.iter().next().map(|r| r.offset()), Some(offset)))
        });
    };
    next(&mut *member, &mut *reader, 0);

    broker.kill();
    let away = |error: &Error| assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let began = Instant::now();
    away(&log.append(&one(&at, "lost")).expect_err("nobody is there"));
    away(&log.describe(&at.topic).expect_err("nobody is there"));
    away(&log.offset(&at, At::End).expect_err("nobody is there"));
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "three calls of 3 s took {:?}",
        began.elapsed()
    );
    let mut read = RecordBatch::default();
    let told = world::wait_for("the member to be told", LIMIT, || {
        member.poll(&mut read, 1 << 20, SHORT).err()
    });
    away(&told);
    assert!(told.to_string().contains(&broker.bootstrap()), "{told}");
    away(&world::wait_for("the reader to be told", LIMIT, || {
        reader.poll(&mut read, 1 << 20, SHORT).err()
    }));

    broker.restart();
    world::wait_for("an append", LIMIT, || log.append(&one(&at, "1")).ok());
    next(&mut *member, &mut *reader, 1);
    assert_eq!(
        log.describe(&at.topic).expect("it answers").map(|info| info.partitions),
        Some(1)
    );
}

/// The first group of a cluster, whose coordinator's topic is yet to be made, has its offsets in time.
#[test]
fn the_first_group_of_a_cluster_finds_its_coordinator() {
    let broker = Broker::start();
    let log = connect(&broker);
    let at = line(&log);
    log.set_committed("first", &[(at.clone(), 0)]).expect("set offsets");
    let found = log
        .committed("first", std::slice::from_ref(&at))
        .expect("fetch offsets");
    assert_eq!(found.get(&at), Some(&Some(0)));
}

/// A setting that is not one, or a value that is none, is refused by name; its value, which may be a secret, is not
/// repeated, nor shown with the configuration.
#[test]
fn a_wrong_setting_is_refused_by_its_name() {
    for (name, value) in [("sasl.pasword", "hunter2"), ("fetch.wait.max.ms", "hunter2")] {
        let mut config = Config::new("127.0.0.1:1");
        config.settings.insert(name.to_owned(), value.to_owned());
        assert!(!format!("{config:?}").contains("hunter2"));
        let error = KafkaLog::connect(config).and_then(|log| log.reader(Isolation::ReadCommitted).map(drop));
        let error = error.expect_err("it is refused");
        assert!(
            matches!(error, Error::Refused { .. }) && error.to_string().contains(name),
            "{error}"
        );
    }
}

/// Nobody at the address: an answer in time that names it.
#[test]
fn an_address_where_nobody_is_gets_a_clear_answer() {
    let address = format!("127.0.0.1:{}", world::free_port());
    let mut config = Config::new(address.clone());
    config.request_timeout = Duration::from_secs(2);
    let log: Arc<_> = KafkaLog::connect(config).expect("the settings are fine");
    let error = log.topics().expect_err("nobody is there");
    assert!(
        matches!(error, Error::Unavailable { .. }) && error.to_string().contains(&address),
        "{error}"
    );
}
