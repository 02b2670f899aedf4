//! The bytes between the gateway and a bus, cleaned of what devices, adapters and gateways add to them.
//!
//! Promise: an answer reaches the decoder as the standard has it, or not at all; what was left out is known, so that a
//! message can name it. What is cleaned:
//!
//! - local echo: RS-485 adapters send back what they are sent. A copy of a request is recognised where it cannot be an
//!   answer; from then on, or with the setting, also where it looks like one;
//! - transaction numbers: answers to earlier requests are left out. With the setting, each answer is taken for that of the
//!   last request;
//! - padding behind the registers of an answer.
//!
//! The decoding itself is that of tokio-modbus, which knows none of this.

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Largest frame of Modbus/TCP; the largest of RTU has 256 bytes.
const FRAME_BYTES_MAX: usize = 260;
/// Header of Modbus/TCP: transaction, protocol, length, unit.
const HEADER_BYTES: usize = 7;
/// Bytes of a frame that are kept for messages.
const SHOWN_BYTES: usize = 16;

/// Late answers that are recognised as such; a device that has so many of them open answers none.
const UNANSWERED_MAX: usize = 32;

/// How frames are separated, with what the bus is known to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Modbus/TCP.
    Tcp {
        /// Whether a gateway answers with transaction numbers of its own.
        ignores_numbers: bool,
    },
    /// RTU frames.
    Rtu {
        /// Whether the adapter echoes; `None` if that is to be recognised.
        echo: Option<bool>,
    },
}

/// The present exchange: one request, and what has arrived since.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    request: Vec<u8>,
    /// The first bytes that have arrived, echo excepted.
    seen: Vec<u8>,
    /// Number of such bytes.
    arrived: usize,
    /// Transaction number of an answer that was left out, if no request had it.
    stray: Option<u16>,
    /// Transaction numbers of requests that were not answered in time.
    unanswered: VecDeque<u16>,
    /// Whether a copy of this request came.
    has_echo: bool,
    /// Whether a copy of any request came on this connection.
    echoes: bool,
    /// Bytes that are not decided yet, and those for the decoder.
    open: BytesMut,
    clean: BytesMut,
    /// Whether everything that comes is for the decoder.
    is_decided: bool,
}

/// A stream that is cleaned.
#[derive(Debug)]
pub(super) struct Wire<S> {
    inner: S,
    framing: Framing,
    exchange: Arc<Mutex<Exchange>>,
}

impl<S> Wire<S> {
    /// A stream, and what is known of its present exchange.
    pub(super) fn new(inner: S, framing: Framing) -> (Self, Arc<Mutex<Exchange>>) {
        let exchange = Arc::new(Mutex::new(Exchange::default()));
        (Self { inner, framing, exchange: Arc::clone(&exchange) }, exchange)
    }
}

impl Exchange {
    /// Begins the exchange of the next request.
    pub(super) fn begin(&mut self) {
        let mut unanswered = std::mem::take(&mut self.unanswered);
        if let (Some(number), false) = (self.number(), self.is_decided) {
            unanswered.push_back(number);
            unanswered.drain(..unanswered.len().saturating_sub(UNANSWERED_MAX));
        }
        *self = Self { echoes: self.echoes, unanswered, ..Self::default() };
    }

    /// The transaction number of the request.
    fn number(&self) -> Option<u16> {
        self.request.get(..2).map(|number| u16::from_be_bytes([number[0], number[1]]))
    }

    /// Whether a copy of any request came on this connection.
    pub(super) fn echoes(&self) -> bool {
        self.echoes
    }

    /// Unit of the answer that the decoder has refused, if another one than `asked` answered.
    pub(super) fn other_unit(&self, framing: Framing, asked: u8) -> Option<u8> {
        let place = if matches!(framing, Framing::Tcp { .. }) { HEADER_BYTES - 1 } else { 0 };
        self.seen.get(place).copied().filter(|unit| *unit != asked)
    }

    /// What has arrived although there is no answer, and what to do; `None` if nothing has.
    pub(super) fn remains(&self) -> Option<String> {
        if let Some(number) = self.stray {
            let asked = self.number().unwrap_or_default();
            return Some(format!(
                "an answer with the transaction number {number} arrived, the request had {asked}; if a gateway numbers its answers itself, set ignore_transaction_numbers"
            ));
        }
        let arrived = self.arrived + self.open.len();
        if arrived == 0 {
            return self.has_echo.then(|| "only an echo of the request arrived".into());
        }
        let shown = self.seen.iter().chain(&self.open).take(SHOWN_BYTES);
        let hex: Vec<_> = shown.map(|byte| format!("{byte:02x}")).collect();
        let more = if arrived > hex.len() { " …" } else { "" };
        Some(format!("{arrived} bytes arrived that are no whole answer: {}{more}", hex.join(" ")))
    }

    /// Whether a part of a frame has arrived, so that the rest of it could be taken for a frame of its own.
    pub(super) fn is_within_frame(&self) -> bool {
        !self.open.is_empty()
    }

