//! Serves the command socket.
//!
//! Promise: the number of connections and their idle time are bounded; a client that reads nothing ends its connection.

use super::caller::Caller;
use super::handles::Handles;
use super::request::CommandRequest;
use super::routes::answer;
use crate::http::{self, ConnectionLimit, ConnectionSlot, Phase};
use crate::setting::check_socket_path;
use crate::shutdown::Shutdown;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// Most simultaneous connections; each command uses one.
const CONNECTIONS_MAX: usize = 256;
/// Longest time a connection may be idle.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Longest time a client may read nothing of a response: nobody can block an export, a backup or a connection for
/// good. Output behind a pager that waits longer has to be requested again.
const UNREAD_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest wait for running requests after the shutdown has begun.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);

/// Serves the command socket until the shutdown.
pub async fn serve(socket: UnixListener, handles: Arc<Handles>, mut shutdown: Shutdown) {
    let path = socket.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
    let mut connections = JoinSet::new();
    let crowd = ConnectionLimit::new(CONNECTIONS_MAX);
    loop {
        tokio::select! {
            () = shutdown.begun() => break,
            // Removes finished connections, which would otherwise accumulate.
            Some(_) = connections.join_next() => {}
            () = crowd.changed(), if !crowd.has_room() => {}
            accepted = socket.accept(), if crowd.has_room() => match accepted {
                Ok((stream, _)) => {
                    let caller = Caller::of(&stream);
                    let request = CommandRequest { handles: Arc::clone(&handles), shutdown: shutdown.clone(), caller };
                    connections.spawn(connection(stream, crowd.acquire(caller), request));
                }
                // Mostly out of file descriptors: wait for connections to close.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
    // New connections fail from now on.
    drop(socket);
    // Streaming responses end with the shutdown too.
    while connections.join_next().await.is_some() {}
    if let Some(path) = path.filter(|path| check_socket_path(path).is_ok()) {
        // On failure, the next start replaces the file.
        let _ = std::fs::remove_file(path);
    }
}

/// Serves one connection, whose requests have the same user; returns when it has ended.
async fn connection(stream: UnixStream, seat: ConnectionSlot<Caller>, request: CommandRequest) {
    let (mut stream, mut shutdown) =
        (http::with_write_timeout(Box::new(stream), UNREAD_WAIT_MAX), request.shutdown.clone());
    let answer = |http_request| {
        // Each command has its own connection: once a request has arrived, the connection is not evicted.
        seat.enter(Phase::Answering);
        answer(request.clone(), http_request)
    };
    let connection = http::connection(&mut stream, SILENCE_MAX, answer);
    let end = async {
        tokio::select! {
            () = shutdown.begun() => DRAIN_WAIT_MAX,
            () = seat.cut() => http::CUT_WAIT_MAX,
        }
    };
    // A peer that does not speak HTTP gets no response.
    http::served(connection, end).await;
}
