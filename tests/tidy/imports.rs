//! Which file of `src` uses which other one.
//!
//! A file uses the file that **defines** what it names: a path through a re-export leads to the definition, so children may
//! name each other's items through their parent. A `pub use` in a parent is no use of its child, unless the parent's own
//! code names the item as well. Two rules follow:
//!
//! - The children of a module, each with all that is below it, use each other in one direction: there is no cycle.
//! - A child does not use a parent that uses it. What both need is a file of its own.
//!
//! Methods are not seen: a file that only calls methods of a type names no path.

use super::source::Source;
use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use syn::visit::{self, Visit};

type Path = Vec<String>;

/// A name that a `use` brings into a file, and the path that it stands for; `*` for all names of that path.
struct Import {
    name: String,
    path: Path,
    is_public: bool,
}

/// What a file defines and names.
struct File {
    name: String,
    module: Path,
    imports: Vec<Import>,
    /// Names of its items.
    defines: BTreeSet<String>,
    /// Paths in its code outside of `use`, with their first words resolved where they are `self` or `super`.
    paths: Vec<Path>,
}

pub struct Imports(BTreeMap<Path, File>);

impl Imports {
    pub fn of(sources: &BTreeMap<String, Source>) -> Self {
        let files = sources.values().filter(|source| source.name != "main.rs").map(|source| {
            let mut names = Names { module: source.path(), inside: Vec::new(), file: File::new(source) };
            names.visit_file(&source.tree);
            (source.path(), names.file)
        });
        Self(files.collect())
    }

    /// Each file with those that it uses.
    pub fn edges(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let edges = self.0.values().map(|file| {
            let named: BTreeSet<&str> = file.paths.iter().filter_map(|path| path.first()).map(String::as_str).collect();
            let imports = file.imports.iter();
            let used = imports.filter(|import| !import.is_public || named.contains(import.name.as_str()));
            let targets =
                used.map(|import| import.path.clone()).chain(file.paths.iter().map(|path| file.expand(path, self)));
            let targets = targets.filter_map(|path| self.definition(&path, 0)).filter(|target| *target != file.name);
            (file.name.as_str(), targets.collect())
        });
        edges.collect()
    }

    /// The file that defines what a path from the root of the crate names.
    fn definition(&self, path: &[String], depth: usize) -> Option<&str> {
        let length = (0..=path.len()).rev().find(|length| self.0.contains_key(&path[..*length]))?;
        let file = &self.0[&path[..length]];
        let Some(name) = path.get(length) else { return Some(&file.name) };
        if file.defines.contains(name) || depth > 8 {
            return Some(&file.name);
        }
        let rest = &path[length + 1..];
        if let Some(import) = file.imports.iter().find(|import| import.name == *name) {
            return self.definition(&[&import.path[..], rest].concat(), depth + 1);
        }
        let globs = file.imports.iter().filter(|import| import.name == "*");
        let mut behind = globs.filter_map(|import| self.0.get(&import.path)).filter(|file| file.defines.contains(name));
        // A macro may define it. A root without it is a foreign crate.
        behind.next().map(|file| file.name.as_str()).or((length > 0).then_some(&file.name))
    }
}

impl File {
    fn new(source: &Source) -> Self {
        let (imports, defines, paths) = (Vec::new(), BTreeSet::new(), Vec::new());
        Self { name: source.name.clone(), module: source.path(), imports, defines, paths }
    }

    /// The path from the root: what begins with `crate` has it, what begins with a child or an import is completed.
    fn expand(&self, path: &[String], files: &Imports) -> Path {
        if path[0] == "crate" {
            return path[1..].to_vec();
        }
        let child = [&self.module[..], &path[..1]].concat();
        // A module has no value: one word alone is a variable or a field of that name.
        if files.0.contains_key(&child) && path.len() > 1 {
            return [&self.module[..], path].concat();
        }
        match self.imports.iter().find(|import| import.name == path[0]) {
            Some(import) if !import.path.is_empty() => [&import.path[..], &path[1..]].concat(),
            // Its own item, or a name from elsewhere.
            _ => self.module.clone(),
        }
    }
}

/// Collects what a file names.
struct Names {
    module: Path,
    /// Modules within the file around the place that is looked at.
    inside: Path,
    file: File,
}

