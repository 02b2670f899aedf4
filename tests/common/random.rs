//! Random numbers from one seed.
//!
//! Promise: whatever a test takes from `Random::seeded()` it takes again in a run with the seed that a failure prints.
//! Threads and processes of a test still race; the seed repeats the choices of the test, not the schedule.

/// A xorshift64* generator: small, and random enough to choose delays, actions and payloads.
pub struct Random(u64);

impl Random {
    /// A new seed for each run. `FOREBAY_SEED` repeats one.
    pub fn seeded() -> Self {
        let seed = match std::env::var("FOREBAY_SEED") {
            Ok(text) => text.parse().unwrap_or_else(|error| panic!("FOREBAY_SEED={text}: {error}")),
            Err(_) => uuid::Uuid::new_v4().as_u128() as u64,
        };
        // Test runners show the output of a test that fails.
        println!("repeat this test with FOREBAY_SEED={seed}");
        Self::with_seed(seed)
    }

    /// The same numbers in each run, for content that has to be incompressible and nothing else.
    pub fn with_seed(seed: u64) -> Self {
        // Neighbouring seeds differ in many bits; the state is never zero.
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number less than `below`.
    pub fn below(&mut self, below: u64) -> u64 {
        ((self.next() >> 32) * below) >> 32
    }

    /// A text of 64 different letters, all of which JSON takes as they are; no compression makes it smaller than 3/4.
    pub fn text(&mut self, length: usize) -> String {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        (0..length).map(|_| char::from(LETTERS[self.below(64) as usize])).collect()
    }

    /// Incompressible bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()).flatten().take(length).collect()
    }
}
