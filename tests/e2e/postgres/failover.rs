//! Several hosts, standbys, and the promotion of a standby.

use super::harness::{Database, Setting};
use crate::support::{Postgres, wait_for};
use connectors::commands::Command;
use connectors::status::State;
use std::time::Duration;

/// First version that synchronizes slots to standbys.
const SYNCHRONIZES_SINCE: u32 = 17;

#[test]
fn standby_is_not_used_and_a_synchronized_slot_continues_after_its_promotion() {
    let mut primary = Postgres::start();
    let database = Database::at(&primary.url());
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY); INSERT INTO orders VALUES (1)");
    let synchronizes = synchronizes(&database);
    database.sql("SELECT pg_create_physical_replication_slot('standby', true)");
    let standby = primary.standby(if synchronizes {
        "primary_slot_name = 'standby'\nhot_standby_feedback = on\nsync_replication_slots = on"
    } else {
        "primary_slot_name = 'standby'\nhot_standby_feedback = on"
    });
    let mut setting = Setting::new(&database, &["orders(id int8)"]);
    setting.heartbeat_seconds = 1;
    let direct = setting.url.clone();
    let only_standby = direct.replace(&format!(":{}/", primary.port()), &format!(":{}/", standby.port()));
    let both = direct.replace(
        &format!("127.0.0.1:{}/", primary.port()),
        &format!("127.0.0.1:{},127.0.0.1:{}/", standby.port(), primary.port()),
    );
    setting.url = only_standby.clone();
    assert_standby_is_refused(&setting, &database);
    // Of several hosts, the primary is used.
    setting.url = both;
    let mut topic = setting.topic();
    let connector = setting.start(&database);
    topic.lines(2);
    connector.wait_for(State::Running);
    database.sql("INSERT INTO orders VALUES (2)");
    topic.lines(3);
    if synchronizes {
        let slot = database.slot("slot_name").unwrap();
        let standby_sql = Standby(&only_standby, &database);
        wait_for("the slot on the standby", Duration::from_secs(60), || {
            // A synchronized slot is kept once the slot of the primary has advanced.
            database.sql("CHECKPOINT");
            standby_sql.is_synchronized(&slot).then_some(())
        });
    }
    // Nothing may be published that the standby lacks.
    connector.send(Command::Pause);
    connector.wait_for(State::Paused);
    wait_for("the standby to catch up", Duration::from_secs(60), || {
        let caught_up = "SELECT count(*)::text FROM pg_stat_replication WHERE application_name = 'walreceiver' AND \
                         replay_lsn >= pg_current_wal_lsn()";
        (database.value(caught_up).as_deref() == Some("1")).then_some(())
    });
    primary.kill();
    standby.promote();
    connector.send(Command::Resume);
    if synchronizes {
        let after = Database::named(&database.name, &only_standby);
        after.sql("INSERT INTO orders VALUES (3)");
        topic.wait("the row of the new primary", |records| {
            records.iter().any(|r| r.key == r#"["orders","3"]"#)
        });
        connector.wait_for(State::Running);
        let keys: Vec<&str> = topic
            .records
            .iter()
            .map(|r| r.key.as_str())
            .filter(|k| !k.contains("chunk"))
            .collect();
        assert_eq!(keys, [r#"["orders","1"]"#, r#"["orders","2"]"#, r#"["orders","3"]"#]);
    } else {
        let report = connector.wait_for(State::NeedsResync);
        let cause = report.cause.unwrap();
        assert!(
            cause.contains("not synchronized to this server before the failover"),
            "{cause}"
        );
    }
    connector.stop();
}

/// Whether the server synchronizes slots to its standbys.
fn synchronizes(database: &Database) -> bool {
    let version: u32 = database
        .value("SELECT current_setting('server_version_num')")
        .and_then(|text| text.parse().ok())
        .unwrap();
    version / 10_000 >= SYNCHRONIZES_SINCE
}

fn assert_standby_is_refused(setting: &Setting, database: &Database) {
    let connector = setting.start(database);
    let cause = connector.wait_for(State::Failed).cause.unwrap();
    assert!(
        cause.contains("is a standby, but the connector needs the primary"),
        "{cause}"
    );
    connector.stop();
}

struct Standby<'s>(&'s str, &'s Database);

impl Standby<'_> {
    fn is_synchronized(&self, slot: &str) -> bool {
        let database = Database::named(&self.1.name, self.0);
        let statement = format!(
            "SELECT (to_json(s)->>'synced')::bool AND NOT (to_json(s)->>'temporary')::bool FROM pg_replication_slots s \
             WHERE slot_name = '{slot}'"
        );
        database.value(&statement).as_deref() == Some("t")
    }
}
