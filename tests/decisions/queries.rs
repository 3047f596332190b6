//! What a query shows of a SKU: its rules, its counts and where its sale stands; also of a replayed log.

use crate::{ADMIN, ANN, B, BOB, CLOSED, HOLD_MS, Sale, UNKNOWN, key};
use stockade::types::{Adjust, Batch, Gate, Rules, SaleStatus, SkuName, SkuView};

#[test]
fn a_query_shows_a_sku_with_its_rules_and_counts_and_records_nothing() {
    let mut sale = Sale::new();
    sale.sold(ANN, B, 2);
    sale.held(BOB, B, 1);
    sale.ask(Adjust::new(ADMIN, key(1), B, 4));
    let rules = Rules {
        hold_ms: u32::try_from(HOLD_MS).expect("short"),
        per_user: None,
        per_request: Some(3),
        ..Rules::default()
    };
    let shown = SkuView {
        sku: B,
        name: SkuName::new("SKU-1").expect("a plain name"),
        rules,
        defined_total: 5,
        total: 9,
        available: 6,
        reserved: 1,
        sold: 2,
        sale: 1,
        status: SaleStatus::Open,
        reservations_paused: false,
        confirms_paused: false,
    };
    assert_eq!(sale.view(B), Some(shown.clone()));
    assert!(sale.log.last().is_some_and(Batch::is_empty));
    assert_eq!(sale.replayed().view(B), Some(shown), "L7");
    assert_eq!(sale.view(UNKNOWN), None);
}

#[test]
fn a_query_shows_where_a_sale_stands_after_every_gate() {
    let mut sale = Sale::new();
    for (change, number, status, paused) in [
        // Before the first sale pauses count and nothing can close or end.
        (Gate::Close, 0, SaleStatus::NeverOpened, [false, false]),
        (Gate::EndSale, 0, SaleStatus::NeverOpened, [false, false]),
        (
            Gate::PauseConfirms,
            0,
            SaleStatus::NeverOpened,
            [false, true],
        ),
        (Gate::Open, 1, SaleStatus::Open, [false, true]),
        (Gate::PauseReservations, 1, SaleStatus::Open, [true, true]),
        (Gate::ResumeConfirms, 1, SaleStatus::Open, [true, false]),
        (Gate::Close, 1, SaleStatus::Closed, [true, false]),
        (
            Gate::ResumeReservations,
            1,
            SaleStatus::Closed,
            [false, false],
        ),
        (Gate::Open, 1, SaleStatus::Open, [false, false]),
        (Gate::EndSale, 1, SaleStatus::Ended, [false, false]),
        (Gate::Close, 1, SaleStatus::Ended, [false, false]),
        (Gate::Open, 2, SaleStatus::Open, [false, false]),
    ] {
        sale.gate(CLOSED, change);
        for view in [sale.view(CLOSED), sale.replayed().view(CLOSED)] {
            let view = view.expect("defined");
            let gates = [view.reservations_paused, view.confirms_paused];
            assert_eq!(
                (view.sale, view.status, gates),
                (number, status, paused),
                "after {change:?}"
            );
        }
    }
}
