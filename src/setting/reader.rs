//! Reads types from parsed TOML; errors name the key of the value.
//!
//! toml's own deserializer names no key, and is compiled three times for each table: for tables, dates and spans.

use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// A value that does not match its type.
#[derive(Debug)]
pub(super) struct Mismatch {
    /// Key of the value; empty for the whole file.
    pub(super) key: String,
    /// Byte range of the value in the text.
    pub(super) span: Option<Range<usize>>,
    /// The value and what is allowed.
    pub(super) message: String,
}

impl Mismatch {
    /// Adds a step to the front of the key, and the span of the value there if none is known.
    fn within(mut self, step: &str, span: Range<usize>) -> Self {
        let separator = if self.key.is_empty() || self.key.starts_with('[') { "" } else { "." };
        self.key = format!("{step}{separator}{}", self.key);
        self.span.get_or_insert(span);
        self
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { key: String::new(), span: None, message: message.to_string() }
    }
}

/// Reads a `T` from the root of a document with this text.
pub(super) fn read<T: de::DeserializeOwned>(root: &Spanned<DeTable<'_>>, text: &str) -> Result<T, Mismatch> {
    let value = Spanned::new(root.span(), DeValue::Table(root.get_ref().clone()));
    T::deserialize(Reader { value: &value, text }).map_err(|mut error| {
        error.span.get_or_insert(root.span());
        error
    })
}

/// A value, and the text of the document.
#[derive(Clone, Copy)]
struct Reader<'t, 'a> {
    value: &'t Spanned<DeValue<'a>>,
    text: &'t str,
}

impl Reader<'_, '_> {
    /// The error about a value of another type.
    fn is_no(&self, expected: &dyn de::Expected) -> Mismatch {
        let number = format!("integer `{}`", self.written());
        let found = match self.value.get_ref() {
            DeValue::Array(_) => de::Unexpected::Seq,
            DeValue::Table(_) => de::Unexpected::Map,
            DeValue::String(text) => de::Unexpected::Str(text),
            DeValue::Boolean(value) => de::Unexpected::Bool(*value),
            _ => de::Unexpected::Other(&number),
        };
        de::Error::invalid_type(found, expected)
    }

    /// The value as it is written.
    fn written(&self) -> &str {
        self.text.get(self.value.span()).unwrap_or_default()
    }
}

impl<'de> Deserializer<'de> for Reader<'_, '_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value.get_ref() {
            DeValue::String(text) => visitor.visit_str(text),
            DeValue::Integer(number) => {
                let number = i128::from_str_radix(number.as_str(), number.radix()).map_err(de::Error::custom)?;
                match (i64::try_from(number), u64::try_from(number)) {
                    (Ok(number), _) => visitor.visit_i64(number),
                    (_, Ok(number)) => visitor.visit_u64(number),
                    _ => visitor.visit_i128(number),
                }
            }
            DeValue::Float(number) => visitor.visit_f64(number.as_str().parse().map_err(de::Error::custom)?),
            DeValue::Boolean(value) => visitor.visit_bool(*value),
            DeValue::Datetime(date) => visitor.visit_string(date.to_string()),
            DeValue::Array(_) => self.deserialize_seq(visitor),
            DeValue::Table(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value.get_ref() {
            DeValue::Array(items) => visitor.visit_seq(Items { rest: items.iter(), index: 0, text: self.text }),
            _ => Err(self.is_no(&visitor)),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value.get_ref() {
            DeValue::Table(table) => visitor.visit_map(Entries { rest: table.iter(), value: None, text: self.text }),
            _ => Err(self.is_no(&visitor)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.deserialize_map(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    /// Reads the name of a variant: no setting has variants with values.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match self.value.get_ref() {
            DeValue::String(name) => visitor.visit_enum(IntoDeserializer::<Mismatch>::into_deserializer(name.as_ref())),
            _ => Err(de::Error::unknown_variant(self.written(), variants)),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple_struct
        identifier ignored_any
    }
}

/// The items of a list.
struct Items<'t, 'a> {
    rest: std::slice::Iter<'t, Spanned<DeValue<'a>>>,
    index: usize,
    text: &'t str,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Mismatch;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mismatch> {
        let Some(value) = self.rest.next() else { return Ok(None) };
        self.index += 1;
        let read = seed.deserialize(Reader { value, text: self.text });
        read.map(Some).map_err(|error| error.within(&format!("[{}]", self.index - 1), value.span()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// The entries of a table.
struct Entries<'t, 'a, I> {
    rest: I,
    value: Option<(&'t Spanned<DeString<'a>>, &'t Spanned<DeValue<'a>>)>,
    text: &'t str,
}

impl<'de, 't, 'a, I> MapAccess<'de> for Entries<'t, 'a, I>
where
    I: Iterator<Item = (&'t Spanned<DeString<'a>>, &'t Spanned<DeValue<'a>>)>,
{
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mismatch> {
        self.value = self.rest.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        let name = Spanned::new(key.span(), DeValue::String(Cow::Borrowed(key.get_ref().as_ref())));
        let read = seed.deserialize(Reader { value: &name, text: self.text });
        read.map(Some).map_err(|error| error.within(key.get_ref(), key.span()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let (key, value) = self.value.take().ok_or_else(|| de::Error::custom("a value without its key"))?;
        seed.deserialize(Reader { value, text: self.text }).map_err(|error| error.within(key.get_ref(), value.span()))
    }
}
