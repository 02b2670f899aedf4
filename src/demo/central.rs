//! A minimal central broker: receives publishes over TLS, keeps retained messages, and forwards all messages to its
//! subscribers with QoS 0.
//!
//! Only for the demo: it has no persistence and no limits.

use crate::mqtt::client::{Head, push_publish};
use crate::mqtt::connect::Connect;
use crate::mqtt::{Fault, Filter, Protocol, packet};
use crate::tls::{self, ServerFiles};
use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub(super) struct Central {
    /// Address of its TLS listener.
    pub address: SocketAddr,
    broker: Arc<Broker>,
}

struct Broker {
    received: AtomicU64,
    retained: Mutex<HashMap<String, Message>>,
    messages: broadcast::Sender<Message>,
}

#[derive(Clone)]
pub(super) struct Message {
    pub(super) topic: Arc<str>,
    pub(super) payload: Arc<[u8]>,
}

/// Largest number of messages queued for a slow subscriber; further ones are dropped.
const QUEUED_MAX: usize = 16_384;

const READ_BYTES: usize = 32 << 10;
/// Largest accepted packet, far above those of the gateway.
const PACKET_BYTES_MAX: usize = 16 << 20;

/// Preferred port if it is free: shell commands of an earlier run still work.
pub(super) const PORT: u16 = 18_883;

impl Central {
    /// Number of received publishes, without retained ones (the status of the gateway).
    pub(super) fn received(&self) -> u64 {
        self.broker.received.load(Ordering::Relaxed)
    }

    /// Follows all messages that the broker receives from now on.
    pub(super) fn messages(&self) -> broadcast::Receiver<Message> {
        self.broker.messages.subscribe()
    }
}

/// Starts the broker with the certificate in the demo's folder.
pub(super) async fn start(folder: &Path) -> anyhow::Result<Central> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).await {
        Ok(listener) => start_on(folder, listener),
        Err(_) => start_at(folder, 0).await,
    }
}

/// Starts the broker on a port.
pub(super) async fn start_at(folder: &Path, port: u16) -> anyhow::Result<Central> {
    start_on(folder, TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?)
}

fn start_on(folder: &Path, listener: TcpListener) -> anyhow::Result<Central> {
    let files =
        ServerFiles { cert: folder.join("central.pem"), key: folder.join("central.key"), ..ServerFiles::default() };
    let acceptor = TlsAcceptor::from(tls::server(&files)?);
    let address = listener.local_addr()?;
    let broker = Arc::new(Broker {
        received: AtomicU64::new(0),
        retained: Mutex::new(HashMap::new()),
        messages: broadcast::channel(QUEUED_MAX).0,
    });
    let for_accept = Arc::clone(&broker);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, broker) = (acceptor.clone(), Arc::clone(&for_accept));
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let mut client = Client::new(stream, &broker);
                    // Errors end only this client's connection.
                    let _ = client.serve().await;
                }
            });
        }
    });
    Ok(Central { address, broker })
}

struct Client<'s> {
    stream: TlsStream<TcpStream>,
    broker: &'s Broker,
    protocol: Option<Protocol>,
    filters: Vec<Filter>,
    output: Vec<u8>,
    is_over: bool,
}

impl<'s> Client<'s> {
    fn new(stream: TlsStream<TcpStream>, broker: &'s Broker) -> Self {
        Self { stream, broker, protocol: None, filters: Vec::new(), output: Vec::new(), is_over: false }
    }

    async fn serve(&mut self) -> std::io::Result<()> {
        let mut messages = self.broker.messages.subscribe();
        let mut input = BytesMut::new();
        while !self.is_over {
            input.reserve(READ_BYTES);
            tokio::select! {
                read = self.stream.read_buf(&mut input) => {
                    if read? == 0 {
                        return Ok(());
                    }
                    while let (false, Ok(Some(frame))) = (self.is_over, packet::frame(&input, PACKET_BYTES_MAX)) {
                        // A malformed packet ends the connection.
                        self.is_over |= self.handle(&frame).is_err();
                        let length = frame.length;
                        input.advance(length);
                    }
                    self.is_over |= packet::frame(&input, PACKET_BYTES_MAX).is_err();
                }
                // A subscriber that is too slow misses messages, as QoS 0 allows.
                received = messages.recv() => if let Ok(message) = received { self.forward(&message) },
            }
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await?;
            self.output.clear();
        }
        Ok(())
    }

    fn handle(&mut self, frame: &packet::Frame<'_>) -> Result<(), Fault> {
        let Some(protocol) = self.protocol else {
            match Connect::read(frame) {
                Ok(connect) => {
                    let welcome: &[u8] =
                        if connect.protocol == Protocol::V5 { &[0x20, 3, 0, 0, 0] } else { &[0x20, 2, 0, 0] };
                    self.output.extend_from_slice(welcome);
                    self.protocol = Some(connect.protocol);
                }
                Err((answer, _)) => {
                    self.output.extend_from_slice(&answer);
                    self.is_over = true;
                }
            }
            return Ok(());
        };
        let is_v5 = protocol == Protocol::V5;
        match frame.first >> 4 {
            3 => {
                let publish = packet::publish(frame.first, frame.body, is_v5)?;
                match publish.qos {
                    0 => {}
                    1 => packet::push_ack(&mut self.output, packet::PUBACK, publish.packet_id),
                    _ => packet::push_ack(&mut self.output, packet::PUBREC, publish.packet_id),
                }
                self.publish(publish.topic, publish.payload, publish.retain);
            }
            6 => packet::push_ack(&mut self.output, packet::PUBCOMP, packet::ack(frame.body, is_v5)?.0),
            8 => {
                let (packet_id, _, requested) = packet::subscribe(frame.body, is_v5)?;
                packet::push_suback(&mut self.output, packet_id, is_v5, &vec![0; requested.len()]);
                self.subscribe(requested.iter().filter_map(|requested| Filter::parse(requested.filter)).collect());
            }
            10 => {
                let (packet_id, filters) = packet::unsubscribe(frame.body, is_v5)?;
                packet::push_unsuback(&mut self.output, packet_id, is_v5, &vec![0; filters.len()]);
                self.filters.clear();
            }
            12 => self.output.extend_from_slice(&[0xD0, 0]),
            // A second CONNECT, and DISCONNECT.
            1 | 14 => self.is_over = true,
            _ => {}
        }
        Ok(())
    }

    fn publish(&mut self, topic: &str, payload: &[u8], retain: bool) {
        let message = Message { topic: topic.into(), payload: payload.into() };
        if retain {
            let mut retained = self.broker.retained.lock();
            retained.insert(topic.to_owned(), message.clone());
        } else {
            self.broker.received.fetch_add(1, Ordering::Relaxed);
        }
        // Fails only without subscribers.
        let _ = self.broker.messages.send(message);
    }

    fn subscribe(&mut self, filters: Vec<Filter>) {
        let retained: Vec<Message> = {
            let all = self.broker.retained.lock();
            all.values()
                .filter(|message| filters.iter().any(|filter| filter.matches(&message.topic)))
                .cloned()
                .collect()
        };
        self.filters.extend(filters);
        retained.iter().for_each(|message| self.forward(message));
    }

    fn forward(&mut self, message: &Message) {
        if let Some(protocol) = self.protocol
            && self.filters.iter().any(|filter| filter.matches(&message.topic))
        {
            let head = Head { content_type: Some("application/json"), ..Head::default() };
            push_publish(&mut self.output, protocol, &head, message.topic.as_bytes(), &message.payload);
        }
    }
}
