//! A network that drops packets, by the kernel's own hand.

use super::need::Need;

/// Packets to a port, dropped by the kernel as long as this lives.
pub struct Loss(String);

impl Loss {
    /// `None` where the test cannot run, which is then reported.
    pub fn of(percent: u32, port: u16) -> Option<Self> {
        let table = format!("forebay_test_{port}");
        let nft = |arguments: &str| {
            let output = std::process::Command::new("nft").args(arguments.split(' ')).output();
            output.is_ok_and(|output| output.status.success())
        };
        let is_here = nft(&format!("add table inet {table}"));
        if !Need::Nft.is_met(is_here, "dropping packets needs root and nft") {
            return None;
        }
        let loss = Self(table);
        let chain = &loss.0;
        let share = if percent >= 100 { String::new() } else { format!("numgen random mod 100 < {percent} ") };
        let is_set = nft(&format!("add chain inet {chain} in {{ type filter hook input priority 0 ; }}"))
            && nft(&format!("add rule inet {chain} in tcp dport {port} {share}drop"))
            && nft(&format!("add rule inet {chain} in tcp sport {port} {share}drop"));
        assert!(is_set, "nft sets no rule");
        Some(loss)
    }
}

impl Drop for Loss {
    fn drop(&mut self) {
        let _ = std::process::Command::new("nft").args(["delete", "table", "inet", &self.0]).output();
    }
}
