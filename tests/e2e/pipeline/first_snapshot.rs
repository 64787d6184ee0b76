//! The first complete page of a device waits for the first snapshots of its tables: before the connector runs, while it
//! reads a table, after restarts, and for a view that is added later. The rows of a source whose views are all removed leave
//! the devices.

use crate::support::{Broker, Fleet, Phone, Postgres, sql, wait_for};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(90);
/// Rows of each table, which fill several chunks.
const ROWS: usize = 6_000;

/// The topology of these tables, some of them with a view of the same name, and of an event.
fn topology(tables: &[&str], views: &[&str]) -> String {
    let table = |name: &&str| {
        format!(
            "[[table]]\nsource = \"db\"\nname = \"{name}\"\nkey = [\"id\"]\n\
             columns = {{ id = \"int4\", note = \"text\" }}\n"
        )
    };
    let view = |name: &&str| format!("[[view]]\nname = \"{name}\"\nfrom = \"db.{name}\"\nbucket = \"all\"\n");
    let tables: String = tables.iter().map(table).collect();
    let views: String = views.iter().map(view).collect();
    format!(
        "name = \"firsts\"\n[[connector]]\nname = \"db\"\nkind = \"postgres\"\n{tables}{views}\
         [[event]]\nname = \"seen\"\nfields = {{ id = \"int8\" }}\nkey = [\"id\"]\npartitions = 1\n\
         [[view]]\nname = \"seen\"\nfrom = \"event:seen\"\nbucket = \"all\"\n\
         [[bucket]]\nname = \"all\"\n[[membership]]\nbucket = \"all\"\n\
         [[node]]\nname = \"connector\"\nruns = [\"connector:db\"]\n\
         [[node]]\nname = \"processor\"\nruns = [\"processor:sync-views\"]\n\
         [[node]]\nname = \"edge-1\"\nruns = [\"edge\"]\n"
    )
}

fn create(url: &str, table: &str) {
    sql(
        url,
        &format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, note text NOT NULL);
             INSERT INTO {table} SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, {ROWS}) n"
        ),
    );
}

struct Setting {
    fleet: Fleet,
    postgres: Postgres,
    _broker: Broker,
}

impl Setting {
    fn new() -> Setting {
        let (postgres, broker) = (Postgres::start(), Broker::start());
        create(&postgres.url(), "items");
        let connector = format!("[connectors.db]\nurl = \"{}\"\n", postgres.url());
        let fleet = Fleet::new(&topology(&["items"], &["items"]), &broker.bootstrap(), &connector);
        Setting {
            fleet,
            postgres,
            _broker: broker,
        }
    }

    fn phone(&self, name: &str) -> Phone {
        Phone::new(name, &self.fleet.token("x", &[]))
    }

    /// Polls until a page is answered.
    fn page(&self, phone: &mut Phone) -> (bool, Vec<String>) {
        wait_for("a page", LIMIT, || {
            phone.page = None;
            phone.poll(&self.fleet.edge("edge-1"), 0);
            phone.page.clone()
        })
    }

    /// Polls until a page is complete without stale views, and checks that no page is complete before it has all rows of
    /// these views.
    fn first_complete(&self, phone: &mut Phone, views: &[&str]) {
        let until = Instant::now() + LIMIT;
        loop {
            phone.poll(&self.fleet.edge("edge-1"), 1);
            let (is_complete, stale) = phone.page.clone().unwrap_or_default();
            if is_complete {
                let rows: Vec<usize> = views.iter().map(|view| phone.view(view).count()).collect();
                assert_eq!(rows, vec![ROWS; views.len()], "complete, stale: {stale:?}");
            }
            if is_complete && stale.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "no complete page: {}", phone.last);
        }
    }
}

