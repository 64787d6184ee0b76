//! Two sample databases, from `trunkline init` to devices whose rows equal `SELECT`, by the steps of
//! `docs/guides/own-database.md` alone.

use super::harness::{Database, LIMIT};
use crate::support::{Dev, Phone, binary};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

struct Sample {
    sql: &'static str,
    /// What `init` must say that it leaves out.
    left_out: &'static [&'static str],
    /// Changes after the snapshot.
    changes: &'static [&'static str],
}

const SHOP: Sample = Sample {
    sql: include_str!("../../fixtures/schemas/shop.sql"),
    left_out: &[
        "column gross of table public.products: PostgreSQL does not replicate generated columns",
        "column search of table public.products: PostgreSQL does not replicate generated columns",
        "unlogged table public.sessions: PostgreSQL does not replicate unlogged tables",
        "view public.order_totals: PostgreSQL does not replicate views",
        "materialized view public.bestsellers: PostgreSQL does not replicate materialized views",
    ],
    changes: &[
        "UPDATE orders SET state = 'returned', total = total + 0.01 WHERE customer_id = 1",
        "DELETE FROM order_lines WHERE customer_id = 1 AND line = 2",
        "UPDATE products SET tags = tags || 'new'::text, attributes = NULL WHERE category_id = 3",
        "INSERT INTO categories (name) VALUES ('New')",
    ],
};

const RENTAL: Sample = Sample {
    sql: include_str!("../../fixtures/schemas/rental.sql"),
    left_out: &[
        "table public.event_log: other tables inherit from it",
        "view public.customer_list: PostgreSQL does not replicate views",
    ],
    changes: &[
        "UPDATE film SET special_features = '{}', rating = 'NC-17' WHERE film_id % 10 = 1",
        "INSERT INTO payment (customer_id, rental_id, amount, paid) VALUES (1, 1, 1.5, '2026-04-01 10:00+00')",
        "UPDATE payment SET paid = paid + interval '20 days' WHERE customer_id = 1 AND paid < '2026-01-15'",
        "DELETE FROM rental WHERE customer_id = 1 AND returned IS NULL",
    ],
};

#[test]
fn sample_schemas_reach_devices_by_the_guide() {
    for sample in [SHOP, RENTAL] {
        reaches_devices(&sample);
    }
}

fn reaches_devices(sample: &Sample) {
    let database = Database::new();
    database.sql(sample.sql);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("topology.toml");
    let path = file.to_str().unwrap();
    let text = init(&database, &file, sample.left_out);
    // Step 3: the lines marked DECIDE are comments, which let everybody read the catalog.
    let decided = text.replace(
        "# [[membership]]\n# bucket = \"everyone\"",
        "[[membership]]\nbucket = \"everyone\"",
    );
    assert_ne!(decided, text, "{text}");
    std::fs::write(&file, &decided).unwrap();
    let checked = std::process::Command::new(binary())
        .args(["topology", "check", path])
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    // Step 4.
    let data = directory.path().join("data");
    let dev = Dev::start(&data, &["--topology", path, "--postgres", &database.url]);
    let mut phone = Phone::new("phone-1", &dev.token("1", &["store=1"]));
    let edge = dev.url("edge");
    let views = Views::of(&decided);
    let mut reach = |what: &str| {
        let end = Instant::now() + LIMIT;
        loop {
            phone.poll(&edge, 1);
            match views.equal(&database, &phone) {
                Ok(()) => break,
                Err(difference) => assert!(Instant::now() < end, "{what}: {difference}"),
            }
        }
    };
    reach("the snapshot");
    database.each(sample.changes);
    reach("the changes");
}

/// Runs `trunkline init`, and returns the file.
fn init(database: &Database, file: &Path, left_out: &[&str]) -> String {
    let mut command = std::process::Command::new(binary());
    command.args(["init", "--postgres", &database.url, "--file", file.to_str().unwrap()]);
    let done = command.output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{said}");
    let text = std::fs::read_to_string(file).unwrap();
    for want in left_out {
        assert!(said.contains(&format!("Left out {want}")), "{want}: {said}");
        assert!(text.contains(&format!("# - {want}")), "{want}: {text}");
    }
    text
}

