//! A JSON Schema of draft 2020-12, compiled once and then asked of each payload.
//!
//! Promise: a payload passes when the specification says that it is valid, with `format` asserted; what does not pass
//! is told with its place and without its value. No schema and no payload makes it run for ever or out of stack.
//!
//! Not here: other files. A schema refers to itself and to what it holds under `$defs`, never to the network.
//!
//! Why our own: it reads the payload as it is parsed ([`Tree`]) and stops at the first fault, which is all that a dead
//! letter tells; a general library does both for any JSON type, in a fifth of the program's size.

mod compile;
mod format;
mod number;

use super::json::{Tree, push_json_string};
use format::Format;
use number::Decimal;
use serde_json::{Number, Value};
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How many schemas may stand inside each other, over a payload that is nested as deep as JSON may be here (128).
const DEPTH_MAX: u32 = 500;
/// How many schemas may be asked for one payload, about a second's worth: more than once for each byte of the largest.
const STEPS_MAX: u64 = 10_000_000;
/// How much of a member's name, and of a whole place, a fault tells.
const NAME_SHOWN: usize = 64;
const PLACE_SHOWN: usize = 1000;
/// How many choices of an `enum` a message names.
const CHOICES_SHOWN: usize = 10;

/// A compiled schema.
#[derive(Debug)]
pub struct Schema {
    nodes: Vec<Node>,
    root: Id,
    /// What `$dynamicAnchor` names in each resource.
    dynamic: Vec<Vec<(String, Id)>>,
}

/// What is wrong with a payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// The JSON pointer to the value; empty for the whole payload.
    pub place: String,
    /// What the schema wants. Never holds a value of the payload.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.place.is_empty() { "payload" } else { &self.place }, self.message)
    }
}

/// The number of a [`Node`].
type Id = usize;

/// A schema or one inside it: all of its keywords hold.
#[derive(Debug, Default)]
struct Node {
    /// The resource (`$id`) it is in.
    resource: usize,
    keywords: Vec<Keyword>,
    /// Whether it asks what the others left unevaluated.
    asks_for_rest: bool,
}

/// A keyword with what it says, read.
#[derive(Debug)]
enum Keyword {
    /// The schema `false`.
    Never,
    Type(Types),
    Enum(Vec<Value>),
    Const(Value),
    Maximum(Number),
    ExclusiveMaximum(Number),
    Minimum(Number),
    ExclusiveMinimum(Number),
    MultipleOf(Number),
    MaxLength(usize),
    MinLength(usize),
    Pattern(Pattern),
    Format(Format),
    MaxItems(usize),
    MinItems(usize),
    UniqueItems,
    Items {
        first: Vec<Id>,
        rest: Option<Id>,
    },
    Contains {
        node: Id,
        min: usize,
        max: Option<usize>,
    },
    MaxProperties(usize),
    MinProperties(usize),
    Required(Vec<String>),
    DependentRequired(Vec<(String, Vec<String>)>),
    PropertyNames(Id),
    Properties {
        named: Vec<(String, Id)>,
        patterns: Vec<(Pattern, Id)>,
        others: Option<Id>,
    },
    DependentSchemas(Vec<(String, Id)>),
    Ref(Id),
    DynamicRef {
        name: String,
        at_first: Id,
    },
    AllOf(Vec<Id>),
    AnyOf(Vec<Id>),
    OneOf(Vec<Id>),
    Not(Id),
    If {
        test: Id,
        then: Option<Id>,
        otherwise: Option<Id>,
    },
    UnevaluatedItems(Id),
    UnevaluatedProperties(Id),
}

/// The types of JSON, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Types(u8);

impl Types {
    const NAMES: [&str; 7] = ["null", "boolean", "object", "array", "number", "string", "integer"];
    const NUMBER: u8 = 1 << 4;
    const INTEGER: u8 = 1 << 6;

    fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().position(|known| *known == name).map(|bit| Self(1 << bit))
    }

    fn take(self, value: &Tree<'_>) -> bool {
        let is = match value {
            Tree::Null => 1,
            Tree::Bool(_) => 1 << 1,
            Tree::Object(_) => 1 << 2,
            Tree::Array(_) => 1 << 3,
            Tree::Number(number) if number::is_whole(number) => Self::NUMBER | Self::INTEGER,
            Tree::Number(_) => Self::NUMBER,
            Tree::Text(_) => 1 << 5,
        };
        self.0 & is != 0
    }
}

impl fmt::Display for Types {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Self::NAMES.iter().enumerate().filter(|(bit, _)| self.0 & 1 << bit != 0);
        f.write_str(&names.map(|(_, name)| format!("\"{name}\"")).collect::<Vec<_>>().join(" or "))
    }
}

/// A regular expression in the dialect of JavaScript (ECMA-262), with a bound on how far it looks back.
#[derive(Debug)]
struct Pattern {
    written: String,
    compiled: fancy_regex::Regex,
    /// Whether it has look-around or refers to what it has matched.
    looks_around: bool,
}

