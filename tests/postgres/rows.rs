//! What others read from the rows and views, by SQL and by `PostgresReads`, without asking the writer.

use crate::servers::proxy::Proxy;
use crate::{Log, engine, open_sku, reserve, sql, url};
use std::thread;
use std::time::{Duration, Instant};
use stockade::postgres::PostgresReads;
use stockade::types::{
    Confirm, Confirmation, HoldStatus, IdempotencyKey, Query, QueryAnswer, ReservationId, SkuName,
    UserId,
};

#[test]
fn the_log_can_be_read_by_sql() {
    let log = Log::new();
    let engine = engine(&log.options).start().expect("it starts");
    let handle = engine.handle();
    let sku = open_sku(&handle, "SNEAKER-42", 1);
    let id = reserve(&handle, 7, sku).expect("a unit");
    assert!(reserve(&handle, 8, sku).is_err(), "sold out");
    let confirmed = handle.confirm(Confirm::unpaid(UserId::from(7), id));
    let confirmed = confirmed.expect("room").wait();
    assert_eq!(confirmed, Ok(Confirmation::Sold { reservation: id }));
    let mut client = sql(&log.options);
    let rows = client.query(
        "SELECT kind, user_id, key, reservation_id, sku, quantity, at FROM events ORDER BY sequence",
        &[],
    );
    let rows = rows.expect("events");
    let kinds: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(
        kinds,
        [
            "sku_named",
            "sku_defined",
            "gate_set",
            "reserved",
            "confirmed"
        ]
    );
    let held = &rows[3];
    assert_eq!(held.get::<_, UserId>(1), UserId::from(7));
    assert_eq!(
        held.get::<_, Option<IdempotencyKey>>(2),
        IdempotencyKey::new(8)
    );
    assert_eq!(held.get::<_, ReservationId>(3), id);
    assert_eq!((held.get(4), held.get(5)), (0_i64, 1_i64));
    assert_eq!(rows[4].get::<_, ReservationId>(3), id);
    let refused = client.query_one("SELECT user_id, key FROM refusals", &[]);
    assert_eq!(refused.expect("one").get::<_, UserId>(0), UserId::from(8));
    let row = client.query_one(
        "SELECT is_open, available, sold, total FROM inventory WHERE sku_id = 'SNEAKER-42'",
        &[],
    );
    let row = row.expect("one");
    assert_eq!(
        (row.get(0), row.get(1), row.get(2), row.get(3)),
        (true, 0_i64, 1_i64, 1_i64)
    );
}

#[test]
fn rows_answer_those_who_cannot_ask_the_writer() {
    let log = Log::new();
    let running = engine(&log.options).start().expect("it starts");
    let handle = running.handle();
    let sku = open_sku(&handle, "A", 10);
    let id = reserve(&handle, 1, sku).expect("a unit");
    let reads = PostgresReads::new(log.options.clone());
    let now = handle.now();
    let view = reads
        .reservation(id, now)
        .expect("it answers")
        .expect("it is there");
    let asked = handle.query(Query::Reservation(id)).expect("room").wait();
    assert_eq!(asked, Ok(QueryAnswer::Reservation(Some(view.clone()))));
    let late = reads.reservation(id, view.expires_at).expect("it answers");
    assert_eq!(late.expect("it is there").status, HoldStatus::Expired);
    assert_eq!(
        reads
            .reservation(ReservationId::new(0, 1), now)
            .expect("it answers"),
        None
    );
    let name = SkuName::new("A").expect("a name");
    let told = handle.availability(sku).expect("known");
    let read = reads
        .availability(0, &name)
        .expect("it answers")
        .expect("it is there");
    assert_eq!(
        (read.available, read.reserved, read.total),
        (told.available, told.reserved, told.total)
    );
    assert_eq!(reads.availability(7, &name).expect("it answers"), None);
    let stamps = reads.stamps().expect("it answers");
    let [(0, stamp, committed_at)] = stamps[..] else {
        panic!("{stamps:?}");
    };
    let apart = stamp.since(committed_at).max(committed_at.since(stamp));
    assert!(apart < Duration::from_secs(5), "{stamps:?}");
    // A connection that has ended meanwhile is replaced.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'stockade' AND query LIKE '%sku_id = $2%'";
    sql(&log.options).query(end, &[]).expect("it ends");
    assert!(reads.availability(0, &name).expect("it answers").is_some());
}

#[test]
fn a_server_that_hangs_costs_one_reader_its_time_outs_and_the_others_little() {
    /// Half a second in line, on a busy machine.
    const LITTLE: Duration = Duration::from_secs(2);
    let log = Log::new();
    let mut options = log.options.clone();
    let (_, rest) = options.url.rsplit_once(':').expect("a port");
    let (port, _) = rest.split_once('/').expect("a database");
    let proxy = Proxy::start(port.parse().expect("a number"));
    options.url = url(proxy.port());
    let reads = PostgresReads::new(options);
    assert_eq!(reads.skus().expect("it answers"), Vec::new());

    proxy.stall();
    let took = thread::scope(|scope| {
        let ask = || {
            let begun = Instant::now();
            assert!(reads.skus().is_err(), "nobody answers");
            begun.elapsed()
        };
        let readers = [(); 20].map(|()| scope.spawn(ask));
        readers.map(|reader| reader.join().expect("an answer"))
    });
    let late = took.iter().filter(|&&took| took > LITTLE).count();
    assert_eq!(late, 1, "{took:?}");
    let begun = Instant::now();
    assert!(reads.skus().is_err() && begun.elapsed() < LITTLE);

    proxy.open();
    while reads.skus().is_err() {
        assert!(begun.elapsed() < 2 * LITTLE, "it answers again");
        // Whoever is refused is not told of the end of the pause.
        thread::sleep(Duration::from_millis(50));
    }
}
