//! Broken topologies, and the exact text that each of them gives.

use crate::{Embedded, Input, Outcome, Segment, check};
use expect_test::{Expect, expect};

/// A topology with nothing wrong, which the cases add to.
const BASE: &str = r#"name = "shop"
[[connector]]
name = "shop"
kind = "postgres"
[[table]]
source = "shop"
name = "orders"
key = ["id"]
columns = { id = "int8", customer_id = "int8", status = "text", note = "text?", rate = "float8", data = "jsonb?", at = "timestamptz" }
[[event]]
name = "viewed"
fields = { order_id = "int8", customer_id = "int8", screen = "text?" }
key = ["order_id"]
[[bucket]]
name = "user:{id}"
[[view]]
name = "orders"
from = "shop.orders"
bucket = "user:{customer_id}"
[[membership]]
bucket = "user:{sub}"
"#;

const FILES: Embedded = Embedded(&[
    ("not.json", "{\n  \"type\": \"record\"\n  \"name\": \"A\"\n}"),
    ("string.avsc", "\"string\""),
    (
        "bad.avsc",
        "{\"type\": \"record\", \"name\": \"A\", \"fields\": [{\"name\": \"a\", \"type\": \"lang\"}]}",
    ),
    (
        "default.avsc",
        "{\"type\": \"record\", \"name\": \"A\", \"fields\": [\n  {\"name\": \"a\", \"type\": \"long\", \"default\": \"x\"}]}",
    ),
    (
        "good.avsc",
        r#"{"type": "record", "name": "A", "fields": [
            {"name": "id", "type": "long"},
            {"name": "price", "type": "double"},
            {"name": "place", "type": {"type": "record", "name": "Place", "fields": [
                {"name": "city", "type": ["null", "string"], "default": null}]}},
            {"name": "maybe", "type": ["null", "long"], "default": null}]}"#,
    ),
]);

fn run(text: &str) -> Outcome {
    check("topology.toml", text, &FILES)
}

/// The report of the base with `more` behind it.
fn with(more: &str, expected: Expect) {
    let outcome = run(&format!("{BASE}{more}"));
    assert_eq!(outcome.topology.is_none(), outcome.report.has_errors());
    expected.assert_eq(&outcome.report.render(false));
}

/// The report of the base with `from` replaced by `to`.
fn replaced(from: &str, to: &str, expected: Expect) {
    assert!(BASE.contains(from), "the base has no {from}");
    let outcome = run(&BASE.replacen(from, to, 1));
    assert_eq!(outcome.topology.is_none(), outcome.report.has_errors());
    expected.assert_eq(&outcome.report.render(false));
}

