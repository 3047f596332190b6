//! Rows that were changed from outside are found and mended; a log that lost its tail waits for an operator's word.

use crate::failover::Pair;
use crate::sale::Script;
use crate::{Log, PATIENCE, RECOUNT, engine, halted, open_sku, reserve, sql, standby, start_later};
use std::sync::Arc;
use std::time::Duration;
use stockade::allocator::{Allocator, Limits};
use stockade::engine::State;
use stockade::postgres::{PostgresAudit, PostgresOptions, PostgresRepair};
use stockade::store::{StoreError, conformance};
use stockade::types::{Clock, Confirm, Line, Lines, ManualClock, Reserve, Timestamp, UserId};

fn empty() -> Allocator {
    Allocator::new(Limits::default(), 1)
}

fn look(options: &PostgresOptions) -> Result<PostgresRepair, StoreError> {
    PostgresRepair::look(options, 0, &mut empty(), &mut |_| {})
}

fn apply(options: &PostgresOptions) -> Result<PostgresRepair, StoreError> {
    PostgresRepair::apply(options, 0, &mut empty(), &mut |_| {})
}

fn resume(options: &PostgresOptions, after: u64) -> Result<PostgresRepair, StoreError> {
    PostgresRepair::resume(options, 0, after, &mut empty(), &mut |_| {})
}

fn told(repair: &PostgresRepair) -> Vec<String> {
    let differences = repair.differences.iter();
    differences.map(ToString::to_string).collect()
}

fn is_clean(options: &PostgresOptions) -> bool {
    let audit = PostgresAudit::run(options, 0, &mut empty(), &mut |_| {});
    let is_whole = audit.expect("a whole log").drift.is_empty();
    let recount = sql(options).query(RECOUNT, &[]).expect("a recount");
    is_whole && recount.is_empty() && look(options).expect("a whole log").differing == 0
}

/// Everything that is derived from the log, as text.
fn rows(options: &PostgresOptions) -> Vec<String> {
    let all = "SELECT to_jsonb(t)::text FROM inventory t UNION ALL SELECT to_jsonb(t)::text FROM reservations t
        UNION ALL SELECT to_jsonb(t)::text FROM reservation_lines t
        UNION ALL SELECT (to_jsonb(t) - 'committed_at' - 'epoch' - 'writer_id' - 'handed_on' - 'timeline')::text FROM writer t
        ORDER BY 1";
    let rows = sql(options).query(all, &[]).expect("rows");
    rows.iter().map(|row| row.get(0)).collect()
}

/// A log of all that can happen, whose writer has ended.
fn eventful() -> Log {
    let log = Log::new();
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(
        1_800_000_000_000_000,
    )));
    for seed in 5..=6 {
        let mut script = Script::new(&log.options, seed, &clock, u128::from(seed) << 64);
        script.run(80);
        script.runner.shutdown().expect("a good end");
    }
    log
}

