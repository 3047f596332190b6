//! Bytes as a source of choices.

/// What is left of a script; at its end every choice is 0.
pub(crate) struct Script<'a> {
    bytes: &'a [u8],
}

impl<'a> Script<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next bytes, fewer at the end.
    pub(crate) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(len.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A number below `bound`, which is at most 2^24; 0 if there is none.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let len = match bound {
            0..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 3,
        };
        let number = self.take(len).iter().rev();
        let number = number.fold(0, |number, &byte| number << 8 | usize::from(byte));
        number.checked_rem(bound).unwrap_or(0)
    }

    /// A number as a damaged field might hold it: of any size, the extremes more often.
    pub(crate) fn number(&mut self) -> u64 {
        match self.byte() {
            choice @ 0..64 => u64::from(choice / 8),
            choice @ 64..128 => u64::MAX - u64::from(choice / 8 - 8),
            choice @ 128..192 => 1 << (choice - 128),
            _ => {
                let mut bytes = [0; 8];
                let taken = self.take(8);
                bytes[..taken.len()].copy_from_slice(taken);
                u64::from_le_bytes(bytes)
            }
        }
    }
}
