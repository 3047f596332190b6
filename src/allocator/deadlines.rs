//! Which hold lapses next: one queue per hold duration, and a heap for deadlines that were moved.
//!
//! Holds of one duration lapse in the order in which they were made, so a queue suffices, and adding costs nothing.
//! Entries of holds that have ended or moved stay until their turn and are passed over then.
//!
//! I1: every live hold is in exactly one place that counts: the heap under its current deadline if it is `in_heap`, else
//! its duration's queue, whose deadlines never go back. I2: deadlines here are without credits, like those of the holds.

use super::arena::Queue;
use super::holds::Holds;
use crate::types::{ReservationId, Timestamp};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Different hold durations that an engine takes.
pub(super) const DURATIONS_MAX: usize = 64;

/// A heap that has grown beyond this many entries for each live one is cleaned.
const STALE_FACTOR: usize = 4;
const STALE_MIN: usize = 1_024;

pub(super) struct Deadlines {
    /// So many entries the first queue is made for: most holds last equally long.
    capacity: usize,
    queues: Vec<(u32, Fifo)>,
    moved: BinaryHeap<Reverse<(Timestamp, ReservationId)>>,
    cleaned_len: usize,
}

struct Fifo {
    ids: Queue<ReservationId>,
    /// The deadline of the last entry.
    last: Timestamp,
}

impl Fifo {
    fn with_capacity(entries: usize) -> Self {
        Self {
            ids: Queue::with_capacity(entries, ReservationId::from_u64(0)),
            last: Timestamp::MIN,
        }
    }
}

impl Deadlines {
    pub(super) fn with_capacity(entries: usize) -> Self {
        Self {
            capacity: entries,
            queues: Vec::new(),
            moved: BinaryHeap::new(),
            cleaned_len: 0,
        }
    }

    /// Whether a hold of this duration can be taken in.
    pub(super) fn takes(&self, hold_ms: u32) -> bool {
        self.queues.len() < DURATIONS_MAX || self.queues.iter().any(|&(known, _)| known == hold_ms)
    }

    /// A SKU is held for so long.
    pub(super) fn add(&mut self, hold_ms: u32) {
        self.queue_of(hold_ms);
    }

    #[inline]
    fn queue_of(&mut self, hold_ms: u32) -> &mut Fifo {
        let known = self.queues.iter().position(|(known, _)| *known == hold_ms);
        let at = known.unwrap_or_else(|| self.begin_queue(hold_ms));
        &mut self.queues[at].1
    }

    #[cold]
    fn begin_queue(&mut self, hold_ms: u32) -> usize {
        let capacity = std::mem::take(&mut self.capacity);
        self.queues.push((hold_ms, Fifo::with_capacity(capacity)));
        self.queues.len() - 1
    }

    /// A new hold. False if it lapses before one that came earlier, as after a credit that reaches back before that one:
    /// then it needs [`push_moved`](Self::push_moved).
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: what is returned through memory is read before it has arrived"
    )]
    pub(super) fn push(&mut self, hold_ms: u32, deadline: Timestamp, id: ReservationId) -> bool {
        let queue = self.queue_of(hold_ms);
        let in_order = deadline >= queue.last;
        if in_order {
            queue.last = deadline;
            queue.ids.push(id);
        }
        in_order
    }

    /// A hold with a deadline of its own.
    pub(super) fn push_moved(&mut self, deadline: Timestamp, id: ReservationId, holds: &Holds) {
        self.moved.push(Reverse((deadline, id)));
        if self.moved.len() > STALE_MIN && self.moved.len() > self.cleaned_len * STALE_FACTOR {
            self.moved
                .retain(|&Reverse((deadline, id))| is_current(holds, deadline, id));
            self.cleaned_len = self.moved.len();
        }
    }

    /// The live hold with the earliest (deadline, id). Passes over entries that no longer count.
    pub(super) fn first(&mut self, holds: &Holds) -> Option<(Timestamp, u32)> {
        let mut first: Option<(Timestamp, ReservationId, u32)> = None;
        let mut offer = |deadline, id, place| {
            if first.is_none_or(|(d, i, _)| (deadline, id) < (d, i)) {
                first = Some((deadline, id, place));
            }
        };
        for (_, queue) in &mut self.queues {
            while let Some((_, &id)) = queue.ids.front() {
                let place = holds.place_of(id);
                let place = place.filter(|&place| {
                    let hold = holds.get(place);
                    hold.status.is_live() && !hold.in_heap
                });
                if let Some(place) = place {
                    offer(holds.get(place).time, id, place);
                    break;
                }
                queue.ids.pop();
            }
        }
        while let Some(&Reverse((deadline, id))) = self.moved.peek() {
            if let Some(place) = holds
                .place_of(id)
                .filter(|_| is_current(holds, deadline, id))
            {
                offer(deadline, id, place);
                break;
            }
            self.moved.pop();
        }
        first.map(|(deadline, _, place)| (deadline, place))
    }
}

fn is_current(holds: &Holds, deadline: Timestamp, id: ReservationId) -> bool {
    holds.place_of(id).is_some_and(|place| {
        let hold = holds.get(place);
        hold.status.is_live() && hold.in_heap && hold.time == deadline
    })
}
