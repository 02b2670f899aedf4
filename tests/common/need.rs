//! What a test needs of the machine.
//!
//! Promise: a need that `FOREBAY_REQUIRE` names is there, or the test fails. `tests/run` names all that CI has, so that no
//! test passes there without being run.

/// Something that a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The rights of the user root.
    Root,
    /// The program `git`, and a clone with its history.
    Git,
    /// The program `nft`, and the right to have the kernel drop packets.
    Nft,
    /// The device `/dev/net/tun`, the program `socat`, and the rights of the user root.
    Tun,
    /// The program `promtool` (Debian: prometheus).
    Promtool,
    /// Mosquitto's plugin for access rights.
    MosquittoPlugin,
    /// A control group with a memory limit.
    Cgroup,
    /// A real Odoo, which `FOREBAY_ODOO` asks for.
    Odoo,
    /// Time for all that is tried on the real Odoo.
    OdooLong,
}

impl Need {
    const ALL: [Self; 9] = [
        Self::Root,
        Self::Git,
        Self::Nft,
        Self::Tun,
        Self::Promtool,
        Self::MosquittoPlugin,
        Self::Cgroup,
        Self::Odoo,
        Self::OdooLong,
    ];

    /// Its name in `FOREBAY_REQUIRE`.
    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Git => "git",
            Self::Nft => "nft",
            Self::Tun => "tun",
            Self::Promtool => "promtool",
            Self::MosquittoPlugin => "mosquitto-plugin",
            Self::Cgroup => "cgroup",
            Self::Odoo => "odoo",
            Self::OdooLong => "odoo-long",
        }
    }

    /// Whether `FOREBAY_REQUIRE` names it.
    fn is_required(self) -> bool {
        let required = std::env::var("FOREBAY_REQUIRE").unwrap_or_default();
        for name in required.split(',').filter(|name| !name.is_empty()) {
            assert!(Self::ALL.iter().any(|need| need.name() == name), "FOREBAY_REQUIRE: there is no \"{name}\"");
        }
        required.split(',').any(|name| name == self.name())
    }

    /// Returns `is_here`. Without it the test says why it does not run, and fails if the need is required.
    #[track_caller]
    pub fn is_met(self, is_here: bool, why: &str) -> bool {
        assert!(is_here || !self.is_required(), "not run, though FOREBAY_REQUIRE names {}: {why}", self.name());
        if !is_here {
            println!("not run: {why}");
        }
        is_here
    }
}

/// Whether the test runs as root, which it needs for `why`.
#[track_caller]
pub fn root(why: &str) -> bool {
    Need::Root.is_met(is_root(), &format!("{why} needs root"))
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
