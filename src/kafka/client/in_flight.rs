//! [`InFlight`]: the requests of a node that wait for a reply, and their messages.
//!
//! A message is kept until its reply comes, to be sent once more if none will: see [`watcher`](super::watcher).

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
    partition: u32,
    /// Where it arrived, once that is known.
    offset: Option<u64>,
    /// Until it has been sent once more.
    message: Option<Arc<Message>>,
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
            partition: message.partition,
            offset: None,
            message: Some(Arc::clone(message)),
        };
        waiting.insert(id, request);
        Ok(())
    }

    /// Its message is in its partition, at that offset, which is negative where the broker doesn't know it any more.
    pub(super) fn arrived(&self, id: u64, offset: i64) {
        if let Ok(offset) = u64::try_from(offset)
            && let Some(waiting) = self.0.lock().get_mut(&id)
        {
            waiting.offset = Some(offset);
        }
    }

    /// Its message didn't arrive. If it did before, that one may be answered still.
    pub(super) fn failed(&self, id: u64) {
        let mut waiting = self.0.lock();
        let is_there = waiting.get(&id).is_some_and(|it| it.offset.is_some());
        let gone = if is_there { None } else { waiting.remove(&id) };
        drop(waiting);
        drop(gone);
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

    /// The requests that arrived before their partition's offset here and have not been sent again, in the order of their numbers.
    pub(super) fn passed(&self, offsets: &[u64]) -> Vec<u64> {
        let is_passed = |waiting: &Waiting| {
            let position = offsets.get(waiting.partition as usize);
            waiting.message.is_some()
                && waiting.offset.is_some()
                && waiting.offset.as_ref() < position
        };
        let waiting = self.0.lock();
        let passed = waiting.iter().filter(|(_, waiting)| is_passed(waiting));
        let mut passed: Vec<_> = passed.map(|(id, _)| *id).collect();
        drop(waiting);
        passed.sort_unstable();
        passed
    }

    /// The message of a request that waits still, to be sent once more: it is not kept any longer.
    pub(super) fn take_message(&self, id: u64) -> Option<Arc<Message>> {
        self.0.lock().get_mut(&id)?.message.take()
    }

    /// Keeps it again.
    pub(super) fn keep_message(&self, id: u64, message: Arc<Message>) {
        if let Some(waiting) = self.0.lock().get_mut(&id) {
            waiting.message = Some(message);
        }
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

    #[test]
    fn what_a_position_has_passed_is_sent_once_more_and_waits_on() {
        let all = InFlight::default();
        let tickets: Vec<_> = (0..6)
            .map(|id| add(&all, id, u32::from(id >= 3), 6))
            .collect();
        assert!(tickets.iter().all(Option::is_some));
        assert!(add(&all, 6, 0, 6).is_none(), "there is no room");
        // The last one's message is still on its way.
        for (id, offset) in [(0, 10), (1, 11), (2, 12), (3, 11), (4, 3), (5, -1), (9, 1)] {
            all.arrived(id, offset);
        }
        assert!(all.passed(&[0, 0]).is_empty());
        assert!(all.passed(&[]).is_empty(), "partitions that nobody knows");
        assert_eq!(all.passed(&[12, 11]), [0, 1, 4]);
        let message = all.take_message(0).expect("it waits");
        assert!(all.take_message(0).is_none(), "once");
        assert!(all.take_message(9).is_none(), "nobody waits for it");
        assert_eq!(all.passed(&[12, 11]), [1, 4]);
        all.keep_message(0, message);
        assert_eq!(all.passed(&[12, 12]), [0, 1, 3, 4]);
        all.give_up(1);
        assert_eq!(all.passed(&[12, 12]), [0, 3, 4]);

        // The first to arrive may be answered, though a second doesn't arrive.
        all.failed(0);
        all.complete(0, Answered::Pool(None));
        all.failed(5);
        assert_eq!(all.len(), 3);
        all.give_up_all();
        let mut tickets = tickets.into_iter().flatten();
        let first = tickets.next().and_then(Ticket::wait);
        assert_eq!(first, Some(Answered::Pool(None)));
        assert!(tickets.all(|ticket| ticket.wait().is_none()));
    }
}
