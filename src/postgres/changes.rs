//! What a batch means for the rows: events in, inserts and updates out. Pure; what the events leave open (the lines of a hold
//! that was made before) the statement looks up in the rows themselves.
//!
//! Invariants. I1: a row occurs once: what a batch does to one reservation or SKU is folded, and what it does to one that it
//! made itself is folded into the insert, since no arm of the statement sees what another one writes. I2: ids ascend, so that
//! rows are met in the order of their index.

use crate::types::{
    Batch, Disposition, Event, EventKind, Gate, HoldStatus, IdempotencyKey, Line, Origin,
    PaymentRef, ReservationId, Rules, SkuId, SkuName, Timestamp, UserId,
};
use std::collections::BTreeMap;

/// A batch doesn't say what a batch can.
pub(super) type Nonsense = String;

/// The rows of a batch. Reused: its buffers keep their capacity.
#[derive(Default)]
pub(super) struct Changes {
    /// Time that the batch credits to all live deadlines, in microseconds.
    pub(super) credit_micros: u64,
    pub(super) made: Vec<Made>,
    /// Lines from the second on of what was made, with their place in the cart.
    pub(super) made_lines: Vec<(ReservationId, u16, Line, u32)>,
    pub(super) changed: BTreeMap<ReservationId, Change>,
    /// Units that came back to a reservation of an earlier batch.
    pub(super) returned: BTreeMap<(ReservationId, SkuId), u32>,
    pub(super) defined: Vec<Defined>,
    /// What is known of each SKU's change; the units of ended holds of earlier batches come on top.
    pub(super) stock: BTreeMap<SkuId, Moved>,
    /// The stamp of the batch, and the credit before it.
    stamp: Timestamp,
    credit_before: u64,
    name: Option<(SkuId, SkuName)>,
    cart: Vec<Line>,
}

/// A reservation that the batch made, as it leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) id: ReservationId,
    pub(super) user: UserId,
    pub(super) key: Option<IdempotencyKey>,
    pub(super) first: Line,
    pub(super) lines: u16,
    pub(super) sale: u32,
    pub(super) replaces: Option<ReservationId>,
    pub(super) returned: u32,
    pub(super) now: Change,
}

/// What becomes of a reservation. `None` leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Change {
    /// Its units were reserved before this batch.
    pub(super) was_live: bool,
    pub(super) status: Option<HoldStatus>,
    /// Without credits.
    pub(super) deadline: Option<Timestamp>,
    pub(super) attempt: Option<u32>,
    pub(super) payment_ref: Option<PaymentRef>,
}

/// A SKU that the batch defined, as it leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Defined {
    pub(super) sku: SkuId,
    pub(super) name: SkuName,
    pub(super) rules: Rules,
    pub(super) now: Moved,
}

/// How a SKU's row changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Moved {
    pub(super) total: i64,
    pub(super) reserved: i64,
    pub(super) sold: i64,
    /// Bits of the gates that are set, and that are cleared.
    pub(super) gates_set: u8,
    pub(super) gates_cleared: u8,
    /// The sale's number, if it changed.
    pub(super) sale: u32,
}

const OPEN: u8 = 1;
const RESERVATIONS_PAUSED: u8 = 2;
const CONFIRMS_PAUSED: u8 = 4;
const ENDED: u8 = 8;

impl Moved {
    /// Sets and clears these bits, after what was done before.
    fn gate(&mut self, set: u8, cleared: u8) {
        self.gates_set = self.gates_set & !cleared | set;
        self.gates_cleared |= cleared;
    }
}

impl Changes {
    /// Reads a batch; `credit_before` is the sum of the credits of all batches before it, in microseconds.
    ///
    /// # Errors
    /// If its records can't be decoded, or contradict each other.
    pub(super) fn read(&mut self, batch: &Batch, credit_before: u64) -> Result<(), Nonsense> {
        self.credit_micros = 0;
        self.made.clear();
        self.made_lines.clear();
        self.changed.clear();
        self.returned.clear();
        self.defined.clear();
        self.stock.clear();
        self.name = None;
        self.cart.clear();
        self.stamp = batch.header.stamp;
        self.credit_before = credit_before;
        for event in batch.events() {
            let event = event.map_err(|error| error.to_string())?;
            self.take(&event)
                .map_err(|what| format!("event {} {what}", event.sequence))?;
        }
        if self.name.is_some() || !self.cart.is_empty() {
            return Err("the records of its last command are cut off".to_owned());
        }
        Ok(())
    }

