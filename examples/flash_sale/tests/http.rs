//! The sale over real HTTP: what each status means, and that bad input is answered rather than crashed on.

mod common;

use common::{ONE, Server, becomes, flash_sale, sale, token, token_valid};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

#[test]
fn a_unit_is_reserved_paid_and_sold() {
    let (_dir, server) = sale(2, &[]);
    let ann = token("ann");
    let reserved = server.reserve(&ann, "k", ONE).is(201);
    let json = reserved.json();
    assert_eq!(json["status"], "RESERVED");
    assert_eq!(json["lines"][0]["sku_id"], "SNEAKER");
    let seconds = json["expires_in_seconds"].as_f64().expect("a number");
    assert!((118.0..=120.0).contains(&seconds), "{seconds}");
    assert!(
        json["expires_at"]
            .as_str()
            .is_some_and(|at| at.ends_with('Z'))
    );
    let id = reserved.text("reservation_id");

    let stock = server
        .get("/api/products/SNEAKER/availability")
        .is(200)
        .json();
    for (member, expected) in [("available", 1), ("reserved", 1), ("sold", 0), ("total", 2)] {
        assert_eq!(stock[member], expected, "{stock}");
    }
    assert!(stock["sequence"].is_u64() && stock["as_of"].is_string());

    let order = server.checkout(&ann, &id, "card").is(200);
    assert_eq!(order.json()["status"], "CONFIRMED");
    let again = server.checkout(&ann, &id, "card").is(200);
    assert_eq!(
        order.body, again.body,
        "the same payment gives the same order"
    );
    server
        .checkout(&ann, &id, "another card")
        .is_problem(409, "confirmed");
    let shown = server.reservation("GET", &ann, &id).is(200).json();
    assert_eq!(shown["status"], "CONFIRMED");
}

