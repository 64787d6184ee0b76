//! Size limits and file rules: header comments, lines per file, parameters, fields, spread of `impl` blocks, `unsafe`.

use crate::layers::PACKAGES;
use crate::tree::{files, read, relative};
use std::collections::{BTreeMap, BTreeSet};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Lines of a file, tests included.
pub const FILE_LINES_MAX: usize = 600;
/// Maximum number of parameters of a function, including `self`.
pub const PARAMETERS_MAX: usize = 5;
/// Maximum number of fields of a struct in `FIELDS_CHECKED`.
pub const FIELDS_MAX: usize = 12;
/// Maximum number of files with inherent `impl` blocks of a type, or functions that take `&mut` of it.
pub const IMPL_FILES_MAX: usize = 3;
/// Packages whose structs are checked for their number of fields.
const FIELDS_CHECKED: [&str; 3] = ["processors/streams/src", "processors/streams-test/src", "views/src"];
/// The only directory with `unsafe` code: the binding to librdkafka.
const UNSAFE_DIR: &str = "platform/event-log/src/kafka/";

/// The Rust files of the workspace's packages.
pub fn rust_files() -> Vec<std::path::PathBuf> {
    let mut all: Vec<_> = PACKAGES
        .iter()
        .flat_map(|package| files(package.dir, &["rs"]))
        .collect();
    all.sort();
    all.dedup();
    all
}

fn parse(path: &std::path::Path) -> syn::File {
    syn::parse_file(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files without a module comment, with `mod.rs`, or with a macro or attribute that must not be committed.
pub fn file_rules() -> Vec<String> {
    // Written in two parts, so that this file does not match.
    let forbidden = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("dbg", "!("),
        concat!("#[", "ignore"),
    ];
    let mut found = Vec::new();
    for path in rust_files() {
        let (text, shown) = (read(&path), relative(&path));
        if !text.starts_with("//!") && !text.starts_with("#!") {
            found.push(format!(
                "{shown}:1: no module comment; begin with `//!` and what the module does"
            ));
        }
        if path.file_name().is_some_and(|name| name == "mod.rs") {
            found.push(format!("{shown}:1: use `name.rs` beside `name/` instead of mod.rs"));
        }
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            found.push(format!(
                "{shown}:1: {lines} lines, the limit is {FILE_LINES_MAX}; split it by ownership"
            ));
        }
        for word in forbidden.iter().filter(|word| text.contains(**word)) {
            found.push(format!("{shown}: contains `{word}`"));
        }
    }
    found
}

/// Functions with too many parameters or with a tuple as a parameter.
pub fn signatures() -> Vec<String> {
    let mut found = Vec::new();
    for path in rust_files() {
        let mut visitor = Signatures {
            shown: relative(&path),
            found: &mut found,
        };
        visitor.visit_file(&parse(&path));
    }
    found
}

struct Signatures<'f> {
    shown: String,
    found: &'f mut Vec<String>,
}

