//! The table: each packet and each field of it at its largest, in each state of a connection.

use super::siege::{Attack, Target, withstand};
use crate::common::births::birth_made_once;
use crate::common::client::{Hello, Will, answer, packet, publish, text};

/// Silent clients that only connect.
const BASE: Attack = Attack {
    connections: 300,
    target: Target::Mqtt,
    hello: |_, _| Vec::new(),
    is_let_in: false,
    packet: |_, _| Vec::new(),
    times: 0,
    comes_again: false,
    reads: true,
    is_lane_full: false,
};

/// Clients that log in.
const LOGGED_IN: Attack = Attack { hello: connect, is_let_in: true, ..BASE };

fn connect(number: usize, _: usize) -> Vec<u8> {
    Hello { client: &format!("hostile-{number}"), ..Hello::default() }.bytes()
}

/// CONNECT for a session that does not expire.
fn without_end(client: &str) -> Vec<u8> {
    Hello { client, is_clean: false, properties: vec![0x11, 0xFF, 0xFF, 0xFF, 0xFF], ..Hello::default() }.bytes()
}

/// A packet of which all is sent but the last byte.
fn half(first: u8, body: Vec<u8>) -> Vec<u8> {
    let mut bytes = packet(first, &body);
    bytes.pop();
    bytes
}

/// A text of so many bytes that differs by its number.
fn long(length: usize, number: usize) -> String {
    let mut out = format!("{number}-");
    out.extend(std::iter::repeat_n('t', length - out.len()));
    out
}

/// Properties with their length in front.
fn with_length(properties: &[u8]) -> Vec<u8> {
    packet(0, properties).split_off(1)
}

fn text_property(id: u8, length: usize) -> Vec<u8> {
    let mut out = vec![id];
    out.extend(text(&long(length, 0)));
    out
}

/// CONNECT of MQTT 5 whose fields have these lengths.
fn connect_with(client: &str, user: usize, password: usize, properties: &[u8]) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend([5, 0xC2, 0, 0]);
    body.extend(with_length(properties));
    body.extend(text(client));
    body.extend(text(&long(user, 0)));
    body.extend(text(&long(password, 0)));
    packet(0x10, &body)
}

/// PUBLISH of MQTT 5 with properties of any length.
fn publish_with(qos: u8, id: u16, topic: &str, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = text(topic);
    if qos > 0 {
        body.extend(id.to_be_bytes());
    }
    body.extend(with_length(properties));
    body.extend_from_slice(payload);
    packet(0x30 | qos << 1, &body)
}

/// SUBSCRIBE or UNSUBSCRIBE of any length.
fn filters(first: u8, each: impl Fn(usize) -> String, count: usize) -> Vec<u8> {
    let mut body = vec![0, 1, 0];
    for number in 0..count {
        body.extend(text(&each(number)));
        if first == 0x82 {
            body.push(1);
        }
    }
    packet(first, &body)
}

fn id(count: usize) -> u16 {
    (count % 65_535 + 1) as u16
}

/// A request for a batch of CloudEvents of a million bytes, with as much of its body.
fn batch(body: &[u8]) -> Vec<u8> {
    const HEAD: &str = "POST /events/x HTTP/1.1\r\nhost: x\r\ncontent-type: application/cloudevents-batch+json\r\n";
    [HEAD.as_bytes(), b"content-length: 1000000\r\n\r\n", body].concat()
}

/// A Sparkplug birth of a device of this node.
fn device_birth(number: usize, count: usize, payload: &[u8]) -> Vec<u8> {
    publish(true, 1, id(count), &format!("spBv1.0/g/DBIRTH/node-{number}/device-{count}"), &[], payload)
}

/// First bytes of every packet that a client may send, with the flags that they have.
const FIRST_BYTES: [u8; 13] = [0x10, 0x32, 0x34, 0x3A, 0x40, 0x50, 0x62, 0x70, 0x82, 0xA2, 0xC0, 0xE0, 0xF0];
/// The largest body that a listener announces by default: 384 KiB.
const BODY: usize = (384 << 10) - 5;

macro_rules! table {
    ($($name:ident: $attack:expr;)*) => {
        $(
            #[test]
            fn $name() {
                withstand(stringify!($name), $attack);
            }
        )*
    };
}

