//! [`Waiter`]: who is to be woken, a thread or a task.

use std::collections::VecDeque;
use std::task::Waker;

use crate::sync::Thread;

pub(super) enum Waiter {
    Thread(Thread),
    Task(Waker),
}

impl Waiter {
    pub(super) fn wake(self) {
        match self {
            Self::Thread(thread) => thread.unpark(),
            Self::Task(waker) => waker.wake(),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Thread(one), Self::Thread(other)) => one.id() == other.id(),
            (Self::Task(one), Self::Task(other)) => one.will_wake(other),
            (Self::Thread(_), Self::Task(_)) | (Self::Task(_), Self::Thread(_)) => false,
        }
    }
}

/// Waiters to be woken together, each once.
#[derive(Default)]
pub(super) struct Wakes {
    waiters: VecDeque<Waiter>,
}

impl Wakes {
    /// How far back a repetition is looked for: a task that waits for many tickets usually meets
    /// itself at once, and to be woken twice is waste, not harm.
    const LOOK_BACK: usize = 16;

    pub(super) fn add(&mut self, waiter: Waiter) {
        if !self
            .waiters
            .iter()
            .rev()
            .take(Self::LOOK_BACK)
            .any(|other| other.is_same(&waiter))
        {
            self.waiters.push_back(waiter);
        }
    }

    /// Wakes all, the longest waiting first. Should a waker panic, the others are kept.
    pub(super) fn wake_all(&mut self) {
        while let Some(waiter) = self.waiters.pop_front() {
            waiter.wake();
        }
    }
}
