//! Real proxies with a login: squid and tinyproxy (HTTP), microsocks (SOCKS5).

use super::{await_port, end, free_address, kill};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub const USER: &str = "forebay";
pub const PASSWORD: &str = "open sesame";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Squid,
    Tinyproxy,
    Microsocks,
}

/// A process that listens on one port of loopback.
pub struct RealProxy {
    pub kind: Kind,
    pub address: SocketAddr,
    folder: PathBuf,
    child: Option<Child>,
}

impl RealProxy {
    /// Starts a proxy that lets `USER` with `PASSWORD` connect to any port but `forbidden`.
    pub fn start(kind: Kind, folder: &Path, forbidden: u16) -> Self {
        let folder = folder.join(format!("{kind:?}").to_lowercase());
        std::fs::create_dir_all(&folder).expect("folder");
        // Squid gives up the rights of root, and its folder lies in one that is closed to others.
        for open in [&folder, &folder.parent().expect("a folder").to_owned()] {
            std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o777)).expect("mode");
        }
        let mut proxy = Self { kind, address: free_address(), folder, child: None };
        proxy.write_config(forbidden);
        proxy.run();
        proxy
    }

    fn write_config(&self, forbidden: u16) {
        let (folder, port) = (self.folder.display(), self.address.port());
        match self.kind {
            Kind::Squid => {
                let hashed = Command::new("openssl").args(["passwd", "-apr1", PASSWORD]).output().expect("openssl");
                let line = format!("{USER}:{}", String::from_utf8_lossy(&hashed.stdout));
                std::fs::write(self.folder.join("users"), line).expect("written");
                let text = format!(
                    "http_port 127.0.0.1:{port}\nvisible_hostname squid.test\npid_filename none\naccess_log none\n\
                     cache_log {folder}/log\ncoredump_dir {folder}\ncache deny all\ncache_mem 8 MB\nshutdown_lifetime 0 seconds\n\
                     auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/users\n\
                     auth_param basic children 1 startup=1\nacl users proxy_auth REQUIRED\nacl CONNECT method CONNECT\n\
                     acl forbidden port {forbidden}\nhttp_access deny forbidden\nhttp_access allow CONNECT users\n\
                     http_access deny all\n"
                );
                std::fs::write(self.folder.join("conf"), text).expect("written");
            }
            Kind::Tinyproxy => {
                // Its file takes no space in a password.
                let password = PASSWORD.replace(' ', "-");
                let text = format!(
                    "Port {port}\nListen 127.0.0.1\nTimeout 600\nLogFile \"{folder}/log\"\nBasicAuth {USER} {password}\n"
                );
                std::fs::write(self.folder.join("conf"), text).expect("written");
            }
            Kind::Microsocks => {}
        }
    }

    pub fn run(&mut self) {
        let conf = self.folder.join("conf");
        let mut command = match self.kind {
            Kind::Squid => {
                let mut command = Command::new("/usr/sbin/squid");
                command.args(["-N", "-f"]).arg(conf);
                command
            }
            Kind::Tinyproxy => {
                let mut command = Command::new("tinyproxy");
                command.args(["-d", "-c"]).arg(conf);
                command
            }
            Kind::Microsocks => {
                let mut command = Command::new("microsocks");
                let port = self.address.port().to_string();
                command.args(["-i", "127.0.0.1", "-p", &port, "-u", USER, "-P", PASSWORD]);
                command
            }
        };
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.child = Some(child.unwrap_or_else(|error| {
            panic!("{:?} starts ({error}); apt-get install squid tinyproxy microsocks", self.kind)
        }));
        await_port(self.address);
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill(&mut child);
        }
    }

    /// The line of a destination or source that leads through it, with the password in a file of `folder`.
    pub fn line(&self, folder: &Path) -> String {
        let file = folder.join("proxy.password");
        let password = if self.kind == Kind::Tinyproxy { PASSWORD.replace(' ', "-") } else { PASSWORD.to_owned() };
        std::fs::write(&file, format!("{password}\n")).expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("mode");
        format!("proxy = {{ url = \"{}\", user = \"{USER}\", password_file = \"{}\" }}\n", self.url(), file.display())
    }

    pub fn url(&self) -> String {
        let scheme = if self.kind == Kind::Microsocks { "socks5" } else { "http" };
        format!("{scheme}://{}", self.address)
    }
}

impl Drop for RealProxy {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
        }
    }
}