impl Pattern {
    /// Whether it is found in the text.
    fn is_in(&self, text: &str, way: Way<'_>) -> bool {
        let length = text.len() as u64;
        // Without look-around the time grows with the text; with it, with its square.
        let steps = if self.looks_around { 2_000 + length * length / 16 } else { 1 + length / 8 };
        if !way.effort.spend(steps) {
            return false;
        }
        // The engine below panics on some patterns (rust-lang/regex, issue 1344).
        let found = catch_unwind(AssertUnwindSafe(|| self.compiled.is_match(text)));
        found.ok().and_then(Result::ok).unwrap_or_else(|| {
            way.effort.give_up("takes too long to be matched with a pattern of its schema");
            false
        })
    }
}

/// Where in the payload a value stands.
#[derive(Clone, Copy)]
enum Place<'p> {
    Whole,
    Member(&'p Place<'p>, &'p str),
    Item(&'p Place<'p>, usize),
}

impl Place<'_> {
    /// As a JSON pointer. What devices put into names is shortened where it is long, and shown where it is invisible.
    fn pointer(&self) -> String {
        let mut pointer = String::new();
        self.push(&mut pointer);
        if let Some((end, _)) = pointer.char_indices().nth(PLACE_SHOWN) {
            pointer.truncate(end);
            pointer.push('…');
        }
        pointer
    }

    fn push(&self, out: &mut String) {
        match self {
            Self::Whole => {}
            Self::Item(whole, index) => {
                whole.push(out);
                out.push_str(&format!("/{index}"));
            }
            Self::Member(whole, name) => {
                whole.push(out);
                out.push('/');
                for letter in name.chars().take(NAME_SHOWN) {
                    match letter {
                        '~' => out.push_str("~0"),
                        '/' => out.push_str("~1"),
                        letter if letter.is_control() => out.push(char::REPLACEMENT_CHARACTER),
                        letter => out.push(letter),
                    }
                }
                if name.chars().nth(NAME_SHOWN).is_some() {
                    out.push('…');
                }
            }
        }
    }
}

/// The resources that were entered on the way to a schema, the newest first: what `$dynamicRef` looks through.
#[derive(Clone, Copy)]
struct Scope<'p> {
    resource: usize,
    outer: Option<&'p Scope<'p>>,
}

/// How a schema came to be asked.
#[derive(Clone, Copy)]
struct Way<'p> {
    place: &'p Place<'p>,
    scope: &'p Scope<'p>,
    depth: u32,
    effort: &'p Effort,
}

/// What checking one payload may cost.
struct Effort {
    left: Cell<u64>,
    /// Why it was given up. The payload is refused then, whatever a `not` makes of it.
    given_up: Cell<Option<&'static str>>,
}

impl Effort {
    /// Takes so many steps from what is left; false where there is no going on.
    fn spend(&self, steps: u64) -> bool {
        match self.left.get().checked_sub(steps) {
            Some(left) => self.left.set(left),
            None => self.give_up("takes too long to be checked with its schema"),
        }
        self.given_up.get().is_none()
    }

    fn give_up(&self, why: &'static str) {
        self.left.set(0);
        self.given_up.set(self.given_up.get().or(Some(why)));
    }
}

/// Which members or items of one value some schema has evaluated.
struct Seen(Vec<bool>);

impl Seen {
    fn none_of(value: &Tree<'_>) -> Self {
        Self(vec![false; members(value).len().max(items(value).len())])
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(seen, also)| *seen |= also);
    }
}

fn members<'t, 'a>(value: &'t Tree<'a>) -> &'t [(Cow<'a, str>, Tree<'a>)] {
    if let Tree::Object(members) = value { members } else { &[] }
}

fn items<'t, 'a>(value: &'t Tree<'a>) -> &'t [Tree<'a>] {
    if let Tree::Array(items) = value { items } else { &[] }
}

/// Where a fault is noted; `None` where only whether there is one counts.
type Told<'t> = Option<&'t mut Fault>;

fn tell(told: &mut Told<'_>, place: &Place<'_>, message: impl FnOnce() -> String) -> bool {
    if let Some(fault) = told {
        **fault = Fault { place: place.pointer(), message: message() };
    }
    false
}

impl Schema {
    /// Compiles a schema.
    ///
    /// # Errors
    /// What is no schema of draft 2020-12, with the JSON pointer to it.
    pub fn compile(schema: &Value) -> Result<Self, String> {
        compile::compile(schema)
    }

