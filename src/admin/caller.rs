//! Who asks at the command socket, as the kernel names the user at the other end.
//!
//! Promise: nobody changes anything whom the audit could not name. The kernel writes one number, 65534, for every user
//! that the user namespace of this process does not know; such a caller may look, and may change nothing.
//!
//! Not here: who may open the socket (the mode of its file), which role a caller has.

use std::sync::LazyLock;
use tokio::net::UnixStream;

/// The number that the kernel writes for users it cannot name, where `/proc/sys` is hidden: Linux has this default.
const OVERFLOW_UID: u32 = 65534;
/// How many users a namespace knows that hides none: every number but the last, which stands for "no user".
const ALL_USERS: u64 = u32::MAX as u64;

/// The user who asks, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Caller(pub Option<u32>);

impl Caller {
    /// The user at the other end of a connection.
    pub fn of(stream: &UnixStream) -> Self {
        Self(stream.peer_cred().ok().map(|peer| peer.uid()))
    }

    /// Why the audit cannot name this caller; `None` if it can.
    pub fn unnamed(self) -> Option<String> {
        static NAMESPACE: LazyLock<Namespace> = LazyLock::new(Namespace::of_this_process);
        let remedy = "run the gateway without a user namespace (systemd: PrivateUsers=no)";
        match self.0 {
            None => {
                Some("the kernel does not say which user asks, and every change is audited with its user".to_owned())
            }
            Some(uid) if NAMESPACE.names(uid) => None,
            Some(uid) => Some(format!(
                "the kernel does not say which user asks: {uid} stands for everybody whom the user namespace of the gateway hides, and every change is audited with its user; {remedy}"
            )),
        }
    }
}

/// Which users the user namespace of this process knows.
#[derive(Debug)]
struct Namespace {
    /// First number and how many, as numbers inside.
    known: Vec<(u64, u64)>,
    overflow: u32,
}

impl Namespace {
    fn of_this_process() -> Self {
        // A kernel without user namespaces has no map, and hides nobody.
        let map = std::fs::read_to_string("/proc/self/uid_map");
        let map = map.unwrap_or_else(|_| format!("0 0 {ALL_USERS}"));
        let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid");
        let overflow = overflow.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW_UID);
        Self::read(&map, overflow)
    }

    /// Reads lines of `inside outside count`, as `/proc/PID/uid_map` has them.
    fn read(map: &str, overflow: u32) -> Self {
        let line = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse);
            match (numbers.next(), numbers.next(), numbers.next()) {
                (Some(Ok(inside)), Some(Ok::<u64, _>(_)), Some(Ok(count))) => Some((inside, count)),
                _ => None,
            }
        };
        Self { known: map.lines().filter_map(line).collect(), overflow }
    }

    /// Whether a number that the kernel gave stands for one user, and not for everybody who is hidden.
    fn names(&self, uid: u32) -> bool {
        // A namespace can only know all users if the one around it does too.
        let is_whole = self.known.iter().map(|(_, count)| count).sum::<u64>() >= ALL_USERS;
        let is_known = self.known.iter().any(|(first, count)| (*first..first + count).contains(&u64::from(uid)));
        is_whole || (is_known && uid != self.overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_names_a_user_only_where_it_can_stand_for_nobody_else() {
        let names = |map: &str, uid| Namespace::read(map, OVERFLOW_UID).names(uid);
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
        assert!(!Namespace::read("0 0 1\n", 60000).names(60000), "the number is a setting of the kernel");
        assert!(!names("", 0) && !names("nonsense\n", 0));
    }
}
