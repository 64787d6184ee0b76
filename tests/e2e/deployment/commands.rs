//! Checks command lines: the programs, paths, packages, recipes, options and test filters in them.

use super::tree::{Help, Package, Tree, has_test, help, mentioned, variables};

/// Words that separate commands.
const OPERATORS: [&str; 5] = ["&&", "||", "|", ";", "{"];
/// Directories that a build or download creates.
const GENERATED: [&str; 2] = ["target", "dist"];

/// Checks the lines of a shell text; each finding is a sentence.
pub fn check_text(tree: &Tree, text: &str) -> Vec<String> {
    let mut findings: Vec<String> = mentioned(text)
        .filter(|name| !variables().contains(name))
        .map(|name| format!("no source reads the variable {name}"))
        .collect();
    let joined = text.replace("\\\n", " ");
    for line in joined.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        // A command substitution in an assignment is a separate command.
        let line = line.replace("=$(", "= ; ").replace("; ", " ; ").replace(") ;", " ;");
        match shlex::split(&line) {
            None => findings.push(format!("quotes are not balanced: {line}")),
            Some(words) => {
                for command in commands(&words) {
                    check(tree, command, &mut findings);
                }
            }
        }
    }
    findings
}

/// Splits words at operators, and drops assignments before a program.
fn commands(words: &[String]) -> Vec<&[String]> {
    let commands = words.split(|word| OPERATORS.contains(&word.as_str()));
    let commands = commands.map(|command| {
        let program = command.iter().position(|word| !is_assignment(word));
        program.map_or(&[] as &[String], |at| &command[at..])
    });
    commands.filter(|command| !command.is_empty()).collect()
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=')
        .is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

fn check(tree: &Tree, command: &[String], findings: &mut Vec<String>) {
    let Some((program, rest)) = command.split_first() else {
        return;
    };
    match program.as_str() {
        "just" => check_recipe(tree, rest, findings),
        "cargo" => check_cargo(tree, rest, findings),
        "trunkline" => check_trunkline(rest, findings),
        "tests/run" => check_tests_run(tree, rest, findings),
        "tests/mutations" => check_mutations(tree, rest, findings),
        _ => {}
    }
    // In cargo's arguments a slash separates a package from its feature.
    for word in command.iter().filter(|_| program != "cargo") {
        let missing = is_path(word) && !tree.exists(word.trim_start_matches("./"));
        if missing {
            findings.push(format!("there is no {word}"));
        }
    }
}

/// Whether a word names something in the checkout: it has a slash and is relative, literal and not generated.
fn is_path(word: &str) -> bool {
    let first = word.trim_start_matches("./").split('/').next().unwrap_or_default();
    let literal = word
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/' | b'_' | b'-'));
    word.contains('/') && literal && !word.starts_with(['/', '-']) && !GENERATED.contains(&first)
}

fn is_template(word: &str) -> bool {
    word.contains("{{") || word.contains('$') || word.contains('…') || word.contains("...")
}

fn check_recipe(tree: &Tree, words: &[String], findings: &mut Vec<String>) {
    let Some((name, arguments)) = words.split_first() else {
        return;
    };
    let recipes = tree.recipes();
    match recipes.get(name) {
        None if name.starts_with('-') => {}
        None => findings.push(format!("the justfile has no recipe {name}")),
        Some(recipe) if !recipe.accepts(arguments.len()) => {
            findings.push(format!(
                "the recipe {name} does not accept {} arguments",
                arguments.len()
            ));
        }
        Some(_) => {}
    }
}

/// `tests/run` lists its subcommands in its usage; any other word is a test filter.
fn check_tests_run(tree: &Tree, words: &[String], findings: &mut Vec<String>) {
    let Some(word) = words.first().filter(|word| !is_template(word)) else {
        return;
    };
    let known = tree.read("tests/run").contains(&format!("       tests/run {word} "));
    if !known && !has_test(&tree.path("tests"), word) {
        findings.push(format!("tests/run has no subcommand {word}, and no test matches it"));
    }
}

/// Checks that the options and mutations in a documented `tests/mutations` command exist.
fn check_mutations(tree: &Tree, words: &[String], findings: &mut Vec<String>) {
    let (program, list) = (tree.read("tests/mutations"), tree.read("tests/mutations.toml"));
    let mut words = words.iter().filter(|word| !is_template(word));
    while let Some(word) = words.next() {
        if word.starts_with('-') {
            // Both options have a value.
            words.next();
            if !program.contains(&format!("add_argument(\"{word}\"")) {
                findings.push(format!("tests/mutations has no option {word}"));
            }
        } else if !list.contains(&format!("name = \"{word}\"")) {
            findings.push(format!("there is no mutation {word}"));
        }
    }
}

/// A command's options with their values, and its other words.
struct Parsed {
    options: Vec<(String, Option<String>)>,
    positional: Vec<String>,
}

/// Parses words according to a help text. Unknown options become findings.
fn parse(name: &str, help: &Help, words: &[String], findings: &mut Vec<String>) -> Parsed {
    let mut parsed = Parsed {
        options: Vec::new(),
        positional: Vec::new(),
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if !word.starts_with('-') || word == "-" {
            parsed.positional.push(word.clone());
            continue;
        }
        let (option, inline) = match word.split_once('=') {
            Some((option, value)) => (option, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        match help.options.get(option) {
            None => findings.push(format!("`{name}` has no option {option}")),
            Some(false) => parsed.options.push((option.to_owned(), None)),
            Some(true) => {
                let value = inline.or_else(|| words.next().cloned());
                parsed.options.push((option.to_owned(), value));
            }
        }
    }
    parsed
}

/// Checks arguments of trunkline against its help.
pub fn check_trunkline(words: &[String], findings: &mut Vec<String>) {
    let mut path: Vec<String> = Vec::new();
    let mut words = words.to_vec();
    loop {
        let name = format!("trunkline {}", path.join(" "));
        let help = help("trunkline", &path).expect("a listed subcommand has help");
        let mut unknown = Vec::new();
        let parsed = parse(name.trim_end(), &help, &words, &mut unknown);
        if help.commands.is_empty() {
            findings.extend(unknown);
            let given = parsed.positional.len();
            if given > help.positional {
                findings.push(format!("`{name}` has {} arguments, not {given}", help.positional));
            }
            return;
        }
        // Options before a subcommand belong to its parent; options after it are checked with the subcommand's own
        // help.
        let Some(command) = parsed.positional.first() else {
            findings.extend(unknown);
            return;
        };
        if !help.commands.contains(command) {
            findings.push(format!("`{}` has no subcommand {command}", name.trim_end()));
            return;
        }
        let at = words
            .iter()
            .position(|word| word == command)
            .expect("it is one of the words");
        parse(name.trim_end(), &help, &words[..at], findings);
        words.drain(..=at);
        path.push(command.clone());
    }
}

/// Checks a cargo command: options, packages, features, targets, test filters, and arguments of trunkline.
fn check_cargo(tree: &Tree, words: &[String], findings: &mut Vec<String>) {
    let Some((subcommand, rest)) = words.split_first() else {
        return;
    };
    // Clippy's own help refers to the options of `cargo check`.
    let documented = if subcommand == "clippy" { "check" } else { subcommand };
    let Some(help) = help("cargo", &[documented.to_owned()]) else {
        findings.push(format!("cargo has no subcommand {subcommand}"));
        return;
    };
    let end = rest.iter().position(|word| word == "--").unwrap_or(rest.len());
    let after = rest.get(end + 1..).unwrap_or_default();
    let parsed = parse(&format!("cargo {subcommand}"), &help, &rest[..end], findings);
    let chosen = check_targets(tree, &parsed, findings);
    if subcommand == "run" && values(&parsed, "-p").any(|package| package == "trunkline") {
        let literal: Vec<_> = after.iter().filter(|word| !is_template(word)).cloned().collect();
        check_trunkline(&literal, findings);
    }
    if subcommand == "test" && !chosen.is_empty() {
        let more = after.iter().filter(|word| !word.starts_with('-'));
        for filter in parsed.positional.iter().chain(more).filter(|word| !is_template(word)) {
            if !chosen.iter().any(|package| has_test(&tree.path(&package.dir), filter)) {
                findings.push(format!("no test of the chosen packages matches {filter}"));
            }
        }
    }
}

/// Checks packages, features, binaries and test targets. Returns the packages that are selected and exist.
fn check_targets<'t>(tree: &'t Tree, parsed: &Parsed, findings: &mut Vec<String>) -> Vec<&'t Package> {
    let packages = tree.packages();
    for feature in values(parsed, "--features").filter(|feature| !is_template(feature)) {
        let known = match feature.split_once('/') {
            Some((package, feature)) => packages.get(package).is_some_and(|p| p.features.contains(feature)),
            None => values(parsed, "-p").any(|name| packages.get(name).is_some_and(|p| p.features.contains(feature))),
        };
        if !known {
            findings.push(format!("no chosen package has the feature {feature}"));
        }
    }
    let mut chosen = Vec::new();
    for name in values(parsed, "-p") {
        match packages.get(name) {
            Some(package) => chosen.push(package),
            None => findings.push(format!("the workspace has no package {name}")),
        }
    }
    for name in values(parsed, "--bin").filter(|name| !chosen.iter().any(|p| p.bins.contains(*name))) {
        findings.push(format!("no chosen package has the binary {name}"));
    }
    for name in values(parsed, "--test").filter(|name| !chosen.iter().any(|p| p.tests.contains(*name))) {
        findings.push(format!("no chosen package has the test target {name}"));
    }
    chosen
}

fn values<'p>(parsed: &'p Parsed, option: &'p str) -> impl Iterator<Item = &'p str> {
    let given = parsed.options.iter().filter(move |(name, _)| name == option);
    given.filter_map(|(_, value)| value.as_deref())
}
