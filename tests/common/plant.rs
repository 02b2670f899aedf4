//! The plant's own broker: a real Mosquitto that keeps its sessions.

use super::pki::Pki;
use super::{await_port, free_address, kill, signal};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct PlantBroker {
    pub plain: SocketAddr,
    config: PathBuf,
    child: Option<Child>,
}

impl PlantBroker {
    /// `more` are lines of its configuration.
    pub fn start(folder: &Path, more: &str) -> Self {
        let plain = free_address();
        let folder = folder.join("plant-broker");
        std::fs::create_dir_all(&folder).expect("folder");
        let config = folder.join("mosquitto.conf");
        let text = format!(
            "per_listener_settings false\nuser root\npersistence true\npersistence_location {}/\nmax_queued_messages 0\nlog_type error\n\
             listener {} 127.0.0.1\n{}{more}",
            folder.display(),
            plain.port(),
            if more.contains("allow_anonymous") { "" } else { "allow_anonymous true\n" },
        );
        std::fs::write(&config, text).expect("written");
        let mut broker = Self { plain, config, child: None };
        broker.run();
        broker
    }

    /// Lines for a second port with TLS and client certificates.
    pub fn tls_lines(pki: &Pki, port: u16) -> String {
        format!(
            "listener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
            pki.ca.display(),
            pki.server_cert.display(),
            pki.server_key.display(),
        )
    }

    pub fn run(&mut self) {
        let child = Command::new("mosquitto")
            .arg("-c")
            .arg(&self.config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto starts; apt-get install mosquitto");
        self.child = Some(child);
        await_port(self.plain);
    }

    /// SIGKILL: its sessions, which it keeps in memory, are lost.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill(&mut child);
        }
    }

    /// SIGTERM: its sessions are on the disk.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, "TERM");
            let start = Instant::now();
            while !matches!(child.try_wait(), Ok(Some(_))) {
                if start.elapsed() > Duration::from_secs(60) {
                    kill(&mut child);
                    panic!("Mosquitto does not end: what it had acknowledged is lost");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Drop for PlantBroker {
    fn drop(&mut self) {
        self.kill();
    }
}
