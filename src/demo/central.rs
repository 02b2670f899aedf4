//! A small stand-in for a central broker: takes publishes over TLS, keeps what is retained, and
//! hands everything on to whoever subscribes, with QoS 0.
//!
//! Not a broker for use: it keeps nothing and limits nothing.

use crate::contract::Pattern;
use crate::tls::{self, ServerFiles};
use mqtt_protocol_core::mqtt::Version;
use mqtt_protocol_core::mqtt::common::Cursor;
use mqtt_protocol_core::mqtt::connection::{Connection, Event, role};
use mqtt_protocol_core::mqtt::packet::{GenericPacketTrait, Packet, Qos, v3_1_1, v5_0};
use mqtt_protocol_core::mqtt::result_code::{
    ConnectReasonCode, ConnectReturnCode, SubackReasonCode, SubackReturnCode, UnsubackReasonCode,
};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The running broker.
pub(super) struct Central {
    /// Its TLS port.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    received: AtomicU64,
    retained: Mutex<HashMap<String, Message>>,
    messages: broadcast::Sender<Message>,
}

#[derive(Clone)]
struct Message {
    topic: Arc<str>,
    payload: Arc<[u8]>,
}

/// Messages a slow subscriber may be behind before it misses some.
const BEHIND_MAX: usize = 16_384;

/// The port it takes if nobody has it, so that a command in the history of a shell still fits.
const PORT: u16 = 18_883;

impl Central {
    /// Publishes that arrived, beside the gateway's own status.
    pub(super) fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }
}

/// Starts the broker with the certificate in the demo's folder.
pub(super) async fn start(folder: &Path) -> anyhow::Result<Central> {
    let files =
        ServerFiles { cert: folder.join("central.pem"), key: folder.join("central.key"), ..ServerFiles::default() };
    let acceptor = TlsAcceptor::from(tls::server(&files)?);
    let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?,
    };
    let address = listener.local_addr()?;
    let shared = Arc::new(Shared {
        received: AtomicU64::new(0),
        retained: Mutex::new(HashMap::new()),
        messages: broadcast::channel(BEHIND_MAX).0,
    });
    let theirs = Arc::clone(&shared);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, shared) = (acceptor.clone(), Arc::clone(&theirs));
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let mut client = Client::new(stream, &shared);
                    // However it ends, the client's place is free again.
                    let _ = client.serve().await;
                }
            });
        }
    });
    Ok(Central { address, shared })
}

struct Client<'s> {
    stream: TlsStream<TcpStream>,
    shared: &'s Shared,
    connection: Connection<role::Server>,
    filters: Vec<Pattern>,
    output: Vec<u8>,
    is_over: bool,
}

impl<'s> Client<'s> {
    fn new(stream: TlsStream<TcpStream>, shared: &'s Shared) -> Self {
        let mut connection = Connection::<role::Server>::new(Version::Undetermined);
        connection.set_auto_pub_response(true);
        connection.set_auto_ping_response(true);
        Self { stream, shared, connection, filters: Vec::new(), output: Vec::new(), is_over: false }
    }

    async fn serve(&mut self) -> std::io::Result<()> {
        let mut messages = self.shared.messages.subscribe();
        let mut input = vec![0; 32 << 10];
        while !self.is_over {
            tokio::select! {
                read = self.stream.read(&mut input) => {
                    let read = read?;
                    if read == 0 {
                        return Ok(());
                    }
                    let mut cursor = Cursor::new(&input[..read]);
                    while (cursor.position() as usize) < read && !self.is_over {
                        let events = self.connection.recv(&mut cursor);
                        self.handle(events);
                    }
                }
                // One that is too far behind misses some, as QoS 0 allows.
                Ok(message) = messages.recv() => self.hand_on(&message),
            }
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await?;
            self.output.clear();
        }
        Ok(())
    }

