//! Compares the reference pages with the code: keys of `topology.toml` and of the process configuration, commands and
//! options of the command line. The test fails if a key is added, renamed or removed only in the page or only in the
//! code.
//!
//! The pages follow a convention: below a heading, tables whose first column is called `Key` or `Option` contain the
//! name in backticks in that column. The code is read as text, so that no binary is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Names by section, which is a TOML table of the file, or a command.
type Names = BTreeMap<String, BTreeSet<String>>;

const ARGS: &str = "cli/src/args.rs";
/// Options that several commands share; the page lists them once, in this section.
const SHARED: (&str, &str) = ("Target", "Options to choose a log");

/// Section of the configuration page, file and struct that is read from it.
const CONFIGURATION: [(&str, &str, &str); 17] = [
    ("Top level", "cli/src/config.rs", "NodeConfig"),
    ("[kafka]", "cli/src/config.rs", "Kafka"),
    ("[registry]", "cli/src/config.rs", "Registry"),
    ("[[registry.users]]", "cli/src/config.rs", "RegistryUser"),
    ("[processors]", "cli/src/config.rs", "Processors"),
    ("[admin]", "platform/service/src/admin.rs", "Config"),
    ("[[admin.tokens]]", "platform/service/src/access.rs", "TokenConfig"),
    ("[LISTENER.tls]", "platform/service/src/listener/tls.rs", "TlsConfig"),
    (
        "[connectors.NAME]",
        "connectors/src/sources/postgres/config.rs",
        "Config",
    ),
    ("[ingest]", "connectors/src/ingest/config.rs", "Config"),
    (
        "[[ingest.credentials]]",
        "connectors/src/ingest/access.rs",
        "Credential",
    ),
    (
        "[ingest.credentials.rate]",
        "connectors/src/ingest/rate_limit.rs",
        "Rate",
    ),
    ("[edge]", "edge/src/config.rs", "Config"),
    ("[[edge.cursor_keys]]", "edge/src/config.rs", "CursorKeyConfig"),
    ("[edge.store]", "edge/src/config.rs", "StoreConfig"),
    ("[edge.limits]", "edge/src/config.rs", "Limits"),
    ("[[edge.issuers]]", "edge/src/config.rs", "IssuerConfig"),
];

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ is below the root").to_path_buf()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A source file without its unit tests.
fn source(path: &str) -> String {
    let text = read(path);
    let end = text.find("#[cfg(test)]").unwrap_or(text.len());
    text[..end].to_owned()
}

/// Names in the first column of the page's tables whose header starts with `column`, by heading.
fn documented(path: &str, column: &str) -> Names {
    let text = read(path);
    let header = format!("| {column} |");
    let (mut names, mut heading, mut is_fenced, mut is_listed) = (Names::new(), String::new(), false, false);
    for line in text.lines() {
        if line.starts_with("```") {
            is_fenced = !is_fenced;
        }
        if is_fenced {
            continue;
        }
        if let Some((_, title)) = line
            .split_once("# ")
            .filter(|(marks, _)| marks.chars().all(|c| c == '#'))
        {
            heading = title.replace('`', "");
            names.entry(heading.clone()).or_default();
        }
        if !line.starts_with('|') {
            is_listed = false;
        } else if line.starts_with(&header) {
            is_listed = true;
        } else if is_listed {
            let cell = line.split('|').nth(1).unwrap_or_default();
            // Every second part is between backticks; a value may follow the name.
            let found = cell
                .split('`')
                .skip(1)
                .step_by(2)
                .filter_map(|code| code.split(' ').next());
            names
                .entry(heading.clone())
                .or_default()
                .extend(found.map(str::to_owned));
        }
    }
    names
}

/// Panics with all names that exist only in the page or only in the code.
fn assert_same(page: &str, code: &Names, documented: &Names) {
    assert!(!code.is_empty(), "{page}: no names were found in the code");
    let mut wrong = Vec::new();
    for (section, names) in code {
        let Some(described) = documented.get(section) else {
            wrong.push(format!("`{section}` is in the code and has no section"));
            continue;
        };
        let missing = names
            .difference(described)
            .map(|name| (name, "in the code, not in the page"));
        let stale = described
            .difference(names)
            .map(|name| (name, "in the page, not in the code"));
        wrong.extend(
            missing
                .chain(stale)
                .map(|(name, place)| format!("{section}: `{name}` is {place}")),
        );
    }
    let unknown = documented.iter().filter(|(section, _)| !code.contains_key(*section));
    let unknown = unknown.filter(|(section, names)| !names.is_empty() || section.starts_with("trunkline "));
    wrong.extend(unknown.map(|(section, _)| format!("`{section}` is a section and not in the code")));
    assert!(wrong.is_empty(), "{page} and the code differ:\n{}", wrong.join("\n"));
}

