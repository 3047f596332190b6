//! A cart: 1 to [`LINES_MAX`] lines of (SKU, quantity), every SKU once, in the order of first mention.
//!
//! The type upholds what the allocator relies on: never empty, no SKU twice (quantities are summed), every
//! quantity in `1..=QUANTITY_MAX`. Short carts live inside the value; a longer one is one boxed slice that the
//! caller allocates before it submits, so a command always fits its ring slot.

use super::SkuId;
use std::collections::HashMap;

/// The most lines that a cart can have; an engine's `lines_max` may be lower.
pub const LINES_MAX: usize = 4_096;
/// The largest quantity of one line, 2^31 - 1, so that it fits a signed column anywhere.
pub const QUANTITY_MAX: u32 = i32::MAX as u32;
/// Lines that need no allocation.
pub const LINES_INLINE: usize = 4;

/// So many units of one SKU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Line {
    /// What.
    pub sku: SkuId,
    /// How many units, `1..=QUANTITY_MAX`.
    pub quantity: u32,
}

/// A cart can't be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinesError {
    /// It has no line.
    #[error("the cart is empty: give at least one line")]
    Empty,
    /// A quantity is zero.
    #[error("line {line} has quantity 0: give 1 or more, or leave the line out")]
    ZeroQuantity {
        /// The line's index in the cart as given.
        line: usize,
    },
    /// The quantities of one SKU sum to more than [`QUANTITY_MAX`].
    #[error("line {line} takes its SKU beyond {QUANTITY_MAX} units: split the order")]
    Overflow {
        /// The line's index in the cart as given.
        line: usize,
    },
    /// More than [`LINES_MAX`] different SKUs.
    #[error("the cart has {len} lines, at most {LINES_MAX} are possible: split the order")]
    TooMany {
        /// The number of lines after summing.
        len: usize,
    },
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lines(Repr);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Repr {
    Inline {
        len: u8,
        lines: [Line; LINES_INLINE],
    },
    Boxed(Box<[Line]>),
}

impl Lines {
    /// A cart of one line.
    ///
    /// # Errors
    /// If the quantity is 0 or above [`QUANTITY_MAX`].
    pub fn one(sku: SkuId, quantity: u32) -> Result<Self, LinesError> {
        match quantity {
            0 => Err(LinesError::ZeroQuantity { line: 0 }),
            1..=QUANTITY_MAX => {
                let mut lines = [Line::default(); LINES_INLINE];
                lines[0] = Line { sku, quantity };
                Ok(Self(Repr::Inline { len: 1, lines }))
            }
            _ => Err(LinesError::Overflow { line: 0 }),
        }
    }

    /// A cart of several; quantities of one SKU are summed at its first mention.
    ///
    /// # Errors
    /// An empty cart, a zero or overflowing quantity, or too many lines.
    ///
    /// ```
    /// # use stockade::types::{Line, Lines, SkuId};
    /// let (a, b) = (SkuId(0), SkuId(1));
    /// let cart = [(a, 1), (b, 2), (a, 3)].map(|(sku, quantity)| Line { sku, quantity });
    /// assert_eq!(Lines::new(cart)?.len(), 2);
    /// assert_eq!(Lines::new(cart)?.as_slice()[0], Line { sku: a, quantity: 4 });
    /// # Ok::<(), stockade::types::LinesError>(())
    /// ```
    pub fn new(cart: impl IntoIterator<Item = Line>) -> Result<Self, LinesError> {
        let mut inline = [Line::default(); LINES_INLINE];
        let mut len = 0_usize;
        let mut many: Vec<Line> = Vec::new();
        let mut seen: HashMap<SkuId, usize> = HashMap::new();
        for (at, line) in cart.into_iter().enumerate() {
            if line.quantity == 0 {
                return Err(LinesError::ZeroQuantity { line: at });
            }
            let known = if many.is_empty() {
                inline[..len].iter().position(|known| known.sku == line.sku)
            } else {
                seen.get(&line.sku).copied()
            };
            let lines = if many.is_empty() {
                &mut inline[..]
            } else {
                &mut many[..]
            };
            if let Some(known) = known.and_then(|index| lines.get_mut(index)) {
                known.quantity = known.quantity.saturating_add(line.quantity);
                if known.quantity > QUANTITY_MAX {
                    return Err(LinesError::Overflow { line: at });
                }
                continue;
            }
            if line.quantity > QUANTITY_MAX {
                return Err(LinesError::Overflow { line: at });
            }
            if len < LINES_INLINE {
                inline[len] = line;
            } else {
                if many.is_empty() {
                    many.extend_from_slice(&inline);
                    seen.extend(
                        inline
                            .iter()
                            .enumerate()
                            .map(|(index, line)| (line.sku, index)),
                    );
                }
                many.push(line);
                seen.insert(line.sku, len);
            }
            len += 1;
        }
        match (len, u8::try_from(len)) {
            (0, _) => Err(LinesError::Empty),
            (1..=LINES_INLINE, Ok(len)) => Ok(Self(Repr::Inline { len, lines: inline })),
            (..=LINES_MAX, _) => Ok(Self(Repr::Boxed(many.into_boxed_slice()))),
            _ => Err(LinesError::TooMany { len }),
        }
    }

