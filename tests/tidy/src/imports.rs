//! Import cycles between the files of a package.
//!
//! A file depends on another when it names an item that the other defines: in a `use` that is not a re-export, or in a
//! path. Re-exports are followed to the definition. A `mod` declaration is not a dependency, so a parent may re-export
//! what its children define while they use each other. Code under `#[cfg(test)]` is ignored, and so are paths inside
//! macro calls.

use crate::layers::PACKAGES;
use crate::tree::{read, relative, root};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

type ModulePath = Vec<String>;

/// What a name in a module stands for.
#[derive(Debug, Clone)]
enum Definition {
    /// An item that this module's file defines.
    Item,
    /// A child module.
    Module,
    /// An import or a re-export of this path.
    Use(Vec<String>),
}

#[derive(Debug, Default)]
struct Module {
    file: String,
    names: BTreeMap<String, Definition>,
    globs: Vec<Vec<String>>,
    /// Paths in the code of this module: in imports, expressions, types and patterns.
    paths: Vec<Vec<String>>,
}

#[derive(Debug, Default)]
struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

/// Cycles of files. Each cycle is the sorted list of its files.
pub fn cycles() -> Vec<String> {
    let mut found = Vec::new();
    for root_file in crate_roots() {
        let edges = edges(&load(&root_file));
        for cycle in strongly_connected(&edges) {
            let inside: Vec<String> = edges
                .iter()
                .filter(|(from, _)| cycle.contains(*from))
                .flat_map(|(from, to)| {
                    to.iter()
                        .filter(|to| cycle.contains(*to))
                        .map(move |to| format!("{from} → {to}"))
                })
                .collect();
            found.push(format!(
                "import cycle of {} files:\n    {}",
                cycle.len(),
                inside.join("\n    ")
            ));
        }
    }
    found
}

fn crate_roots() -> Vec<PathBuf> {
    let candidates = PACKAGES.iter().flat_map(|package| {
        let manifest: toml::Table = read(&root().join(package.dir).join("Cargo.toml"))
            .parse()
            .expect("a manifest is TOML");
        let declared = ["lib", "bin", "test"]
            .into_iter()
            .flat_map(move |kind| match manifest.get(kind) {
                Some(toml::Value::Array(targets)) => targets.clone(),
                Some(target) => vec![target.clone()],
                None => Vec::new(),
            });
        let declared = declared.filter_map(|target| Some(target.get("path")?.as_str()?.to_owned()));
        let paths = declared.chain(["src/lib.rs".to_owned(), "src/main.rs".to_owned()]);
        paths
            .map(|path| root().join(package.dir).join(path))
            .collect::<Vec<_>>()
    });
    let unique: BTreeSet<PathBuf> = candidates.filter(|path| path.is_file()).collect();
    unique.into_iter().collect()
}

fn load(root_file: &Path) -> Crate {
    let mut krate = Crate::default();
    let children = root_file.parent().expect("a source file has a directory");
    load_file(&mut krate, root_file, children, Vec::new());
    krate
}

fn load_file(krate: &mut Crate, file: &Path, children: &Path, path: ModulePath) {
    let parsed = syn::parse_file(&read(file)).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    load_items(krate, &parsed.items, &Place { file, children }, path);
}

struct Place<'p> {
    file: &'p Path,
    /// Where the files of child modules are.
    children: &'p Path,
}

fn load_items(krate: &mut Crate, items: &[syn::Item], place: &Place<'_>, path: ModulePath) {
    let mut module = Module {
        file: relative(place.file),
        ..Module::default()
    };
    for item in items.iter().filter(|item| !is_test_only(item)) {
        match item {
            syn::Item::Use(item) => {
                let exported = !matches!(item.vis, syn::Visibility::Inherited);
                add_use(&mut module, &item.tree, &mut Vec::new(), exported);
            }
            syn::Item::Mod(child) => {
                let name = child.ident.to_string();
                module.names.insert(name.clone(), Definition::Module);
                load_child(krate, child, place, &path);
            }
            other => {
                if let Some(name) = item_name(other) {
                    module.names.insert(name, Definition::Item);
                }
                let mut paths = Paths {
                    found: &mut module.paths,
                };
                paths.visit_item(other);
            }
        }
    }
    krate.modules.insert(path, module);
}

fn load_child(krate: &mut Crate, child: &syn::ItemMod, place: &Place<'_>, parent: &ModulePath) {
    let name = child.ident.to_string();
    let mut path = parent.clone();
    path.push(name.clone());
    if let Some((_, items)) = &child.content {
        let children = place.children.join(&name);
        load_items(
            krate,
            items,
            &Place {
                file: place.file,
                children: &children,
            },
            path,
        );
        return;
    }
    let explicit = child.attrs.iter().find_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(meta) if meta.path.is_ident("path") => match &meta.value {
            syn::Expr::Lit(syn::ExprLit {
                lit: syn::Lit::Str(text),
                ..
            }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    });
    let file = match explicit {
        Some(path) => place.file.parent().expect("a source file has a directory").join(path),
        None => place.children.join(format!("{name}.rs")),
    };
    let children = file.with_extension("");
    if file.is_file() {
        load_file(krate, &file, &children, path);
    }
}

