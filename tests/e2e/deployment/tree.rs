//! The checkout, as far as the deployment files refer to it: files, packages, just recipes, variables, and the help of
//! programs.

use crate::support::binary;
use serde_json::Value;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// Directories with code that reads variables. The directory of this test is omitted, because it contains names of
/// variables that do not exist.
const SOURCES: [&str; 10] = [
    "platform",
    "schemas",
    "topology",
    "views",
    "processors",
    "connectors",
    "edge",
    "cli",
    "docs",
    "tests",
];

/// A checkout in which one file may have another text.
pub struct Tree {
    root: PathBuf,
    changed: Option<(String, String)>,
    packages: OnceCell<BTreeMap<String, Package>>,
    recipes: OnceCell<BTreeMap<String, Recipe>>,
}

/// Declarations of a manifest.
#[derive(Default)]
pub struct Package {
    /// Directory, relative to the root.
    pub dir: String,
    pub features: BTreeSet<String>,
    pub bins: BTreeSet<String>,
    pub tests: BTreeSet<String>,
}

/// A recipe of the justfile.
pub struct Recipe {
    pub parameters: Vec<String>,
    pub dependencies: Vec<String>,
    pub body: Vec<String>,
}

impl Recipe {
    /// Whether the recipe accepts this number of arguments; `*NAME` means any number, `NAME=value` an optional one.
    pub fn accepts(&self, count: usize) -> bool {
        let variadic = self.parameters.iter().any(|p| p.starts_with(['*', '+']));
        let required = self
            .parameters
            .iter()
            .filter(|p| !p.starts_with('*') && !p.contains('='));
        required.count() <= count && (variadic || count <= self.parameters.len())
    }
}

/// Options and subcommands of a program or subcommand, from its help.
#[derive(Clone, Default)]
pub struct Help {
    /// Option → whether it has a value.
    pub options: HashMap<String, bool>,
    pub commands: BTreeSet<String>,
    pub positional: usize,
}

impl Tree {
    pub fn checkout() -> Tree {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = tests.parent().expect("tests/ is below the root").to_path_buf();
        Tree {
            root,
            changed: None,
            packages: OnceCell::new(),
            recipes: OnceCell::new(),
        }
    }

    /// The checkout with a replacement in one file.
    pub fn with(file: &str, find: &str, replace: &str) -> Tree {
        let mut tree = Tree::checkout();
        let text = tree.read(file);
        assert_eq!(text.matches(find).count(), 1, "`{find}` has to occur once in {file}");
        tree.changed = Some((file.to_owned(), text.replace(find, replace)));
        tree
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    pub fn exists(&self, file: &str) -> bool {
        self.path(file).exists()
    }

    pub fn read(&self, file: &str) -> String {
        match &self.changed {
            Some((changed, text)) if changed == file => text.clone(),
            _ => fs::read_to_string(self.path(file)).unwrap_or_else(|e| panic!("read {file}: {e}")),
        }
    }

    pub fn yaml(&self, file: &str) -> Value {
        serde_saphyr::from_str(&self.read(file)).unwrap_or_else(|e| panic!("{file} is not YAML: {e}"))
    }

    pub fn toml(&self, file: &str) -> toml::Table {
        self.read(file)
            .parse()
            .unwrap_or_else(|e| panic!("{file} is not TOML: {e}"))
    }

    /// Files of a directory, relative to the root, sorted.
    pub fn list(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(dir)).unwrap_or_else(|e| panic!("list {dir}: {e}"));
        let entries = entries.map(|entry| entry.expect("a directory entry"));
        let files = entries.filter(|entry| entry.path().is_file());
        let mut files: Vec<_> = files
            .map(|entry| format!("{dir}/{}", entry.file_name().to_string_lossy()))
            .collect();
        files.sort();
        files
    }

    /// The workspace's packages by name.
    pub fn packages(&self) -> &BTreeMap<String, Package> {
        self.packages.get_or_init(|| {
            let root = self.toml("Cargo.toml");
            let members = root["workspace"]["members"].as_array().expect("workspace members");
            let members = members.iter().filter_map(toml::Value::as_str);
            members.map(|dir| self.package(dir)).collect()
        })
    }

    fn package(&self, dir: &str) -> (String, Package) {
        let manifest = self.toml(&format!("{dir}/Cargo.toml"));
        let name = manifest["package"]["name"].as_str().expect("a package name").to_owned();
        let named = |table: &str| -> BTreeSet<String> {
            let list = manifest
                .get(table)
                .and_then(toml::Value::as_array)
                .into_iter()
                .flatten();
            list.filter_map(|target| Some(target.get("name")?.as_str()?.to_owned()))
                .collect()
        };
        let features = manifest.get("features").and_then(toml::Value::as_table);
        let mut package = Package {
            dir: dir.to_owned(),
            features: features.into_iter().flat_map(|f| f.keys().cloned()).collect(),
            bins: named("bin"),
            tests: named("test"),
        };
        if package.bins.is_empty() && self.exists(&format!("{dir}/src/main.rs")) {
            package.bins.insert(name.clone());
        }
        (name, package)
    }

    /// The recipes of the justfile by name.
    pub fn recipes(&self) -> &BTreeMap<String, Recipe> {
        self.recipes.get_or_init(|| self.parse_recipes())
    }