    /// The lines in order.
    pub fn as_slice(&self) -> &[Line] {
        match &self.0 {
            Repr::Inline { len, lines } => &lines[..usize::from(*len)],
            Repr::Boxed(lines) => lines,
        }
    }

    /// How many lines, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a cart is never empty")]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// The first line.
    pub fn first(&self) -> Line {
        self.as_slice()[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cart(lines: &[(u32, u32)]) -> Result<Lines, LinesError> {
        Lines::new(lines.iter().map(|&(sku, quantity)| Line {
            sku: SkuId(sku),
            quantity,
        }))
    }

    #[test]
    fn bad_carts_are_refused_naming_the_line() {
        assert_eq!(cart(&[]), Err(LinesError::Empty));
        assert_eq!(
            cart(&[(1, 1), (2, 0)]),
            Err(LinesError::ZeroQuantity { line: 1 })
        );
        assert_eq!(
            cart(&[(1, QUANTITY_MAX), (1, 1)]),
            Err(LinesError::Overflow { line: 1 })
        );
        assert_eq!(
            cart(&[(1, QUANTITY_MAX + 1)]),
            Err(LinesError::Overflow { line: 0 })
        );
        assert!(cart(&[(1, QUANTITY_MAX)]).is_ok());
    }

    #[test]
    fn a_cart_of_one_line_is_the_same_either_way() {
        for quantity in [0, 1, 7, QUANTITY_MAX, QUANTITY_MAX + 1, u32::MAX] {
            assert_eq!(Lines::one(SkuId(3), quantity), cart(&[(3, quantity)]));
        }
    }

    #[test]
    fn one_sku_twice_is_summed_in_short_and_long_carts() {
        for distinct in 1..20_u32 {
            let mut lines: Vec<(u32, u32)> = (0..distinct).map(|sku| (sku, 1)).collect();
            lines.extend((0..distinct).rev().map(|sku| (sku, 2)));
            let cart = cart(&lines).expect("a valid cart");
            assert_eq!(cart.len(), distinct as usize);
            for (index, line) in cart.as_slice().iter().enumerate() {
                assert_eq!((line.sku.0 as usize, line.quantity), (index, 3));
            }
        }
    }

    #[test]
    fn a_cart_has_at_most_lines_max_skus() {
        let lines: Vec<(u32, u32)> = (0..).map(|sku| (sku, 1)).take(LINES_MAX + 1).collect();
        assert_eq!(
            cart(&lines),
            Err(LinesError::TooMany { len: LINES_MAX + 1 })
        );
        assert_eq!(
            cart(&lines[..LINES_MAX]).map(|cart| cart.len()),
            Ok(LINES_MAX)
        );
    }
}
