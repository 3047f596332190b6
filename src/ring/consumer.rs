//! [`Consumer`]: the end that takes runs, and sleeps when there are none.
//!
//! Leaves out what is done with the values: a run is moved into the caller's `Vec` and its slots
//! are free at once. Pairs are those of the module's header.
#![expect(unsafe_code, reason = "a stamped slot is moved out before it is freed")]

use std::fmt;
use std::time::Duration;

use super::bell::Notifier;
use super::shared::{Shared, Tail};
use crate::sync::{Arc, Deadline, ThreadId, current_thread, nap, spin_loop, yield_now};

/// How often [`Consumer::wait`] looks before it parks, unless told otherwise: some 16 us in all,
/// half of what waking a parked thread takes.
pub const SPINS_DEFAULT: u32 = 16;

/// Pauses before a look, about a microsecond. Each look takes the line that producers are about to
/// write away from them, which costs as much as several pushes; so a consumer that has caught up
/// lets a run build up first. With 1/16 of it, producers reach a third of the rate.
const PAUSES: u32 = 64;

/// Takes values out of the ring. There is one.
pub struct Consumer<T: Send> {
    shared: Arc<Shared<T>>,
    /// The next position to take. `Shared` learns of it once per run.
    head: usize,
    spins: u32,
    /// Whether the last run ended because nothing more was published.
    caught_up: bool,
    /// The thread put down with the bell.
    sleeper: Option<ThreadId>,
}

/// Why [`Consumer::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wake {
    /// A value can be taken.
    Ready,
    /// A [`Notifier`] called.
    Notified,
    /// The time-out passed.
    TimedOut,
    /// The ring is closed, and everything claimed before was taken.
    Closed,
    /// Every producer is gone, and everything they pushed was taken.
    Disconnected,
}

