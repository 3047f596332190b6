//! One turn of the engine: the commands that are decided together and everything about them until they are answered.
//! Turns are reused whole, so that a warm engine allocates nothing for a request.

use super::handle::Request;
use super::health::Tally;
use crate::types::{Answer, Availability, Batch, SkuId, SkuName};
use std::time::Duration;

#[derive(Default)]
pub(super) struct Turn {
    pub(super) batch: Batch,
    /// In the order in which they were taken from the ring.
    pub(super) requests: Vec<Request>,
    /// One for each request, as far as it has been decided.
    pub(super) answers: Vec<Answer>,
    /// What readers may see once the batch is committed.
    pub(super) stock: Vec<Availability>,
    pub(super) skus: Vec<(SkuId, SkuName)>,
    pub(super) tally: Tally,
    /// When the first request was taken, in monotonic time.
    pub(super) began: Duration,
    /// The batch has a number and must be committed; else nothing in the turn changes anything.
    pub(super) has_batch: bool,
}

impl Turn {
    /// Empties it for the next use. Requests that have no answer are abandoned: their callers hear that the outcome is
    /// unknown.
    pub(super) fn clear(&mut self) {
        self.batch.clear();
        self.requests.clear();
        self.answers.clear();
        self.stock.clear();
        self.skus.clear();
        self.has_batch = false;
    }

    /// Hands all requests back undecided.
    pub(super) fn hand_back(&mut self) {
        for request in self.requests.drain(..) {
            request.completer.complete(Answer::NotDecided);
        }
    }
}