/// Tests may import anything of their crate.
fn is_test_only(item: &syn::Item) -> bool {
    let attributes = match item {
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        _ => return false,
    };
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|name| name == "test")
    })
}

fn item_name(item: &syn::Item) -> Option<String> {
    let ident = match item {
        syn::Item::Const(item) => &item.ident,
        syn::Item::Enum(item) => &item.ident,
        syn::Item::Fn(item) => &item.sig.ident,
        syn::Item::Static(item) => &item.ident,
        syn::Item::Struct(item) => &item.ident,
        syn::Item::Trait(item) => &item.ident,
        syn::Item::Type(item) => &item.ident,
        syn::Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

fn add_use(module: &mut Module, tree: &syn::UseTree, prefix: &mut Vec<String>, exported: bool) {
    match tree {
        syn::UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            add_use(module, &path.tree, prefix, exported);
            prefix.pop();
        }
        syn::UseTree::Group(group) => group
            .items
            .iter()
            .for_each(|tree| add_use(module, tree, prefix, exported)),
        syn::UseTree::Glob(_) => {
            module.globs.push(prefix.clone());
        }
        syn::UseTree::Name(name) => add_name(module, prefix, &name.ident.to_string(), None, exported),
        syn::UseTree::Rename(rename) => {
            add_name(
                module,
                prefix,
                &rename.ident.to_string(),
                Some(rename.rename.to_string()),
                exported,
            );
        }
    }
}

fn add_name(module: &mut Module, prefix: &[String], name: &str, alias: Option<String>, exported: bool) {
    let mut path = prefix.to_vec();
    if name != "self" {
        path.push(name.to_owned());
    }
    let alias = alias.or_else(|| path.last().cloned()).unwrap_or_default();
    if !exported {
        module.paths.push(path.clone());
    }
    module.names.insert(alias, Definition::Use(path));
}

struct Paths<'p> {
    found: &'p mut Vec<Vec<String>>,
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() && path.segments.len() > 1 {
            self.found
                .push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        // Imports inside functions.
        let mut module = Module::default();
        add_use(&mut module, &item.tree, &mut Vec::new(), false);
        self.found.append(&mut module.paths);
    }
}

enum Target {
    Module(ModulePath),
    Item(ModulePath),
}

/// Maximum number of re-exports that are followed for one path.
const DEPTH_MAX: usize = 16;

impl Crate {
    fn resolve(&self, from: &ModulePath, path: &[String], depth: usize) -> Option<Target> {
        if depth > DEPTH_MAX {
            return None;
        }
        let (first, mut rest) = path.split_first()?;
        let mut current = match first.as_str() {
            "crate" => Target::Module(Vec::new()),
            "self" => Target::Module(from.clone()),
            "super" => Target::Module(from.split_last()?.1.to_vec()),
            name => self.lookup(from, name, depth)?,
        };
        while let Target::Module(module) = &current {
            let Some((name, after)) = rest.split_first() else { break };
            rest = after;
            current = match name.as_str() {
                "super" => Target::Module(module.split_last()?.1.to_vec()),
                "self" => continue,
                name => self.lookup(&module.clone(), name, depth)?,
            };
        }
        Some(current)
    }

    fn lookup(&self, module: &ModulePath, name: &str, depth: usize) -> Option<Target> {
        let known = self.modules.get(module)?;
        match known.names.get(name) {
            Some(Definition::Item) => Some(Target::Item(module.clone())),
            Some(Definition::Module) => {
                let mut path = module.clone();
                path.push(name.to_owned());
                Some(Target::Module(path))
            }
            Some(Definition::Use(path)) if path.first().is_some_and(|first| first == name && path.len() == 1) => None,
            Some(Definition::Use(path)) => self.resolve(module, path, depth + 1),
            None => known.globs.iter().find_map(|glob| {
                let mut path = glob.clone();
                path.push(name.to_owned());
                self.resolve(module, &path, depth + 1)
            }),
        }
    }
}

fn edges(krate: &Crate) -> BTreeMap<String, BTreeSet<String>> {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, module) in &krate.modules {
        for named in &module.paths {
            let Some(Target::Item(owner)) = krate.resolve(path, named, 0) else {
                continue;
            };
            let Some(owner) = krate.modules.get(&owner) else {
                continue;
            };
            if owner.file != module.file {
                edges.entry(module.file.clone()).or_default().insert(owner.file.clone());
            }
        }
    }
    edges
}

/// Sets of several files that can all be reached from each other.
fn strongly_connected(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let reach = |from: &String| {
        let (mut seen, mut waiting) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(file) = waiting.pop() {
            for next in edges.get(&file).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    waiting.push(next.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = edges.keys().map(|file| (file, reach(file))).collect();
    let mut found: Vec<BTreeSet<String>> = Vec::new();
    for (file, files) in &reached {
        if !files.contains(*file) || found.iter().any(|cycle| cycle.contains(*file)) {
            continue;
        }
        let cycle = files
            .iter()
            .filter(|other| reached.get(other).is_some_and(|back| back.contains(*file)));
        found.push(cycle.cloned().collect());
    }
    found
}