    /// Checks a payload.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self, payload: &Tree<'_>) -> Result<(), Fault> {
        let mut fault = Fault::default();
        let scope = Scope { resource: self.nodes[self.root].resource, outer: None };
        let effort = Effort { left: Cell::new(STEPS_MAX), given_up: Cell::new(None) };
        let way = Way { place: &Place::Whole, scope: &scope, depth: 0, effort: &effort };
        let holds = self.holds(self.root, payload, way, None, Some(&mut fault));
        match effort.given_up.get() {
            Some(why) => Err(Fault { message: why.into(), ..Fault::default() }),
            None if holds => Ok(()),
            None => Err(fault),
        }
    }

    /// Whether `value` is valid. What was evaluated of it goes to `seen`, what is wrong to `told`.
    fn holds(&self, id: Id, value: &Tree<'_>, way: Way<'_>, seen: Option<&mut Seen>, mut told: Told<'_>) -> bool {
        let node = &self.nodes[id];
        if way.depth >= DEPTH_MAX {
            way.effort.give_up("is nested too deep for its schema");
        }
        if !way.effort.spend(1) {
            return false;
        }
        let inner = Scope { resource: node.resource, outer: Some(way.scope) };
        let scope = if way.scope.resource == node.resource { way.scope } else { &inner };
        let way = Way { scope, depth: way.depth + 1, ..way };
        let mut own = (seen.is_some() || node.asks_for_rest).then(|| Seen::none_of(value));
        if !node.keywords.iter().all(|keyword| self.keyword_holds(keyword, value, way, &mut own, &mut told)) {
            return false;
        }
        if let (Some(seen), Some(own)) = (seen, own) {
            seen.add(&own);
        }
        true
    }

    fn keyword_holds(
        &self,
        keyword: &Keyword,
        value: &Tree<'_>,
        way: Way<'_>,
        seen: &mut Option<Seen>,
        told: &mut Told<'_>,
    ) -> bool {
        let of_its_kind = match value {
            Tree::Text(text) => text_holds(keyword, text, way, told),
            Tree::Number(number) => number_holds(keyword, number, way, told),
            Tree::Array(items) => self.array_holds(keyword, items, way, seen, told),
            Tree::Object(_) => self.object_holds(keyword, value, way, seen, told),
            Tree::Null | Tree::Bool(_) => None,
        };
        of_its_kind.unwrap_or_else(|| self.any_holds(keyword, value, way, seen, told))
    }

    /// The keywords that speak of every kind of value. Those that speak of another kind hold.
    fn any_holds(
        &self,
        keyword: &Keyword,
        value: &Tree<'_>,
        way: Way<'_>,
        seen: &mut Option<Seen>,
        told: &mut Told<'_>,
    ) -> bool {
        let place = way.place;
        let quietly = |id: Id, seen: &mut Option<Seen>| self.holds(id, value, way, seen.as_mut(), None);
        match keyword {
            Keyword::Never => tell(told, place, || "is not allowed".into()),
            Keyword::Type(types) => types.take(value) || tell(told, place, || format!("is not of type {types}")),
            Keyword::Enum(choices) => {
                choices.iter().any(|choice| is_same(value, choice))
                    || tell(told, place, || format!("is not one of {}", listed(choices)))
            }
            Keyword::Const(only) => is_same(value, only) || tell(told, place, || format!("is not {only}")),
            Keyword::Ref(id) => self.holds(*id, value, way, seen.as_mut(), told.as_deref_mut()),
            Keyword::DynamicRef { name, at_first } => {
                let mut found = *at_first;
                let mut scope = Some(way.scope);
                while let Some(at) = scope {
                    let named = self.dynamic[at.resource].iter().find(|(known, _)| known == name);
                    found = named.map_or(found, |(_, id)| *id);
                    scope = at.outer;
                }
                self.holds(found, value, way, seen.as_mut(), told.as_deref_mut())
            }
            Keyword::AllOf(all) => all.iter().all(|id| self.holds(*id, value, way, seen.as_mut(), told.as_deref_mut())),
            Keyword::AnyOf(any) => {
                let holds = match seen {
                    None => any.iter().any(|id| quietly(*id, seen)),
                    Some(_) => any.iter().filter(|id| quietly(**id, seen)).count() > 0,
                };
                holds || tell(told, place, || "is none of what \"anyOf\" lists".into())
            }
            Keyword::OneOf(any) => match any.iter().filter(|id| quietly(**id, seen)).take(2).count() {
                1 => true,
                0 => tell(told, place, || "is none of what \"oneOf\" lists".into()),
                _ => tell(told, place, || "is more than one of what \"oneOf\" lists".into()),
            },
            Keyword::Not(id) => !quietly(*id, &mut None) || tell(told, place, || "is what \"not\" excludes".into()),
            Keyword::If { test, then, otherwise } => {
                let branch = if quietly(*test, seen) { then } else { otherwise };
                branch.is_none_or(|id| self.holds(id, value, way, seen.as_mut(), told.as_deref_mut()))
            }
            _ => true,
        }
    }

    /// The keywords that speak of an array.
    fn array_holds(
        &self,
        keyword: &Keyword,
        items: &[Tree<'_>],
        way: Way<'_>,
        seen: &mut Option<Seen>,
        told: &mut Told<'_>,
    ) -> Option<bool> {
        let place = way.place;
        let before = match keyword {
            Keyword::UnevaluatedItems(_) => seen.as_ref().map_or_else(Vec::new, |seen| seen.0.clone()),
            _ => Vec::new(),
        };
        let mut item_holds = |index: usize, id: Id, told: Told<'_>| {
            let place = Place::Item(place, index);
            let holds = self.holds(id, &items[index], Way { place: &place, ..way }, None, told);
            if let (Some(seen), true) = (seen.as_mut(), holds) {
                seen.0[index] = true;
            }
            holds
        };
        Some(match keyword {
            Keyword::MaxItems(max) => {
                items.len() <= *max || tell(told, place, || format!("has more than {}", counted(*max, "item")))
            }
            Keyword::MinItems(min) => {
                items.len() >= *min || tell(told, place, || format!("has less than {}", counted(*min, "item")))
            }
            Keyword::UniqueItems => are_unique(items) || tell(told, place, || "has equal items".into()),
            Keyword::Items { first, rest } => {
                let ids = first.iter().map(|id| Some(*id)).chain(std::iter::repeat(*rest));
                (0..items.len())
                    .zip(ids.map_while(|id| id))
                    .all(|(index, id)| item_holds(index, id, told.as_deref_mut()))
            }
            Keyword::Contains { node, min, max } => {
                let found = (0..items.len()).filter(|index| item_holds(*index, *node, None)).count();
                if found < *min {
                    tell(told, place, || format!("has {found} of the items that it needs {min} of"))
                } else if max.is_some_and(|max| found > max) {
                    tell(told, place, || {
                        format!("has {found} of the items that are allowed {} times", max.unwrap_or(0))
                    })
                } else {
                    true
                }
            }
            Keyword::UnevaluatedItems(id) => {
                let mut rest = (0..items.len()).filter(|index| !before.get(*index).is_some_and(|is| *is));
                rest.all(|index| item_holds(index, *id, told.as_deref_mut()))
            }
            _ => return None,
        })
    }

    /// The keywords that speak of an object.
    fn object_holds(
        &self,
        keyword: &Keyword,
        value: &Tree<'_>,
        way: Way<'_>,
        seen: &mut Option<Seen>,
        told: &mut Told<'_>,
    ) -> Option<bool> {
        let place = way.place;
        let members = members(value);
        let member_holds = |index: usize, id: Id, told: Told<'_>| {
            let (name, member) = &members[index];
            self.holds(id, member, Way { place: &Place::Member(place, name), ..way }, None, told)
        };
        Some(match keyword {
            Keyword::MaxProperties(max) => {
                members.len() <= *max || tell(told, place, || format!("has more than {}", counted(*max, "member")))
            }
            Keyword::MinProperties(min) => {
                members.len() >= *min || tell(told, place, || format!("has less than {}", counted(*min, "member")))
            }
            Keyword::Required(names) => has_all(value, names, None, place, told),
            Keyword::DependentRequired(of) => of
                .iter()
                .all(|(name, names)| value.member(name).is_none() || has_all(value, names, Some(name), place, told)),
            Keyword::PropertyNames(id) => members.iter().all(|(name, _)| {
                let place = Place::Member(place, name);
                self.holds(
                    *id,
                    &Tree::Text(name.as_ref().into()),
                    Way { place: &place, ..way },
                    None,
                    told.as_deref_mut(),
                )
            }),
            Keyword::Properties { named, patterns, others } => (0..members.len()).all(|index| {
                let name = members[index].0.as_ref();
                let by_name = named.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok();
                let mut is_known = false;
                if let Some(at) = by_name {
                    is_known = true;
                    if !member_holds(index, named[at].1, told.as_deref_mut()) {
                        return false;
                    }
                }
                for (pattern, id) in patterns {
                    let is_meant = pattern.is_in(name, way);
                    is_known |= is_meant;
                    if is_meant && !member_holds(index, *id, told.as_deref_mut()) {
                        return false;
                    }
                }
                if let (false, Some(id)) = (is_known, others) {
                    is_known = true;
                    if !member_holds(index, *id, told.as_deref_mut()) {
                        return false;
                    }
                }
                if let (Some(seen), true) = (seen.as_mut(), is_known) {
                    seen.0[index] = true;
                }
                true
            }),
            Keyword::DependentSchemas(of) => of.iter().all(|(name, id)| {
                value.member(name).is_none() || self.holds(*id, value, way, seen.as_mut(), told.as_deref_mut())
            }),
            Keyword::UnevaluatedProperties(id) => (0..members.len()).all(|index| {
                if !seen.as_ref().is_some_and(|seen| seen.0[index]) && !member_holds(index, *id, told.as_deref_mut()) {
                    return false;
                }
                if let Some(seen) = seen {
                    seen.0[index] = true;
                }
                true
            }),
            _ => return None,
        })
    }
}

