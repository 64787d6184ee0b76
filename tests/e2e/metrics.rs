//! The page of metrics, held to the code: the same names on both sides, and no cell that must be filled left empty.
//!
//! Guarantees: a number that is added, renamed or dropped without the page fails here. Never: a running process.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What the names of the product's numbers begin with.
const PREFIXES: [&str; 7] = [
    "trunkline_runtime_",
    "trunkline_processor_",
    "trunkline_connector_",
    "trunkline_edge_",
    "trunkline_component_",
    "process_resident_",
    "process_cpu_",
];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("tests/ is below the root").to_path_buf()
}

/// Names of numbers among the string literals of the product's source files.
fn in_code() -> BTreeSet<String> {
    let tops = [
        "platform",
        "processors",
        "connectors",
        "edge",
        "views",
        "topology",
        "schemas",
        "cli",
    ];
    let mut dirs: Vec<PathBuf> = tops.iter().map(|top| root().join(top)).collect();
    let mut found = BTreeSet::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("the tree can be read").filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is UTF-8");
                let names = text.split('"').filter(|literal| is_name(literal));
                found.extend(names.map(str::to_owned));
            }
        }
    }
    found
}

fn is_name(text: &str) -> bool {
    PREFIXES
        .iter()
        .any(|prefix| text.starts_with(prefix) && text.len() > prefix.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The rows of the page's tables: name and the other cells.
fn on_page() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(root().join("docs/reference/metrics.md")).expect("there is a page of metrics");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        // The bar at either end of a row is no cell's.
        let row = row.strip_prefix('|').unwrap_or(row);
        let row = row.strip_suffix('|').unwrap_or(row);
        let mut cells = row.split('|').map(|cell| cell.trim().to_owned());
        let name = cells.next().unwrap_or_default().replace('`', "");
        (name, cells.collect())
    })
    .collect()
}

#[test]
fn metrics_page_and_code_list_the_same_metrics() {
    let page = on_page();
    let names: BTreeSet<String> = page.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names.len(), page.len(), "a number stands on the page once");
    let code = in_code();
    assert!(code.len() > 30, "the code's names are not found any more: {code:?}");
    let only_there = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
    assert_eq!(
        only_there(&code, &names),
        [""; 0],
        "in the code and not in docs/reference/metrics.md"
    );
    assert_eq!(
        only_there(&names, &code),
        [""; 0],
        "in docs/reference/metrics.md and not in the code"
    );
}

#[test]
fn metrics_page_rows_are_complete_and_consistent() {
    for (name, cells) in on_page() {
        let [kind, _labels, unit, meaning, _alarm] = cells.as_slice() else {
            panic!("{name}: six cells, not {}", cells.len() + 1)
        };
        assert!(!unit.is_empty() && !meaning.is_empty(), "{name}");
        match kind.as_str() {
            "counter" => assert!(name.ends_with("_total"), "{name}"),
            "histogram" => {
                let bounded = ["_seconds", "_records", "_bytes"]
                    .iter()
                    .any(|unit| name.ends_with(unit));
                assert!(
                    bounded,
                    "{name}: a histogram's bounds are chosen by the end of its name"
                );
            }
            "gauge" => {}
            other => panic!("{name}: {other} is no type"),
        }
    }
}
