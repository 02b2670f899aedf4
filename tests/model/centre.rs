//! A scripted central broker: a destination's other end, in memory.

use super::world::{EventKey, Random};
use crate::mqtt::{frame, publish};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// How it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// Every publish is acknowledged at once.
    #[default]
    Well,
    /// Answers come late, with refusals for now and for ever among them; connections end in the middle.
    Moody,
    /// Nothing is answered.
    Silent,
}

/// One central broker.
#[derive(Debug)]
pub struct Centre {
    pub is_up: bool,
    pub mood: Mood,
    /// Events that it has acknowledged.
    pub acknowledged: BTreeSet<EventKey>,
    pub random: Random,
}

pub type Shared = Arc<Mutex<Centre>>;

impl Centre {
    pub fn new(seed: u64) -> Self {
        Self { is_up: true, mood: Mood::Well, acknowledged: BTreeSet::new(), random: Random::new(seed) }
    }

    fn answer(&mut self) -> Answer {
        match self.mood {
            Mood::Well => Answer::Code(0),
            Mood::Silent => Answer::None,
            Mood::Moody => match self.random.below(20) {
                0 => Answer::Code(0x97),
                1 => Answer::Code(0x99),
                2 => Answer::Close { is_answered: false },
                3 => Answer::Close { is_answered: true },
                4 => Answer::None,
                _ => Answer::Code(0),
            },
        }
    }
}

enum Answer {
    Code(u8),
    /// The connection ends; the answer may have been the last that it wrote.
    Close {
        is_answered: bool,
    },
    None,
}

/// Serves one connection.
pub async fn serve(mut stream: DuplexStream, centre: Shared) {
    let mut input = Vec::new();
    loop {
        let mut buffer = [0; 8192];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => input.extend_from_slice(&buffer[..read]),
        }
        if !centre.lock().expect("lock").is_up {
            return;
        }
        let mut output = Vec::new();
        let mut is_over = false;
        while let Ok(Some(found)) = frame(&input, usize::MAX) {
            let length = found.length;
            match found.first >> 4 {
                1 => output.extend_from_slice(&[0x20, 3, 0, 0, 0]),
                3 => {
                    let publish = publish(found.first, found.body, true).expect("a publish that can be read");
                    let mut centre = centre.lock().expect("lock");
                    let answer = centre.answer();
                    let (code, ends) = match answer {
                        Answer::Code(code) => (Some(code), false),
                        Answer::Close { is_answered } => (is_answered.then_some(0), true),
                        Answer::None => (None, false),
                    };
                    if let Some(code) = code {
                        let [high, low] = publish.packet_id.to_be_bytes();
                        output.extend_from_slice(&[0x40, 3, high, low, code]);
                        if code == 0 {
                            centre.acknowledged.extend(EventKey::of_envelope(publish.payload));
                        }
                    }
                    is_over |= ends;
                }
                12 => output.extend_from_slice(&[0xD0, 0]),
                _ => is_over = true,
            }
            input.drain(..length);
            if is_over {
                break;
            }
        }
        if stream.write_all(&output).await.is_err() || is_over {
            return;
        }
    }
}