/// The identifier at the start of a text.
fn identifier(text: &str) -> &str {
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    &text[..end]
}

/// Keys that the functions of the topology's model read. Each function has the name of its TOML table.
fn topology_keys() -> Names {
    const READS: [&str; 8] = [
        "required", "expect", "text", "texts", "map", "integer", "table", "tables",
    ];
    let mut files = vec!["topology/src/model.rs".to_owned()];
    let more = fs::read_dir(root().join("topology/src/model")).expect("the model has parts");
    files.extend(more.map(|entry| format!("topology/src/model/{}", entry.expect("readable").file_name().display())));
    let mut names = Names::new();
    for file in files {
        for function in source(&file).split("fn ").skip(1) {
            let reads = |call: &&str| READS.contains(&identifier(call)) && call.contains("(\"");
            let calls = function.split('.').filter(reads);
            let keys = calls.filter_map(|call| {
                call.strip_prefix(identifier(call))?
                    .strip_prefix("(\"")?
                    .split('"')
                    .next()
            });
            let keys: BTreeSet<String> = keys.map(str::to_owned).collect();
            if !keys.is_empty() {
                names.insert(identifier(function).to_owned(), keys);
            }
        }
    }
    names
}

#[test]
fn topology_page_has_every_key() {
    let page = "docs/reference/topology.md";
    // `parse` reads the root; the function `node` reads a table `[[node]]` or `[node]`.
    let function = |heading: String| match heading.as_str() {
        "Top level" => "parse".to_owned(),
        _ => heading.replace(['[', ']'], ""),
    };
    let documented = documented(page, "Key").into_iter();
    let documented = documented.map(|(heading, names)| (function(heading), names)).collect();
    assert_same(page, &topology_keys(), &documented);
}

/// The lines between `head` and the closing brace in the first column.
fn body<'t>(text: &'t str, head: &str) -> impl Iterator<Item = &'t str> + use<'t> {
    let start = text
        .find(head)
        .unwrap_or_else(|| panic!("`{head}` is no longer in the code"));
    text[start..].lines().skip(1).take_while(|line| *line != "}")
}

/// Fields of a struct.
fn fields(text: &str, name: &str) -> BTreeSet<String> {
    let lines = body(text, &format!("pub struct {name} {{"));
    let mut is_skipped = false;
    let fields = lines.filter_map(|line| {
        let is_skipped = std::mem::replace(&mut is_skipped, line.trim() == "#[serde(skip)]");
        line.strip_prefix("    pub ").filter(|_| !is_skipped)?.split_once(':')
    });
    fields.map(|(field, _)| field.to_owned()).collect()
}

/// Structs of a file that are read from a configuration.
fn deserialized(file: &str) -> BTreeSet<String> {
    let text = source(file);
    let items = text.split("#[derive(").skip(1).filter(|item| {
        let derives = item.split(')').next().unwrap_or_default();
        derives.contains("Deserialize")
    });
    let named = items.filter_map(|item| {
        let head = item.lines().find(|line| line.starts_with("pub "))?;
        // A tuple struct is the type of a value, not a section.
        let head = head.strip_prefix("pub struct ").filter(|head| head.ends_with('{'));
        head.map(|name| identifier(name).to_owned())
    });
    named.collect()
}

#[test]
fn configuration_page_has_every_key() {
    let page = "docs/reference/configuration.md";
    let keys = CONFIGURATION.map(|(section, file, name)| (section.to_owned(), fields(&source(file), name)));
    assert_same(page, &Names::from(keys), &documented(page, "Key"));
    for (_, file, _) in CONFIGURATION {
        let of_file = CONFIGURATION.iter().filter(|(_, other, _)| *other == file);
        let known: BTreeSet<String> = of_file.map(|(_, _, name)| (*name).to_owned()).collect();
        assert_eq!(
            deserialized(file),
            known,
            "{file}: structs of the configuration; add new ones to this test and the page"
        );
    }
}

/// A field or variant of the command line's definition.
struct Item<'t> {
    attributes: String,
    name: &'t str,
    /// The type of a field, or the content of a variant.
    content: &'t str,
}

/// Items of a struct, enum or struct variant; each is indented by `indent` spaces.
fn items<'t>(lines: impl Iterator<Item = &'t str>, indent: usize) -> Vec<Item<'t>> {
    let (mut items, mut attributes, mut is_open) = (Vec::new(), String::new(), false);
    for line in lines {
        let text = line.trim_start();
        // The rest of an attribute of several lines.
        if is_open {
            attributes.push_str(text);
            is_open = !text.ends_with(")]");
            continue;
        }
        if line.len() - text.len() != indent || text.starts_with("//") || text.starts_with('}') {
            continue;
        }
        if text.starts_with("#[") {
            attributes.push_str(text);
            is_open = !text.ends_with(']');
            continue;
        }
        let text = text.strip_prefix("pub ").unwrap_or(text);
        let (name, content) = text.split_at(identifier(text).len());
        let content = content.trim_start_matches([':', ' ', '(']).trim_end_matches([',', ')']);
        items.push(Item {
            attributes: std::mem::take(&mut attributes),
            name,
            content,
        });
    }
    items
}

