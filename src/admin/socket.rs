//! The file of the command socket.
//!
//! Promise: at no moment may more users open the socket than its mode says, whatever the umask of the process is. A
//! socket that a dead gateway left is replaced; anything else that stands at its path is left alone.

use crate::setting::check_socket_path;
use rustix::fs::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::net::UnixListener;

/// The service's user and group may ask.
const MODE: u32 = 0o660;
/// Connections that wait to be accepted, as std's listener has them.
const BACKLOG: i32 = 128;

/// Makes the socket.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    check_socket_path(path).map_err(|message| io::Error::new(io::ErrorKind::InvalidInput, message))?;
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another gateway answers there; set socket to another file",
        ));
    }
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let socket = bind(path)?;
    // A strict umask has taken the group's right away.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)?;
    UnixListener::from_std(socket.into())
}

/// A socket with a file, to which nobody can connect yet. Linux makes the file with the mode of the socket, less the
/// umask: so it never has a wider one. Changing the umask instead would change what other threads create meanwhile.
fn bind(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(&socket, Mode::from_raw_mode(MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once the mode was set after the file was there: with a umask of 0 everybody could connect in between.
    #[test]
    fn the_file_of_the_socket_is_never_open_wider_than_its_mode() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("forebay.sock");
        let before = rustix::process::umask(Mode::empty());
        let socket = bind(&path);
        rustix::process::umask(before);
        let mode = std::fs::symlink_metadata(&path).expect("the file is there").permissions().mode() & 0o777;
        assert_eq!(mode, MODE, "{mode:o}");
        assert!(
            std::os::unix::net::UnixStream::connect(&path).is_err(),
            "nobody can connect before the mode is checked"
        );
        drop(socket.expect("bound"));
    }
}
