//! Reading: takes a settings file that is parsed apart into the types of the settings.
//!
//! Promise: what does not fit is told with its key, and with its place in the text where it has one.
//!
//! The settings are many types, and each is compiled for whatever it is read from: a large part of the program's
//! text. This reader borrows and does no more than settings need, which keeps that part small.

use serde::de::value::{BorrowedStrDeserializer, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error, Expected, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeFloat, DeInteger, DeTable, DeValue};

/// A value that does not fit.
#[derive(Debug)]
pub(super) struct Misfit {
    /// Its key, such as `source.mqtt[0].listen`; empty for the whole file.
    pub key: String,
    /// Where it stands.
    pub span: Option<Range<usize>>,
    /// The value and what is allowed.
    pub message: String,
}

impl Misfit {
    /// It is inside of what has this key, and stands there unless it is known better.
    fn beneath(mut self, key: &str, span: Range<usize>) -> Self {
        self.span.get_or_insert(span);
        let dot = if self.key.is_empty() || self.key.starts_with('[') { "" } else { "." };
        self.key.insert_str(0, dot);
        self.key.insert_str(0, key);
        self
    }

    fn wrong_type(value: &Value<'_>, expected: &dyn Expected) -> Self {
        let shown;
        let is = match value.0.get_ref() {
            DeValue::String(text) => Unexpected::Str(text),
            DeValue::Integer(number) => match integer(number) {
                (Some(number), _) => Unexpected::Signed(number),
                (_, Some(number)) => Unexpected::Unsigned(number),
                _ => {
                    shown = format!("integer `{number}`, which is out of bounds");
                    Unexpected::Other(&shown)
                }
            },
            DeValue::Float(number) => match float(number) {
                Some(number) => Unexpected::Float(number),
                None => {
                    shown = format!("floating point `{number}`, which is out of bounds");
                    Unexpected::Other(&shown)
                }
            },
            DeValue::Boolean(is) => Unexpected::Bool(*is),
            DeValue::Datetime(_) => Unexpected::Other("date or time (quotes make it a text)"),
            DeValue::Array(_) => Unexpected::Seq,
            DeValue::Table(_) => Unexpected::Map,
        };
        Self::invalid_type(is, expected)
    }
}

/// The number, with a sign and without, unless it is too large for that.
fn integer(number: &DeInteger<'_>) -> (Option<i64>, Option<u64>) {
    let (text, radix) = (number.as_str(), number.radix());
    (i64::from_str_radix(text, radix).ok(), u64::from_str_radix(text, radix).ok())
}

/// The number, unless it is too large for one.
fn float(number: &DeFloat<'_>) -> Option<f64> {
    let text = number.as_str();
    text.parse().ok().filter(|parsed: &f64| !parsed.is_infinite() || text.contains("inf"))
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Misfit {}

impl Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { key: String::new(), span: None, message: message.to_string() }
    }
}

/// The whole file.
pub(super) struct Root<'a>(pub &'a DeTable<'a>);

impl<'a> Deserializer<'a> for Root<'a> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_map(Entries::of(self.0))
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// One value.
#[derive(Clone, Copy)]
struct Value<'a>(&'a Spanned<DeValue<'a>>);

/// What only one kind of value fits.
macro_rules! only {
    ($($method:ident: $kind:ident($value:ident) => |$visitor:ident| $visit:expr;)+) => {
        $(fn $method<V: Visitor<'a>>(self, $visitor: V) -> Result<V::Value, Misfit> {
            match self.0.get_ref() {
                DeValue::$kind($value) => $visit,
                _ => Err(Misfit::wrong_type(&self, &$visitor)),
            }
        })+
    };
}

/// What is read as another kind is.
macro_rules! alike {
    ($($method:ident => $other:ident;)+) => {
        $(fn $method<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Misfit> {
            self.$other(visitor)
        })+
    };
}