    /// The batch's stamp, for rows that end.
    pub(super) fn ended_at(&self, status: Option<HoldStatus>) -> Option<Timestamp> {
        status
            .filter(|status| !status.is_live())
            .map(|_| self.stamp)
    }

    fn take(&mut self, event: &Event) -> Result<(), Nonsense> {
        match &event.kind {
            EventKind::SkuNamed { sku, name } => self.name = Some((*sku, name.clone())),
            EventKind::SkuDefined {
                sku, total, rules, ..
            } => self.define(*sku, *total, *rules)?,
            EventKind::TotalAdjusted { sku, delta, .. } => self.moved(*sku).total += delta,
            EventKind::Withdrawn { transfer, .. } => {
                self.moved(transfer.sku).total -= transfer.units.cast_signed();
            }
            EventKind::Deposited { transfer, .. } => {
                self.moved(transfer.sku).total += transfer.units.cast_signed();
            }
            EventKind::GateSet {
                sku, change, sale, ..
            } => {
                let moved = self.moved(*sku);
                let (set, cleared) = gates(*change);
                moved.gate(set, cleared);
                moved.sale = *sale;
            }
            EventKind::CartLines { len, lines } => {
                self.cart.extend_from_slice(&lines[..usize::from(*len)]);
            }
            EventKind::Reserved {
                origin,
                first,
                lines,
                sale,
                expires_at,
                replaces,
                ..
            } => {
                let id = ReservationId::new(event.shard, event.sequence);
                let deadline = self.without_credit(*expires_at)?;
                self.make(id, origin, *first, *lines, deadline)?;
                if let Some(made) = self.made.last_mut() {
                    (made.sale, made.replaces) = (*sale, *replaces);
                }
            }
            EventKind::PaymentBegun {
                reservation,
                payment_ref,
                attempt,
                expires_at,
                ..
            } => {
                let deadline = self.without_credit(*expires_at)?;
                let change = self.change(*reservation);
                change.status = Some(HoldStatus::InPayment);
                change.deadline = Some(deadline);
                (change.attempt, change.payment_ref) = (Some(*attempt), Some(*payment_ref));
            }
            EventKind::PaymentFailed {
                reservation,
                disposition: Disposition::Keep,
                expires_at,
                ..
            } => {
                let deadline = self.without_credit(*expires_at)?;
                let change = self.change(*reservation);
                change.status = Some(HoldStatus::Held);
                change.deadline = Some(deadline);
            }
            EventKind::PaymentFailed { reservation, .. }
            | EventKind::Released { reservation, .. } => {
                self.end(*reservation, HoldStatus::Released);
            }
            EventKind::Expired { reservation } => self.end(*reservation, HoldStatus::Expired),
            EventKind::Confirmed {
                reservation,
                attempt,
                payment_ref,
                ..
            } => {
                self.end(*reservation, HoldStatus::Confirmed);
                if payment_ref.is_some() {
                    let change = self.change(*reservation);
                    (change.attempt, change.payment_ref) = (Some(*attempt), *payment_ref);
                }
            }
            EventKind::Returned {
                reservation, line, ..
            } => self.give_back(*reservation, *line)?,
            EventKind::DeadlineMoved {
                reservation,
                expires_at,
            } => {
                let deadline = self.without_credit(*expires_at)?;
                self.change(*reservation).deadline = Some(deadline);
            }
            EventKind::DeadlinesCredited { micros } => {
                self.credit_micros = self.credit_micros.saturating_add(*micros);
            }
            // They change no row.
            EventKind::RefundDue { .. }
            | EventKind::Repeated { .. }
            | EventKind::PolicySet { .. } => {}
        }
        Ok(())
    }

