//! Sends carts through the engine, one after the other, each at its own time.
//!
//! ```text
//! purchase      define + open its new SKUs, reserve     one batch
//!               confirm, if reserved                    the next
//! cancellation  define its new SKUs, a return per SKU   one batch
//! ```
//!
//! A cart that is no single command (more than 4,096 SKUs, or a sum beyond 32 bits) goes in pieces, all or none: only
//! when every line is available, and with what was reserved released again where a limit refuses a later piece.

use super::carts::{Cart, CartLine};
use super::stock::OpeningStock;
use super::tally::{Cause, Tally};
use crate::engine::{Driver, failing_line};
use anyhow::{Result, bail};
use serde::Serialize;
use std::sync::Arc;
use stockade::types::{
    Availability, Clock, Confirm, DefineSku, Gate, IdempotencyKey, LINES_MAX, Line, Lines,
    ManualClock, QUANTITY_MAX, RefusalCode, Release, Reservation, Reserve, Return, Rules, SetGate,
    SkuId, SkuName, Timestamp, UserId,
};

/// What became of a purchase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Reserved,
    /// The code, and the first failing SKU by its index in the catalogue.
    Refused(RefusalCode, Option<usize>),
}

/// How many of each.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Purchases with lines left.
    pub(crate) carts: u64,
    pub(crate) reserved: u64,
    pub(crate) refused: u64,
    pub(crate) cancellations: u64,
    /// SKUs of cancellations whose units came back.
    pub(crate) returns: u64,
    /// SKUs of cancellations of which less was sold.
    pub(crate) returns_refused: u64,
    /// Commands sent.
    pub(crate) commands: u64,
}

/// See the module.
pub(crate) struct Replay {
    driver: Driver,
    clock: Arc<ManualClock>,
    stock: OpeningStock,
    rules: Rules,
    actor: UserId,
    /// By index in the catalogue.
    skus: Vec<SkuId>,
    carts_seen: u64,
    pub(crate) counts: Counts,
}

impl Replay {
    pub(crate) fn new(
        driver: Driver,
        clock: Arc<ManualClock>,
        stock: OpeningStock,
        per_user: Option<u32>,
    ) -> Self {
        Self {
            driver,
            clock,
            stock,
            rules: Rules {
                per_user,
                ..Rules::default()
            },
            actor: UserId::from_text("rehearse"),
            skus: Vec::new(),
            carts_seen: 0,
            counts: Counts::default(),
        }
    }

    /// Takes the next cart; `names` is the catalogue so far. `None` where nothing is decided.
    pub(crate) fn cart(
        &mut self,
        cart: &Cart,
        names: &[String],
        tally: &mut Tally,
    ) -> Result<Option<Verdict>> {
        self.carts_seen += 1;
        self.set_time(cart, tally);
        self.define(names, cart.first_line, tally)?;
        if cart.cancellation {
            self.cancel(cart)?;
            return Ok(None);
        }
        if cart.lines.is_empty() {
            return Ok(None);
        }
        self.counts.carts += 1;
        let user = match &cart.user {
            Some(name) => UserId::from_text(&format!("user {name}")),
            None => UserId::from_text(&format!("nobody {}", self.carts_seen)),
        };
        let verdict = match self.pieces(&cart.lines)?.as_slice() {
            [whole] => self.buy(user, std::slice::from_ref(whole), cart)?,
            pieces => self.buy_in_pieces(user, pieces, cart)?,
        };
        match verdict {
            Verdict::Reserved => self.counts.reserved += 1,
            Verdict::Refused(..) => self.counts.refused += 1,
        }
        Ok(Some(verdict))
    }

    /// The stock of every SKU, by index in the catalogue.
    pub(crate) fn availability(&self) -> Result<Vec<Availability>> {
        let all = self.skus.iter().map(|&sku| self.read(sku));
        all.collect()
    }

    /// Ends the engine in good order. Gives the digest of its state.
    pub(crate) fn finish(self) -> Result<u128> {
        self.driver.finish()
    }

    fn read(&self, sku: SkuId) -> Result<Availability> {
        match self.driver.handle().availability(sku) {
            Some(availability) => Ok(availability),
            None => bail!("the engine has lost SKU {sku}"),
        }
    }

    /// Never back: a cart that is earlier than one before it is decided at the later time.
    fn set_time(&self, cart: &Cart, tally: &mut Tally) {
        let now = self.clock.wall();
        let time = cart.time.unwrap_or(Timestamp::MIN);
        if time >= now {
            self.clock.advance(time.since(now));
        } else if cart.time.is_some() {
            tally.note(
                Cause::TimeBack,
                cart.first_line,
                &format!("{} at {time}", cart.order),
            );
        }
    }

