//! A centre that answers as the test says, and remembers what came: one event at a time or in batches.

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Packet, PingResp, PubAck, PubAckReason, PublishProperties,
};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One publish as it came.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub topic: String,
    pub content_type: String,
    pub properties: Vec<(String, String)>,
    /// One, or those of a batch.
    pub events: Vec<serde_json::Value>,
    /// The bytes as they came.
    pub payload: Vec<u8>,
    pub at: Instant,
}

impl Arrival {
    pub fn is_marked(&self, what: &str) -> bool {
        self.properties.iter().any(|(name, value)| name == what && value == "true")
    }
}

type Answer = Box<dyn Fn(&Arrival) -> PubAckReason + Send + Sync>;

pub struct Centre {
    pub address: SocketAddr,
    arrived: Arc<Mutex<Vec<Arrival>>>,
    is_over: Arc<AtomicBool>,
    /// Clients that are connected.
    clients: Arc<Mutex<Vec<String>>>,
}

impl Centre {
    /// Takes everything.
    pub fn start() -> Self {
        Self::answering(|_| PubAckReason::Success)
    }

    pub fn answering(answer: impl Fn(&Arrival) -> PubAckReason + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0", answer)
    }

    pub fn at(address: &str, answer: impl Fn(&Arrival) -> PubAckReason + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).expect("port");
        let address = listener.local_addr().expect("address");
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let clients = Arc::new(Mutex::new(Vec::new()));
        let answer: Arc<Answer> = Arc::new(Box::new(answer));
        let (theirs, over, known) = (Arc::clone(&arrived), Arc::clone(&is_over), Arc::clone(&clients));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (arrived, over, answer, clients) =
                    (Arc::clone(&theirs), Arc::clone(&over), Arc::clone(&answer), Arc::clone(&known));
                std::thread::spawn(move || {
                    // However it ends.
                    let _ = serve(stream, &arrived, &over, &answer, &clients);
                });
            }
        });
        Self { address, arrived, is_over, clients }
    }

    /// The lines of a destination that leads here.
    pub fn destination(&self, name: &str) -> String {
        format!("\n[[destination]]\nname = \"{name}\"\nurl = \"mqtt://{}\"\n", self.address)
    }

    pub fn arrived(&self) -> Vec<Arrival> {
        self.arrived.lock().expect("lock").clone()
    }

    pub fn forget(&self) {
        self.arrived.lock().expect("lock").clear();
    }

    pub fn clients(&self) -> Vec<String> {
        self.clients.lock().expect("lock").clone()
    }

    /// Events of the plant, without the gateway's own, in the order they came.
    pub fn events(&self) -> Vec<serde_json::Value> {
        let is_own = |arrival: &&Arrival| arrival.topic.contains("/gateway.");
        self.arrived().iter().filter(|arrival| !is_own(arrival)).flat_map(|arrival| arrival.events.clone()).collect()
    }

    /// Events of one of the gateway's own streams.
    pub fn own(&self, stream: &str) -> Vec<serde_json::Value> {
        let part = format!("/gateway.{stream}/");
        self.arrived()
            .iter()
            .filter(|arrival| arrival.topic.contains(&part))
            .flat_map(|arrival| arrival.events.clone())
            .collect()
    }

    pub fn await_that(&self, what: &str, patience: Duration, wanted: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !wanted(self) {
            assert!(start.elapsed() < patience, "{what}: {} publishes arrived", self.arrived().len());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Centre {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    mut stream: TcpStream,
    arrived: &Mutex<Vec<Arrival>>,
    over: &AtomicBool,
    answer: &Answer,
    clients: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut input = BytesMut::new();
    let mut buffer = vec![0; 64 << 10];
    let mut client = String::new();
    let ended = loop {
        if over.load(Ordering::Relaxed) {
            break Ok(());
        }
        match stream.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(read) => input.extend_from_slice(&buffer[..read]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(error) => break Err(error),
        }
        let mut output = BytesMut::new();
        while let Ok(packet) = Packet::read(&mut input, None) {
            match packet {
                Packet::Connect(connect, ..) => {
                    client = connect.client_id.clone();
                    clients.lock().expect("lock").push(client.clone());
                    let ack = ConnAck { session_present: false, code: ConnectReturnCode::Success, properties: None };
                    ack.write(&mut output).expect("written");
                }
                Packet::Publish(publish) => {
                    let arrival = arrival(&publish.topic, &publish.payload, publish.properties.as_ref());
                    let reason = answer(&arrival);
                    arrived.lock().expect("lock").push(arrival);
                    if publish.qos != QoS::AtMostOnce {
                        let ack = PubAck { pkid: publish.pkid, reason, properties: None };
                        ack.write(&mut output).expect("written");
                    }
                }
                Packet::PingReq(_) => drop(PingResp::write(&mut output)),
                _ => {}
            }
        }
        if let Err(error) = stream.write_all(&output) {
            break Err(error);
        }
    };
    clients.lock().expect("lock").retain(|known| *known != client);
    ended
}

fn arrival(topic: &[u8], payload: &[u8], properties: Option<&PublishProperties>) -> Arrival {
    let content_type = properties.and_then(|properties| properties.content_type.clone()).unwrap_or_default();
    let payload = if content_type.ends_with("+zstd") {
        zstd::stream::decode_all(payload).expect("zstd")
    } else {
        payload.to_vec()
    };
    let value: serde_json::Value = serde_json::from_slice(&payload).expect("JSON");
    let events = match value {
        serde_json::Value::Array(events) => events,
        event => vec![event],
    };
    Arrival {
        topic: String::from_utf8_lossy(topic).into_owned(),
        content_type,
        properties: properties.map(|properties| properties.user_properties.clone()).unwrap_or_default(),
        events,
        payload: payload.to_vec(),
        at: Instant::now(),
    }
}
