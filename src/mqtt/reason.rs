//! MQTT reason codes (MQTT 5, section 2.4) and the return codes of CONNACK in MQTT 3.1.1.
//!
//! Invariant: what the gateway answers is chosen as a [`ReasonCode`]; a client of MQTT 3.1.1 gets what corresponds to it.

/// A reason code of MQTT 5, with its value on the wire. Those that the gateway neither sends nor names are not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReasonCode {
    Success = 0x00,
    NoMatchingSubscribers = 0x10,
    NoSubscriptionExisted = 0x11,
    /// In MQTT 3.1.1 the only code of a SUBACK that refuses a filter.
    UnspecifiedError = 0x80,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    ImplementationSpecificError = 0x83,
    UnsupportedProtocolVersion = 0x84,
    ClientIdentifierNotValid = 0x85,
    BadUserNameOrPassword = 0x86,
    NotAuthorized = 0x87,
    ServerBusy = 0x89,
    ServerShuttingDown = 0x8B,
    BadAuthenticationMethod = 0x8C,
    KeepAliveTimeout = 0x8D,
    SessionTakenOver = 0x8E,
    TopicFilterInvalid = 0x8F,
    TopicNameInvalid = 0x90,
    PacketIdentifierInUse = 0x91,
    PacketIdentifierNotFound = 0x92,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    QuotaExceeded = 0x97,
    PayloadFormatInvalid = 0x99,
    SharedSubscriptionsNotSupported = 0x9E,
    ConnectionRateExceeded = 0x9F,
    SubscriptionIdentifiersNotSupported = 0xA1,
    WildcardSubscriptionsNotSupported = 0xA2,
}

/// The codes with which a broker refuses a publish or a subscription, and their names in the standard.
const NAMES: [(ReasonCode, &str); 11] = [
    (ReasonCode::UnspecifiedError, "unspecified error"),
    (ReasonCode::ImplementationSpecificError, "implementation specific error"),
    (ReasonCode::NotAuthorized, "not authorized"),
    (ReasonCode::TopicFilterInvalid, "topic filter invalid"),
    (ReasonCode::TopicNameInvalid, "topic name invalid"),
    (ReasonCode::PacketIdentifierInUse, "packet identifier in use"),
    (ReasonCode::QuotaExceeded, "quota exceeded"),
    (ReasonCode::PayloadFormatInvalid, "payload format invalid"),
    (ReasonCode::SharedSubscriptionsNotSupported, "shared subscriptions not supported"),
    (ReasonCode::SubscriptionIdentifiersNotSupported, "subscription identifiers not supported"),
    (ReasonCode::WildcardSubscriptionsNotSupported, "wildcard subscriptions not supported"),
];

impl ReasonCode {
    /// Returns the code with which a broker refuses a publish or a subscription; `None` for any other byte.
    pub fn of_refusal(value: u8) -> Option<Self> {
        NAMES.iter().map(|(code, _)| *code).find(|code| code.value() == value)
    }

    /// Returns the name of a code with which a broker refuses a publish or a subscription.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(code, _)| *code == self).map_or("unknown reason", |(_, name)| name)
    }

    /// Returns the byte that stands for the code on the wire.
    pub const fn value(self) -> u8 {
        self as u8
    }

    /// Returns the byte that refuses a filter in SUBACK.
    pub const fn suback(self, is_v5: bool) -> u8 {
        if is_v5 { self.value() } else { Self::UnspecifiedError.value() }
    }
}

/// A return code of CONNACK in MQTT 3.1.1 (section 3.2.2.3), with its value on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ConnectReturnCode {
    Accepted = 0,
    UnacceptableProtocolVersion = 1,
    IdentifierRejected = 2,
    ServerUnavailable = 3,
    BadUserNameOrPassword = 4,
    NotAuthorized = 5,
}

impl ConnectReturnCode {
    /// Returns the byte that stands for the code on the wire.
    pub(crate) const fn value(self) -> u8 {
        self as u8
    }
}

impl From<ReasonCode> for ConnectReturnCode {
    fn from(code: ReasonCode) -> Self {
        match code {
            ReasonCode::Success => Self::Accepted,
            ReasonCode::UnsupportedProtocolVersion => Self::UnacceptableProtocolVersion,
            ReasonCode::ClientIdentifierNotValid => Self::IdentifierRejected,
            ReasonCode::QuotaExceeded | ReasonCode::ServerBusy | ReasonCode::ConnectionRateExceeded => {
                Self::ServerUnavailable
            }
            ReasonCode::BadUserNameOrPassword => Self::BadUserNameOrPassword,
            _ => Self::NotAuthorized,
        }
    }
}

/// An error that ends a connection: reason code of MQTT 5 and a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Reason code of DISCONNECT or CONNACK.
    pub code: ReasonCode,
    /// What was wrong. It never contains bytes of the client.
    pub text: &'static str,
}

impl Fault {
    /// An error with reason code *Malformed Packet*.
    pub const fn malformed(text: &'static str) -> Self {
        Self { code: ReasonCode::MalformedPacket, text }
    }

    /// An error with reason code *Protocol Error*.
    pub const fn protocol(text: &'static str) -> Self {
        Self { code: ReasonCode::ProtocolError, text }
    }
}
