//! Redis killed, paused, failed over, in part or whole, under load: reads fall back, writes don't notice, and afterwards
//! everything agrees again by itself.

use crate::cluster::{self, Cluster, ask, connect, until};
use crate::servers::proxy::Proxy;
use crate::{Authority, entry, name, open_sku, reserve};
use redis::Connection;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use stockade::Engine;
use stockade::cache::{Cache, ReservationEntry};
use stockade::engine::Handle;
use stockade::redis::{Fallback, RedisCache, RedisOptions, RedisReader};
use stockade::types::{
    Availability, HoldStatus, Release, ReservationId, Reserve, SkuId, SkuName, Timestamp, UserId,
};

const SOON: Duration = Duration::from_secs(20);
/// After an outage everything agrees again within this.
const AGREES_WITHIN: Duration = Duration::from_secs(5);
const SKUS: usize = 12;

fn sku_name(n: usize) -> String {
    format!("SKU-{n}")
}

/// An engine at work, and readers of what it writes to Redis.
struct Sale<'a> {
    handle: &'a Handle,
    reader: &'a RedisReader<Authority>,
    writes: &'a AtomicU64,
    slowest_write_micros: &'a AtomicU64,
    slowest_read_micros: &'a AtomicU64,
    reads: &'a AtomicU64,
}

impl Sale<'_> {
    /// Forgets the slowest, and lets so many writes and reads go by.
    fn go_on(&self, count: u64) -> (Duration, Duration) {
        let writes = self.writes.load(Ordering::Relaxed) + count;
        let reads = self.reads.load(Ordering::Relaxed) + count;
        self.slowest_write_micros.store(0, Ordering::Relaxed);
        self.slowest_read_micros.store(0, Ordering::Relaxed);
        until("writes and reads go on", SOON, || {
            self.writes.load(Ordering::Relaxed) >= writes
                && self.reads.load(Ordering::Relaxed) >= reads
        });
        let of = |slowest: &AtomicU64| Duration::from_micros(slowest.load(Ordering::Relaxed));
        (of(self.slowest_write_micros), of(self.slowest_read_micros))
    }
}

