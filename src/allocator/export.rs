//! The state as a stream of records, its restoration from one, and its digest.
//!
//! Only what logical time has not ended is exported, so two allocators that have freed different things give the
//! same records. Live reservations come in the order of their ids, which is that of their deadlines' queues; ended
//! ones in the order in which they retire.

use super::holds::{NewHold, Payment};
use super::keys::{AcceptedKey, KeyScope, RefusedKey};
use super::outcomes::Outcome;
use super::stock::{Gates, Stock};
use super::{Allocator, Violation};
use crate::types::record::Record;
use crate::types::{HeldLine, STATE_LINES, StateRecord, TOTAL_MAX, Timestamp};

impl Allocator {
    /// Gives every record of the state, in an order that [`restore`](Self::restore) takes.
    pub fn export(&self, out: &mut dyn FnMut(&StateRecord)) {
        out(&StateRecord::Meta {
            sequence: self.sequence,
            stamp: self.now,
            credit_micros: self.credit_micros,
            refusals: self.refusals,
            policy: self.policy,
        });
        self.sources
            .iter()
            .for_each(|&source| out(&StateRecord::Source(source)));
        self.export_stocks(out);
        let live = self
            .holds
            .iter()
            .filter(|&place| self.holds.get(place).status.is_live());
        live.for_each(|place| self.export_hold(place, out));
        let ended = self.ended.iter().filter_map(|&id| self.find(id));
        ended.for_each(|place| self.export_hold(place, out));
        for (user, counter) in self.users.counters() {
            let (sku, sale, units) = (counter.sku, counter.sale, counter.units);
            if self.stocks[sku.0 as usize].counts(sale) {
                out(&StateRecord::Counter {
                    user,
                    sku,
                    sale,
                    units,
                });
            }
        }
        self.export_keys(out);
        let kept = self
            .outcomes
            .iter()
            .filter(|outcome| !self.has_retired(outcome.decided_at));
        for &Outcome {
            payment_ref,
            asked,
            bought,
            decided_at,
        } in kept
        {
            out(&StateRecord::PaymentOutcome {
                payment_ref,
                asked,
                bought,
                decided_at,
            });
        }
        let accounts = self.transfers.iter();
        accounts.for_each(|&account| out(&StateRecord::Account(account)));
    }

    fn export_stocks(&self, out: &mut dyn FnMut(&StateRecord)) {
        for (stock, sku) in self.stocks.iter().zip((0..).map(crate::types::SkuId)) {
            out(&StateRecord::SkuName {
                sku,
                name: stock.name.clone(),
            });
            out(&StateRecord::Sku {
                sku,
                defined_total: stock.defined_total,
                total: stock.total,
                reserved: stock.reserved,
                sold: stock.sold,
                rules: stock.rules,
                sale: stock.sale,
                flags: stock.gates.0,
            });
        }
    }

    fn export_hold(&self, place: u32, out: &mut dyn FnMut(&StateRecord)) {
        let hold = self.holds.get(place);
        let more: Vec<HeldLine> = self.holds.lines(place).skip(1).copied().collect();
        for chunk in more.chunks(STATE_LINES) {
            let mut lines = [HeldLine::default(); STATE_LINES];
            lines[..chunk.len()].copy_from_slice(chunk);
            out(&StateRecord::Lines {
                len: u8::try_from(chunk.len()).unwrap_or(u8::MAX),
                lines,
            });
        }
        let is_live = hold.status.is_live();
        out(&StateRecord::Reservation {
            id: hold.id,
            user: self.user_of(place),
            status: hold.status,
            moved: is_live && hold.is_moved,
            first: hold.first,
            lines: hold.lines,
            hold_ms: hold.hold_ms,
            deadline: if is_live { hold.time } else { Timestamp::MIN },
            ended_at: if is_live { Timestamp::MIN } else { hold.time },
        });
        if let Some(payment) = self.holds.payment(place) {
            out(&StateRecord::Payment {
                reservation: hold.id,
                payment_ref: payment.payment_ref,
                attempt: payment.attempt,
                under_way: payment.is_under_way,
                began_at: payment.began_at,
                spent_micros: payment.spent_micros,
                base: payment.base,
            });
        }
    }

