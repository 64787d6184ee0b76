//! Relative links in Markdown files, and the anchors that they name.

use crate::tree::{files, read, relative, root};
use regex::Regex;

/// Links whose target file or heading does not exist.
pub fn broken_links() -> Vec<String> {
    let link = Regex::new(r"\[[^\]\[]*\]\(([^)\s]+)\)").expect("the pattern is valid");
    let mut found = Vec::new();
    for path in files("", &["md"]) {
        let mut fenced = false;
        for (index, line) in read(&path).lines().enumerate() {
            fenced ^= line.trim_start().starts_with("```");
            if fenced {
                continue;
            }
            for target in link.captures_iter(line).map(|captures| captures[1].to_owned()) {
                if let Some(problem) = problem(&path, &target) {
                    found.push(format!(
                        "{}:{}: link to {target}: {problem}",
                        relative(&path),
                        index + 1
                    ));
                }
            }
        }
    }
    found
}

fn problem(from: &std::path::Path, target: &str) -> Option<&'static str> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = match file {
        "" => from.to_path_buf(),
        _ if file.starts_with('/') => root().join(file.trim_start_matches('/')),
        _ => from.parent()?.join(file),
    };
    if !path.exists() {
        return Some("the file does not exist");
    }
    if anchor.is_empty() || path.extension().is_none_or(|extension| extension != "md") {
        return None;
    }
    let exists = read(&path)
        .lines()
        .filter(|line| line.starts_with('#'))
        .any(|line| slug(line) == anchor);
    (!exists).then_some("the file has no such heading")
}

/// The anchor of a heading, as Markdown hosts build it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
