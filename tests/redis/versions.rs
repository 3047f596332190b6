//! What lies in Redis: versions that never go back, whoever writes, and how long it lies there.

use crate::cluster::{self, ask, connect, until};
use crate::{Authority, entry, name, open_sku, reserve};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use stockade::Engine;
use stockade::cache::{Cache, CacheEntry, Change, ReservationChange};
use stockade::redis::{RedisCache, RedisReader};
use stockade::types::{
    BeginPayment, HoldStatus, PaymentRef, Release, ReservationId, Timestamp, UserId,
};

const SOON: Duration = Duration::from_secs(10);

/// Lets the others end, also after a failure.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn version(connection: &mut redis::Connection, sku: &str) -> (u64, u64) {
    let key = format!("stock:{{{sku}}}");
    let fields = redis::cmd("HMGET")
        .arg(key)
        .arg("epoch")
        .arg("sequence")
        .query(connection);
    let (epoch, sequence): (Option<u64>, Option<u64>) = fields.expect("an answer");
    (epoch.unwrap_or(0), sequence.unwrap_or(0))
}

const SKUS: [&str; 3] = ["A", "B}", "{C} with a space"];
const WRITES: u64 = 2_000;

#[test]
fn versions_never_go_back_under_writers_of_two_epochs() {
    let server = cluster::start();
    let options = cluster::options(&[&server]);
    let is_over = AtomicBool::new(false);
    let rises = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let over = Over(&is_over);
        let writers: Vec<_> = (1..=2)
            .map(|epoch| {
                let mut cache = RedisCache::new(&options);
                scope.spawn(move || {
                    for n in 1..=WRITES {
                        // Now and then an old one comes again, as after a lost answer.
                        let sequence = if n % 7 == 0 { n / 2 } else { n };
                        let entries = SKUS.map(|sku| entry(sku, epoch, sequence));
                        cache.put(&entries, &[]).expect("it runs");
                    }
                    cache
                })
            })
            .collect();
        let watcher = scope.spawn(|| {
            let mut connection = connect(&server);
            let mut last = [(0, 0); SKUS.len()];
            while !is_over.load(Ordering::Relaxed) {
                for (sku, last) in SKUS.iter().zip(&mut last) {
                    let now = version(&mut connection, sku);
                    assert!(now >= *last, "{sku} went from {last:?} to {now:?}");
                    rises.fetch_add(u64::from(now > *last), Ordering::Relaxed);
                    *last = now;
                }
            }
        });
        let mut caches = writers
            .into_iter()
            .map(|writer| writer.join().expect("no panic"));
        let mut zombie = caches.next().expect("the writer of epoch 1");
        caches.for_each(drop);
        zombie
            .put(&SKUS.map(|sku| entry(sku, 1, WRITES * 10)), &[])
            .expect("it runs");
        drop(over);
        watcher.join().expect("no version went back");
    });
    let mut connection = connect(&server);
    for sku in SKUS {
        assert_eq!(version(&mut connection, sku), (2, WRITES), "{sku}");
    }
    assert!(
        rises.load(Ordering::Relaxed) > 100,
        "the watcher saw them rise"
    );
}

#[test]
fn a_flushed_script_is_loaded_within_the_call_and_nothing_is_lost_or_reordered() {
    let server = cluster::start();
    let mut connection = connect(&server);
    let mut cache = RedisCache::new(&cluster::options(&[&server]));
    let changed = |sequence, change| ReservationChange {
        id: ReservationId::from_u64(sequence / 2),
        epoch: 1,
        sequence,
        at: Timestamp::from_micros(0),
        change,
    };
    for round in 1..=20 {
        ask(&mut connection, "SCRIPT FLUSH");
        let stock: Vec<CacheEntry> = (0..50).map(|n| entry(&format!("S{n}"), 1, round)).collect();
        // Every reservation is made, and every second one ends at once.
        let reservations: Vec<_> = (0..100)
            .flat_map(|n| {
                let sequence = (round * 100 + n) * 2;
                let made = Change::Made {
                    user: UserId(1),
                    lines: vec![(name("S1"), 1)],
                    expires_at: Timestamp::from_micros(60_000_000),
                };
                let ended = (n % 2 == 0).then(|| changed(sequence + 1, Change::Ended));
                std::iter::once(changed(sequence, made)).chain(ended)
            })
            .collect();
        cache
            .put(&stock, &reservations)
            .expect("the script is loaded");
        for n in 0..50 {
            assert_eq!(version(&mut connection, &format!("S{n}")), (1, round));
        }
        let keys: usize = redis::cmd("DBSIZE")
            .query(&mut connection)
            .expect("an answer");
        assert_eq!(
            keys as u64,
            50 + 50 * round,
            "half of the reservations live"
        );
    }
}

