//! Decodes the payload of a message, within its bound of memory.

use super::message::DecodeError;
use super::output::Output;
use super::proto::{MetricValue, Payload};
use super::weight;
use crate::inflate;
use prost::Message;

/// Marks a payload whose body is another payload, compressed.
const COMPRESSED: &str = "SPBV1.0_COMPRESSED";

/// Decodes a payload, compressed or not, that takes at most `bytes_max` bytes of memory.
pub(super) fn decode(payload: &[u8], bytes_max: usize) -> Result<Payload, DecodeError> {
    let outer = decode_plain(payload, bytes_max)?;
    if outer.uuid.as_deref() != Some(COMPRESSED) {
        return Ok(outer);
    }
    let body = decompressed(&outer, bytes_max)?;
    // Both take memory at the same time.
    let inner = decode_plain(&body, bytes_max.saturating_sub(body.len()))?;
    if inner.uuid.as_deref() == Some(COMPRESSED) {
        return Err(DecodeError::wrong("payload: is compressed twice".into()));
    }
    Ok(Payload { timestamp: inner.timestamp.or(outer.timestamp), seq: inner.seq.or(outer.seq), ..inner })
}

/// Decompresses the body of a payload; the metric `algorithm` names the form, DEFLATE (zlib) by default.
fn decompressed(outer: &Payload, bytes_max: usize) -> Result<Vec<u8>, DecodeError> {
    let body = outer.body.as_deref().unwrap_or_default();
    let algorithm = outer.metrics.iter().find(|metric| metric.name.as_deref() == Some("algorithm"));
    let name = match algorithm.and_then(|metric| metric.value.as_ref()) {
        Some(MetricValue::Text(name)) => name.as_str(),
        _ => "DEFLATE",
    };
    let inflated = match name.to_ascii_uppercase().as_str() {
        "DEFLATE" => inflate::zlib(body, bytes_max / 2),
        "GZIP" => inflate::gzip(body, bytes_max / 2),
        _ => {
            return Err(DecodeError::wrong(
                "payload: is compressed in an unknown way; GZIP and DEFLATE are known".into(),
            ));
        }
    };
    inflated.map_err(|error| DecodeError::wrong(format!("payload: is compressed, and {error}")))
}

fn decode_plain(payload: &[u8], bytes_max: usize) -> Result<Payload, DecodeError> {
    match weight::weigh(payload, bytes_max) {
        None => Err(DecodeError::wrong("payload: is no Sparkplug B: it has a group".into())),
        Some(weight) if weight > bytes_max => Err(DecodeError::wrong(format!(
            "payload: has {} bytes and takes more than {bytes_max} bytes of memory to read, the maximum (see the setting memory)",
            payload.len()
        ))),
        Some(_) => Payload::decode(payload)
            .map_err(|error| DecodeError::wrong(format!("payload: is no Sparkplug B: {}", error_text(&error)))),
    }
}

/// Text of a prost error, cut before it might quote the payload.
fn error_text(error: &prost::DecodeError) -> String {
    error.to_string().chars().take(200).collect()
}

/// What version 3 says of a host.
#[derive(serde::Deserialize)]
struct HostState {
    /// Milliseconds since 1970.
    timestamp: Option<u64>,
}

/// Converts the state of a host application: JSON in version 3, a word before.
pub(super) fn host_state(host: &str, payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
    let too_long = || format!("payload: becomes more than {bytes_max} bytes of JSON");
    let mut out = Output::new(0, bytes_max);
    out.raw(r#"{"type":"STATE","host":"#);
    out.text(host);
    if let Ok(HostState { timestamp: Some(timestamp) }) = serde_json::from_slice(payload) {
        out.raw(&format!(",\"timestamp\":{timestamp}"));
    }
    out.raw(",\"state\":");
    match serde_json::from_slice::<&serde_json::value::RawValue>(payload) {
        Ok(state) => out.raw(state.get()),
        // An invalid byte becomes three bytes of UTF-8.
        Err(_) if payload.len() > bytes_max / 3 => return Err(too_long()),
        Err(_) => out.text(&String::from_utf8_lossy(payload)),
    }
    out.raw("}");
    out.whole().ok_or_else(too_long)
}