#[test]
fn first_complete_page_waits_for_the_first_snapshot() {
    let mut setting = Setting::new();
    setting.fleet.start("processor");
    setting.fleet.start("edge-1");
    // The connector has published nothing.
    let mut first = setting.phone("first");
    let loading = (false, vec!["items".to_owned()]);
    assert_eq!(setting.page(&mut first), loading);
    assert_eq!(setting.page(&mut first), loading);
    setting
        .fleet
        .start_with("connector", "connector.postgres.snapshot_end=pause:2000");
    setting.first_complete(&mut first, &["items"]);
    // Restarts, also of an edge that has to read view.log again.
    setting.fleet.kill("processor");
    setting.fleet.kill("edge-1");
    setting.fleet.wipe("edge-1");
    setting.fleet.start("processor");
    setting.fleet.start("edge-1");
    setting.first_complete(&mut setting.phone("second"), &["items"]);
    setting.fleet.kill("edge-1");
    setting.fleet.start("edge-1");
    setting.first_complete(&mut setting.phone("third"), &["items"]);

    // A view of a table that is added later.
    for node in ["connector", "processor", "edge-1"] {
        setting.fleet.stop(node, LIMIT);
    }
    create(&setting.postgres.url(), "extras");
    let both = ["items", "extras"];
    setting.fleet.declare(&topology(&both, &both));
    setting.fleet.start("processor");
    setting.fleet.start("edge-1");
    let mut fourth = setting.phone("fourth");
    assert_eq!(setting.page(&mut fourth).1, ["extras"]);
    // A device with a complete state continues to get complete pages.
    sql(&setting.postgres.url(), "UPDATE items SET note = 'new' WHERE id = 1");
    setting.fleet.start("connector");
    wait_for("the change and the stale view", LIMIT, || {
        first.poll(&setting.fleet.edge("edge-1"), 1);
        let (is_complete, stale) = first.page.clone()?;
        let is_new = first.view("items").any(|row| row["note"] == "new");
        assert!(is_complete || !stale.is_empty(), "{}", first.last);
        (is_new && is_complete).then_some(())
    });
    setting.first_complete(&mut fourth, &both);
}

#[test]
fn rows_of_a_source_without_views_are_removed() {
    let mut setting = Setting::new();
    setting.fleet.start_all();
    let mut phone = setting.phone("phone");
    setting.first_complete(&mut phone, &["items"]);
    for node in ["processor", "edge-1"] {
        setting.fleet.stop(node, LIMIT);
    }
    setting.fleet.declare(&topology(&["items"], &[]));
    setting.fleet.start("processor");
    setting.fleet.start("edge-1");
    wait_for("the removal of all rows", LIMIT, || {
        phone.poll(&setting.fleet.edge("edge-1"), 1);
        phone.rows.is_empty().then_some(())
    });
    let mut fresh = setting.phone("fresh");
    assert_eq!(setting.page(&mut fresh), (true, Vec::new()));
    assert!(fresh.rows.is_empty());
}

#[test]
fn view_of_a_processor_waits_for_the_first_snapshot() {
    let mut setting = Setting::new();
    let roles = "\"processor:sync-views\", \"processor:counts\"";
    let declared = topology(&["items"], &[]).replace("\"processor:sync-views\"", roles);
    let processor = "[[processor]]\nname = \"counts\"\nkind = \"aggregate\"\nfrom = \"db.items\"\npartitions = 2\n\
                     group = { id = \"id\" }\nfields = { notes = \"count(note)\" }\n\
                     [[view]]\nname = \"counts\"\nfrom = \"processor:counts\"\nbucket = \"all\"\n";
    setting.fleet.declare(&format!("{declared}{processor}"));
    setting.fleet.start("processor");
    setting.fleet.start("edge-1");
    let mut phone = setting.phone("phone");
    assert_eq!(setting.page(&mut phone), (false, vec!["counts".to_owned()]));
    setting
        .fleet
        .start_with("connector", "connector.postgres.snapshot_end=pause:2000");
    setting.first_complete(&mut phone, &["counts"]);
}
