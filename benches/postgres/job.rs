//! The job that everybody does: one unit of one hot SKU for a user under a key, durable before it is answered. It is four
//! things in one atomic step: the stock decremented, the user's limit checked, the key kept with its answer, a record of the
//! hold. Each peer first proves that it does all of it, alone and with many callers at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Outcome<T> = Result<T, Failure>;

/// Units that a user may hold.
pub(crate) const LIMIT: u32 = 1;
/// How long a hold lasts, in seconds: longer than any run, so that nobody's run has expiries in it.
pub(crate) const HOLD_S: u32 = 86_400;
/// More than any run reserves.
pub(crate) const PLENTY: u64 = 1 << 40;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) user: u128,
    pub(crate) key: u128,
}

impl Request {
    /// A new user with a new key. Ids ascend, as those that carry their time do: the order that indexes like best.
    pub(crate) fn new(number: u64) -> Self {
        let user = u128::from(number) << 64 | 7;
        Self {
            user,
            key: user + 1,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The hold's number, from 1; the same for a key that comes again.
    Held(u64),
    OverLimit,
    SoldOut,
}

impl Answer {
    /// What a peer's statement or script answers: a hold's number, -1 over the limit, -2 sold out.
    pub(crate) fn from_word(word: i64) -> Outcome<Self> {
        match word {
            -1 => Ok(Self::OverLimit),
            -2 => Ok(Self::SoldOut),
            1.. => Ok(Self::Held(word.cast_unsigned())),
            _ => Err(format!("{word} is no answer").into()),
        }
    }
}

/// Whoever does the job.
pub(crate) trait Peer: Sync {
    /// One caller's connection, with everything prepared.
    fn caller(&self) -> Outcome<Box<dyn Caller>>;
    /// Units that are left, and records of holds.
    fn counts(&self) -> Outcome<(u64, u64)>;
}

pub(crate) trait Caller: Send {
    /// Has these decided, at once if the peer takes several; when it returns they are durable.
    fn reserve(&mut self, requests: &[Request], answers: &mut Vec<Answer>) -> Outcome<()>;
    /// Tries so far: more than requests where a try can fail.
    fn tries(&self) -> u64;
}

/// How a peer is loaded: callers, each with so many requests under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) callers: usize,
    pub(crate) pipeline: usize,
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pipeline {
            1 => write!(f, "{}", self.callers),
            pipeline => write!(f, "{} x {pipeline}", self.callers),
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// Reservations per second.
    pub(crate) rate: f64,
    /// From a request to its durable answer.
    pub(crate) p50: Duration,
    pub(crate) p95: Duration,
    /// Per reservation.
    pub(crate) tries: f64,
}

impl Measured {
    #[expect(clippy::cast_precision_loss, reason = "rates are for people")]
    pub(crate) fn new(reserved: u64, tries: u64, took: Duration, times: &mut [Duration]) -> Self {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        Self {
            rate: reserved as f64 / took.as_secs_f64(),
            p50: at(50),
            p95: at(95),
            tries: tries as f64 / reserved as f64,
        }
    }
}

/// Loads a peer whose stock is [`PLENTY`] for so long, each caller with its next request when it has the last answer.
pub(crate) fn drive(peer: &dyn Peer, load: Load, time: Duration) -> Outcome<Measured> {
    let next = AtomicU64::new(1);
    let callers = (0..load.callers).map(|_| peer.caller());
    let callers: Vec<_> = callers.collect::<Outcome<_>>()?;
    let began = Instant::now();
    let run = |mut caller: Box<dyn Caller>| -> Outcome<(Vec<Duration>, u64)> {
        let (mut times, mut answers, mut requests) = (Vec::new(), Vec::new(), Vec::new());
        while began.elapsed() < time || times.is_empty() {
            let first = next.fetch_add(load.pipeline as u64, Ordering::Relaxed);
            requests.clear();
            requests.extend((first..).take(load.pipeline).map(Request::new));
            answers.clear();
            let asked = Instant::now();
            caller.reserve(&requests, &mut answers)?;
            times.push(asked.elapsed());
            let held = answers
                .iter()
                .all(|answer| matches!(answer, Answer::Held(_)));
            if !held || answers.len() != requests.len() {
                return Err(format!("a request was refused: {answers:?}").into());
            }
        }
        Ok((times, caller.tries()))
    };
    let (mut times, mut tries) = (Vec::new(), 0);
    std::thread::scope(|scope| -> Outcome<()> {
        let threads = callers
            .into_iter()
            .map(|caller| scope.spawn(|| run(caller)));
        let threads: Vec<_> = threads.collect();
        for thread in threads {
            let done = thread.join().map_err(|_| "a caller panicked")??;
            times.extend(done.0);
            tries += done.1;
        }
        Ok(())
    })?;
    let took = began.elapsed();
    let reserved = (times.len() * load.pipeline) as u64;
    let counted = peer.counts()?;
    if counted != (PLENTY - reserved, reserved) {
        let told = format!("{counted:?} are left and held after {reserved} reservations");
        return Err(told.into());
    }
    Ok(Measured::new(reserved, tries, took, &mut times))
}

/// Shows that a peer with three units in stock does the job: limits, keys that come again, the end of stock.
pub(crate) fn prove(peer: &dyn Peer) -> Outcome<()> {
    let mut caller = peer.caller()?;
    let new: Vec<_> = (1..=4).map(Request::new).collect();
    let other_key = |request: Request| Request {
        key: request.key + 1,
        ..request
    };
    let again = other_key(new[0]);
    let asked = [
        new[0], new[0], again, new[1], new[1], again, new[2], new[3], new[3], new[0],
    ];
    let mut answers = Vec::new();
    caller.reserve(&asked, &mut answers)?;
    let held = |at: usize| matches!(answers[at], Answer::Held(_));
    let same = |one: usize, other: usize| answers[one] == answers[other];
    let limited = answers[2] == Answer::OverLimit && same(5, 2);
    let sold_out = answers[7] == Answer::SoldOut && same(8, 7);
    let is_done = held(0) && held(3) && held(6) && same(1, 0) && same(4, 3) && same(9, 0);
    let counted = peer.counts()?;
    if answers.len() == asked.len() && is_done && limited && sold_out && counted == (0, 3) {
        return Ok(());
    }
    Err(format!("{answers:?}, left and held {counted:?}").into())
}

/// Shows the same with many at once for `stock` units: each user comes to two callers under one key and to a third under
/// another, and there are more users than units.
pub(crate) fn prove_at_once(peer: &dyn Peer, stock: u64) -> Outcome<()> {
    let run = |other_key: u128| -> Outcome<Vec<Answer>> {
        let mut caller = peer.caller()?;
        let mut answers = Vec::new();
        for number in 1..=2 * stock {
            let mut request = Request::new(number);
            request.key += other_key;
            caller.reserve(&[request], &mut answers)?;
        }
        Ok(answers)
    };
    let told = std::thread::scope(|scope| {
        let threads = [0, 0, 1].map(|other_key| scope.spawn(move || run(other_key)));
        let told = threads.map(|thread| thread.join().map_err(|_| "a caller panicked")?);
        told.into_iter().collect::<Outcome<Vec<_>>>()
    })?;
    let mut held = 0;
    let others = told[1].iter().zip(&told[2]);
    for (user, (&first, (&twin, &other))) in told[0].iter().zip(others).enumerate() {
        let is_held = |answer: Answer| matches!(answer, Answer::Held(_));
        if first != twin || is_held(first) && is_held(other) {
            return Err(format!("user {user}: {first:?}, {twin:?} and {other:?}").into());
        }
        held += u64::from(is_held(first) || is_held(other));
    }
    let counted = peer.counts()?;
    if held == stock && counted == (0, stock) {
        return Ok(());
    }
    Err(format!("{held} of {stock} held; left and held {counted:?}").into())
}