    fn arrive(&mut self, framing: Framing, bytes: &[u8]) {
        if self.is_decided {
            self.pass(bytes);
            return;
        }
        self.open.extend_from_slice(bytes);
        match framing {
            Framing::Rtu { echo } => self.decide_echo(echo),
            Framing::Tcp { ignores_numbers } => while self.decide_frame(ignores_numbers) {},
        }
    }

    /// Hands bytes to the decoder.
    fn pass(&mut self, bytes: &[u8]) {
        let room = SHOWN_BYTES.saturating_sub(self.seen.len());
        self.seen.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.arrived += bytes.len();
        self.clean.extend_from_slice(bytes);
    }

    fn pass_all(&mut self) {
        self.is_decided = true;
        let open = self.open.split();
        self.pass(&open);
    }

    fn decide_echo(&mut self, echo: Option<bool>) {
        let is_expected = echo.unwrap_or(self.echoes || !can_be_answer(&self.request));
        let length = self.open.len().min(self.request.len());
        if !is_expected || self.open[..length] != self.request[..length] {
            return self.pass_all();
        }
        if length == self.request.len() {
            self.open.advance(length);
            (self.has_echo, self.echoes) = (true, true);
            self.pass_all();
        }
    }

    /// Decides about one frame; returns whether there may be another.
    fn decide_frame(&mut self, ignores_numbers: bool) -> bool {
        if self.open.len() < HEADER_BYTES {
            return false;
        }
        let number = |at: usize| u16::from_be_bytes([self.open[at], self.open[at + 1]]);
        let (transaction, protocol, length) = (number(0), number(2), usize::from(number(4)));
        if protocol != 0 || !(2..=FRAME_BYTES_MAX - 6).contains(&length) {
            // The decoder says what is wrong with it.
            self.pass_all();
            return false;
        }
        if self.open.len() < 6 + length {
            return false;
        }
        let mut frame = self.open.split_to(6 + length);
        if self.request.get(..2) != Some(&frame[..2]) {
            if !ignores_numbers {
                if !self.unanswered.contains(&transaction) {
                    self.stray = Some(transaction);
                }
                return true;
            }
            frame[..2].copy_from_slice(self.request.get(..2).unwrap_or(&[0, 0]));
        }
        // Behind the function of a reading stands the number of bytes.
        let whole = frame.get(8).map_or(0, |bytes| 9 + usize::from(*bytes));
        if (1..=4).contains(&frame[7]) && frame.len() > whole && whole > 0 {
            frame.truncate(whole);
            frame[4..6].copy_from_slice(&((whole - 6) as u16).to_be_bytes());
        }
        self.is_decided = true;
        self.pass(&frame);
        false
    }
}

