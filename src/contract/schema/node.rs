//! Adapter through which the crate `jsonschema` reads the payload.
//!
//! Promise: each access charges the budget. Once the budget is spent, objects and arrays appear empty and every value
//! is `null`, so the crate finishes soon. The crate never holds a value of the payload: its errors get `null`.

use super::super::json::Tree;
use super::budget::Budget;
use jsonschema::JsonType;
use jsonschema::json::{Array, Json, Node, NodeIdentity, Object};
use serde_json::{Number, Value};
use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Marker type that tells the crate how to read a [`Tree`].
pub(super) struct Payload;

/// A value of the payload.
#[derive(Clone, Copy)]
pub(super) struct PayloadNode<'a> {
    pub(super) tree: &'a Tree<'a>,
    pub(super) budget: &'a Budget,
    /// Whether the value is a member name. Messages may contain names.
    pub(super) is_name: bool,
}

/// The members of an object.
pub(super) struct Members<'a> {
    list: &'a [(Cow<'a, str>, Tree<'a>)],
    budget: &'a Budget,
}

/// The items of an array.
pub(super) struct Items<'a> {
    list: &'a [Tree<'a>],
    budget: &'a Budget,
}

impl Json for Payload {
    type Node<'a> = PayloadNode<'a>;
    type PreparedKey = String;
    type StringBuffer = Budget;

    /// A lookup is a linear search, as expensive as a pass over all members.
    const KEYS_PER_LOOKUP: usize = 64;
    const ACYCLIC: bool = true;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>(buffer: &mut Budget, string: &str, f: impl FnOnce(PayloadNode<'_>) -> T) -> T {
        f(PayloadNode { tree: &Tree::Text(Cow::Borrowed(string)), budget: buffer, is_name: true })
    }
}

impl<'a> PayloadNode<'a> {
    pub(super) fn new(tree: &'a Tree<'a>, budget: &'a Budget) -> Self {
        Self { tree, budget, is_name: false }
    }

    /// The value, or `null` if the budget is spent.
    #[inline]
    fn access(&self) -> &'a Tree<'a> {
        if self.budget.spend(1) { self.tree } else { &Tree::Null }
    }
}

impl<'a> Node<'a, Payload> for PayloadNode<'a> {
    type Object = Members<'a>;
    type Array = Items<'a>;
    type Number = &'a Number;

    fn as_object(&self) -> Option<Members<'a>> {
        match self.access() {
            Tree::Object(list) => Some(Members { list, budget: self.budget }),
            _ => None,
        }
    }

    fn as_array(&self) -> Option<Items<'a>> {
        match self.access() {
            Tree::Array(list) => Some(Items { list, budget: self.budget }),
            _ => None,
        }
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        match self.access() {
            Tree::Text(text) if self.budget.spend_text(text) => Some(Cow::Borrowed(text)),
            _ => None,
        }
    }

    fn as_number(&self) -> Option<&'a Number> {
        match self.access() {
            Tree::Number(number) if self.budget.spend_number(number.value()) => Some(number.value()),
            _ => None,
        }
    }

    fn as_boolean(&self) -> Option<bool> {
        match self.access() {
            Tree::Bool(value) => Some(*value),
            _ => None,
        }
    }

    fn is_null(&self) -> bool {
        matches!(self.access(), Tree::Null)
    }

    fn json_type(&self) -> JsonType {
        match self.access() {
            Tree::Null => JsonType::Null,
            Tree::Bool(_) => JsonType::Boolean,
            Tree::Number(_) => JsonType::Number,
            Tree::Text(_) => JsonType::String,
            Tree::Array(_) => JsonType::Array,
            Tree::Object(_) => JsonType::Object,
        }
    }

    fn equals_value(&self, expected: &Value) -> bool {
        is_equal(self.tree, expected, self.budget)
    }

    /// The crate calls this only to put the value into an error.
    fn to_value(&self) -> Cow<'a, Value> {
        self.budget.count_error();
        match self.tree {
            Tree::Text(name) if self.is_name => Cow::Owned(Value::String(name.as_ref().to_owned())),
            _ => Cow::Owned(Value::Null),
        }
    }

    fn identity(&self) -> Option<NodeIdentity> {
        self.budget.spend(1);
        Some(NodeIdentity::new(std::ptr::from_ref(self.tree).addr()))
    }
}

impl<'a> Object<'a, Payload> for Members<'a> {
    type Node = PayloadNode<'a>;
    type MemberName = &'a str;
    type MembersIter = MembersIter<'a>;

    fn len(&self) -> usize {
        self.list.len()
    }

    fn get(&self, key: &String) -> Option<PayloadNode<'a>> {
        if !self.budget.spend(1 + self.list.len() as u64 / 4) {
            return None;
        }
        let (_, tree) = self.list.iter().find(|(name, _)| name == key)?;
        Some(PayloadNode::new(tree, self.budget))
    }

    fn members(&self) -> MembersIter<'a> {
        MembersIter { list: self.list.iter(), budget: self.budget }
    }

    fn try_for_each_name_node<B>(
        &self,
        _: &mut Budget,
        mut f: impl FnMut(PayloadNode<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        for (name, _) in self.members() {
            let tree = Tree::Text(Cow::Borrowed(name));
            f(PayloadNode { tree: &tree, budget: self.budget, is_name: true })?;
        }
        ControlFlow::Continue(())
    }
}