impl Names {
    /// Resolves `self` and `super`; the result begins with `crate` then.
    fn absolute(&self, path: Path) -> Path {
        let mut here = [&self.module[..], &self.inside[..]].concat();
        let mut words = path.iter().peekable();
        let is_relative = matches!(path[0].as_str(), "self" | "super");
        while let Some(word) = words.peek().filter(|word| matches!(word.as_str(), "self" | "super")) {
            if *word == "super" {
                here.pop();
            }
            words.next();
        }
        if !is_relative {
            return path;
        }
        ["crate".to_owned()].into_iter().chain(here).chain(words.cloned()).collect()
    }

    fn import(&mut self, tree: &syn::UseTree, before: &Path, is_public: bool) {
        let with = |name: &syn::Ident| [&before[..], &[name.to_string()]].concat();
        let (name, path) = match tree {
            syn::UseTree::Path(tree) => return self.import(&tree.tree, &with(&tree.ident), is_public),
            syn::UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.import(tree, before, is_public));
            }
            syn::UseTree::Name(tree) if tree.ident == "self" => (before.last().cloned(), before.clone()),
            syn::UseTree::Name(tree) => (Some(tree.ident.to_string()), with(&tree.ident)),
            syn::UseTree::Rename(tree) => (Some(tree.rename.to_string()), with(&tree.ident)),
            syn::UseTree::Glob(_) => (Some("*".to_owned()), before.clone()),
        };
        let Some(name) = name else { return };
        let mut path = self.absolute(path);
        if path[0] == "crate" {
            path.remove(0);
        } else if path.len() > 1 && self.file.defines.contains(&format!("mod {}", path[0])) {
            path = [&self.module[..], &path[..]].concat();
        } else {
            // Another crate.
            return;
        }
        self.file.imports.push(Import { name, path, is_public });
    }

    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Path = Vec::new();
        let mut colons = 0;
        for token in
            tokens.into_iter().chain([TokenTree::Punct(proc_macro2::Punct::new(';', proc_macro2::Spacing::Alone))])
        {
            match token {
                TokenTree::Ident(word) if path.is_empty() || colons == 2 => {
                    path.push(word.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' && !path.is_empty() && colons < 2 => colons += 1,
                other => {
                    self.path(std::mem::take(&mut path));
                    colons = 0;
                    match other {
                        TokenTree::Group(group) => self.tokens(group.stream()),
                        TokenTree::Ident(word) => path.push(word.to_string()),
                        _ => {}
                    }
                }
            }
        }
    }

    fn path(&mut self, path: Path) {
        if !path.is_empty() {
            let path = self.absolute(path);
            self.file.paths.push(path);
        }
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_file(&mut self, file: &'ast syn::File) {
        for item in &file.items {
            let name = match item {
                syn::Item::Const(item) => &item.ident,
                syn::Item::Enum(item) => &item.ident,
                syn::Item::Fn(item) => &item.sig.ident,
                syn::Item::Mod(item) => {
                    self.file.defines.insert(format!("mod {}", item.ident));
                    &item.ident
                }
                syn::Item::Static(item) => &item.ident,
                syn::Item::Struct(item) => &item.ident,
                syn::Item::Trait(item) => &item.ident,
                syn::Item::Type(item) => &item.ident,
                _ => continue,
            };
            self.file.defines.insert(name.to_string());
        }
        visit::visit_file(self, file);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.inside.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.inside.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let is_public = !matches!(item.vis, syn::Visibility::Inherited);
        self.import(&item.tree, &Vec::new(), is_public);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.path(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    // `pub(super)` names a module and uses nothing of it.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

/// Who uses whom among the children of one module, each child with all that is below it.
pub type Siblings<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// The folder of a file, and the child of that folder that it belongs to: `journal/lane/log.rs` is of the child `lane` of
/// `journal`, and of the child `log` of `journal/lane`.
fn places(file: &str) -> impl Iterator<Item = (&str, &str)> {
    let path = file.trim_end_matches(".rs");
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]).collect::<Vec<_>>();
    let starts = [0].into_iter().chain(path.match_indices('/').map(|(at, _)| at + 1)).collect::<Vec<_>>();
    starts.into_iter().zip(ends).map(|(start, end)| (path[..start].trim_end_matches('/'), &path[start..end]))
}

/// For each folder, which of its children use each other.
pub fn siblings<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeMap<&'a str, Siblings<'a>> {
    let mut folders: BTreeMap<&str, Siblings<'_>> = BTreeMap::new();
    for (from, targets) in edges {
        for target in targets {
            let both = places(from).zip(places(target));
            if let Some(((folder, one), (_, other))) = both.into_iter().find(|(one, other)| one != other) {
                folders.entry(folder).or_default().entry(one).or_default().insert(other);
            }
        }
    }
    folders
}

/// Children that use their parent and are used by it, by parent.
pub fn entangled<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (parent, targets) in edges {
        let below = format!("{}/", parent.trim_end_matches(".rs"));
        let used = targets.iter().filter(|target| target.starts_with(&below));
        for child in used.filter_map(|target| target[below.len()..].split(['/', '.']).next()) {
            let (file, folder) = (format!("{below}{child}.rs"), format!("{below}{child}/"));
            let mut of_child = edges.iter().filter(|(from, _)| **from == file || from.starts_with(&folder));
            if of_child.any(|(_, targets)| targets.contains(parent)) {
                found.entry(parent).or_default().insert(child);
            }
        }
    }
    found
}

/// Groups of which each member uses each other one, by way of others or at once.
pub fn cycles<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<Vec<&'a str>> {
    let reached = |from: &'a str| {
        let mut found: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&str> = edges.get(from).into_iter().flatten().copied().collect();
        while let Some(next) = open.pop() {
            if found.insert(next) {
                open.extend(edges.get(next).into_iter().flatten());
            }
        }
        found
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> = edges.keys().map(|file| (*file, reached(file))).collect();
    let mut seen = BTreeSet::new();
    let mut cycles = Vec::new();
    for (file, targets) in &reached {
        if targets.contains(file) && !seen.contains(file) {
            let cycle: Vec<&str> = targets
                .iter()
                .filter(|other| reached.get(*other).is_some_and(|reached| reached.contains(file)))
                .copied()
                .collect();
            seen.extend(cycle.iter().copied());
            cycles.push(cycle);
        }
    }
    cycles
}