impl Signatures<'_> {
    fn check(&mut self, signature: &syn::Signature) {
        // The C library determines the signature of a callback.
        if signature.abi.is_some() {
            return;
        }
        let line = signature.ident.span().start().line;
        let at = format!("{}:{line}: fn {}", self.shown, signature.ident);
        let parameters = signature.inputs.len();
        if parameters > PARAMETERS_MAX {
            self.found.push(format!(
                "{at} has {parameters} parameters, the limit is {PARAMETERS_MAX}; make a struct of those that travel together"
            ));
        }
        for input in &signature.inputs {
            let syn::FnArg::Typed(typed) = input else { continue };
            let tuple_type = matches!(&*typed.ty, syn::Type::Tuple(tuple) if !tuple.elems.is_empty());
            if tuple_type || matches!(&*typed.pat, syn::Pat::Tuple(_)) {
                self.found.push(format!("{at} takes a tuple; make a struct of it"));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Signatures<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check(&item.sig);
        visit::visit_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.check(&item.sig);
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        // The declaration in the trait is checked instead of its implementations.
        if item.trait_.is_none() {
            for item in &item.items {
                if let syn::ImplItem::Fn(function) = item {
                    self.check(&function.sig);
                }
            }
        }
        visit::visit_item_impl(self, item);
    }
}

/// `unsafe` code outside the binding to librdkafka, and `unsafe` blocks there without a comment that justifies them.
pub fn unsafe_code() -> Vec<String> {
    let mut found = Vec::new();
    for path in rust_files() {
        let (shown, text) = (relative(&path), read(&path));
        let mut visitor = Unsafe::default();
        visitor.visit_file(&parse(&path));
        let lines: Vec<&str> = text.lines().collect();
        for line in visitor.lines {
            if !shown.starts_with(UNSAFE_DIR) {
                found.push(format!("{shown}:{line}: unsafe code; it belongs below {UNSAFE_DIR}"));
            } else if !is_justified(&lines, line) {
                found.push(format!("{shown}:{line}: no `// SAFETY:` comment above the unsafe code"));
            }
        }
    }
    found
}

/// Whether a `SAFETY:` comment or, for an `unsafe fn`, a `# Safety` section precedes the line (1-based).
fn is_justified(lines: &[&str], line: usize) -> bool {
    let above = lines.get(..line).unwrap_or_default();
    let mut near = above.iter().rev().take(10);
    near.any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
}

#[derive(Default)]
struct Unsafe {
    lines: BTreeSet<usize>,
}

impl<'ast> Visit<'ast> for Unsafe {
    fn visit_expr_unsafe(&mut self, expr: &'ast syn::ExprUnsafe) {
        self.lines.insert(expr.span().start().line);
        visit::visit_expr_unsafe(self, expr);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if let Some(token) = &item.unsafety {
            self.lines.insert(token.span().start().line);
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        // An `extern "C"` declaration without a body is not a definition.
        if let (Some(token), None) = (&signature.unsafety, &signature.abi) {
            self.lines.insert(token.span().start().line);
        }
        visit::visit_signature(self, signature);
    }
}

/// Structs of the streams, streams-test and views crates with more than [`FIELDS_MAX`] fields.
pub fn wide_structs() -> Vec<String> {
    let mut found = Vec::new();
    for path in FIELDS_CHECKED.iter().flat_map(|dir| files(dir, &["rs"])) {
        for item in parse(&path).items {
            let syn::Item::Struct(item) = item else { continue };
            if item.fields.len() > FIELDS_MAX {
                found.push(format!(
                    "{}:{}: struct {} has {} fields, the limit is {FIELDS_MAX}; split it by what changes together",
                    relative(&path),
                    item.ident.span().start().line,
                    item.ident,
                    item.fields.len()
                ));
            }
        }
    }
    found
}

/// Types whose inherent `impl` blocks and functions that take `&mut` of them are in more than [`IMPL_FILES_MAX`] files.
pub fn spread_impls() -> Vec<String> {
    let mut found = Vec::new();
    for package in PACKAGES.iter().filter(|package| !package.dir.starts_with("tests")) {
        let mut spread: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut defined: BTreeMap<String, usize> = BTreeMap::new();
        for path in files(&format!("{}/src", package.dir), &["rs"]) {
            let mut visitor = Owners::default();
            visitor.visit_file(&parse(&path));
            for name in visitor.defined {
                *defined.entry(name).or_default() += 1;
            }
            for name in visitor.owners {
                spread.entry(name).or_default().insert(relative(&path));
            }
        }
        for (name, files) in spread {
            // If several types have the same name, it is unknown which of them a file uses.
            if defined.get(&name) == Some(&1) && files.len() > IMPL_FILES_MAX {
                let files: Vec<_> = files.into_iter().collect();
                found.push(format!(
                    "{}: type {name} is changed in {} files: {}",
                    package.dir,
                    files.len(),
                    files.join(", ")
                ));
            }
        }
    }
    found
}

#[derive(Default)]
struct Owners {
    defined: Vec<String>,
    owners: Vec<String>,
}

fn last_name(ty: &syn::Type) -> Option<String> {
    match ty {
        syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        _ => None,
    }
}

impl<'ast> Visit<'ast> for Owners {
    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.defined.push(item.ident.to_string());
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.defined.push(item.ident.to_string());
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if item.trait_.is_none() {
            self.owners.extend(last_name(&item.self_ty));
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        for input in &item.sig.inputs {
            if let syn::FnArg::Typed(typed) = input
                && let syn::Type::Reference(reference) = &*typed.ty
                && reference.mutability.is_some()
            {
                self.owners.extend(last_name(&reference.elem));
            }
        }
        visit::visit_item_fn(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }
}
