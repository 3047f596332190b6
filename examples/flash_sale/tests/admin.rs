//! What operators do over HTTP: restock, return, define, open, end; each under a key and with their token.

mod common;

use common::{ONE, Server, sale, token};

#[test]
fn operators_restock_return_and_end_under_a_key() {
    let (_dir, server) = sale(1, &[]);
    let ann = token("ann");
    let id = server
        .reserve(&ann, "k", ONE)
        .is(201)
        .text("reservation_id");
    server.checkout(&ann, &id, "card").is(200);
    let headers = [
        ("authorization", &*format!("Bearer {ann}")),
        ("idempotency-key", "x"),
    ];
    let path = "/api/admin/products/SNEAKER/restock";
    server
        .ask("POST", path, &headers, r#"{"units":5}"#)
        .is_problem(403, "admin_only");

    let units = r#"{"units":5,"reason":"delivery"}"#;
    for _ in 0..2 {
        let total = server
            .admin("products/SNEAKER/restock", "a1", units)
            .is(200);
        assert_eq!(total.json()["total"], 6, "the same key counts once");
    }
    server
        .admin("products/SNEAKER/restock", "a2", r#"{"units":-6}"#)
        .is_problem(409, "total_out_of_range");
    server
        .admin("products/SNEAKER/restock", "", units)
        .is_problem(400, "idempotency_key_missing");
    server
        .admin("products/SNEAKER/return", "a3", r#"{"units":2}"#)
        .is_problem(409, "exceeds_sold");
    let returned = server
        .admin(&format!("reservations/{id}/return"), "a4", "")
        .is(200);
    assert_eq!(returned.json()["returned"], 1);
    server.reserve(&ann, "k2", ONE).is(201);
    server
        .admin("products/SNEAKER/pause", "a5", r#"{"what":"everything"}"#)
        .is_problem(400, "bad_request");
    server.admin("products/SNEAKER/close", "a6", "").is(200);
    server
        .reserve(&token("bob"), "k", ONE)
        .is_problem(409, "not_open");
    server.admin("products/SNEAKER/end", "a7", "").is(200);
    server
        .admin("products/SNEAKER/dance", "a8", "")
        .is_problem(404, "not_found");
}

#[test]
fn operators_define_skus_once_and_open_them_when_they_like() {
    let (dir, server) = sale(1, &[]);
    let ann = token("ann");
    let headers = [
        ("authorization", &*format!("Bearer {ann}")),
        ("idempotency-key", "x"),
    ];
    let body = r#"{"sku_id":" BOOTS ","units":3,"hold_ms":60000,"per_user":2}"#;
    let path = "/api/admin/skus";
    server
        .ask("POST", path, &headers, body)
        .is_problem(403, "admin_only");
    server
        .admin("skus", "", body)
        .is_problem(400, "idempotency_key_missing");
    server.get(path).is_problem(405, "method_not_allowed");
    let two = r#"{"sku_id":"BOOTS","quantity":2}"#;
    server
        .reserve(&ann, "early", two)
        .is_problem(404, "unknown_sku");

    for key in ["d1", "d1", "another key"] {
        let defined = server.admin("skus", key, body).is(201).json();
        assert_eq!(
            (&defined["sku_id"], &defined["units"]),
            (&"BOOTS".into(), &3.into())
        );
    }
    let stock = server
        .get("/api/products/BOOTS/availability")
        .is(200)
        .json();
    assert_eq!(
        (&stock["available"], &stock["total"]),
        (&3.into(), &3.into())
    );
    server
        .reserve(&ann, "closed", two)
        .is_problem(409, "not_open");
    server.admin("products/BOOTS/open", "o1", "").is(200);
    let held = server.reserve(&ann, "k", two).is(201).json();
    assert_eq!(held["lines"][0]["sku_id"], "BOOTS");
    let seconds = held["expires_in_seconds"].as_f64().expect("a number");
    assert!((58.0..=60.0).contains(&seconds), "{seconds}");
    let limit = server.reserve(&ann, "k2", r#"{"sku_id":"BOOTS","quantity":1}"#);
    limit.is_problem(409, "user_limit");
    assert_eq!(limit.json()["max"], 2);
    let metrics = server.get("/metrics").is(200).body;
    assert!(
        metrics.contains("stock_units{sku=\"BOOTS\",state=\"reserved\"} 2"),
        "{metrics}"
    );

    let other = server.admin("skus", "d1", r#"{"sku_id":"BOOTS","units":4}"#);
    other.is_problem(409, "key_conflict");
    let differs = server.admin("skus", "d2", r#"{"sku_id":"BOOTS","units":4}"#);
    differs.is_problem(409, "sku_differs");
    assert_eq!(differs.json()["field"], "total");
    assert!(server.terminate());

    // It is in the journal like any other, and its sale is open.
    let server = Server::start(&dir.path().join("journal"), &[]);
    server
        .reserve(&token("bob"), "k", r#"{"sku_id":"BOOTS","quantity":1}"#)
        .is(201);
}

#[test]
fn a_definition_that_can_not_be_is_answered_with_what_is_wrong() {
    let (_dir, server) = sale(1, &[]);
    for (body, code) in [
        ("", "bad_json"),
        (r#"{"sku_id":"A"}"#, "bad_json"),
        (r#"{"sku_id":"A","units":-1}"#, "bad_json"),
        (r#"{"sku_id":"A","units":1,"hold":"2m"}"#, "bad_json"),
        (r#"{"sku_id":"  ","units":1}"#, "bad_request"),
        (r#"{"sku_id":"A","units":1,"hold_ms":0}"#, "bad_request"),
        (
            r#"{"sku_id":"A","units":1,"hold_ms":86400001}"#,
            "bad_request",
        ),
        (
            r#"{"sku_id":"A","units":281474976710657}"#,
            "quantity_invalid",
        ),
    ] {
        server.admin("skus", "k", body).is_problem(400, code);
    }
    server
        .get("/api/products/A/availability")
        .is_problem(404, "unknown_sku");
    // None of them took the key.
    let unlimited = r#"{"sku_id":"A","units":281474976710656,"per_user":0,"per_request":5}"#;
    server.admin("skus", "k", unlimited).is(201);
    server.admin("products/A/open", "o", "").is(200);
    let ann = token("ann");
    for key in ["1", "2"] {
        let five = r#"{"sku_id":"A","quantity":5}"#;
        server.reserve(&ann, key, five).is(201);
    }
    let six = server.reserve(&ann, "3", r#"{"sku_id":"A","quantity":6}"#);
    six.is_problem(409, "request_limit");
}

#[test]
fn operators_see_a_sku_with_its_rules_units_and_gates() {
    let (_dir, server) = sale(3, &["--hold", "90s", "--per-user", "0"]);
    let path = "/api/admin/skus/SNEAKER";
    server.get(path).is_problem(401, "token_missing");
    let ann = token("ann");
    let as_ann = [("authorization", &*format!("Bearer {ann}"))];
    server
        .ask("GET", path, &as_ann, "")
        .is_problem(403, "admin_only");
    server.sku("BOOTS").is_problem(404, "unknown_sku");
    server
        .admin("skus/SNEAKER", "k", "")
        .is_problem(405, "method_not_allowed");

    server.reserve(&ann, "k", ONE).is(201);
    server
        .admin("products/SNEAKER/restock", "r", r#"{"units":4}"#)
        .is(200);
    let pause = r#"{"what":"confirms"}"#;
    server.admin("products/SNEAKER/pause", "p", pause).is(200);
    let shown = serde_json::json!({
        "sku_id": "SNEAKER",
        "status": "OPEN",
        "sale": 1,
        "reservations_paused": false,
        "confirms_paused": true,
        "units": 3,
        "total": 7,
        "available": 6,
        "reserved": 1,
        "sold": 0,
        "hold_ms": 90_000,
        "per_user": 0,
        "per_request": 0,
        "opens_at": null,
        "closes_at": null,
    });
    assert_eq!(server.sku("SNEAKER").is(200).json(), shown);

    let boots = r#"{"sku_id":"BOOTS","units":3}"#;
    server.admin("skus", "d", boots).is(201);
    let gates = [
        ("", "NEVER_OPENED"),
        ("open", "OPEN"),
        ("close", "CLOSED"),
        ("end", "ENDED"),
    ];
    for (gate, status) in gates {
        if !gate.is_empty() {
            let path = format!("products/BOOTS/{gate}");
            server.admin(&path, gate, "").is(200);
        }
        assert_eq!(server.sku("BOOTS").is(200).text("status"), status);
    }
}
