//! Reads a schema into nodes.
//!
//! First all resources (`$id`) and anchors are found, then each schema that is reached is read, and what it refers to.

use super::super::json;
use super::format::Format;
use super::{Id, Keyword, Node, Pattern, Schema, Types, number};
use fluent_uri::{Uri, UriRef};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Number, Value};
use std::borrow::Cow;
use std::collections::HashMap;

/// How often a pattern with look-around may go back in a text before it is given up.
const BACKTRACKS_MAX: usize = 10_000;
/// How a schema says that it is one of this draft.
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
/// What a schema is called that has no `$id`.
const NAMELESS: &str = "forebay:/";

/// Keywords that hold one schema.
const ONE: [&str; 11] = [
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Keywords that hold a list of schemas.
const LIST: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
/// Keywords that hold schemas by name.
const NAMED: [&str; 5] = ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

/// Compiles a pattern in the dialect of JavaScript.
fn regex(pattern: &str) -> Option<fancy_regex::Regex> {
    if !jsonschema_regex::is_valid_ecma_regex(pattern) {
        return None;
    }
    let translated = jsonschema_regex::to_rust_regex(pattern).ok()?;
    fancy_regex::RegexBuilder::new(&translated).backtrack_limit(BACKTRACKS_MAX).build().ok()
}

/// What a document calls by one `$id`.
struct Resource<'v> {
    uri: Uri<String>,
    root: &'v Value,
    /// What `$anchor` and `$dynamicAnchor` name, and whether it is the second.
    anchors: Vec<(&'v str, &'v Value, bool)>,
}

struct Compiler<'v> {
    resources: Vec<Resource<'v>>,
    /// The resource each schema is in, by its address in the document.
    within: HashMap<*const Value, usize>,
    nodes: Vec<Node>,
    /// What has a node, by its address.
    known: HashMap<*const Value, Id>,
    /// What has a node that is still empty.
    unread: Vec<(Id, &'v Value, String)>,
}

pub(super) fn compile(schema: &Value) -> Result<Schema, String> {
    let uri = Uri::parse(NAMELESS).map_err(|error| error.to_string())?.to_owned();
    let mut compiler = Compiler {
        resources: vec![Resource { uri, root: schema, anchors: Vec::new() }],
        within: HashMap::new(),
        nodes: Vec::new(),
        known: HashMap::new(),
        unread: Vec::new(),
    };
    compiler.find(schema, 0, "")?;
    let root = compiler.node(schema, 0, String::new());
    let mut dynamic = Vec::new();
    for resource in 0..compiler.resources.len() {
        let anchors: Vec<_> = compiler.resources[resource].anchors.iter().filter(|anchor| anchor.2).copied().collect();
        let named = anchors
            .into_iter()
            .map(|(name, value, _)| (name.to_owned(), compiler.node(value, resource, format!("#{name}"))));
        dynamic.push(named.collect());
    }
    while let Some((id, value, place)) = compiler.unread.pop() {
        compiler.read(id, value, &place)?;
    }
    let schema = Schema { nodes: compiler.nodes, root, dynamic };
    match turns_on_itself(&schema) {
        true => Err("refers to itself without going into the value: no payload could ever be checked".into()),
        false => Ok(schema),
    }
}

fn from(value: &Value) -> *const Value {
    std::ptr::from_ref(value)
}