table! {
    // Before CONNECT is whole.
    silence: Attack { connections: 1000, ..BASE };
    a_connect_of_388_kb_that_never_ends: Attack {
        connections: 900,
        hello: |_, _| [&[0x10, 0xF0, 0xE6, 0x17, 0, 4][..], b"MQTT\x05\x02\0\0", &[0; 388_000]].concat(),
        ..BASE
    };
    a_connect_of_the_largest_size_without_its_end: Attack {
        connections: 900,
        hello: |_, _| half(0x10, [&b"\0\x04MQTT\x05\x02\0\0"[..], &[0; 72_000]].concat()),
        ..BASE
    };
    another_packet_instead_of_connect: Attack {
        connections: 900,
        hello: |number, _| half(FIRST_BYTES[1 + number % 12], vec![0; BODY]),
        comes_again: true,
        ..BASE
    };
    a_length_that_does_not_end: Attack { hello: |_, _| [&[0x10][..], &[0xFF; 100_000]].concat(), comes_again: true, ..BASE };
    a_connect_that_trickles: Attack {
        connections: 600,
        hello: |_, _| packet(0x10, &[&b"\0\x04MQTT\x05\x02\0\0"[..], &[0; 60_000]].concat())[..50_000].to_vec(),
        packet: |_, _| vec![0; 1],
        times: 1_000_000,
        ..BASE
    };
    a_user_name_of_30_kb: Attack {
        hello: |number, round| connect_with(&format!("u-{number}-{round}"), 30_000, 30_000, &[]),
        comes_again: true,
        ..BASE
    };
    a_client_id_of_60_kb: Attack {
        hello: |number, _| connect_with(&long(60_000, number), 10, 10, &[]),
        comes_again: true,
        ..BASE
    };
    user_properties_of_60_kb: Attack {
        hello: |number, round| {
            let properties = [vec![0x26], text("n"), text(&long(60_000, number))].concat();
            connect_with(&format!("p-{number}-{round}"), 10, 10, &properties)
        },
        comes_again: true,
        ..BASE
    };
    many_client_ids: Attack {
        hello: |number, round| connect_with(&long(256, number * 1_000_000 + round), 256, 10, &[]),
        is_let_in: true,
        comes_again: true,
        ..BASE
    };
    half_a_client_hello: Attack {
        connections: 900,
        target: Target::MqttWithTls,
        hello: |_, _| {
            let mut hello = vec![1, 0, 0xEA, 0x60];
            hello.resize(60_000, 0);
            hello.chunks(16_000).flat_map(|piece| [&[0x16, 3, 1][..], &(piece.len() as u16).to_be_bytes(), piece].concat()).collect()
        },
        ..BASE
    };
    wills_of_64_kb_that_wait: Attack {
        hello: |number, round| {
            let properties = [0x11, 0, 0, 0xFF, 0xFF].to_vec();
            let will = Will { topic: "plant/line-1/will/state", payload: &[0; 65_000], properties: vec![0x18, 0, 0, 0xFF, 0xFF], ..Will::default() };
            let client = format!("will-{number}-{round}");
            Hello { client: &client, properties, will: Some(will), ..Hello::default() }.bytes()
        },
        is_let_in: true,
        comes_again: true,
        ..BASE
    };
    wills_of_64_kb_that_stay_connected: Attack {
        connections: 900,
        hello: |number, _| {
            let will = Will { topic: "plant/line-1/will/state", payload: &[0; 65_000], ..Will::default() };
            Hello { client: &format!("will-{number}"), will: Some(will), ..Hello::default() }.bytes()
        },
        is_let_in: true,
        ..BASE
    };

    // The other doors.
    http_heads_that_never_end: Attack {
        connections: 1000,
        target: Target::Http,
        hello: |_, _| [&b"POST /events/x HTTP/1.1\r\n"[..], &b"x: yyyyyyyyyyyyyyyy\r\n".repeat(700)].concat(),
        ..BASE
    };
    http_heads_above_the_bound: Attack {
        target: Target::Http,
        hello: |_, _| [&b"POST /events/x HTTP/1.1\r\n"[..], &b"x: yyyyyyyyyyyyyyyy\r\n".repeat(7000)].concat(),
        comes_again: true,
        ..BASE
    };
    http_bodies_without_their_end: Attack {
        connections: 1000,
        target: Target::Http,
        hello: |_, _| batch(&[b' '; 999_000]),
        ..BASE
    };
    http_bodies_of_nested_brackets: Attack {
        target: Target::Http,
        hello: |_, _| batch(&b"[0,".repeat(333_333)),
        comes_again: true,
        ..BASE
    };
    monitoring_heads_that_never_end: Attack {
        connections: 1000,
        target: Target::Monitoring,
        hello: |_, _| [&b"GET /metrics HTTP/1.1\r\n"[..], &b"x: yyyyyyyyyyyyyyyy\r\n".repeat(700)].concat(),
        ..BASE
    };

    // After it is logged in.
    half_of_every_packet: Attack {
        packet: |number, _| half(FIRST_BYTES[number % 13], vec![0; BODY]),
        times: 1,
        ..LOGGED_IN
    };
    half_a_publish: Attack { packet: |_, _| half(0x32, vec![0; BODY]), times: 1, ..LOGGED_IN };
    topics_of_64_kb: Attack { packet: |_, count| publish(true, 0, 0, &long(65_500, count), &[], b""), times: 255, ..LOGGED_IN };
    topics_of_the_largest_size: Attack { packet: |_, count| publish(true, 0, 0, &long(1024, count % 1000), &[], b""), times: 2000, ..LOGGED_IN };
    aliases_of_the_largest_size: Attack {
        packet: |_, count| publish(true, 0, 0, &long(1024, count % 64), &[0x23, 0, (count % 64 + 1) as u8], b""),
        times: 64,
        ..LOGGED_IN
    };
    aliases_of_64_kb: Attack {
        packet: |_, count| publish(true, 0, 0, &long(65_500, count % 64), &[0x23, 0, (count % 64 + 1) as u8], b""),
        times: 64,
        ..LOGGED_IN
    };
    subscriptions_of_the_largest_size: Attack {
        packet: |number, count| filters(0x82, |each| long(1000, number * 100_000 + count * 100 + each), 100),
        times: 4,
        ..LOGGED_IN
    };
    subscriptions_of_64_kb: Attack {
        packet: |_, count| filters(0x82, |each| long(65_000, count * 10 + each), 5),
        times: 60,
        ..LOGGED_IN
    };
    sessions_that_are_filled_and_left: Attack {
        connections: 100,
        hello: |number, round| without_end(&format!("left-{number}-{round}")),
        packet: |number, count| filters(0x82, |each| long(1000, number * 100_000 + count * 20 + each), 20),
        times: 5,
        comes_again: true,
        ..LOGGED_IN
    };
    shared_subscriptions: Attack {
        connections: 100,
        packet: |number, count| filters(0x82, |each| format!("$share/{number}/{}", long(900, count * 100 + each)), 100),
        times: 3,
        ..LOGGED_IN
    };
    a_hundred_thousand_filters_in_one_packet: Attack {
        connections: 50,
        packet: |_, _| filters(0x82, |_| "a".into(), 95_000),
        times: 100,
        reads: false,
        ..LOGGED_IN
    };
    a_hundred_thousand_filters_to_leave: Attack {
        connections: 50,
        packet: |_, _| filters(0xA2, |_| "a".into(), 120_000),
        times: 100,
        reads: false,
        ..LOGGED_IN
    };
    everything_and_nothing_read: Attack {
        packet: |_, _| [filters(0x82, |each| ["#", "+/#"][each].into(), 2), publish(true, 0, 0, "plant/l/m/x", &[], &[0; 30_000])].concat(),
        times: 1000,
        reads: false,
        ..LOGGED_IN
    };
    open_exchanges: Attack {
        packet: |_, count| publish(true, 2, id(count), "plant/line-1/hostile/x", &[], b""),
        times: 65_535,
        ..LOGGED_IN
    };
    releases_behind_a_subscribe: Attack {
        hello: |number, _| {
            let properties = vec![0x11, 0, 0, 0, 60];
            Hello { client: &format!("hostile-{number}"), properties, ..Hello::default() }.bytes()
        },
        packet: |_, count| {
            let releases = (0..8000).flat_map(|each| answer(0x62, id(count * 8000 + each)));
            filters(0x82, |_| "a".into(), 1).into_iter().chain(releases).collect()
        },
        times: 10_000,
        reads: false,
        ..LOGGED_IN
    };
    pings_and_nothing_read: Attack { packet: |_, _| [0xC0, 0].repeat(20_000), times: 100_000, reads: false, ..LOGGED_IN };
    refused_publishes_and_nothing_read: Attack {
        packet: |_, count| (0..200).flat_map(|each| publish(true, 1, id(count * 200 + each), &long(1100, each), &[], b"")).collect(),
        times: 100_000,
        reads: false,
        ..LOGGED_IN
    };
    user_properties_of_120_kb: Attack {
        packet: |_, count| {
            let pair = [vec![0x26], text("n"), text(&long(60_000, count))].concat();
            publish_with(1, id(count), "plant/line-1/hostile/x", &pair.repeat(2), b"")
        },
        times: 100_000,
        ..LOGGED_IN
    };
    a_reason_of_60_kb: Attack {
        packet: |_, _| {
            let body = [vec![0x81], with_length(&text_property(0x1F, 60_000))].concat();
            packet(0xE0, &body)
        },
        times: 1,
        ..LOGGED_IN
    };

    // Sparkplug: what births declare is remembered.
    births_with_a_name_of_250_kb: Attack {
        connections: 50,
        packet: |number, count| device_birth(number, count, &birth_made_once(1, 250_000)),
        times: 65_535,
        ..LOGGED_IN
    };
    births_with_names_of_a_kilobyte: Attack {
        connections: 50,
        packet: |number, count| device_birth(number, count, &birth_made_once(240, 1000)),
        times: 65_535,
        ..LOGGED_IN
    };
    births_with_as_many_names_as_fit: Attack {
        connections: 50,
        packet: |number, count| device_birth(number, count, &birth_made_once(9000, 16)),
        times: 65_535,
        ..LOGGED_IN
    };
    births_of_many_nodes: Attack {
        packet: |number, count| {
            let topic = format!("spBv1.0/{}/NBIRTH/{}", long(400, number), long(400, count));
            publish(true, 1, id(count), &topic, &[], &birth_made_once(1, 16))
        },
        times: 65_535,
        ..LOGGED_IN
    };
    births_of_metrics_without_anything: Attack {
        connections: 50,
        packet: |number, count| device_birth(number, count, &[0x12, 0].repeat(125_000)),
        times: 65_535,
        ..LOGGED_IN
    };
    templates_of_metrics_without_anything: Attack {
        connections: 50,
        packet: |number, count| {
            // A metric "t" of type Template (19), which holds nothing but metrics of no bytes.
            let inner = packet(0x01, &[0x12, 0].repeat(120_000));
            let metric = [&[0x0A, 1, b't', 0x20, 19, 0x92][..], &inner].concat();
            device_birth(number, count, &packet(0x12, &metric))
        },
        times: 65_535,
        ..LOGGED_IN
    };

    // While the lane takes nothing.
    content_types_of_64_kb_in_flight: Attack {
        packet: |_, count| publish_with(1, id(count), "full/line/hostile", &text_property(3, 65_000), b""),
        times: 256,
        is_lane_full: true,
        ..LOGGED_IN
    };
    payloads_of_256_kb_in_flight: Attack {
        packet: |_, count| publish_with(1, id(count), "full/line/hostile", &[], &[0; 256 << 10]),
        times: 256,
        is_lane_full: true,
        ..LOGGED_IN
    };
    small_publishes_in_flight: Attack {
        connections: 600,
        packet: |_, count| publish(true, 1, id(count), "full/l/m", &[], b""),
        times: 65_535,
        is_lane_full: true,
        ..LOGGED_IN
    };
    exchanges_in_flight: Attack {
        packet: |_, count| publish(true, 2, id(count), &format!("full/l/{}", long(1000, count)), &[], b""),
        times: 65_535,
        is_lane_full: true,
        ..LOGGED_IN
    };
    unanswered_publishes_of_connections_that_close: Attack {
        hello: |number, round| Hello { client: &format!("gone-{number}-{round}"), ..Hello::default() }.bytes(),
        packet: |_, count| (0..250).flat_map(|each| publish(true, 1, id(count * 250 + each), "full/l/m", &[], b"")).collect(),
        times: 1,
        comes_again: true,
        is_lane_full: true,
        ..LOGGED_IN
    };
    half_of_every_packet_behind_a_full_lane: Attack {
        packet: |number, _| {
            let mut bytes = publish_with(1, 1, "full/line/hostile", &[], &[0; 1000]);
            bytes.extend(half(FIRST_BYTES[number % 13], vec![0; BODY]));
            bytes
        },
        times: 1,
        is_lane_full: true,
        ..LOGGED_IN
    };
}
