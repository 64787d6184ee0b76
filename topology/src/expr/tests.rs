//! What conditions mean, what is refused and why, and that the `cel` crate's interpreter agrees.

use super::*;
use expect_test::{Expect, expect};

mod oracle;

fn field(name: &str, ty: Type, declared: &str, nullable: bool) -> Field {
    let form = if ty == Type::Timestamp {
        Form::Micros
    } else {
        Form::Plain
    };
    Field {
        name: name.to_string(),
        ty,
        form,
        nullable,
        declared: declared.to_string(),
    }
}

fn orders() -> RowType {
    let address = RowType {
        fields: vec![
            field("city", Type::Text, "string", true),
            field("zip", Type::Int, "int", false),
        ],
    };
    let tag = field("items", Type::Text, "string", false);
    RowType {
        fields: vec![
            field("id", Type::Int, "int8", false),
            field("status", Type::Text, "text", false),
            field("note", Type::Text, "text", true),
            field("total", Type::Int, "int8", false),
            field("rate", Type::Double, "float8", true),
            field("paid", Type::Bool, "bool", true),
            field("at", Type::Timestamp, "timestamptz", false),
            field("amount", Type::Text, "numeric", false),
            field("data", Type::Opaque("jsonb"), "jsonb", true),
            field("address", Type::Row(Arc::new(address)), "record", true),
            field("tags", Type::List(Box::new(tag)), "list", false),
            field("raw", Type::Bytes, "bytea", false),
            field("Odd name", Type::Int, "int4", false),
            Field {
                form: Form::Date,
                ..field("day", Type::Timestamp, "date", false)
            },
        ],
    }
}

fn row() -> Vec<Datum<'static>> {
    vec![
        Datum::Long(7),
        Datum::Str("paid"),
        Datum::Null,
        Datum::Long(1200),
        Datum::Double(0.5),
        Datum::Bool(true),
        Datum::Long(1_767_225_600_000_000),
        Datum::Str("12.50"),
        Datum::Null,
        Datum::Record(vec![Datum::Str("Köln"), Datum::Int(50667)]),
        Datum::Array(vec![Datum::Str("new"), Datum::Str("gift")]),
        Datum::Bytes(b"ab"),
        Datum::Int(3),
        Datum::Int(20455),
    ]
}

fn answer(condition: &str) -> std::result::Result<bool, EvalFault> {
    let program = Program::compile(condition, &orders()).unwrap_or_else(|errors| panic!("{condition}: {errors:?}"));
    program.matches(&row()).map_err(|error| error.fault)
}

#[test]
fn a_condition_is_true_or_false_of_a_row() {
    let holds = [
        r#"status != "draft""#,
        r#"status == 'paid' && total > 1000"#,
        "note == null",
        r#"note != "x""#,
        r#"!(note == "x")"#,
        "note == null || note.size() > 3",
        "note != null ? note.size() > 3 : total == 1200",
        "rate != null && rate < 1",
        "rate == 0.5 && rate * 2.0 == 1.0",
        "paid == true",
        "paid != null && paid",
        r#"status in ["open", "paid"]"#,
        "id in [1, 7.0, total]",
        "null in [note, null]",
        r#""gift" in tags && size(tags) == 2"#,
        r#"address != null && address.city == "Köln""#,
        r#"has(row.address) && has(address.city) && address.city.size() == 4"#,
        "row.id == 7 && row[\"Odd name\"] == 3",
        "total % 7 == 3 && total / 7 == 171 && -total < 0 && - (total) == 0 - 1200",
        r#"status.startsWith("pa") && status.endsWith("id") && status.contains("ai")"#,
        r#"status.matches("^[a-z]+$") && matches(status, "ai")"#,
        "double(amount) > 12.0 && int(\"12\") == 12 && string(id) == \"7\"",
        r#"at == timestamp("2026-01-01T00:00:00Z")"#,
        r#"at - timestamp("2025-12-31T00:00:00Z") == duration("24h")"#,
        r#"at + duration("1h30m") > at && at - duration("1.5h") < at"#,
        "int(at) == 1767225600 && string(at) == '2026-01-01T00:00:00Z'",
        "raw == b'ab' && size(raw) == 2",
        "9223372036854775807 > 9223372036854775806.0 || true",
        "false || total / (id - 7) == 1 || true",
        "data == null",
        r#"day == timestamp("2026-01-02T00:00:00Z") && day > at"#,
    ];
    for condition in holds {
        assert_eq!(answer(condition), Ok(true), "{condition}");
        let negated = format!("!({condition})");
        assert_eq!(answer(&negated), Ok(false), "{negated}");
    }
}

