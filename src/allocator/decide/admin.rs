//! What operators do: define SKUs, change totals, open and close.

use super::{Decided, refused};
use crate::allocator::Allocator;
use crate::types::{
    Adjust, Batch, Bound, CommandKind, Decision, DefineSku, EventKind, Field, Origin, Refusal,
    SetGate, SkuId, TOTAL_MAX,
};

impl Allocator {
    pub(super) fn adjust(&mut self, c: &Adjust, origin: &Origin, batch: &mut Batch) -> Decided {
        let Some(stock) = self.stocks.get(c.sku.0 as usize) else {
            return refused(Refusal::UnknownSku { line: 0 });
        };
        let Some(total) = stock.adjusted(c.delta) else {
            return refused(Refusal::TotalOutOfRange {
                min: stock.reserved + stock.sold,
            });
        };
        let adjusted = EventKind::TotalAdjusted {
            origin: *origin,
            reason: c.reason,
            sku: c.sku,
            delta: c.delta,
            total,
        };
        self.record(adjusted, batch)?;
        Ok(Decision::Adjusted { total })
    }

    pub(super) fn define(&mut self, c: &DefineSku, origin: &Origin, batch: &mut Batch) -> Decided {
        if let Some(sku) = self.sku(&c.name) {
            let stock = &self.stocks[sku.0 as usize];
            if stock.defined_total != c.total {
                return refused(Refusal::SkuDiffers {
                    field: Field::Total,
                });
            }
            if stock.rules != c.rules {
                return refused(Refusal::SkuDiffers {
                    field: Field::Rules,
                });
            }
            let decision = Decision::Defined { sku };
            return self.unchanged(CommandKind::DefineSku, origin, decision, batch);
        }
        if self.stocks.len() >= self.limits.skus_max as usize {
            return refused(Refusal::Busy { bound: Bound::Skus });
        }
        if !self.deadlines.takes(c.rules.hold_ms) {
            return refused(Refusal::Busy {
                bound: Bound::HoldDurations,
            });
        }
        if c.total > TOTAL_MAX {
            return refused(Refusal::TotalOutOfRange { min: 0 });
        }
        let sku = SkuId(u32::try_from(self.stocks.len()).unwrap_or(u32::MAX));
        self.record(
            EventKind::SkuNamed {
                sku,
                name: c.name.clone(),
            },
            batch,
        )?;
        let defined = EventKind::SkuDefined {
            origin: *origin,
            sku,
            total: c.total,
            rules: c.rules,
        };
        self.record(defined, batch)?;
        Ok(Decision::Defined { sku })
    }

    pub(super) fn set_gate(&mut self, c: &SetGate, origin: &Origin, batch: &mut Batch) -> Decided {
        let Some(stock) = self.stocks.get(c.sku.0 as usize) else {
            return refused(Refusal::UnknownSku { line: 0 });
        };
        let (gates, sale) = stock.after(c.change);
        if gates == stock.gates {
            let decision = Decision::GateSet { sale };
            return self.unchanged(CommandKind::SetGate, origin, decision, batch);
        }
        let set = EventKind::GateSet {
            origin: *origin,
            reason: c.reason,
            sku: c.sku,
            change: c.change,
            sale,
        };
        self.record(set, batch)?;
        Ok(Decision::GateSet { sale })
    }
}
