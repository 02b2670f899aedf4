//! Decodes the payload of a message, within its bound of memory.

use super::message::DecodeError;
use super::output::Output;
use super::proto::Payload;
use super::weight;
use prost::Message;

/// Decodes a payload that takes at most `bytes_max` bytes of memory.
pub(super) fn decode(payload: &[u8], bytes_max: usize) -> Result<Payload, DecodeError> {
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

/// Converts the state of a host application: JSON in version 3, a word before.
pub(super) fn host_state(host: &str, payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
    let too_long = || format!("payload: becomes more than {bytes_max} bytes of JSON");
    let mut out = Output::new(0, bytes_max);
    out.raw(r#"{"type":"STATE","host":"#);
    out.text(host);
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