impl<'v> Compiler<'v> {
    /// Finds the resources and anchors of a schema and of what is in it.
    fn find(&mut self, schema: &'v Value, mut resource: usize, place: &str) -> Result<(), String> {
        if let Value::Object(keywords) = schema {
            if let Some(id) = keywords.get("$id") {
                let id = text(id).map_err(|error| format!("{place}/$id: {error}"))?;
                let uri = self.resources[resource].resolve(id).map_err(|error| format!("{place}/$id: {error}"))?;
                if self.resources.iter().any(|known| known.uri.as_str() == uri.as_str()) {
                    return Err(format!("{place}/$id: \"{uri}\" is there twice"));
                }
                resource = self.resources.len();
                self.resources.push(Resource { uri, root: schema, anchors: Vec::new() });
            }
            for (keyword, is_dynamic) in [("$anchor", false), ("$dynamicAnchor", true)] {
                if let Some(anchor) = keywords.get(keyword) {
                    let wrong = |error: String| format!("{place}/{keyword}: {error}");
                    let name = text(anchor).map_err(wrong)?;
                    if !is_anchor(name) {
                        return Err(wrong(format!(
                            "\"{name}\" is no name for a part; expected a letter or \"_\", then also digits, \".\", \"-\""
                        )));
                    }
                    let anchors = &mut self.resources[resource].anchors;
                    if anchors.iter().any(|(known, ..)| *known == name) {
                        return Err(wrong(format!("\"{name}\" is there twice")));
                    }
                    anchors.push((name, schema, is_dynamic));
                }
            }
            for (keyword, value) in keywords {
                let place = step(place, keyword);
                match (keyword.as_str(), value) {
                    (name, Value::Array(list)) if LIST.contains(&name) => {
                        for (index, schema) in list.iter().enumerate() {
                            self.find(schema, resource, &format!("{place}/{index}"))?;
                        }
                    }
                    (name, Value::Object(named)) if NAMED.contains(&name) => {
                        for (name, schema) in named {
                            self.find(schema, resource, &step(&place, name))?;
                        }
                    }
                    (name, value) if ONE.contains(&name) => {
                        self.find(value, resource, &place)?;
                    }
                    _ => {}
                }
            }
        }
        self.within.insert(from(schema), resource);
        Ok(())
    }

    /// The node of a schema, which is read later if it is new.
    fn node(&mut self, schema: &'v Value, resource: usize, place: String) -> Id {
        if let Some(id) = self.known.get(&from(schema)) {
            return *id;
        }
        let resource = *self.within.entry(from(schema)).or_insert(resource);
        let id = self.nodes.len();
        self.nodes.push(Node { resource, ..Node::default() });
        self.known.insert(from(schema), id);
        self.unread.push((id, schema, place));
        id
    }

    /// Reads the keywords of a schema into its node.
    fn read(&mut self, id: Id, schema: &'v Value, place: &str) -> Result<(), String> {
        let keywords = match schema {
            Value::Bool(true) => return Ok(()),
            Value::Bool(false) => {
                self.nodes[id].keywords.push(Keyword::Never);
                return Ok(());
            }
            Value::Object(keywords) => keywords,
            _ => return Err(format!("{}: is no schema; expected an object, true or false", at(place))),
        };
        let resource = self.nodes[id].resource;
        let mut read = Vec::new();
        for (name, value) in keywords {
            let place = step(place, name);
            let keyword = self.keyword(name, value, keywords, resource, &place);
            read.extend(keyword.map_err(|error| format!("{place}: {error}"))?);
        }
        // Cheap ones first; what asks for the rest comes after all that may leave one.
        read.sort_by_key(Keyword::turn);
        let node = &mut self.nodes[id];
        node.asks_for_rest =
            read.iter().any(|k| matches!(k, Keyword::UnevaluatedItems(_) | Keyword::UnevaluatedProperties(_)));
        node.keywords = read;
        Ok(())
    }

