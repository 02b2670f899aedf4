//! Checks of Odoo sources, and of the watch, which evaluates their records.

use super::File;
use crate::contract::Contracts;
use crate::odoo::check_url;
use crate::secret::Secret;
use crate::setting::{Document, Problem};
use crate::tls;
use crate::watch;

pub(super) fn check_odoos(raw: &File, document: &Document, problems: &mut Vec<Problem>, warnings: &mut Vec<Problem>) {
    for (index, source) in raw.source.odoo.iter().enumerate() {
        let key = |part: &str| format!("source.odoo[{index}].{part}");
        if let Err((part, message)) = source.check() {
            problems.push(document.problem(key(part), message));
            continue;
        }
        if let Err(message) = source.client() {
            problems.push(document.problem(key("tls"), message));
        }
        if let Err(error) = Secret::read(&source.key_file) {
            problems.push(document.problem(key("key_file"), error.to_string()));
        }
        if check_url(&source.url) == Ok(true) && raw.environment == "production" {
            warnings.push(document.problem(
                key("url"),
                format!("\"{}\" is without TLS: anyone on the network path can read the key; use https://", source.url),
            ));
        }
        let Some(hook) = &source.hook else { continue };
        if let Err(message) = hook.token() {
            problems.push(document.problem(key("hook.token_file"), message));
        }
        if let Some(files) = &hook.tls
            && let Err(error) = tls::server(files)
        {
            problems.push(document.problem(key("hook.tls"), error.to_string()));
        }
        if hook.is_exposed() && raw.environment == "production" {
            problems.push(document.problem(
                key("hook.listen"),
                "a token without TLS is not allowed off loopback in environment \"production\"; set hook.tls",
            ));
        }
        let before = raw.source.odoo[..index].iter().filter_map(|other| other.hook.as_ref()).map(|hook| hook.listen);
        let http = raw.source.http.iter().map(|other| other.listen);
        let mut others = before.chain(http).chain(raw.source.mqtt.iter().map(|other| other.listen));
        if hook.listen.port() != 0 && others.any(|other| other == hook.listen) {
            problems.push(document.problem(key("hook.listen"), format!("{} is taken by another source", hook.listen)));
        }
    }
}

pub(super) fn check_watch(
    raw: &File,
    document: &Document,
    contracts: &Contracts,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) {
    let Some(watch) = &raw.watch else { return };
    if let Err((part, message)) = watch.check() {
        problems.push(document.problem(format!("watch.{part}"), message));
    }
    if raw.source.odoo.is_empty() {
        problems.push(document.problem("watch", "there is nothing to watch; add a [[source.odoo]]"));
    }
    // Refused contracts are already reported as their own problems.
    let declared = |stream: &str| contracts.iter().any(|contract| contract.stream() == stream);
    let lacking: Vec<_> = watch::STREAMS.into_iter().filter(|stream| !declared(stream)).collect();
    if !lacking.is_empty() && contracts.iter().next().is_some() {
        let message =
            format!("no contract declares {}; copy config/contracts/watch into contracts", lacking.join(", "));
        problems.push(document.problem("watch", message));
    }
    let reads = |model: &str| contracts.iter().any(|one| one.odoo.as_ref().is_some_and(|odoo| odoo.model == model));
    for (model, what) in
        [("mrp.production", "orders"), ("mrp.workorder", "work orders"), ("mrp.workcenter", "work centers")]
    {
        if !reads(model) {
            warnings.push(document.problem("watch", format!("no contract reads {model}: {what} are not watched")));
        }
    }
}
