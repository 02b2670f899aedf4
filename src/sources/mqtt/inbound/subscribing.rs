//! What a client subscribes to, and what it is answered.

use super::super::outbound::{Outbound, Subscription};
use super::super::wire::{self, Fault};
use super::{Inbound, Shared};
use crate::local::{Filter, split_share};
use crate::security::Cause;
use crate::sources::Refusal;

/// Subscriptions of one client.
const SUBSCRIPTIONS_MAX: usize = 256;

impl Inbound {
    pub(super) fn subscribe(&mut self, shared: &Shared, body: &[u8]) -> Result<(), Fault> {
        let (packet_id, id, wanted) = wire::subscribe(body, self.is_v5())?;
        if wanted.iter().any(|wanted| wanted.no_local && self.is_v5() && wanted.filter.starts_with("$share/")) {
            return Err(Fault::protocol("No Local on a shared subscription"));
        }
        let mut codes = Vec::with_capacity(wanted.len());
        for (number, wanted) in wanted.iter().enumerate() {
            if number >= SUBSCRIPTIONS_MAX {
                codes.push(if self.is_v5() { 0x97 } else { 0x80 });
                continue;
            }
            let subscription = Subscription { filter: wanted.filter.to_owned(), qos: wanted.qos.min(1), id };
            let qos = subscription.qos;
            codes.push(match self.subscribe_one(shared, subscription, wanted.retain_handling) {
                Ok(()) => qos,
                // Failure is all that 3.1.1 can say.
                Err(code) => {
                    if self.is_v5() {
                        code
                    } else {
                        0x80
                    }
                }
            });
        }
        let wait_for =
            if self.session.number > 0 { shared.registry.subscribe(&self.key, &self.session.outbound) } else { 0 };
        let mut bytes = Vec::new();
        wire::push_suback(&mut bytes, packet_id, self.is_v5(), &codes);
        self.answer(wait_for, &bytes)
    }

    /// The error is the reason code of SUBACK.
    fn subscribe_one(&mut self, shared: &Shared, subscription: Subscription, retain_handling: u8) -> Result<(), u8> {
        if subscription.filter.len() > shared.config.topic_max {
            let start = super::start_of(&subscription.filter);
            shared.refuse_client(&self.device, &start, Refusal::Limit, "the topic filter is longer than topic_max");
            return Err(0x8F);
        }
        let (_, filter) = split_share(&subscription.filter).ok_or(0x8F_u8)?;
        if Filter::parse(filter).is_none() {
            return Err(0x8F);
        }
        if !self.rights.may_subscribe(filter) {
            let why = "neither a rule (acl) nor the proven name lets this client subscribe to this filter";
            shared.count_refused(&self.device, Cause::Subscribe, filter, why);
            return Err(0x87);
        }
        let outbound = &mut self.session.outbound;
        if outbound.count() >= SUBSCRIPTIONS_MAX {
            return Err(0x97);
        }
        // As if it were another one; what it really adds is known below.
        let bytes = self.outbound_bytes + Outbound::bytes_of(&subscription);
        if let Err(fault) = self.room.resize(&mut self.outbound_bytes, bytes) {
            shared.refuse_client(&self.device, filter, fault.reason(), fault.text);
            return Err(fault.code);
        }
        let is_new = outbound.subscribe(subscription, &shared.local, &shared.groups).ok_or(0x8F_u8)?;
        let wants_last = retain_handling == 0 || (retain_handling == 1 && is_new);
        if wants_last {
            outbound.tell_last_values(&shared.local);
        }
        let bytes = outbound.bytes();
        // What was taken is enough, or was more than that.
        self.room.resize(&mut self.outbound_bytes, bytes).map_err(|fault| fault.code)
    }

    pub(super) fn unsubscribe(&mut self, shared: &Shared, body: &[u8]) -> Result<(), Fault> {
        let (packet_id, filters) = wire::unsubscribe(body, self.is_v5())?;
        let outbound = &mut self.session.outbound;
        let codes: Vec<u8> = filters.iter().map(|filter| if outbound.unsubscribe(filter) { 0 } else { 0x11 }).collect();
        let wait_for =
            if self.session.number > 0 { shared.registry.subscribe(&self.key, &self.session.outbound) } else { 0 };
        let mut bytes = Vec::new();
        wire::push_unsuback(&mut bytes, packet_id, self.is_v5(), &codes);
        self.answer(wait_for, &bytes)
    }
}
