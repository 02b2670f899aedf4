//! Why the listener refuses a client or ends its connection, and how a refusal is counted.

use crate::mqtt::{Fault, ReasonCode};
use crate::sources::Refusal;

/// The budget has no room for this client.
pub(super) const NO_MEMORY: Fault = Fault {
    code: ReasonCode::QuotaExceeded,
    text: "the gateway has no memory left for what this client sends; see the setting memory",
};
/// The client is evicted for a party that holds much less.
pub(super) const MOST_MEMORY: Fault = Fault {
    code: ReasonCode::QuotaExceeded,
    text: "memory is short, and this client's user or address holds most; see the setting memory",
};
pub(super) const ALL_TAKEN: Fault = Fault {
    code: ReasonCode::QuotaExceeded,
    text: "connections_max is reached, and this user or address has most of them",
};
pub(super) const MAY_NOT_PUBLISH: Fault =
    Fault { code: ReasonCode::NotAuthorized, text: "this client may not publish to this topic" };
pub(super) const TOPIC_TOO_LONG: Fault =
    Fault { code: ReasonCode::TopicNameInvalid, text: "the topic is longer than topic_max" };
/// The reason code is one that a PUBACK may have, unlike *Packet too large*.
pub(super) const PAYLOAD_TOO_LARGE: Fault = Fault {
    code: ReasonCode::ImplementationSpecificError,
    text: "the publish is larger than payload_max and the maximum packet size of CONNACK allow",
};
pub(super) const TOO_LATE: Fault = Fault {
    code: ReasonCode::ImplementationSpecificError,
    text: "the packet did not arrive in time; see packet_wait_max",
};
pub(super) const SHUTTING_DOWN: Fault =
    Fault { code: ReasonCode::ServerShuttingDown, text: "the gateway is shutting down" };
pub(super) const CROWDED_OUT: Fault = Fault {
    code: ReasonCode::QuotaExceeded,
    text: "connections_max is reached; its user or address has most, and it was idle longest",
};
pub(super) const TAKEN_OVER: Fault =
    Fault { code: ReasonCode::SessionTakenOver, text: "another connection took over this client id" };
pub(super) const KEEP_ALIVE_EXPIRED: Fault =
    Fault { code: ReasonCode::KeepAliveTimeout, text: "no packet came within one and a half times the keep-alive" };
pub(super) const TOO_SLOW: Fault =
    Fault { code: ReasonCode::QuotaExceeded, text: "the subscriber does not keep up; see backlog_events_max" };

/// Returns the kind of refusal that the metrics count for a fault.
pub(super) fn refusal(fault: Fault) -> Refusal {
    match fault.code {
        _ if [NO_MEMORY, MOST_MEMORY].contains(&fault) => Refusal::Memory,
        _ if [TOPIC_TOO_LONG, PAYLOAD_TOO_LARGE].contains(&fault) => Refusal::Limit,
        ReasonCode::NotAuthorized | ReasonCode::BadAuthenticationMethod => Refusal::Access,
        ReasonCode::PacketTooLarge | ReasonCode::QuotaExceeded => Refusal::Limit,
        _ => Refusal::Protocol,
    }
}