    /// A keyword; `None` where it asserts nothing by itself.
    fn keyword(
        &mut self,
        name: &str,
        value: &'v Value,
        all: &'v Map<String, Value>,
        resource: usize,
        place: &str,
    ) -> Result<Option<Keyword>, String> {
        let one = |compiler: &mut Self| compiler.node(value, resource, place.to_owned());
        Ok(Some(match name {
            "$schema" => return check_draft(text(value)?).map(|()| None),
            "type" => Keyword::Type(types(value)?),
            "enum" => Keyword::Enum(list(value)?.clone()),
            "const" => Keyword::Const(value.clone()),
            "maximum" => Keyword::Maximum(number(value)?),
            "exclusiveMaximum" => Keyword::ExclusiveMaximum(number(value)?),
            "minimum" => Keyword::Minimum(number(value)?),
            "exclusiveMinimum" => Keyword::ExclusiveMinimum(number(value)?),
            "multipleOf" => match number(value)? {
                step if number::compare(&step, &0.into()).is_gt() => Keyword::MultipleOf(step),
                step => return Err(format!("is {step}; expected a number above 0")),
            },
            "maxLength" => Keyword::MaxLength(count(value)?),
            "minLength" => Keyword::MinLength(count(value)?),
            "pattern" => Keyword::Pattern(pattern(text(value)?)?),
            "format" => return Ok(Format::named(text(value)?).map(Keyword::Format)),
            "maxItems" => Keyword::MaxItems(count(value)?),
            "minItems" => Keyword::MinItems(count(value)?),
            "uniqueItems" => return Ok(truth(value)?.then_some(Keyword::UniqueItems)),
            "prefixItems" => Keyword::Items {
                first: self.listed(value, resource, place)?,
                rest: self.beside("items", all, resource, place),
            },
            "items" if all.contains_key("prefixItems") => return Ok(None),
            "items" => Keyword::Items { first: Vec::new(), rest: Some(one(self)) },
            "contains" => Keyword::Contains {
                node: one(self),
                // A mistake in either is told at its own place.
                min: all.get("minContains").map_or(1, |min| count(min).unwrap_or(1)),
                max: all.get("maxContains").and_then(|max| count(max).ok()),
            },
            "minContains" | "maxContains" => return count(value).map(|_| None),
            "maxProperties" => Keyword::MaxProperties(count(value)?),
            "minProperties" => Keyword::MinProperties(count(value)?),
            "required" => Keyword::Required(texts(value)?),
            "dependentRequired" => {
                let of = object(value)?.iter().map(|(name, names)| Ok((name.clone(), texts(names)?)));
                Keyword::DependentRequired(of.collect::<Result<_, String>>()?)
            }
            "propertyNames" => Keyword::PropertyNames(one(self)),
            // The three know of each other: the first of them that is there reads all.
            "properties" | "patternProperties" | "additionalProperties" => {
                match name {
                    "properties" => drop(object(value)?),
                    "patternProperties" => object(value)?.keys().try_for_each(|written| pattern(written).map(drop))?,
                    _ => {}
                }
                let first = ["properties", "patternProperties", "additionalProperties"];
                if first.iter().find(|name| all.contains_key(**name)) != Some(&name) {
                    return Ok(None);
                }
                self.properties(all, resource, place)?
            }
            "dependentSchemas" => Keyword::DependentSchemas(self.named(value, resource, place)?),
            "$ref" => Keyword::Ref(self.referred(text(value)?, resource)?.0),
            "$dynamicRef" => match self.referred(text(value)?, resource)? {
                (at_first, Some(name)) => Keyword::DynamicRef { name, at_first },
                (id, None) => Keyword::Ref(id),
            },
            "allOf" => Keyword::AllOf(self.some(value, resource, place)?),
            "anyOf" => Keyword::AnyOf(self.some(value, resource, place)?),
            "oneOf" => Keyword::OneOf(self.some(value, resource, place)?),
            "not" => Keyword::Not(one(self)),
            "if" => Keyword::If {
                test: one(self),
                then: self.beside("then", all, resource, place),
                otherwise: self.beside("else", all, resource, place),
            },
            "unevaluatedItems" => Keyword::UnevaluatedItems(one(self)),
            "unevaluatedProperties" => Keyword::UnevaluatedProperties(one(self)),
            // What nothing uses is read all the same: a mistake in it is to be told now.
            "$defs" | "definitions" => {
                self.named(value, resource, place)?;
                return Ok(None);
            }
            "then" | "else" | "contentSchema" => {
                one(self);
                return Ok(None);
            }
            _ => return Ok(None),
        }))
    }

    fn properties(&mut self, all: &'v Map<String, Value>, resource: usize, place: &str) -> Result<Keyword, String> {
        let beside = place.rsplit_once('/').map_or("", |(before, _)| before);
        let mut named = match all.get("properties") {
            Some(value @ Value::Object(_)) => self.named(value, resource, &format!("{beside}/properties"))?,
            _ => Vec::new(),
        };
        named.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut patterns = Vec::new();
        // A mistake in these is told at their own place.
        if let Some(value @ Value::Object(_)) = all.get("patternProperties") {
            for (written, id) in self.named(value, resource, &format!("{beside}/patternProperties"))? {
                if let Ok(pattern) = pattern(&written) {
                    patterns.push((pattern, id));
                }
            }
        }
        Ok(Keyword::Properties { named, patterns, others: self.beside("additionalProperties", all, resource, place) })
    }

    /// The schema of a keyword in the same object.
    fn beside(&mut self, name: &str, all: &'v Map<String, Value>, resource: usize, place: &str) -> Option<Id> {
        let beside = place.rsplit_once('/').map_or("", |(before, _)| before);
        all.get(name).map(|value| self.node(value, resource, format!("{beside}/{name}")))
    }