#[test]
fn what_can_fail_while_running_fails_with_its_place_and_never_panics() {
    assert_eq!(answer("total / (id - 7) == 1"), Err(EvalFault::DivideByZero));
    assert_eq!(answer("total % (id - 7) == 1"), Err(EvalFault::DivideByZero));
    assert_eq!(answer("total * 9223372036854775807 > 0"), Err(EvalFault::Overflow));
    assert_eq!(answer("int(status) == 1"), Err(EvalFault::Convert));
    assert_eq!(answer("timestamp(status) == at"), Err(EvalFault::Convert));
    assert_eq!(answer("total / (id - 7) == 1 || id == 7"), Ok(true));
    assert_eq!(answer("total / (id - 7) == 1 && id != 7"), Ok(false));
    assert_eq!(answer("total / (id - 7) == 1 && id == 7"), Err(EvalFault::DivideByZero));
    let program = Program::compile("id > 0 && total / (id - 7) == 1", &orders()).unwrap();
    let error = program.matches(&row()).unwrap_err();
    assert_eq!(error.to_string(), "evaluate `total / (id - 7)`: division by zero");
}

#[test]
fn a_program_knows_the_columns_that_it_reads() {
    let program = Program::compile("note == null || (total > 3 && row.status == 'x')", &orders()).unwrap();
    assert_eq!(program.columns(), [1, 2, 3]);
}

/// Each line: the expression, a line of carets under the place, then reason and fix.
fn refused(conditions: &[&str], expected: Expect) {
    let mut out = String::new();
    for condition in conditions {
        out.push_str(condition);
        match Program::compile(condition, &orders()) {
            Ok(program) if program.warnings().is_empty() => out.push_str("\n  fine\n"),
            Ok(program) => show(&mut out, condition, "warning: ", program.warnings()),
            Err(errors) => show(&mut out, condition, "", &errors),
        }
    }
    expected.assert_eq(&out);
}

fn show(out: &mut String, condition: &str, kind: &str, errors: &[ExprError]) {
    for error in errors {
        let before = condition[..error.span.start].chars().count();
        let width = condition[error.span.clone()].chars().count().max(1);
        out.push_str(&format!("\n{}{}\n", " ".repeat(before), "^".repeat(width)));
        out.push_str(&format!("  {kind}{}\n  help: {}\n", error.message, error.help));
    }
    if errors.is_empty() {
        out.push('\n');
    }
}