    fn export_keys(&self, out: &mut dyn FnMut(&StateRecord)) {
        // Also those that no longer answer because their sale has ended: they count towards the bound.
        let horizon = self.horizon(self.policy.key_retention_ms);
        for entry in self.keys.accepted(&self.users) {
            if Some(entry.decided_at) > horizon {
                let AcceptedKey {
                    origin,
                    decided_at,
                    decision,
                    scope,
                    kind,
                } = entry;
                let KeyScope { sku, sale } = scope;
                out(&StateRecord::AcceptedKey {
                    origin,
                    kind,
                    decided_at,
                    decision,
                    sku,
                    sale,
                });
            }
        }
        for entry in self.keys.refused() {
            let Some(record) = entry.record() else {
                continue;
            };
            let known = self.known(record.kind, &record.origin);
            if known.is_some_and(|known| known.ordinal == Some(entry.ordinal)) {
                let &RefusedKey {
                    decided_at,
                    scope: KeyScope { sku, sale },
                    ordinal,
                    ..
                } = entry;
                out(&StateRecord::RefusedKey {
                    decided_at,
                    record,
                    sku,
                    sale,
                    ordinal,
                });
            }
        }
    }

    /// Takes the next record of an exported stream into an allocator that began empty.
    ///
    /// # Errors
    /// If the stream is not one that `export` gives.
    pub fn restore(&mut self, record: &StateRecord) -> Result<(), Violation> {
        self.take_in(record).map_err(|what| self.violation(what))
    }

    #[expect(clippy::too_many_lines, reason = "one arm per kind, in one place")]
    fn take_in(&mut self, record: &StateRecord) -> Result<(), String> {
        match record {
            StateRecord::Meta {
                sequence,
                stamp,
                credit_micros,
                refusals,
                policy,
            } => {
                self.sequence = *sequence;
                self.now = *stamp;
                self.credit_micros = *credit_micros;
                self.refusals = *refusals;
                self.policy = *policy;
            }
            StateRecord::Source(source) => self.sources.push(*source),
            StateRecord::SkuName { sku, name } => self.name = Some((*sku, name.clone())),
            StateRecord::Sku {
                sku,
                defined_total,
                total,
                reserved,
                sold,
                rules,
                sale,
                flags,
            } => {
                let (_, name) = self
                    .name
                    .take()
                    .filter(|(named, _)| named == sku)
                    .ok_or("a SKU has no name")?;
                let available = total
                    .checked_sub(*reserved)
                    .and_then(|rest| rest.checked_sub(*sold))
                    .filter(|_| *total <= TOTAL_MAX)
                    .ok_or("L1: reserved + sold > total")?;
                if sku.0 as usize != self.stocks.len() || *flags > Gates::ALL {
                    return Err(format!("SKU {name} is out of order or has unknown gates"));
                }
                self.names.insert(name.clone(), *sku);
                let mut stock = Stock::new(name, *total, *rules);
                stock.defined_total = *defined_total;
                (stock.available, stock.reserved, stock.sold) = (available, *reserved, *sold);
                (stock.sale, stock.gates) = (*sale, Gates(*flags));
                // What its accounts don't explain, once they have been taken in.
                stock.deltas = total.checked_signed_diff(*defined_total).unwrap_or(0);
                self.stocks.push(stock);
                self.deadlines.add(rules.hold_ms);
                self.stock_mut(*sku)?;
            }
            StateRecord::Lines { len, lines } => {
                self.cart.extend_from_slice(&lines[..usize::from(*len)]);
            }
            StateRecord::Reservation { .. } => self.take_in_hold(record)?,
            StateRecord::Payment {
                reservation,
                payment_ref,
                attempt,
                under_way,
                began_at,
                spent_micros,
                base,
            } => {
                let place = self
                    .holds
                    .place_of(*reservation)
                    .ok_or("a payment has no reservation")?;
                let payment = Payment {
                    payment_ref: *payment_ref,
                    base: *base,
                    began_at: *began_at,
                    spent_micros: *spent_micros,
                    attempt: *attempt,
                    is_under_way: *under_way,
                };
                self.holds.set_payment(place, payment);
            }
            StateRecord::Counter {
                user,
                sku,
                sale,
                units,
            } => {
                if sku.0 as usize >= self.stocks.len() {
                    return Err(format!("a counter of SKU {sku}, which is not defined"));
                }
                let user = self.users.find_or_insert(*user);
                self.count(user, *sku, *sale, *units);
            }
            StateRecord::AcceptedKey {
                origin,
                kind,
                decided_at,
                decision,
                sku,
                sale,
            } => {
                let scope = self.checked_scope(*sku, *sale)?;
                let (origin, kind) = (*origin, *kind);
                let (decided_at, decision) = (*decided_at, *decision);
                let entry = AcceptedKey {
                    origin,
                    decided_at,
                    decision,
                    scope,
                    kind,
                };
                let key = origin.key.ok_or("an accepted key is none")?;
                let user = self.users.find_or_insert(origin.user);
                self.keys.accept(&mut self.users, user, key, &entry);
            }
            StateRecord::RefusedKey {
                decided_at,
                record,
                sku,
                sale,
                ordinal,
            } => {
                let packed = record.encode(*decided_at, 0);
                let scope = self.checked_scope(*sku, *sale)?;
                let entry = RefusedKey {
                    decided_at: *decided_at,
                    packed,
                    scope,
                    ordinal: *ordinal,
                };
                let max = self.policy.refused_keys_max.into();
                self.keys.refuse(&mut self.users, record, entry, max);
            }
            StateRecord::Account(account) => {
                let stock = self.stocks.get_mut(account.sku.0 as usize);
                let stock = stock.ok_or("an account of a SKU that is not defined")?;
                let here = account
                    .sent
                    .units
                    .checked_signed_diff(account.received.units);
                let deltas = here.and_then(|here| stock.deltas.checked_add(here));
                stock.deltas = deltas.ok_or("an account of more units than there can be")?;
                self.transfers.set(*account);
            }
            StateRecord::PaymentOutcome {
                payment_ref,
                asked,
                bought,
                decided_at,
            } => {
                let (payment_ref, asked) = (*payment_ref, *asked);
                let (bought, decided_at) = (*bought, *decided_at);
                self.outcomes.insert(Outcome {
                    payment_ref,
                    asked,
                    bought,
                    decided_at,
                });
            }
        }
        Ok(())
    }

