//! Compares `docs/reference/metrics.md` with the text of the code: both must contain the same metrics, and every row
//! must be complete.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Prefixes of metric names.
const PREFIXES: [&str; 9] = [
    "trunkline_streams_",
    "trunkline_processor_",
    "trunkline_connector_",
    "trunkline_edge_",
    "trunkline_listener_",
    "trunkline_ingest_",
    "trunkline_component_",
    "process_resident_",
    "process_cpu_",
];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("tests/ is below the root").to_path_buf()
}

/// Metric names among the string literals of the source files.
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

/// Rows of the page's tables: name and other cells.
fn on_page() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(root().join("docs/reference/metrics.md")).expect("there is a page of metrics");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        // The `|` at both ends of a row does not separate cells.
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
    assert_eq!(names.len(), page.len(), "a metric is listed twice");
    let code = in_code();
    assert!(code.len() > 30, "found too few metrics in the code: {code:?}");
    let only_in_first = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
    assert_eq!(
        only_in_first(&code, &names),
        [""; 0],
        "in the code but not in docs/reference/metrics.md"
    );
    assert_eq!(
        only_in_first(&names, &code),
        [""; 0],
        "in docs/reference/metrics.md but not in the code"
    );
}

#[test]
fn metrics_page_rows_are_complete_and_consistent() {
    for (name, cells) in on_page() {
        let [kind, _labels, unit, meaning, _alarm] = cells.as_slice() else {
            panic!("{name}: expected 6 cells, found {}", cells.len() + 1)
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
                    "{name}: a histogram needs a unit suffix, which selects its bounds"
                );
            }
            "gauge" => {}
            other => panic!("{name}: unknown type {other}"),
        }
    }
}
