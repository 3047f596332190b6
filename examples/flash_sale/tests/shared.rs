//! A sale on a real PostgreSQL with a real Redis beside it: what other programs read there, and what happens when Redis is gone.
//! `cargo test -p flash-sale --features postgres,redis --test shared`.

mod common;
#[path = "../../../tests/servers/mod.rs"]
#[expect(dead_code, reason = "it serves other tests too")]
mod servers;

use common::{Server, becomes, flash_sale, said, serve_shared};

#[test]
fn redis_and_the_tables_say_what_the_sale_says() {
    let database = servers::Server::start("postgres.sh", &[]);
    let mut redis = servers::Server::start("redis.sh", &[]);
    let (store, port) = (
        format!("postgres://stockade@127.0.0.1:{}/stockade", database.port()),
        redis.port().to_string(),
    );
    let cache = format!("redis://127.0.0.1:{port}");
    let init = flash_sale().args(["init", "--store", &store]).status();
    assert!(init.expect("the program starts").success());
    let flags = [
        "--sku",
        "SNEAKER=100",
        "--payment-latency",
        "0s",
        "--cache",
        &cache,
    ];
    let server = Server::of(serve_shared(&store, &flags));
    let in_redis = |field: &str| {
        said(
            "redis-cli",
            &["-p", &port, "HGET", "stock:{SNEAKER}", field],
        )
    };
    let in_rows = |column: &str| {
        let asks = format!("SELECT {column} FROM stockade.inventory WHERE sku_id = 'SNEAKER'");
        said("psql", &["-Atc", &asks, &store])
    };

    let (ann, held) = server.reserves("ann");
    let (bob, bought) = server.reserves("bob");
    server.checkout(&bob, &bought, "card").is(200);
    becomes("available in Redis", "98", || in_redis("available"));
    becomes("sold in Redis", "1", || in_redis("sold"));
    assert_eq!(
        (in_rows("reserved"), in_rows("sold")),
        ("1".into(), "1".into())
    );
    let key = format!("reservation:{{{held}}}");
    becomes("the hold in Redis", "1", || {
        said("redis-cli", &["-p", &port, "EXISTS", &key])
    });

    // Without Redis the sale goes on; when it is back it says what is so.
    redis.kill();
    server.reservation("DELETE", &ann, &held).is(200);
    let _cid = server.reserves("cid");
    redis.restart();
    becomes("available in Redis", "98", || in_redis("available"));
    becomes("reserved in Redis", "1", || in_redis("reserved"));

    // Audited while it runs, and after it ended; a row that somebody edits is named.
    let audit = || {
        let audit = flash_sale().args(["audit", "--store", &store]).output();
        let audit = audit.expect("the program starts");
        let said = String::from_utf8_lossy(&audit.stdout).into_owned();
        (audit.status.success(), said)
    };
    let (is_fine, told) = audit();
    assert!(is_fine && told.contains("all laws hold"), "{told}");
    assert!(server.terminate());
    assert!(audit().0);
    let edits = "UPDATE stockade.inventory SET available = available - 1, sold = sold + 1";
    assert_eq!(said("psql", &["-Atc", edits, &store]), "UPDATE 1");
    let (is_fine, told) = audit();
    assert!(!is_fine && told.contains("inventory row SNEAKER"), "{told}");
    let revives = "UPDATE stockade.reservations SET status = 'RESERVED', ended_at = NULL WHERE status = 'RELEASED'";
    assert_eq!(said("psql", &["-Atc", revives, &store]), "UPDATE 1");
    let (is_fine, told) = audit();
    assert!(
        !is_fine && told.contains("is RESERVED, the log says RELEASED"),
        "{told}"
    );
    // One that has ended is a row like any other.
    for (edits, found) in [
        (
            "UPDATE stockade.reservations SET status = 'EXPIRED' WHERE status = 'CONFIRMED'",
            "is EXPIRED, the log says CONFIRMED",
        ),
        (
            "DELETE FROM stockade.reservations WHERE status = 'EXPIRED'",
            "is missing, the log says CONFIRMED",
        ),
    ] {
        let is_done = said("psql", &["-Atc", edits, &store]);
        assert!(is_done.ends_with(" 1"), "{edits}: {is_done}");
        let (is_fine, told) = audit();
        assert!(!is_fine && told.contains(found), "{edits}: {told}");
    }
}