/// Runs `during` while two threads reserve and release and two others read, and checks that every read and write is
/// answered; afterwards the stock in Redis, as `held` finds it, must be the engine's.
fn with_sale(
    options: &RedisOptions,
    mut held: impl FnMut(&str) -> Option<u64>,
    during: impl FnOnce(&Sale<'_>),
) {
    let engine = Engine::builder()
        .cache(RedisCache::new(options))
        .start()
        .expect("started");
    let handle = engine.handle();
    let skus: Vec<SkuId> = (0..SKUS)
        .map(|n| open_sku(&handle, &sku_name(n), 1_000_000))
        .collect();
    let reader = RedisReader::new(options, Authority::of(&handle))
        .keep(Duration::ZERO)
        // Other tests may keep the machine busy; what a read may take is asserted by each test.
        .deadline(Duration::from_secs(5));
    let (writes, reads) = (AtomicU64::new(0), AtomicU64::new(0));
    let (slowest_write, slowest_read) = (AtomicU64::new(0), AtomicU64::new(0));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let (handle, skus) = (&handle, &skus);
            let (writes, slowest, is_over) = (&writes, &slowest_write, &is_over);
            scope.spawn(move || {
                for n in 0_u64.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let begun = Instant::now();
                    let user = UserId::from(thread * 1_000_000 + n);
                    let sku = skus[usize::try_from(n).expect("few") % SKUS];
                    let asked = Reserve::one(user, sku, 2).expect("a cart");
                    let held = handle.reserve(asked).expect("room").wait().expect("units");
                    if n % 3 == 0 {
                        let release = Release::new(user, held.id);
                        handle
                            .release(release)
                            .expect("room")
                            .wait()
                            .expect("released");
                    }
                    slowest.fetch_max(micros(begun), Ordering::Relaxed);
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            });
            let reader = &reader;
            let (reads, slowest) = (&reads, &slowest_read);
            scope.spawn(move || {
                for n in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let begun = Instant::now();
                    let stock = reader.stock(&name(&sku_name(n % SKUS)));
                    let stock = stock.expect("answered").expect("a SKU that is known");
                    assert_eq!(stock.available + stock.reserved + stock.sold, stock.total);
                    slowest.fetch_max(micros(begun), Ordering::Relaxed);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let sale = Sale {
            handle: &handle,
            reader: &reader,
            writes: &writes,
            slowest_write_micros: &slowest_write,
            slowest_read_micros: &slowest_read,
            reads: &reads,
        };
        // However it ends, the others must.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| during(&sale)));
        is_over.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    let took = until("Redis agrees to the unit", AGREES_WITHIN, || {
        skus.iter().zip(0..).all(|(&sku, n)| {
            let stock = handle.availability(sku).expect("known");
            held(&format!("stock:{{{}}}", sku_name(n)))
                == Some(stock.sequence * 10_000_000 + stock.available)
        })
    });
    eprintln!(
        "agreed {took:?} after the last commit; {:?}",
        reader.stats()
    );
    until("no warning is left", SOON, || {
        handle.health().warnings.is_empty()
    });
}

fn micros(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Sequence and units of what lies there.
fn held(connection: &mut Connection, key: &str) -> Option<u64> {
    let fields = redis::cmd("HMGET")
        .arg(key)
        .arg("sequence")
        .arg("available")
        .query(connection);
    let (sequence, available): (Option<u64>, Option<u64>) = fields.ok()?;
    Some(sequence? * 10_000_000 + available?)
}

/// Slow enough for a machine that does other things too, fast enough that nobody has waited for Redis.
const UNAFFECTED: Duration = Duration::from_millis(400);

#[test]
fn a_killed_redis_costs_latency_and_comes_back_whole() {
    let server = parking_lot::Mutex::new(cluster::start());
    let options = cluster::options(&[&server.lock()]);
    let held = |key: &str| held(&mut connect(&server.lock()), key);
    with_sale(&options, held, |sale| {
        sale.go_on(500);
        let hits = sale.reader.stats().hits;
        assert!(hits > 0);
        server.lock().kill();
        let (write, read) = sale.go_on(2_000);
        assert!(
            write < UNAFFECTED && read < UNAFFECTED,
            "{write:?}, {read:?}"
        );
        assert!(sale.reader.stats().errors > 0);
        until("its health says so", SOON, || {
            sale.handle
                .health()
                .warnings
                .iter()
                .any(|warning| warning.contains("see that it runs"))
        });
        server.lock().restart();
        let hits = sale.reader.stats().hits;
        until("it is read again", AGREES_WITHIN, || {
            sale.reader.stats().hits > hits
        });
        sale.go_on(500);
    });
}

/// An authority that takes its time, and says how often it was asked for stock and for reservations.
#[derive(Default)]
struct Slow {
    stock: AtomicU64,
    reservations: AtomicU64,
}

impl Slow {
    /// The number of a call that has taken long enough for others to come meanwhile.
    fn call(calls: &AtomicU64) -> u64 {
        // What it stands for, a database far away, takes time that nothing signals.
        std::thread::sleep(Duration::from_millis(5));
        1 + calls.fetch_add(1, Ordering::Relaxed)
    }
}

impl Fallback for &Slow {
    fn stock(&self, name: &SkuName) -> Result<Option<Availability>, String> {
        let call = Slow::call(&self.stock);
        Ok(Some(entry(name.as_str(), 1, call).availability))
    }

    fn reservation(&self, id: ReservationId) -> Result<Option<ReservationEntry>, String> {
        Ok(Some(ReservationEntry {
            id,
            epoch: 1,
            sequence: Slow::call(&self.reservations),
            user: UserId(1),
            status: HoldStatus::Held,
            expires_at: Timestamp::MAX,
            lines: Vec::new(),
        }))
    }
}

#[test]
fn a_dead_redis_lets_one_reader_of_a_key_through_to_the_authority_at_a_time() {
    const READERS: usize = 12;
    /// What a reader keeps what it has read, if it isn't told otherwise.
    const KEEP: Duration = Duration::from_millis(20);
    let mut server = cluster::start();
    let options = cluster::options(&[&server]);
    let mut cache = RedisCache::new(&options);
    cache.put(&[entry("A", 1, 1)], &[]).expect("it runs");
    let slow = Slow::default();
    // A time-out of other tests' making is none of the reader's.
    let reader = RedisReader::new(&options, &slow).deadline(Duration::from_secs(5));
    reader.stock(&name("A")).expect("answered");
    assert_eq!((reader.stats().hits, reader.stats().fallbacks), (1, 0));
    server.kill();
    until("it falls back", SOON, || {
        reader.stock(&name("A")).expect("answered");
        reader.stats().errors > 0
    });
    let (before, begun) = (reader.stats(), Instant::now());
    let calls = || {
        let of = |calls: &AtomicU64| calls.load(Ordering::Relaxed);
        [of(&slow.stock), of(&slow.reservations)]
    };
    let called = calls();
    let id = ReservationId::new(0, 1);
    let reads: u64 = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| {
                    let (mut reads, mut last) = (0, [0; 2]);
                    while begun.elapsed() < Duration::from_secs(2) {
                        let stock = reader.stock(&name("A")).expect("answered");
                        let stock = stock.expect("known");
                        assert_eq!(stock, entry("A", 1, stock.sequence).availability);
                        let held = reader.reservation(id).expect("answered").expect("known");
                        assert_eq!((held.id, held.status), (id, HoldStatus::Held));
                        let now = [stock.sequence, held.sequence];
                        let goes_back = now.iter().zip(&last).any(|(now, last)| now < last);
                        assert!(!goes_back, "{now:?} after {last:?}");
                        (reads, last) = (reads + 2, now);
                        // So that a core is left to who loads.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    reads
                })
            })
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().expect("no panic"))
            .sum()
    });
    let most = begun.elapsed().as_millis() / KEEP.as_millis() + 1;
    let calls: Vec<u64> = calls()
        .iter()
        .zip(called)
        .map(|(now, then)| now - then)
        .collect();
    let after = reader.stats();
    eprintln!("{reads} reads, {calls:?} calls of at most {most} each");
    assert!(
        calls.iter().all(|&calls| u128::from(calls) <= most),
        "{calls:?} of {most}"
    );
    assert!(
        calls.iter().all(|&calls| calls > 5),
        "nothing is kept for long: {calls:?}"
    );
    assert_eq!(
        after.fallbacks - before.fallbacks,
        calls.iter().sum::<u64>()
    );
    assert_eq!(after.errors - before.errors, reads, "each by the authority");
    assert_eq!(
        (after.hits, after.misses, after.failures),
        (before.hits, before.misses, 0)
    );
}

