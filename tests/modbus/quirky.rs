//! A Modbus device with the habits of devices, adapters and gateways that people really have.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What is odd about the device.
#[derive(Clone, Debug)]
pub struct Quirks {
    /// RTU frames over TCP instead of Modbus/TCP.
    pub is_rtu: bool,
    /// It ignores requests in this time after each connect.
    pub deaf: Duration,
    /// It ignores so many requests of each connection.
    pub ignores_first: u32,
    /// It closes a connection over which it is asked in this time after the connect.
    pub closes_within: Duration,
    /// Units behind it that do not answer.
    pub dead: BTreeSet<u8>,
    /// Requests that touch these registers are refused with exception 2.
    pub missing: BTreeSet<u16>,
    /// Longer requests are refused with exception 3.
    pub longest: u16,
    /// It sends a copy of each request in front of the answer.
    pub has_echo: bool,
    /// Its transaction numbers are its own.
    pub has_own_numbers: bool,
    /// It answers as this unit, whatever it is asked as.
    pub answers_as: Option<u8>,
    /// Bytes inside the frame behind the registers.
    pub padding: usize,
}

impl Default for Quirks {
    fn default() -> Self {
        Self {
            is_rtu: false,
            deaf: Duration::ZERO,
            ignores_first: 0,
            closes_within: Duration::ZERO,
            dead: BTreeSet::new(),
            missing: BTreeSet::new(),
            longest: 125,
            has_echo: false,
            has_own_numbers: false,
            answers_as: None,
            padding: 0,
        }
    }
}

/// A device that runs until the test ends.
pub struct Quirky {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    quirks: Mutex<Quirks>,
    registers: Mutex<BTreeMap<u16, u16>>,
    /// Address and number of registers of each request.
    asked: Mutex<Vec<(u16, u16)>>,
}

impl Quirky {
    /// Its holding registers from 0 on.
    pub fn start(registers: &[u16], quirks: Quirks) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("its address");
        let registers = registers.iter().enumerate().map(|(at, word)| (at as u16, *word)).collect();
        let shared =
            Arc::new(Shared { quirks: Mutex::new(quirks), registers: Mutex::new(registers), asked: Mutex::default() });
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in socket.incoming().flatten() {
                let shared = Arc::clone(&theirs);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, shared }
    }

    pub fn set(&self, address: u16, words: &[u16]) {
        let mut registers = self.shared.registers.lock().expect("lock");
        registers.extend(words.iter().enumerate().map(|(at, word)| (address + at as u16, *word)));
    }

    pub fn change(&self, change: impl FnOnce(&mut Quirks)) {
        change(&mut self.shared.quirks.lock().expect("lock"));
    }

    /// The requests since the last call.
    pub fn asked(&self) -> Vec<(u16, u16)> {
        std::mem::take(&mut self.shared.asked.lock().expect("lock"))
    }

    /// The URL of its bus.
    pub fn url(&self) -> String {
        let scheme = if self.shared.quirks.lock().expect("lock").is_rtu { "rtu-tcp" } else { "tcp" };
        format!("{scheme}://{}", self.address)
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    let connected = Instant::now();
    let mut ignored = 0;
    let _ = stream.set_nodelay(true);
    let is_rtu = shared.quirks.lock().expect("lock").is_rtu;
    while let Some((frame, unit, pdu)) = request(&mut stream, is_rtu) {
        let quirks = shared.quirks.lock().expect("lock").clone();
        let word = |at: usize| u16::from_be_bytes([pdu[at], pdu[at + 1]]);
        let (address, number) = (word(1), word(3));
        shared.asked.lock().expect("lock").push((address, number));
        if connected.elapsed() < quirks.closes_within {
            return;
        }
        if connected.elapsed() < quirks.deaf || ignored < quirks.ignores_first {
            ignored += 1;
            continue;
        }
        if quirks.dead.contains(&unit) {
            continue;
        }
        let answer = answer(&pdu, &quirks, shared);
        let unit = quirks.answers_as.unwrap_or(unit);
        let bytes = match quirks.is_rtu {
            true => {
                let mut bytes = vec![unit];
                bytes.extend(answer);
                bytes.extend(crc(&bytes).to_le_bytes());
                bytes
            }
            false => {
                let mut transaction = [frame[0], frame[1]];
                if quirks.has_own_numbers {
                    transaction[0] = transaction[0].wrapping_add(0x40);
                }
                let length = (answer.len() + 1 + quirks.padding) as u16;
                let mut bytes = [transaction, [0, 0], length.to_be_bytes()].concat();
                bytes.push(unit);
                bytes.extend(answer);
                bytes.extend(vec![0; quirks.padding]);
                bytes
            }
        };
        let echo = if quirks.has_echo { frame } else { Vec::new() };
        if stream.write_all(&[echo, bytes].concat()).is_err() {
            return;
        }
    }
}

fn answer(pdu: &[u8], quirks: &Quirks, shared: &Shared) -> Vec<u8> {
    let word = |at: usize| u16::from_be_bytes([pdu[at], pdu[at + 1]]);
    let (function, address, number) = (pdu[0], word(1), word(3));
    if function != 3 {
        return vec![function | 0x80, 1];
    }
    if number > quirks.longest {
        return vec![function | 0x80, 3];
    }
    let registers = shared.registers.lock().expect("lock");
    let mut answer = vec![function, (number * 2) as u8];
    for at in address..address + number {
        match registers.get(&at) {
            Some(word) if !quirks.missing.contains(&at) => answer.extend(word.to_be_bytes()),
            _ => return vec![function | 0x80, 2],
        }
    }
    answer
}

/// The next request: the whole frame, its unit, and what it asks.
fn request(stream: &mut TcpStream, is_rtu: bool) -> Option<(Vec<u8>, u8, Vec<u8>)> {
    // Both kinds of frames of the requests for registers have a fixed length.
    let mut frame = vec![0; if is_rtu { 8 } else { 12 }];
    match stream.read_exact(&mut frame) {
        Ok(()) => {}
        Err(_) => return None,
    }
    let (unit, pdu) = if is_rtu { (frame[0], frame[1..6].to_vec()) } else { (frame[6], frame[7..].to_vec()) };
    Some((frame, unit, pdu))
}

fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xFFFF, |crc: u16, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xA001 } else { crc >> 1 })
    })
}
