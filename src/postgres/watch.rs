//! Whether the role may be had: what a standby concludes from its looks at the fence row, by its own clock.
//!
//! An owner is silent only for as long as it could have been heard: neither before this connection was made, nor over a time
//! without looks, in which the server or the standby stood still. And it must have had its chance: its session was seen over this
//! connection, so that the server was up all the time, or it has had the time that it needs to connect anew. An owner that has lost
//! its server remembers what the next one lacks, and only it can give that again.

use super::log::{End, Fence};
use crate::types::Token;
use std::time::Duration;

/// Looks that are so far apart say nothing of the time between them; they are made every 50 ms.
const STOOD_STILL: Duration = Duration::from_secs(1);

pub(super) struct Watch {
    patience: Duration,
    /// An owner that has lost its session has another one after that, or never.
    returns_within: Duration,
    connected: Duration,
    looked: Duration,
    /// The last sign of life, and since when there was no other one.
    seen: Option<(Token, End)>,
    since: Duration,
    /// The owner's session was there, at a look over this connection.
    met: bool,
}

impl Watch {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            patience,
            returns_within: Duration::ZERO,
            connected: Duration::ZERO,
            looked: Duration::ZERO,
            seen: None,
            since: Duration::ZERO,
            met: false,
        }
    }

    /// A connection was made.
    pub(super) fn connect(&mut self, now: Duration, returns_within: Duration) {
        self.returns_within = returns_within;
        (self.connected, self.since, self.met) = (now, now, false);
    }

    /// Whether the role may be had, as the row was found just now.
    pub(super) fn look(&mut self, found: &Fence, now: Duration) -> bool {
        let seen = (found.token, found.end);
        let stood_still = now.saturating_sub(self.looked) > STOOD_STILL;
        if self.seen != Some(seen) || stood_still {
            self.since = now;
        }
        let is_same = self.seen.is_some_and(|(token, _)| token == found.token);
        self.met = found.has_owner || self.met && is_same;
        (self.seen, self.looked) = (Some(seen), now);
        let had_its_chance = self.met || now.saturating_sub(self.connected) >= self.returns_within;
        let is_silent = now.saturating_sub(self.since) >= self.patience;
        found.handed_on || had_its_chance && (!found.has_owner || is_silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTED: u64 = 10_000;
    const RETURNS: u64 = 2_000;
    const PATIENCE: u64 = 3_000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn watch() -> Watch {
        let mut watch = Watch::new(ms(PATIENCE));
        watch.connect(ms(CONNECTED), ms(RETURNS));
        watch
    }

    fn fence(batch: u64, has_owner: bool) -> Fence {
        Fence {
            token: Token {
                epoch: 1,
                writer: 1,
            },
            end: End {
                number: batch,
                ..End::default()
            },
            credit_micros: 0,
            handed_on: false,
            has_owner,
            halted: None,
        }
    }

    /// Looks every 50 ms from `begin` on; after how long the role may be had, if before `end`.
    fn free_after(watch: &mut Watch, fence: &Fence, begin: u64, end: u64) -> Option<u64> {
        let mut looks = (begin..end).step_by(50);
        looks
            .find(|&now| watch.look(fence, ms(now)))
            .map(|now| now - begin)
    }

    #[test]
    fn an_owner_that_leaves_before_its_standbys_eyes_is_replaced_at_once() {
        let mut watch = watch();
        assert!(!watch.look(&fence(1, true), ms(CONNECTED)));
        assert!(watch.look(&fence(1, false), ms(CONNECTED + 50)));
        // Not one that took the role meanwhile and wasn't seen.
        let mut other = fence(1, false);
        other.token.epoch = 2;
        assert!(!watch.look(&other, ms(CONNECTED + 100)));
        other.handed_on = true;
        assert!(watch.look(&other, ms(CONNECTED + 150)));
    }

    #[test]
    fn an_owner_that_isnt_back_has_the_time_that_it_needs() {
        let mut watch = watch();
        let free = free_after(&mut watch, &fence(1, false), CONNECTED, CONNECTED + 60_000);
        assert_eq!(free, Some(RETURNS));
        // Also if it needs more than the standby has patience.
        watch.connect(ms(CONNECTED), ms(2 * PATIENCE));
        let free = free_after(&mut watch, &fence(1, false), CONNECTED, CONNECTED + 60_000);
        assert_eq!(free, Some(2 * PATIENCE));
    }

    #[test]
    fn silence_counts_only_while_the_owner_could_be_heard() {
        let (mut watch, owner) = (watch(), fence(1, true));
        let end = CONNECTED + 60_000;
        assert_eq!(
            free_after(&mut watch, &owner, CONNECTED, end),
            Some(PATIENCE)
        );
        // It beats.
        let mut now = CONNECTED;
        for batch in 2..20 {
            now += 500;
            assert_eq!(
                free_after(&mut watch, &fence(batch, true), now, now + 500),
                None
            );
        }
        // Nobody looks for a while.
        let (owner, later) = (fence(19, true), now + 20_000);
        assert_eq!(
            free_after(&mut watch, &owner, later, later + 60_000),
            Some(PATIENCE)
        );
        // The connection is lost, and back at once.
        let now = later + PATIENCE + 50;
        watch.connect(ms(now), ms(RETURNS));
        assert_eq!(
            free_after(&mut watch, &owner, now, now + 60_000),
            Some(PATIENCE)
        );
    }
}
