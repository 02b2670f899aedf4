//! The two that are compared, each a process of its own.

use crate::common::{self, pki::Pki};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The gateway that is measured: `FOREBAY_BIN`, or else the one that was built with the benchmark.
pub fn program() -> PathBuf {
    std::env::var_os("FOREBAY_BIN").map_or_else(|| env!("CARGO_BIN_EXE_forebay").into(), PathBuf::from)
}

pub trait Peer {
    fn pid(&self) -> u32;
    fn address(&self) -> SocketAddr;
}

pub struct Gateway {
    child: Child,
    address: SocketAddr,
}

impl Gateway {
    pub fn start(folder: &Path, centre: SocketAddr, pki: &Pki, lane: &str) -> Self {
        Self::start_with(folder, centre, pki, lane, "")
    }

    /// `more` are lines of the listener.
    pub fn start_with(folder: &Path, centre: SocketAddr, pki: &Pki, lane: &str, more: &str) -> Self {
        Self::start_in(folder, centre, pki, lane, more, "")
    }

    /// `rest` are tables at the end of the configuration.
    pub fn start_in(folder: &Path, centre: SocketAddr, pki: &Pki, lane: &str, more: &str, rest: &str) -> Self {
        std::fs::create_dir_all(folder.join("contracts")).expect("folder");
        let address = common::free_address();
        std::fs::write(folder.join("contracts/state.toml"), include_str!("contract.toml").replace("LANE", lane))
            .expect("written");
        for (name, lane) in [("live", "critical"), ("count", "standard")] {
            let metadata = include_str!("contract.toml")
                .replace("LANE", lane)
                .replace("machine.state", &format!("machine.{name}"))
                .replace("plant/{line}", &format!("{name}/{{line}}"));
            std::fs::write(folder.join(format!("contracts/{name}.toml")), metadata).expect("written");
        }
        std::fs::write(folder.join("contracts/state.json"), include_str!("schema.json")).expect("written");
        let config = format!(
            r#"
environment = "bench"
site = "plant"
name = "gw"
data_dir = "data"
[[source.mqtt]]
name = "devices"
listen = "{address}"
{more}
[[destination]]
name = "central"
url = "mqtts://localhost:{}"
tls = {{ ca = "{ca}", cert = "{cert}", key = "{key}" }}
{rest}
"#,
            centre.port(),
            ca = pki.ca.display(),
            cert = pki.client_cert.display(),
            key = pki.client_key.display(),
        );
        std::fs::write(folder.join("forebay.toml"), config).expect("written");
        let log = std::fs::File::create(folder.join("log")).expect("log");
        let child = Command::new(program())
            .args(["run", "--config"])
            .arg(folder.join("forebay.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the gateway starts");
        common::await_port(address);
        Self { child, address }
    }
}

impl Gateway {
    /// SIGKILL.
    pub fn kill(mut self) {
        common::kill(&mut self.child);
    }
}

impl Peer for Gateway {
    fn pid(&self) -> u32 {
        self.child.id()
    }
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        common::end(&mut self.child);
    }
}

pub struct Bridge {
    child: Child,
    address: SocketAddr,
}

impl Bridge {
    pub fn start(folder: &Path, centre: SocketAddr, pki: &Pki) -> Self {
        Self::start_with(folder, centre, pki, include_str!("bridge.conf"))
    }

    /// With a session that outlives its connection: without one it forgets what it holds in an outage.
    pub fn start_keeping(folder: &Path, centre: SocketAddr, pki: &Pki) -> Self {
        let text = include_str!("bridge.conf").replace("cleansession true", "cleansession false");
        Self::start_with(folder, centre, pki, &text)
    }

    fn start_with(folder: &Path, centre: SocketAddr, pki: &Pki, text: &str) -> Self {
        std::fs::create_dir_all(folder).expect("folder");
        let address = common::free_address();
        let config = text
            .replace("PORT", &address.port().to_string())
            .replace("CENTRE", &format!("localhost:{}", centre.port()))
            .replace("CA", &pki.ca.display().to_string())
            .replace("CERT", &pki.client_cert.display().to_string())
            .replace("KEY", &pki.client_key.display().to_string());
        std::fs::write(folder.join("bridge.conf"), config).expect("written");
        let log = std::fs::File::create(folder.join("log")).expect("log");
        let child = Command::new("mosquitto")
            .arg("-c")
            .arg(folder.join("bridge.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("mosquitto starts; apt-get install mosquitto");
        common::await_port(address);
        Self { child, address }
    }
}

impl Peer for Bridge {
    fn pid(&self) -> u32 {
        self.child.id()
    }
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        common::end(&mut self.child);
    }
}
