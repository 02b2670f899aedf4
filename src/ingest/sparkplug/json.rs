//! Renders a Sparkplug message as one JSON object, made for authors of JSON Schemas:
//!
//! ```json
//! {"group":"plant","node":"line-1","device":"press-4","type":"DDATA","seq":17,"timestamp":1764000000000,
//!  "metrics":{"Temperature":{"value":21.1,"type":"Float","timestamp":1764000000000,"quality":192}}}
//! ```
//!
//! `metrics` is keyed by name. A message may contain a metric several times, such as buffered values: the last one that
//! is not historical stands in `metrics`, and the others in `earlier`, in their order, so none is lost. Times are
//! milliseconds since 1970. A number that JSON cannot represent is `null`, and `nonfinite` names it.

use super::declared::{Declared, MetricType, ResolvedMetric};
use super::message::{DecodeError, MessageTopic};
use super::output::Output;
use super::proto::{
    DataSet, MetaData, Metric, MetricValue, Payload, PropertyKind, PropertySet, PropertyValue, Template,
};
use super::value::{self, Scalar, push_scalar, type_name};
use std::collections::HashMap;

/// Bytes after which the first member or item follows without a comma.
const OPENING: &[u8] = b"{[";

/// Maximum nesting of templates and property sets; deeper messages are rejected.
const DEPTH_MAX: usize = 12;

/// Maximum length of a metric name, as for a topic of `sources::mqtt`. Names in Unified
/// Namespaces stay below 500 bytes.
const NAME_BYTES_MAX: usize = 1024;

/// Resolves name and type of each metric, from the metric itself or from the birth certificate.
pub(super) fn resolve<'a>(
    metrics: &'a [Metric],
    declared: Option<&'a Declared>,
    topic: &MessageTopic<'_>,
) -> Result<Vec<ResolvedMetric<'a>>, DecodeError> {
    let mut resolved = Vec::with_capacity(metrics.len());
    for metric in metrics {
        let by_alias = || declared.and_then(|declared| declared.by_alias(metric.alias?));
        let (name, known): (&str, Option<MetricType>) = match (metric.name.as_deref(), metric.alias) {
            (Some(name), _) if !name.is_empty() => (name, declared.and_then(|declared| declared.by_name(name))),
            (_, Some(alias)) => match by_alias() {
                Some((name, known)) => (name, Some(known)),
                None => {
                    let why = match declared {
                        None => "no birth certificate of it is known",
                        Some(declared) if !declared.is_alive => "its last certificate is one of death",
                        Some(_) => "its birth certificate does not name it",
                    };
                    return Err(DecodeError::unborn(format!("alias {alias}: is unknown to {topic}: {why}")));
                }
            },
            _ => return Err(DecodeError::wrong("metrics: one has neither name nor alias".into())),
        };
        if name.len() > NAME_BYTES_MAX {
            let (brief, length) = (brief(name), name.len());
            return Err(DecodeError::wrong(format!(
                "metric \"{brief}…\": its name has {length} bytes; {NAME_BYTES_MAX} are allowed"
            )));
        }
        let declared_type = metric.datatype.filter(|datatype| *datatype > 0).or(known.map(|known| known.datatype));
        let datatype = declared_type.or_else(|| own_type(metric.value.as_ref()?));
        let Some(datatype) = datatype else {
            let name = brief(name);
            return Err(DecodeError::unborn(format!(
                "metric \"{name}\": its type is given neither here nor in a birth certificate of {topic}"
            )));
        };
        if type_name(datatype).is_none() {
            return Err(DecodeError::wrong(format!(
                "metric \"{}\": has data type {datatype}, which does not exist",
                brief(name)
            )));
        }
        resolved.push(ResolvedMetric { metric, name, datatype });
    }
    Ok(resolved)
}

fn own_type(value: &MetricValue) -> Option<u32> {
    match value {
        MetricValue::DataSet(_) => Some(value::DATA_SET),
        MetricValue::Template(_) => Some(value::TEMPLATE),
        other => other.scalar()?.own_type(),
    }
}

/// Shortens a name for a reason.
fn brief(name: &str) -> String {
    name.chars().take(128).collect()
}

