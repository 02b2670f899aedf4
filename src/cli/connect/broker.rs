//! A broker, step by step: name, port, TLS, login, rights, round trip.

use super::finding::{Part, STEP_WAIT_MAX};
use crate::clock;
use crate::event::Timestamp;
use crate::link::{
    Address, ConnectAs, Delivery, Head, Inbox, LinkError, Output, Proxy, Rejection, Reply, Session, Subscription,
    Target, authority, push_publish, push_subscribe,
};
use crate::mqtt::Protocol;
use crate::tls::{self, ClientFiles};
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// A broker of a destination or of a source.
pub(super) struct Broker<'a> {
    pub url: &'a str,
    pub tls: &'a ClientFiles,
    /// Without one, the gateway resolves the name itself.
    pub proxy: Option<&'a Proxy>,
    pub target: Target,
}

/// Introduces the check. With MQTT 5 it also receives, in a session that ends with its connection.
pub(super) fn connect_as(client: &str, protocol: Protocol) -> ConnectAs {
    let inbox = Inbox { expiry: Duration::ZERO, receive_maximum: 10, payload_bytes_max: 4096 };
    ConnectAs { inbox: (protocol == Protocol::V5).then_some(inbox), ..ConnectAs::client(client.to_owned()) }
}

impl Broker<'_> {
    /// Goes all the way to a session. Stops at the first fault.
    pub(super) async fn connect(&self, connect_as: &ConnectAs, part: &mut Part<'_>) -> Option<Session> {
        let address = match Address::parse(self.url) {
            Ok(address) => address,
            Err(error) => {
                part.fault(error);
                return None;
            }
        };
        match self.proxy.map(Proxy::place) {
            Some(Ok((host, port))) => drop(reach("proxy ", (&host, port), part).await?),
            Some(Err(error)) => {
                part.fault(error);
                return None;
            }
            None => {
                let stream = reach("", (&address.host, address.port), part).await?;
                if address.is_tls && !self.shake_hands(stream, &address, part).await {
                    return None;
                }
            }
        }
        match timeout(STEP_WAIT_MAX * 2, self.target.connect(connect_as)).await {
            Err(_) => part.fault(format!("{} does not complete the connection in time", self.url)),
            Ok(Err(error @ LinkError::Proxy { .. })) => part.fault(error.to_string()),
            Ok(Err(error)) => part.fault(format!("login as client \"{}\": {error}", connect_as.client)),
            Ok(Ok(session)) => {
                if let Some(proxy) = self.proxy {
                    part.good(format!("the proxy {} opens connections to {address}", proxy.url));
                }
                let way = if self.proxy.is_none() { "" } else { " through the proxy" };
                part.good(format!("{} accepts the login{way} as client \"{}\"", address, connect_as.client));
                return Some(session);
            }
        }
        None
    }

    /// Completes a TLS handshake and describes the certificate of the server.
    async fn shake_hands(&self, stream: TcpStream, address: &Address, part: &mut Part<'_>) -> bool {
        let config = match tls::client(self.tls) {
            Ok(config) => config,
            Err(error) => {
                part.fault(error.to_string());
                return false;
            }
        };
        let host = self.tls.server_name.as_deref().unwrap_or(&address.host);
        let Ok(name) = ServerName::try_from(host.to_owned()) else {
            part.fault(format!("\"{host}\" is no name that a certificate can have"));
            return false;
        };
        let stream = match timeout(STEP_WAIT_MAX, TlsConnector::from(Arc::clone(&config)).connect(name, stream)).await {
            Err(_) => {
                part.fault("the server does not complete the TLS handshake in time; perhaps this port has no TLS");
                return false;
            }
            Ok(Err(error)) => {
                part.fault(format!("TLS: {}", tls::explain(&error, self.tls)));
                return false;
            }
            Ok(Ok(stream)) => stream,
        };
        let (_, connection) = stream.get_ref();
        let certificates = connection.peer_certificates();
        if let Err(error) = tls::check_server(self.tls, certificates) {
            part.fault(error.to_string());
            return false;
        }
        let version = connection.protocol_version().map_or_else(String::new, |version| format!("{version:?}"));
        let end = certificates.and_then(|all| tls::end_of(all.first()?));
        let end = end.map_or_else(String::new, |end| {
            let day = Timestamp(end.saturating_mul(1_000_000)).to_string();
            format!(", until {}", day.get(..10).unwrap_or_default())
        });
        part.good(format!("TLS ({version}): the server's certificate is for \"{host}\"{end}"));
        true
    }
}