#[test]
fn a_use_leads_to_the_definition_and_cycles_are_found() {
    let edges = |files: [(&str, &str); 3]| {
        let parsed = files.map(|(name, text)| (name.to_owned(), Source::parse(name.to_owned(), text.to_owned())));
        let imports = Imports::of(&parsed.into_iter().collect());
        let owned =
            |(file, used): (&str, BTreeSet<&str>)| (file.to_owned(), used.into_iter().map(str::to_owned).collect());
        imports.edges().into_iter().map(owned).collect::<BTreeMap<String, BTreeSet<String>>>()
    };
    let parent = "mod one; mod two; pub use one::Shared; pub struct Own; fn run() { println!(\"{}\", two::run()); }";
    let child = "use super::Shared; pub fn run() -> u8 { Shared::NUMBER }";
    let found = |parent: &str, one: &str, two: &str| {
        let edges = edges([("top.rs", parent), ("top/one.rs", one), ("top/two.rs", two)]);
        let view =
            edges.iter().map(|(file, used)| (file.as_str(), used.iter().map(String::as_str).collect())).collect();
        let siblings = siblings(&view);
        let in_cycles: usize = siblings.values().flat_map(cycles).map(|cycle| cycle.len()).sum();
        (in_cycles, entangled(&view).values().map(BTreeSet::len).sum::<usize>())
    };
    assert_eq!(found(parent, "pub struct Shared;", child), (0, 0), "the parent only re-exports what the child uses");
    assert_eq!(found(parent, "pub struct Shared(super::two::Other);", child), (2, 0), "children use each other");
    assert_eq!(found(parent, "pub struct Shared;", "use super::Own; pub fn run() {}"), (0, 1), "parent and child do");
    let variable = "mod one; mod two; pub struct Own; fn run(two: u8) { println!(\"{two} {}\", two); }";
    assert_eq!(found(variable, "pub struct Shared;", "use super::Own;"), (0, 0), "a variable is no module");
    let tested = "pub fn run() {} #[cfg(test)] mod tests { use super::super::Own; }";
    assert_eq!(found(parent, "pub struct Shared;", tested), (0, 0), "tests may");
}
