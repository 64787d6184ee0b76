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

/// The directory of a package of the workspace.
fn package_dir(name: &str) -> PathBuf {
    let manifest = |dir: &Path| -> toml::Table {
        let text = std::fs::read_to_string(dir.join("Cargo.toml")).expect("read a manifest");
        text.parse().expect("a manifest is TOML")
    };
    let workspace = manifest(&root());
    let members = workspace["workspace"]["members"].as_array().expect("members is a list");
    let mut dirs = members.iter().filter_map(|member| Some(root().join(member.as_str()?)));
    dirs.find(|dir| manifest(dir)["package"]["name"].as_str() == Some(name))
        .unwrap_or_else(|| panic!("{name} is no package of the workspace"))
}

/// Whether a Rust file below a directory contains a text.
fn defines(dir: &Path, wanted: &str) -> bool {
    let entries = std::fs::read_dir(dir).expect("list a directory");
    entries
        .map(|entry| entry.expect("list a directory").path())
        .any(|path| {
            if path.is_dir() {
                return defines(&path, wanted);
            }
            let is_rust = path.extension().is_some_and(|extension| extension == "rs");
            is_rust && std::fs::read_to_string(&path).is_ok_and(|text| text.contains(wanted))
        })
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
            let test = text(mutation, "test").rsplit("::").next().unwrap_or_default();
            let package = package_dir(text(mutation, "package"));
            if !defines(&package.join("src"), &format!("fn {test}")) {
                stale.push(format!("{name}: test {test} is not in {}", package.display()));
            }
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