/// Connections stay open and new ones are made, and nothing comes back; the second time what was on its way is lost.
#[test]
fn a_redis_that_is_not_heard_delays_a_read_by_its_time_out_and_no_write() {
    let server = cluster::start();
    let way = Proxy::start(server.port());
    let options = RedisOptions::new(&format!("redis://127.0.0.1:{}", way.port()));
    let options = options.expect("an address");
    let held = |key: &str| held(&mut connect(&server), key);
    with_sale(&options, held, |sale| {
        for round in 0..2 {
            sale.go_on(500);
            let before = sale.reader.stats();
            way.stall();
            let (write, read) = sale.go_on(2_000);
            eprintln!("unheard: {write:?} at most a write, {read:?} a read");
            assert!(
                write < UNAFFECTED && read < UNAFFECTED,
                "{write:?}, {read:?}"
            );
            let stats = sale.reader.stats();
            assert!(stats.errors - before.errors > 1_000, "{stats:?}");
            until("its health says so", SOON, || {
                !sale.handle.health().warnings.is_empty()
            });
            if round == 1 {
                way.close();
            }
            way.open();
            let hits = sale.reader.stats().hits;
            until("it is read again", AGREES_WITHIN, || {
                sale.reader.stats().hits > hits
            });
            until("no warning is left", SOON, || {
                sale.handle.health().warnings.is_empty()
            });
        }
        sale.go_on(500);
    });
}

