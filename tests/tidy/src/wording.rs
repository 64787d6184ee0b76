//! Wording that this project avoids, because a reader would have to guess its meaning (docs/develop/style.md).

use crate::tree::{files, relative};
use regex::RegexSet;

/// Patterns, matched per line and ignoring case, each with what to write instead.
pub const PHRASES: &[(&str, &str)] = &[
    (r"\banew\b", "again"),
    (r"\bmend(s|ed|ing)?\b", "repair, fix, recover"),
    (r"\ball the same\b", "anyway, still"),
    (r"\bat all events\b", "in any case"),
    (r"\blast words\b", "final log lines"),
    (r"\bfor people\b", "human-readable"),
    (r"\bof (its|their|one's|his|our) own\b", "own, separate, dedicated"),
    (r"\b(goes|go|went|going) on\b", "continue, proceed, resume"),
    (r"\bstands? (there|here|still)\b", "is stored, hangs"),
    (r"\bstood still\b", "stopped, was suspended"),
    (r"\bstanding still\b", "stopped, hanging"),
    (r"\b(is|are|was|were|be|been) told\b", "is notified, receives"),
    (r"\b(is|are|was|were|be) asked\b", "is requested, is queried"),
    (r"\bthe house\b", "the repository, the workspace"),
    (r"\blets? go of\b", "release, drop"),
    (r"\bgone round\b", "worked around"),
    (r"\bin vain\b", "without effect"),
    (r"\bis made of\b", "is derived from"),
    (r"\bmade of (it|them|that|this|which|no)\b", "derived from"),
    (r"\bof no (more )?use\b", "unusable"),
    (r"\bis given up\b", "is dead-lettered, is abandoned"),
    (r"\bhas no place\b", "does not exist"),
    (r"\bin good order\b", "cleanly, gracefully"),
    (r"\bnobody knows\b", "is unknown"),
    (r"\bwhoever\b", "the caller, any process that"),
    (r"\bwhat there is to\b", "name the thing"),
    (r"\bsays so\b", "reports it"),
    (r"\bcomes? round\b", "returns, arrives"),
    (r"\bsorts? out what\b", "classifies"),
    (r"\b(the|a) twin\b", "a duplicate"),
    (r"\btwo rooms\b", "two modules"),
    (r"\bone room\b", "one module"),
    (r"\b(lowest|first|bottom|lower|higher) floors?\b", "layer"),
    (r"\btwo homes\b", "two backends"),
    (r"\bthe other home\b", "the other backend"),
    (r"\bthe letter\b", "the dead letter"),
    (r"\bits letter\b", "its dead letter"),
    (r"\bheld back\b", "pending, withheld"),
    (r"\bset aside\b", "quarantine"),
    (r"\bsets aside\b", "quarantines"),
    (r"\bis of the\b", "belongs to"),
    (r"\bon the way back\b", "recovering"),
    (r"\ba good deal\b", "much"),
    (r"\bfor life\b", "fixed, permanent"),
    (r"\bhears? of\b", "receives, is notified of"),
    (r"\bin the log's words\b", "the broker's error text"),
    (r"\bown words\b", "error text"),
    (r"\bwithout a trace\b", "without side effects"),
    (r"\bputs? (it|them) right\b", "corrects"),
    (r"\btakes? the seat\b", "takes over the membership"),
    (r"\b(its|a|the|static) seat\b", "static membership"),
    (r"(?-i)\bGuarantees:", "state the invariant as a sentence"),
    (r"^\s*//[/!]? ?Never:", "state the invariant as a sentence"),
    (r"\bNever: ", "state the invariant as a sentence"),
    (r"\bas much again\b", "the same amount"),
    (r"\bthe very (first|same|last)\b", "the first, the same, the last"),
    (r"\bso long as\b", "while"),
    (r"\bcaught sight\b", "found"),
    (r"\bthe design\b", "cite docs/protocol or an ADR"),
];

/// Files that may contain a phrase: the path, then the pattern of the phrase. Each entry needs a reason.
const ALLOWED: &[(&str, &str)] = &[];

/// Files whose text was not written in this project.
const FOREIGN: [&str; 2] = ["LICENSE", "CODE_OF_CONDUCT.md"];

/// Lines that hold a phrase.
pub fn phrases() -> Vec<String> {
    let patterns = PHRASES.iter().map(|(pattern, _)| format!("(?i){pattern}"));
    let set = RegexSet::new(patterns).expect("the patterns are valid");
    let extensions = [
        "rs", "md", "toml", "txt", "out", "sh", "yml", "yaml", "avsc", "py", "java", "json", "",
    ];
    let mut found = Vec::new();
    for path in files("", &extensions) {
        let shown = relative(&path);
        if FOREIGN.contains(&shown.as_str()) || shown.starts_with("tests/tidy/") || shown == "Cargo.lock" {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        for (index, line) in text.lines().enumerate() {
            for (pattern, instead) in set.matches(line).iter().filter_map(|matched| PHRASES.get(matched)) {
                if !ALLOWED.contains(&(shown.as_str(), pattern)) {
                    let line = line.trim();
                    found.push(format!("{shown}:{}: `{pattern}`, write: {instead}: {line}", index + 1));
                }
            }
        }
    }
    found
}