    fn handle(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::RequestSendPacket { packet, .. } => self.output.extend(packet.to_continuous_buffer()),
                Event::RequestClose => self.is_over = true,
                Event::NotifyPacketReceived(packet) => self.received(packet),
                _ => {}
            }
        }
    }

    fn received(&mut self, packet: Packet) {
        match packet {
            Packet::V3_1_1Connect(_) => {
                let answer =
                    v3_1_1::Connack::builder().session_present(false).return_code(ConnectReturnCode::Accepted).build();
                self.answer(answer.ok());
            }
            Packet::V5_0Connect(_) => {
                let answer =
                    v5_0::Connack::builder().session_present(false).reason_code(ConnectReasonCode::Success).build();
                self.answer(answer.ok());
            }
            Packet::V3_1_1Publish(publish) => {
                self.publish(publish.topic_name(), publish.payload().as_slice(), publish.retain())
            }
            Packet::V5_0Publish(publish) => {
                self.publish(publish.topic_name(), publish.payload().as_slice(), publish.retain())
            }
            Packet::V3_1_1Subscribe(subscribe) => {
                let filters: Vec<String> =
                    subscribe.entries().iter().map(|entry| entry.topic_filter().to_owned()).collect();
                let codes = vec![SubackReturnCode::SuccessMaximumQos0; filters.len()];
                let answer = v3_1_1::Suback::builder().packet_id(subscribe.packet_id()).return_codes(codes).build();
                self.answer(answer.ok());
                self.subscribe(&filters);
            }
            Packet::V5_0Subscribe(subscribe) => {
                let filters: Vec<String> =
                    subscribe.entries().iter().map(|entry| entry.topic_filter().to_owned()).collect();
                let codes = vec![SubackReasonCode::GrantedQos0; filters.len()];
                let answer = v5_0::Suback::builder().packet_id(subscribe.packet_id()).reason_codes(codes).build();
                self.answer(answer.ok());
                self.subscribe(&filters);
            }
            Packet::V3_1_1Unsubscribe(unsubscribe) => {
                self.filters.clear();
                self.answer(v3_1_1::Unsuback::builder().packet_id(unsubscribe.packet_id()).build().ok());
            }
            Packet::V5_0Unsubscribe(unsubscribe) => {
                self.filters.clear();
                let codes = vec![UnsubackReasonCode::Success; unsubscribe.entries().len()];
                self.answer(
                    v5_0::Unsuback::builder().packet_id(unsubscribe.packet_id()).reason_codes(codes).build().ok(),
                );
            }
            Packet::V3_1_1Disconnect(_) | Packet::V5_0Disconnect(_) => self.is_over = true,
            _ => {}
        }
    }

    fn answer<T: Into<Packet>>(&mut self, packet: Option<T>) {
        if let Some(packet) = packet {
            let events = self.connection.send(packet.into());
            self.handle(events);
        }
    }

    fn publish(&mut self, topic: &str, payload: &[u8], retain: bool) {
        let message = Message { topic: topic.into(), payload: payload.into() };
        if retain {
            let mut retained = self.shared.retained.lock().unwrap_or_else(PoisonError::into_inner);
            retained.insert(topic.to_owned(), message.clone());
        } else {
            self.shared.received.fetch_add(1, Ordering::Relaxed);
        }
        // Nobody may have subscribed.
        let _ = self.shared.messages.send(message);
    }

    fn subscribe(&mut self, filters: &[String]) {
        let patterns: Vec<Pattern> = filters.iter().filter_map(|filter| Pattern::parse(filter).ok()).collect();
        let retained: Vec<Message> = {
            let all = self.shared.retained.lock().unwrap_or_else(PoisonError::into_inner);
            all.values()
                .filter(|message| patterns.iter().any(|pattern| pattern.captures(&message.topic).is_some()))
                .cloned()
                .collect()
        };
        self.filters.extend(patterns);
        retained.iter().for_each(|message| self.hand_on(message));
    }

    fn hand_on(&mut self, message: &Message) {
        if !self.filters.iter().any(|filter| filter.captures(&message.topic).is_some()) {
            return;
        }
        let (topic, payload) = (&*message.topic, message.payload.to_vec());
        match self.connection.get_protocol_version() {
            Version::V5_0 => {
                let builder = v5_0::Publish::builder()
                    .topic_name(topic)
                    .map(|builder| builder.qos(Qos::AtMostOnce).payload(payload));
                self.answer(builder.ok().and_then(|builder| builder.build().ok()));
            }
            _ => {
                let builder = v3_1_1::Publish::builder()
                    .topic_name(topic)
                    .map(|builder| builder.qos(Qos::AtMostOnce).payload(payload));
                self.answer(builder.ok().and_then(|builder| builder.build().ok()));
            }
        }
    }
}
