//! Checks the justfile, the workflows and settings in `.github`, the release script, the development container, and the
//! commands in the documentation for contributors.

use super::commands::check_text;
use super::tree::Tree;
use serde_json::{Map, Value};

const SETUP: &str = ".github/actions/setup/action.yml";
const WORKFLOWS: &str = ".github/workflows";
const JUSTFILE: &str = "justfile";
/// Texts whose code spans and code blocks are commands.
const TEXTS: [&str; 2] = ["CONTRIBUTING.md", ".github/pull_request_template.md"];
/// Programs whose code spans are checked as commands.
const PROGRAMS: [&str; 5] = ["just ", "cargo ", "tests/run ", "tests/mutations ", "trunkline "];

pub fn findings(tree: &Tree) -> Vec<String> {
    let mut findings = justfile_findings(tree);
    for file in tree.list(WORKFLOWS) {
        findings.extend(workflow_findings(tree, &file));
    }
    let setup = tree.yaml(SETUP);
    findings.extend(at(SETUP, steps_findings(tree, &setup["runs"]["steps"])));
    findings.extend(dependabot_findings(tree));
    findings.extend(container_findings(tree));
    findings.extend(release_findings(tree));
    for file in TEXTS {
        let text = commands_of(&tree.read(file));
        findings.extend(at(file, check_text(tree, &text)));
    }
    findings
}

fn at(place: &str, findings: Vec<String>) -> impl Iterator<Item = String> {
    findings.into_iter().map(move |finding| format!("{place}: {finding}"))
}

fn justfile_findings(tree: &Tree) -> Vec<String> {
    let recipes = tree.recipes();
    let mut findings = Vec::new();
    for (name, recipe) in recipes {
        let mut found = Vec::new();
        for dependency in recipe.dependencies.iter().filter(|d| !recipes.contains_key(*d)) {
            found.push(format!("there is no recipe {dependency}"));
        }
        let body = recipe.body.join("\n");
        let parameters: Vec<_> = recipe
            .parameters
            .iter()
            .map(|p| p.trim_start_matches(['*', '+']))
            .collect();
        for variable in body.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
            if !parameters.contains(&variable.trim()) {
                found.push(format!("there is no parameter {}", variable.trim()));
            }
        }
        // Without spaces, a placeholder is one word.
        found.extend(check_text(tree, &body.replace("{{ ", "{{").replace(" }}", "}}")));
        findings.extend(at(&format!("{JUSTFILE}, {name}"), found));
    }
    findings
}

fn workflow_findings(tree: &Tree, file: &str) -> Vec<String> {
    let workflow = tree.yaml(file);
    let mut findings = Vec::new();
    let jobs = workflow["jobs"].as_object().expect("jobs");
    for (name, job) in jobs {
        let needs = match &job["needs"] {
            Value::String(one) => vec![one.as_str()],
            list => list
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect(),
        };
        let mut found: Vec<String> = needs
            .into_iter()
            .filter(|other| !jobs.contains_key(*other))
            .map(|other| format!("needs {other}, which is not a job"))
            .collect();
        found.extend(steps_findings(tree, &job["steps"]));
        findings.extend(at(&format!("{file}, {name}"), found));
    }
    let text = tree.read(file);
    let patterns = text
        .split("hashFiles('")
        .skip(1)
        .filter_map(|rest| rest.split('\'').next());
    let missing = patterns.filter(|pattern| !tree.exists(pattern));
    findings.extend(missing.map(|pattern| format!("{file}: hashFiles finds no {pattern}")));
    findings
}

fn steps_findings(tree: &Tree, steps: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    for step in steps.as_array().expect("steps") {
        if let Some(uses) = step["uses"].as_str() {
            findings.extend(uses_finding(tree, uses));
        }
        if let Some(script) = step["run"].as_str() {
            findings.extend(check_text(tree, script));
        }
        let variables = step["env"].as_object().into_iter().flat_map(Map::keys);
        let names: Vec<_> = variables.map(String::as_str).collect();
        findings.extend(check_text(tree, &names.join("\n")));
    }
    findings
}

/// An action of this repository exists; any other has a version.
fn uses_finding(tree: &Tree, uses: &str) -> Option<String> {
    if let Some(dir) = uses.strip_prefix("./") {
        let file = format!("{dir}/action.yml");
        return (!tree.exists(&file)).then(|| format!("there is no {file}"));
    }
    let version = uses.split_once('@').map(|(_, version)| version);
    let pinned = version.is_some_and(|v| {
        v.strip_prefix('v')
            .is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
    });
    (!pinned).then(|| format!("{uses} has no version tag"))
}

fn dependabot_findings(tree: &Tree) -> Vec<String> {
    let file = ".github/dependabot.yml";
    let settings = tree.yaml(file);
    let mut findings = Vec::new();
    for update in settings["updates"].as_array().expect("updates") {
        let ecosystem = update["package-ecosystem"].as_str().expect("an ecosystem");
        let one = update["directory"].as_str().into_iter();
        let more = update["directories"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        for directory in one.chain(more).map(|dir| dir.trim_start_matches('/')) {
            let expected = match (ecosystem, directory) {
                ("cargo", dir) => format!("{dir}/Cargo.toml"),
                ("github-actions", "") => WORKFLOWS.to_owned(),
                ("github-actions", dir) => format!("{dir}/action.yml"),
                (other, _) => {
                    findings.push(format!("{file}: the ecosystem {other} is not checked by this test"));
                    continue;
                }
            };
            if !tree.exists(expected.trim_start_matches('/')) {
                findings.push(format!("{file}: there is no {expected} for {ecosystem}"));
            }
        }
    }
    findings
}

fn container_findings(tree: &Tree) -> Vec<String> {
    let file = ".devcontainer/devcontainer.json";
    let settings: Value = serde_json::from_str(&tree.read(file)).expect("devcontainer.json is JSON");
    let commands = ["onCreateCommand", "postCreateCommand"];
    let text: Vec<_> = commands.iter().filter_map(|name| settings[*name].as_str()).collect();
    at(file, check_text(tree, &text.join("\n"))).collect()
}

/// The release script builds what the image contains.
fn release_findings(tree: &Tree) -> Vec<String> {
    let (script, image) = (".ci/release", "Dockerfile");
    let build = |file: &str| {
        let text = tree.read(file);
        let lines = text
            .lines()
            .map(|line| line.trim().trim_start_matches("RUN ").to_owned());
        let builds: Vec<_> = lines.filter(|line| line.starts_with("cargo build")).collect();
        builds
    };
    let (ours, theirs) = (build(script), build(image));
    let mut findings: Vec<_> = at(script, check_text(tree, &ours.join("\n"))).collect();
    if ours.len() != 1 || ours != theirs {
        findings.push(format!("{script} builds {ours:?}, but {image} builds {theirs:?}"));
    }
    findings
}

/// Code blocks for the shell, and code spans that begin with a program.
fn commands_of(text: &str) -> String {
    let mut commands = Vec::new();
    let mut fence = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), fence) {
            (Some(language), None) => fence = Some(language.to_owned()),
            (Some(_), Some(_)) => fence = None,
            (None, Some(ref language)) if language == "sh" => {
                commands.push(line.split("  #").next().unwrap_or(line).to_owned());
                fence = Some("sh".to_owned());
            }
            (None, other) => {
                fence = other;
                let spans = line.split('`').skip(1).step_by(2);
                let spans = spans.filter(|span| PROGRAMS.iter().any(|program| span.starts_with(program)));
                commands.extend(spans.map(str::to_owned));
            }
        }
    }
    commands.join("\n")
}
