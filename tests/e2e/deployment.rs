//! Deployment, automation and development files refer only to what exists: paths, packages, features, recipes, options,
//! configuration keys, services and variables.
//!
//! The second test replaces one name at a time with a name that does not exist and expects a finding, so that it fails
//! if a check no longer finds anything.

mod automation;
mod commands;
mod containers;
mod tree;

use tree::Tree;

fn findings(tree: &Tree) -> Vec<String> {
    let mut findings = containers::findings(tree);
    findings.extend(automation::findings(tree));
    findings
}

#[test]
fn names_in_deployment_files_exist() {
    let findings = findings(&Tree::checkout());
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

/// Cases in deployment/made_up.toml.
const MADE_UP: &str = include_str!("deployment/made_up.toml");

#[test]
fn made_up_names_are_reported() {
    let cases: toml::Table = MADE_UP.parse().expect("the cases are TOML");
    let mut missed = Vec::new();
    for case in cases["case"].as_array().expect("a list of cases") {
        let [file, find, replace, expected] =
            ["file", "find", "replace", "finding"].map(|field| case[field].as_str().expect("a string"));
        let findings = findings(&Tree::with(file, find, replace));
        if !findings.iter().any(|finding| finding.contains(expected)) {
            missed.push(format!(
                "{file}, {find} → {replace}: no finding `{expected}` in {findings:?}"
            ));
        }
    }
    assert!(missed.is_empty(), "\n{}", missed.join("\n"));
}