    fn checked_scope(&self, sku: crate::types::SkuId, sale: u32) -> Result<KeyScope, String> {
        if sale != 0 && sku.0 as usize >= self.stocks.len() {
            return Err(format!("a key of SKU {sku}, which is not defined"));
        }
        Ok(KeyScope { sku, sale })
    }

    fn take_in_hold(&mut self, record: &StateRecord) -> Result<(), String> {
        let &StateRecord::Reservation {
            id,
            user,
            status,
            moved,
            first,
            lines,
            hold_ms,
            deadline,
            ended_at,
        } = record
        else {
            return Err("not a reservation".into());
        };
        let more = std::mem::take(&mut self.cart);
        let known = |held: &HeldLine| (held.line.sku.0 as usize) < self.stocks.len();
        if usize::from(lines) != more.len() + 1
            || !std::iter::once(&first).chain(&more).all(known)
            || self.holds.place_of(id).is_some()
        {
            return Err(format!(
                "{id} is known already, or its lines are not what it says"
            ));
        }
        let time = if status.is_live() { deadline } else { ended_at };
        let new = NewHold {
            id,
            user: self.users.find_or_insert(user),
            first,
            more: &more,
            time,
            hold_ms,
            status,
            is_moved: moved,
        };
        let place = self.holds.insert(&mut self.users, &new);
        if status.is_live() {
            self.schedule(place);
        } else {
            self.ended.push(id);
        }
        Ok(())
    }

    /// A fingerprint of the whole state, the same for every allocator in the same state, however its tables lie.
    ///
    /// The sum, modulo 2^128, of a 128-bit mix of each exported record with its continuations; not meant against an adversary, who
    /// is met by the log's hash chain.
    pub fn digest(&self) -> u128 {
        let (mut sum, mut cart) = (0_u128, 0_u128);
        self.export(&mut |record| {
            let mixed = mix(&record.encode());
            if matches!(record, StateRecord::Lines { .. }) {
                // Further lines don't say whose they are: they count with the reservation that follows.
                cart = mix_two(cart, mixed);
            } else {
                sum = sum.wrapping_add(mix_two(std::mem::take(&mut cart), mixed));
            }
        });
        sum
    }
}

fn mix_two(first: u128, second: u128) -> u128 {
    const ODD: u128 = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835; // 2^128 / golden ratio
    let mixed = (first.wrapping_mul(ODD) ^ second).wrapping_mul(ODD);
    mixed ^ (mixed >> 64)
}

/// Two lanes of multiply and rotate over the words of a record.
fn mix(record: &Record) -> u128 {
    const A: u64 = 0x9E37_79B9_7F4A_7C15;
    const B: u64 = 0xC2B2_AE3D_27D4_EB4F;
    let (words, _) = record.as_chunks::<8>();
    let (mut a, mut b) = (A, B);
    for word in words {
        let word = u64::from_le_bytes(*word);
        a = (a ^ word).wrapping_mul(B).rotate_left(29);
        b = (b.rotate_left(31) ^ word).wrapping_mul(A);
        b ^= b >> 32;
    }
    a ^= a >> 33;
    u128::from(a.wrapping_mul(B) ^ b) | (u128::from(b.wrapping_mul(A) ^ a.rotate_left(17)) << 64)
}