    fn parse_recipes(&self) -> BTreeMap<String, Recipe> {
        let mut recipes = BTreeMap::new();
        let mut current = None;
        for line in self.read("justfile").lines() {
            if let (Some(name), true) = (&current, line.starts_with(' ')) {
                let recipe: &mut Recipe = recipes.get_mut(name).expect("the header was read");
                recipe.body.push(line.trim().trim_start_matches('@').to_owned());
            } else if let Some((name, recipe)) = header(line) {
                recipes.insert(name.clone(), recipe);
                current = Some(name);
            }
        }
        recipes
    }
}

/// `NAME PARAMETER...: DEPENDENCY...`; none for settings, attributes, comments and blank lines.
fn header(line: &str) -> Option<(String, Recipe)> {
    if !line.starts_with(|c: char| c.is_ascii_lowercase()) || line.contains(":=") {
        return None;
    }
    let (left, right) = line.split_once(':')?;
    let mut words = left.split_whitespace().map(str::to_owned);
    let recipe = |parameters| Recipe {
        parameters,
        dependencies: right.split_whitespace().map(str::to_owned).collect(),
        body: Vec::new(),
    };
    Some((words.next()?, recipe(words.collect())))
}

/// Whether a function or module in a directory begins with the last part of a test filter. Needed because cargo reports
/// success if no test matches.
pub fn has_test(dir: &Path, filter: &str) -> bool {
    static KNOWN: Mutex<BTreeMap<(PathBuf, String), bool>> = Mutex::new(BTreeMap::new());
    let key = (dir.to_path_buf(), filter.to_owned());
    if let Some(found) = KNOWN.lock().expect("no panic while locked").get(&key) {
        return *found;
    }
    let last = filter.trim_end_matches("::").rsplit("::").next().unwrap_or_default();
    let names = [format!("fn {last}"), format!("mod {last}")];
    let sources = sources(vec![dir.to_path_buf()]);
    let found = sources.iter().any(|text| names.iter().any(|name| text.contains(name)));
    KNOWN.lock().expect("no panic while locked").insert(key, found);
    found
}

/// Texts of the Rust files below these directories, except those of this test.
fn sources(mut dirs: Vec<PathBuf>) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("the tree is readable").filter_map(Result::ok) {
            let path = entry.path();
            if path.ends_with("target") || path.ends_with("deployment") || path.ends_with("deployment.rs") {
                continue;
            }
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                texts.push(fs::read_to_string(&path).expect("sources are UTF-8"));
            }
        }
    }
    texts
}

/// All names of this project's variables that occur in source files.
pub fn variables() -> &'static BTreeSet<String> {
    static VARIABLES: OnceLock<BTreeSet<String>> = OnceLock::new();
    VARIABLES.get_or_init(|| {
        let root = Tree::checkout().root;
        let texts = sources(SOURCES.iter().map(|dir| root.join(dir)).collect());
        texts.iter().flat_map(|text| mentioned(text)).collect()
    })
}

/// Names of this project's variables in a text.
pub fn mentioned(text: &str) -> impl Iterator<Item = String> + '_ {
    let words = text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    let ours = words.filter(|word| word.starts_with("TRUNKLINE_") && word.len() > "TRUNKLINE_".len());
    ours.map(str::to_owned)
}

/// The help of `trunkline` or `cargo`, or of a subcommand; `None` if the program has no such subcommand.
pub fn help(program: &str, subcommand: &[String]) -> Option<Help> {
    static KNOWN: Mutex<BTreeMap<String, Option<Help>>> = Mutex::new(BTreeMap::new());
    let key = format!("{program} {}", subcommand.join(" "));
    if let Some(help) = KNOWN.lock().expect("no panic while locked").get(&key) {
        return help.clone();
    }
    let (path, flag) = match program {
        "cargo" => (PathBuf::from(env!("CARGO")), "-h"),
        _ => (binary(), "--help"),
    };
    let output = Command::new(path)
        .args(subcommand)
        .arg(flag)
        .env("CARGO_TERM_COLOR", "never")
        .output()
        .unwrap_or_else(|e| panic!("run {key} {flag}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let help = output.status.success().then(|| parse_help(&text));
    KNOWN.lock().expect("no panic while locked").insert(key, help.clone());
    help
}

fn parse_help(text: &str) -> Help {
    let mut help = Help::default();
    let mut section = "";
    for line in text.lines() {
        if !line.starts_with(' ') {
            section = line.trim_end_matches(':');
            continue;
        }
        // The description follows after at least two spaces, or on separate lines.
        let entry = line.trim_start();
        let indent = line.len() - entry.len();
        let left = entry.split("  ").next().unwrap_or_default();
        if left.starts_with('-') && indent <= 6 {
            let names = left.split([',', ' ']).filter(|word| word.starts_with('-'));
            let value = left.contains('<');
            help.options
                .extend(names.map(|name| (name.trim_end_matches("...").to_owned(), value)));
        } else if section == "Commands" && indent == 2 {
            help.commands.extend(left.split_whitespace().next().map(str::to_owned));
        } else if section == "Arguments" && left.starts_with(['<', '[']) && indent == 2 {
            help.positional += 1;
        }
    }
    help
}
