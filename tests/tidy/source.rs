//! The files of `src`, parsed.

use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A function without those of tests.
pub struct Function {
    pub name: String,
    pub line: usize,
    /// From the first word of its signature to its last bracket.
    pub lines: usize,
    /// `self` counts.
    pub parameters: usize,
}

/// One file of `src`.
pub struct Source {
    /// Relative to `src`, such as `journal/block.rs`.
    pub name: String,
    pub text: String,
    pub tree: syn::File,
    /// Lines that belong to no test, comments and empty lines included.
    pub lines: usize,
    pub functions: Vec<Function>,
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

impl Source {
    pub fn parse(name: String, text: String) -> Self {
        let mut tree = syn::parse_file(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut tests = TestLines::default();
        tests.visit_file(&tree);
        let lines = text.lines().count() - tests.0.len();
        WithoutTests.clean(&mut tree);
        let mut functions = Functions::default();
        functions.visit_file(&tree);
        Self { name, text, tree, lines, functions: functions.0 }
    }

    /// All files, by name.
    pub fn all() -> BTreeMap<String, Self> {
        fn walk(folder: &Path, found: &mut BTreeMap<String, Source>) {
            for entry in std::fs::read_dir(folder).expect("src") {
                let path = entry.expect("entry").path();
                if path.is_dir() {
                    walk(&path, found);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let name = path.strip_prefix(root().join("src")).expect("inside src").display().to_string();
                    let text = std::fs::read_to_string(&path).expect("text");
                    found.insert(name.clone(), Source::parse(name, text));
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(&root().join("src"), &mut found);
        found
    }

    /// The names in its code, each once.
    pub fn identifiers(&self) -> BTreeSet<String> {
        fn collect(tokens: TokenStream, found: &mut BTreeSet<String>) {
            for token in tokens {
                match token {
                    TokenTree::Ident(word) => drop(found.insert(word.to_string())),
                    TokenTree::Group(group) => collect(group.stream(), found),
                    _ => {}
                }
            }
        }
        let mut found = BTreeSet::new();
        collect(self.text.parse().expect("tokens"), &mut found);
        found
    }

    /// The top-level module that it belongs to: `journal` for `journal/block.rs`.
    pub fn module(&self) -> &str {
        self.name.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// The path of its module: `["journal", "block"]`; empty for `lib.rs`.
    pub fn path(&self) -> Vec<String> {
        let path = self.name.trim_end_matches(".rs");
        if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
    }
}

pub fn is_of_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::ExternCrate(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Line numbers of what is compiled for tests only.
#[derive(Default)]
struct TestLines(BTreeSet<usize>);

impl TestLines {
    fn add(&mut self, span: proc_macro2::Span) {
        self.0.extend(span.start().line..=span.end().line);
    }
}

impl<'ast> Visit<'ast> for TestLines {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if is_of_tests(attributes(item)) {
            self.add(item.span());
        } else {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if is_of_tests(&function.attrs) {
            self.add(function.span());
        }
    }
}

/// Removes what is compiled for tests only.
struct WithoutTests;

impl WithoutTests {
    fn clean(&self, tree: &mut syn::File) {
        self.items(&mut tree.items);
    }

    fn items(&self, items: &mut Vec<syn::Item>) {
        items.retain(|item| !is_of_tests(attributes(item)));
        for item in items {
            match item {
                syn::Item::Mod(module) => {
                    if let Some((_, items)) = &mut module.content {
                        self.items(items);
                    }
                }
                syn::Item::Impl(block) => block
                    .items
                    .retain(|item| !matches!(item, syn::ImplItem::Fn(function) if is_of_tests(&function.attrs))),
                _ => {}
            }
        }
    }
}

#[derive(Default)]
struct Functions(Vec<Function>);

impl Functions {
    fn add(&mut self, signature: &syn::Signature, visibility: Option<&syn::Visibility>, block: &syn::Block) {
        let start = match visibility {
            Some(visibility @ (syn::Visibility::Public(_) | syn::Visibility::Restricted(_))) => visibility.span(),
            _ => signature.span(),
        };
        let line = start.start().line;
        let lines = block.span().end().line - line + 1;
        self.0.push(Function { name: signature.ident.to_string(), line, lines, parameters: signature.inputs.len() });
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig, Some(&function.vis), &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig, Some(&function.vis), &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.add(&function.sig, None, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}