    fn listed(&mut self, value: &'v Value, resource: usize, place: &str) -> Result<Vec<Id>, String> {
        let schemas = list(value)?.iter().enumerate();
        Ok(schemas.map(|(index, schema)| self.node(schema, resource, format!("{place}/{index}"))).collect())
    }

    /// A list with at least one schema.
    fn some(&mut self, value: &'v Value, resource: usize, place: &str) -> Result<Vec<Id>, String> {
        match self.listed(value, resource, place)? {
            none if none.is_empty() => Err("is empty; expected at least one schema".into()),
            some => Ok(some),
        }
    }

    fn named(&mut self, value: &'v Value, resource: usize, place: &str) -> Result<Vec<(String, Id)>, String> {
        let schemas = object(value)?.iter();
        Ok(schemas.map(|(name, schema)| (name.clone(), self.node(schema, resource, step(place, name)))).collect())
    }

    /// What a reference leads to, and the name of the `$dynamicAnchor` that it leads to it by.
    fn referred(&mut self, reference: &str, resource: usize) -> Result<(Id, Option<String>), String> {
        let (before, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let mut resource = resource;
        if !before.is_empty() {
            let uri = self.resources[resource].resolve(before)?;
            let found = self.resources.iter().rposition(|known| known.uri.as_str() == uri.as_str());
            resource = found.ok_or_else(|| {
                format!("\"{reference}\" is not in this file; put what it means under \"$defs\", with its \"$id\"")
            })?;
        }
        let nowhere = || format!("\"{reference}\" leads nowhere in this file");
        let fragment = percent_decode_str(fragment).decode_utf8().map_err(|_| nowhere())?;
        if !fragment.is_empty() && !fragment.starts_with('/') {
            let anchors = &self.resources[resource].anchors;
            let (name, schema, is_dynamic) =
                anchors.iter().find(|(name, ..)| **name == *fragment).ok_or_else(nowhere)?;
            let (name, is_dynamic) = ((*name).to_owned(), *is_dynamic);
            let id = self.node(schema, resource, format!("#{name}"));
            return Ok((id, is_dynamic.then_some(name)));
        }
        let mut schema = self.resources[resource].root;
        for step in fragment.split('/').skip(1) {
            let step = json::unescaped(step);
            schema = match schema {
                Value::Array(items) => step.parse::<usize>().ok().and_then(|index| items.get(index)),
                Value::Object(members) => members.get(&step),
                _ => None,
            }
            .ok_or_else(nowhere)?;
            resource = self.within.get(&from(schema)).copied().unwrap_or(resource);
        }
        Ok((self.node(schema, resource, fragment.into_owned()), None))
    }
}

impl Resource<'_> {
    /// The absolute form of a reference in this resource, without its fragment.
    fn resolve(&self, reference: &str) -> Result<Uri<String>, String> {
        let wrong = || format!("\"{reference}\" is no reference such as \"https://example.com/order.json\"");
        let (before, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        if !fragment.is_empty() {
            return Err(format!("\"{reference}\" has a fragment; a name for a part is an \"$anchor\""));
        }
        let parsed = UriRef::parse(before).map_err(|_| wrong())?;
        // Nothing is relative to a base without a path, such as a URN.
        parsed.resolve_against(&self.uri).or_else(|_| Uri::parse(before.to_owned())).map_err(|_| wrong())
    }
}

impl Keyword {
    /// When it is asked: what costs little comes first, and what asks for the rest comes last.
    fn turn(&self) -> u8 {
        match self {
            Self::UnevaluatedItems(_) | Self::UnevaluatedProperties(_) => 3,
            Self::Ref(_) | Self::DynamicRef { .. } | Self::AllOf(_) | Self::AnyOf(_) | Self::OneOf(_) => 2,
            Self::Not(_) | Self::If { .. } | Self::DependentSchemas(_) => 2,
            Self::Items { .. } | Self::Contains { .. } | Self::Properties { .. } | Self::PropertyNames(_) => 1,
            _ => 0,
        }
    }