#[test]
fn a_paused_redis_is_waited_for_once_and_not_by_everybody() {
    let server = cluster::start();
    // A response that takes as long as nobody should wait, so that waits show.
    let options = cluster::options(&[&server]).timeout(Duration::from_millis(100));
    let held = |key: &str| held(&mut connect(&server), key);
    with_sale(&options, held, |sale| {
        sale.go_on(500);
        server.pause();
        let paused = Instant::now();
        let errors = sale.reader.stats().errors;
        let (write, _) = sale.go_on(2_000);
        assert!(write < UNAFFECTED, "{write:?}");
        until("the pause is long", SOON, || {
            paused.elapsed() > Duration::from_secs(3)
        });
        let stats = sale.reader.stats();
        // Had each read waited, the two threads would have read 2 * 10 a second.
        let reads = stats.errors - errors;
        assert!(reads > 1_000, "{reads} reads in {:?}", paused.elapsed());
        server.go_on();
        let hits = sale.reader.stats().hits;
        until("it is read again", AGREES_WITHIN, || {
            sale.reader.stats().hits > hits
        });
        sale.go_on(500);
    });
}

#[test]
fn a_replica_that_takes_over_is_found_and_written() {
    let (primary, replica) = cluster::pair();
    let options = cluster::options(&[&primary, &replica]);
    let primary = parking_lot::Mutex::new(primary);
    let held = |key: &str| held(&mut connect(&replica), key);
    with_sale(&options, held, |sale| {
        sale.go_on(500);
        primary.lock().kill();
        sale.go_on(500);
        assert_eq!(ask(&mut connect(&replica), "REPLICAOF NO ONE"), "OK");
        let hits = sale.reader.stats().hits;
        until("it is read again", AGREES_WITHIN, || {
            sale.reader.stats().hits > hits
        });
        sale.go_on(500);
    });
}

#[test]
fn a_primary_that_is_told_to_follow_is_left_for_the_new_one() {
    let (primary, replica) = cluster::pair();
    let options = cluster::options(&[&primary, &replica]);
    let held = |key: &str| held(&mut connect(&replica), key);
    with_sale(&options, held, |sale| {
        sale.go_on(500);
        ask(&mut connect(&replica), "REPLICAOF NO ONE");
        let follow = format!("REPLICAOF 127.0.0.1 {}", replica.port());
        ask(&mut connect(&primary), &follow);
        sale.go_on(2_000);
        let mut connection = connect(&replica);
        let begun = version(&mut connection);
        until("the new one is written", AGREES_WITHIN, || {
            version(&mut connection) > begun
        });
    });
}

fn version(connection: &mut Connection) -> u64 {
    held(connection, &format!("stock:{{{}}}", sku_name(0))).unwrap_or(0)
}

#[test]
fn a_clusters_dead_node_takes_its_own_keys_with_it_and_no_others() {
    let cluster = parking_lot::Mutex::new(Cluster::start());
    let options = cluster.lock().options();
    let node_of: Vec<usize> = (0..SKUS)
        .map(|n| {
            cluster
                .lock()
                .node_of(&format!("stock:{{{}}}", sku_name(n)))
        })
        .collect();
    assert!(
        (0..3).all(|node| node_of.contains(&node)),
        "keys lie on all nodes: {node_of:?}"
    );
    let held = |key: &str| {
        let cluster = cluster.lock();
        held(&mut connect(&cluster.nodes[cluster.node_of(key)]), key)
    };
    with_sale(&options, held, |sale| {
        sale.go_on(500);
        // The one that was asked for the topology, and that a client might cling to.
        cluster.lock().nodes[0].kill();
        let (write, read) = sale.go_on(2_000);
        assert!(
            write < UNAFFECTED && read < UNAFFECTED,
            "{write:?}, {read:?}"
        );
        let other = (0..SKUS)
            .find(|&n| node_of[n] != 0)
            .expect("on another node");
        let key = format!("stock:{{{}}}", sku_name(other));
        let mut connection = connect(&cluster.lock().nodes[node_of[other]]);
        let mut known = || self::held(&mut connection, &key);
        let before = known();
        until("another node's keys are written", AGREES_WITHIN, || {
            known() > before
        });
        let hits = sale.reader.stats().hits;
        until("and read", AGREES_WITHIN, || {
            sale.reader.stats().hits > hits + 100
        });
        cluster.lock().nodes[0].restart();
        cluster.lock().until_ok();
        sale.go_on(500);
    });
}