    /// Makes new SKUs known and opens their sale, in line before what comes next.
    fn define(&mut self, names: &[String], line: u64, tally: &mut Tally) -> Result<()> {
        let mut defining = Vec::new();
        for (index, name) in names.iter().enumerate().skip(self.skus.len()) {
            let sku_name = if let Ok(sku_name) = SkuName::new(name) {
                sku_name
            } else {
                tally.note(Cause::SkuHashed, line, name);
                SkuName::new(&format!("#{}", UserId::from_text(name)))?
            };
            let command = DefineSku::new(self.actor, sku_name, self.stock.of(name));
            let sku = SkuId(u32::try_from(index)?); // dense, from 0, in a fresh log
            let defined = self.driver.submit(command.rules(self.rules)?)?;
            let opened = self
                .driver
                .submit(SetGate::new(self.actor, sku, Gate::Open))?;
            self.counts.commands += 2;
            self.skus.push(sku);
            defining.push((name, sku, defined, opened));
        }
        for (name, sku, defined, opened) in defining {
            match self.driver.settle(defined)? {
                Ok(defined) if defined == sku => {}
                Ok(other) => bail!("SKU `{name}` became {other}, not {sku}: the log is not fresh"),
                Err(refusal) => bail!("SKU `{name}` can't be defined: {refusal}"),
            }
            if let Err(refusal) = self.driver.settle(opened)? {
                bail!("the sale of SKU `{name}` can't be opened: {refusal}");
            }
        }
        Ok(())
    }

    /// The cart as commands take it: usually one piece.
    fn pieces(&self, lines: &[CartLine]) -> Result<Vec<Vec<Line>>> {
        let mut pieces = Vec::new();
        let mut left: Vec<Line> = Vec::with_capacity(lines.len().min(LINES_MAX));
        let mut rest: Vec<CartLine> = lines.to_vec();
        while !rest.is_empty() {
            let mut later = Vec::new();
            for (index, units) in rest {
                if left.len() == LINES_MAX {
                    later.push((index, units));
                    continue;
                }
                let quantity = u32::try_from(units)
                    .unwrap_or(QUANTITY_MAX)
                    .min(QUANTITY_MAX);
                let Some(&sku) = self.skus.get(index) else {
                    bail!("a cart names SKU {index}, which is not defined");
                };
                left.push(Line { sku, quantity });
                if units > u64::from(quantity) {
                    later.push((index, units - u64::from(quantity)));
                }
            }
            pieces.push(std::mem::take(&mut left));
            rest = later;
        }
        Ok(pieces)
    }

    fn buy_in_pieces(
        &mut self,
        user: UserId,
        pieces: &[Vec<Line>],
        cart: &Cart,
    ) -> Result<Verdict> {
        if self.rules.per_user.is_none() {
            for &(index, units) in &cart.lines {
                let Some(&sku) = self.skus.get(index) else {
                    continue;
                };
                if self.read(sku)?.available < units {
                    return Ok(Verdict::Refused(RefusalCode::SoldOut, Some(index)));
                }
            }
        }
        self.buy(user, pieces, cart)
    }

    fn buy(&mut self, user: UserId, pieces: &[Vec<Line>], cart: &Cart) -> Result<Verdict> {
        let mut held: Vec<Reservation> = Vec::new();
        for piece in pieces {
            let lines = Lines::new(piece.iter().copied())?;
            let ticket = self.driver.submit(Reserve::cart(user, lines))?;
            self.counts.commands += 1;
            match self.driver.settle(ticket)? {
                Ok(reservation) => held.push(reservation),
                Err(refusal) => {
                    for reservation in held {
                        let ticket = self.driver.submit(Release::new(user, reservation.id))?;
                        self.counts.commands += 1;
                        if let Err(refusal) = self.driver.settle(ticket)? {
                            bail!("{} can't be released: {refusal}", reservation.id);
                        }
                    }
                    let sku = failing_line(&refusal)
                        .and_then(|line| piece.get(usize::from(line)))
                        .map(|line| line.sku.0 as usize); // the index in the catalogue
                    return Ok(Verdict::Refused(refusal.code(), sku));
                }
            }
        }
        for reservation in held {
            let ticket = self.driver.submit(Confirm::unpaid(user, reservation.id))?;
            self.counts.commands += 1;
            if let Err(refusal) = self.driver.settle(ticket)? {
                bail!("order {} can't be confirmed: {refusal}", cart.order);
            }
        }
        Ok(Verdict::Reserved)
    }

    /// Each SKU by itself: one that can't come back doesn't keep the others.
    fn cancel(&mut self, cart: &Cart) -> Result<()> {
        self.counts.cancellations += 1;
        let mut tickets = Vec::new();
        for &(index, units) in cart.lines.iter().filter(|&&(_, units)| units > 0) {
            let Some(&sku) = self.skus.get(index) else {
                bail!("a cancellation names SKU {index}, which is not defined");
            };
            if units > u64::from(QUANTITY_MAX) && self.read(sku)?.sold < units {
                self.counts.returns_refused += 1;
                continue;
            }
            let mut left = units;
            for piece in 0_u32.. {
                let quantity = u32::try_from(left)
                    .unwrap_or(QUANTITY_MAX)
                    .min(QUANTITY_MAX);
                left -= u64::from(quantity);
                let key = format!("{} {index} {piece}", self.carts_seen);
                let key = IdempotencyKey::from_text(&key)?;
                let command = Return::of_skus(self.actor, key, Lines::one(sku, quantity)?);
                tickets.push((left == 0, self.driver.submit(command)?));
                self.counts.commands += 1;
                if left == 0 {
                    break;
                }
            }
        }
        for (last, ticket) in tickets {
            match self.driver.settle(ticket)? {
                Ok(_) => self.counts.returns += u64::from(last),
                Err(refusal) if refusal.code() == RefusalCode::ExceedsSold => {
                    self.counts.returns_refused += 1;
                }
                Err(refusal) => bail!("cancellation {} is refused: {refusal}", cart.order),
            }
        }
        Ok(())
    }
}
