//! Chunks of a snapshot while the stream changes the same rows.

use super::super::super::window::InProgress;
use super::super::chunks::{ChunkRows, Outcome};
use super::*;
use bytes::Bytes;

/// A connector whose snapshot of table `orders` has begun.
struct Running {
    fixture: Fixture,
    next_lsn: u64,
}

/// A decoded chunk record: key and note; for the end of the snapshot, its `low`.
type Rows = Vec<String>;

impl Running {
    fn new() -> Self {
        let mut fixture = Fixture::new(None);
        fixture.transaction(&[inserted("90", "before the snapshot")]);
        assert!(fixture.changes.want_snapshot("orders"));
        let table = Arc::clone(&fixture.changes.setup.tables[0]);
        let record = fixture.changes.position().source.table("orders").unwrap().clone();
        fixture.changes.begin_snapshot(table, record);
        Running {
            fixture,
            next_lsn: BEGIN.0 + 0x100,
        }
    }

    fn lsn(&mut self) -> Lsn {
        self.next_lsn += 0x100;
        Lsn(self.next_lsn)
    }

    /// Converts one transaction with this id.
    fn commit(&mut self, xid: u32, messages: &[Vec<u8>]) -> Lines {
        let (at, mut out) = (self.lsn(), OutBatch::default());
        let changes = &mut self.fixture.changes;
        changes.begin(at, 0, xid);
        for bytes in messages {
            changes.change(&decode(bytes).unwrap(), &mut out).unwrap();
        }
        changes.commit(Lsn(at.0 + 8), &mut out);
        self.fixture.lines(&out)
    }

    fn publish(&mut self, rows: &ChunkRows) -> (Outcome, Rows) {
        let (at, mut out) = (self.lsn(), OutBatch::default());
        let outcome = self.fixture.changes.publish_chunk(at, rows, &mut out).unwrap();
        let mut published = Rows::new();
        let mut ordinals = Vec::new();
        for (record, headers) in out.iter() {
            let headers: Vec<_> = headers.collect();
            let tx = headers
                .iter()
                .find(|(name, _)| *name == headers::TX)
                .unwrap()
                .1
                .unwrap();
            let tx = Tx::parse(tx).unwrap();
            assert_eq!(tx.position, at, "a chunk has the position of its high watermark");
            assert!(headers.iter().any(|(name, _)| *name == headers::SNAPSHOT));
            ordinals.push(tx.ordinal);
            let key = String::from_utf8(record.key.unwrap().to_vec()).unwrap();
            let text = if key.starts_with("[\"~chunk\"") {
                let end = ChunkEnd::read(record.value.unwrap()).unwrap();
                assert!(end.is_final && end.from.is_none() && end.to.is_none());
                format!("end low {}", end.low)
            } else {
                let mut row = Vec::new();
                let body = &record.value.unwrap()[schemas::wire::FRAME_LENGTH..];
                self.fixture.schema.decode(body, &mut row).unwrap();
                assert!(row[2].as_array().is_none(), "a row of a chunk is complete");
                format!("{key} {}", row[1].as_str().unwrap())
            };
            published.push(text + if tx.last { " ." } else { "" });
        }
        assert!(ordinals.is_sorted_by(|a, b| a < b));
        (outcome, published)
    }

    fn after(&self) -> Option<Vec<String>> {
        self.fixture.changes.position().chunks.clone().unwrap().after
    }
}

fn chunk(rows: &[(&str, &str)]) -> ChunkRows {
    let line = |(id, note): &(&str, &str)| Bytes::from(format!("{id}\t{note}\n"));
    ChunkRows {
        lines: rows.iter().map(line).collect(),
        is_last: false,
        by_key: 0,
        in_progress: InProgress::default(),
        at_ms: 1,
    }
}

fn last(rows: &[(&str, &str)]) -> ChunkRows {
    ChunkRows {
        is_last: true,
        ..chunk(rows)
    }
}

fn updated(id: &str, note: Sent<'_>) -> Vec<u8> {
    message(b'U', &[(b'N', &[Some(id), note])])
}

fn deleted(id: &str) -> Vec<u8> {
    message(b'D', &[(b'K', &[Some(id), None])])
}

