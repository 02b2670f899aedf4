//! The causes of security events.

/// Cause of a security event. The names are values of `cause` in events and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A user name or password was wrong, or a client gave none where they are required.
    Login,
    /// A TLS handshake failed: no certificate, or one of another authority, expired or revoked.
    Tls,
    /// A bearer token was wrong or missing.
    Token,
    /// A client may not publish to a topic, or post for a source.
    Publish,
    /// A client may not subscribe to a filter.
    Subscribe,
    /// A client may not publish to the topic of its will.
    Will,
    /// A client id belongs to another principal.
    Session,
    /// A client would exceed the allowed number of sessions.
    SessionQuota,
    /// A connection or a subscription was ended after a change of rights.
    Cut,
    /// The configuration, contracts, users or certificates were changed, or a change was rejected.
    Change,
    /// A change was rejected at the command socket.
    Command,
}

impl Cause {
    /// All causes, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Login,
        Self::Tls,
        Self::Token,
        Self::Publish,
        Self::Subscribe,
        Self::Will,
        Self::Session,
        Self::SessionQuota,
        Self::Cut,
        Self::Change,
        Self::Command,
    ];

    /// Name in events and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Tls => "tls",
            Self::Token => "token",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Will => "will",
            Self::Session => "session",
            Self::SessionQuota => "session-quota",
            Self::Cut => "cut",
            Self::Change => "change",
            Self::Command => "command",
        }
    }
}