    fn define(&mut self, sku: SkuId, total: u64, rules: Rules) -> Result<(), Nonsense> {
        let named = self.name.take().filter(|&(named, _)| named == sku);
        let (_, name) = named.ok_or("defines a SKU without its name")?;
        let now = Moved {
            total: i64::try_from(total).map_err(|_| "defines a SKU with too many units")?,
            gates_set: ENDED,
            ..Moved::default()
        };
        self.defined.push(Defined {
            sku,
            name,
            rules,
            now,
        });
        Ok(())
    }

    fn make(
        &mut self,
        id: ReservationId,
        origin: &Origin,
        first: Line,
        lines: u16,
        deadline: Timestamp,
    ) -> Result<(), Nonsense> {
        let mut cart = std::mem::take(&mut self.cart);
        if usize::from(lines) != cart.len() + 1 {
            return Err(format!("has {lines} lines and {} before it", cart.len()));
        }
        for (line, place) in std::iter::once(first).chain(cart.drain(..)).zip(0..) {
            self.moved(line.sku).reserved += i64::from(line.quantity);
            if place > 0 {
                self.made_lines.push((id, place, line, 0));
            }
        }
        self.cart = cart;
        self.made.push(Made {
            id,
            user: origin.user,
            key: origin.key,
            first,
            lines,
            sale: 0,
            replaces: None,
            returned: 0,
            now: Change {
                was_live: false,
                status: Some(HoldStatus::Held),
                deadline: Some(deadline),
                attempt: Some(0),
                payment_ref: None,
            },
        });
        Ok(())
    }

    /// Ends a reservation. The units of one that this batch made are known here, those of others to the rows.
    fn end(&mut self, id: ReservationId, status: HoldStatus) {
        self.change(id).status = Some(status);
        let Some(at) = self.made_at(id) else { return };
        let first = self.made[at].first;
        let from = self.made_lines.partition_point(|&(of, ..)| of < id);
        let more = self.made_lines[from..]
            .iter()
            .take_while(|&&(of, ..)| of == id);
        let lines: Vec<Line> = std::iter::once(first)
            .chain(more.map(|&(_, _, line, _)| line))
            .collect();
        for line in lines {
            let moved = self.moved(line.sku);
            moved.reserved -= i64::from(line.quantity);
            if status == HoldStatus::Confirmed {
                moved.sold += i64::from(line.quantity);
            }
        }
    }

    fn give_back(&mut self, id: Option<ReservationId>, line: Line) -> Result<(), Nonsense> {
        self.moved(line.sku).sold -= i64::from(line.quantity);
        let Some(id) = id else { return Ok(()) };
        let Some(at) = self.made_at(id) else {
            // One that ended in an earlier batch, unless this one has changed it already.
            self.changed.entry(id).or_default();
            *self.returned.entry((id, line.sku)).or_default() += line.quantity;
            return Ok(());
        };
        if self.made[at].first.sku == line.sku {
            self.made[at].returned += line.quantity;
            return Ok(());
        }
        let found = self
            .made_lines
            .iter_mut()
            .find(|(of, _, made, _)| (*of, made.sku) == (id, line.sku));
        let (.., returned) = found.ok_or("gives back a line that its reservation hasn't")?;
        *returned += line.quantity;
        Ok(())
    }

    fn made_at(&self, id: ReservationId) -> Option<usize> {
        self.made.binary_search_by_key(&id, |made| made.id).ok()
    }

    /// What becomes of a reservation that was live before this event.
    fn change(&mut self, id: ReservationId) -> &mut Change {
        match self.made_at(id) {
            Some(at) => &mut self.made[at].now,
            None => self.changed.entry(id).or_insert(Change {
                was_live: true,
                ..Change::default()
            }),
        }
    }

    fn moved(&mut self, sku: SkuId) -> &mut Moved {
        match self.defined.iter().position(|defined| defined.sku == sku) {
            Some(at) => &mut self.defined[at].now,
            None => self.stock.entry(sku).or_default(),
        }
    }