/// Renders a message as at most `bytes_max` bytes of JSON.
pub(super) fn message(
    topic: &MessageTopic<'_>,
    payload: &Payload,
    metrics: &[ResolvedMetric<'_>],
    bytes_max: usize,
) -> Result<Vec<u8>, DecodeError> {
    let mut out = Writer { out: Output::new(256 + metrics.len() * 64, bytes_max) };
    out.open_object();
    for (name, text) in [
        ("group", Some(topic.group)),
        ("node", Some(topic.node)),
        ("device", topic.device),
        ("type", Some(topic.message_type())),
    ] {
        if let Some(text) = text {
            out.name(name);
            out.text(text);
        }
    }
    for (name, number) in [("seq", payload.seq), ("timestamp", payload.timestamp)] {
        out.number(name, number);
    }
    if let Some(uuid) = &payload.uuid {
        out.name("uuid");
        out.text(uuid);
    }
    if let Some(body) = &payload.body {
        out.name("body");
        out.out.base64(body);
    }
    out.metrics(metrics, 0)?;
    out.close_object();
    out.within_bounds()?;
    Ok(out.out.whole().unwrap_or_default())
}

struct Writer {
    out: Output,
}

impl Writer {
    fn raw(&mut self, text: &str) {
        self.out.raw(text);
    }

    fn open_object(&mut self) {
        self.raw("{");
    }

    fn close_object(&mut self) {
        self.raw("}");
    }

    fn comma(&mut self) {
        if self.out.last().is_some_and(|last| !OPENING.contains(&last)) {
            self.raw(",");
        }
    }

    /// Writes the name of the next member, after a comma if needed.
    fn name(&mut self, name: &str) {
        self.comma();
        self.text(name);
        self.raw(":");
    }

    fn text(&mut self, text: &str) {
        self.out.text(text);
    }

    fn number(&mut self, name: &str, number: Option<u64>) {
        if let Some(number) = number {
            self.name(name);
            self.raw(&number.to_string());
        }
    }

    fn flag(&mut self, name: &str, flag: Option<bool>) {
        if flag == Some(true) {
            self.name(name);
            self.raw("true");
        }
    }

    fn some_text(&mut self, name: &str, text: Option<&String>) {
        if let Some(text) = text {
            self.name(name);
            self.text(text);
        }
    }

    fn within_bounds(&self) -> Result<(), DecodeError> {
        if self.out.is_over() {
            return Err(DecodeError::wrong(format!(
                "payload: becomes more than {} bytes of JSON",
                self.out.bytes_max()
            )));
        }
        Ok(())
    }

    fn metrics(&mut self, metrics: &[ResolvedMetric<'_>], depth: usize) -> Result<(), DecodeError> {
        // Index of the occurrence of each name that goes to `metrics`.
        let mut counts: HashMap<&str, usize> = HashMap::with_capacity(metrics.len());
        for (index, one) in metrics.iter().enumerate() {
            let is_historical = |index: usize| metrics[index].metric.is_historical == Some(true);
            let known = counts.entry(one.name).or_insert(index);
            if !is_historical(index) || is_historical(*known) {
                *known = index;
            }
        }
        self.name("metrics");
        self.open_object();
        for (index, one) in metrics.iter().enumerate() {
            if counts.get(one.name) == Some(&index) {
                self.name(one.name);
                self.open_object();
                self.metric(one, depth)?;
                self.close_object();
            }
        }
        self.close_object();
        if counts.len() < metrics.len() {
            self.name("earlier");
            self.raw("[");
            for (index, one) in metrics.iter().enumerate() {
                if counts.get(one.name) != Some(&index) {
                    self.comma();
                    self.open_object();
                    self.name("name");
                    self.text(one.name);
                    self.metric(one, depth)?;
                    self.close_object();
                }
            }
            self.raw("]");
        }
        Ok(())
    }

    fn metric(&mut self, one: &ResolvedMetric<'_>, depth: usize) -> Result<(), DecodeError> {
        let ResolvedMetric { metric, name, datatype } = one;
        let mismatch = || {
            let named = type_name(*datatype).unwrap_or("?");
            DecodeError::unborn(format!("metric \"{}\": its value is no {named}, as its type says", brief(name)))
        };
        self.name("value");
        let mut nonfinite = None;
        match &metric.value {
            _ if metric.is_null == Some(true) => self.raw("null"),
            None => self.raw("null"),
            Some(MetricValue::DataSet(set)) if *datatype == value::DATA_SET => {
                self.data_set(set).ok_or_else(mismatch)?
            }
            Some(MetricValue::Template(template)) if *datatype == value::TEMPLATE => {
                self.template(template, depth + 1)?
            }
            Some(other) => {
                let scalar = other.scalar().ok_or_else(mismatch)?;
                nonfinite = push_scalar(&mut self.out, *datatype, scalar).map_err(|_| mismatch())?;
            }
        }
        if let Some(number) = nonfinite {
            self.name("nonfinite");
            self.text(number);
        }
        self.name("type");
        self.text(type_name(*datatype).unwrap_or("Unknown"));
        self.number("timestamp", metric.timestamp);
        self.flag("historical", metric.is_historical);
        self.flag("transient", metric.is_transient);
        if let Some(properties) = metric.properties.as_ref().filter(|set| !set.keys.is_empty()) {
            let quality = properties.keys.iter().position(|key| key == "Quality");
            if let Some(PropertyValue { value: Some(PropertyKind::Int(quality)), .. }) =
                quality.and_then(|index| properties.values.get(index))
            {
                self.number("quality", Some(u64::from(*quality)));
            }
            self.name("properties");
            self.properties(properties, depth + 1)?;
        }
        if let Some(metadata) = &metric.metadata {
            self.metadata(metadata);
        }
        self.within_bounds()
    }

    fn metadata(&mut self, data: &MetaData) {
        self.name("metadata");
        self.open_object();
        self.flag("is_multi_part", data.is_multi_part);
        self.number("size", data.size);
        self.number("seq", data.seq);
        for (name, text) in [
            ("content_type", &data.content_type),
            ("file_name", &data.file_name),
            ("file_type", &data.file_type),
            ("md5", &data.md5),
            ("description", &data.description),
        ] {
            self.some_text(name, text.as_ref());
        }
        self.close_object();
    }

    /// Writes a value as `datatype`; a value that does not fit is written by its wire type.
    fn loose(&mut self, datatype: Option<u32>, value: Option<Scalar<'_>>) {
        let before = self.out.len();
        let written = match (value, datatype.filter(|datatype| *datatype > 0)) {
            (Some(value), Some(datatype)) => push_scalar(&mut self.out, datatype, value).is_ok(),
            _ => false,
        };
        if written {
            return;
        }
        self.out.truncate(before);
        match value {
            None => self.raw("null"),
            Some(Scalar::Int(number)) => self.raw(&number.to_string()),
            Some(Scalar::Long(number)) => self.raw(&number.to_string()),
            Some(Scalar::Bytes(bytes)) => self.out.base64(bytes),
            Some(other) => {
                if other.own_type().is_none_or(|own| push_scalar(&mut self.out, own, other).is_err()) {
                    self.raw("null");
                }
            }
        }
    }

    fn properties(&mut self, set: &PropertySet, depth: usize) -> Result<(), DecodeError> {
        if depth > DEPTH_MAX {
            return Err(too_deep());
        }
        self.open_object();
        for (key, property) in set.keys.iter().zip(&set.values) {
            self.name(key);
            match &property.value {
                _ if property.is_null == Some(true) => self.raw("null"),
                Some(PropertyKind::Set(inner)) => self.properties(inner, depth + 1)?,
                Some(PropertyKind::Sets(list)) => {
                    self.raw("[");
                    for inner in &list.sets {
                        self.comma();
                        self.properties(inner, depth + 1)?;
                    }
                    self.raw("]");
                }
                other => self.loose(property.r#type, other.as_ref().and_then(PropertyKind::scalar)),
            }
        }
        self.close_object();
        self.within_bounds()
    }

    /// Writes a data set; `None` if its rows do not match its columns.
    fn data_set(&mut self, set: &DataSet) -> Option<()> {
        let columns = set.columns.len();
        if set.types.len() != columns || set.column_count.is_some_and(|count| count != columns as u64) {
            return None;
        }
        self.open_object();
        self.name("columns");
        self.raw("[");
        for column in &set.columns {
            self.comma();
            self.text(column);
        }
        self.raw("]");
        self.name("types");
        self.raw("[");
        for datatype in &set.types {
            self.comma();
            self.text(type_name(*datatype)?);
        }
        self.raw("]");
        self.name("rows");
        self.raw("[");
        for row in &set.rows {
            if row.elements.len() != columns {
                return None;
            }
            self.comma();
            self.raw("[");
            if self.out.is_over() {
                break;
            }
            for (element, datatype) in row.elements.iter().zip(&set.types) {
                self.comma();
                match &element.value {
                    None => self.raw("null"),
                    Some(value) => drop(push_scalar(&mut self.out, *datatype, value.scalar()).ok()?),
                }
            }
            self.raw("]");
        }
        self.raw("]");
        self.close_object();
        Some(())
    }

    fn template(&mut self, template: &Template, depth: usize) -> Result<(), DecodeError> {
        if depth > DEPTH_MAX {
            return Err(too_deep());
        }
        self.open_object();
        self.some_text("template", template.template_ref.as_ref());
        self.some_text("version", template.version.as_ref());
        self.flag("definition", template.is_definition);
        if !template.parameters.is_empty() {
            self.name("parameters");
            self.open_object();
            for parameter in &template.parameters {
                self.name(parameter.name.as_deref().unwrap_or_default());
                self.loose(parameter.r#type, parameter.value.as_ref().map(|value| value.scalar()));
            }
            self.close_object();
        }
        // Members of a template have their own names.
        let mut members = Vec::with_capacity(template.metrics.len());
        for metric in &template.metrics {
            let name = metric.name.as_deref().unwrap_or_default();
            let datatype = metric.datatype.filter(|datatype| type_name(*datatype).is_some());
            let Some(datatype) = datatype.or_else(|| own_type(metric.value.as_ref()?)) else {
                return Err(DecodeError::wrong(format!("metric \"{}\" of a template: has no data type", brief(name))));
            };
            members.push(ResolvedMetric { metric, name, datatype });
        }
        self.metrics(&members, depth)?;
        self.close_object();
        Ok(())
    }
}

fn too_deep() -> DecodeError {
    DecodeError::wrong(format!("payload: templates or properties are nested deeper than {DEPTH_MAX}"))
}
