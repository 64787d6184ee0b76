//! Checks that `tests/mutations.toml` is up to date: each text to be replaced must occur exactly once in its file.
//! `tests/mutations` applies the mutations.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ is below the root").to_path_buf()
}

fn text<'t>(table: &'t toml::Table, field: &str) -> &'t str {
    let found = table.get(field).and_then(toml::Value::as_str);
    found.unwrap_or_else(|| panic!("tests/mutations.toml: `{field}` is missing in {table}"))
}

fn tables<'t>(table: &'t toml::Table, field: &str) -> Vec<&'t toml::Table> {
    let list = table.get(field).and_then(toml::Value::as_array);
    list.into_iter().flatten().filter_map(toml::Value::as_table).collect()
}

#[test]
fn mutations_match_their_files_exactly_once() {
    let list = std::fs::read_to_string(root().join("tests/mutations.toml")).expect("read tests/mutations.toml");
    let list: toml::Table = list.parse().expect("tests/mutations.toml is TOML");
    let (mut stale, mut names) = (Vec::new(), BTreeSet::new());
    for mutation in tables(&list, "mutation") {
        let name = text(mutation, "name");
        if !names.insert(name) {
            stale.push(format!("{name}: duplicate name"));
        }
        assert!(!text(mutation, "clause").is_empty(), "{name}: `clause` is empty");
        assert!(
            matches!(text(mutation, "suite"), "streams" | "views" | "case"),
            "{name}: unknown suite"
        );
        if text(mutation, "suite") == "case" {
            assert!(!text(mutation, "package").is_empty() && !text(mutation, "test").is_empty());
        }
        for edit in tables(mutation, "edit") {
            let file = text(edit, "file");
            let source = std::fs::read_to_string(root().join(file)).unwrap_or_default();
            let found = source.matches(text(edit, "find")).count();
            if found != 1 {
                stale.push(format!(
                    "{name}: its text occurs {found} times in {file}; update tests/mutations.toml"
                ));
            }
        }
    }
    assert!(names.len() >= 40, "only {} mutations were found", names.len());
    assert!(stale.is_empty(), "\n{}", stale.join("\n"));
}
