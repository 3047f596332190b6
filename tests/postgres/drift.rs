//! Rows that were edited behind the writer's back: it halts, and names the row.

use crate::{ADMIN, Log, PATIENCE, engine, halted, open_sku, reserve, sql};
use std::sync::Arc;
use std::time::{Duration, Instant};
use stockade::engine::{CommandError, Handle, Runner};
use stockade::types::{
    Clock, DefineSku, Gate, ManualClock, Query, Release, Reserve, SetGate, SkuId, SkuName,
    Timestamp, UserId,
};

#[test]
fn stock_that_is_edited_by_sql_halts_the_writer_which_names_the_row() {
    let log = Log::new();
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(
        1_800_000_000_000_000,
    )));
    let time: Arc<dyn Clock> = Arc::clone(&clock) as _;
    let (handle, mut runner) = engine(&log.options)
        .clock(Arc::clone(&time))
        .build()
        .expect("it opens");
    let mut ask = |what: &dyn Fn()| {
        what();
        runner.step()
    };
    let name = |name| SkuName::new(name).expect("a name");
    ask(&|| {
        for sku in ["A", "B"] {
            drop(handle.define_sku(DefineSku::new(ADMIN, name(sku), 10)));
        }
        for sku in [SkuId(0), SkuId(1)] {
            drop(handle.set_gate(SetGate::new(ADMIN, sku, Gate::Open)));
            drop(handle.reserve(Reserve::one(UserId(1), sku, 1).expect("a cart")));
        }
    })
    .expect("it runs");
    let mut client = sql(&log.options);
    // The database itself refuses to oversell, or to lose a unit.
    for edit in [
        "sold = 11",
        "total = 20",
        "available = 8",
        "reserved = -1, available = 11",
    ] {
        let edited = client.execute(&format!("UPDATE inventory SET {edit} WHERE sku = 0"), &[]);
        let refused = edited.expect_err("a law");
        assert!(refused.to_string().contains("db error"), "{refused:?}");
    }
    client
        .execute(
            "UPDATE inventory SET total = 20, available = 19 WHERE sku = 0",
            &[],
        )
        .expect("an edit");
    // A batch that rests on it isn't committed.
    let batches = |client: &mut postgres::Client| -> i64 {
        client
            .query_one("SELECT count(*) FROM batches", &[])
            .expect("one")
            .get(0)
    };
    let before = batches(&mut client);
    let error =
        ask(&|| drop(handle.reserve(Reserve::one(UserId(2), SkuId(0), 1).expect("a cart"))));
    let error = error.expect_err("it halts").to_string();
    assert!(
        error.contains("inventory row A") && error.contains("total 20"),
        "{error}"
    );
    assert_eq!(batches(&mut client), before);
    // Nor does anybody take the role on such rows.
    let error = engine(&log.options)
        .clock(Arc::clone(&time))
        .build()
        .err()
        .expect("drift")
        .to_string();
    assert!(error.contains("inventory row A"), "{error}");
    client
        .execute(
            "UPDATE inventory SET total = 10, available = 9 WHERE sku = 0",
            &[],
        )
        .expect("an edit");
    // A row that no batch touches is found by the next sweep.
    let (handle, mut runner) = engine(&log.options)
        .clock(Arc::clone(&time))
        .build()
        .expect("it opens");
    client
        .execute(
            "UPDATE inventory SET total = 20, available = 19 WHERE sku = 1",
            &[],
        )
        .expect("an edit");
    clock.advance(Duration::from_secs(11));
    drop(handle.query(Query::Sku(SkuId(0))));
    let error = runner.step().expect_err("it halts").to_string();
    assert!(error.contains("inventory row B"), "{error}");
}

/// A SKU of so many units, on sale from the next step on.
fn sale(log: &Log, units: u64) -> (Arc<ManualClock>, Handle, Runner) {
    let start = Timestamp::from_micros(1_800_000_000_000_000);
    let clock = Arc::new(ManualClock::at(start));
    let time: Arc<dyn Clock> = Arc::clone(&clock) as _;
    let (handle, runner) = engine(&log.options).clock(time).build().expect("it opens");
    let define = DefineSku::new(ADMIN, SkuName::new("A").expect("a name"), units);
    drop(handle.define_sku(define));
    drop(handle.set_gate(SetGate::new(ADMIN, SkuId(0), Gate::Open)));
    (clock, handle, runner)
}

#[test]
fn a_hold_that_ended_and_that_sql_revives_halts_the_writer() {
    let log = Log::new();
    let (clock, handle, mut runner) = sale(&log, 10);
    let sku = SkuId(0);
    drop(handle.reserve(Reserve::one(UserId(1), sku, 1).expect("a cart")));
    runner.step().expect("it runs");
    clock.advance(Duration::from_secs(200));
    runner.step().expect("the hold lapses");
    let revive = "UPDATE reservations SET status = 'RESERVED', ended_at = NULL";
    let revived = sql(&log.options).execute(revive, &[]);
    assert_eq!(revived.expect("an edit"), 1);
    let mut steps = (0..4).map(|_| {
        clock.advance(Duration::from_secs(11));
        drop(handle.query(Query::Sku(sku)));
        runner.step()
    });
    let error = steps.find_map(Result::err).expect("it halts").to_string();
    assert!(
        error.contains("overdue") && error.contains("res-"),
        "{error}"
    );
}

#[test]
fn a_row_that_was_deleted_halts_the_writer_which_names_it() {
    let log = Log::new();
    let engine = engine(&log.options).start().expect("it starts");
    let handle = engine.handle();
    let sku = open_sku(&handle, "A", 10);
    let id = reserve(&handle, 1, sku).expect("a unit");
    sql(&log.options)
        .execute("DELETE FROM reservations", &[])
        .expect("an edit");
    let released = handle
        .release(Release::new(UserId::from(1), id))
        .expect("room")
        .wait();
    assert_eq!(released.err(), Some(CommandError::Unknown));
    let reason = halted(&handle);
    assert!(reason.contains(&id.to_string()), "{reason}");
}

#[test]
fn looking_for_overdue_holds_reads_no_others() {
    let log = Log::new();
    let (clock, handle, mut runner) = sale(&log, 20_000);
    let sku = SkuId(0);
    for user in 0..20_000 {
        drop(handle.reserve(Reserve::one(UserId(user), sku, 1).expect("a cart")));
    }
    runner.step().expect("it runs");
    let mut client = sql(&log.options);
    let known = client.batch_execute("VACUUM ANALYZE reservations");
    known.expect("statistics");
    clock.advance(Duration::from_secs(11));
    drop(handle.query(Query::Sku(sku)));
    runner.step().expect("it looks for overdue holds");
    // A session tells what it has read when it ends.
    drop((handle, runner));
    let read = "SELECT sum(idx_scan)::int8, sum(idx_tup_read)::int8 FROM pg_stat_user_indexes
                WHERE schemaname = current_schema AND relname = 'reservations'";
    let begun = Instant::now();
    loop {
        let row = client.query_one(read, &[]).expect("statistics");
        let (scans, rows): (i64, i64) = (row.get(0), row.get(1));
        if scans > 0 {
            assert_eq!(rows, 0, "rows of holds that are not overdue were read");
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "nobody looked");
        std::thread::yield_now();
    }
}