impl<T: Send> Consumer<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        Self {
            shared,
            head: 0,
            spins: SPINS_DEFAULT,
            caught_up: false,
            sleeper: None,
        }
    }

    /// How often [`wait`](Self::wait) looks before it parks, about a microsecond apart. 0 parks at
    /// once. Spinning saves a wake-up of some 35 us, and takes a core from everybody else.
    pub fn set_spins(&mut self, spins: u32) {
        self.spins = spins;
    }

    /// Moves the published values at the head, in order and at most `len_max`, behind what `into`
    /// holds, and frees their slots. Returns how many there were. It never waits.
    ///
    /// # Panics
    ///
    /// If `into` can't grow; what is not in it then is still in the ring.
    pub fn drain_into(&mut self, into: &mut Vec<T>, len_max: usize) -> usize {
        let mut taken = self.take_run(into, len_max);
        if taken < len_max && self.shared.slots.is_wrap(self.head) {
            taken += self.take_run(into, len_max - taken);
        }
        self.caught_up = taken < len_max;
        taken
    }

    /// Hands the published values at the head to `each`, in order and at most `len_max`, without collecting them first;
    /// their slots are freed together. Returns how many there were. It never waits.
    ///
    /// # Panics
    ///
    /// If `each` does; what it was not given by then is still in the ring.
    #[inline]
    pub fn drain_with(&mut self, len_max: usize, mut each: impl FnMut(T)) -> usize {
        let mut taken = self.hand_run(len_max, &mut each);
        if taken < len_max && self.shared.slots.is_wrap(self.head) {
            taken += self.hand_run(len_max - taken, &mut each);
        }
        self.caught_up = taken < len_max;
        taken
    }

    /// Waits until there is something to take or to know: see [`Wake`]. Looks a few times
    /// ([`set_spins`](Self::set_spins)), then parks the thread; no wake-up is lost. Without a
    /// `timeout` it waits for ever, with one of zero it looks once.
    ///
    /// A value that is published comes before all other news, so a notice may be kept for a later
    /// wait. It also waits for a producer that was preempted in mid-publish.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Wake {
        let deadline = Deadline::after(timeout);
        let at_once = timeout.is_some_and(|timeout| timeout.is_zero());
        if !at_once && let Some(wake) = self.spin() {
            return wake;
        }
        let mut patience = Patience::default();
        loop {
            if let Some(wake) = self.glance() {
                return wake;
            }
            let in_time = match self.shared.tail(self.head) {
                Tail::Closed => return Wake::Closed,
                Tail::Abandoned => return Wake::Disconnected,
                Tail::Claimed => {
                    patience.pause();
                    !deadline.is_over()
                }
                Tail::Idle => self.sleep(&deadline),
            };
            if !in_time {
                return self.glance().unwrap_or(Wake::TimedOut);
            }
        }
    }

    /// Lets no further push succeed. What was claimed before can still be drained;
    /// [`wait`](Self::wait) says [`Wake::Closed`] when nothing is left.
    pub fn close(&mut self) {
        self.shared.close();
    }

    /// A handle that wakes this consumer without pushing.
    pub fn notifier(&self) -> Notifier {
        Notifier::new(Arc::clone(&self.shared.bell))
    }

    /// How many values are claimed or waiting: approximate, as producers move meanwhile.
    pub fn len(&self) -> usize {
        self.shared.len()
    }

    /// Whether nothing is claimed or waiting; as approximate as [`len`](Self::len).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values the ring can hold.
    pub fn capacity(&self) -> usize {
        self.shared.slots.capacity()
    }

    /// Takes the run at `head`, up to the wrap at most.
    fn take_run(&mut self, into: &mut Vec<T>, len_max: usize) -> usize {
        let slots = &self.shared.slots;
        let run = slots.run_len(self.head, len_max);
        if run > 0 {
            into.reserve(run);
            // SAFETY: `run_len` saw the stamps, and `head` moves below.
            into.extend(unsafe { slots.take_run(self.head, run) });
            self.head += run;
            self.shared.free_to(self.head);
        }
        run
    }

    /// The same as `take_run`, value by value.
    #[inline]
    fn hand_run(&mut self, len_max: usize, each: &mut impl FnMut(T)) -> usize {
        /// Frees what was handed out, also if `each` panics.
        struct Handed<'a, T: Send> {
            shared: &'a Shared<T>,
            head: &'a mut usize,
            len: usize,
        }
        impl<T: Send> Drop for Handed<'_, T> {
            fn drop(&mut self) {
                *self.head += self.len;
                self.shared.free_to(*self.head);
            }
        }
        let first = self.head;
        let run = self.shared.slots.run_len(first, len_max);
        if run > 0 {
            let mut handed = Handed {
                shared: &self.shared,
                head: &mut self.head,
                len: 0,
            };
            // SAFETY: `run_len` saw the stamps, and `head` moves past what was taken below.
            for value in unsafe { self.shared.slots.take_run(first, run) } {
                handed.len += 1;
                each(value);
            }
        }
        run
    }

    /// Whether a value or a notice is there.
    #[inline]
    fn glance(&self) -> Option<Wake> {
        if self.shared.slots.run_len(self.head, 1) > 0 {
            Some(Wake::Ready)
        } else if self.shared.bell.take_notice() {
            Some(Wake::Notified)
        } else {
            None
        }
    }

    /// Looks now and then; at once if the last run was cut short by its limit.
    fn spin(&self) -> Option<Wake> {
        for round in 0..self.spins {
            if round > 0 || self.caught_up {
                for _ in 0..PAUSES {
                    spin_loop();
                }
            }
            if let Some(wake) = self.glance() {
                return Some(wake);
            }
        }
        None
    }

    fn sleep(&mut self, deadline: &Deadline) -> bool {
        if self.sleeper != Some(current_thread().id()) {
            self.sleeper = Some(self.shared.bell.set_sleeper());
        }
        self.shared
            .bell
            .sleep(deadline, || self.shared.may_sleep(self.head))
    }
}

impl<T: Send> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.close();
        let mut patience = Patience::default();
        loop {
            if self.shared.slots.run_len(self.head, 1) > 0 {
                // SAFETY: stamped, and taken once: `head` moves before anything else happens.
                let value = unsafe { self.shared.slots.take_run(self.head, 1) }.next();
                self.head += 1;
                self.shared.free_to(self.head);
                drop(value); // may panic: what is left is dropped with `Shared`
            } else if matches!(self.shared.tail(self.head), Tail::Claimed) {
                patience.pause();
            } else {
                return;
            }
        }
    }
}

impl<T: Send> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

/// Waits for a producer in mid-publish, which takes nanoseconds, or a time slice if the scheduler
/// took its core.
#[derive(Default)]
struct Patience {
    rounds: u32,
}

impl Patience {
    const SPINS: u32 = 32;
    const YIELDS: u32 = 32;

    fn pause(&mut self) {
        self.rounds += 1;
        if self.rounds <= Self::SPINS {
            spin_loop();
        } else if self.rounds <= Self::SPINS + Self::YIELDS {
            yield_now();
        } else {
            nap();
        }
    }
}
