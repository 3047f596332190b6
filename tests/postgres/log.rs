//! The log beside its writer: read from anywhere, and audited with its rows.

use super::{ADMIN, Log, engine, open_sku, reserve, sql};
use std::time::Duration;
use stockade::allocator::{Allocator, Limits};
use stockade::events::MemorySink;
use stockade::postgres::{PostgresAudit, PostgresLog};
use stockade::store::ReadLog;
use stockade::types::{Deposit, IdempotencyKey, Transfer, Withdraw};

fn audited(log: &Log) -> PostgresAudit {
    let mut state = Allocator::new(Limits::default(), 1);
    let audit = PostgresAudit::run(&log.options, 0, &mut state, &mut |_| {}).expect("a whole log");
    assert!(state.audit().breaches.is_empty());
    audit
}

#[test]
fn a_log_is_read_from_any_batch_on_while_it_is_wanted() {
    let log = Log::new();
    let sink = MemorySink::new();
    let running = engine(&log.options)
        .sink(sink.clone())
        .start()
        .expect("it starts");
    let handle = running.handle();
    let sku = open_sku(&handle, "A", 1_000);
    // More batches than are read at once.
    for user in 0..60 {
        reserve(&handle, user, sku).expect("units");
    }
    let read = |from: u64, max: usize| {
        let mut numbers = Vec::new();
        let mut events = Vec::new();
        let mut reader = PostgresLog::new(log.options.clone(), 0);
        let read = reader.read(from, &mut |batch| {
            numbers.push(batch.header.number);
            events.extend(batch.events().map(|event| event.expect("decodes")));
            numbers.len() < max
        });
        read.expect("a whole log");
        (numbers, events)
    };
    let (numbers, _) = read(7, 40);
    assert_eq!(numbers, (7..47).collect::<Vec<u64>>());
    assert!(running.shutdown(Duration::from_secs(10)).is_clean);
    let (numbers, events) = read(1, usize::MAX);
    assert_eq!(numbers.first(), Some(&1));
    assert_eq!(events, sink.events());
    let beyond = numbers.len() as u64 + 10;
    assert!(read(beyond, 1).0.is_empty());
}

#[test]
fn transfers_are_in_the_rows_and_an_audit_names_what_was_edited() {
    let log = Log::new();
    let running = engine(&log.options).start().expect("it starts");
    let handle = running.handle();
    let sku = open_sku(&handle, "A", 10);
    let held = reserve(&handle, 1, sku).expect("units");
    let transfer = |from, to, units| Transfer {
        sku,
        from,
        to,
        number: 1,
        units,
    };
    let key = |n: u128| IdempotencyKey::new(1_000 + n).expect("not zero");
    let leave = Withdraw::new(ADMIN, key(1), transfer(0, 3, 4)).expect("can be");
    let come = Deposit::new(ADMIN, key(2), transfer(5, 0, 7)).expect("can be");
    assert_eq!(handle.withdraw(leave).expect("room").wait(), Ok(4));
    assert_eq!(handle.deposit(come).expect("room").wait(), Ok(7));
    let mut client = sql(&log.options);
    let row = client
        .query_one("SELECT total, available, reserved FROM inventory", &[])
        .expect("one SKU");
    let counts: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(counts, (13, 12, 1));
    let kinds = client
        .query(
            "SELECT kind FROM events WHERE sku = 0 AND kind IN ('withdrawn', 'deposited')",
            &[],
        )
        .expect("a view");
    assert_eq!(kinds.len(), 2);

    assert_eq!(audited(&log).drift, Vec::<String>::new());
    assert!(running.shutdown(Duration::from_secs(10)).is_clean);
    assert_eq!(audited(&log).drift, Vec::<String>::new());
    client
        .batch_execute(
            "UPDATE inventory SET available = available - 1, sold = sold + 1;
             UPDATE reservations SET status = 'EXPIRED', ended_at = now()",
        )
        .expect("nobody keeps an operator from it");
    let drift = audited(&log).drift;
    assert_eq!(drift.len(), 2, "{drift:?}");
    assert!(drift[0].contains("inventory row A"), "{drift:?}");
    assert!(drift[1].contains(&held.to_string()), "{drift:?}");
}
