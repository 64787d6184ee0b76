//! Random conditions with random rows: the compiled program and the `cel` crate's interpreter must agree.

use super::*;
use cel::{Context, Value as Cel};
use proptest::prelude::*;

/// Columns of random conditions: name and index.
const COLUMNS: [(&str, usize); 6] = [
    ("id", 0),
    ("status", 1),
    ("note", 2),
    ("total", 3),
    ("rate", 4),
    ("paid", 5),
];

fn int_expr() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("id".to_string()),
        Just("total".to_string()),
        (-5i64..5).prop_map(|i| format!("({i})")),
        Just("size(status)".to_string()),
        Just("9223372036854775807".to_string()),
        Just("int(status)".to_string()),
    ];
    leaf.prop_recursive(3, 12, 2, |inner| {
        (
            inner.clone(),
            prop_oneof![Just("+"), Just("-"), Just("*"), Just("/"), Just("%")],
            inner,
        )
            .prop_map(|(a, op, b)| format!("({a} {op} {b})"))
    })
}

fn text_expr() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("status".to_string()),
        Just("'draft'".to_string()),
        Just("'é\"'".to_string()),
        Just("(status + 'x')".to_string()),
        Just("string(id)".to_string()),
        Just("(note == null ? 'none' : note)".to_string()),
    ]
}

fn compare() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("=="), Just("!="), Just("<"), Just("<="), Just(">"), Just(">=")]
}

fn condition() -> impl Strategy<Value = String> {
    let double = prop_oneof![
        Just("0.5"),
        Just("2.0"),
        Just("-1.5"),
        Just("double(size(status))"),
        Just("1e300")
    ];
    let leaf = prop_oneof![
        (int_expr(), compare(), int_expr()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        (text_expr(), compare(), text_expr()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        (compare(), double.clone()).prop_map(|(op, d)| format!("(rate != null && rate {op} {d})")),
        (int_expr(), compare(), double).prop_map(|(a, op, d)| format!("{a} {op} {d}")),
        (text_expr(), text_expr()).prop_map(|(a, b)| format!("{a}.startsWith({b})")),
        (text_expr(), text_expr()).prop_map(|(a, b)| format!("{a}.contains({b})")),
        text_expr().prop_map(|a| format!("{a}.matches('^[a-d]+.?$')")),
        (int_expr(), int_expr()).prop_map(|(a, b)| format!("{a} in [{b}, 3, id]")),
        Just("note == null".to_string()),
        Just("note in ['a', null]".to_string()),
        Just("paid == true".to_string()),
        Just("(paid != null && paid)".to_string()),
    ];
    leaf.prop_recursive(4, 32, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
        ]
    })
}

fn random_row() -> impl Strategy<Value = Vec<Datum<'static>>> {
    let words = || prop_oneof![Just("draft"), Just("a"), Just("7"), Just(""), Just("é\"x")].prop_map(Datum::Str);
    let maybe = |some: BoxedStrategy<Datum<'static>>| prop_oneof![Just(Datum::Null), some];
    (
        prop_oneof![-4i64..9, any::<i64>()].prop_map(Datum::Long),
        words(),
        maybe(words().boxed()),
        prop_oneof![-3i32..3, any::<i32>()].prop_map(Datum::Int),
        maybe(prop_oneof![-2.0..2.0, any::<f64>()].prop_map(Datum::Double).boxed()),
        maybe(any::<bool>().prop_map(Datum::Bool).boxed()),
    )
        .prop_map(|(id, status, note, total, rate, paid)| vec![id, status, note, total, rate, paid])
}

fn cel_value(value: &Datum<'_>) -> Cel {
    match value {
        Datum::Bool(b) => Cel::Bool(*b),
        Datum::Long(i) => Cel::Int(*i),
        Datum::Int(i) => Cel::Int(i64::from(*i)),
        Datum::Double(d) => Cel::Float(*d),
        Datum::Str(text) => Cel::String(Arc::new(text.to_string())),
        _ => Cel::Null,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn program_and_cel_interpreter_agree(condition in condition(), row in random_row()) {
        // Constant expressions that overflow are already rejected by `compile`.
        let Ok(ours) = Program::compile(&condition, &orders()) else { return Ok(()) };
        let mut context = Context::default();
        for (name, at) in COLUMNS {
            context.add_variable_from_value(name, cel_value(&row[at]));
        }
        let theirs = cel::Program::compile(&condition).unwrap().execute(&context);
        match (ours.matches(&row), theirs) {
            (Ok(ours), Ok(Cel::Bool(theirs))) => prop_assert_eq!(ours, theirs, "{}", condition),
            (Err(_), Err(_)) => {}
            (ours, theirs) => prop_assert!(false, "{}: ours {:?}, theirs {:?}", condition, ours, theirs),
        }
    }

    #[test]
    fn compiler_does_not_panic_on_symbols(text in "[a-z0-9 ()\\[\\].!=<>&|?:+*/%'\"\\\\,{}-]{0,60}") {
        let _ = Program::compile(&text, &orders());
    }

    #[test]
    fn compiler_does_not_panic_on_any_text(text in ".{0,40}") {
        if let Err(errors) = Program::compile(&text, &orders()) {
            prop_assert!(errors.iter().all(|error| text.get(error.span.clone()).is_some()));
        }
    }
}
