//! Semantics of conditions, golden tests of compile errors, and comparison with the `cel` crate's interpreter.

use super::*;
use expect_test::expect_file;
use schemas::codec::Datum;
use std::path::Path;
use std::sync::Arc;

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
            Field {
                form: Form::Decimal,
                ..field("amount", Type::Decimal, "numeric", false)
            },
            Field {
                form: Form::Json,
                ..field("data", Type::Json, "jsonb", true)
            },
            field("address", Type::Row(Arc::new(address)), "record", true),
            field("tags", Type::List(Box::new(tag)), "list", false),
            field("raw", Type::Bytes, "bytea", false),
            field("Odd name", Type::Int, "int4", false),
            Field {
                form: Form::Date,
                ..field("day", Type::Timestamp, "date", false)
            },
            Field {
                form: Form::Json,
                ..field("doc", Type::Json, "jsonb", false)
            },
            field(
                "members",
                Type::List(Box::new(field("items", Type::Int, "int8", true))),
                "_int8",
                true,
            ),
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
        Datum::Str(r#"{"status": "open", "n": 3, "rate": 0.5, "tags": ["a", 7], "deep": {"a b": true, "null": null}}"#),
        Datum::Array(vec![Datum::Long(7), Datum::Null]),
    ]
}

fn answer(condition: &str) -> std::result::Result<bool, EvalErrorKind> {
    let program = Program::compile(condition, &orders()).unwrap_or_else(|errors| panic!("{condition}: {errors:?}"));
    program.matches(&row()).map_err(|error| error.kind)
}

#[test]
fn conditions_evaluate_over_a_row() {
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
        "amount > 12 && amount < 12.6 && amount == 12.5 && amount != 12 && 12.50 == amount",
        "amount in [1, 12.5] && -1 < amount && int(amount) == 12 && string(amount) == '12.50'",
        "doc.status == 'open' && doc.status != 'done' && doc.status in ['open']",
        "doc.n == 3 && doc.n > 2 && doc.n <= 3.0 && doc.rate < amount",
        "has(doc.status) && !has(doc.gone) && doc.gone == null && doc.deep.gone.x == null",
        "doc.deep['a b'] == true && doc['deep']['null'] == null && row.doc.deep != null",
        "'a' in doc.tags && 7 in doc.tags && !('b' in doc.tags) && !('a' in doc.status)",
        "doc.status.startsWith('op') && !doc.n.startsWith('3') && !(doc.status > 3) && !(doc.gone > 3)",
        "data.status == null && data.status != 'open'",
        "members != null && 7 in members && !(8 in members) && id in members && null in members",
        r#"day == timestamp("2026-01-02T00:00:00Z") && day > at"#,
    ];
    for condition in holds {
        assert_eq!(answer(condition), Ok(true), "{condition}");
        let negated = format!("!({condition})");
        assert_eq!(answer(&negated), Ok(false), "{negated}");
    }
}

#[test]
fn runtime_errors_name_the_failed_part() {
    assert_eq!(answer("total / (id - 7) == 1"), Err(EvalErrorKind::DivideByZero));
    assert_eq!(answer("total % (id - 7) == 1"), Err(EvalErrorKind::DivideByZero));
    assert_eq!(answer("total * 9223372036854775807 > 0"), Err(EvalErrorKind::Overflow));
    assert_eq!(answer("int(status) == 1"), Err(EvalErrorKind::Convert));
    assert_eq!(answer("timestamp(status) == at"), Err(EvalErrorKind::Convert));
    assert_eq!(answer("total / (id - 7) == 1 || id == 7"), Ok(true));
    assert_eq!(answer("total / (id - 7) == 1 && id != 7"), Ok(false));
    assert_eq!(
        answer("total / (id - 7) == 1 && id == 7"),
        Err(EvalErrorKind::DivideByZero)
    );
    let program = Program::compile("id > 0 && total / (id - 7) == 1", &orders()).unwrap();
    let error = program.matches(&row()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot evaluate `total / (id - 7)`: division by zero"
    );
}

#[test]
fn program_lists_the_columns_it_reads() {
    let program = Program::compile("note == null || (total > 3 && row.status == 'x')", &orders()).unwrap();
    assert_eq!(program.columns(), [1, 2, 3]);
}

/// Compiles each line of `rejected/<name>.txt` and compares the errors with `rejected/<name>.out`.
fn compare_errors(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/expr/tests/rejected");
    let mut out = String::new();
    for condition in std::fs::read_to_string(folder.join(name).with_extension("txt"))
        .unwrap()
        .lines()
    {
        out.push_str(condition);
        match Program::compile(condition, &orders()) {
            Ok(program) if program.warnings().is_empty() => out.push_str("\n  valid\n"),
            Ok(program) => show(&mut out, condition, "warning: ", program.warnings()),
            Err(errors) => show(&mut out, condition, "", &errors),
        }
    }
    expect_file![folder.join(name).with_extension("out")].assert_eq(&out);
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
fn syntax_errors_have_a_position() {
    compare_errors("syntax");
}

#[test]
fn unknown_names_and_wrong_types_are_rejected() {
    compare_errors("names_and_types");
}

#[test]
fn nullable_columns_need_a_guard() {
    compare_errors("nulls");
}

#[test]
fn deep_and_long_expressions_do_not_crash() {
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