#[test]
fn whatever_is_done_to_the_rows_a_repair_undoes() {
    let log = eventful();
    let before = rows(&log.options);
    assert!(before.len() > 200, "{}", before.len());
    assert_eq!(look(&log.options).expect("a whole log").differing, 0);
    assert_eq!(
        apply(&log.options).expect("nothing to do").epoch,
        None,
        "nobody is fenced for nothing"
    );
    let confirmed = "(SELECT min(id) FROM reservations WHERE status = 'CONFIRMED')";
    let edits: [(&str, &str); 12] = [
        (
            "inventory row sku-0: total",
            "UPDATE inventory SET total = total + 7, available = available + 7 WHERE sku = 0",
        ),
        (
            "sold",
            "UPDATE inventory SET available = available + sold, sold = 0 WHERE sku = 3",
        ),
        ("reservations_paused true -> gates", "UPDATE inventory SET gates = 6 WHERE sku = 2"),
        ("hold_ms 1 -> hold_ms 20000", "UPDATE inventory SET hold_ms = 1"),
        ("inventory row sku-1: missing", "DELETE FROM inventory WHERE sku = 1"),
        (
            "inventory row GHOST",
            "INSERT INTO inventory (shard, sku, sku_id, total, available, reserved, sold, sale, gates, hold_ms, opens_at,
                                    closes_at, sequence, as_of)
             VALUES (0, 90, 'GHOST', 1, 1, 0, 0, 0, 0, 1, now(), now(), 1, now())",
        ),
        (
            "status EXPIRED -> status CONFIRMED",
            &format!("UPDATE reservations SET status = 'EXPIRED' WHERE id = {confirmed}"),
        ),
        (
            "user_id",
            "UPDATE reservations SET user_id = gen_random_uuid(), key = NULL",
        ),
        ("reservations row", "TRUNCATE reservations, reservation_lines"),
        (
            "-> none",
            &format!(
                "INSERT INTO reservations (id, created_at, deadline, user_id, sku, quantity, returned, sale, attempt, lines, status)
                 SELECT id + 1000000, created_at, deadline, user_id, sku, 1, 0, sale, 0, 1, 'RESERVED'
                 FROM reservations WHERE id = {confirmed}"
            ),
        ),
        (
            "line 1: quantity",
            "UPDATE reservation_lines SET quantity = quantity + 100",
        ),
        (
            "writer row of shard 0: credit_micros 5",
            "UPDATE writer SET credit_micros = credit_micros + 5",
        ),
    ];
    let mut client = sql(&log.options);
    for (names, edit) in edits {
        client
            .batch_execute(edit)
            .expect("nobody keeps him from it");
        let edited = rows(&log.options);
        assert!(edited != before, "{edit}");
        let seen = look(&log.options).expect("a whole log");
        assert!(
            told(&seen).iter().any(|row| row.contains(names)),
            "{edit}: {:#?}",
            told(&seen)
        );
        assert!(
            rows(&log.options) == edited && seen.epoch.is_none(),
            "a look"
        );
        let mended = apply(&log.options).expect("a whole log");
        assert_eq!(mended.differences, seen.differences, "{edit}");
        assert!(mended.epoch.is_some());
        assert!(rows(&log.options) == before, "{edit}");
    }
    assert!(is_clean(&log.options));
    engine(&log.options).start().expect("it starts");
}

#[test]
fn the_first_thousand_differences_are_told_and_all_are_mended() {
    let log = eventful();
    let before = rows(&log.options);
    let ghosts = "INSERT INTO reservation_lines SELECT 1, n::int2, 0, 1, 0 FROM generate_series(1, 1500) AS n";
    sql(&log.options).batch_execute(ghosts).expect("an edit");
    let seen = look(&log.options).expect("a whole log");
    assert_eq!((seen.differences.len(), seen.differing), (1_000, 1_500));
    assert_eq!(apply(&log.options).expect("a whole log").differing, 1_500);
    assert!(rows(&log.options) == before);
}

#[test]
fn an_edit_halts_the_writer_with_the_command_that_mends_it() {
    let log = Log::new();
    let running = engine(&log.options).start().expect("it starts");
    let handle = running.handle();
    let sku = open_sku(&handle, "A", 10);
    let id = reserve(&handle, 1, sku).expect("a unit");
    let mut client = sql(&log.options);
    for edit in [
        "UPDATE inventory SET total = 20, available = available + 10",
        "DELETE FROM inventory",
    ] {
        let running = engine(&log.options).start().expect("it starts");
        let handle = running.handle();
        client.batch_execute(edit).expect("an edit");
        let cart = Reserve::one(UserId(9), sku, 1).expect("a cart");
        handle
            .reserve(cart)
            .expect("room")
            .wait()
            .expect_err("no answer");
        let reason = halted(&handle);
        assert!(reason.contains("flash-sale repair --store"), "{reason}");
        let refused = engine(&log.options).start().err().expect("drift");
        let refused = refused.to_string();
        assert!(refused.contains("flash-sale repair --store"), "{refused}");
        apply(&log.options).expect("a whole log");
        assert!(is_clean(&log.options), "{edit}");
    }
    let running = engine(&log.options).start().expect("it starts");
    assert_eq!(
        reserve(&running.handle(), 1, sku).expect("the same answer"),
        id
    );
    // A row that a commit touches and that is gone.
    client
        .batch_execute("DELETE FROM reservations")
        .expect("an edit");
    let confirm = Confirm::unpaid(UserId::from(1), id);
    let handle = running.handle();
    handle
        .confirm(confirm)
        .expect("room")
        .wait()
        .expect_err("no answer");
    assert!(halted(&handle).contains("flash-sale repair --store"));
    apply(&log.options).expect("a whole log");
    assert!(is_clean(&log.options));
    let running = engine(&log.options).start().expect("it starts");
    let confirmed = running.handle().confirm(confirm).expect("room").wait();
    assert!(confirmed.is_ok(), "{confirmed:?}");
}

