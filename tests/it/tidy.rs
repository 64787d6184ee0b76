//! The house rules that a machine can hold: who may import whom, who owns which dependency, what a file must have.
//!
//! Guarantees: a manifest or an import that breaks the table of ARCHITECTURE.md fails here, with the line to mend.
//! Never: a look at anything but the checkout's own files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Packages by directory, with the packages of the house that each may import. Lower floors come first.
const HOUSE: [(&str, &str, &[&str]); 15] = [
    ("schemas", "schemas", &[]),
    ("platform/log", "log", &[]),
    ("platform/store", "store", &[]),
    ("platform/process", "process", &[]),
    ("schemas/registry", "registry", &["schemas", "log"]),
    ("topology", "topology", &["schemas"]),
    ("views", "views", &["schemas", "log", "store", "process", "topology"]),
    ("processors/runtime", "runtime", &["schemas", "log", "store", "process"]),
    (
        "processors",
        "processors",
        &["schemas", "log", "process", "registry", "topology", "views", "runtime"],
    ),
    (
        "connectors",
        "connectors",
        &["schemas", "log", "process", "registry", "topology"],
    ),
    (
        "edge",
        "edge",
        &["schemas", "log", "store", "process", "registry", "topology", "views"],
    ),
    (
        "topology/operations",
        "operations",
        &["schemas", "log", "process", "registry", "topology", "views"],
    ),
    (
        "cli",
        "trunkline",
        &[
            "schemas",
            "log",
            "store",
            "process",
            "registry",
            "topology",
            "views",
            "runtime",
            "processors",
            "connectors",
            "edge",
            "operations",
        ],
    ),
    ("docs/examples", "examples", &["log", "process", "runtime"]),
    ("tests", "tests", &ALL),
];

const ALL: [&str; 12] = [
    "schemas",
    "log",
    "store",
    "process",
    "registry",
    "topology",
    "views",
    "runtime",
    "processors",
    "connectors",
    "edge",
    "operations",
];

/// Heavy dependencies and the only packages that may name them.
const FENCES: [(&str, &[&str]); 9] = [
    ("rdkafka", &["platform/log"]),
    ("fjall", &["platform/store", "platform/log"]),
    ("sled", &["platform/store"]),
    ("apache-avro", &["schemas", "schemas/registry", "tests"]),
    ("schema_registry_converter", &["schemas/registry"]),
    ("cel", &["topology"]),
    ("clap", &["cli"]),
    ("anyhow", &["cli", "tests"]),
    ("pgwire-replication", &["connectors"]),
];

/// Lines of a file after which it is two rooms.
const LINES_MAX: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is below the root")
        .to_path_buf()
}

/// Dependencies that a manifest names, development ones included.
fn dependencies(dir: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(dir).join("Cargo.toml")).expect("every package has a manifest");
    let manifest: toml::Table = text.parse().expect("a manifest is TOML");
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
    let named = tables.iter().filter_map(|t| manifest.get(*t)?.as_table());
    named.flat_map(|t| t.keys().cloned()).collect()
}

fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs: Vec<PathBuf> = HOUSE.iter().map(|(dir, ..)| root().join(dir)).collect();
    let mut seen = BTreeSet::new();
    while let Some(dir) = dirs.pop() {
        if !seen.insert(dir.clone()) {
            continue;
        }
        for entry in fs::read_dir(&dir).expect("the tree can be read").filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() && path.file_name().is_some_and(|n| n != "target") {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files.dedup();
    files
}

fn assert_none(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn imports_go_downwards_only() {
    let names: BTreeSet<&str> = HOUSE.iter().map(|(_, name, _)| *name).collect();
    let mut broken = Vec::new();
    for (dir, name, may) in HOUSE {
        for dependency in dependencies(dir).iter().filter(|d| names.contains(d.as_str())) {
            let allowed = may.contains(&dependency.as_str()) || (name == "tests" && dependency == "trunkline");
            if !allowed {
                broken.push(format!("{dir}/Cargo.toml: `{name}` may not import `{dependency}`"));
            }
        }
    }
    assert_none(&broken);
}

#[test]
fn a_heavy_dependency_has_one_owner() {
    let mut broken = Vec::new();
    for (dir, ..) in HOUSE {
        let named = dependencies(dir);
        for (dependency, owners) in FENCES {
            if named.contains(dependency) && !owners.contains(&dir) {
                broken.push(format!(
                    "{dir}/Cargo.toml: `{dependency}` belongs to {}",
                    owners.join(", ")
                ));
            }
        }
    }
    assert_none(&broken);
}

#[test]
fn every_file_says_what_it_is_and_is_one_room() {
    let mut broken = Vec::new();
    for path in rust_files() {
        let text = fs::read_to_string(&path).expect("a source file is UTF-8");
        let shown = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        if !text.starts_with("//!") && !text.starts_with("#!") {
            broken.push(format!(
                "{shown}: does not begin with `//!`: what it is, what it guarantees, what it never does"
            ));
        }
        if text.lines().count() > LINES_MAX {
            broken.push(format!("{shown}: {} lines; make two rooms of it", text.lines().count()));
        }
        if path.file_name().is_some_and(|n| n == "mod.rs") {
            broken.push(format!("{shown}: `name.rs` beside `name/`, no mod.rs"));
        }
        // Written in two halves, so that this file does not find itself.
        for word in [
            concat!("todo", "!("),
            concat!("unimplemented", "!("),
            concat!("dbg", "!("),
            concat!("#[", "ignore"),
        ] {
            if text.contains(word) {
                broken.push(format!("{shown}: holds `{word}`"));
            }
        }
        let raw = shown.contains("platform/log/src/kafka/raw");
        let unsafe_code = text.lines().any(|l| {
            let code = l.split("//").next().unwrap_or_default();
            code.contains(concat!("unsafe", " {"))
                || code.contains(concat!("unsafe", " fn"))
                || code.contains(concat!("unsafe", " impl"))
        });
        if unsafe_code && !raw {
            broken.push(format!("{shown}: unsafe code belongs in platform/log/src/kafka/raw.rs"));
        }
    }
    assert_none(&broken);
}

#[test]
fn the_lowest_floor_knows_no_topic_and_no_event() {
    let words = [
        "view.log",
        "connect.positions",
        "device.write",
        "change.",
        "push.intent",
    ];
    let mut broken = Vec::new();
    for path in rust_files() {
        let shown = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        if !shown.starts_with("platform/") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file is UTF-8");
        for (number, line) in text.lines().enumerate() {
            if words.iter().any(|w| line.contains(&format!("\"{w}"))) {
                broken.push(format!("{shown}:{}: names a topic of Trunkline", number + 1));
            }
        }
    }
    assert_none(&broken);
}
