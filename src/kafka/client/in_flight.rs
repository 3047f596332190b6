//! [`InFlight`]: the requests of a node that wait for a reply, and their messages.
//!
//! A writer that ends between a commit and its replies leaves requests decided and nobody told. The node can see that: the
//! group's position has passed the offset at which a request arrived, and no reply came. Its message is then sent once more, and
//! its key gives it the first decision.

use super::super::reply::Answered;
use crate::ticket::Completer;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// A request as it is sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) partition: u32,
    pub(super) key: String,
    pub(super) payload: Vec<u8>,
}

/// By the node's number of the request.
#[derive(Default)]
pub(super) struct InFlight(Mutex<HashMap<u64, Waiting>>);

struct Waiting {
    completer: Completer<Answered>,
    /// Until it has been sent once more.
    message: Option<Arc<Message>>,
    /// Where it arrived, once that is known.
    offset: Option<i64>,
}

impl InFlight {
    /// Takes a request in, unless so many are there. Gives back the completer otherwise.
    pub(super) fn add(
        &self,
        id: u64,
        completer: Completer<Answered>,
        message: &Arc<Message>,
        room: usize,
    ) -> Result<(), Completer<Answered>> {
        let mut waiting = self.0.lock();
        if waiting.len() >= room {
            return Err(completer);
        }
        let request = Waiting {
            completer,
            message: Some(Arc::clone(message)),
            offset: None,
        };
        waiting.insert(id, request);
        Ok(())
    }

    /// Its message is in its partition, at that offset.
    pub(super) fn arrived(&self, id: u64, offset: i64) {
        if let Some(waiting) = self.0.lock().get_mut(&id) {
            waiting.offset = Some(offset);
        }
    }

    /// Answers it, if it waits still.
    pub(super) fn complete(&self, id: u64, answered: Answered) {
        let waiting = self.0.lock().remove(&id);
        // Waking somebody is nothing to do under a lock, here and below.
        if let Some(waiting) = waiting {
            waiting.completer.complete(answered);
        }
    }

    /// Nobody waits any more, or hears that the outcome is unknown.
    pub(super) fn give_up(&self, id: u64) {
        let waiting = self.0.lock().remove(&id);
        drop(waiting);
    }

    /// The same, for all.
    pub(super) fn give_up_all(&self) {
        let waiting = std::mem::take(&mut *self.0.lock());
        drop(waiting);
    }

    /// Gives each request that arrived before its partition's position, in the order of their numbers: each once.
    pub(super) fn passed(&self, positions: &[i64]) -> Vec<(u64, Arc<Message>)> {
        let is_passed = |waiting: &Waiting| {
            let partition = waiting.message.as_ref()?.partition;
            let position = positions.get(partition as usize)?;
            Some(waiting.offset? < *position)
        };
        let mut waiting = self.0.lock();
        let passed = waiting
            .iter_mut()
            .filter(|(_, waiting)| is_passed(waiting) == Some(true));
        let passed = passed.filter_map(|(id, waiting)| Some((*id, waiting.message.take()?)));
        let mut passed: Vec<_> = passed.collect();
        passed.sort_unstable_by_key(|(id, _)| *id);
        passed
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticket::{Pool, Ticket};

    fn add(all: &InFlight, id: u64, partition: u32, room: usize) -> Option<Ticket<Answered>> {
        let (completer, ticket) = Pool::new(1).issue()?;
        let message = Arc::new(Message {
            partition,
            key: String::new(),
            payload: vec![1],
        });
        all.add(id, completer, &message, room).ok()?;
        Some(ticket)
    }

    fn ids(passed: &[(u64, Arc<Message>)]) -> Vec<u64> {
        passed.iter().map(|(id, _)| *id).collect()
    }

    #[test]
    fn what_a_position_has_passed_is_given_once_and_stays() {
        let all = InFlight::default();
        let tickets: Vec<_> = (0..6)
            .map(|id| add(&all, id, u32::from(id >= 3), 6))
            .collect();
        assert!(tickets.iter().all(Option::is_some));
        assert!(add(&all, 6, 0, 6).is_none(), "there is no room");
        // The last one's message is still on its way.
        for (id, offset) in [(0, 10), (1, 11), (2, 12), (3, 11), (4, 3)] {
            all.arrived(id, offset);
        }
        all.arrived(9, 1); // nobody's
        assert!(all.passed(&[0, 0]).is_empty());
        assert!(
            all.passed(&[]).is_empty(),
            "a partition that nobody knows of"
        );
        assert_eq!(ids(&all.passed(&[12, 11])), [0, 1, 4]);
        assert_eq!(ids(&all.passed(&[12, 12])), [3], "each once");
        all.give_up(2);
        assert!(all.passed(&[100, 100]).is_empty(), "and none that is gone");
        assert_eq!(all.len(), 5);
        all.complete(0, Answered::Pool(None));
        all.give_up_all();
        let mut tickets = tickets.into_iter().flatten();
        let first = tickets.next().and_then(Ticket::wait);
        assert_eq!(first, Some(Answered::Pool(None)));
        assert!(tickets.all(|ticket| ticket.wait().is_none()));
    }
}
