//! What may stand before an Odoo: TLS, or a proxy that lets nothing but `/jsonrpc` through.

use super::fake::request;
use crate::common::pki::Pki;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

/// TLS with the certificate of a server in this folder; returns where, and the authority's file.
pub fn tls(folder: &Path, to: SocketAddr) -> (SocketAddr, std::path::PathBuf) {
    let pki = Pki::write(folder);
    let files =
        forebay::tls::ServerFiles { cert: pki.server_cert.clone(), key: pki.server_key.clone(), ..Default::default() };
    let config = forebay::tls::server(&files).expect("server TLS");
    let address = listen(move |stream| {
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).expect("a connection");
        relay(rustls::StreamOwned::new(connection, stream), to, |_| false)
    });
    (address, pki.ca)
}

/// A proxy that hides JSON-2.
pub fn only_jsonrpc(to: SocketAddr) -> SocketAddr {
    listen(move |stream| relay(stream, to, |path| path.starts_with("/json/")))
}

fn listen(serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address");
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in socket.incoming().flatten() {
            let serve = Arc::clone(&serve);
            // What goes wrong shows at the client.
            std::thread::spawn(move || drop(serve(stream)));
        }
    });
    address
}

fn relay(mut stream: impl Read + Write, to: SocketAddr, is_hidden: impl Fn(&str) -> bool) -> std::io::Result<()> {
    let Some((head, body)) = request(&mut stream)? else { return Ok(()) };
    if is_hidden(head.split(' ').nth(1).unwrap_or_default()) {
        stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 14\r\nConnection: close\r\n\r\n<h1>proxy</h1>",
        )?;
        return stream.flush();
    }
    let mut odoo = TcpStream::connect(to)?;
    odoo.write_all(head.as_bytes())?;
    odoo.write_all(b"\r\n\r\n")?;
    odoo.write_all(&body)?;
    let mut answer = Vec::new();
    // It closes behind each answer.
    odoo.read_to_end(&mut answer)?;
    stream.write_all(&answer)?;
    stream.flush()
}