/// The keywords that speak of a string.
fn text_holds(keyword: &Keyword, text: &str, way: Way<'_>, told: &mut Told<'_>) -> Option<bool> {
    let place = way.place;
    Some(match keyword {
        Keyword::MaxLength(max) => {
            text.len() <= *max
                || text.chars().count() <= *max
                || tell(told, place, || format!("is longer than {}", counted(*max, "character")))
        }
        Keyword::MinLength(min) => {
            text.chars().count() >= *min
                || tell(told, place, || format!("is shorter than {}", counted(*min, "character")))
        }
        Keyword::Pattern(pattern) => {
            pattern.is_in(text, way) || tell(told, place, || format!("does not match \"{}\"", pattern.written))
        }
        Keyword::Format(format) => format.takes(text) || tell(told, place, || format!("is no \"{}\"", format.name())),
        _ => return None,
    })
}

/// The keywords that speak of a number.
fn number_holds(keyword: &Keyword, number: &Number, way: Way<'_>, told: &mut Told<'_>) -> Option<bool> {
    let (holds, wants, limit) = match keyword {
        Keyword::Maximum(limit) => (number::compare(number, limit).is_le(), "is greater than", limit),
        Keyword::ExclusiveMaximum(limit) => (number::compare(number, limit).is_lt(), "is not less than", limit),
        Keyword::Minimum(limit) => (number::compare(number, limit).is_ge(), "is less than", limit),
        Keyword::ExclusiveMinimum(limit) => (number::compare(number, limit).is_gt(), "is not greater than", limit),
        Keyword::MultipleOf(step) => (number::is_multiple(number, step), "is no multiple of", step),
        _ => return None,
    };
    Some(holds || tell(told, way.place, || format!("{wants} {limit}")))
}