    fn without_credit(&self, at: Timestamp) -> Result<Timestamp, Nonsense> {
        let credit = self.credit_before.saturating_add(self.credit_micros);
        let micros = at.as_micros().checked_sub(credit);
        Ok(Timestamp::from_micros(
            micros.ok_or("has a deadline before all credits")?,
        ))
    }
}

/// The bits that a change sets and clears.
const fn gates(change: Gate) -> (u8, u8) {
    match change {
        Gate::Open => (OPEN, ENDED),
        Gate::Close => (0, OPEN),
        Gate::PauseReservations => (RESERVATIONS_PAUSED, 0),
        Gate::ResumeReservations => (0, RESERVATIONS_PAUSED),
        Gate::PauseConfirms => (CONFIRMS_PAUSED, 0),
        Gate::ResumeConfirms => (0, CONFIRMS_PAUSED),
        Gate::EndSale => (ENDED, OPEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BatchHash, EventKind as Kind};

    const SKU: SkuId = SkuId(3);
    const OTHER: SkuId = SkuId(4);

    fn id(sequence: u64) -> ReservationId {
        ReservationId::new(0, sequence)
    }

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    /// The changes of a batch whose first sequence is 100, stamped 1,000, after credits of 50.
    fn read(kinds: impl IntoIterator<Item = Kind>) -> Result<Changes, Nonsense> {
        let mut batch = Batch::default();
        batch.header.stamp = at(1_000);
        for (kind, sequence) in kinds.into_iter().zip(100..) {
            batch.push_event(&Event {
                sequence,
                at: at(1_000),
                shard: 0,
                epoch: 1,
                kind,
            });
        }
        batch.seal(BatchHash::default());
        let mut changes = Changes::default();
        changes.read(&batch, 50).map(|()| changes)
    }

    fn line(sku: SkuId, quantity: u32) -> Line {
        Line { sku, quantity }
    }

    fn reserved(first: Line, lines: u16) -> Kind {
        Kind::Reserved {
            origin: Origin::default(),
            first,
            lines,
            sale: 2,
            hold_ms: 1,
            expires_at: at(2_000),
            replaces: None,
        }
    }

    fn confirmed(reservation: ReservationId) -> Kind {
        Kind::Confirmed {
            origin: Origin::default(),
            reservation,
            asked: reservation,
            attempt: 0,
            payment_ref: None,
        }
    }

    fn returned(reservation: Option<ReservationId>, line: Line) -> Kind {
        Kind::Returned {
            origin: Origin::default(),
            reason: crate::types::Reason::default(),
            reservation,
            line,
            units: 1,
        }
    }

    fn cart(lines: &[Line]) -> Kind {
        let mut cart = [Line::default(); crate::types::LINES_PER_EVENT];
        cart[..lines.len()].copy_from_slice(lines);
        Kind::CartLines {
            len: u8::try_from(lines.len()).expect("few"),
            lines: cart,
        }
    }

    #[test]
    fn a_new_hold_is_a_row_and_its_units_are_reserved() {
        let changes = read([cart(&[line(OTHER, 5)]), reserved(line(SKU, 2), 2)]).expect("sense");
        let made = &changes.made[0];
        assert_eq!(
            (made.id, made.first, made.lines, made.sale),
            (id(101), line(SKU, 2), 2, 2)
        );
        assert_eq!(made.now.deadline, Some(at(1_950)), "without credits");
        assert_eq!(changes.made_lines, [(id(101), 1, line(OTHER, 5), 0)]);
        let units: Vec<_> = changes
            .stock
            .iter()
            .map(|(sku, moved)| (*sku, moved.reserved))
            .collect();
        assert_eq!(units, [(SKU, 2), (OTHER, 5)]);
    }

    #[test]
    fn what_happens_to_a_hold_in_its_own_batch_is_folded_into_its_row() {
        let changes = read([
            cart(&[line(OTHER, 5)]),
            reserved(line(SKU, 2), 2),
            confirmed(id(101)),
            returned(Some(id(101)), line(OTHER, 1)),
            returned(Some(id(101)), line(SKU, 2)),
        ]);
        let changes = changes.expect("sense");
        assert!(changes.changed.is_empty() && changes.returned.is_empty());
        let made = &changes.made[0];
        assert_eq!(
            (made.now.status, made.returned),
            (Some(HoldStatus::Confirmed), 2)
        );
        assert_eq!(changes.ended_at(made.now.status), Some(at(1_000)));
        assert_eq!(changes.made_lines[0].3, 1);
        let moved = |sku| changes.stock[&sku];
        assert_eq!((moved(SKU).reserved, moved(SKU).sold), (0, 0));
        assert_eq!((moved(OTHER).reserved, moved(OTHER).sold), (0, 4));
    }

    #[test]
    fn what_happens_to_an_older_hold_is_one_change_and_its_units_are_left_to_its_row() {
        let payment_ref = PaymentRef::new(9).expect("not zero");
        let changes = read([
            Kind::PaymentBegun {
                origin: Origin::default(),
                reservation: id(7),
                payment_ref,
                attempt: 1,
                expires_at: at(3_000),
            },
            Kind::DeadlinesCredited { micros: 100 },
            Kind::DeadlineMoved {
                reservation: id(7),
                expires_at: at(3_000),
            },
            confirmed(id(7)),
            returned(Some(id(7)), line(SKU, 1)),
            Kind::Expired { reservation: id(8) },
            returned(Some(id(9)), line(SKU, 2)),
            returned(None, line(SKU, 3)),
        ]);
        let changes = changes.expect("sense");
        assert_eq!(
            changes.changed[&id(7)],
            Change {
                was_live: true,
                status: Some(HoldStatus::Confirmed),
                deadline: Some(at(2_850)),
                attempt: Some(1),
                payment_ref: Some(payment_ref),
            }
        );
        assert_eq!(changes.changed[&id(8)].status, Some(HoldStatus::Expired));
        assert_eq!(changes.changed[&id(9)], Change::default(), "it had ended");
        let returned: Vec<_> = changes.returned.into_iter().collect();
        assert_eq!(returned, [((id(7), SKU), 1), ((id(9), SKU), 2)]);
        assert_eq!(
            (changes.stock[&SKU].sold, changes.stock[&SKU].reserved),
            (-6, 0)
        );
        assert_eq!(changes.credit_micros, 100);
    }

    #[test]
    fn a_sku_that_the_batch_defines_is_one_row_with_all_that_happens_to_it() {
        let gate = |change, sale| Kind::GateSet {
            origin: Origin::default(),
            reason: crate::types::Reason::default(),
            sku: SKU,
            change,
            sale,
        };
        let named = Kind::SkuNamed {
            sku: SKU,
            name: SkuName::new("A").expect("a name"),
        };
        let defined = Kind::SkuDefined {
            origin: Origin::default(),
            sku: SKU,
            total: 10,
            rules: Rules::default(),
        };
        let changes = read([
            named,
            defined.clone(),
            gate(Gate::Open, 1),
            gate(Gate::PauseConfirms, 1),
            reserved(line(SKU, 2), 1),
            gate(Gate::ResumeConfirms, 1),
        ]);
        let changes = changes.expect("sense");
        assert!(changes.stock.is_empty());
        let now = changes.defined[0].now;
        assert_eq!(
            (now.total, now.reserved, now.sale, now.gates_set),
            (10, 2, 1, OPEN)
        );
        let late = read([
            gate(Gate::Close, 4),
            gate(Gate::Open, 5),
            gate(Gate::EndSale, 5),
        ]);
        let moved = late.expect("sense").stock[&SKU];
        assert_eq!(
            (moved.gates_set, moved.gates_cleared),
            (ENDED, OPEN | ENDED)
        );
        assert!(read([defined]).is_err(), "without its name");
    }

    #[test]
    fn records_that_contradict_each_other_are_refused() {
        assert!(
            read([reserved(line(SKU, 2), 2)]).is_err(),
            "a line is missing"
        );
        assert!(
            read([cart(&[line(OTHER, 5)])]).is_err(),
            "its hold is missing"
        );
        let before_all_credits = Kind::DeadlineMoved {
            reservation: id(7),
            expires_at: at(49),
        };
        assert!(read([before_all_credits]).is_err());
    }
}