/// Resolves a name and connects to its port. `what` precedes the name in findings.
pub(super) async fn reach(what: &str, (host, port): (&str, u16), part: &mut Part<'_>) -> Option<TcpStream> {
    let place = format!("{what}{}", authority(host, port));
    let addresses = match timeout(STEP_WAIT_MAX, lookup_host((host, port))).await {
        Ok(Ok(addresses)) => addresses.collect::<Vec<_>>(),
        Ok(Err(error)) => {
            part.fault(format!(
                "{place} cannot be resolved: {error}; check the name, and the DNS server of this machine"
            ));
            return None;
        }
        Err(_) => {
            part.fault(format!("{place} cannot be resolved: the DNS server does not answer"));
            return None;
        }
    };
    let mut reason = "it has no address".to_owned();
    for address in &addresses {
        let began: Instant = clock::instant();
        match timeout(STEP_WAIT_MAX, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let took = clock::instant().duration_since(began).as_secs_f64() * 1e3;
                part.good(format!("{place} is {}, and its port answers in {took:.0} ms", address.ip()));
                return Some(stream);
            }
            Ok(Err(error)) => reason = format!("{address}: {error}"),
            Err(_) => reason = format!("{address} does not answer; a firewall on the way perhaps drops the packets"),
        }
    }
    part.fault(format!("{place} cannot be reached: {reason}"));
    None
}

const SUBSCRIBE_ID: u16 = 1;
const PUBLISH_ID: u16 = 2;
/// Subscription option of MQTT 5 (section 3.8.3.1): no messages of this client itself.
const NO_LOCAL: u8 = 0x04;

/// The answers of the broker so far.
#[derive(Default)]
struct Answers {
    /// Reason codes of the subscriptions.
    subscribed: Option<Vec<u8>>,
    /// `Err` with the reason if the broker refused the publish.
    published: Option<Result<(), String>>,
    has_returned: bool,
}

impl Answers {
    fn take(&mut self, session: &mut Session, topic: &str) -> Result<(), LinkError> {
        while let Some(delivery) = session.next_delivery()? {
            match delivery {
                Delivery::Message(message) => self.has_returned |= message.topic == topic,
                Delivery::Subscribed(_, codes) => self.subscribed = Some(codes),
                Delivery::Other(Reply::Acknowledged(PUBLISH_ID) | Reply::NoSubscribers(PUBLISH_ID)) => {
                    self.published = Some(Ok(()));
                }
                Delivery::Other(Reply::Rejected(PUBLISH_ID, rejection)) => {
                    let (Rejection::Permanent(code, name)
                    | Rejection::Temporary(code, name)
                    | Rejection::Unclear(code, name)) = rejection;
                    self.published = Some(Err(format!("0x{code:02X}, {name}")));
                }
                Delivery::Other(Reply::Disconnected(reason)) => return Err(LinkError::Ended(reason)),
                Delivery::Other(_) | Delivery::Unsubscribed => {}
            }
        }
        Ok(())
    }
}

/// Sends `output` and reads until `is_done`. Returns why it ended early.
async fn exchange(
    session: &mut Session,
    output: &mut Output,
    answers: &mut Answers,
    topic: &str,
    is_done: impl Fn(&Answers) -> bool,
) -> Result<(), String> {
    let work = async {
        while !is_done(answers) {
            session.exchange(output).await?;
            answers.take(session, topic)?;
        }
        Ok::<(), LinkError>(())
    };
    match timeout(STEP_WAIT_MAX, work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the broker does not answer in time".into()),
    }
}