#[test]
fn the_same_key_gives_the_same_answer_and_another_payload_is_named() {
    let (_dir, server) = sale(5, &["--per-user", "3"]);
    let ann = token("ann");
    let first = server
        .reserve(&ann, "k", ONE)
        .is(201)
        .text("reservation_id");
    let again = server
        .reserve(&ann, "k", ONE)
        .is(201)
        .text("reservation_id");
    assert_eq!(first, again);
    let other = server.reserve(&ann, "k", r#"{"sku_id":"SNEAKER","quantity":2}"#);
    other.is_problem(409, "key_conflict");
    assert_eq!(other.json()["field"], "lines");
    let bob = server.reserve(&token("bob"), "k", ONE).is(201);
    assert_ne!(
        bob.text("reservation_id"),
        first,
        "a key belongs to its user"
    );
}

#[test]
fn each_reason_for_a_refusal_has_its_code() {
    let (_dir, server) = sale(2, &["--closed"]);
    let (ann, bob, eve) = (token("ann"), token("bob"), token("eve"));
    server
        .reserve(&ann, "early", ONE)
        .is_problem(409, "not_open");
    server.admin("products/SNEAKER/open", "o1", "").is(200);
    server.admin("products/LACES/open", "o2", "").is(200);
    let held = server
        .reserve(&ann, "k1", ONE)
        .is(201)
        .text("reservation_id");
    let limit = server.reserve(&ann, "k2", ONE);
    limit.is_problem(409, "user_limit");
    assert_eq!(limit.json()["max"], 1);
    server.reserve(&bob, "k", ONE).is(201);
    let sold_out = server.reserve(&eve, "k", ONE);
    sold_out.is_problem(409, "sold_out");
    assert_eq!(sold_out.json()["sku_id"], "SNEAKER");
    assert_eq!(sold_out.json()["lapsing"], 2);
    let cart = r#"{"lines":[{"sku_id":"LACES","quantity":1},{"sku_id":"SNEAKER","quantity":1}]}"#;
    let sold_out = server.reserve(&eve, "cart", cart);
    sold_out.is_problem(409, "sold_out");
    assert_eq!(sold_out.json()["sku_id"], "SNEAKER", "the line that fails");
    let laces = server.get("/api/products/LACES/availability").json();
    assert_eq!(laces["reserved"], 0, "all lines or none");

    let pause = r#"{"what":"reservations","reason":"recount"}"#;
    server.admin("products/LACES/pause", "p", pause).is(200);
    server
        .reserve(&eve, "laces", r#"{"sku_id":"LACES","quantity":1}"#)
        .is_problem(409, "paused");
    server.admin("products/LACES/resume", "r", pause).is(200);
    server
        .reserve(&eve, "laces", r#"{"sku_id":"LACES","quantity":1}"#)
        .is(201);

    server.reservation("DELETE", &ann, &held).is(200);
    server.reservation("DELETE", &ann, &held).is(200);
    server
        .checkout(&ann, &held, "card")
        .is_problem(410, "released");
}

#[test]
fn a_declined_or_silent_payment_keeps_the_hold_and_a_lapsed_hold_is_gone() {
    let (_dir, server) = sale(2, &["--hold", "3s"]);
    let ann = token("ann");
    let id = server
        .reserve(&ann, "k", ONE)
        .is(201)
        .text("reservation_id");
    server
        .checkout(&ann, &id, "decline")
        .is_problem(402, "payment_declined");
    let shown = server.reservation("GET", &ann, &id).is(200).json();
    assert_eq!(shown["status"], "RESERVED");
    server.checkout(&ann, &id, "card").is(200);

    let bob = token("bob");
    let id = server
        .reserve(&bob, "k", ONE)
        .is(201)
        .text("reservation_id");
    server
        .checkout(&bob, &id, "timeout")
        .is_problem(504, "payment_timeout");
    // The hold's deadline has to pass: time is what is tested.
    std::thread::sleep(Duration::from_secs(4));
    server
        .checkout(&bob, &id, "card")
        .is_problem(410, "expired");
    let shown = server.reservation("GET", &bob, &id).is(200).json();
    assert_eq!(shown["status"], "EXPIRED");
    let stock = server.get("/api/products/SNEAKER/availability").json();
    assert_eq!(stock["available"], 1, "its unit is on sale again: {stock}");
}

#[test]
fn a_buyer_who_leaves_while_he_pays_has_bought() {
    let (dir, server) = sale(3, &[]);
    let (ann, hers) = server.reserves("ann");
    server.leaves_checkout(&ann, &hers, "slow card");
    becomes("her order", "CONFIRMED", || server.status_of(&ann, &hers));

    // Also from a server that is asked to end.
    let (bob, his) = server.reserves("bob");
    server.leaves_checkout(&bob, &his, "slow card");
    assert!(server.terminate());
    let server = Server::start(&dir.path().join("journal"), &["--sku", "SNEAKER=3"]);
    assert_eq!(server.status_of(&bob, &his), "CONFIRMED");
}

#[test]
fn reservations_are_their_owners_only() {
    let (_dir, server) = sale(2, &[]);
    let (ann, eve) = (token("ann"), token("eve"));
    let id = server
        .reserve(&ann, "k", ONE)
        .is(201)
        .text("reservation_id");
    server
        .reservation("GET", &eve, &id)
        .is_problem(403, "not_owner");
    server
        .reservation("DELETE", &eve, &id)
        .is_problem(403, "not_owner");
    server
        .checkout(&eve, &id, "card")
        .is_problem(403, "not_owner");
    let unknown = "res-00000000ZZZZZ";
    server
        .reservation("GET", &ann, unknown)
        .is_problem(404, "unknown_reservation");
    server
        .reservation("GET", &ann, "7")
        .is_problem(404, "unknown_reservation");
    server
        .get(&format!("/api/reservations/{id}"))
        .is_problem(401, "token_missing");
}

#[test]
fn tokens_that_are_forged_expired_or_damaged_are_refused() {
    let (_dir, server) = sale(2, &[]);
    let expired = token_valid("ann", "0s");
    let mut forged = token("ann");
    let at = forged.len() - 10;
    let other = if forged[at..].starts_with('A') {
        "B"
    } else {
        "A"
    };
    forged.replace_range(at..=at, other);
    // Tokens count whole seconds: only time makes one expire.
    std::thread::sleep(Duration::from_millis(1_100));
    server
        .reserve(&expired, "k", ONE)
        .is_problem(401, "token_expired");
    server
        .reserve(&forged, "k", ONE)
        .is_problem(401, "token_invalid");
    server
        .reserve("nonsense", "k", ONE)
        .is_problem(401, "token_invalid");
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJhbm4iLCJleHAiOjk5OTk5OTk5OTl9.";
    server
        .reserve(none, "k", ONE)
        .is_problem(401, "token_invalid");
    let answer = server.ask("POST", "/api/reserve", &[("idempotency-key", "k")], ONE);
    answer.is_problem(401, "token_missing");
    assert!(
        answer
            .head
            .to_lowercase()
            .contains("www-authenticate: bearer")
    );
}

#[test]
fn bad_carts_are_answered_with_what_is_wrong() {
    let (_dir, server) = sale(2, &[]);
    let ann = token("ann");
    let long: Vec<String> = (0..5_000)
        .map(|_| r#"{"sku_id":"LACES","quantity":1}"#.to_owned())
        .collect();
    let long = format!(r#"{{"lines":[{}]}}"#, long.join(","));
    for (body, status, code) in [
        (
            r#"{"sku_id":"SNEAKER","quantity":0}"#,
            400,
            "quantity_invalid",
        ),
        (
            r#"{"sku_id":"SNEAKER","quantity":-1}"#,
            400,
            "quantity_invalid",
        ),
        (
            r#"{"sku_id":"SNEAKER","quantity":2147483648}"#,
            400,
            "quantity_invalid",
        ),
        (
            r#"{"sku_id":"SNEAKER","quantity":99999999999999999999}"#,
            400,
            "bad_json",
        ),
        (r#"{"sku_id":"SNEAKER","quantity":1.5}"#, 400, "bad_json"),
        (r#"{"sku_id":"SNEAKER","quantity":"1"}"#, 400, "bad_json"),
        (r#"{"sku_id":"SNEAKER"}"#, 400, "bad_request"),
        (
            r#"{"sku_id":"SNEAKER","quantity":1,"lines":[]}"#,
            400,
            "bad_request",
        ),
        ("{}", 400, "bad_request"),
        ("", 400, "bad_request"),
        ("[]", 400, "bad_json"),
        ("{\"sku_id\":", 400, "bad_json"),
        (r#"{"lines":[]}"#, 400, "cart_invalid"),
        (
            r#"{"lines":[{"sku_id":"LACES","quantity":2147483647},{"sku_id":"LACES","quantity":1}]}"#,
            400,
            "cart_invalid",
        ),
        (&long, 400, "cart_invalid"),
        (r#"{"sku_id":"NOPE","quantity":1}"#, 404, "unknown_sku"),
    ] {
        server.reserve(&ann, "k", body).is_problem(status, code);
    }
    let huge = "x".repeat(10_000_000);
    server
        .reserve(&ann, "k", &huge)
        .is_problem(413, "body_too_large");
    server
        .reserve(&ann, "", ONE)
        .is_problem(400, "idempotency_key_missing");
    let long_key = "k".repeat(300);
    server
        .reserve(&ann, &long_key, ONE)
        .is_problem(400, "idempotency_key_missing");
    server.reserve(&ann, "k", ONE).is(201);
    server
        .checkout(&ann, "res-1", "card")
        .is_problem(404, "unknown_reservation");
    let bearer = format!("Bearer {ann}");
    let headers = [("authorization", bearer.as_str())];
    server
        .ask("POST", "/api/checkout", &headers, "{}")
        .is_problem(400, "bad_json");
}

#[test]
fn unknown_addresses_and_methods_are_told_apart() {
    let (_dir, server) = sale(2, &[]);
    server.get("/").is_problem(404, "not_found");
    server
        .get("/api/products/NOPE/availability")
        .is_problem(404, "unknown_sku");
    server
        .get("/api/products/%FF/availability")
        .is_problem(404, "not_found");
    let answer = server.ask("PUT", "/api/reserve", &[], "");
    answer.is_problem(405, "method_not_allowed");
    assert!(answer.head.to_lowercase().contains("allow: post"));
    server.get("/livez").is(200);
    server.get("/readyz").is(200);
    let metrics = server.get("/metrics").is(200).body;
    for expected in [
        "oversell_count 0",
        "stock_units{sku=\"SNEAKER\",state=\"total\"} 2",
    ] {
        assert!(metrics.contains(expected), "{metrics}");
    }
}

#[test]
fn the_depletion_rate_follows_the_sale() {
    let (_dir, server) = sale(9, &[]);
    let rate = || {
        let metrics = server.get("/metrics").is(200).body;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("depletion_rate{sku=\"SNEAKER\"} "));
        let rate: f64 = line.and_then(|rate| rate.parse().ok()).expect("a rate");
        rate
    };
    assert!(rate().abs() < 1e-9);
    server.reserve(&token("ann"), "k", ONE).is(201);
    let end = Instant::now() + Duration::from_secs(10);
    while rate() <= 0.0 {
        assert!(Instant::now() < end, "no unit is seen to leave");
    }
    assert!(rate() <= 1.1, "one unit, one second at least");
}

#[test]
fn a_stream_tells_every_change_of_stock() {
    let (_dir, server) = sale(7, &[]);
    let mut stream = TcpStream::connect(server.address).expect("connects");
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("sets");
    stream
        .write_all(b"GET /api/products/SNEAKER/stream HTTP/1.1\r\nhost: t\r\n\r\n")
        .expect("writes");
    let mut text = String::new();
    let mut until = |what: &str| {
        let mut bytes = [0; 4_096];
        let end = Instant::now() + Duration::from_secs(5);
        while !text.contains(what) {
            assert!(Instant::now() < end, "no {what} in {text}");
            let count = stream.read(&mut bytes).expect("reads");
            text += &String::from_utf8_lossy(&bytes[..count]);
        }
    };
    until("\"available\":7");
    server.reserve(&token("ann"), "k", ONE).is(201);
    until("\"available\":6");
}

#[test]
fn a_body_that_never_comes_is_cut_off() {
    let (_dir, server) = sale(7, &[]);
    let mut stream = TcpStream::connect(server.address).expect("connects");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("sets");
    let head = format!(
        "POST /api/reserve HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {}\r\nidempotency-key: k\r\ncontent-length: 50\r\n\r\n{{",
        token("ann")
    );
    stream.write_all(head.as_bytes()).expect("writes");
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .expect("an answer and the end");
    assert!(text.starts_with("HTTP/1.1 408"), "{text}");
}

#[test]
fn a_server_continues_what_it_had_and_never_applies_a_sku_twice() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let server = Server::start(&journal, &["--sku", "SNEAKER=3"]);
    let ann = token("ann");
    let id = server
        .reserve(&ann, "k", ONE)
        .is(201)
        .text("reservation_id");
    assert!(server.terminate(), "a clean end");
    let server = Server::start(&journal, &["--sku", "SNEAKER=999"]);
    let stock = server.get("/api/products/SNEAKER/availability").json();
    assert_eq!(
        (&stock["total"], &stock["reserved"]),
        (&3.into(), &1.into())
    );
    let again = server
        .reserve(&ann, "k", ONE)
        .is(201)
        .text("reservation_id");
    assert_eq!(again, id, "the key is remembered");
    server.checkout(&ann, &id, "card").is(200);
    assert!(server.terminate());
    let audit = flash_sale()
        .arg("audit")
        .arg("--json")
        .arg(&journal)
        .output()
        .expect("starts");
    assert!(audit.status.success());
    let audit: serde_json::Value = serde_json::from_slice(&audit.stdout).expect("JSON");
    assert_eq!(
        (&audit["ok"], &audit["skus"][0]["sold"]),
        (&true.into(), &1.into())
    );
}

#[test]
fn a_server_that_cannot_start_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let run = |command: &mut std::process::Command| {
        let output = command.output().expect("starts");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let serve = |flags: &[&str]| {
        let mut command = flash_sale();
        command.arg("serve").arg("--data").arg(&journal).args(flags);
        command
    };
    let error = run(serve(&["--listen", "127.0.0.1:0"]).env_remove("FLASH_SALE_JWT_SECRET"));
    assert!(error.contains("FLASH_SALE_JWT_SECRET"), "{error}");
    let error = run(&mut serve(&["--listen", "0.0.0.0:0", "--insecure-dev"]));
    assert!(error.contains("loopback"), "{error}");
    let error = run(&mut serve(&["--listen", "127.0.0.1:0"]));
    assert!(error.contains("--sku"), "{error}");
    let error = run(&mut serve(&[
        "--listen",
        "127.0.0.1:0",
        "--sku",
        "A=1",
        "--hold",
        "0s",
    ]));
    assert!(error.contains("--hold"), "{error}");

    let server = Server::start(&journal, &["--sku", "A=1"]);
    let error = run(&mut serve(&["--listen", "127.0.0.1:0", "--sku", "A=1"]));
    assert!(error.contains("another writer"), "{error}");
    drop(server);

    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).expect("makes it");
    std::fs::write(foreign.join("thesis.txt"), "chapter 1").expect("writes");
    let mut command = flash_sale();
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--sku", "A=1", "--data"])
        .arg(&foreign);
    let error = run(&mut command);
    assert!(error.contains("thesis.txt"), "{error}");
    let error = run(flash_sale().arg("audit").arg(dir.path().join("nowhere")));
    assert!(error.contains("nowhere"), "{error}");
}

#[test]
fn an_audit_of_a_damaged_journal_fails_and_says_where() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let server = Server::start(&journal, &["--sku", "SNEAKER=50"]);
    for user in ["a", "b", "c"] {
        server.reserve(&token(user), "k", ONE).is(201);
    }
    assert!(server.terminate());
    let segment = journal.join("segment-0000000001.log");
    let mut bytes = std::fs::read(&segment).expect("reads");
    let used = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .expect("not empty");
    bytes[used / 2] ^= 1;
    std::fs::write(&segment, bytes).expect("writes");
    let audit = flash_sale()
        .arg("audit")
        .arg(&journal)
        .output()
        .expect("starts");
    assert!(!audit.status.success());
    let text = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert!(text.contains("segment-0000000001.log"), "{text}");
}