#[test]
fn rows_that_change_in_the_window_are_dropped_from_the_chunk() {
    let mut running = Running::new();
    running.commit(1, &[updated("1", Some("before the window"))]);
    running.fixture.changes.open_window();
    let moved = message(b'U', &[(b'K', &[Some("4"), None]), (b'N', &[Some("5"), Some("moved")])]);
    let streamed = running.commit(
        2,
        &[
            updated("2", Some("new")),
            deleted("3"),
            moved,
            inserted("6", "inserted"),
        ],
    );
    assert_eq!(streamed.len(), 5);
    let rows = [
        ("1", "one"),
        ("2", "old"),
        ("3", "gone"),
        ("4", "four"),
        ("5", "?"),
        ("6", "?"),
        ("7", "seven"),
    ];
    let (outcome, rows) = running.publish(&chunk(&rows));
    assert_eq!(outcome, Outcome::Published);
    assert_eq!(rows, [r#"["orders","1"] one"#, r#"["orders","7"] seven ."#]);
    assert_eq!(running.after(), Some(vec![String::from("7")]));
    // The window of the next chunk begins empty.
    running.fixture.changes.open_window();
    let (_, rows) = running.publish(&chunk(&[("2", "two")]));
    assert_eq!(rows, [r#"["orders","2"] two ."#]);
}

#[test]
fn chunk_without_an_open_window_is_read_again() {
    let mut running = Running::new();
    let (outcome, rows) = running.publish(&chunk(&[("1", "one")]));
    assert!(matches!(outcome, Outcome::Again(_)) && rows.is_empty());
    assert_eq!(running.after(), None, "the progress is that of published chunks");
}

#[test]
fn unchanged_value_of_a_changed_row_comes_from_the_chunk() {
    let mut running = Running::new();
    running.fixture.changes.open_window();
    running.commit(2, &[updated("1", None)]);
    // Here the stream contains the value, and readers merge it.
    running.commit(3, &[updated("2", Some("new")), updated("2", None)]);
    running.commit(4, &[updated("3", None), updated("3", Some("newest"))]);
    running.commit(5, &[updated("4", None), deleted("4")]);
    let rows = [("1", "one"), ("2", "old"), ("3", "old"), ("4", "old"), ("5", "five")];
    let (_, rows) = running.publish(&chunk(&rows));
    assert_eq!(rows, [r#"["orders","1"] one"#, r#"["orders","5"] five ."#]);
}

#[test]
fn row_that_moves_without_its_unchanged_value_is_read_by_its_new_key() {
    let mut running = Running::new();
    // The row moves in front of the rows that are still to be read, outside any window.
    running.commit(2, &[moved("8", "0")]);
    assert!(running.fixture.changes.position().chunks.as_ref().unwrap().moved);
    running.fixture.changes.open_window();
    let (outcome, _) = running.publish(&last(&[("1", "one")]));
    assert_eq!(
        outcome,
        Outcome::Published,
        "the snapshot must not end without that row"
    );
    let keys = running.fixture.changes.moved_keys(10);
    assert_eq!(keys, [[String::from("0")]]);
    running.fixture.changes.open_window();
    let by_key = ChunkRows {
        by_key: 1,
        ..chunk(&[("0", "long")])
    };
    let (outcome, rows) = running.publish(&by_key);
    assert_eq!(
        (outcome, rows),
        (Outcome::Published, vec![String::from(r#"["orders","0"] long ."#)])
    );
    assert_eq!(
        running.after(),
        Some(vec![String::from("1")]),
        "the place in key order is kept"
    );
    running.fixture.changes.open_window();
    assert_eq!(running.publish(&last(&[])).0, Outcome::Ended);
    // After a restart the list is lost, so the snapshot starts again at the first row.
    let mut running = Running::new();
    running.fixture.changes.open_window();
    running.publish(&chunk(&[("1", "one")]));
    running.commit(2, &[moved("8", "0")]);
    assert_eq!(resumed(running.fixture).after, None);
}

/// The progress after a restart at the fixture's position.
fn resumed(fixture: Fixture) -> ChunkProgress {
    let changes = Changes::new(fixture.changes.setup, fixture.changes.position);
    assert!(changes.window.follows("orders"));
    changes.position.chunks.unwrap()
}

#[test]
fn truncated_table_has_no_rows_of_the_chunk() {
    let mut truncated = vec![b'T'];
    truncated.extend(1u32.to_be_bytes());
    truncated.push(0);
    truncated.extend(RELATION.to_be_bytes());
    let mut running = Running::new();
    running.fixture.changes.open_window();
    running.commit(2, &[updated("1", None), truncated, inserted("2", "new")]);
    let (outcome, rows) = running.publish(&last(&[("1", "one"), ("2", "two")]));
    assert_eq!(outcome, Outcome::Ended);
    assert_eq!(rows.len(), 1, "{rows:?}");
}

#[test]
fn committed_transaction_that_the_chunk_does_not_show_is_noticed() {
    let mut running = Running::new();
    running.commit(7, &[updated("1", Some("new"))]);
    running.fixture.changes.open_window();
    running.commit(8, &[updated("2", Some("new"))]);
    let rows = |listed: &[u32], from| ChunkRows {
        in_progress: InProgress {
            listed: listed.to_vec(),
            from: Some(from),
        },
        ..chunk(&[("1", "old"), ("2", "old"), ("3", "three")])
    };
    // While the newest transaction ends, it is not among the listed ones.
    for (listed, from) in [(vec![7], u32::MAX / 2), (vec![], 7)] {
        let (outcome, published) = running.publish(&rows(&listed, from));
        assert_eq!(outcome, Outcome::TooEarly);
        assert_eq!(published, [""; 0]);
        running.fixture.changes.open_window();
    }
    running.fixture.changes.open_window();
    running.commit(9, &[updated("2", Some("newer"))]);
    // A transaction that commits in the window may be in progress when the chunk is read.
    let (outcome, published) = running.publish(&rows(&[9], u32::MAX / 2));
    assert_eq!((outcome, published.len()), (Outcome::Published, 2));
}

#[test]
fn snapshot_ends_once_and_a_restart_continues_after_the_last_published_chunk() {
    let mut running = Running::new();
    let low = running.fixture.changes.position().complete_lsn;
    running.fixture.changes.open_window();
    running.publish(&chunk(&[("1", "one"), ("2", "two")]));
    let progress = running.fixture.changes.position().chunks.clone().unwrap();
    assert_eq!((progress.chunk, progress.rows), (1, 2));
    let json = crate::source::Position::to_json(running.fixture.changes.position());
    assert!(
        json.contains(r#""chunks":{"table":"orders","chunk":1,"rows":2,"after":["2"]}"#),
        "{json}"
    );
    running.fixture.changes.open_window();
    let (outcome, rows) = running.publish(&last(&[("3", "three")]));
    assert_eq!(outcome, Outcome::Ended);
    assert_eq!(
        rows,
        [String::from(r#"["orders","3"] three"#), format!("end low {low} .")]
    );
    let position = running.fixture.changes.position();
    assert_eq!(position.chunks, None);
    assert_eq!(position.source.table("orders").unwrap().snapshot, None);
    let mut running = Running::new();
    running.fixture.changes.open_window();
    running.publish(&chunk(&[("1", "one"), ("2", "two")]));
    assert_eq!(resumed(running.fixture).after, Some(vec![String::from("2")]));
}

#[test]
fn stopped_table_is_published_from_the_beginning_of_its_snapshot() {
    let mut running = Running::new();
    running.fixture.changes.stop("orders", Cause::other("replaced"), None);
    assert_eq!(
        running.fixture.changes.position().chunks,
        None,
        "its snapshot is abandoned"
    );
    let skipped = running.commit(2, &[inserted("1", "skipped")]);
    assert_eq!(skipped, [r#"0 ["~missing","orders"] ."#]);
    assert!(running.fixture.changes.want_snapshot("orders"));
    assert!(
        running.commit(3, &[inserted("2", "skipped")]).is_empty(),
        "only requested"
    );
    let missing = running.fixture.changes.position().lsn;
    let table = Arc::clone(&running.fixture.changes.setup.tables[0]);
    let record = static_content().tables["orders"].clone();
    running.fixture.changes.begin_snapshot(table, record);
    assert_eq!(running.fixture.cause(), None);
    // The server does not send the relation again.
    assert_eq!(
        running.commit(4, &[inserted("3", "x")]),
        [r#"0 ["orders","3"] whole ."#]
    );
    running.fixture.changes.open_window();
    let (_, rows) = running.publish(&last(&[]));
    let low: Lsn = rows[0].split(' ').nth(2).unwrap().parse().unwrap();
    assert!(
        missing < low,
        "the end of the snapshot must remove the missing entry of the table"
    );
}

#[test]
fn relation_that_does_not_fit_the_new_record_is_an_error_until_it_is_sent_again() {
    let mut running = Running::new();
    running.fixture.changes.stop("orders", Cause::other("replaced"), None);
    let table = Arc::clone(&running.fixture.changes.setup.tables[0]);
    let record = TableRecord {
        oid: RELATION + 1,
        ..static_content().tables["orders"].clone()
    };
    running.fixture.changes.begin_snapshot(table, record);
    let (changes, mut out) = (&mut running.fixture.changes, OutBatch::default());
    changes.begin(Lsn(BEGIN.0 + 0x900), 0, 5);
    assert!(changes.change(&decode(&inserted("3", "x")).unwrap(), &mut out).is_err());
}

#[test]
fn rejected_snapshot_leaves_a_running_table_running() {
    let state = |cause: &str| NeedsSnapshot {
        cause: cause.to_owned(),
        fix: String::new(),
        published: false,
        schema_rejected: false,
        automatic: false,
    };
    let mut fixture = Fixture::new(None);
    fixture.changes.want_snapshot("orders");
    fixture.changes.snapshot_failed("orders", state("no permission"));
    let record = fixture.changes.position().source.table("orders").unwrap().clone();
    assert_eq!((record.needs_snapshot, record.snapshot), (None, None));
    assert!(!fixture.changes.want_snapshot("unknown"));
    let mut running = Running::new();
    running
        .fixture
        .changes
        .snapshot_failed("orders", state("no permission"));
    assert_eq!(running.fixture.cause().as_deref(), Some("no permission"));
}