#[test]
fn stock_is_forgotten_without_a_writer_and_kept_by_one_that_idles() {
    let server = cluster::start();
    let ttl = Duration::from_secs(1);
    let options = cluster::options(&[&server]).stock_ttl(ttl);
    let mut connection = connect(&server);
    let engine = Engine::builder()
        .cache(RedisCache::new(&options))
        .start()
        .expect("started");
    let handle = engine.handle();
    open_sku(&handle, "idle", 3);
    let mut left = || -> i64 {
        ask(&mut connection, "PTTL stock:{idle}")
            .parse()
            .expect("a number")
    };
    until("it is written", SOON, || left() > 0);
    let begun = std::time::Instant::now();
    while begun.elapsed() < ttl * 3 {
        let left = left();
        assert!((1..=1_000).contains(&left), "{left} ms to live");
        // Looks for as long as three lives would last: time is what is tested.
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(engine);
    let took = until("it is forgotten", SOON, || left() == -2);
    assert!(took <= ttl + Duration::from_millis(500), "{took:?}");
}

#[test]
fn a_reservation_lies_there_for_its_hold_and_goes_with_its_end() {
    let server = cluster::start();
    let options = cluster::options(&[&server]).prefix("shop[1]:");
    let engine = Engine::builder()
        .cache(RedisCache::new(&options))
        .start()
        .expect("started");
    let handle = engine.handle();
    let reader = RedisReader::new(&options, Authority::default()).keep(Duration::ZERO);
    let sku = open_sku(&handle, "held", 10);
    let held = reserve(&handle, 7, sku);
    let mut connection = connect(&server);
    let key = format!("shop[1]:reservation:{{{}}}", held.id);
    until("it is written", SOON, || {
        ask(&mut connection, &format!("EXISTS {key}")) == "1"
    });
    let left: i64 = ask(&mut connection, &format!("PTTL {key}"))
        .parse()
        .expect("a number");
    assert!(
        (110_000..=121_000).contains(&left),
        "120 s and one more, not {left} ms"
    );
    let fields = ask(&mut connection, &format!("HGET {key} status"));
    assert_eq!(fields, "RESERVED", "other programs can read it");

    let found = reader
        .reservation(held.id)
        .expect("no fallback is needed")
        .expect("it is there");
    assert_eq!(
        (found.user, found.status),
        (UserId::from(7), HoldStatus::Held)
    );
    assert_eq!(
        (found.expires_at, found.lines),
        (held.expires_at, vec![(name("held"), 1)])
    );
    let payment = BeginPayment::new(UserId::from(7), held.id, PaymentRef::new(1).expect("not 0"));
    let begun = handle
        .begin_payment(payment)
        .expect("room")
        .wait()
        .expect("begun");
    until("the payment shows", SOON, || {
        let found = reader
            .reservation(held.id)
            .expect("no fallback")
            .expect("it is there");
        (found.status, found.expires_at) == (HoldStatus::InPayment, begun.expires_at)
    });
    let other = reserve(&handle, 8, sku);
    let key = format!("shop[1]:reservation:{{{}}}", other.id);
    until("it is written", SOON, || {
        ask(&mut connection, &format!("EXISTS {key}")) == "1"
    });
    let release = Release::new(UserId::from(8), other.id);
    handle
        .release(release)
        .expect("room")
        .wait()
        .expect("released");
    until("it is gone", SOON, || {
        ask(&mut connection, &format!("EXISTS {key}")) == "0"
    });
}

#[test]
fn a_reader_doubts_what_an_earlier_epoch_left_or_writes_late() {
    let server = cluster::start();
    let options = cluster::options(&[&server]);
    let held = |epoch, sequence| ReservationChange {
        id: ReservationId::from_u64(sequence),
        epoch,
        sequence,
        at: Timestamp::from_micros(0),
        change: Change::Made {
            user: UserId(1),
            lines: Vec::new(),
            expires_at: Timestamp::from_micros(60_000_000),
        },
    };
    let reader = RedisReader::new(&options, Authority::default()).keep(Duration::ZERO);
    let mut cache = RedisCache::new(&options);
    let put = |cache: &mut RedisCache, entry: CacheEntry, held: ReservationChange| {
        cache.put(&[entry], &[held]).expect("it runs");
    };
    let is_known = |sequence| {
        reader
            .reservation(ReservationId::from_u64(sequence))
            .is_ok()
    };
    put(&mut cache, entry("A", 1, 10), held(1, 10));
    put(&mut cache, entry("B", 1, 11), held(1, 11));
    assert_eq!(
        reader
            .stock(&name("B"))
            .expect("a hit")
            .map(|stock| stock.sequence),
        Some(11)
    );
    assert!(is_known(10) && is_known(11));
    // A takeover: the new writer's first word is enough.
    put(&mut cache, entry("A", 2, 12), held(2, 12));
    assert_eq!(
        reader
            .stock(&name("A"))
            .expect("a hit")
            .map(|stock| stock.sequence),
        Some(12)
    );
    assert!(
        reader.stock(&name("B")).is_err(),
        "no fallback, and no trust"
    );
    assert!(!is_known(10) && !is_known(11) && is_known(12));
    // The zombie's late write finds the key free, and is not believed.
    put(&mut cache, entry("C", 1, 13), held(1, 13));
    assert!(reader.stock(&name("C")).is_err() && !is_known(13));
    // A gap: what came before it is not vouched for.
    let gap = CacheEntry {
        reservations_from: 15,
        ..entry("A", 2, 14)
    };
    put(&mut cache, gap, held(2, 15));
    assert!(reader.stock(&name("A")).is_ok());
    assert!(!is_known(12) && is_known(15));
    // Redis fails over to a replica that lags: a value that went back is not given.
    let mut connection = connect(&server);
    ask(&mut connection, "DEL stock:{A}");
    put(&mut cache, entry("A", 2, 13), held(2, 16));
    assert!(reader.stock(&name("A")).is_err());
    let stats = reader.stats();
    assert_eq!(stats.hits + stats.failures, stats.asked);
    assert_eq!((stats.misses, stats.errors), (0, 0));
}

#[test]
fn a_script_that_comes_and_goes_within_a_call_reorders_nothing() {
    let server = cluster::start();
    let options = cluster::options(&[&server]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Over(&is_over);
        scope.spawn(|| {
            // Loads the script as another writer does, and loses it again.
            let mut other = RedisCache::new(&options);
            let mut connection = connect(&server);
            for n in 1.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                ask(&mut connection, "SCRIPT FLUSH");
                other.put(&[entry("other", 1, n)], &[]).expect("it runs");
                // How long the script stays; nothing is waited for.
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let mut cache = RedisCache::new(&options);
        let mut connection = connect(&server);
        for round in 1..=200_u64 {
            let changed = |n: u64, later: u64, change| ReservationChange {
                id: ReservationId::from_u64(n),
                epoch: 1,
                sequence: round * 10_000 + later + n,
                at: Timestamp::from_micros(0),
                change,
            };
            let made = (0..200).map(|n| {
                let made = Change::Made {
                    user: UserId(1),
                    lines: Vec::new(),
                    expires_at: Timestamp::from_micros(60_000_000),
                };
                changed(n, 0, made)
            });
            let ended = (0..200).map(|n| changed(n, 5_000, Change::Ended));
            let all: Vec<_> = made.chain(ended).collect();
            // Where the script was lost too often, the call says so.
            until("it is taken", SOON, || cache.put(&[], &all).is_ok());
            let keys: usize = redis::cmd("DBSIZE")
                .query(&mut connection)
                .expect("an answer");
            assert!(
                keys <= 1,
                "round {round}: {keys} keys, though all have ended"
            );
        }
    });
}