/// Publishes a message and, with MQTT 5, receives it again.
pub(super) async fn round_trip(session: &mut Session, topic: &str, part: &mut Part<'_>) {
    let (mut output, mut answers) = (Output::default(), Answers::default());
    let protocol = session.protocol();
    let mut may_subscribe = false;
    if protocol == Protocol::V5 {
        let filters = [Subscription { filter: topic.to_owned(), qos: 0, wants_retained: false }];
        push_subscribe(&mut output.bytes, protocol, SUBSCRIBE_ID, &filters);
        // The last byte has the options of the filter. The gateway wants no message of its own back; the check does.
        if let Some(options) = output.bytes.last_mut() {
            *options &= !NO_LOCAL;
        }
        let subscribed =
            exchange(session, &mut output, &mut answers, topic, |answers| answers.subscribed.is_some()).await;
        if let Err(reason) = subscribed {
            return part.fault(format!("subscribing to {topic}: {reason}"));
        }
        may_subscribe = answers.subscribed.iter().flatten().all(|code| *code < 0x80);
    }
    let began = clock::instant();
    let head = Head { content_type: Some("application/json"), ..Head::qos1(PUBLISH_ID) };
    let now = Timestamp::from(clock::wall());
    let payload = format!("{{\"check\":\"forebay check --connect\",\"time\":\"{now}\"}}");
    push_publish(&mut output.bytes, protocol, &head, topic.as_bytes(), payload.as_bytes());
    let done = |answers: &Answers| answers.published.is_some();
    let published = exchange(session, &mut output, &mut answers, topic, done).await;
    let took = clock::instant().duration_since(began).as_secs_f64() * 1e3;
    match (published, answers.published.take()) {
        (Err(reason), _) => {
            return part.fault(format!(
                "publishing to {topic}: {reason}; the broker perhaps allows the gateway nothing there"
            ));
        }
        (Ok(()), Some(Err(reason))) => {
            return part.fault(format!("the broker refuses a publish to {topic} ({reason}); its administrator has to allow the gateway to publish there"));
        }
        _ => part.good(format!("the gateway may publish: {topic} was acknowledged in {took:.0} ms")),
    }
    if !may_subscribe {
        return;
    }
    match exchange(session, &mut output, &mut answers, topic, |answers| answers.has_returned).await {
        Ok(()) => {
            let took = clock::instant().duration_since(began).as_secs_f64() * 1e3;
            part.good(format!("the message came back in {took:.0} ms"));
        }
        Err(_) => part.fault(format!(
            "the broker acknowledged a publish to {topic} and did not deliver it: it perhaps drops what the gateway may not publish"
        )),
    }
}

/// Subscribes as the source does.
pub(super) async fn subscribe(session: &mut Session, topics: &[String], part: &mut Part<'_>) {
    let (mut output, mut answers) = (Output::default(), Answers::default());
    let filters: Vec<_> =
        topics.iter().map(|filter| Subscription { filter: filter.clone(), qos: 0, wants_retained: false }).collect();
    push_subscribe(&mut output.bytes, session.protocol(), SUBSCRIBE_ID, &filters);
    let done = |answers: &Answers| answers.subscribed.is_some();
    if let Err(reason) = exchange(session, &mut output, &mut answers, "", done).await {
        return part.fault(format!("subscribing: {reason}"));
    }
    for (topic, code) in topics.iter().zip(answers.subscribed.iter().flatten()) {
        match code {
            0..0x80 => part.good(format!("the gateway may subscribe to {topic}")),
            code => part.fault(format!(
                "the broker refuses the subscription to {topic} (0x{code:02X}); its administrator has to allow it"
            )),
        }
    }
}
