//! Checks of the destinations.

use super::{File, check_word};
use crate::forward;
use crate::link::Address;
use crate::secret::Secret;
use crate::setting::{Bytes, Document, Problem};
use crate::tls;

/// Smallest `hold`: less could not contain the events in flight of normal operation.
const HOLD_MIN: u64 = 8 << 20;

pub(super) fn check(raw: &File, document: &Document, problems: &mut Vec<Problem>) {
    for (index, destination) in raw.destination.iter().enumerate() {
        let key = |part: &str| format!("destination[{index}].{part}");
        if let Err(message) = check_word(&destination.name) {
            problems.push(document.problem(key("name"), message));
        }
        if raw.destination[..index].iter().any(|other| other.name == destination.name) {
            problems.push(document.problem(
                key("name"),
                format!("\"{}\" is taken by a destination above; names are unique", destination.name),
            ));
        }
        if destination.window == 0 {
            problems.push(document.problem(key("window"), "0 is not allowed; 1 to 65535 are"));
        }
        if destination.url.0.is_empty() {
            problems.push(document.problem(key("url"), "is empty; expected \"mqtts://host:8883\", or a list of URLs"));
        }
        destination.url.0.iter().for_each(|url| check_url(raw, destination, url, &key, document, problems));
        if let Some(hold) = destination.hold
            && hold.0 < HOLD_MIN
        {
            problems.push(
                document.problem(key("hold"), format!("{hold} is too little; at least {} are needed", Bytes(HOLD_MIN))),
            );
        }
        if destination.user.is_some() != destination.password_file.is_some() {
            problems.push(document.problem(key("user"), "user and password_file go together; one of them is missing"));
        }
        if let Some(file) = &destination.password_file
            && let Err(error) = Secret::read(file)
        {
            problems.push(document.problem(key("password_file"), error.to_string()));
        }
    }
}

fn check_url(
    raw: &File,
    destination: &forward::Config,
    url: &str,
    key: &impl Fn(&str) -> String,
    document: &Document,
    problems: &mut Vec<Problem>,
) {
    match Address::parse(url) {
        Err(message) => problems.push(document.problem(key("url"), message)),
        Ok(address) if address.is_tls => {
            if let Err(error) = tls::client(&destination.tls) {
                problems.push(document.problem(key("tls"), error.to_string()));
            }
        }
        Ok(_) if destination.tls.is_set() => problems.push(document.problem(
            key("tls"),
            format!(
                "is set, but \"{url}\" speaks no TLS and would send everything in plain text; use mqtts://, or remove tls"
            ),
        )),
        Ok(_) if raw.environment == "production" => problems.push(document.problem(
            key("url"),
            format!("\"{url}\" is without TLS, which is not allowed in environment \"production\"; use mqtts://"),
        )),
        Ok(_) => {}
    }
}