/// The value of `key = "value"` or `key = 'v'` in an attribute; for `key` alone, the result of `default`.
fn argument(attributes: &str, key: &str, default: impl FnOnce() -> String) -> Option<String> {
    let given = attributes.split(['(', ',', ')']).map(str::trim);
    let (_, value) = given
        .map(|part| part.split_once(" = ").unwrap_or((part, "")))
        .find(|(name, _)| *name == key)?;
    Some(if value.is_empty() {
        default()
    } else {
        value.trim_matches(['"', '\'']).to_owned()
    })
}

/// Adds a command's options and those of its subcommands.
fn command(text: &str, path: &str, parts: &[Item<'_>], names: &mut Names) {
    let mut own = BTreeSet::new();
    for item in parts {
        if item.attributes.contains("command(flatten)") {
            let inner = items(body(text, &format!("pub struct {} {{", item.content)), 4);
            if item.content == SHARED.0 {
                command(text, SHARED.1, &inner, names);
            } else {
                let mut inner_names = Names::new();
                command(text, path, &inner, &mut inner_names);
                own.extend(inner_names.into_values().flatten());
            }
        } else if item.attributes.contains("command(subcommand)") {
            subcommands(text, path, item.content, names);
        } else {
            let dashed = || item.name.replace('_', "-");
            let long = argument(&item.attributes, "long", dashed).map(|name| format!("--{name}"));
            let short =
                argument(&item.attributes, "short", || item.name[..1].to_owned()).map(|name| format!("-{name}"));
            let is_positional = long.is_none() && short.is_none();
            own.extend(long.into_iter().chain(short));
            own.extend(is_positional.then(|| item.name.to_uppercase()));
        }
    }
    names.insert(path.to_owned(), own);
}

fn subcommands(text: &str, path: &str, kind: &str, names: &mut Names) {
    let path = if path == "Global options" { "trunkline" } else { path };
    let head = format!("pub enum {kind} {{");
    for variant in items(body(text, &head), 4) {
        let path = format!("{path} {}", variant.name.to_lowercase());
        let parts = match variant.content {
            "" => Vec::new(),
            "{" => {
                let after = body(text, &head).skip_while(|line| *line != format!("    {} {{", variant.name));
                items(after.skip(1).take_while(|line| *line != "    },"), 8)
            }
            name => items(body(text, &format!("pub struct {name} {{")), 4),
        };
        command(text, &path, &parts, names);
    }
}

#[test]
fn cli_page_has_every_command_and_option() {
    let (page, mut text) = ("docs/reference/cli.md", source(ARGS));
    let parts = fs::read_dir(root().join("cli/src/args")).expect("the definition has parts");
    for part in parts {
        text += &source(&format!(
            "cli/src/args/{}",
            part.expect("readable").file_name().display()
        ));
    }
    let mut names = Names::new();
    command(
        &text,
        "Global options",
        &items(body(&text, "pub struct Cli {"), 4),
        &mut names,
    );
    assert!(
        names.len() > 20,
        "{ARGS}: only these commands were found: {:?}",
        names.keys()
    );
    assert_same(page, &names, &documented(page, "Option"));
}

/// Codes of the problem types that are declared below a directory.
fn problem_codes(dir: &Path, codes: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).expect("the tree can be read").filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            problem_codes(&path, codes);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file is UTF-8");
            let declared = text.split("Kind::new(").skip(1);
            codes.extend(declared.filter_map(|rest| {
                rest.trim_start()
                    .strip_prefix('"')?
                    .split('"')
                    .next()
                    .map(str::to_owned)
            }));
        }
    }
}

#[test]
fn problems_page_has_every_code() {
    let mut codes = BTreeSet::new();
    for top in ["platform/service/src", "connectors/src", "edge/src", "cli/src"] {
        problem_codes(&root().join(top), &mut codes);
    }
    assert!(codes.len() > 15, "only these codes were found: {codes:?}");
    let page = read("docs/reference/problems.md");
    let missing: Vec<&String> = codes
        .iter()
        .filter(|code| !page.contains(&format!("| `{code}` |")))
        .collect();
    assert!(missing.is_empty(), "docs/reference/problems.md lacks {missing:?}");
}
