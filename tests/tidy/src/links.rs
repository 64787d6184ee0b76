//! Relative links in Markdown files, and the anchors in them.

use crate::tree::{files, read, relative, root};
use regex::Regex;
use std::collections::BTreeSet;
use std::path::Path;

/// Links whose target file or heading does not exist.
pub fn broken_links() -> Vec<String> {
    let mut found = Vec::new();
    for path in files("", &["md"]) {
        let text = read(&path);
        for link in relative_links(&text) {
            if let Some(problem) = problem(&path, &text, &link.target) {
                found.push(format!(
                    "{}:{}: link to {}: {problem}",
                    relative(&path),
                    link.line,
                    link.target
                ));
            }
        }
    }
    found
}

/// A link into the checkout.
struct Link {
    line: usize,
    target: String,
}

/// Targets of inline links and link definitions, except those of other sites.
fn relative_links(text: &str) -> Vec<Link> {
    // A target may be followed by a title: `[text](target "title")`.
    let inline = Regex::new(r"\]\(([^)\s]+)[^)]*\)").expect("the pattern is valid");
    let definition = Regex::new(r"^\[[^\]]+\]: +(\S+)").expect("the pattern is valid");
    let mut links = Vec::new();
    for (line, prose) in prose(text) {
        let targets = inline
            .captures_iter(&prose)
            .chain(definition.captures(&prose))
            .map(|captures| captures[1].to_owned())
            .filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
        links.extend(targets.map(|target| Link { line, target }));
    }
    links
}

/// Lines outside code blocks with their numbers, without the contents of code spans.
fn prose(text: &str) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((index + 1, line.split('`').step_by(2).collect()));
        }
    }
    lines
}

fn problem(from: &Path, text: &str, target: &str) -> Option<&'static str> {
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
    let exists = match file {
        "" => anchors(text).contains(anchor),
        _ => anchors(&read(&path)).contains(anchor),
    };
    (!exists).then_some("the file has no such heading")
}

/// The anchors of a document's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced || !line.starts_with('#') {
            continue;
        }
        let slug = slug(line);
        // Markdown renderers number repeated headings: `errors`, `errors-1`.
        let mut anchor = slug.clone();
        let mut repetition = 0;
        while !found.insert(anchor) {
            repetition += 1;
            anchor = format!("{slug}-{repetition}");
        }
    }
    found
}

/// The anchor of a heading, as Markdown renderers derive it: lower case, no punctuation, hyphens for spaces.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
# A title, with `code`
## Errors
## Errors
```sh
# not-a-heading
[not a link](made-up.md)
```
`[not a link](made-up.md)`
";

    fn problems(links: &str) -> Vec<String> {
        let document = root().join("README.md");
        let text = format!("{DOCUMENT}{links}");
        relative_links(&text)
            .into_iter()
            .filter(|link| problem(&document, &text, &link.target).is_some())
            .map(|link| link.target)
            .collect()
    }

    #[test]
    fn links_that_resolve_are_accepted() {
        let links = "[a](CHANGELOG.md) [b](/docs/index.md) [c](#a-title-with-code) [d](#errors-1) [e](https://example.com/x)\n\
                     [f]: docs/index.md#documentation\n[g](docs/index.md \"title\")";
        assert_eq!(problems(links), Vec::<String>::new());
        assert!(relative_links(&read(&root().join("docs/index.md"))).len() > 10);
    }

    #[test]
    fn broken_links_are_found() {
        let links =
            "[a](made-up.md) [b](#not-a-heading) [c](#errors-2)\n[d]: docs/made-up.md\n[e](made-up.md \"title\")";
        assert_eq!(
            problems(links),
            [
                "made-up.md",
                "#not-a-heading",
                "#errors-2",
                "docs/made-up.md",
                "made-up.md"
            ]
        );
    }
}