impl<'a> Deserializer<'a> for Value<'a> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0.get_ref() {
            DeValue::String(_) => self.deserialize_str(visitor),
            DeValue::Integer(_) => self.deserialize_i64(visitor),
            DeValue::Float(_) => self.deserialize_f64(visitor),
            DeValue::Boolean(_) => self.deserialize_bool(visitor),
            DeValue::Array(_) => self.deserialize_seq(visitor),
            DeValue::Table(_) => self.deserialize_map(visitor),
            DeValue::Datetime(_) => Err(Misfit::wrong_type(&self, &visitor)),
        }
    }

    only! {
        deserialize_bool: Boolean(is) => |visitor| visitor.visit_bool(*is);
        deserialize_str: String(text) => |visitor| visitor.visit_borrowed_str(text);
        deserialize_seq: Array(items) => |visitor| {
            let mut items = Items { items: items.iter(), at: 0 };
            let value = visitor.visit_seq(&mut items)?;
            match items.items.next() {
                None => Ok(value),
                Some(item) => Err(Misfit::custom("is one too many").beneath(&format!("[{}]", items.at), item.span())),
            }
        };
        deserialize_map: Table(table) => |visitor| visitor.visit_map(Entries::of(table));
    }

    fn deserialize_i64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let DeValue::Integer(number) = self.0.get_ref() else { return Err(Misfit::wrong_type(&self, &visitor)) };
        match integer(number) {
            (Some(number), _) => visitor.visit_i64(number),
            (_, Some(number)) => visitor.visit_u64(number),
            _ => Err(Misfit::wrong_type(&self, &visitor)),
        }
    }

    fn deserialize_f64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0.get_ref() {
            DeValue::Float(number) => match float(number) {
                Some(number) => visitor.visit_f64(number),
                None => Err(Misfit::wrong_type(&self, &visitor)),
            },
            _ => self.deserialize_i64(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(self, _: &'static str, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _: &'static str,
        choices: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match self.0.get_ref() {
            DeValue::String(name) => visitor.visit_enum(StrDeserializer::new(name)),
            _ => Err(Misfit::wrong_type(&self, &OneOf(choices))),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_unit()
    }

    fn deserialize_tuple<V: Visitor<'a>>(self, _: usize, visitor: V) -> Result<V::Value, Misfit> {
        self.deserialize_seq(visitor)
    }

    alike! {
        deserialize_string => deserialize_str;
        deserialize_i8 => deserialize_i64;
        deserialize_i16 => deserialize_i64;
        deserialize_i32 => deserialize_i64;
        deserialize_u8 => deserialize_i64;
        deserialize_u16 => deserialize_i64;
        deserialize_u32 => deserialize_i64;
        deserialize_u64 => deserialize_i64;
        deserialize_f32 => deserialize_f64;
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        char bytes byte_buf unit unit_struct tuple_struct identifier
    }
}

/// The choices of an enum: all are plain, none carries anything.
struct OneOf(&'static [&'static str]);

impl Expected for OneOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one of `{}`", self.0.join("`, `"))
    }
}

/// The items of a list.
struct Items<'a> {
    items: std::slice::Iter<'a, Spanned<DeValue<'a>>>,
    at: usize,
}

impl<'a> SeqAccess<'a> for &mut Items<'a> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        let Some(item) = self.items.next() else { return Ok(None) };
        let at = self.at;
        self.at += 1;
        seed.deserialize(Value(item)).map(Some).map_err(|misfit| misfit.beneath(&format!("[{at}]"), item.span()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

type Entry<'a> = (&'a Spanned<Cow<'a, str>>, &'a Spanned<DeValue<'a>>);

/// The keys and values of a table.
struct Entries<'a> {
    rest: toml::map::Iter<'a, Spanned<Cow<'a, str>>, Spanned<DeValue<'a>>>,
    entry: Option<Entry<'a>>,
}

impl<'a> Entries<'a> {
    fn of(table: &'a DeTable<'a>) -> Self {
        Self { rest: table.iter(), entry: None }
    }
}

impl<'a> MapAccess<'a> for Entries<'a> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        self.entry = self.rest.next();
        let Some((key, _)) = self.entry else { return Ok(None) };
        let name: &'a str = key.get_ref();
        let read = seed.deserialize(BorrowedStrDeserializer::new(name));
        read.map(Some).map_err(|misfit: Misfit| misfit.beneath(name, key.span()))
    }

    fn next_value_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<T::Value, Misfit> {
        let Some((key, value)) = self.entry.take() else {
            return Err(Misfit::custom("a value was asked for before its key"));
        };
        seed.deserialize(Value(value)).map_err(|misfit| misfit.beneath(key.get_ref(), value.span()))
    }
}

#[cfg(test)]
mod tests {
    use crate::setting::Document;
    use serde::Deserialize;
    use std::path::Path;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Format {
        Text,
        Json,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        format: Option<Format>,
        range: Option<[f64; 2]>,
        name: Option<String>,
    }

    fn read(text: &str) -> Result<Settings, (String, String)> {
        let document = Document::new(Path::new("a.toml"), text.into());
        document.parse::<Settings>().map_err(|problem| (problem.key, problem.message))
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_is_allowed() {
        for (text, key, message) in [
            ("range = [0, 1e999]", "range[1]", "floating point `1e999`, which is out of bounds, expected f64"),
            ("range = [0, 1, 2]", "range[2]", "is one too many"),
            ("name = 0xFFFFFFFFFFFFFFFF", "name", "integer `18446744073709551615`, expected a string"),
            ("name = 0xFFFFFFFFFFFFFFFFF", "name", "integer `0xFFFFFFFFFFFFFFFFF`, which is out of bounds"),
            ("name = 1979-05-27", "name", "quotes make it a text"),
            ("format = \"xml\"", "format", "unknown variant `xml`, expected `text` or `json`"),
            ("format = { json = 1 }", "format", "map, expected one of `text`, `json`"),
            ("format = 1", "format", "integer `1`, expected one of `text`, `json`"),
            ("formt = 1", "formt", "unknown field `formt`, expected one of `format`"),
        ] {
            let (found, said) = read(text).expect_err(text);
            assert_eq!(found, key, "{text}: {said}");
            assert!(said.contains(message), "{text}: {said}");
        }
        let good = read("range = [-1, inf]\nformat = \"json\"\nname = \"a\"").expect("fits");
        assert_eq!(good.range, Some([-1.0, f64::INFINITY]));
        assert!(matches!(good.format, Some(Format::Json)) && good.name.as_deref() == Some("a"));
        assert!(matches!(read("format = \"text\"").expect("fits").format, Some(Format::Text)));
    }
}