pub(super) struct MembersIter<'a> {
    list: std::slice::Iter<'a, (Cow<'a, str>, Tree<'a>)>,
    budget: &'a Budget,
}

impl<'a> Iterator for MembersIter<'a> {
    type Item = (&'a str, PayloadNode<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, tree) = self.list.next()?;
        self.budget.spend_name(name).then(|| (name.as_ref(), PayloadNode::new(tree, self.budget)))
    }
}

impl<'a> Array<'a, Payload> for Items<'a> {
    type Node = PayloadNode<'a>;
    type ElementsIter = ItemsIter<'a>;

    fn len(&self) -> usize {
        self.list.len()
    }

    fn elements(&self) -> ItemsIter<'a> {
        ItemsIter { list: self.list.iter(), budget: self.budget }
    }

    fn is_unique(&self) -> bool {
        let mut bytes = Vec::new();
        let mut items = Vec::with_capacity(self.list.len());
        for item in self.list {
            let start = bytes.len();
            write_canonical(item, &mut bytes);
            items.push(start..bytes.len());
            if !self.budget.spend(16 + (bytes.len() - start) as u64 / 2) {
                return false;
            }
        }
        let mut seen = HashSet::with_capacity(items.len());
        items.into_iter().all(|item| seen.insert(&bytes[item]))
    }
}

pub(super) struct ItemsIter<'a> {
    list: std::slice::Iter<'a, Tree<'a>>,
    budget: &'a Budget,
}

impl<'a> Iterator for ItemsIter<'a> {
    type Item = PayloadNode<'a>;

    fn next(&mut self) -> Option<PayloadNode<'a>> {
        let tree = self.list.next()?;
        self.budget.spend(1).then(|| PayloadNode::new(tree, self.budget))
    }
}

/// A number by its mathematical value: `1`, `1.0` and `1e0` are equal.
#[derive(Debug, PartialEq)]
enum NumberValue {
    Integer(i128),
    Other(f64),
}

impl From<&Number> for NumberValue {
    fn from(number: &Number) -> Self {
        /// From 2^126 on, an `f64` may not fit into an `i128`. All such numbers are integers, each with one `f64`.
        const INTEGER_END: f64 = (1_u128 << 126) as f64;
        match number.as_i128() {
            Some(integer) => Self::Integer(integer),
            None => match number.as_f64().unwrap_or_default() {
                float if float.fract() == 0.0 && float.abs() < INTEGER_END => Self::Integer(float as i128),
                float => Self::Other(float),
            },
        }
    }
}

/// Whether a value of the payload equals a value of the schema: numbers by value, members in any order.
fn is_equal(tree: &Tree<'_>, expected: &Value, budget: &Budget) -> bool {
    if !budget.spend(1) {
        return false;
    }
    match (tree, expected) {
        (Tree::Null, Value::Null) => true,
        (Tree::Bool(a), Value::Bool(b)) => a == b,
        (Tree::Text(a), Value::String(b)) => a.as_ref() == b,
        (Tree::Number(a), Value::Number(b)) => NumberValue::from(a.value()) == NumberValue::from(b),
        (Tree::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_equal(a, b, budget)),
        (Tree::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name.as_ref()).is_some_and(|b| is_equal(a, b, budget)))
        }
        _ => false,
    }
}

/// Writes equal values as equal bytes, and different values as different bytes. Strings have a length prefix, numbers a
/// fixed length: JSON text takes several times as long.
fn write_canonical(tree: &Tree<'_>, out: &mut Vec<u8>) {
    match tree {
        Tree::Number(number) => match number.integer().map_or_else(|| number.value().into(), NumberValue::Integer) {
            NumberValue::Integer(integer) => {
                out.push(b'i');
                out.extend_from_slice(&integer.to_le_bytes());
            }
            NumberValue::Other(float) => {
                out.push(b'd');
                out.extend_from_slice(&float.to_bits().to_le_bytes());
            }
        },
        Tree::Text(text) => write_text(text, out),
        Tree::Array(items) => {
            out.push(b'[');
            items.iter().for_each(|item| write_canonical(item, out));
            out.push(b']');
        }
        Tree::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            out.push(b'{');
            for (name, member) in sorted {
                write_text(name, out);
                write_canonical(member, out);
            }
            out.push(b'}');
        }
        Tree::Null | Tree::Bool(_) => tree.write(out),
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(&text.len().to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}