#[test]
fn a_hold_that_sql_revived_keeps_a_writer_from_starting_until_it_is_mended() {
    let log = eventful();
    let now = Timestamp::from_micros(1_900_000_000_000_000);
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(now));
    let starts = || {
        let engine = engine(&log.options).clock(Arc::clone(&clock));
        engine.clock_jump_max(Duration::MAX).build()
    };
    let revive = "UPDATE reservations SET status = 'RESERVED', ended_at = NULL
        WHERE id = (SELECT min(id) FROM reservations WHERE status = 'EXPIRED')";
    let revived = sql(&log.options).execute(revive, &[]);
    assert_eq!(revived.expect("an edit"), 1);
    let refused = starts().err().expect("drift").to_string();
    assert!(
        refused.contains("reservations row res-") && refused.contains("flash-sale repair --store"),
        "{refused}"
    );
    apply(&log.options).expect("a whole log");
    starts().expect("it starts");
}

#[test]
fn a_repair_beside_a_living_writer_fences_it_and_loses_nothing_that_it_answered() {
    let log = Log::new();
    let running = engine(&log.options).start().expect("it starts");
    let handle = running.handle();
    let sku = open_sku(&handle, "A", 100_000);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let held = std::thread::scope(|scope| {
        let (handle, stop) = (&handle, &stop);
        let buying = scope.spawn(move || crate::load(handle, sku, 1, stop));
        let accepted = |more: u64| {
            let before = handle.stats().accepted;
            while handle.stats().accepted < before + more {
                std::thread::yield_now();
            }
        };
        accepted(50);
        // To look disturbs nobody, and sees one moment.
        let seen = look(&log.options).expect("a whole log");
        assert_eq!(told(&seen), Vec::<String>::new());
        accepted(50);
        // Of rows that this writer doesn't look at.
        let mut client = sql(&log.options);
        let edit =
            "UPDATE reservations SET attempt = 7 WHERE id = (SELECT min(id) FROM reservations)";
        client.batch_execute(edit).expect("an edit");
        let mended = apply(&log.options).expect("a whole log");
        assert_eq!((mended.differing, mended.epoch), (1, Some(2)));
        while !matches!(handle.health().state, State::Halted(_)) {
            std::thread::yield_now();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        buying.join().expect("no panic")
    });
    assert!(halted(&handle).contains("another writer (epoch 2)"));
    crate::check_held(&log.options, &held);
    assert!(is_clean(&log.options));
    let next = engine(&log.options).start().expect("it starts");
    assert_eq!(
        next.handle().availability(sku).expect("known").reserved,
        u64::try_from(rows_of(&log.options)).expect("some")
    );
}

fn rows_of(options: &PostgresOptions) -> i64 {
    let row = sql(options).query_one("SELECT count(*) FROM reservations", &[]);
    row.expect("a count").get(0)
}

#[test]
fn a_damaged_log_is_refused_by_the_name_of_its_batch() {
    let log = eventful();
    let mut client = sql(&log.options);
    let damage: [(&str, &str, &str); 3] = [
        (
            "batches row 9 (shard 0) is not what was committed",
            "UPDATE batches SET events = set_byte(events, 40, get_byte(events, 40) # 1) WHERE number = 9",
            "UPDATE batches SET events = set_byte(events, 40, get_byte(events, 40) # 1) WHERE number = 9",
        ),
        (
            "batches row 8 (shard 0)",
            "UPDATE batches SET number = -7 WHERE number = 7",
            "UPDATE batches SET number = 7 WHERE number = -7",
        ),
        (
            "batches row 5 (shard 0) is no batch",
            "UPDATE batches SET refusals = refusals || '\\x00' WHERE number = 5",
            "UPDATE batches SET refusals = substring(refusals FROM 1 FOR octet_length(refusals) - 1) WHERE number = 5",
        ),
    ];
    for (names, edit, undo) in damage {
        client.batch_execute(edit).expect("an edit");
        let last = sql(&log.options).query_one("SELECT max(number) FROM batches", &[]);
        let last: i64 = last.expect("one").get(0);
        for refused in [
            look(&log.options),
            apply(&log.options),
            resume(&log.options, last.cast_unsigned()),
        ] {
            let refused = refused.expect_err("a damaged log").to_string();
            assert!(refused.contains(names), "{refused}");
        }
        client.batch_execute(undo).expect("an edit");
    }
    assert!(is_clean(&log.options));
}

#[test]
fn a_log_that_was_cut_off_is_gone_on_with_when_an_operator_says_where() {
    let mut log = Log::new();
    log.options.snapshot_every_events = Some(5);
    let running = engine(&log.options).start().expect("it starts");
    let handle = running.handle();
    let sku = open_sku(&handle, "A", 100_000);
    let mut client = sql(&log.options);
    let mut users = 0;
    // It is a commit that begins a snapshot.
    while users < 20
        || client
            .query("SELECT FROM snapshots WHERE batch > 10", &[])
            .expect("snapshots")
            .is_empty()
    {
        reserve(&handle, users, sku).expect("a unit");
        users += 1;
    }
    assert!(running.shutdown(PATIENCE).is_clean);
    client
        .batch_execute("DELETE FROM batches WHERE number > 10")
        .expect("nobody keeps him from it");
    for refused in [
        engine(&log.options)
            .start()
            .err()
            .expect("lost")
            .to_string(),
        apply(&log.options).expect_err("lost").to_string(),
        PostgresAudit::run(&log.options, 0, &mut empty(), &mut |_| {})
            .expect_err("lost")
            .to_string(),
    ] {
        assert!(
            refused.contains("batches are missing")
                && refused.contains("flash-sale resume --store URL --shard 0 --after-batch 10"),
            "{refused}"
        );
    }
    let seen = look(&log.options).expect("the rest is whole");
    assert!(seen.lost.is_some() && seen.differing > 5, "{seen:?}");
    let elsewhere = resume(&log.options, 11).expect_err("not there").to_string();
    assert!(elsewhere.contains("ends with batch 10"), "{elsewhere}");
    let resumed = resume(&log.options, 10).expect("whole");
    assert!(resumed.epoch.is_some());
    assert!(is_clean(&log.options));
    let running = engine(&log.options).start().expect("it starts");
    let reserved =
        |handle: &stockade::engine::Handle| handle.availability(sku).expect("known").reserved;
    let left = reserved(&running.handle());
    assert!((1..users).contains(&left), "{left}");
    // Keys of what was lost are free.
    for user in 0..users {
        reserve(&running.handle(), user, sku).expect("a unit");
    }
    assert_eq!(reserved(&running.handle()), users);
}

#[test]
fn a_fence_row_that_is_gone_stops_everybody_until_it_is_mended() {
    let log = eventful();
    let mut client = sql(&log.options);
    for edit in [
        "DELETE FROM writer",
        "UPDATE writer SET last_batch = 10, last_hash = (SELECT hash FROM batches WHERE number = 10)",
    ] {
        client.batch_execute(edit).expect("an edit");
        let refused = engine(&log.options)
            .start()
            .err()
            .expect("no row")
            .to_string();
        assert!(refused.contains("flash-sale repair --store"), "{refused}");
        let mended = apply(&log.options).expect("a whole log");
        assert!(told(&mended)[0].contains("writer row of shard 0"));
        assert!(is_clean(&log.options), "{edit}");
        engine(&log.options).start().expect("it starts");
    }
}

#[test]
fn a_lost_tail_stays_a_halt_until_an_operator_accepts_it() {
    let mut pair = Pair::start();
    pair.options.retained_bytes = 0;
    let (first, handle, sku, _) = pair.part(engine(&pair.options));
    reserve(&handle, 2, sku).expect("a unit");
    assert_eq!(pair.fail_over(), 1, "the tail was lost");
    while !matches!(handle.health().state, State::Halted(_)) {
        std::thread::yield_now();
    }
    let reason = halted(&handle);
    drop(first);
    let refused = engine(&pair.options).start().err().expect("halted");
    let (_, command) = reason
        .split_once("--after-batch ")
        .unwrap_or_else(|| panic!("{reason}"));
    let after: u64 = command
        .trim_end_matches('`')
        .parse()
        .unwrap_or_else(|_| panic!("{reason}"));
    assert!(refused.to_string().contains(&reason), "{refused}");
    // What a standby would be told, and what `repair` says.
    let waiting = start_later(&standby(&pair.options, Duration::from_secs(3_600)));
    let told = waiting.recv_timeout(PATIENCE).expect("it is told");
    assert!(told.err().expect("halted").to_string().contains(&reason));
    assert!(apply(&pair.options).is_err());
    let resumed = resume(&pair.options, after).expect("whole");
    assert!(
        resumed
            .lost
            .as_ref()
            .is_some_and(|lost| lost.contains("batches are missing"))
    );
    assert_eq!(
        resumed.differing, 0,
        "the rows were lost with their batches"
    );
    let next = engine(&pair.options).start().expect("it starts");
    assert_eq!(next.handle().availability(sku).expect("known").reserved, 1);
    // Epochs of the lost history are not used again.
    assert!(resumed.epoch.is_some_and(|epoch| epoch > 2), "{resumed:?}");
    reserve(&next.handle(), 3, sku).expect("a unit");
    drop(next);
    assert!(is_clean(&pair.on_standby()));
}

#[test]
fn a_promotion_that_nobody_watched_is_told() {
    let mut pair = Pair::start();
    let promoted =
        |warnings: Vec<String>| warnings.iter().any(|warning| warning.contains("promoted"));
    let (first, handle, sku, _) = pair.part(engine(&pair.options));
    reserve(&handle, 2, sku).expect("a unit");
    pair.primary.kill();
    drop(first);
    assert_eq!(pair.fail_over(), 1, "the tail was lost");
    let next = engine(&pair.options).start().expect("it starts");
    let told = next.handle().health().warnings;
    assert!(promoted(told.clone()), "{told:?}");
    assert!(next.shutdown(PATIENCE).is_clean);
    // Once.
    let last = engine(&pair.options).start().expect("it starts");
    assert!(!promoted(last.handle().health().warnings));
}

#[test]
fn a_promotion_that_the_writer_made_good_is_not_told() {
    let mut pair = Pair::start();
    let (first, handle, sku, _) = pair.part(engine(&pair.options));
    reserve(&handle, 2, sku).expect("a unit");
    assert_eq!(pair.fail_over(), 1, "the tail was lost");
    reserve(&handle, 3, sku).expect("a unit, and the one before it once more");
    assert!(first.shutdown(PATIENCE).is_clean);
    let next = engine(&pair.options).start().expect("it starts");
    assert_eq!(next.handle().availability(sku).expect("known").reserved, 3);
    let told = next.handle().health().warnings;
    assert!(
        !told.iter().any(|warning| warning.contains("promoted")),
        "{told:?}"
    );
}

#[test]
fn the_store_of_another_shard_in_use_is_a_store() {
    let _one_server_for_all = Log::new();
    let report = conformance::prove_shard(40_000, || {
        let log = Log::new();
        let other = engine(&log.options).start().expect("it starts");
        let sku = open_sku(&other.handle(), "conformance", 10);
        reserve(&other.handle(), 1, sku).expect("a unit");
        assert!(other.shutdown(PATIENCE).is_clean);
        move || log.store()
    });
    assert!(report.is_ok(), "{report:?}");
}

#[test]
fn a_repair_of_one_shard_leaves_the_others_alone() {
    let log = Log::new();
    let mut others = Vec::new();
    for shard in [0, 3, 40_000] {
        let running = engine(&log.options)
            .shard(shard)
            .start()
            .expect("it starts");
        let handle = running.handle();
        let a = open_sku(&handle, "A", 10);
        let b = open_sku(&handle, "B", 10);
        let lines = [a, b].map(|sku| Line { sku, quantity: 1 });
        let cart = Lines::new(lines.to_vec()).expect("a cart");
        let held = handle
            .reserve(Reserve::cart(UserId(1), cart))
            .expect("room");
        held.wait().expect("units");
        assert!(running.shutdown(PATIENCE).is_clean);
        others.push(shard);
    }
    let before = rows(&log.options);
    let edit = "UPDATE reservations SET attempt = 1; UPDATE reservation_lines SET returned = 1;
        UPDATE inventory SET hold_ms = 1";
    sql(&log.options).batch_execute(edit).expect("an edit");
    for shard in others {
        let apply = || PostgresRepair::apply(&log.options, shard, &mut empty(), &mut |_| {});
        assert_eq!(apply().expect("a whole log").differing, 4, "shard {shard}");
        assert_eq!(apply().expect("a whole log").differing, 0, "shard {shard}");
    }
    assert_eq!(rows(&log.options), before);
}