#[test]
fn slots_that_move_are_followed() {
    let cluster = Cluster::start();
    let held = |key: &str| (0..3).find_map(|node| held(&mut connect(&cluster.nodes[node]), key));
    with_sale(&cluster.options(), held, |sale| {
        sale.go_on(500);
        let key = format!("stock:{{{}}}", sku_name(0));
        let from = cluster.node_of(&key);
        let to = (from + 1) % 3;
        let slot = ask(
            &mut connect(&cluster.nodes[0]),
            &format!("CLUSTER KEYSLOT {key}"),
        );
        let id = |node: usize| ask(&mut connect(&cluster.nodes[node]), "CLUSTER MYID");
        let (from_id, to_id) = (id(from), id(to));
        let on = |node: usize, command: String| ask(&mut connect(&cluster.nodes[node]), &command);
        on(to, format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}"));
        on(from, format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}"));
        let port = cluster.nodes[to].port();
        on(
            from,
            format!("MIGRATE 127.0.0.1 {port} {key} 0 1000 REPLACE"),
        );
        // Half moved: it is asked for at the new node, one by one.
        sale.go_on(500);
        let mut there = connect(&cluster.nodes[to]);
        let asked = |connection: &mut Connection| {
            ask(connection, "ASKING");
            self::held(connection, &key)
        };
        let before = asked(&mut there);
        until("it is written where it went", AGREES_WITHIN, || {
            asked(&mut there) > before
        });
        for node in [to, from, 3 - to - from] {
            on(node, format!("CLUSTER SETSLOT {slot} NODE {to_id}"));
        }
        sale.go_on(500);
    });
}

#[test]
fn what_ended_while_redis_was_down_is_not_shown_as_live_by_what_it_kept() {
    let keeps = ["--appendonly", "yes", "--appendfsync", "always"].map(str::to_owned);
    let mut server = crate::servers::Server::start("redis.sh", &keeps);
    let options = cluster::options(&[&server]);
    let engine = Engine::builder()
        .cache(RedisCache::new(&options))
        .start()
        .expect("started");
    let handle = engine.handle();
    let sku = open_sku(&handle, "kept", 10);
    let (before, other) = (reserve(&handle, 1, sku), reserve(&handle, 2, sku));
    let reader = RedisReader::new(&options, Authority::of(&handle)).keep(Duration::ZERO);
    let status = |id| {
        reader.stock(&name("kept")).expect("answered");
        let misses = reader.stats().misses;
        let found = reader
            .reservation(id)
            .expect("answered")
            .expect("known to somebody");
        (found.status, reader.stats().misses == misses)
    };
    let key = |id| format!("reservation:{{{id}}}");
    until("both are written", SOON, || {
        [before.id, other.id].map(status) == [(HoldStatus::Held, true); 2]
    });
    server.kill();
    let release = Release::new(UserId::from(1), before.id);
    handle
        .release(release)
        .expect("room")
        .wait()
        .expect("released");
    until("its health says so", SOON, || {
        !handle.health().warnings.is_empty()
    });
    server.restart();
    until("it is written again", SOON, || {
        handle.health().warnings.is_empty()
    });
    let mut connection = connect(&server);
    assert_eq!(
        ask(&mut connection, &format!("EXISTS {}", key(before.id))),
        "1",
        "it was kept"
    );
    assert_eq!(status(before.id), (HoldStatus::Released, false));
    assert_eq!(
        status(other.id),
        (HoldStatus::Held, false),
        "nobody vouches for it"
    );
    let after = reserve(&handle, 3, sku);
    until("what is new is vouched for", SOON, || {
        status(after.id) == (HoldStatus::Held, true)
    });
}
