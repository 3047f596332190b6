//! Writers and standbys of one sale, whose log is in a real PostgreSQL: whoever dies, the next one goes on with every answer that
//! was given. `cargo test -p flash-sale --features postgres --test takeover`.

mod common;
#[path = "../../../tests/servers/mod.rs"]
#[expect(dead_code, reason = "it serves other tests too")]
mod servers;

use common::{
    Answer, ONE, Server, Starting, ask, await_standby, flash_sale, serve_shared, signal, token,
};
use std::time::{Duration, Instant};

struct Sale {
    _database: servers::Server,
    url: String,
}

const FLAGS: [&str; 8] = [
    "--sku",
    "SNEAKER=1000",
    // None yet.
    "--sku",
    "LACES=0",
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

const LACES: &str = r#"{"sku_id":"LACES","quantity":1}"#;

/// Asserts that the reservation stands, and that its key still gives it.
#[track_caller]
fn stands(server: &Server, user: &str, (token, id): &(String, String)) {
    let shown = server.reservation("GET", token, id).is(200);
    assert_eq!(shown.text("status"), "RESERVED");
    let again = server.reserve(token, user, ONE).is(201);
    assert_eq!(&again.text("reservation_id"), id);
}

/// Asserts that the key of a request for laces still gives its refusal.
#[track_caller]
fn is_refused_again(server: &Server, token: &str, refused: &Answer) {
    let again = server.reserve(token, "f", LACES).is(409);
    assert_eq!(again.body, refused.body);
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
    let fay = token("fay");
    let refused = first.reserve(&fay, "f", LACES);
    refused.is_problem(409, "sold_out");

    // Killed.
    let standby = sale.writer();
    await_standby(&sale.url);
    let since = Instant::now();
    first.kill();
    let second = decides_within(standby, Duration::from_millis(1_500), since, "bob");
    stands(&second, "ann", &ann);
    is_refused_again(&second, &fay, &refused);

    // Asked to end: it hands the role on.
    let standby = sale.writer();
    await_standby(&sale.url);
    let since = Instant::now();
    signal(&second.child, "TERM");
    let third = decides_within(standby, Duration::from_millis(500), since, "cid");
    let mut second = second;
    assert!(second.child.wait().expect("it ends").success());
    stands(&third, "ann", &ann);
    is_refused_again(&third, &fay, &refused);

    // Paused: a zombie, which wakes up and must not say a word.
    let standby = sale.writer();
    await_standby(&sale.url);
    let since = Instant::now();
    signal(&third.child, "STOP");
    let fourth = decides_within(standby, Duration::from_secs(5), since, "dan");
    stands(&fourth, "ann", &ann);
    // What the zombie would refuse is sold now; who was refused before stays so.
    let units = r#"{"units":5}"#;
    fourth.admin("products/LACES/restock", "r", units).is(200);
    is_refused_again(&fourth, &fay, &refused);
    let eve = token("eve");
    let asks = &|key, body: &'static str| {
        let bearer = format!("Bearer {eve}");
        let headers = [("authorization", &*bearer), ("idempotency-key", key)];
        ask(
            third.address,
            "POST",
            "/api/reserve",
            &headers,
            body.as_bytes(),
        )
    };
    let answers = std::thread::scope(|scope| {
        let asking =
            [("e", ONE), ("l", LACES)].map(|(key, body)| scope.spawn(move || asks(key, body)));
        signal(&third.child, "CONT");
        asking.map(|asking| asking.join().expect("it asks"))
    });
    // Its connections break off, or it says that it decides nothing.
    for answer in answers.into_iter().flatten() {
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    let (is_well, said) = third.ends();
    assert!(!is_well && said.contains("another writer"), "{said}");
    let id = fourth
        .reserve(&eve, "e", ONE)
        .is(201)
        .text("reservation_id");
    stands(&fourth, "e", &(eve.clone(), id));
    fourth.reserve(&eve, "l", LACES).is(201);
    assert!(fourth.terminate());
}

#[test]
fn a_standby_that_is_asked_to_end_does() {
    let sale = Sale::new();
    let writer = sale.writer().listens();
    let standby = sale.writer();
    await_standby(&sale.url);
    assert!(standby.terminate());
    let ann = writer.reserves("ann");
    stands(&writer, "ann", &ann);
    assert!(writer.terminate());
}