    /// The schemas that it asks of the same value.
    fn asked_of_the_same<'s>(&'s self, schema: &'s Schema) -> Box<dyn Iterator<Item = Id> + 's> {
        match self {
            Self::Ref(id) | Self::Not(id) => Box::new(std::iter::once(*id)),
            Self::AllOf(ids) | Self::AnyOf(ids) | Self::OneOf(ids) => Box::new(ids.iter().copied()),
            Self::If { test, then, otherwise } => Box::new([Some(*test), *then, *otherwise].into_iter().flatten()),
            Self::DependentSchemas(of) => Box::new(of.iter().map(|(_, id)| *id)),
            Self::DynamicRef { name, at_first } => {
                let named = schema.dynamic.iter().flatten().filter(move |(known, _)| known == name).map(|(_, id)| *id);
                Box::new(named.chain([*at_first]))
            }
            _ => Box::new(std::iter::empty()),
        }
    }
}

/// Whether some schema asks itself of the same value.
fn turns_on_itself(schema: &Schema) -> bool {
    // Those that nothing is left in the way of are taken out, until none or only circles are left.
    let asked: Vec<Vec<Id>> = schema
        .nodes
        .iter()
        .map(|node| node.keywords.iter().flat_map(|keyword| keyword.asked_of_the_same(schema)).collect())
        .collect();
    let mut waiting = vec![0_usize; asked.len()];
    asked.iter().flatten().for_each(|id| waiting[*id] += 1);
    let mut free: Vec<Id> = (0..asked.len()).filter(|id| waiting[*id] == 0).collect();
    let mut taken = 0;
    while let Some(id) = free.pop() {
        taken += 1;
        for next in &asked[id] {
            waiting[*next] -= 1;
            if waiting[*next] == 0 {
                free.push(*next);
            }
        }
    }
    taken < asked.len()
}

/// Refuses other drafts: some of their keywords would silently mean nothing here.
fn check_draft(uri: &str) -> Result<(), String> {
    let bare = uri.trim_end_matches('#');
    if bare != DRAFT && bare.contains("json-schema.org/draft") {
        return Err(format!("\"{uri}\" is another draft; expected \"{DRAFT}\""));
    }
    Ok(())
}

/// Whether a name can be one of a part (JSON Schema Core 2020-12, section 8.2.2).
fn is_anchor(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
}

/// The pointer to what has this name in what is at `place`.
fn step(place: &str, name: &str) -> String {
    format!("{place}/{}", json::escaped(name))
}

/// A place for a message.
fn at(place: &str) -> Cow<'_, str> {
    if place.is_empty() { "the whole".into() } else { place.into() }
}

fn types(value: &Value) -> Result<Types, String> {
    let named = |value: &Value| {
        let name = text(value)?;
        Types::named(name).ok_or_else(|| {
            let known = Types::NAMES.map(|name| format!("\"{name}\"")).join(", ");
            format!("\"{name}\" is no type; expected one of {known}")
        })
    };
    match value {
        Value::Array(none) if none.is_empty() => Err("is empty; expected at least one type".into()),
        Value::Array(names) => names.iter().try_fold(Types(0), |types, name| Ok(Types(types.0 | named(name)?.0))),
        name => named(name),
    }
}

fn pattern(written: &str) -> Result<Pattern, String> {
    let compiled =
        regex(written).ok_or_else(|| format!("\"{written}\" is no regular expression of JavaScript (ECMA-262)"))?;
    let backreference = |pair: &[u8]| pair[0] == b'\\' && (pair[1] == b'k' || (b'1'..=b'9').contains(&pair[1]));
    let looks_around = ["(?=", "(?!", "(?<=", "(?<!"].iter().any(|sign| written.contains(sign))
        || written.as_bytes().windows(2).any(backreference);
    Ok(Pattern { written: written.to_owned(), compiled, looks_around })
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("is {value}; expected a string"))
}

fn texts(value: &Value) -> Result<Vec<String>, String> {
    list(value)?.iter().map(|value| text(value).map(str::to_owned)).collect()
}

fn list(value: &Value) -> Result<&Vec<Value>, String> {
    value.as_array().ok_or_else(|| "is no list".into())
}

fn object(value: &Value) -> Result<&Map<String, Value>, String> {
    value.as_object().ok_or_else(|| "is no object".into())
}

fn truth(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("is {value}; expected true or false"))
}

fn number(value: &Value) -> Result<Number, String> {
    value.as_number().cloned().ok_or_else(|| format!("is {value}; expected a number"))
}

fn count(value: &Value) -> Result<usize, String> {
    let wrong = || format!("is {value}; expected a whole number from 0");
    number::count(&number(value)?).ok_or_else(wrong)
}
