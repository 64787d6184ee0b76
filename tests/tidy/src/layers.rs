//! Which package may depend on which, and which package owns a heavy dependency (ARCHITECTURE.md, "Layers").

use crate::tree::{files, read, relative, root};
use std::collections::BTreeSet;

/// A package: its directory, the name under which others import it, and the workspace packages that it may import.
pub struct Package {
    /// Directory, relative to the root.
    pub dir: &'static str,
    /// Key in `[workspace.dependencies]`.
    pub name: &'static str,
    /// Workspace packages that it may import; `None` for all.
    pub may_import: Option<&'static [&'static str]>,
}

const fn package(dir: &'static str, name: &'static str, may_import: &'static [&'static str]) -> Package {
    let may_import = Some(may_import);
    Package { dir, name, may_import }
}

const L0: &[&str] = &[];
/// Packages of the lowest layer whose code contains failpoints.
const L0_TESTED: &[&str] = &["failpoint"];

/// The layers, lowest first.
pub const PACKAGES: &[Package] = &[
    package("schemas", "schemas", L0),
    package("platform/failpoint", "failpoint", L0),
    package("platform/event-log", "event-log", L0_TESTED),
    package("platform/state-store", "state-store", L0_TESTED),
    package("platform/service", "service", L0_TESTED),
    package(
        "schemas/registry",
        "registry",
        &["failpoint", "schemas", "event-log", "service"],
    ),
    package("topology", "topology", &["schemas"]),
    package(
        "views",
        "views",
        &[
            "failpoint",
            "schemas",
            "event-log",
            "state-store",
            "service",
            "topology",
        ],
    ),
    package(
        "processors/streams",
        "streams",
        &["failpoint", "schemas", "event-log", "state-store", "service"],
    ),
    // Only a dev-dependency of the packages above it.
    package(
        "processors/streams-test",
        "streams-test",
        &["failpoint", "event-log", "state-store", "service", "streams"],
    ),
    package(
        "processors",
        "processors",
        &[
            "failpoint",
            "schemas",
            "event-log",
            "service",
            "registry",
            "topology",
            "views",
            "streams",
        ],
    ),
    package(
        "connectors",
        "connectors",
        &["failpoint", "schemas", "event-log", "service", "registry", "topology"],
    ),
    package(
        "edge",
        "edge",
        &[
            "failpoint",
            "schemas",
            "event-log",
            "state-store",
            "service",
            "registry",
            "topology",
            "views",
        ],
    ),
    package(
        "topology/operations",
        "operations",
        &[
            "failpoint",
            "schemas",
            "event-log",
            "service",
            "registry",
            "topology",
            "views",
        ],
    ),
    package(
        "cli",
        "trunkline",
        &[
            "failpoint",
            "schemas",
            "event-log",
            "state-store",
            "service",
            "registry",
            "topology",
            "views",
            "streams",
            "processors",
            "connectors",
            "edge",
            "operations",
        ],
    ),
    package("docs/examples", "examples", &["event-log", "service", "streams"]),
    Package {
        dir: "tests",
        name: "tests",
        may_import: None,
    },
    package("tests/tidy", "tidy", L0),
];

/// Heavy dependencies and the only packages that may name them.
pub const OWNERS: &[(&str, &[&str])] = &[
    ("rdkafka", &["platform/event-log"]),
    ("fjall", &["platform/state-store", "platform/event-log"]),
    ("sled", &["platform/state-store"]),
    ("apache-avro", &["schemas", "schemas/registry", "tests"]),
    ("schema_registry_converter", &["schemas/registry"]),
    ("cel", &["topology"]),
    ("clap", &["cli"]),
    ("anyhow", &["cli", "tests"]),
    ("postgres-protocol", &["connectors"]),
    ("syn", &["tests/tidy"]),
];

/// Names of Trunkline's topics, which the platform crates must not contain.
const TOPIC_NAMES: [&str; 6] = [
    "view.log",
    "_trunkline",
    "device.write",
    "change.",
    "push.intent",
    "event.",
];

struct Dependencies {
    normal: BTreeSet<String>,
    all: BTreeSet<String>,
}

fn dependencies(dir: &str) -> Dependencies {
    let manifest: toml::Table = read(&root().join(dir).join("Cargo.toml"))
        .parse()
        .expect("a manifest is TOML");
    let names = |tables: &[&str]| {
        let tables = tables.iter().filter_map(|table| manifest.get(*table)?.as_table());
        tables.flat_map(|table| table.keys().cloned()).collect()
    };
    Dependencies {
        normal: names(&["dependencies", "build-dependencies"]),
        all: names(&["dependencies", "build-dependencies", "dev-dependencies"]),
    }
}

/// Packages that import a package that they may not import.
pub fn upward_imports() -> Vec<String> {
    let mut found = Vec::new();
    for package in PACKAGES {
        let Some(may_import) = package.may_import else { continue };
        let dependencies = dependencies(package.dir);
        for other in PACKAGES.iter().filter(|other| dependencies.all.contains(other.name)) {
            let test_kit = other.name == "streams-test" && !dependencies.normal.contains(other.name);
            if !may_import.contains(&other.name) && !test_kit {
                found.push(format!(
                    "{}/Cargo.toml: `{}` may not import `{}`; move the shared code to a lower layer",
                    package.dir, package.name, other.name
                ));
            }
        }
    }
    found
}

/// Packages that name a heavy dependency that another package owns.
pub fn foreign_dependencies() -> Vec<String> {
    let mut found = Vec::new();
    for package in PACKAGES {
        let dependencies = dependencies(package.dir);
        for (dependency, owners) in OWNERS {
            if dependencies.all.contains(*dependency) && !owners.contains(&package.dir) {
                found.push(format!(
                    "{}/Cargo.toml: `{dependency}` belongs to {}; call that crate instead",
                    package.dir,
                    owners.join(", ")
                ));
            }
        }
    }
    found
}

/// Members of the workspace that are missing in the table above.
pub fn unlisted_packages() -> Vec<String> {
    let manifest: toml::Table = read(&root().join("Cargo.toml")).parse().expect("the manifest is TOML");
    let members = manifest["workspace"]["members"].as_array().expect("members is a list");
    let unlisted = members
        .iter()
        .filter_map(|member| member.as_str())
        .filter(|member| !PACKAGES.iter().any(|package| package.dir == *member));
    unlisted
        .map(|member| format!("{member}: not in the table of tests/tidy/src/layers.rs; add it there"))
        .collect()
}

/// Lines in the platform crates that contain the name of a topic of Trunkline.
pub fn topics_in_platform() -> Vec<String> {
    let mut found = Vec::new();
    for path in files("platform", &["rs"]) {
        for (index, line) in read(&path).lines().enumerate() {
            if TOPIC_NAMES.iter().any(|name| line.contains(&format!("\"{name}"))) {
                found.push(format!(
                    "{}:{}: names a topic of Trunkline; the platform crates know none",
                    relative(&path),
                    index + 1
                ));
            }
        }
    }
    found
}
