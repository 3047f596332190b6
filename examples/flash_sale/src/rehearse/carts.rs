//! Carts: runs of consecutive rows with one order id, their lines summed per SKU.

use super::rows::Row;
use super::tally::{Cause, Tally};
use std::collections::HashMap;
use stockade::types::Timestamp;

/// The SKUs of a file by first appearance in a valid purchase or cancellation line.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    names: Vec<String>,
    indexes: HashMap<String, usize>,
}

impl Catalogue {
    fn index(&mut self, name: String) -> usize {
        if let Some(&index) = self.indexes.get(&name) {
            return index;
        }
        let index = self.names.len();
        self.names.push(name.clone());
        self.indexes.insert(name, index);
        index
    }

    /// Their names in order.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }
}

/// So many units of a SKU, by its index in the catalogue. More than 32 bits: a cart sums.
pub(crate) type CartLine = (usize, u64);

/// One cart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cart {
    pub(crate) order: String,
    /// Of its first row; `None`: a user of his own.
    pub(crate) user: Option<String>,
    /// Of its first row, or else the last one before it.
    pub(crate) time: Option<Timestamp>,
    /// The line in the file that it begins on.
    pub(crate) first_line: u64,
    pub(crate) cancellation: bool,
    /// By first mention; a cancellation's quantities are absolute. May be empty.
    pub(crate) lines: Vec<CartLine>,
}

/// Gathers rows into carts.
pub(crate) struct Carts {
    cancel_prefix: String,
    /// What is known so far.
    pub(crate) catalogue: Catalogue,
    current: Option<Cart>,
    /// Position in the current cart's lines, by SKU.
    positions: HashMap<usize, usize>,
    last_time: Option<Timestamp>,
}

impl Carts {
    /// Orders that begin with `cancel_prefix` are cancellations; an empty prefix means that none is.
    pub(crate) fn new(cancel_prefix: &str) -> Self {
        Self {
            cancel_prefix: cancel_prefix.to_owned(),
            catalogue: Catalogue::default(),
            current: None,
            positions: HashMap::new(),
            last_time: None,
        }
    }

    /// Takes the next row; gives the cart that it ends.
    pub(crate) fn push(&mut self, row: Row, tally: &mut Tally) -> Option<Cart> {
        self.last_time = row.time.or(self.last_time);
        let goes_on = self
            .current
            .as_ref()
            .is_some_and(|cart| cart.order == row.order);
        let ended = if goes_on { None } else { self.begin(&row) };
        self.add(row, tally);
        ended
    }

    /// The last cart.
    pub(crate) fn finish(&mut self) -> Option<Cart> {
        self.positions.clear();
        self.current.take()
    }

    fn begin(&mut self, row: &Row) -> Option<Cart> {
        self.positions.clear();
        let prefix = self.cancel_prefix.as_str();
        self.current.replace(Cart {
            order: row.order.clone(),
            user: row.user.clone(),
            time: self.last_time,
            first_line: row.line,
            cancellation: !prefix.is_empty() && row.order.starts_with(prefix),
            lines: Vec::new(),
        })
    }

    fn add(&mut self, row: Row, tally: &mut Tally) {
        let Some(cart) = &mut self.current else {
            return;
        };
        if row.quantity <= 0 && !cart.cancellation {
            tally.note(
                Cause::NotPositive,
                row.line,
                &format!("{} {} {}", row.order, row.sku, row.quantity),
            );
            return;
        }
        let sku = self.catalogue.index(row.sku);
        let units = u64::from(row.quantity.unsigned_abs());
        let at = *self.positions.entry(sku).or_insert_with(|| {
            cart.lines.push((sku, 0));
            cart.lines.len() - 1
        });
        if let Some(line) = cart.lines.get_mut(at) {
            line.1 += units;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carts(rows: &[(&str, &str, i32)]) -> (Vec<Cart>, Tally) {
        let mut tally = Tally::default();
        let mut carts = Carts::new("C");
        let mut out = Vec::new();
        for (line, &(order, sku, quantity)) in (2..).zip(rows) {
            let row = Row {
                line,
                order: order.into(),
                sku: sku.into(),
                quantity,
                user: None,
                time: None,
            };
            out.extend(carts.push(row, &mut tally));
        }
        out.extend(carts.finish());
        (out, tally)
    }

    #[test]
    fn each_run_of_an_order_id_is_a_cart_of_its_own() {
        let (carts, _) = carts(&[("1", "A", 1), ("2", "A", 1), ("1", "A", 1), ("1", "B", 1)]);
        let orders: Vec<_> = carts
            .iter()
            .map(|cart| (cart.order.as_str(), cart.lines.len()))
            .collect();
        assert_eq!(orders, [("1", 1), ("2", 1), ("1", 2)]);
    }

    #[test]
    fn lines_of_one_sku_are_summed_at_its_first_mention() {
        let (carts, _) = carts(&[("1", "B", i32::MAX), ("1", "A", 2), ("1", "B", i32::MAX)]);
        assert_eq!(carts[0].lines, [(0, 4_294_967_294), (1, 2)]);
    }

    #[test]
    fn a_cancellation_sums_absolute_quantities_and_a_purchase_skips_what_is_not_positive() {
        let (carts, tally) = carts(&[
            ("C1", "A", -2),
            ("C1", "A", 3),
            ("C1", "B", 0),
            ("2", "Z", -1),
            ("3", "D", 1),
        ]);
        assert_eq!(carts[0].lines, [(0, 5), (1, 0)]);
        assert!(
            carts[1].lines.is_empty(),
            "a cart without lines is left, and ends the one before"
        );
        assert_eq!(
            carts[2].lines,
            [(2, 1)],
            "a skipped line makes no SKU known"
        );
        assert_eq!(tally.count(Cause::NotPositive), 1);
    }

    #[test]
    fn a_missing_time_is_the_previous_one() {
        let mut tally = Tally::default();
        let mut carts = Carts::new("C");
        let at = Some(Timestamp::from_micros(7));
        let row = |order: &str, time| Row {
            line: 2,
            order: order.into(),
            sku: "A".into(),
            quantity: 1,
            user: None,
            time,
        };
        assert_eq!(carts.push(row("1", at), &mut tally), None);
        let first = carts.push(row("2", None), &mut tally).expect("1 has ended");
        let second = carts.finish().expect("2");
        assert_eq!((first.time, second.time), (at, at));
    }
}