/// Whether an object has all of these members, which another member asks for.
fn has_all(value: &Tree<'_>, names: &[String], by: Option<&str>, place: &Place<'_>, told: &mut Told<'_>) -> bool {
    let missing = || by.map_or_else(|| "is missing".into(), |by| format!("is missing, and \"{by}\" is there"));
    names.iter().all(|name| value.member(name).is_some() || tell(told, &Place::Member(place, name), missing))
}

/// Whether two values are equal: numbers by what they are worth, objects in any order.
fn is_same(value: &Tree<'_>, other: &Value) -> bool {
    match (value, other) {
        (Tree::Null, Value::Null) => true,
        (Tree::Bool(a), Value::Bool(b)) => a == b,
        (Tree::Text(a), Value::String(b)) => a.as_ref() == b,
        (Tree::Number(a), Value::Number(b)) => number::compare(a, b).is_eq(),
        (Tree::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        (Tree::Object(a), Value::Object(b)) => {
            a.len() == b.len() && b.iter().all(|(name, b)| value.member(name).is_some_and(|a| is_same(a, b)))
        }
        _ => false,
    }
}

/// Whether no two items are equal.
fn are_unique(items: &[Tree<'_>]) -> bool {
    let mut known = HashSet::with_capacity(items.len());
    items.iter().all(|item| {
        let mut bytes = Vec::new();
        write_alike(item, &mut bytes);
        known.insert(bytes)
    })
}

/// Writes equal values alike: numbers by what they are worth, the members of objects in the order of their names.
fn write_alike(value: &Tree<'_>, out: &mut Vec<u8>) {
    match value {
        Tree::Number(number) => out.extend_from_slice(Decimal::from(number).to_string().as_bytes()),
        Tree::Array(items) => {
            out.push(b'[');
            for item in items {
                write_alike(item, out);
                out.push(b',');
            }
            out.push(b']');
        }
        Tree::Object(members) => {
            let mut sorted: Vec<_> = members.iter().map(|(name, member)| (name.as_ref(), member)).collect();
            sorted.sort_by_key(|(name, _)| *name);
            out.push(b'{');
            for (name, member) in sorted {
                push_json_string(out, name);
                out.push(b':');
                write_alike(member, out);
                out.push(b',');
            }
            out.push(b'}');
        }
        _ => value.write(out),
    }
}

/// `1 item`, `2 items`.
fn counted(number: usize, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}

/// The first choices, for a message.
fn listed(choices: &[Value]) -> String {
    let shown: Vec<_> = choices.iter().take(CHOICES_SHOWN).map(Value::to_string).collect();
    let more = if choices.len() > CHOICES_SHOWN {
        format!(" or {} more", choices.len() - CHOICES_SHOWN)
    } else {
        String::new()
    };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::json;

    fn checked(schema: &Value, payload: &Value) -> Result<Result<(), Fault>, String> {
        let schema = Schema::compile(schema)?;
        let text = payload.to_string();
        Ok(schema.check(&Tree::parse(text.as_bytes()).expect("valid JSON")))
    }

    /// The official tests of the draft, a group a line, after a line with the other files that they refer to: those are
    /// put under `$defs`, where a schema has them here.
    #[test]
    fn it_judges_as_the_official_tests_do() {
        const LEFT_OUT: [(&str, &str); 13] = [
            ("vocabulary", "needs a meta-schema of one's own"),
            ("defs", "needs the meta-schema of the draft"),
            ("remote ref, containing refs itself", "so does this"),
            ("optional/format-assertion", "so does this"),
            ("optional/cross-draft", "needs an older draft"),
            ("optional/dependencies-compatibility", "a keyword of older drafts"),
            ("format", "formats only annotate there; here they assert, as in optional/format"),
            ("content", "contents only annotate, which no test can see fail"),
            ("optional/format/idn-hostname", "not asserted"),
            ("validation of A-label (punycode) host names", "not decoded"),
            ("optional/bignum", "numbers beyond 64 bits are floating point"),
            ("base URI change - change folder in subschema", "a fragment"),
            ("optional/id", "refers to what is no schema there"),
        ];
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/json-schema-2020-12.jsonl");
        let groups = std::fs::read_to_string(file).expect("is in the repository");
        let mut groups = groups.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let others = groups.next().expect("the other files")["others"].take();
        let (mut judged, mut wrong) = (0, Vec::new());
        for mut group in groups {
            let [file, name] = ["file", "group"].map(|key| group[key].as_str().expect("a name").to_owned());
            if LEFT_OUT.iter().any(|(left_out, _)| *left_out == file || *left_out == name) {
                continue;
            }
            let text = group["schema"].to_string();
            for (uri, other) in others.as_object().expect("files by their address") {
                let last = uri.rsplit('/').next().expect("a name");
                if text.contains(last) && !text.contains(&format!("\"$id\":\"{uri}\"")) {
                    let mut other = other.clone();
                    other["$id"] = uri.as_str().into();
                    group["schema"]["$defs"][uri] = other;
                }
            }
            for test in group["tests"].as_array().expect("a list") {
                judged += 1;
                let found = checked(&group["schema"], &test[0]);
                if found.as_ref().map(Result::is_ok) != Ok(test[1].as_bool().expect("a claim")) {
                    wrong.push(format!("{file}, {name}, {}: {found:?}", test[2]));
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {judged} are judged wrongly:\n{}", wrong.len(), wrong.join("\n"));
        assert!(judged > 1700, "only {judged} were there");
    }

    /// Schemas of every keyword that is not a matter of references, two deep and more.
    fn schemas() -> impl Strategy<Value = Value> {
        let names = || select(vec!["a", "b", "c"]);
        let counts = || 0..4_u64;
        let limits = || select(vec![json!(-1), json!(0), json!(0.5), json!(1), json!(2.0), json!(3)]);
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::Bool),
            select(vec!["null", "boolean", "object", "array", "number", "string", "integer"])
                .prop_map(|t| json!({ "type": t })),
            values().prop_map(|value| json!({ "const": value })),
            prop::collection::vec(values(), 1..4).prop_map(|values| json!({ "enum": values })),
            (select(vec!["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), limits())
                .prop_map(|(key, limit)| json!({ key: limit })),
            select(vec![json!(0.1), json!(0.5), json!(2), json!(3.0)]).prop_map(|step| json!({ "multipleOf": step })),
            (
                select(vec!["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"]),
                counts()
            )
                .prop_map(|(key, count)| json!({ key: count })),
            select(vec!["^a", "b$", "^[a-c]{1,2}$", "\\d", "^(?!x)", "ä"])
                .prop_map(|pattern| json!({ "pattern": pattern })),
            Just(json!({ "uniqueItems": true })),
            prop::collection::btree_set(names(), 0..3).prop_map(|names| json!({ "required": names })),
            (names(), names()).prop_map(|(a, b)| json!({ "dependentRequired": { a: [b] } })),
        ];
        leaf.prop_recursive(4, 24, 3, move |inner| {
            let one = select(vec![
                "not",
                "items",
                "additionalProperties",
                "propertyNames",
                "unevaluatedItems",
                "unevaluatedProperties",
            ]);
            let list = select(vec!["allOf", "anyOf", "oneOf", "prefixItems"]);
            let named = select(vec!["properties", "patternProperties", "dependentSchemas"]);
            let some = prop::collection::vec(inner.clone(), 1..3);
            prop_oneof![
                (one, inner.clone()).prop_map(|(key, schema)| json!({ key: schema })),
                (list, some).prop_map(|(key, schemas)| json!({ key: schemas })),
                (named, names(), inner.clone()).prop_map(|(key, name, schema)| json!({ key: { name: schema } })),
                (inner.clone(), 0..3_u64, 0..3_u64).prop_map(
                    |(schema, min, max)| json!({ "contains": schema, "minContains": min, "maxContains": max })
                ),
                (inner.clone(), inner.clone(), inner.clone())
                    .prop_map(|(test, then, otherwise)| json!({ "if": test, "then": then, "else": otherwise })),
                // What several keywords in one object make of each other.
                prop::collection::vec(inner, 2..4).prop_map(|schemas| {
                    let all = schemas.into_iter().filter_map(|schema| schema.as_object().cloned());
                    Value::Object(all.flatten().filter(|(key, _)| !key.starts_with('$')).collect())
                }),
            ]
        })
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            select(vec![json!(-1), json!(0), json!(0.3), json!(1), json!(1.0), json!(2), json!(3.5), json!(6)]),
            select(vec!["", "a", "ab", "ä", "x1", "cb"]).prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::btree_map(
                    select(vec!["a".to_owned(), "b".into(), "c".into(), "d".into()]),
                    inner,
                    0..4
                )
                .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]
        #[test]
        fn it_judges_as_another_library_does(schema in schemas(), refers in any::<bool>(), payload in values()) {
            let schema = if refers { json!({ "$defs": { "x": schema }, "$ref": "#/$defs/x" }) } else { schema };
            let other = jsonschema::options().with_draft(jsonschema::Draft::Draft202012).build(&schema);
            let found = checked(&schema, &payload);
            prop_assert_eq!(found.as_ref().ok().map(Result::is_ok), other.ok().map(|other| other.is_valid(&payload)), "{:?}", found);
        }
    }

    #[test]
    fn a_fault_is_told_with_its_place_and_without_the_value() {
        let schema = json!({
            "required": ["a"], "additionalProperties": false,
            "properties": {
                "a": { "type": ["string", "integer"], "maxLength": 3 },
                "b/c": { "items": { "minimum": 0.5 }, "uniqueItems": true },
                "d": { "enum": ["on", "off"] },
                "e": { "pattern": "^[A-Z]+$", "format": "date" },
                "f": { "anyOf": [{ "const": 1 }, { "multipleOf": 0.25 }] },
                "g": { "contains": { "type": "null" }, "minContains": 2 },
                "h": { "dependentRequired": { "x": ["y"] }, "unevaluatedProperties": { "type": "boolean" } },
            },
        });
        for (payload, says) in [
            (json!({}), "/a: is missing"),
            (json!({ "a": 1, "z": 1 }), "/z: is not allowed"),
            (json!({ "a": 1.5 }), "/a: is not of type \"string\" or \"integer\""),
            (json!({ "a": "secret" }), "/a: is longer than 3 characters"),
            (json!({ "a": 1, "b/c": [1, 0.4] }), "/b~1c/1: is less than 0.5"),
            (json!({ "a": 1, "b/c": [1, 1.0] }), "/b~1c: has equal items"),
            (json!({ "a": 1, "d": "standby" }), "/d: is not one of \"on\", \"off\""),
            (json!({ "a": 1, "e": "2026-11-23" }), "/e: does not match \"^[A-Z]+$\""),
            (json!({ "a": 1, "e": "SECRET" }), "/e: is no \"date\""),
            (json!({ "a": 1, "f": 0.3 }), "/f: is none of what \"anyOf\" lists"),
            (json!({ "a": 1, "g": [null, 1] }), "/g: has 1 of the items that it needs 2 of"),
            (json!({ "a": 1, "h": { "x": true } }), "/h/y: is missing, and \"x\" is there"),
            (json!({ "a": 1, "h": { "z": 1 } }), "/h/z: is not of type \"boolean\""),
            (json!([]), ""),
        ] {
            let found = checked(&schema, &payload).expect("compiles").err().map(|fault| fault.to_string());
            assert_eq!(found.unwrap_or_default(), says, "{payload}");
        }
        // What a device makes of a name does not become a part of the account as it is.
        let long = json!({ "a": 1, (format!("\u{0}{}", "z".repeat(100_000))): 1 });
        let place = checked(&schema, &long).expect("compiles").expect_err("is not allowed").place;
        assert!(place.starts_with("/\u{FFFD}zz") && place.ends_with('…') && place.len() < 100, "{place}");
        let whole = checked(&json!({ "type": "object" }), &json!(1)).expect("compiles");
        assert_eq!(whole.expect_err("is none").to_string(), "payload: is not of type \"object\"");
    }

    #[test]
    fn what_is_no_schema_is_told_with_its_place() {
        for (schema, says) in [
            (json!(1), "the whole: is no schema; expected an object, true or false"),
            (
                json!({ "properties": { "a": { "type": "strng" } } }),
                "/properties/a/type: \"strng\" is no type; expected one of",
            ),
            (json!({ "allOf": [{ "minLength": -1 }] }), "/allOf/0/minLength: is -1; expected a whole number from 0"),
            (json!({ "items": [{}] }), "/items: is no schema"),
            (json!({ "anyOf": [] }), "/anyOf: is empty"),
            (json!({ "pattern": "(" }), "/pattern: \"(\" is no regular expression"),
            (json!({ "multipleOf": 0 }), "/multipleOf: is 0; expected a number above 0"),
            (json!({ "required": "a" }), "/required: is no list"),
            (
                json!({ "$ref": "other.json" }),
                "/$ref: \"other.json\" is not in this file; put what it means under \"$defs\"",
            ),
            (json!({ "$ref": "#/$defs/a" }), "/$ref: \"#/$defs/a\" leads nowhere in this file"),
            (json!({ "$defs": { "unused": { "type": 1 } } }), "/$defs/unused/type: is 1; expected a string"),
            (json!({ "$id": "a", "$defs": { "b": { "$id": "a" } } }), "/$defs/b/$id: \"forebay:/a\" is there twice"),
            (json!({ "$ref": "#" }), "refers to itself"),
            (json!({ "anyOf": [{ "not": { "$ref": "#" } }] }), "refers to itself"),
            (json!({ "$dynamicAnchor": "a", "if": { "$dynamicRef": "#a" } }), "refers to itself"),
            (json!({ "type": [] }), "/type: is empty"),
            (json!({ "contains": {}, "minContains": -1 }), "/minContains: is -1"),
            (
                json!({ "properties": {}, "patternProperties": { "(": {} } }),
                "/patternProperties: \"(\" is no regular expression",
            ),
            (json!({ "properties": { "b/c": { "type": "x" } } }), "/properties/b~1c/type: \"x\" is no type"),
            (json!({ "$anchor": "a", "not": { "$anchor": "a" } }), "/not/$anchor: \"a\" is there twice"),
            (json!({ "$anchor": "/a" }), "/$anchor: \"/a\" is no name for a part"),
            (
                json!({ "$schema": "http://json-schema.org/draft-07/schema#" }),
                "/$schema: \"http://json-schema.org/draft-07/schema#\" is another draft; expected",
            ),
        ] {
            let found = Schema::compile(&schema).expect_err("is refused");
            assert!(found.starts_with(says), "{schema}: {found}");
        }
    }

    #[test]
    fn nothing_runs_for_ever_or_out_of_stack() {
        // Each level of the payload is asked of the same schema: a small stack is enough for the deepest JSON.
        let deep = "[".repeat(127) + &"]".repeat(127);
        let tree: Tree<'_> = serde_json::from_str(&deep).expect("as deep as is read");
        let through_many = json!({ "$ref": "#/$defs/a", "$defs": {
            "a": { "allOf": [{ "anyOf": [{ "oneOf": [{ "items": { "$ref": "#" } }] }] }] },
        } });
        let small = std::thread::Builder::new().stack_size(2 << 20);
        let (plain, many) = std::thread::scope(|scope| {
            let checked = small.spawn_scoped(scope, || {
                let check = |schema: Value| Schema::compile(&schema).expect("compiles").check(&tree);
                let objects = "{\"a\":".repeat(127) + "1" + &"}".repeat(127);
                let nested = Tree::parse(objects.as_bytes()).expect("as deep as is read");
                let open = json!({ "properties": { "a": { "$ref": "#" } }, "unevaluatedProperties": false });
                assert_eq!(Schema::compile(&open).expect("compiles").check(&nested), Ok(()));
                (check(json!({ "items": { "$ref": "#" } })), check(through_many.clone()))
            });
            checked.expect("a thread").join().expect("no overflow")
        });
        assert_eq!(plain, Ok(()));
        assert_eq!(many.expect_err("five schemas a level").to_string(), "payload: is nested too deep for its schema");
        // A pattern that looks back over everything again and again.
        let slow = json!({ "pattern": "^(?:a+(?!b))+c$" });
        for schema in [slow.clone(), json!({ "not": slow })] {
            let found = checked(&schema, &json!("a".repeat(40))).expect("compiles").expect_err("is given up");
            assert_eq!(found.to_string(), "payload: takes too long to be matched with a pattern of its schema");
        }
        // Patterns that are tried on very much, each in time.
        let password = json!({ "pattern": "(?=.*\\d)(?=.*[A-Z]).{8,}" });
        let found = checked(&password, &json!("a".repeat(1 << 20))).expect("compiles");
        assert!(found.expect_err("is given up").message.starts_with("takes too long"));
        let found = checked(&json!({ "items": slow }), &json!(vec!["a".repeat(12); 50_000])).expect("compiles");
        assert!(found.is_err());
        // A schema in which each level of a payload may be one of two things, and is looked at as both.
        let doubling = json!({ "$ref": "#/$defs/n", "$defs": { "n": { "oneOf": [
            { "properties": { "k": { "const": "a" }, "next": { "$ref": "#/$defs/n" } } },
            { "properties": { "k": { "const": "b" }, "next": { "$ref": "#/$defs/n" } } },
        ] } } });
        // The order of the text is what makes it slow.
        let text =
            |levels| (0..levels).fold("{\"k\":\"a\"}".to_owned(), |next, _| format!("{{\"next\":{next},\"k\":\"a\"}}"));
        let schema = Schema::compile(&doubling).expect("compiles");
        let judge = |text: String| schema.check(&Tree::parse(text.as_bytes()).expect("valid JSON"));
        assert_eq!(judge(text(10)), Ok(()));
        assert_eq!(judge(text(100)).expect_err("is given up").message, "takes too long to be checked with its schema");
        let names = (0..100_000).map(|name| format!("(?<n{name}>)")).collect::<String>();
        assert!(checked(&json!({ "format": "regex" }), &json!(names)).expect("compiles").is_err());
        let many: Vec<_> = (0..50_000).collect();
        assert_eq!(checked(&json!({ "uniqueItems": true }), &json!(many)), Ok(Ok(())));
    }
}