/// The views of a topology, with what a device of user 1 receives.
struct Views {
    /// Name, and a query for its rows as JSON, keys as in a record first.
    queries: BTreeMap<String, String>,
}

impl Views {
    fn of(text: &str) -> Self {
        let topology: toml::Table = text.parse().unwrap();
        let list = |name: &str| topology[name].as_array().cloned().unwrap_or_default();
        let get = |of: &toml::Value, key: &str| of[key].as_str().unwrap().to_owned();
        let tables: BTreeMap<String, toml::Value> = list("table")
            .into_iter()
            .map(|table| (get(&table, "name"), table))
            .collect();
        let query = |view: &toml::Value| {
            let (from, bucket) = (get(view, "from"), get(view, "bucket"));
            let table = from.split_once('.').unwrap().1.to_owned();
            let columns = tables[&table]["columns"].as_table().unwrap();
            let fields: Vec<String> = columns
                .iter()
                .map(|(name, ty)| format!("'{name}', {}", json(name, ty.as_str().unwrap())))
                .collect();
            let owner = bucket
                .split_once('{')
                .map(|(_, owner)| owner.trim_end_matches('}').to_owned());
            let filter = owner.map(|owner| format!(" WHERE {owner} = 1")).unwrap_or_default();
            (
                get(view, "name"),
                format!(
                    "SELECT jsonb_build_object({})::text FROM {table}{filter}",
                    fields.join(", ")
                ),
            )
        };
        Views {
            queries: list("view").iter().map(query).collect(),
        }
    }

    /// Compares a device with the database.
    fn equal(&self, database: &Database, phone: &Phone) -> Result<(), String> {
        for (view, query) in &self.queries {
            let rows = database.sql(query);
            let texts = rows.into_iter().map(|row| row[0].clone().unwrap());
            let mut want: Vec<String> = texts
                .map(|text| normal(&serde_json::from_str(&text).unwrap()))
                .collect();
            let mut found: Vec<String> = phone.view(view).map(normal).collect();
            want.sort();
            found.sort();
            if want != found {
                let differs = want.iter().zip(&found).find(|(want, found)| want != found);
                return Err(format!(
                    "view {view}: {} rows in the database, {} on the device; {differs:?}",
                    want.len(),
                    found.len()
                ));
            }
            assert!(!want.is_empty(), "view {view} has no rows to compare");
        }
        Ok(())
    }
}

/// An expression for a column in the form that devices receive.
fn json(column: &str, declared: &str) -> String {
    match declared.trim_end_matches('?') {
        "bool" | "int2" | "int4" | "float4" | "float8" | "jsonb" => format!("to_jsonb({column})"),
        array if array.ends_with("[]") => format!("to_jsonb({column})"),
        "timestamptz" => format!("to_jsonb(to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US'))"),
        "timestamp" => format!("to_jsonb(to_char({column}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US'))"),
        "bpchar" => format!("to_jsonb({column})"),
        "bytea" => format!("to_jsonb(encode({column}, 'base64'))"),
        _ => format!("to_jsonb({column}::text)"),
    }
}

/// A row as text, in which equal times are equal.
fn normal(row: &Value) -> String {
    let mut row = row.clone();
    for value in row.as_object_mut().unwrap().values_mut() {
        let Some(text) = value.as_str() else { continue };
        let bytes = text.as_bytes();
        if bytes.len() >= 19 && bytes[4] == b'-' && bytes[10] == b'T' && bytes[13] == b':' {
            let text = text.trim_end_matches('Z');
            let text = if text.contains('.') {
                text.trim_end_matches('0').trim_end_matches('.')
            } else {
                text
            };
            *value = Value::from(text);
        }
    }
    row.to_string()
}
