//! Units that leave for another shard, and units that come from one. The number decides what a command is: the next
//! transfer, the last one again, or none that can be made now.

use super::{Decided, refused};
use crate::allocator::Allocator;
use crate::types::{
    Batch, Bound, CommandKind, Decision, Deposit, EventKind, Moved, Origin, Refusal, SkuId,
    Transfer, Withdraw,
};

impl Allocator {
    pub(super) fn withdraw(&mut self, c: &Withdraw, origin: &Origin, batch: &mut Batch) -> Decided {
        let asked = c.transfer();
        let Transfer { sku, from, to, .. } = asked;
        let sent = self.transfers.account(sku, to).sent;
        if from == self.shard && asked.number == sent.last {
            let units = sent.last_units;
            let again = Decision::Withdrawn { units };
            return self.unchanged(CommandKind::Withdraw, origin, again, batch);
        }
        if let Some(refusal) = self.no_room_for_transfer(sku, to, &sent, &asked) {
            return refused(refusal);
        }
        let Some(stock) = self.stocks.get(sku.0 as usize) else {
            return refused(Refusal::UnknownSku { line: 0 });
        };
        if from != self.shard {
            let shard = self.shard;
            return refused(Refusal::OtherShard { shard });
        }
        if asked.number != sent.next() {
            let expected = sent.next();
            return refused(Refusal::OutOfOrder { expected });
        }
        let units = asked.units.min(stock.available);
        if units == 0 {
            return refused(Refusal::NothingToMove { sku });
        }
        let withdrawn = EventKind::Withdrawn {
            origin: *origin,
            transfer: Transfer { units, ..asked },
            total: stock.total - units,
        };
        self.record(withdrawn, batch)?;
        Ok(Decision::Withdrawn { units })
    }

    pub(super) fn deposit(&mut self, c: &Deposit, origin: &Origin, batch: &mut Batch) -> Decided {
        let transfer = c.transfer();
        let Transfer { sku, from, to, .. } = transfer;
        let units = transfer.units;
        let received = self.transfers.account(sku, from).received;
        let is_last = transfer.number == received.last && units == received.last_units;
        if to == self.shard && is_last {
            let again = Decision::Deposited { units };
            return self.unchanged(CommandKind::Deposit, origin, again, batch);
        }
        if let Some(refusal) = self.no_room_for_transfer(sku, from, &received, &transfer) {
            return refused(refusal);
        }
        let Some(stock) = self.stocks.get(sku.0 as usize) else {
            return refused(Refusal::UnknownSku { line: 0 });
        };
        let Some(total) = stock.deposited(units) else {
            return refused(Refusal::TotalOutOfRange {
                min: stock.reserved + stock.sold,
            });
        };
        if to != self.shard {
            let shard = self.shard;
            return refused(Refusal::OtherShard { shard });
        }
        if transfer.number != received.next() {
            let expected = received.next();
            return refused(Refusal::OutOfOrder { expected });
        }
        let deposited = EventKind::Deposited {
            origin: *origin,
            transfer,
            total,
        };
        self.record(deposited, batch)?;
        Ok(Decision::Deposited { units })
    }

    fn no_room_for_transfer(
        &self,
        sku: SkuId,
        peer: u16,
        moved: &Moved,
        transfer: &Transfer,
    ) -> Option<Refusal> {
        let is_full = self.transfers.len() >= self.limits.transfers_max as usize;
        let no_room = is_full && !self.transfers.knows(sku, peer);
        let bound = Bound::Transfers;
        (no_room || moved.and(transfer).is_none()).then_some(Refusal::Busy { bound })
    }
}
