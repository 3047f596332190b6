//! The store as such: it keeps the contract with and without snapshots, its schema is migrated once, a recovery begins at a
//! snapshot that is whole, and a runtime that surrounds it does no harm.

use crate::{Log, PATIENCE, engine, open_sku, reserve, sql};
use stockade::postgres::{PostgresReads, PostgresStore};
use stockade::store::{StoreError, conformance};
use stockade::types::{HoldStatus, SkuId};

#[test]
fn the_postgres_store_is_a_store() {
    let _one_server_for_all = Log::new();
    let report = conformance::prove(|| {
        let log = Log::new();
        move || log.store()
    });
    assert!(report.is_ok(), "{report:?}");
}

#[test]
fn a_store_that_makes_snapshots_is_a_store() {
    let _one_server_for_all = Log::new();
    let report = conformance::prove(|| {
        let mut log = Log::new();
        log.options.snapshot_every_events = Some(3);
        move || log.store()
    });
    assert!(report.is_ok(), "{report:?}");
}

#[test]
fn the_next_snapshot_waits_for_as_many_events_as_the_last_one_has_records() {
    const EVERY: i64 = 60;
    let mut log = Log::new();
    log.options.snapshot_every_events = Some(EVERY.cast_unsigned());
    let mut client = sql(&log.options);
    let mut ends = || -> Vec<i64> {
        let rows = client.query("SELECT sequence FROM snapshots ORDER BY batch", &[]);
        let rows = rows.expect("snapshots");
        rows.iter().map(|row| row.get(0)).collect()
    };
    let running = engine(&log.options).start().expect("it starts");
    let handle = running.handle();
    let sku = open_sku(&handle, "A", 10_000);
    // Each of these is a record of the hold and one of its key.
    for user in 0..60 {
        reserve(&handle, user, sku).expect("a unit");
    }
    while ends().is_empty() {
        std::thread::yield_now();
    }
    let mut user = 60;
    while ends().len() == 1 {
        reserve(&handle, user, sku).expect("a unit");
        user += 1;
    }
    let ends = ends();
    let apart = ends[1] - ends[0];
    assert!(apart >= 2 * EVERY - 5, "a snapshot after {apart} events");
    running.shutdown(PATIENCE);
}

#[test]
fn what_a_snapshot_that_was_cut_off_has_left_is_removed_by_the_next() {
    let mut log = Log::new();
    log.options.snapshot_every_events = Some(5);
    let mut client = sql(&log.options);
    let left = "INSERT INTO snapshot_parts SELECT 0, 1000000, part, '\\x00' FROM generate_series(0, 9) AS part";
    client.batch_execute(left).expect("parts");
    let running = engine(&log.options).start().expect("it starts");
    let handle = running.handle();
    let sku = open_sku(&handle, "A", 100_000);
    let mut user = 0;
    let whole = "SELECT (SELECT count(*) FROM snapshots), (SELECT count(*) FROM snapshot_parts WHERE batch = 1000000)";
    loop {
        let row = client.query_one(whole, &[]).expect("counts");
        let (snapshots, parts): (i64, i64) = (row.get(0), row.get(1));
        if snapshots > 0 {
            assert_eq!(parts, 0, "they are there still");
            break;
        }
        reserve(&handle, user, sku).expect("a unit");
        user += 1;
    }
    running.shutdown(PATIENCE);
}

#[test]
fn a_recovery_begins_at_the_newest_snapshot_that_is_whole() {
    let mut log = Log::new();
    log.options.snapshot_every_events = Some(5);
    let mut client = sql(&log.options);
    let mut digest = None;
    let engine = || engine(&log.options).digest_at_shutdown();
    let snapshots = |client: &mut postgres::Client| -> Vec<i64> {
        let rows = client.query("SELECT batch FROM snapshots ORDER BY batch", &[]);
        rows.expect("snapshots")
            .iter()
            .map(|row| row.get(0))
            .collect()
    };
    for round in 0..4 {
        let before = snapshots(&mut client);
        let running = engine().start().expect("it starts");
        let handle = running.handle();
        let sku = if round == 0 {
            open_sku(&handle, "A", 100)
        } else {
            SkuId(0)
        };
        for user in 0..6 {
            reserve(&handle, round * 10 + user, sku).expect("a unit");
        }
        while snapshots(&mut client) == before {
            std::thread::yield_now();
        }
        digest = running.shutdown(PATIENCE).digest;
    }
    assert_eq!(snapshots(&mut client).len(), 2, "older ones are removed");
    // Its state is that of the log; and a damaged one is passed over, the newest and then all of them.
    for damaged in 0..=2 {
        let (handle, runner) = engine().build().expect("it opens");
        let warnings = handle.health().warnings;
        let passed_over = warnings.join(" ").matches("passed over").count();
        assert_eq!(passed_over, damaged, "{warnings:?}");
        assert_eq!(handle.availability(SkuId(0)).expect("known").reserved, 24);
        assert_eq!(Some(runner.digest()), digest);
        let newest = "UPDATE snapshot_parts SET records = set_byte(records, 700, get_byte(records, 700) # 1)
            WHERE batch = (SELECT batch FROM snapshots ORDER BY batch DESC OFFSET $1 LIMIT 1) AND part = 0";
        let at = i64::try_from(damaged).expect("few");
        client.execute(newest, &[&at]).expect("an edit");
    }
}

#[test]
fn a_schema_is_migrated_once_and_a_newer_one_is_refused() {
    let log = Log::new();
    PostgresStore::migrate(&log.options).expect("it is left alone");
    let mut client = sql(&log.options);
    let newer = "INSERT INTO schema_version (version) VALUES (1000)";
    client.execute(newer, &[]).expect("a row");
    let migrated = PostgresStore::migrate(&log.options).expect_err("newer");
    let opened = engine(&log.options).start().err().expect("newer");
    for error in [migrated.to_string(), opened.to_string()] {
        assert!(
            error.contains("1000") && error.contains("use the release"),
            "{error}"
        );
    }
    let mut missing = log.options.clone();
    missing.schema = "nothing".to_owned();
    let error = engine(&missing)
        .start()
        .err()
        .expect("no tables")
        .to_string();
    assert!(error.contains("PostgresStore::migrate"), "{error}");
    let mut wrong = log.options.clone();
    wrong.schema = "a; DROP".to_owned();
    assert!(matches!(
        PostgresStore::migrate(&wrong),
        Err(StoreError::Fatal(_))
    ));
}

#[tokio::test]
async fn an_engine_can_be_started_used_and_dropped_inside_a_runtime() {
    let log = Log::new();
    let running = engine(&log.options).start().expect("it starts");
    let sku = open_sku(&running.handle(), "A", 10);
    let held = reserve(&running.handle(), 1, sku).expect("a unit");
    drop(running);
    let (handle, runner) = engine(&log.options).build().expect("it opens");
    assert_eq!(handle.availability(sku).expect("known").reserved, 1);
    drop(runner);
    let reads = PostgresReads::new(log.options.clone());
    let view = reads.reservation(held, handle.now()).expect("it answers");
    assert_eq!(view.expect("it is there").status, HoldStatus::Held);
}
