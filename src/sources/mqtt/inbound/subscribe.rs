//! SUBSCRIBE and UNSUBSCRIBE, and the end of subscriptions that changed rights do not cover.
//!
//! Promise: SUBACK and UNSUBACK of a persistent session leave once the change is on the disk.

use super::super::acl::Rights;
use super::super::faults::refusal;
use super::super::outbound::Subscription;
use super::super::registry::{Key, Session};
use super::super::shared_subscription::Group;
use super::super::state::ListenerState;
use super::Inbound;
use crate::mqtt::packet;
use crate::mqtt::reason::{Fault, ReasonCode};
use crate::mqtt::topic::{Filter, split_share};
use crate::security::Cause;
use crate::sources::Refusal;
use std::sync::Arc;

impl Inbound {
    pub(super) fn subscribe(&mut self, shared: &ListenerState, body: &[u8]) -> Result<(), Fault> {
        let (packet_id, id, requested) = packet::subscribe(body, self.is_v5())?;
        if requested.iter().any(|one| one.no_local && self.is_v5() && one.filter.starts_with("$share/")) {
            return Err(Fault::protocol("No Local on a shared subscription"));
        }
        let mut codes = Vec::with_capacity(requested.len());
        for (number, requested) in requested.iter().enumerate() {
            if number >= shared.config.subscriptions_max {
                codes.push(ReasonCode::QuotaExceeded.suback(self.is_v5()));
                continue;
            }
            let subscription = Subscription { filter: requested.filter.to_owned(), qos: requested.qos.min(1), id };
            let qos = subscription.qos;
            codes.push(match self.subscribe_one(shared, subscription, requested.retain_handling) {
                Ok(()) => qos,
                Err(code) => code.suback(self.is_v5()),
            });
        }
        let wait_for = self.save_progress(shared);
        let mut bytes = Vec::new();
        packet::push_suback(&mut bytes, packet_id, self.is_v5(), &codes);
        self.reply(wait_for, &bytes)
    }

    /// Adds or replaces one subscription. The error is the reason code of SUBACK.
    fn subscribe_one(
        &mut self,
        shared: &ListenerState,
        subscription: Subscription,
        retain_handling: u8,
    ) -> Result<(), ReasonCode> {
        if subscription.filter.len() > shared.config.topic_max {
            let start = super::start_of(&subscription.filter);
            shared.refuse_client(&self.device, &start, Refusal::Limit, "the topic filter is longer than topic_max");
            return Err(ReasonCode::TopicFilterInvalid);
        }
        let (_, filter) = split_share(&subscription.filter).ok_or(ReasonCode::TopicFilterInvalid)?;
        if Filter::parse(filter).is_none() {
            return Err(ReasonCode::TopicFilterInvalid);
        }
        if !self.rights.may_subscribe(filter) {
            let why = "neither a rule (acl) nor the proven name lets this client subscribe to this filter";
            shared.count_refused(&self.device, Cause::Subscribe, filter, why);
            return Err(ReasonCode::NotAuthorized);
        }
        let outbound = &mut self.session.outbound;
        let is_new = !outbound.has(&subscription.filter);
        // As if it were a new subscription; the real bytes are known below.
        let bytes = self.outbound_bytes + subscription.bytes();
        if let Err(fault) = self.memory.resize(&mut self.outbound_bytes, bytes) {
            shared.refuse_client(&self.device, filter, refusal(fault), fault.text);
            return Err(fault.code);
        }
        let has_room = !is_new || outbound.count() < shared.config.subscriptions_max;
        let (registry, quotas) = (&shared.registry, shared.config.session_quotas());
        if !has_room || (self.session.number > 0 && !registry.subscribed(&self.key, &subscription, is_new, quotas)) {
            shared.count_refused(
                &self.device,
                Cause::SessionQuota,
                filter,
                "this client has too many subscriptions; see subscriptions_max and sessions_bytes_per_name_max",
            );
            return Err(ReasonCode::QuotaExceeded);
        }
        let group = subscription.filter.starts_with("$share/").then(|| shared.group(&subscription.filter));
        let written = subscription.filter.clone();
        outbound.subscribe(subscription, group, &shared.local).ok_or(ReasonCode::TopicFilterInvalid)?;
        let wants_last_values = retain_handling == 0 || (retain_handling == 1 && is_new);
        if wants_last_values {
            outbound.queue_last_values(&written);
        }
        let bytes = outbound.bytes();
        // This shrinks: the estimate above is not exceeded.
        self.memory.resize(&mut self.outbound_bytes, bytes).map_err(|fault| fault.code)
    }

    /// Requests a write of a persistent session. Returns the number of the write that the answer has to wait for.
    fn save_progress(&self, shared: &ListenerState) -> u64 {
        if self.session.number == 0 {
            return 0;
        }
        shared.registry.save_progress(&self.key, self.session.outbound.progress())
    }

    pub(super) fn unsubscribe(&mut self, shared: &ListenerState, body: &[u8]) -> Result<(), Fault> {
        let (packet_id, filters) = packet::unsubscribe(body, self.is_v5())?;
        let mut codes = Vec::with_capacity(filters.len());
        for filter in &filters {
            let is_there = shared.end_subscription(&self.key, &mut self.session, filter);
            let code = if is_there { ReasonCode::Success } else { ReasonCode::NoSubscriptionExisted };
            codes.push(code.value());
        }
        let wait_for = self.save_progress(shared);
        let mut bytes = Vec::new();
        packet::push_unsuback(&mut bytes, packet_id, self.is_v5(), &codes);
        self.reply(wait_for, &bytes)
    }
}

impl ListenerState {
    /// Returns the group of a shared subscription; `filter` includes `$share/` and the group.
    pub(in super::super) fn group(&self, filter: &str) -> Arc<Group> {
        let source = &self.config.name;
        let registry = &self.registry;
        registry.groups().join(source, filter, &self.local, || registry.group_note(source, filter))
    }

    /// Ends a subscription. Returns `false` if there is none of this filter.
    fn end_subscription(&self, key: &Key, session: &mut Session, filter: &str) -> bool {
        if !session.outbound.has(filter) {
            return false;
        }
        if filter.starts_with("$share/") {
            self.registry.keep_groups(&self.config.name, session.outbound.group_notes());
        }
        if session.number > 0 {
            self.registry.unsubscribed(key, filter);
        }
        session.outbound.unsubscribe(filter)
    }

    /// Ends the subscriptions that these rights do not cover. Returns their filters, and the number of the write that has
    /// to be done before CONNACK.
    pub(in super::super) fn end_subscriptions(
        &self,
        key: &Key,
        session: &mut Session,
        rights: &Rights,
    ) -> (Vec<String>, u64) {
        let filter = |written: &str| split_share(written).map_or(String::new(), |(_, filter)| filter.to_owned());
        let mut ended = session.outbound.subscriptions();
        ended.retain(|subscription| !rights.may_subscribe(&filter(&subscription.filter)));
        if ended.is_empty() {
            return (Vec::new(), 0);
        }
        for subscription in &ended {
            self.end_subscription(key, session, &subscription.filter);
        }
        tracing::info!(
            source = %self.config.name, client = key.client(), user = %session.user, ended = ended.len(),
            "ended subscriptions that the client's changed rights do not cover"
        );
        let wait_for =
            if session.number > 0 { self.registry.save_progress(key, session.outbound.progress()) } else { 0 };
        (ended.iter().map(|subscription| filter(&subscription.filter)).collect(), wait_for)
    }
}