#[test]
fn a_text_that_is_no_expression_is_refused_at_its_place() {
    refused(
        &[
            "",
            "status = 'x'",
            "status == 'x' and total > 1",
            "status == ",
            "(status == 'x'",
            "status == 'x",
            "note is null",
            "a & b",
            "has(note)",
            "tags.exists(t, t == 'x')",
            "total > 1u",
            "{'a': 1} == {'a': 1}",
            "ü == 1",
        ],
        expect![[r#"

            ^
              the expression is empty
              help: write a condition, such as `status != "draft"`, or remove it
            status = 'x'
                   ^
              `=` compares nothing
              help: write `==`
            status == 'x' and total > 1
                          ^
              `and` is no operator
              help: write `&&`
            status == 
                      ^
              the expression ends too early
              help: complete it, such as `status != "draft"`
            (status == 'x'
                          ^
              the expression ends too early
              help: complete it, such as `status != "draft"`
            status == 'x
                      ^
              the text has no closing quote
              help: close the quote
            note is null
                 ^
              `is` is no operator
              help: write `== null` or `!= null`
            a & b
              ^
              one sign is no operator
              help: write `&&` for and, `||` for or
            has(note)
                ^
              has() asks for a field
              help: compare a column with null instead: `note != null`
            tags.exists(t, t == 'x')
                       ^
              loops (all, exists, map, filter) cannot be used in a condition over a row
              help: use `value in list`
            total > 1u
                    ^^
              unsigned numbers cannot be used in a condition over a row
              help: write the number without `u`
            {'a': 1} == {'a': 1}
            ^
              maps and messages cannot be used in a condition over a row
              help: compare columns one by one

                        ^
              maps and messages cannot be used in a condition over a row
              help: compare columns one by one
            ü == 1
            ^
              cannot read the expression: token recognition error at: 'ü'
              help: an expression looks like `status != "draft" && total > 0`
        "#]],
    );
}

#[test]
fn unknown_names_and_wrong_types_are_refused_with_the_fix() {
    refused(
        &[
            "staus != 'draft'",
            "status == draft",
            "note == NULL",
            "row == null",
            "row.nothing == 1",
            "address != null && address.cty == 'x'",
            "status.zip == 1",
            "status",
            "total",
            "paid",
            "!total",
            "id && paid == true",
            "total == '1200'",
            "total == status",
            "amount > 10",
            "at > '2026-01-01'",
            "at > timestamp('2026-01-01')",
            "paid == 'true'",
            "data == 'x'",
            "tags == tags",
            "status in 'paid'",
            "status in ['paid', 1]",
            "1 in tags",
            "total + rate > 1.0",
            "rate != null && total + rate > 1.0",
            "status + total == 'x'",
            "amount * 2 > 1",
            "-status == 'x'",
            "total.startsWith('1')",
            "startsWith(status, 'x')",
            "status.matches(note)",
            "status.matches('[')",
            "status.lowerAscii() == 'x'",
            "now() > at",
            "size(total) == 1",
            "int(paid == true) == 1",
            "has(row.status, 1)",
            "1 / 0 == total",
            "status == 'a' ? 1 : 'x'",
            "tags[0] == 'x'",
            "[1] == [1]",
        ],
        expect![[r#"
            staus != 'draft'
            ^^^^^
              there is no column `staus`
              help: did you mean `status`?
            status == draft
                      ^^^^^
              there is no column `draft`
              help: known: `id`, `status`, `note`, `total`, `rate`, `paid`, `at`, `amount`, `data`, `address`, `tags`, `raw` and 2 more; a text is written with quotes: "draft"
            note == NULL
                    ^^^^
              there is no column `NULL`
              help: write `null`
            row == null
            ^^^
              there is no column `row`
              help: write `row.name` or `row["name"]`
            row.nothing == 1
            ^^^^^^^^^^^
              there is no column `nothing`
              help: known: `id`, `status`, `note`, `total`, `rate`, `paid`, `at`, `amount`, `data`, `address`, `tags`, `raw` and 2 more; a text is written with quotes: "nothing"
            address != null && address.cty == 'x'
                               ^^^^^^^^^^^
              `address` has no field `cty`
              help: did you mean `city`?
            status.zip == 1
            ^^^^^^^^^^
              `status` is a string (text) has no fields
              help: fields are read from nested records of events only
            status
            ^^^^^^
              the condition must be true or false; `status` is a string (text)
              help: compare it: `status == "…"`
            total
            ^^^^^
              the condition must be true or false; `total` is an int (int8)
              help: compare it: `total != 0`
            paid
            ^^^^
              `paid` may be null
              help: write `paid == true`: a null is then not true
            !total
             ^^^^^
              what `!` turns round must be true or false; `total` is an int (int8)
              help: compare it: `total != 0`
            id && paid == true
            ^^
              the left side must be true or false; `id` is an int (int8)
              help: compare it: `id != 0`
            total == '1200'
            ^^^^^^^^^^^^^^^
              `total` is an int (int8) and `'1200'` is a string: these do not compare
              help: write the number without quotes: `1200`
            total == status
            ^^^^^^^^^^^^^^^
              `total` is an int (int8) and `status` is a string (text): these do not compare
              help: convert the text: `int(status)`
            amount > 10
            ^^^^^^^^^^^
              `amount` is a string (numeric) and `10` is an int: these do not compare
              help: convert the text: `double(amount)`
            at > '2026-01-01'
            ^^^^^^^^^^^^^^^^^
              `at` is a timestamp (timestamptz) and `'2026-01-01'` is a string: these do not compare
              help: write an instant: `timestamp("2026-01-01T00:00:00Z")`
            at > timestamp('2026-01-01')
                 ^^^^^^^^^^^^^^^^^^^^^^^
              `timestamp('2026-01-01')`: the value does not convert
              help: an instant is written "2026-01-31T10:00:00Z"
            paid == 'true'
            ^^^^^^^^^^^^^^
              `paid` is a bool and `'true'` is a string: these do not compare
              help: write `paid == true` or `paid == false`
            data == 'x'
            ^^^^^^^^^^^
              `data` is jsonb and `'x'` is a string: these do not compare
              help: only `== null` and `!= null` can be asked of it
            tags == tags
            ^^^^^^^^^^^^
              `tags` is a list and `tags` is a list: these do not compare
              help: only `== null` and `!= null` can be asked of it
            status in 'paid'
                      ^^^^^^
              `'paid'` is a string, not a list
              help: write a list after `in`: `status in ["open", "paid"]`
            status in ['paid', 1]
                               ^
              `status` is a string (text) and `1` is an int: these do not compare
              help: convert the text: `int(status)`
            1 in tags
            ^^^^^^^^^
              `1` is an int, but the list holds string
              help: look for a value of the list's own type
            total + rate > 1.0
                    ^^^^
              `rate` may be null
              help: guard it, so that it can be computed with: `rate != null && …`
            rate != null && total + rate > 1.0
                            ^^^^^^^^^^^^
              `+` does not take these; `total` is an int (int8), `rate` is a double (float8)
              help: convert: `double(total)`
            status + total == 'x'
            ^^^^^^^^^^^^^^
              `+` does not take these; `status` is a string (text), `total` is an int (int8)
              help: convert: `int(status)`
            amount * 2 > 1
            ^^^^^^^^^^
              `*` does not take these; `amount` is a string (numeric), `2` is an int
              help: convert: `double(amount)`
            -status == 'x'
            ^^^^^^^
              `-` is for numbers; `status` is a string (text)
              help: convert it with int() or double()
            total.startsWith('1')
            ^^^^^
              this is for texts; `total` is an int (int8)
              help: convert it: `string(total)`
            startsWith(status, 'x')
            ^^^^^^^^^^^^^^^^^^^^^^^
              `startsWith` is asked of a text
              help: write `name.startsWith("…")`
            status.matches(note)
                           ^^^^
              the pattern of `matches` must be a literal
              help: write it as a text: `name.matches("^[A-Z]+$")`
            status.matches('[')
                           ^^^
              this is no regular expression
              help: unclosed character class; a backslash is written twice in "…" (or use r"…")
            status.lowerAscii() == 'x'
            ^^^^^^^^^^^^^^^^^^^
              there is no function `lowerAscii`
              help: known: `startsWith`, `endsWith`, `contains`, `matches`, `size`, `has`, `int`, `double`, `string`, `timestamp`, `duration`
            now() > at
            ^^^^^
              a condition depends on the row alone, not on the time
              help: compare columns with each other, or with `timestamp("2026-01-31T10:00:00Z")`
            size(total) == 1
                 ^^^^^
              `total` is an int (int8): it has no size
              help: size is of texts (characters), bytes and lists
            int(paid == true) == 1
                ^^^^^^^^^^^^
              `paid == true` is a bool: it does not convert to int
              help: int() takes: int, double, string, timestamp
            has(row.status, 1)
            ^^^^^^^^^^^^^^^^^^
              `has` takes one value
              help: write `has(row.name)`
            1 / 0 == total
            ^^^^^
              `1 / 0`: division by zero
              help: write a value that can be computed
            status == 'a' ? 1 : 'x'
            ^^^^^^^^^^^^^^^^^^^^^^^
              `?:` gives one type; `1` is an int, `'x'` is a string
              help: convert one of them, with int(), double(), string() or timestamp()
            tags[0] == 'x'
            ^^^^^^
              nothing is read by an index
              help: write `row["name"]` for a column
            [1] == [1]
            ^^^
              a list stands only on the right of `in`
              help: write it on the right of `in`: `status in ["open", "paid"]`

                   ^^^
              a list stands only on the right of `in`
              help: write it on the right of `in`: `status in ["open", "paid"]`
        "#]],
    );
}

#[test]
fn a_column_that_may_be_null_asks_for_a_guard() {
    refused(
        &[
            "note.size() > 3",
            "note < 'x'",
            "note.size() > 3 && note != null",
            "note == null || note.size() > 3",
            "note != null && note.size() > 3",
            "note == 'abcd' && note.size() > 3",
            "note in ['abcd'] && note.size() > 3",
            "note in ['abcd', null] && note.size() > 3",
            "note == status && note.size() > 3",
            "note != status && note.size() > 3",
            "!(note == null) && note.size() > 3",
            "!(note == null || rate == null) && note.size() > 3 && rate > 1",
            "(note != null && id == 1 || note != null && id == 2) && note.size() > 3",
            "(note != null || id == 2) && note.size() > 3",
            "(note == null ? 'x' : note) < 'y'",
            "(paid == true ? note : null) == 'y'",
            "(paid == true ? note : null) < 'y'",
            "address.zip == 1",
            "address != null && address.city < 'K'",
            "address != null && address.city != null && address.city < 'K'",
            "null < 3",
            "status == null",
            "has(row.id)",
            "1 < 2",
            "status in []",
        ],
        expect![[r#"
            note.size() > 3
            ^^^^
              `note` may be null
              help: guard it, so that it has a size: `note != null && …`
            note < 'x'
            ^^^^
              `note` may be null
              help: guard it, so that it has an order: `note != null && …`
            note.size() > 3 && note != null
            ^^^^
              `note` may be null
              help: guard it, so that it has a size: `note != null && …`
            note == null || note.size() > 3
              fine
            note != null && note.size() > 3
              fine
            note == 'abcd' && note.size() > 3
              fine
            note in ['abcd'] && note.size() > 3
              fine
            note in ['abcd', null] && note.size() > 3
                                      ^^^^
              `note` may be null
              help: guard it, so that it has a size: `note != null && …`
            note == status && note.size() > 3
              fine
            note != status && note.size() > 3
                              ^^^^
              `note` may be null
              help: guard it, so that it has a size: `note != null && …`
            !(note == null) && note.size() > 3
              fine
            !(note == null || rate == null) && note.size() > 3 && rate > 1
              fine
            (note != null && id == 1 || note != null && id == 2) && note.size() > 3
              fine
            (note != null || id == 2) && note.size() > 3
                                         ^^^^
              `note` may be null
              help: guard it, so that it has a size: `note != null && …`
            (note == null ? 'x' : note) < 'y'
              fine
            (paid == true ? note : null) == 'y'
              fine
            (paid == true ? note : null) < 'y'
             ^^^^^^^^^^^^^^^^^^^^^^^^^^
              `paid == true ? note : null` may be null
              help: guard it, so that it has an order: `paid == true ? note : null != null && …`
            address.zip == 1
            ^^^^^^^
              `address` may be null
              help: guard it, so that its fields can be read: `address != null && …`
            address != null && address.city < 'K'
                               ^^^^^^^^^^^^
              `address.city` may be null
              help: guard it, so that it has an order: `address.city != null && …`
            address != null && address.city != null && address.city < 'K'
              fine
            null < 3
            ^^^^
              null is no value here
              help: compare with `== null` or `!= null` only
            status == null
            ^^^^^^^^^^^^^^
              warning: `status` is never null: this is always false
              help: remove it; or mark the column's type with `?` if it may be null
            has(row.id)
            ^^^^^^^^^^^
              warning: `has(row.id)` is always true
              help: the field is never null: remove the condition
            1 < 2
            ^^^^^
              warning: the condition does not look at any column
              help: it is the same for every row: compare a column, or remove it
            status in []
            ^^^^^^^^^^^^
              warning: nothing is in an empty list
              help: name at least one value
        "#]],
    );
}

#[test]
fn deep_and_long_texts_are_answered_not_crashed_on() {
    for condition in [
        format!("{}id == 1{}", "(".repeat(300), ")".repeat(300)),
        format!("{}id == 1", "!".repeat(3000)),
        format!("{}(id == 1)", "!".repeat(390)),
        format!("id == {}1", "-".repeat(390)),
        format!("id == {}", vec!["1"; 390].join("+")),
        format!("id == {}", vec!["id"; 390].join("+")),
        format!("id{} == 1", ".a".repeat(390)),
        vec!["id == 1"; 130].join("||"),
        format!("{}1", "id == 1 ? 2 : ".repeat(90)),
        format!("{}1", "(id == 1 ? 2 : ".repeat(30)),
        "x".repeat(5000),
        String::from("'\\u{0}'"),
        String::from("\u{0}"),
        String::from("`a`"),
        String::from("a.`b`"),
        String::from("\"\\x\""),
    ] {
        let _ = Program::compile(&condition, &orders());
    }
}