#[test]
fn the_base_is_fine() {
    with(
        "",
        expect![[r#"
        topology.toml: no problems
    "#]],
    );
}

#[test]
fn what_is_not_toml_is_shown_where_it_stops() {
    with(
        "[[view]\nname = 'x'\n",
        expect![[r#"
          × unclosed array table, expected `]`
            ╭─[topology.toml:22:8]
         21 │ bucket = "user:{sub}"
         22 │ [[view]
            ·        ▲
            ·        ╰── the file is not TOML from here on
         23 │ name = 'x'
            ╰────
          help: mend the syntax; the other checks follow then

          × duplicate key
            ╭─[topology.toml:23:1]
         22 │ [[view]
         23 │ name = 'x'
            · ──┬─
            ·   ╰── the file is not TOML from here on
            ╰────
          help: mend the syntax; the other checks follow then

        topology.toml: 2 errors
    "#]],
    );
    with(
        "name = \"again\"\nname = \"twice\"\n",
        expect![[r#"
          × duplicate key
            ╭─[topology.toml:23:1]
         22 │ name = "again"
         23 │ name = "twice"
            · ──┬─
            ·   ╰── the file is not TOML from here on
            ╰────
          help: mend the syntax; the other checks follow then

        topology.toml: 1 error
    "#]],
    );
}

#[test]
fn all_errors_are_shown_at_once_and_in_the_order_of_the_file() {
    with(
        r#"
[[veiw]]
name = "x"
[[view]]
name = "my orders"
from = "shop.order"
bucket = "usr:{customer_id}"
colour = "red"
[[view]]
name = 7
from = "orders"
bucket = "user:{custmer_id}"
[[node]]
name = "edge-1"
"#,
        expect![[r#"
              × the topology has no key `veiw`
                ╭─[topology.toml:23:3]
             22 │ 
             23 │ [[veiw]]
                ·   ──┬─
                ·     ╰── unknown key
             24 │ name = "x"
                ╰────
              help: did you mean `view`?

              × view name `my orders` is not allowed
                ╭─[topology.toml:26:8]
             25 │ [[view]]
             26 │ name = "my orders"
                ·        ─────┬─────
                ·             ╰── here
             27 │ from = "shop.order"
                ╰────
              help: use a letter, then letters, digits, `_` or `-`, such as `my_orders`

              × there is no input `shop.order`
                ╭─[topology.toml:27:8]
             26 │ name = "my orders"
             27 │ from = "shop.order"
                ·        ──────┬─────
                ·              ╰── here
             28 │ bucket = "usr:{customer_id}"
                ╰────
              help: did you mean `shop.orders`?

              × no declared bucket has the shape of `usr:{customer_id}`
                ╭─[topology.toml:28:10]
             27 │ from = "shop.order"
             28 │ bucket = "usr:{customer_id}"
                ·          ─────────┬─────────
                ·                   ╰── here
             29 │ colour = "red"
                ╰────
              help: did you mean `user:…`? Or declare it: [[bucket]] name = "usr:{customer_id}"

              × [[view]] `my orders` has no key `colour`
                ╭─[topology.toml:29:1]
             28 │ bucket = "usr:{customer_id}"
             29 │ colour = "red"
                · ───┬──
                ·    ╰── unknown key
             30 │ [[view]]
                ╰────
              help: known: `name`, `from`, `bucket`, `fields`, `rename`, `where`, `key`

              × `name` of [[view]] must be a string
                ╭─[topology.toml:31:8]
             30 │ [[view]]
             31 │ name = 7
                ·        ┬
                ·        ╰── this is an integer
             32 │ from = "orders"
                ╰────
              help: write a string

              × [[node]] `edge-1` has no `runs`
                ╭─[topology.toml:34:1]
             33 │ bucket = "user:{custmer_id}"
             34 │ [[node]]
                · ────┬───
                ·     ╰── in this table
             35 │ name = "edge-1"
                ╰────
              help: add `runs = ["edge"]`

            topology.toml: 7 errors
        "#]],
    );
}

#[test]
fn a_key_names_published_columns_that_are_never_null() {
    replaced(
        r#"key = ["id"]"#,
        r#"key = ["ID", "note", "sku"]"#,
        expect![[r#"
          × key column `ID` of table `orders` is not among its columns
           ╭─[topology.toml:8:8]
         7 │ name = "orders"
         8 │ key = ["ID", "note", "sku"]
           ·        ──┬─
           ·          ╰── here
         9 │ columns = { id = "int8", customer_id = "int8", status = "text", note = "text?", rate = "float8", data = "jsonb?", at = "timestamptz" }
           ╰────
          help: did you mean `id`?

          × key column `note` of table `orders` may be null
           ╭─[topology.toml:8:14]
         7 │ name = "orders"
         8 │ key = ["ID", "note", "sku"]
           ·              ───┬──
           ·                 ╰── here
         9 │ columns = { id = "int8", customer_id = "int8", status = "text", note = "text?", rate = "float8", data = "jsonb?", at = "timestamptz" }
           ╰────
          help: a key is never null: write note = "text"

          × key column `sku` of table `orders` is not among its columns
           ╭─[topology.toml:8:22]
         7 │ name = "orders"
         8 │ key = ["ID", "note", "sku"]
           ·                      ──┬──
           ·                        ╰── here
         9 │ columns = { id = "int8", customer_id = "int8", status = "text", note = "text?", rate = "float8", data = "jsonb?", at = "timestamptz" }
           ╰────
          help: add it: sku = "int8"; a key is published with its row

        topology.toml: 3 errors
    "#]],
    );
    replaced(
        r#"key = ["id"]"#,
        r#"key = []"#,
        expect![[r#"
          × the key of table `orders` is empty
           ╭─[topology.toml:8:7]
         7 │ name = "orders"
         8 │ key = []
           ·       ─┬
           ·        ╰── here
         9 │ columns = { id = "int8", customer_id = "int8", status = "text", note = "text?", rate = "float8", data = "jsonb?", at = "timestamptz" }
           ╰────
          help: name its columns

        topology.toml: 1 error
    "#]],
    );
    replaced(
        r#"key = ["id"]"#,
        r#"key = "id""#,
        expect![[r#"
          × `key` of [[table]] `orders` must be a list of strings, such as ["id"]
           ╭─[topology.toml:8:7]
         7 │ name = "orders"
         8 │ key = "id"
           ·       ──┬─
           ·         ╰── this is a string
         9 │ columns = { id = "int8", customer_id = "int8", status = "text", note = "text?", rate = "float8", data = "jsonb?", at = "timestamptz" }
           ╰────
          help: write a list of strings, such as ["id"]

        topology.toml: 1 error
    "#]],
    );
    replaced(
        r#"key = ["id"]"#,
        r#"key = ["rate", "rate"]"#,
        expect![[r#"
          ⚠ key column `rate` of table `orders` is float8
           ╭─[topology.toml:8:8]
         7 │ name = "orders"
         8 │ key = ["rate", "rate"]
           ·        ───┬──
           ·           ╰── here
         9 │ columns = { id = "int8", customer_id = "int8", status = "text", note = "text?", rate = "float8", data = "jsonb?", at = "timestamptz" }
           ╰────
          help: one value can be written in several ways, and each would be a row of its own: use another column

          × key column `rate` is declared twice
           ╭─[topology.toml:8:16]
         7 │ name = "orders"
         8 │ key = ["rate", "rate"]
           ·        ───┬──  ───┬──
           ·           │       ╰── again here
           ·           ╰── first here
         9 │ columns = { id = "int8", customer_id = "int8", status = "text", note = "text?", rate = "float8", data = "jsonb?", at = "timestamptz" }
           ╰────
          help: rename one of them, or remove it

          ⚠ key column `rate` of table `orders` is float8
           ╭─[topology.toml:8:16]
         7 │ name = "orders"
         8 │ key = ["rate", "rate"]
           ·                ───┬──
           ·                   ╰── here
         9 │ columns = { id = "int8", customer_id = "int8", status = "text", note = "text?", rate = "float8", data = "jsonb?", at = "timestamptz" }
           ╰────
          help: one value can be written in several ways, and each would be a row of its own: use another column

        topology.toml: 1 error, 2 warnings
    "#]],
    );
    replaced(
        "kind = \"postgres\"",
        "kind = \"http\"",
        expect![[r#"
        topology.toml: no problems
    "#]],
    );
    replaced(
        "kind = \"postgres\"",
        "kind = \"mysql\"",
        expect![[r#"
          × there is no connector kind `mysql`
           ╭─[topology.toml:4:8]
         3 │ name = "shop"
         4 │ kind = "mysql"
           ·        ───┬───
           ·           ╰── here
         5 │ [[table]]
           ╰────
          help: known: `postgres`, `http`

        topology.toml: 1 error
    "#]],
    );
}

#[test]
fn an_http_table_declares_its_key_and_only_built_in_types() {
    with(
        r#"
[[connector]]
name = "web"
kind = "http"
[[table]]
source = "web"
name = "clicks"
columns = { id = "int88", kind = "click_kind", "" = "text" }
"#,
        expect![[r#"
              × table `clicks` has no `key`, and an http source has no primary key to take it from
                ╭─[topology.toml:28:8]
             27 │ source = "web"
             28 │ name = "clicks"
                ·        ────┬───
                ·            ╰── here
             29 │ columns = { id = "int88", kind = "click_kind", "" = "text" }
                ╰────
              help: add `key = ["id"]`

              × `int88` is no built-in type
                ╭─[topology.toml:29:18]
             28 │ name = "clicks"
             29 │ columns = { id = "int88", kind = "click_kind", "" = "text" }
                ·                  ───┬───
                ·                     ╰── here
                ╰────
              help: did you mean `int8`?

              × `click_kind` is no built-in type
                ╭─[topology.toml:29:34]
             28 │ name = "clicks"
             29 │ columns = { id = "int88", kind = "click_kind", "" = "text" }
                ·                                  ──────┬─────
                ·                                        ╰── here
                ╰────
              help: known: `bool`, `int2`, `int4`, `int8`, `float4`, `float8`, `numeric`, `text`, `varchar`, `bpchar`,
                    `name`, `citext` and 22 more

              × table `clicks` has a column without a readable name
                ╭─[topology.toml:29:48]
             28 │ name = "clicks"
             29 │ columns = { id = "int88", kind = "click_kind", "" = "text" }
                ·                                                ─┬
                ·                                                 ╰── here
                ╰────
              help: name it as the database does

            topology.toml: 4 errors
        "#]],
    );
}

#[test]
fn columns_are_declared_with_types_that_exist() {
    with(
        r#"
[[table]]
source = "shop"
name = "items"
columns = { id = "tiemstamp", kind = "item_kind", x = "8", _unchanged = "text" }
[[table]]
source = "shop"
name = "empty"
columns = {}
[[table]]
source = "shop"
name = "none"
[[table]]
source = "shop"
name = "odd"
columns = { "a b" = "text", a_b = "text" }
"#,
        expect![[r#"
              × column _unchanged of table items has a reserved name; leave it out, or rename it
                ╭─[topology.toml:26:11]
             25 │ name = "items"
             26 │ columns = { id = "tiemstamp", kind = "item_kind", x = "8", _unchanged = "text" }
                ·           ───────────────────────────────────┬──────────────────────────────────
                ·                                              ╰── here
             27 │ [[table]]
                ╰────
              help: only what is named here is published

              ⚠ `tiemstamp` is no built-in type
                ╭─[topology.toml:26:18]
             25 │ name = "items"
             26 │ columns = { id = "tiemstamp", kind = "item_kind", x = "8", _unchanged = "text" }
                ·                  ─────┬─────
                ·                       ╰── here
             27 │ [[table]]
                ╰────
              help: did you mean `timestamp`? If it is a type of your own, it is published as text

              × `8` is no type
                ╭─[topology.toml:26:55]
             25 │ name = "items"
             26 │ columns = { id = "tiemstamp", kind = "item_kind", x = "8", _unchanged = "text" }
                ·                                                       ─┬─
                ·                                                        ╰── here
             27 │ [[table]]
                ╰────
              help: write a PostgreSQL type, with `?` behind it if the column may be null: "int8", "text?"

              × a table needs columns
                ╭─[topology.toml:30:11]
             29 │ name = "empty"
             30 │ columns = {}
                ·           ─┬
                ·            ╰── here
             31 │ [[table]]
                ╰────
              help: name at least the key: columns = { id = "int8" }

              × [[table]] `none` has no `columns`
                ╭─[topology.toml:31:1]
             30 │ columns = {}
             31 │ [[table]]
                · ────┬────
                ·     ╰── in this table
             32 │ source = "shop"
                ╰────
              help: add `columns = { id = "int8", note = "text?" }`

              × columns "a b" and "a_b" of table odd would both be field a_b; leave one out
                ╭─[topology.toml:37:11]
             36 │ name = "odd"
             37 │ columns = { "a b" = "text", a_b = "text" }
                ·           ────────────────┬───────────────
                ·                           ╰── here
                ╰────
              help: only what is named here is published

            topology.toml: 5 errors, 1 warning
        "#]],
    );
}

#[test]
fn sources_and_tables_are_declared_once_under_names_that_are_allowed() {
    with(
        r#"
[[connector]]
name = "shop"
kind = "postgres"
[[connector]]
name = "9 lives"
kind = "postgres"
[[table]]
source = "shop"
name = "orders"
columns = { id = "int8" }
[[table]]
source = "shop"
name = "public.things"
columns = { id = "int8" }
[[table]]
source = "shp"
name = "things"
columns = { id = "int8" }
[[table]]
source = "shop"
name = "sales.lines"
columns = { id = "int8" }
[[table]]
source = "shop"
name = "sales_lines"
columns = { id = "int8" }
"#,
        expect![[r#"
              × connector `shop` is declared twice
               ╭─[topology.toml:3:8]
             2 │ [[connector]]
             3 │ name = "shop"
               ·        ───┬──
               ·           ╰── first here
             4 │ kind = "postgres"
               ╰────
                ╭─[topology.toml:24:8]
             23 │ [[connector]]
             24 │ name = "shop"
                ·        ───┬──
                ·           ╰── again here
             25 │ kind = "postgres"
                ╰────
              help: rename one of them, or remove it

              × connector name `9 lives` is not allowed
                ╭─[topology.toml:27:8]
             26 │ [[connector]]
             27 │ name = "9 lives"
                ·        ────┬────
                ·            ╰── here
             28 │ kind = "postgres"
                ╰────
              help: use a letter, then letters, digits, `_` or `-`, such as `lives`

              ⚠ connector `9 lives` has no table: it publishes nothing
                ╭─[topology.toml:27:8]
             26 │ [[connector]]
             27 │ name = "9 lives"
                ·        ────┬────
                ·            ╰── here
             28 │ kind = "postgres"
                ╰────
              help: declare one: [[table]] source = "9 lives", name = "…"

              × table `orders` is declared twice
               ╭─[topology.toml:7:8]
             6 │ source = "shop"
             7 │ name = "orders"
               ·        ────┬───
               ·            ╰── first here
             8 │ key = ["id"]
               ╰────
                ╭─[topology.toml:31:8]
             30 │ source = "shop"
             31 │ name = "orders"
                ·        ────┬───
                ·            ╰── again here
             32 │ columns = { id = "int8" }
                ╰────
              help: remove one of them

              × table name `public.things` is not allowed
                ╭─[topology.toml:35:8]
             34 │ source = "shop"
             35 │ name = "public.things"
                ·        ───────┬───────
                ·               ╰── here
             36 │ columns = { id = "int8" }
                ╰────
              help: leave `public.` out

              × there is no connector `shp`
                ╭─[topology.toml:38:10]
             37 │ [[table]]
             38 │ source = "shp"
                ·          ──┬──
                ·            ╰── here
             39 │ name = "things"
                ╰────
              help: did you mean `shop`?

              × tables `sales.lines` and `sales_lines` would have one record name
                ╭─[topology.toml:47:8]
             42 │ source = "shop"
             43 │ name = "sales.lines"
                ·        ──────┬──────
                ·              ╰── first here
             44 │ columns = { id = "int8" }
             45 │ [[table]]
             46 │ source = "shop"
             47 │ name = "sales_lines"
                ·        ──────┬──────
                ·              ╰── again here
             48 │ columns = { id = "int8" }
                ╰────
              help: a record's name has only letters, digits and `_`: rename one of the tables

            topology.toml: 6 errors, 1 warning
        "#]],
    );
}

#[test]
fn an_event_has_one_schema_and_a_key() {
    with(
        r#"
[[event]]
name = "a"
[[event]]
name = "b"
schema = "good.avsc"
fields = { id = "int8" }
key = ["id"]
[[event]]
name = "c"
schema = "missing.avsc"
key = ["id"]
[[event]]
name = "d"
schema = "not.json"
key = ["id"]
[[event]]
name = "e"
schema = "string.avsc"
key = ["id"]
[[event]]
name = "f"
schema = "bad.avsc"
key = ["id"]
[[event]]
name = "g"
schema = "default.avsc"
key = ["id"]
[[event]]
name = "h"
schema = "good.avsc"
key = ["id", "price", "place", "maybe"]
partitions = 0
[[event]]
name = "i"
fields = { id = "uuid", kind = "my_kind" }
key = ["id"]
partitions = 5000
"#,
        expect![[r#"
              × event `a` has neither `schema` nor `fields`
                ╭─[topology.toml:24:8]
             23 │ [[event]]
             24 │ name = "a"
                ·        ─┬─
                ·         ╰── here
             25 │ [[event]]
                ╰────
              help: add `schema = "schemas/….avsc"`, or in short `fields = { id = "int8" }`

              × event `a` has no `key`
                ╭─[topology.toml:24:8]
             23 │ [[event]]
             24 │ name = "a"
                ·        ─┬─
                ·         ╰── here
             25 │ [[event]]
                ╰────
              help: add `key = ["…"]`: one key's events stay in order

              × event `b` has both `schema` and `fields`
                ╭─[topology.toml:28:10]
             26 │ name = "b"
             27 │ schema = "good.avsc"
                ·          ─────┬─────
                ·               ╰── the other one
             28 │ fields = { id = "int8" }
                ·          ───────┬───────
                ·                 ╰── here
             29 │ key = ["id"]
                ╰────
              help: keep one of them

              × cannot read the schema `missing.avsc`: entity not found
                ╭─[topology.toml:32:10]
             31 │ name = "c"
             32 │ schema = "missing.avsc"
                ·          ───────┬──────
                ·                 ╰── here
             33 │ key = ["id"]
                ╰────
              help: write the file, relative to the topology file; or use `fields = { … }` instead

              × key column `maybe` of event `h` may be null
                ╭─[topology.toml:53:32]
             52 │ schema = "good.avsc"
             53 │ key = ["id", "price", "place", "maybe"]
                ·                                ───┬───
                ·                                   ╰── here
             54 │ partitions = 0
                ╰────
              help: a key is never null: write maybe = "long"

              × event.h cannot have 0 partitions
                ╭─[topology.toml:54:14]
             53 │ key = ["id", "price", "place", "maybe"]
             54 │ partitions = 0
                ·              ┬
                ·              ╰── here
             55 │ [[event]]
                ╰────
              help: use 1 to 1024

              × `my_kind` is no built-in type
                ╭─[topology.toml:57:32]
             56 │ name = "i"
             57 │ fields = { id = "uuid", kind = "my_kind" }
                ·                                ────┬────
                ·                                    ╰── here
             58 │ key = ["id"]
                ╰────
              help: known: `bool`, `int2`, `int4`, `int8`, `float4`, `float8`, `numeric`, `text`, `varchar`, `bpchar`,
                    `name`, `citext` and 22 more

              × event.i cannot have 5000 partitions
                ╭─[topology.toml:59:14]
             58 │ key = ["id"]
             59 │ partitions = 5000
                ·              ──┬─
                ·                ╰── here
                ╰────
              help: use 1 to 1024

              × the schema is not JSON: expected `,` or `}` at line 3 column 3
               ╭─[not.json:3:3]
             2 │   "type": "record"
             3 │   "name": "A"
               ·   ▲
               ·   ╰── here
             4 │ }
               ╰────
              help: mend the JSON

              × schema is string and not a record
               ╭─[string.avsc:1:1]
             1 │ "string"
               · ┬
               · ╰── here
               ╰────
              help: an event is a record: {"type": "record", "name": "…", "fields": […]}

              × schema is refused: Unknown primitive type: lang
               ╭─[bad.avsc:1:1]
             1 │ {"type": "record", "name": "A", "fields": [{"name": "a", "type": "lang"}]}
               · ┬
               · ╰── here
               ╰────
              help: write an Avro record schema (avro.apache.org, "Schema Declaration")

              × schema is refused: `default`'s value type of field `a` in `A` must be a `"long"`. Got: String("x")
               ╭─[default.avsc:1:1]
             1 │ {"type": "record", "name": "A", "fields": [
               · ┬
               · ╰── here
             2 │   {"name": "a", "type": "long", "default": "x"}]}
               ╰────
              help: write an Avro record schema (avro.apache.org, "Schema Declaration")

            topology.toml: 12 errors
        "#]],
    );
}

#[test]
fn buckets_and_scopes_are_templates_that_cannot_be_mistaken() {
    with(
        r#"
[[bucket]]
name = "user:{name}"
[[bucket]]
name = "device:{id}"
[[bucket]]
name = "~close:{id}"
[[bucket]]
name = "{id}"
[[bucket]]
name = "store:{id}"
scope = "tenant:{tenant}"
[[bucket]]
name = "shelf:{store}:{store}"
scope = "{store}"
[[bucket]]
name = "global"
scope = "all:{id}"
"#,
        expect![[r#"
              × buckets `user:{id}` and `user:{name}` can have one name
                ╭─[topology.toml:24:8]
             14 │ [[bucket]]
             15 │ name = "user:{id}"
                ·        ─────┬─────
                ·             ╰── and this one
             16 │ [[view]]
             17 │ name = "orders"
             18 │ from = "shop.orders"
             19 │ bucket = "user:{customer_id}"
             20 │ [[membership]]
             21 │ bucket = "user:{sub}"
             22 │ 
             23 │ [[bucket]]
             24 │ name = "user:{name}"
                ·        ──────┬──────
                ·              ╰── this one
             25 │ [[bucket]]
                ╰────
              help: begin one of them with another word

              × bucket `device:{id}`: `device:…` is reserved for what belongs to one device
                ╭─[topology.toml:26:8]
             25 │ [[bucket]]
             26 │ name = "device:{id}"
                ·        ──────┬──────
                ·              ╰── here
             27 │ [[bucket]]
                ╰────
              help: use another first word

              ⚠ no view puts rows into bucket `device:{id}`
                ╭─[topology.toml:26:8]
             25 │ [[bucket]]
             26 │ name = "device:{id}"
                ·        ──────┬──────
                ·              ╰── here
             27 │ [[bucket]]
                ╰────
              help: add a view with `bucket = "device:{id}"`, or remove the bucket

              × `~close:{id}`: `~` in a bucket's name
                ╭─[topology.toml:28:9]
             27 │ [[bucket]]
             28 │ name = "~close:{id}"
                ·         ┬
                ·         ╰── here
             29 │ [[bucket]]
                ╰────
              help: use letters, digits, `_`, `-` and `.` between the `:`

              × `{id}`: a template begins with a word
                ╭─[topology.toml:30:10]
             29 │ [[bucket]]
             30 │ name = "{id}"
                ·          ─┬
                ·           ╰── here
             31 │ [[bucket]]
                ╰────
              help: say what kind of bucket it is: `user:{id}`

              ⚠ no view puts rows into bucket `store:{id}`
                ╭─[topology.toml:32:8]
             31 │ [[bucket]]
             32 │ name = "store:{id}"
                ·        ──────┬─────
                ·              ╰── here
             33 │ scope = "tenant:{tenant}"
                ╰────
              help: add a view with `bucket = "store:{id}"`, or remove the bucket

              × the scope of bucket `store:{id}` uses `tenant`, which the bucket has not
                ╭─[topology.toml:33:18]
             32 │ name = "store:{id}"
             33 │ scope = "tenant:{tenant}"
                ·                  ───┬──
                ·                     ╰── here
             34 │ [[bucket]]
                ╰────
              help: known: `id`; a scope is made of its bucket's own parameters

              ⚠ no view puts rows into bucket `shelf:{store}:{store}`
                ╭─[topology.toml:35:8]
             34 │ [[bucket]]
             35 │ name = "shelf:{store}:{store}"
                ·        ───────────┬───────────
                ·                   ╰── here
             36 │ scope = "{store}"
                ╰────
              help: add a view with `bucket = "shelf:{store}:{store}"`, or remove the bucket

              × bucket `shelf:{store}:{store}` has the parameter `store` twice
                ╭─[topology.toml:35:24]
             34 │ [[bucket]]
             35 │ name = "shelf:{store}:{store}"
                ·                        ──┬──
                ·                          ╰── here
             36 │ scope = "{store}"
                ╰────
              help: give each parameter its own name

              × `{store}`: a template begins with a word
                ╭─[topology.toml:36:11]
             35 │ name = "shelf:{store}:{store}"
             36 │ scope = "{store}"
                ·           ──┬──
                ·             ╰── here
             37 │ [[bucket]]
                ╰────
              help: say what kind of bucket it is: `user:{store}`

              ⚠ no view puts rows into bucket `global`
                ╭─[topology.toml:38:8]
             37 │ [[bucket]]
             38 │ name = "global"
                ·        ────┬───
                ·            ╰── here
             39 │ scope = "all:{id}"
                ╰────
              help: add a view with `bucket = "global"`, or remove the bucket

              × the scope of bucket `global` uses `id`, which the bucket has not
                ╭─[topology.toml:39:15]
             38 │ name = "global"
             39 │ scope = "all:{id}"
                ·               ─┬
                ·                ╰── here
                ╰────
              help: this bucket has no parameter: use a constant; a scope is made of its bucket's own parameters

            topology.toml: 8 errors, 4 warnings
        "#]],
    );
}

#[test]
fn a_bucket_that_nobody_fills_or_reads_is_noticed() {
    with(
        r#"
[[bucket]]
name = "store:{id}"
[[bucket]]
name = "global"
[[view]]
name = "all"
from = "shop.orders"
bucket = "global"
"#,
        expect![[r#"
              ⚠ no view puts rows into bucket `store:{id}`
                ╭─[topology.toml:24:8]
             23 │ [[bucket]]
             24 │ name = "store:{id}"
                ·        ──────┬─────
                ·              ╰── here
             25 │ [[bucket]]
                ╰────
              help: add a view with `bucket = "store:{id}"`, or remove the bucket

              ⚠ nobody may read bucket `global`
                ╭─[topology.toml:26:8]
             25 │ [[bucket]]
             26 │ name = "global"
                ·        ────┬───
                ·            ╰── here
             27 │ [[view]]
                ╰────
              help: add a [[membership]] with `bucket = "global"`

            topology.toml: 2 warnings
        "#]],
    );
}

#[test]
fn a_view_names_an_input_columns_and_a_bucket_that_exist() {
    with(
        r#"
[[view]]
name = "a"
from = "event:veiwed"
bucket = "user:{customer_id}"
[[view]]
name = "b"
from = "topic:raw"
bucket = "user:{customer_id}"
[[view]]
name = "c"
from = "viewed"
bucket = "store:{customer_id}"
[[view]]
name = "d"
from = "shop.orders"
bucket = "user:42"
fields = ["id", "stauts", "id"]
rename = { note = "id", statsu = "s" }
[[view]]
name = "e"
from = "shop.orders"
bucket = "user:{rate}"
fields = []
[[view]]
name = "f"
from = "shop.orders"
bucket = "user:{data}"
fields = ["id", "status"]
rename = { status = "id", note = "n" }
[[view]]
name = "orders"
from = "shop.orders"
bucket = "user:{at}"
"#,
        expect![[r#"
              × there is no input `event:veiwed`
                ╭─[topology.toml:25:8]
             24 │ name = "a"
             25 │ from = "event:veiwed"
                ·        ───────┬──────
                ·               ╰── here
             26 │ bucket = "user:{customer_id}"
                ╰────
              help: did you mean `event:viewed`?

              × views of a topic are not supported yet
                ╭─[topology.toml:29:8]
             28 │ name = "b"
             29 │ from = "topic:raw"
                ·        ─────┬─────
                ·             ╰── here
             30 │ bucket = "user:{customer_id}"
                ╰────
              help: a later release; today `from` is "<source>.<table>" or "event:<name>"

              × there is no input `viewed`
                ╭─[topology.toml:33:8]
             32 │ name = "c"
             33 │ from = "viewed"
                ·        ────┬───
                ·            ╰── here
             34 │ bucket = "store:{customer_id}"
                ╰────
              help: did you mean `event:viewed`?

              × no declared bucket has the shape of `store:{customer_id}`
                ╭─[topology.toml:34:10]
             33 │ from = "viewed"
             34 │ bucket = "store:{customer_id}"
                ·          ──────────┬──────────
                ·                    ╰── here
             35 │ [[view]]
                ╰────
              help: declare it: [[bucket]] name = "store:{customer_id}"

              × no declared bucket has the shape of `user:42`
                ╭─[topology.toml:38:10]
             37 │ from = "shop.orders"
             38 │ bucket = "user:42"
                ·          ────┬────
                ·              ╰── here
             39 │ fields = ["id", "stauts", "id"]
                ╰────
              help: declared is `user:{id}`: use the same words, and a parameter where it has one

              × there is no column of `shop.orders` called `stauts`
                ╭─[topology.toml:39:17]
             38 │ bucket = "user:42"
             39 │ fields = ["id", "stauts", "id"]
                ·                 ────┬───
                ·                     ╰── here
             40 │ rename = { note = "id", statsu = "s" }
                ╰────
              help: did you mean `status`?

              × field `id` is declared twice
                ╭─[topology.toml:39:27]
             38 │ bucket = "user:42"
             39 │ fields = ["id", "stauts", "id"]
                ·           ──┬─            ──┬─
                ·             │               ╰── again here
                ·             ╰── first here
             40 │ rename = { note = "id", statsu = "s" }
                ╰────
              help: rename one of them, or remove it

              × view `d` renames `note`, which is not among its fields
                ╭─[topology.toml:40:12]
             39 │ fields = ["id", "stauts", "id"]
             40 │ rename = { note = "id", statsu = "s" }
                ·            ──┬─
                ·              ╰── here
             41 │ [[view]]
                ╰────
              help: add "note" to `fields`, or remove the renaming

              × there is no column of `shop.orders` called `statsu`
                ╭─[topology.toml:40:25]
             39 │ fields = ["id", "stauts", "id"]
             40 │ rename = { note = "id", statsu = "s" }
                ·                         ───┬──
                ·                            ╰── here
             41 │ [[view]]
                ╰────
              help: did you mean `status`?

              × `rate` is float8: it cannot be part of a bucket's name
                ╭─[topology.toml:44:17]
             43 │ from = "shop.orders"
             44 │ bucket = "user:{rate}"
                ·                 ──┬─
                ·                   ╰── here
             45 │ fields = []
                ╰────
              help: a fraction can be written in several ways: use an integer or a text

              × view `e` has no fields
                ╭─[topology.toml:45:10]
             44 │ bucket = "user:{rate}"
             45 │ fields = []
                ·          ─┬
                ·           ╰── here
             46 │ [[view]]
                ╰────
              help: name at least one, or leave `fields` out to send all columns

              × `data` is jsonb: it cannot be part of a bucket's name
                ╭─[topology.toml:49:17]
             48 │ from = "shop.orders"
             49 │ bucket = "user:{data}"
                ·                 ──┬─
                ·                   ╰── here
             50 │ fields = ["id", "status"]
                ╰────
              help: use an integer, a text, a uuid, a bool or a date

              × view `f` cannot send `status` as `id`
                ╭─[topology.toml:51:21]
             50 │ fields = ["id", "status"]
             51 │ rename = { status = "id", note = "n" }
                ·                     ──┬─
                ·                       ╰── here
             52 │ [[view]]
                ╰────
              help: choose a name that no other field has

              × view `f` renames `note`, which is not among its fields
                ╭─[topology.toml:51:27]
             50 │ fields = ["id", "status"]
             51 │ rename = { status = "id", note = "n" }
                ·                           ──┬─
                ·                             ╰── here
             52 │ [[view]]
                ╰────
              help: add "note" to `fields`, or remove the renaming

              × view `orders` is declared twice
                ╭─[topology.toml:17:8]
             16 │ [[view]]
             17 │ name = "orders"
                ·        ────┬───
                ·            ╰── first here
             18 │ from = "shop.orders"
                ╰────
                ╭─[topology.toml:53:8]
             52 │ [[view]]
             53 │ name = "orders"
                ·        ────┬───
                ·            ╰── again here
             54 │ from = "shop.orders"
                ╰────
              help: rename one of them, or remove it

              × `at` is timestamptz: it cannot be part of a bucket's name
                ╭─[topology.toml:55:17]
             54 │ from = "shop.orders"
             55 │ bucket = "user:{at}"
                ·                 ─┬
                ·                  ╰── here
                ╰────
              help: an instant is hardly a group of rows: use a date, an integer or a text

            topology.toml: 16 errors
        "#]],
    );
}

#[test]
fn an_event_views_key_is_the_events_key() {
    with(
        r#"
[[view]]
name = "a"
from = "event:viewed"
bucket = "user:{customer_id}"
key = ["order_id"]
[[view]]
name = "b"
from = "event:viewed"
bucket = "user:{customer_id}"
key = ["customer_id"]
[[view]]
name = "c"
from = "event:viewed"
bucket = "user:{customer_id}"
key = ["order_id", "screen"]
"#,
        expect![[r#"
              × view `b` has another key than its input `event:viewed`
                ╭─[topology.toml:32:7]
             31 │ bucket = "user:{customer_id}"
             32 │ key = ["customer_id"]
                ·       ───────┬───────
                ·              ╰── here
             33 │ [[view]]
                ╰────
              help: remove `key`, or write key = ["order_id"]; for another key the event must be published with it

              × view `c` has another key than its input `event:viewed`
                ╭─[topology.toml:37:7]
             36 │ bucket = "user:{customer_id}"
             37 │ key = ["order_id", "screen"]
                ·       ───────────┬──────────
                ·                  ╰── here
                ╰────
              help: remove `key`, or write key = ["order_id"]; for another key the event must be published with it

            topology.toml: 2 errors
        "#]],
    );
}

#[test]
fn an_error_in_a_condition_is_shown_inside_its_text() {
    with(
        r#"
[[view]]
name = "a"
from = "shop.orders"
bucket = "user:{customer_id}"
where = 'status = "draft"'
[[view]]
name = "b"
from = "shop.orders"
bucket = "user:{customer_id}"
where = "status != \"draft\" && custmer_id > 3 && note.size() > 2 && rate > '1'"
[[view]]
name = "c"
from = "shop.orders"
bucket = "user:{customer_id}"
where = '''
  status == "paid"
  && id == null
'''
"#,
        expect![[r#"
              × view `a`: `=` compares nothing
                ╭─[topology.toml:27:17]
             26 │ bucket = "user:{customer_id}"
             27 │ where = 'status = "draft"'
                ·                 ┬
                ·                 ╰── here
             28 │ [[view]]
                ╰────
              help: write `==`

              × view `b`: there is no column `custmer_id`
                ╭─[topology.toml:32:33]
             31 │ bucket = "user:{customer_id}"
             32 │ where = "status != \"draft\" && custmer_id > 3 && note.size() > 2 && rate > '1'"
                ·                                 ─────┬────
                ·                                      ╰── here
             33 │ [[view]]
                ╰────
              help: did you mean `customer_id`?

              × view `b`: `note` may be null
                ╭─[topology.toml:32:51]
             31 │ bucket = "user:{customer_id}"
             32 │ where = "status != \"draft\" && custmer_id > 3 && note.size() > 2 && rate > '1'"
                ·                                                   ──┬─
                ·                                                     ╰── here
             33 │ [[view]]
                ╰────
              help: guard it, so that it has a size: `note != null && …`

              × view `b`: `rate` is a double (float8) and `'1'` is a string: these do not compare
                ╭─[topology.toml:32:70]
             31 │ bucket = "user:{customer_id}"
             32 │ where = "status != \"draft\" && custmer_id > 3 && note.size() > 2 && rate > '1'"
                ·                                                                      ─────┬────
                ·                                                                           ╰── here
             33 │ [[view]]
                ╰────
              help: write the number without quotes: `1`

              ⚠ view `c`: `id` is never null: this is always false
                ╭─[topology.toml:39:6]
             38 │   status == "paid"
             39 │   && id == null
                ·      ─────┬────
                ·           ╰── here
             40 │ '''
                ╰────
              help: remove it; or mark the column's type with `?` if it may be null

            topology.toml: 4 errors, 1 warning
        "#]],
    );
}

#[test]
fn memberships_use_claims_that_an_issuer_gives() {
    with(
        r#"
[[issuer]]
name = "app"
claims = ["stores", "realm"]
[[issuer]]
name = "staff"
claims = ["branch"]
[[membership]]
bucket = "user:{brnch}"
issuer = "staff"
[[membership]]
bucket = "user:{realm.id}"
issuer = "app"
[[membership]]
bucket = "user:{exp}"
issuer = "app"
[[membership]]
bucket = "user:{sub}"
issuer = "stuff"
[[membership]]
bucket = "team:{team}"
issuer = "app"
[[membership]]
bucket = "user:{sub}"
"#,
        expect![[r#"
              ⚠ tokens of every issuer may open `user:{sub}`
                ╭─[topology.toml:21:10]
             20 │ [[membership]]
             21 │ bucket = "user:{sub}"
                ·          ──────┬─────
                ·                ╰── here
             22 │ 
                ╰────
              help: say whose claims count: `issuer = "…"`; two issuers may name different people alike

              × no issuer gives the claim `brnch`
                ╭─[topology.toml:30:17]
             29 │ [[membership]]
             30 │ bucket = "user:{brnch}"
                ·                 ──┬──
                ·                   ╰── here
             31 │ issuer = "staff"
                ╰────
              help: did you mean `branch`?; or add it to the issuer's `claims`

              ⚠ claim `exp` says something of the token, not of who holds it
                ╭─[topology.toml:36:17]
             35 │ [[membership]]
             36 │ bucket = "user:{exp}"
                ·                 ─┬─
                ·                  ╰── here
             37 │ issuer = "app"
                ╰────
              help: use `sub`, or a claim of your own

              × there is no issuer `stuff`
                ╭─[topology.toml:40:10]
             39 │ bucket = "user:{sub}"
             40 │ issuer = "stuff"
                ·          ───┬───
                ·             ╰── here
             41 │ [[membership]]
                ╰────
              help: did you mean `staff`?

              × no declared bucket has the shape of `team:{team}`
                ╭─[topology.toml:42:10]
             41 │ [[membership]]
             42 │ bucket = "team:{team}"
                ·          ──────┬──────
                ·                ╰── here
             43 │ issuer = "app"
                ╰────
              help: declare it: [[bucket]] name = "team:{team}"

              × no issuer gives the claim `team`
                ╭─[topology.toml:42:17]
             41 │ [[membership]]
             42 │ bucket = "team:{team}"
                ·                 ──┬─
                ·                   ╰── here
             43 │ issuer = "app"
                ╰────
              help: did you mean `realm`?; or add it to the issuer's `claims`

              ⚠ membership of `user:{sub}` is declared twice
                ╭─[topology.toml:21:10]
             20 │ [[membership]]
             21 │ bucket = "user:{sub}"
                ·          ──────┬─────
                ·                ╰── first here
             22 │ 
                ╰────
                ╭─[topology.toml:45:10]
             44 │ [[membership]]
             45 │ bucket = "user:{sub}"
                ·          ──────┬─────
                ·                ╰── again here
                ╰────
              help: remove one of them

              ⚠ tokens of every issuer may open `user:{sub}`
                ╭─[topology.toml:45:10]
             44 │ [[membership]]
             45 │ bucket = "user:{sub}"
                ·          ──────┬─────
                ·                ╰── here
                ╰────
              help: say whose claims count: `issuer = "…"`; two issuers may name different people alike

            topology.toml: 4 errors, 4 warnings
        "#]],
    );
}

#[test]
fn a_membership_from_data_is_checked_and_refused_for_now() {
    with(
        r#"
[[membership]]
from = "shop.orders"
principal = "{custmer_id}"
bucket = "user:{customer_id}"
[[membership]]
from = "shop.staff"
bucket = "user:{id}"
[[membership]]
principal = "{id}"
bucket = "user:{id}"
"#,
        expect![[r#"
              × memberships from data are not supported yet
                ╭─[topology.toml:24:8]
             23 │ [[membership]]
             24 │ from = "shop.orders"
                ·        ──────┬──────
                ·              ╰── here
             25 │ principal = "{custmer_id}"
                ╰────
              help: a later release; today use a claim: remove `from` and `principal`, and write `bucket = "user:{sub}"`

              × there is no column of `shop.orders` called `custmer_id`
                ╭─[topology.toml:25:13]
             24 │ from = "shop.orders"
             25 │ principal = "{custmer_id}"
                ·             ───────┬──────
                ·                    ╰── here
             26 │ bucket = "user:{customer_id}"
                ╰────
              help: did you mean `customer_id`?

              × a membership from data says whom it is for
                ╭─[topology.toml:28:8]
             27 │ [[membership]]
             28 │ from = "shop.staff"
                ·        ──────┬─────
                ·              ╰── here
             29 │ bucket = "user:{id}"
                ╰────
              help: add `principal = "{user_id}"`, a column of the rows

              × there is no input `shop.staff`
                ╭─[topology.toml:28:8]
             27 │ [[membership]]
             28 │ from = "shop.staff"
                ·        ──────┬─────
                ·              ╰── here
             29 │ bucket = "user:{id}"
                ╰────
              help: known: `shop.orders`, `event:viewed`

              × memberships from data are not supported yet
                ╭─[topology.toml:28:8]
             27 │ [[membership]]
             28 │ from = "shop.staff"
                ·        ──────┬─────
                ·              ╰── here
             29 │ bucket = "user:{id}"
                ╰────
              help: a later release; today use a claim: remove `from` and `principal`, and write `bucket = "user:{sub}"`

              × `principal` is for memberships from data
                ╭─[topology.toml:31:13]
             30 │ [[membership]]
             31 │ principal = "{id}"
                ·             ───┬──
                ·                ╰── here
             32 │ bucket = "user:{id}"
                ╰────
              help: add `from = "<source>.<table>"`, or remove `principal`

            topology.toml: 6 errors
        "#]],
    );
}

#[test]
fn nodes_run_what_exists_and_what_is_single_only_once() {
    with(
        r#"
[[node]]
name = "a"
runs = ["connector:shop", "egde", "processor:push", "registry"]
[[node]]
name = "b"
runs = ["connector:shop", "connector:shp", "sync-views", "registry", "registry"]
[[node]]
name = "b"
runs = []
"#,
        expect![[r#"
              ⚠ no node runs `processor:sync-views`
                ╭─[topology.toml:24:8]
             23 │ [[node]]
             24 │ name = "a"
                ·        ─┬─
                ·         ╰── nodes are declared from here on
             25 │ runs = ["connector:shop", "egde", "processor:push", "registry"]
                ╰────
              help: add "processor:sync-views" to the `runs` of a node

              ⚠ no node runs `edge`
                ╭─[topology.toml:24:8]
             23 │ [[node]]
             24 │ name = "a"
                ·        ─┬─
                ·         ╰── nodes are declared from here on
             25 │ runs = ["connector:shop", "egde", "processor:push", "registry"]
                ╰────
              help: add "edge" to the `runs` of a node

              ⚠ no node runs `ingest`
                ╭─[topology.toml:24:8]
             23 │ [[node]]
             24 │ name = "a"
                ·        ─┬─
                ·         ╰── nodes are declared from here on
             25 │ runs = ["connector:shop", "egde", "processor:push", "registry"]
                ╰────
              help: add "ingest" to the `runs` of a node

              × there is no role `egde`
                ╭─[topology.toml:25:27]
             24 │ name = "a"
             25 │ runs = ["connector:shop", "egde", "processor:push", "registry"]
                ·                           ───┬──
                ·                              ╰── here
             26 │ [[node]]
                ╰────
              help: did you mean `edge`?

              × there is no processor `push`
                ╭─[topology.toml:25:46]
             24 │ name = "a"
             25 │ runs = ["connector:shop", "egde", "processor:push", "registry"]
                ·                                              ──┬─
                ·                                                ╰── here
             26 │ [[node]]
                ╰────
              help: known: `sync-views`

              × `connector:shop` runs on two nodes, and only one at a time may
                ╭─[topology.toml:28:9]
             24 │ name = "a"
             25 │ runs = ["connector:shop", "egde", "processor:push", "registry"]
                ·         ────────┬───────
                ·                 ╰── first here
             26 │ [[node]]
             27 │ name = "b"
             28 │ runs = ["connector:shop", "connector:shp", "sync-views", "registry", "registry"]
                ·         ────────┬───────
                ·                 ╰── again here
             29 │ [[node]]
                ╰────
              help: keep it on one node; a supervisor restarts it

              × there is no connector `shp`
                ╭─[topology.toml:28:38]
             27 │ name = "b"
             28 │ runs = ["connector:shop", "connector:shp", "sync-views", "registry", "registry"]
                ·                                      ─┬─
                ·                                       ╰── here
             29 │ [[node]]
                ╰────
              help: did you mean `shop`?

              × there is no role `sync-views`
                ╭─[topology.toml:28:44]
             27 │ name = "b"
             28 │ runs = ["connector:shop", "connector:shp", "sync-views", "registry", "registry"]
                ·                                            ──────┬─────
                ·                                                  ╰── here
             29 │ [[node]]
                ╰────
              help: did you mean `processor:sync-views`?

              × `registry` runs on two nodes, and only one at a time may
                ╭─[topology.toml:28:58]
             24 │ name = "a"
             25 │ runs = ["connector:shop", "egde", "processor:push", "registry"]
                ·                                                     ─────┬────
                ·                                                          ╰── first here
             26 │ [[node]]
             27 │ name = "b"
             28 │ runs = ["connector:shop", "connector:shp", "sync-views", "registry", "registry"]
                ·                                                          ─────┬────
                ·                                                               ╰── again here
             29 │ [[node]]
                ╰────
              help: keep it on one node; a supervisor restarts it

              × role `registry` is declared twice
                ╭─[topology.toml:28:70]
             27 │ name = "b"
             28 │ runs = ["connector:shop", "connector:shp", "sync-views", "registry", "registry"]
                ·                                                          ─────┬────  ─────┬────
                ·                                                               │           ╰── again here
                ·                                                               ╰── first here
             29 │ [[node]]
                ╰────
              help: rename one of them, or remove it

              × `registry` runs on two nodes, and only one at a time may
                ╭─[topology.toml:28:70]
             27 │ name = "b"
             28 │ runs = ["connector:shop", "connector:shp", "sync-views", "registry", "registry"]
                ·                                                          ─────┬────  ─────┬────
                ·                                                               │           ╰── again here
                ·                                                               ╰── first here
             29 │ [[node]]
                ╰────
              help: keep it on one node; a supervisor restarts it

              × node `b` is declared twice
                ╭─[topology.toml:30:8]
             26 │ [[node]]
             27 │ name = "b"
                ·        ─┬─
                ·         ╰── first here
             28 │ runs = ["connector:shop", "connector:shp", "sync-views", "registry", "registry"]
             29 │ [[node]]
             30 │ name = "b"
                ·        ─┬─
                ·         ╰── again here
             31 │ runs = []
                ╰────
              help: rename one of them, or remove it

              × node `b` runs nothing
                ╭─[topology.toml:31:8]
             30 │ name = "b"
             31 │ runs = []
                ·        ─┬
                ·         ╰── here
                ╰────
              help: name a role: runs = ["edge"]

            topology.toml: 10 errors, 3 warnings
        "#]],
    );
    with(
        "[[node]]\nname = \"a\"\nruns = [\"edge\"]\n",
        expect![[r#"
          ⚠ no node runs `connector:shop`
            ╭─[topology.toml:23:8]
         22 │ [[node]]
         23 │ name = "a"
            ·        ─┬─
            ·         ╰── nodes are declared from here on
         24 │ runs = ["edge"]
            ╰────
          help: add "connector:shop" to the `runs` of a node

          ⚠ no node runs `processor:sync-views`
            ╭─[topology.toml:23:8]
         22 │ [[node]]
         23 │ name = "a"
            ·        ─┬─
            ·         ╰── nodes are declared from here on
         24 │ runs = ["edge"]
            ╰────
          help: add "processor:sync-views" to the `runs` of a node

          ⚠ no node runs `ingest`
            ╭─[topology.toml:23:8]
         22 │ [[node]]
         23 │ name = "a"
            ·        ─┬─
            ·         ╰── nodes are declared from here on
         24 │ runs = ["edge"]
            ╰────
          help: add "ingest" to the `runs` of a node

        topology.toml: 3 warnings
    "#]],
    );
}

#[test]
fn the_view_log_has_at_most_128_partitions() {
    with(
        "[view_log]\npartitions = 129\n",
        expect![[r#"
          × view.log cannot have 129 partitions
            ╭─[topology.toml:23:14]
         22 │ [view_log]
         23 │ partitions = 129
            ·              ─┬─
            ·               ╰── here
            ╰────
          help: use 1 to 128

        topology.toml: 1 error
    "#]],
    );
    with(
        "[view_log]\npartitions = \"16\"\nretention = 3\n",
        expect![[r#"
          × `partitions` of [view_log] must be a whole number
            ╭─[topology.toml:23:14]
         22 │ [view_log]
         23 │ partitions = "16"
            ·              ──┬─
            ·                ╰── this is a string
         24 │ retention = 3
            ╰────
          help: write a whole number

          × [view_log] has no key `retention`
            ╭─[topology.toml:24:1]
         23 │ partitions = "16"
         24 │ retention = 3
            · ────┬────
            ·     ╰── unknown key
            ╰────
          help: known: `partitions`

        topology.toml: 2 errors
    "#]],
    );
}

#[test]
fn a_checked_view_is_resolved_to_columns() {
    let topology = run(&BASE
        .replace(
            "name = \"user:{id}\"",
            "name = \"user:{tenant}:{id}\"\nscope = \"tenant:{tenant}\"",
        )
        .replace("user:{customer_id}", "user:{status}:{customer_id}")
        .replace("user:{sub}", "user:{tenant}:{sub}"))
    .into_result()
    .unwrap();
    let view = &topology.views[0];
    assert_eq!(view.input, Input::Table { source: 0, table: 0 });
    assert_eq!(
        view.bucket_name,
        [Segment::Literal("user".into()), Segment::Param(2), Segment::Param(1)]
    );
    assert_eq!(view.scope_name, [Segment::Literal("tenant".into()), Segment::Param(2)]);
    assert_eq!(view.columns(), [0, 1, 2, 3, 4, 5, 6]);
    let mut out = String::from(">");
    let values = [None, Some("7"), Some("a:b")];
    let written = view.write_bucket(&mut out, |at| values[at].map(Into::into));
    assert_eq!((written, out.as_str()), (Ok(true), ">user:a%3Ab:7"));
    assert_eq!(topology.scope_of("user:a%3Ab:7").as_deref(), Some("tenant:a%3Ab"));
    assert_eq!(view.write_bucket(&mut out, |_| None), Ok(false));
    let long = "x".repeat(600);
    assert!(view.write_bucket(&mut out, |_| Some((&long).into())).is_err());
    assert_eq!(out, ">user:a%3Ab:7");
}

#[test]
fn the_rules_version_follows_what_devices_see_and_nothing_else() {
    let version = |text: &str| run(text).into_result().unwrap().rules_version;
    let base = version(BASE);
    assert_eq!(
        base, 18_096_345_345_797_747_513,
        "frozen: a release must not reset every device"
    );
    let same = [
        format!("# a comment\n{BASE}"),
        BASE.replace("user:{id}", "user:{customer}"),
        BASE.replace("name = \"shop\"\n[[", "name = \"other\"\n[["),
        format!("{BASE}[[table]]\nsource = \"shop\"\nname = \"more\"\ncolumns = {{ id = \"int8\" }}\n"),
    ];
    for text in same {
        assert_eq!(version(&text), base, "{text}");
    }
    let other = [
        BASE.replace("customer_id = \"int8\", status", "customer_id = \"text\", status"),
        BASE.replace(
            "bucket = \"user:{customer_id}\"",
            "bucket = \"user:{customer_id}\"\nfields = [\"id\"]",
        ),
        BASE.replace(
            "bucket = \"user:{customer_id}\"",
            "bucket = \"user:{customer_id}\"\nwhere = \"id > 3\"",
        ),
        BASE.replace("bucket = \"user:{customer_id}\"", "bucket = \"user:{status}\""),
        BASE.replace("name = \"user:{id}\"", "name = \"user:{id}\"\nscope = \"all\""),
        format!("{BASE}[view_log]\npartitions = 8\n"),
    ];
    for text in other {
        assert_ne!(version(&text), base, "{text}");
    }
}
