//! The last batches that were committed: what a server is given again that came back without them.

use super::log::End;
use crate::types::Batch;
use std::collections::VecDeque;

/// Invariant I1: the batches follow each other, and the first one follows `before`.
pub(super) struct Chain {
    before: End,
    batches: VecDeque<Batch>,
    bytes: usize,
    bytes_max: usize,
}

impl Chain {
    /// A chain that begins after `end`.
    pub(super) fn after(end: End, bytes_max: usize) -> Self {
        Self {
            before: end,
            batches: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    pub(super) fn end(&self) -> End {
        self.batches.back().map_or(self.before, end_of)
    }

    /// Takes a batch that was committed.
    pub(super) fn push(&mut self, batch: &Batch) {
        debug_assert_eq!(batch.header.prev_hash, self.end().hash, "it follows");
        self.bytes += batch.encoded_len();
        self.batches.push_back(batch.clone());
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.batches.pop_front()
        {
            self.bytes -= oldest.encoded_len();
            self.before = end_of(&oldest);
        }
    }

    /// The batches after `end`; `None` if that isn't in the chain, or longer ago than it remembers.
    pub(super) fn since(&self, end: End) -> Option<impl Iterator<Item = &Batch>> {
        let skipped = usize::try_from(end.number.checked_sub(self.before.number)?).ok()?;
        let is_here = match skipped.checked_sub(1) {
            None => self.before == end,
            Some(at) => self.batches.get(at).map(end_of) == Some(end),
        };
        is_here.then(|| self.batches.iter().skip(skipped))
    }

    /// Whether the chain has a batch of this number.
    pub(super) fn reaches(&self, number: u64) -> bool {
        (self.before.number..=self.end().number).contains(&number)
    }
}

fn end_of(batch: &Batch) -> End {
    End {
        number: batch.header.number,
        hash: batch.hash(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BatchHash, HEADER_SIZE};

    fn chain(batches: u64, bytes_max: usize) -> Chain {
        let mut chain = Chain::after(End::default(), bytes_max);
        for number in 1..=batches {
            let mut batch = Batch::default();
            batch.header.number = number;
            batch.seal(chain.end().hash);
            chain.push(&batch);
        }
        chain
    }

    fn numbers(chain: &Chain, end: End) -> Option<Vec<u64>> {
        let batches = chain.since(end)?;
        Some(batches.map(|batch| batch.header.number).collect())
    }

    #[test]
    fn it_gives_what_came_after_any_batch_it_remembers() {
        let whole = chain(5, usize::MAX);
        assert_eq!(numbers(&whole, End::default()), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(
            numbers(&whole, chain(3, usize::MAX).end()),
            Some(vec![4, 5])
        );
        assert_eq!(numbers(&whole, whole.end()), Some(vec![]));
        assert_eq!(
            numbers(&whole, chain(6, usize::MAX).end()),
            None,
            "ahead of it"
        );
        let foreign = End {
            number: 3,
            hash: BatchHash([9; 32]),
        };
        assert_eq!(numbers(&whole, foreign), None, "another history");
    }

    #[test]
    fn it_remembers_so_many_bytes() {
        let short = chain(5, 2 * HEADER_SIZE);
        assert_eq!(numbers(&short, chain(2, usize::MAX).end()), None);
        assert_eq!(
            numbers(&short, chain(3, usize::MAX).end()),
            Some(vec![4, 5])
        );
        assert!(short.reaches(3) && short.reaches(5) && !short.reaches(2) && !short.reaches(6));
        let none = chain(5, 0);
        assert_eq!(
            none.end(),
            chain(5, usize::MAX).end(),
            "its end it always knows"
        );
        assert_eq!(numbers(&none, none.end()), Some(vec![]));
    }
}
