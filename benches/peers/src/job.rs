//! The job that everybody does: batches of reservations, each batch one durable commit.

use anyhow::{Result, ensure};
use std::path::Path;

/// The one SKU.
pub(crate) const SKU: u32 = 0;
/// Units that a user may hold.
pub(crate) const LIMIT: u32 = 1;
/// How long a hold lasts, in microseconds.
pub(crate) const HOLD_MICROS: u64 = 120_000_000;

/// One unit of the SKU for a user, under an idempotency key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) user: u128,
    pub(crate) key: u128,
}

/// What a request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The hold's number; the same for a key that comes again.
    Held(u64),
    OverLimit,
    SoldOut,
}

impl Answer {
    /// As it is kept under its key: holds count from 1.
    pub(crate) fn to_word(self) -> u64 {
        match self {
            Self::Held(hold) => hold,
            Self::OverLimit => u64::MAX,
            Self::SoldOut => u64::MAX - 1,
        }
    }

    pub(crate) fn from_word(word: u64) -> Self {
        match word {
            u64::MAX => Self::OverLimit,
            word if word == u64::MAX - 1 => Self::SoldOut,
            hold => Self::Held(hold),
        }
    }
}

/// The stock row. It is read once and written once per batch: nobody could do with less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stock {
    pub(crate) total: u64,
    pub(crate) reserved: u64,
}

/// Whoever does the job.
pub(crate) trait Peer {
    /// Decides a batch and makes it durable: when it returns, nothing of it can be lost.
    fn reserve(&mut self, batch: &[Request], answers: &mut Vec<Answer>) -> Result<()>;
    /// Units reserved, and hold rows if they can be counted.
    fn reserved(&mut self) -> Result<(u64, Option<u64>)>;
}

/// Makes a peer in an empty directory, with so many units in stock.
pub(crate) type Make = fn(&Path, u64) -> Result<Box<dyn Peer>>;

/// Requests of new users with new keys, spread like hashed ids, so that no table sees an order.
pub(crate) fn requests(first: u64, count: usize) -> Vec<Request> {
    let spread = |n: u64| u128::from(mix(n)) << 64 | u128::from(mix(!n));
    (first..)
        .take(count)
        .map(|n| Request {
            user: spread(2 * n),
            key: spread(2 * n + 1),
        })
        .collect()
}

/// The finaliser of `SplitMix64` (Steele, Lea, Flood 2014): one to one.
fn mix(n: u64) -> u64 {
    let z = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Shows that a peer does the job: limits, keys that come again (in the same batch and later), and the end of stock.
pub(crate) fn prove(make: Make, dir: &Path) -> Result<()> {
    let mut peer = make(dir, 3)?;
    let mut answers = Vec::new();
    let new = requests(1, 4);
    let again = Request { key: 7, ..new[0] };
    peer.reserve(&[new[0], new[0], again, new[1]], &mut answers)?;
    peer.reserve(&[new[1], again, new[2], new[3]], &mut answers)?;
    peer.reserve(&[new[3]], &mut answers)?;
    let held = |at: usize| matches!(answers[at], Answer::Held(_));
    ensure!(held(0) && held(3) && held(6), "new users hold: {answers:?}");
    ensure!(
        answers[1] == answers[0],
        "the same key, the same answer: {answers:?}"
    );
    ensure!(
        answers[4] == answers[3],
        "also in a later batch: {answers:?}"
    );
    let limited = [answers[2], answers[5]];
    ensure!(
        limited == [Answer::OverLimit; 2],
        "one unit per user: {answers:?}"
    );
    let sold_out = [answers[7], answers[8]];
    ensure!(
        sold_out == [Answer::SoldOut; 2],
        "three units in all: {answers:?}"
    );
    let reserved = peer.reserved()?;
    ensure!(
        reserved.0 == 3 && reserved.1.is_none_or(|rows| rows == 3),
        "{reserved:?}"
    );
    Ok(())
}
