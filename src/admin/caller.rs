//! The user at the other end of the command socket (`SO_PEERCRED`).
//!
//! Promise: only users whom the audit can name may change anything. The kernel reports one uid, 65534, for every user
//! that the user namespace of this process does not map; such a caller may read, but change nothing.
//!
//! Not here: who may open the socket (the mode of its file); roles of callers.

use std::sync::LazyLock;
use tokio::net::UnixStream;

/// Overflow uid of the kernel if `/proc/sys` is hidden: the default of Linux.
const OVERFLOW_UID: u32 = 65534;
/// Number of uids in a namespace that maps all users: every number but the last, which means "no user".
const ALL_USERS: u64 = u32::MAX as u64;

/// The uid of a caller, if the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Caller(pub Option<u32>);

impl Caller {
    /// Returns the user at the other end of a connection.
    pub(super) fn of(stream: &UnixStream) -> Self {
        Self(stream.peer_cred().ok().map(|peer| peer.uid()))
    }

    /// Returns why the audit cannot name this caller; `None` if it can.
    pub(super) fn unnamed(self) -> Option<String> {
        static NAMESPACE: LazyLock<Namespace> = LazyLock::new(Namespace::of_this_process);
        let remedy = "run the gateway without a user namespace (systemd: PrivateUsers=no)";
        match self.0 {
            None => {
                Some("the kernel does not say which user asks, and every change is audited with its user".to_owned())
            }
            Some(uid) if NAMESPACE.names(uid) => None,
            Some(uid) => Some(format!(
                "the kernel does not say which user asks: {uid} stands for every user that the user namespace of the gateway does not map, and every change is audited with its user; {remedy}"
            )),
        }
    }
}

/// The uids that the user namespace of this process maps.
#[derive(Debug)]
struct Namespace {
    /// Ranges of mapped uids, as seen inside: first uid and length.
    mapped: Vec<(u64, u64)>,
    overflow: u32,
}

impl Namespace {
    fn of_this_process() -> Self {
        // A kernel without user namespaces has no map, and maps all users.
        let map = std::fs::read_to_string("/proc/self/uid_map");
        let map = map.unwrap_or_else(|_| format!("0 0 {ALL_USERS}"));
        let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid");
        let overflow = overflow.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW_UID);
        Self::parse(&map, overflow)
    }

    /// Parses lines of `inside outside count`, as `/proc/PID/uid_map` has them.
    fn parse(map: &str, overflow: u32) -> Self {
        let line = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse);
            match (numbers.next(), numbers.next(), numbers.next()) {
                (Some(Ok(inside)), Some(Ok::<u64, _>(_)), Some(Ok(count))) => Some((inside, count)),
                _ => None,
            }
        };
        Self { mapped: map.lines().filter_map(line).collect(), overflow }
    }

    /// Whether a uid from the kernel identifies one user, and is not the overflow uid.
    fn names(&self, uid: u32) -> bool {
        // A namespace can map all users only if its parent does too.
        let is_whole = self.mapped.iter().map(|(_, count)| count).sum::<u64>() >= ALL_USERS;
        let is_known = self.mapped.iter().any(|(first, count)| (*first..first + count).contains(&u64::from(uid)));
        is_whole || (is_known && uid != self.overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_names_a_user_only_where_it_can_stand_for_nobody_else() {
        let names = |map: &str, uid| Namespace::parse(map, OVERFLOW_UID).names(uid);
        let whole = "         0          0 4294967295\n";
        assert!(names(whole, 0) && names(whole, 1234));
        assert!(names(whole, 65534), "on a plain machine it is the user nobody");
        // As systemd's PrivateUsers=yes and `unshare --map-root-user` write it.
        let hidden = "0 0 1\n998 998 1\n";
        assert!(names(hidden, 0) && names(hidden, 998));
        assert!(!names(hidden, 65534) && !names(hidden, 1234));
        // A container that knows 65536 users: those of the machine show as the last of them but one.
        assert!(names("0 100000 65536\n", 1000) && !names("0 100000 65536\n", 65534));
        // Two parts that make a whole.
        assert!(names("0 0 1000\n1000 1000 4294966295\n", 65534));
        assert!(!Namespace::parse("0 0 1\n", 60000).names(60000), "the number is a setting of the kernel");
        assert!(!names("", 0) && !names("nonsense\n", 0));
    }
}