/// Whether an answer may be the same as this request (RTU): a device confirms the writing of one register or bit with a
/// copy, and the answer of some requests for bits could be one by chance.
fn can_be_answer(request: &[u8]) -> bool {
    match request.get(1..3) {
        Some(&[3 | 4 | 15 | 16, _]) => false,
        // The high byte of the address would be the number of bytes.
        Some(&[1 | 2, high]) => high == 3,
        _ => true,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let mut exchange = this.exchange.lock();
            if !exchange.clean.is_empty() {
                let count = exchange.clean.len().min(into.remaining());
                into.put_slice(&exchange.clean.split_to(count));
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; FRAME_BYTES_MAX];
            let mut room = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut room))?;
            if room.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            exchange.arrive(this.framing, room.filled());
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        let mut exchange = self.exchange.lock();
        if exchange.request.len() < FRAME_BYTES_MAX {
            exchange.request.extend_from_slice(&bytes[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TCP: Framing = Framing::Tcp { ignores_numbers: false };
    const OWN_NUMBERS: Framing = Framing::Tcp { ignores_numbers: true };
    const RTU: Framing = Framing::Rtu { echo: None };

    /// What reaches the decoder when these pieces arrive after a request.
    fn clean(framing: Framing, request: &[u8], pieces: &[&[u8]]) -> (Vec<u8>, Exchange) {
        let mut exchange = Exchange { request: request.to_vec(), ..Exchange::default() };
        pieces.iter().for_each(|piece| exchange.arrive(framing, piece));
        (exchange.clean.to_vec(), exchange)
    }

    /// Unit 1 is asked for one register; the answer is 7.
    const REQUEST: [u8; 12] = [0, 5, 0, 0, 0, 6, 1, 3, 0, 0, 0, 1];
    const ANSWER: [u8; 11] = [0, 5, 0, 0, 0, 5, 1, 3, 2, 0, 7];
    const RTU_REQUEST: [u8; 8] = [1, 3, 0, 0, 0, 1, 0x84, 0x0A];
    const RTU_ANSWER: [u8; 7] = [1, 3, 2, 0, 7, 0xF9, 0x86];

    #[test]
    fn an_echo_of_the_request_is_left_out() {
        let echoed = [&RTU_REQUEST[..], &RTU_ANSWER].concat();
        for size in 1..echoed.len() {
            let pieces: Vec<_> = echoed.chunks(size).collect();
            let (clean, exchange) = clean(RTU, &RTU_REQUEST, &pieces);
            assert!(clean == RTU_ANSWER && exchange.echoes(), "in pieces of {size}");
        }
        assert_eq!(clean(RTU, &RTU_REQUEST, &[&RTU_ANSWER]).0, RTU_ANSWER);
        let (nothing, exchange) = clean(RTU, &RTU_REQUEST, &[&RTU_REQUEST]);
        assert!(nothing.is_empty() && exchange.remains().expect("an echo").contains("only an echo"));
        let off = Framing::Rtu { echo: Some(false) };
        assert_eq!(clean(off, &RTU_REQUEST, &[&echoed]).0, echoed);
    }

    #[test]
    fn the_confirmation_of_a_write_is_taken_for_an_echo_only_where_one_is_expected() {
        let write = [1, 6, 0, 0, 0, 7, 0xC9, 0xC8];
        assert_eq!(clean(RTU, &write, &[&write]).0, write);
        let twice = [write, write].concat();
        let (confirmed, _) = clean(Framing::Rtu { echo: Some(true) }, &write, &[&twice]);
        assert_eq!(confirmed, write);
        // An echo was recognised at an earlier request.
        let mut exchange = Exchange { echoes: true, request: vec![9], ..Exchange::default() };
        exchange.begin();
        exchange.request = write.to_vec();
        exchange.arrive(RTU, &twice);
        assert_eq!(exchange.clean.to_vec(), write);
    }

    #[test]
    fn answers_to_earlier_requests_are_left_out() {
        let mut late = ANSWER;
        late[1] = 4;
        let both = [late, ANSWER].concat();
        for size in 1..both.len() {
            let pieces: Vec<_> = both.chunks(size).collect();
            assert_eq!(clean(TCP, &REQUEST, &pieces).0, ANSWER, "in pieces of {size}");
        }
        let (nothing, exchange) = clean(TCP, &REQUEST, &[&late]);
        let said = exchange.remains().expect("a stray answer");
        assert!(nothing.is_empty() && said.contains("number 4 arrived, the request had 5"), "{said}");
        assert_eq!(clean(OWN_NUMBERS, &REQUEST, &[&late]).0, ANSWER, "a gateway with numbers of its own");
        let mut exchange = Exchange { request: late[..2].to_vec(), ..Exchange::default() };
        exchange.begin();
        exchange.request = REQUEST.to_vec();
        exchange.arrive(TCP, &late);
        assert_eq!(exchange.remains(), None, "a late answer is no reason to doubt the numbers");
    }

    #[test]
    fn a_part_of_an_answer_is_named_and_nothing_is_read_behind_it() {
        for size in 1..ANSWER.len() {
            let (nothing, exchange) = clean(TCP, &REQUEST, &[&ANSWER[..size]]);
            let said = exchange.remains().expect("a part");
            assert!(nothing.is_empty() && exchange.is_within_frame(), "{size}");
            assert!(said.starts_with(&format!("{size} bytes arrived that are no whole answer: 00")), "{said}");
        }
        let (_, exchange) = clean(TCP, &REQUEST, &[&ANSWER]);
        assert!(!exchange.is_within_frame());
    }

    #[test]
    fn padding_in_an_answer_is_cut_off() {
        let mut padded = ANSWER.to_vec();
        padded[5] += 1;
        padded.push(0);
        assert_eq!(clean(TCP, &REQUEST, &[&padded]).0, ANSWER);
    }

    #[test]
    fn the_unit_that_answered_is_known() {
        let mut other = ANSWER;
        other[6] = 0;
        let (passed, exchange) = clean(TCP, &REQUEST, &[&other]);
        assert_eq!((passed, exchange.other_unit(TCP, 1)), (other.to_vec(), Some(0)));
        let (_, exchange) = clean(RTU, &RTU_REQUEST, &[&[9, 3, 2, 0, 7, 0, 0]]);
        assert_eq!((exchange.other_unit(RTU, 1), exchange.other_unit(RTU, 9)), (Some(9), None));
        assert!(exchange.remains().expect("bytes").contains("7 bytes arrived that are no whole answer: 09 03"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_bounded(
            framing in prop::sample::select(vec![TCP, OWN_NUMBERS, RTU, Framing::Rtu { echo: Some(true) }]),
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..30),
        ) {
            let total: usize = pieces.iter().map(Vec::len).sum();
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let (clean, exchange) = clean(framing, &REQUEST, &pieces);
            prop_assert!(clean.len() + exchange.open.len() <= total && exchange.open.len() <= FRAME_BYTES_MAX);
            prop_assert!(exchange.seen.len() <= SHOWN_BYTES);
        }
    }
}
