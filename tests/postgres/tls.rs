//! Encrypted connections: to a server whose certificate is vouched for, and to no other.

use crate::servers::Server;
use crate::{PATIENCE, engine, open_sku, reserve};
use postgres::NoTls;
use std::time::Duration;
use stockade::engine::EngineError;
use stockade::postgres::{PostgresOptions, PostgresReads, PostgresStore};

#[test]
fn a_connection_is_encrypted_and_goes_to_a_server_that_is_vouched_for() {
    let server = Server::start("postgres.sh", &["ssl=on".into()]);
    let plain = format!("postgres://stockade@127.0.0.1:{}/stockade", server.port());
    let mut options = PostgresOptions::new(format!("{plain}?sslmode=require"));
    options.tls_roots = Some(server.dir().join("server/data/server.crt"));
    PostgresStore::migrate(&options).expect("a schema");
    let running = engine(&options).start().expect("it starts");
    let handle = running.handle();
    let sku = open_sku(&handle, "A", 10);
    let held = reserve(&handle, 1, sku).expect("a unit");
    let mut client = postgres::Client::connect(&plain, NoTls).expect("it takes others, too");
    let asks = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                WHERE application_name = 'stockade'";
    let row = client.query_one(asks, &[]).expect("a session");
    assert_eq!(row.get::<_, Option<bool>>(0), Some(true));
    let reads = PostgresReads::new(options.clone());
    let found = reads.reservation(held, handle.now()).expect("it reads");
    assert_eq!(found.map(|found| found.user), Some(1_u64.into()));
    assert!(running.shutdown(PATIENCE).is_clean);

    // The system's roots know nothing of it.
    options.tls_roots = None;
    options.open_within = Duration::ZERO;
    let refused = match engine(&options).start() {
        Err(error @ EngineError::Store(_)) => error.to_string(),
        other => panic!("{:?}", other.map(|_| "it trusts anybody")),
    };
    assert!(refused.to_lowercase().contains("certificate"), "{refused}");
    options.tls_roots = Some(server.dir().join("server/data/PG_VERSION"));
    let refused = PostgresStore::migrate(&options).expect_err("no certificate");
    assert!(
        refused.to_string().contains("PG_VERSION") || refused.to_string().contains("tls_roots"),
        "{refused}"
    );
}
