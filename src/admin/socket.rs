//! Creates the command socket.
//!
//! Promise: at no moment can more users open the socket than its mode allows, whatever the umask of the process is. A
//! stale socket of a dead gateway is replaced; any other file at the path stays untouched.

use crate::setting::check_socket_path;
use rustix::fs::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::net::UnixListener;

/// User and group of the service may connect.
const MODE: u32 = 0o660;
/// Length of the accept queue, as in std's listener.
const BACKLOG: i32 = 128;

/// Creates the socket and listens on it. Fails if another gateway answers at this path.
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
    // A strict umask may have removed the rights of the group.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)?;
    UnixListener::from_std(socket.into())
}

/// Binds a socket to which nobody can connect yet. Linux creates the file with the mode of the socket minus the umask,
/// so it is never wider. Changing the umask instead would affect files that other threads create meanwhile.
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

    /// If the mode were set after bind, everybody could connect in between with a umask of 0.
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
