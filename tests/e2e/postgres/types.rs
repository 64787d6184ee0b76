//! Values of every type, from snapshot and stream, are compared with the values in the database.

use super::harness::{Database, Setting};
use connectors::status::State;
use std::collections::BTreeMap;

/// Column, type, values in SQL, and the SQL expression for the value that devices receive (`c` is the column).
const COLUMNS: &[(&str, &str, &[&str], &str)] = &[
    ("b", "bool", &["true", "false"], "c::text"),
    ("i2", "int2", &["-32768", "32767"], "c::text"),
    ("i4", "int4", &["-2147483648", "2147483647"], "c::text"),
    ("i8", "int8", &["-9223372036854775808", "9223372036854775807", "0"], "to_json(c::text)::text"),
    ("f4", "float4", &["1.5", "'NaN'", "'-Infinity'", "3.4e38", "0.1"],
     "CASE WHEN c::text IN ('NaN', 'Infinity', '-Infinity') THEN to_json(c::text)::text ELSE c::float4::text END"),
    ("f8", "float8", &["0.1", "'NaN'", "'Infinity'", "1234.5678", "-0.5"],
     "CASE WHEN c::text IN ('NaN', 'Infinity', '-Infinity') THEN to_json(c::text)::text ELSE c::text END"),
    ("num", "numeric", &["123456789012345678901234567890.123456789", "'NaN'", "-0.00", "'Infinity'", "1e-20"], "to_json(c::text)::text"),
    ("t", "text", &["''", "'it''s \"quoted\" \\ back'", "E'tab\\tnew\\nline\\r'", "'żółć 🦀'", "'\\N'"], "to_json(c)::text"),
    ("vc", "varchar", &["'abc'"], "to_json(c)::text"),
    ("bc", "bpchar", &["'ab '"], "to_json(c)::text"),
    ("by", "bytea", &["'\\x'", "'\\x00ff10'", "'hello'"], "to_json(encode(c, 'base64'))::text"),
    ("d", "date", &["'2024-02-29'", "'infinity'", "'0044-03-15 BC'", "'20000-01-01'", "'-infinity'"],
     "CASE c WHEN 'infinity' THEN '\"infinity\"' WHEN '-infinity' THEN '\"-infinity\"' WHEN '0044-03-15 BC' THEN '\"-000043-03-15\"'
      WHEN '20000-01-01' THEN '\"+020000-01-01\"' ELSE to_json(c)::text END"),
    ("ts", "timestamp", &["'2024-02-29 12:34:56.789'", "'infinity'", "'1969-12-31 23:59:59.999999'"], "to_json(c)::text"),
    ("tz", "timestamptz", &["'2024-02-29 12:34:56+05:30'", "'-infinity'", "'1900-01-01 00:00:00.000001+00'"],
     "CASE WHEN isfinite(c) THEN to_json(rtrim(rtrim(to_char(c, 'YYYY-MM-DD\"T\"HH24:MI:SS.US'), '0'), '.') || 'Z')::text
      ELSE to_json(c)::text END"),
    ("u", "uuid", &["'6ba7b810-9dad-11d1-80b4-00c04fd430c8'"], "to_json(c)::text"),
    ("j", "json", &["'{\"a\": [1, null, \"x\"]}'", "'[]'"], "c::text"),
    ("jb", "jsonb", &["'{\"a\": [1, null, \"x\"]}'"], "c::text"),
    ("ti", "time", &["'12:34:56.5'"], "to_json(c::text)::text"),
    ("iv", "interval", &["'1 year 2 mons -3 days 04:05:06.7'"], "to_json(c::text)::text"),
    ("ip", "inet", &["'10.0.0.1/8'"], "to_json(c::text)::text"),
    ("ar", "int4[]", &["'{1,NULL,3}'", "'{}'", "'[5:6]={1,2}'"], "to_json(c)::text"),
    ("ab", "int8[]", &["'{9007199254740993,NULL}'"], "to_json(c::text[])::text"),
    ("ta", "text[]", &["ARRAY['a,b', 'c\"d', NULL, '', 'NULL', 'null', '{}', E'back\\\\slash\\n']"], "to_json(c)::text"),
    ("va", "varchar[]", &["'{a,b}'"], "to_json(c)::text"),
    ("ua", "uuid[]", &["'{6ba7b810-9dad-11d1-80b4-00c04fd430c8}'"], "to_json(c)::text"),
    ("na", "numeric[]", &["'{1.50,NULL,-3}'"], "to_json(c::text[])::text"),
    ("oa", "bool[]", &["'{t,f,NULL}'"], "to_json(c)::text"),
    ("da", "date[]", &["'{2024-02-29,NULL}'"], "to_json(c)::text"),
    ("sa", "timestamp[]", &["'{2024-02-29 12:34:56.789}'"], "to_json(c)::text"),
    ("za", "timestamptz[]", &["'{2024-02-29 12:34:56.789+02,NULL}'"], "replace(to_json(c)::text, '+00:00', 'Z')"),
    ("ja", "jsonb[]", &["ARRAY['{\"a\": [1]}'::jsonb, NULL]"], "to_json(c)::text"),
    ("ma", "mood[]", &["ARRAY['sad', 'very ok']::mood[]"], "to_json(c)::text"),
    ("bi", "bit", &["B'1'"], "to_json(c::text)::text"),
    ("mo", "mood", &["'sad'", "'very ok'"], "to_json(c::text)::text"),
    ("dm", "int4", &["5"], "c::text"),
    ("pt", "point", &["'(1.5,2)'"], "to_json(c::text)::text"),
    ("ra", "int4range", &["'[1,5)'"], "to_json(c::text)::text"),
    ("cs", "comp", &["ROW(1, 'x y')"], "to_json(c::text)::text"),
];

fn insert(first_id: usize) -> (String, usize) {
    let rows = COLUMNS.iter().map(|(_, _, values, _)| values.len()).max().unwrap();
    let mut sql = String::new();
    for n in 0..rows {
        let values: Vec<&str> = COLUMNS
            .iter()
            .map(|(_, _, values, _)| values.get(n).copied().unwrap_or("NULL"))
            .collect();
        sql += &format!(
            "INSERT INTO everything VALUES ({}, {});",
            first_id + n,
            values.join(", ")
        );
    }
    (sql, rows)
}

#[test]
fn values_of_every_type_match_the_database() {
    let database = Database::new();
    let columns: Vec<String> = COLUMNS
        .iter()
        .map(|(name, ty, ..)| format!("{name} {}", if *name == "dm" { "positive" } else { ty }))
        .collect();
    database.sql(&format!(
        "CREATE TYPE mood AS ENUM ('sad', 'very ok'); CREATE DOMAIN positive AS int4 CHECK (VALUE > 0);
         CREATE TYPE comp AS (a int, b text); CREATE TABLE everything (id bigint PRIMARY KEY, {})",
        columns.join(", ")
    ));
    let (sql, rows) = insert(1);
    database.sql(&sql);
    let declared: Vec<String> = COLUMNS.iter().map(|(name, ty, ..)| format!("{name} {ty}?")).collect();
    let setting = Setting::new(&database, &[&format!("everything(id int8, {})", declared.join(", "))]);
    // Settings of the role and the database must not change the text of values.
    database.sql(&format!(
        "ALTER DATABASE {db} SET datestyle = 'German'; ALTER DATABASE {db} SET timezone = 'Asia/Tokyo';
         ALTER DATABASE {db} SET extra_float_digits = -5; ALTER DATABASE {db} SET bytea_output = 'escape';
         ALTER DATABASE {db} SET intervalstyle = 'iso_8601'",
        db = database.name
    ));
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.lines(rows + 1);
    connector.wait_for(State::Running);
    database.sql(&insert(101).0);
    topic.lines(2 * rows + 1);

    // Each value is read from the database in a session with the same output settings.
    let expressions: Vec<String> = COLUMNS
        .iter()
        .map(|(name, .., expression)| {
            let expression = expression
                .replace("c::", &format!("{name}::"))
                .replace("(c)", &format!("({name})"));
            let expression = expression
                .replace("(c,", &format!("({name},"))
                .replace("CASE c ", &format!("CASE {name} "));
            format!("coalesce(({expression}), 'null')")
        })
        .collect();
    let want = database.sql(&format!(
        "SET datestyle = ISO; SET timezone = UTC; SET intervalstyle = postgres; SET extra_float_digits = 3; \
         SELECT id, {} FROM everything ORDER BY id",
        expressions.join(", ")
    ));
    let rows_seen: BTreeMap<String, String> = topic.rows();
    assert_eq!(rows_seen.len(), want.len());
    for row in &want {
        let id = row[0].clone().unwrap();
        let seen = &rows_seen[&format!("[\"everything\",\"{id}\"]")];
        let fields: Vec<String> = COLUMNS
            .iter()
            .zip(&row[1..])
            .map(|((name, ..), value)| format!("\"{name}\":{}", value.clone().unwrap()))
            .collect();
        assert_eq!(*seen, format!("{{\"id\":\"{id}\",{}}}", fields.join(",")));
    }
    // Stream and snapshot must produce the same bytes for the same values.
    for n in 1..=rows {
        let id = |n: usize| format!("\"id\":\"{n}\"");
        let by_snapshot = rows_seen[&format!("[\"everything\",\"{n}\"]")].replacen(&id(n), "", 1);
        let by_stream = rows_seen[&format!("[\"everything\",\"{}\"]", 100 + n)].replacen(&id(100 + n), "", 1);
        assert_eq!(by_snapshot, by_stream);
    }
}

#[test]
fn keys_of_every_plain_type_are_canonical() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE keyed (a int4, b int8, c text, d uuid, e date, f timestamptz, g bool, h bytea, i numeric, j float8,
            PRIMARY KEY (a, b, c, d, e, f, g, h, i, j));
         INSERT INTO keyed VALUES (1, 2, 'x\"y', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', '2024-01-02', '2024-01-02 03:04:05+01',
            true, '\\x0001', 1.50, 0.5)",
    );
    let columns = "keyed(a int4, b int8, c text, d uuid, e date, f timestamptz, g bool, h bytea, i numeric, j float8)";
    let setting = Setting::new(&database, &[columns]);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.lines(2);
    connector.wait_for(State::Running);
    database.sql("DELETE FROM keyed");
    topic.lines(3);
    let key = r#"["keyed",1,"2","x\"y","6ba7b810-9dad-11d1-80b4-00c04fd430c8","2024-01-02","2024-01-02T02:04:05Z",true,"AAE=","1.50",0.5]"#;
    assert_eq!(
        (topic.records[0].key.as_str(), topic.records[2].key.as_str()),
        (key, key)
    );
}

#[test]
fn array_of_several_dimensions_is_a_dead_letter_unless_declared_as_text() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, tags text[]); INSERT INTO orders VALUES (1, '{a}'), (2, '{{secret,b}}');
         CREATE TABLE grids (id bigint PRIMARY KEY, cells int[]); INSERT INTO grids VALUES (1, '{{1,2},{3,4}}')",
    );
    let setting = Setting::new(
        &database,
        &["orders(id int8, tags text[]?)", "grids(id int8, cells text?)"],
    );
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.wait("the snapshot", |records| records.len() == 5);
    connector.wait_for(State::Running);
    let rows = topic.rows();
    assert_eq!(rows[r#"["orders","1"]"#], r#"{"id":"1","tags":["a"]}"#);
    assert_eq!(rows[r#"["grids","1"]"#], r#"{"id":"1","cells":"{{1,2},{3,4}}"}"#);
    let missing = topic
        .records
        .iter()
        .find(|r| r.key == r#"["~missing","orders","2"]"#)
        .unwrap();
    assert!(missing.value.is_none());
    connector.stop();
    let mut dead = setting.dead_letters();
    dead.wait("the dead letter", |records| records.len() == 1);
}
