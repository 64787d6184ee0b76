//! Relative links between Markdown files lead to files and headings that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Directories without documents of this project.
const SKIPPED: [&str; 3] = ["target", ".git", "node_modules"];

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ is below the root").to_path_buf()
}

fn documents() -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![root()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("the tree is readable").filter_map(Result::ok) {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && !SKIPPED.contains(&name.as_str()) {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Lines outside code blocks, without code spans.
fn prose(text: &str) -> Vec<String> {
    let mut code = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        } else if !code {
            lines.push(line.split('`').step_by(2).collect());
        }
    }
    lines
}

/// Targets of inline links and link definitions that lead into the repository.
fn targets(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        let inline = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let definition = line
            .split_once("]: ")
            .filter(|_| line.starts_with('['))
            .map(|(_, target)| target);
        let all = inline
            .chain(definition)
            .filter_map(|target| target.split_whitespace().next());
        let relative = all.filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
        found.extend(relative.map(str::to_owned));
    }
    found
}

/// The anchors of a document's headings, as forges make them: lower case, punctuation dropped, spaces as hyphens.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut code = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        code ^= line.trim_start().starts_with("```");
        if code || !line.starts_with('#') {
            continue;
        }
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        found.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    found
}

/// Why a link of a document leads nowhere, if it does.
fn broken(document: &Path, text: &str, target: &str) -> Option<String> {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = match file {
        "" => document.to_path_buf(),
        _ => document.parent()?.join(file),
    };
    if !path.exists() {
        return Some(format!("there is no {file}"));
    }
    if anchor.is_empty() || path.extension().is_none_or(|e| e != "md") {
        return None;
    }
    let other = if file.is_empty() {
        text.to_owned()
    } else {
        fs::read_to_string(&path).ok()?
    };
    (!anchors(&other).contains(anchor)).then(|| format!("{} has no heading #{anchor}", path.display()))
}

#[test]
fn relative_links_lead_to_files_and_headings() {
    let (mut findings, mut links) = (Vec::new(), 0);
    for document in documents() {
        let text = fs::read_to_string(&document).expect("documents are UTF-8");
        for target in targets(&text) {
            links += 1;
            if let Some(why) = broken(&document, &text, &target) {
                let shown = document.strip_prefix(root()).unwrap_or(&document).display();
                findings.push(format!("{shown}: ({target}): {why}"));
            }
        }
    }
    assert!(links > 10, "only {links} links were found");
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn broken_links_are_found() {
    let document = root().join("README.md");
    let text = "# A title, with `code`\n[a](made-up.md) [b](#a-title-with-code) [c](#made-up)\n[d]: docs/made-up.md\n";
    let found: Vec<_> = targets(text)
        .iter()
        .filter_map(|target| broken(&document, text, target))
        .collect();
    assert_eq!(found.len(), 3, "{found:?}");
}
