//! [`Told`]: up to which offset everybody who asked has been told.
//!
//! Replies are on their way for a while, to several brokers, and arrive in any order. A run is passed once each of its replies is in
//! the topic, or given up: so who has heard all of the topic, and not his reply, knows that none will come.

use parking_lot::Mutex;
use std::collections::VecDeque;

/// In the order in which runs were read.
#[derive(Default)]
pub(super) struct Told(Mutex<State>);

#[derive(Default)]
struct State {
    position: u64,
    runs: VecDeque<Run>,
}

struct Run {
    /// The offset after its last message.
    end: u64,
    /// Replies that have not arrived.
    replies: usize,
}

impl Told {
    /// Everything before was dealt with by whoever read it.
    pub(super) fn begin(&self, position: u64) {
        self.0.lock().position = position;
    }

    /// A run up to `end` gets so many replies.
    pub(super) fn add(&self, end: u64, replies: usize) {
        let mut state = self.0.lock();
        state.runs.push_back(Run { end, replies });
        state.advance();
    }

    /// One reply of the run has arrived, or is given up.
    pub(super) fn arrived(&self, end: u64) {
        let mut state = self.0.lock();
        let found = state.runs.binary_search_by_key(&end, |run| run.end);
        if let Some(run) = found.ok().and_then(|at| state.runs.get_mut(at)) {
            run.replies = run.replies.saturating_sub(1);
        }
        state.advance();
    }

    /// The offset up to which nobody waits for a reply that may come.
    pub(super) fn position(&self) -> u64 {
        self.0.lock().position
    }
}

impl State {
    fn advance(&mut self) {
        while let Some(run) = self.runs.front()
            && run.replies == 0
        {
            self.position = run.end;
            self.runs.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_passed_once_its_replies_and_those_before_it_have_arrived() {
        let told = Told::default();
        told.begin(10);
        told.add(12, 2);
        told.add(15, 1);
        told.add(16, 0);
        told.add(20, 1);
        assert_eq!(told.position(), 10);
        told.arrived(15);
        told.arrived(12);
        assert_eq!(told.position(), 10, "the first run has one more");
        told.arrived(12);
        assert_eq!(told.position(), 16);
        told.arrived(12); // which nobody waits for
        assert_eq!(told.position(), 16);
        told.arrived(20);
        assert_eq!(told.position(), 20);
        told.add(25, 0);
        assert_eq!(told.position(), 25);
    }
}
