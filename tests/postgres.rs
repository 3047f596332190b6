//! The PostgreSQL store against a real server: `cargo test --features postgres --test postgres`.

mod servers;

use servers::Server;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use stockade::postgres::{PostgresOptions, PostgresStore};
use stockade::store::conformance;

/// A schema of its own on a server that is shared with whatever tests run at the time; none of them hurts it.
struct Log {
    options: PostgresOptions,
    _server: Arc<Server>,
}

impl Log {
    fn new() -> Self {
        static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        static SCHEMAS: AtomicU32 = AtomicU32::new(0);
        let mut shared = SERVER.lock().expect("no test panicked here");
        let server = shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Server::start("postgres.sh", &[]));
            *shared = Arc::downgrade(&server);
            server
        });
        drop(shared);
        let mut options = PostgresOptions::new(url(server.port()));
        options.schema = format!("s{}", SCHEMAS.fetch_add(1, Ordering::Relaxed));
        PostgresStore::migrate(&options).expect("a new schema");
        Self {
            options,
            _server: server,
        }
    }

    fn store(&self) -> PostgresStore {
        PostgresStore::new(self.options.clone())
    }
}

fn url(port: u16) -> String {
    format!("postgres://stockade@127.0.0.1:{port}/stockade")
}

#[test]
fn the_postgres_store_is_a_store() {
    let _one_server_for_all = Log::new();
    let report = conformance::prove(|| {
        let log = Log::new();
        move || log.store()
    });
    assert!(report.is_ok(), "{report:?}");
}
