//! Writers and standbys of one sale, whose log is in a real PostgreSQL: whoever dies, the next one goes on with every answer that
//! was given. `cargo test -p flash-sale --features postgres --test takeover`.

mod common;
#[path = "../../../tests/servers/mod.rs"]
#[expect(dead_code, reason = "it serves other tests too")]
mod servers;

use common::{ONE, Server, Starting, flash_sale, serve_shared, signal, token};
use std::process::Command;
use std::time::{Duration, Instant};

struct Sale {
    _database: servers::Server,
    url: String,
}

const FLAGS: [&str; 6] = [
    "--sku",
    "SNEAKER=1000",
    "--payment-latency",
    "0s",
    "--hold",
    "10m",
];

impl Sale {
    fn new() -> Self {
        let database = servers::Server::start("postgres.sh", &[]);
        let url = format!("postgres://stockade@127.0.0.1:{}/stockade", database.port());
        let mut init = flash_sale();
        let init = init.args(["init", "--store", &url]).status();
        assert!(init.expect("the program starts").success());
        Self {
            _database: database,
            url,
        }
    }

    /// A further writer.
    fn writer(&self) -> Starting {
        Starting::of(serve_shared(&self.url, &FLAGS))
    }
}

/// Waits until so many programs are connected to the log: the writer, and a standby that follows.
fn await_connected(sale: &Sale, programs: u32) {
    let asks = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stockade'";
    let begun = Instant::now();
    loop {
        let psql = Command::new("psql")
            .args(["-Atc", asks, &sale.url])
            .output();
        let counted = String::from_utf8(psql.expect("psql runs").stdout).expect("a number");
        if counted.trim().parse() == Ok(programs) {
            return;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{counted} are connected"
        );
        // PostgreSQL tells nobody who connects.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asserts that the reservation stands, and that its key still gives it.
#[track_caller]
fn stands(server: &Server, user: &str, (token, id): &(String, String)) {
    let shown = server.reservation("GET", token, id).is(200);
    assert_eq!(shown.text("status"), "RESERVED");
    let again = server.reserve(token, user, ONE).is(201);
    assert_eq!(&again.text("reservation_id"), id);
}

/// The standby decides within `max` of `since`.
#[track_caller]
fn decides_within(standby: Starting, max: Duration, since: Instant, user: &str) -> Server {
    // Made before, so that only the takeover counts.
    let token = token(user);
    let server = standby.listens();
    server.reserve(&token, user, ONE).is(201);
    let took = since.elapsed();
    assert!(
        took < max,
        "the first decision came after {took:?}, not {max:?}"
    );
    println!("first decision after {took:?}");
    server
}

#[test]
fn a_standby_goes_on_when_the_writer_is_killed_handed_over_or_paused() {
    let sale = Sale::new();
    let first = sale.writer().listens();
    let ann = first.reserves("ann");

    // Killed.
    let standby = sale.writer();
    await_connected(&sale, 2);
    let since = Instant::now();
    first.kill();
    let second = decides_within(standby, Duration::from_millis(1_500), since, "bob");
    stands(&second, "ann", &ann);

    // Asked to end: it hands the role on.
    let standby = sale.writer();
    await_connected(&sale, 2);
    let since = Instant::now();
    signal(&second.child, "TERM");
    let mut third = decides_within(standby, Duration::from_millis(500), since, "cid");
    let mut second = second;
    assert!(second.child.wait().expect("it ends").success());
    stands(&third, "ann", &ann);

    // Paused: a zombie, which wakes up and must not say a word.
    let standby = sale.writer();
    await_connected(&sale, 2);
    let since = Instant::now();
    signal(&third.child, "STOP");
    let fourth = decides_within(standby, Duration::from_secs(5), since, "dan");
    stands(&fourth, "ann", &ann);
    let eve = token("eve");
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let headers = [
                ("authorization", &*format!("Bearer {eve}")),
                ("idempotency-key", "e"),
            ];
            common::ask(
                third.address,
                "POST",
                "/api/reserve",
                &headers,
                ONE.as_bytes(),
            )
        });
        signal(&third.child, "CONT");
        asking.join().expect("it asks")
    });
    // Its connection breaks off, or it says that it decides nothing.
    if let Ok(answer) = asked {
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    assert!(!third.child.wait().expect("it ends").success());
    let id = fourth
        .reserve(&eve, "e", ONE)
        .is(201)
        .text("reservation_id");
    stands(&fourth, "e", &(eve, id));
    assert!(fourth.terminate());
}

#[test]
fn a_standby_that_is_asked_to_end_does() {
    let sale = Sale::new();
    let writer = sale.writer().listens();
    let standby = sale.writer();
    await_connected(&sale, 2);
    assert!(standby.terminate());
    let ann = writer.reserves("ann");
    stands(&writer, "ann", &ann);
    assert!(writer.terminate());
}
