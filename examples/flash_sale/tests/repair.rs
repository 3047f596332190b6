//! What an operator does when a sale in a real PostgreSQL has halted: the one command that the halt names makes the next server
//! start. `cargo test -p flash-sale --features postgres --test repair`.

mod common;
#[path = "../../../tests/servers/mod.rs"]
#[expect(dead_code, reason = "it serves other tests too")]
mod servers;

use common::crowd::{Crowd, all_are_explained, tokens};
use common::{ONE, Server, await_standby, flash_sale, serve_shared};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use stockade::engine::{Engine, Handle};
use stockade::postgres::{PostgresOptions, PostgresStore};
use stockade::types::{
    DefineSku, Deposit, IdempotencyKey, SkuId, SkuName, Transfer, UserId, Withdraw,
};

/// Nobody is the last, and no hold lapses by itself.
const FLAGS: [&str; 8] = [
    "--sku",
    "SNEAKER=1000000",
    "--per-user",
    "0",
    "--payment-latency",
    "0s",
    "--hold",
    "10m",
];
const PATIENCE: Duration = Duration::from_secs(60);

struct Sale {
    database: servers::Server,
    url: String,
}

impl Sale {
    fn new() -> Self {
        let database = servers::Server::start("postgres.sh", &[]);
        let url = format!("postgres://stockade@127.0.0.1:{}/stockade", database.port());
        let init = flash_sale().args(["init", "--store", &url]).status();
        assert!(init.expect("the program starts").success());
        Self { database, url }
    }

    fn serves(&self) -> Server {
        Server::of(serve_shared(&self.url, &FLAGS))
    }

    /// A server that doesn't start says why.
    fn is_refused(&self) -> String {
        refusal_of(self.starts())
    }

    /// A server that is not expected to listen.
    fn starts(&self) -> Child {
        let mut server = serve_shared(&self.url, &FLAGS);
        let server = server.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        server.expect("the program starts")
    }

    /// A command that is told the store; whether it was done, and what it said.
    fn asks(&self, arguments: &[&str]) -> (bool, String) {
        let output = flash_sale()
            .args(arguments)
            .args(["--store", &self.url])
            .output();
        let output = output.expect("the program starts");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    #[track_caller]
    fn does(&self, arguments: &[&str]) -> String {
        let (is_done, said) = self.asks(arguments);
        assert!(is_done, "{arguments:?}: {said}");
        said
    }

    #[track_caller]
    fn sql(&self, sql: &str) -> String {
        let psql = Command::new("psql")
            .args(["-v", "ON_ERROR_STOP=1", "-Atc", sql, &self.url])
            .output();
        let psql = psql.expect("psql runs");
        let said = String::from_utf8_lossy(&psql.stderr).into_owned();
        assert!(psql.status.success(), "{sql}: {said}");
        String::from_utf8_lossy(&psql.stdout).trim().to_owned()
    }
}

/// The number that a command which was named asks for.
fn batch_named(text: &str) -> String {
    let (_, number) = text
        .split_once("--after-batch ")
        .unwrap_or_else(|| panic!("{text}"));
    let digits = number.chars().take_while(char::is_ascii_digit);
    digits.collect()
}

/// It ends by itself, and not in good order.
#[track_caller]
fn ends_badly(child: &mut Child) {
    let begun = Instant::now();
    let ended = loop {
        match child.try_wait().expect("ours") {
            Some(ended) => break ended,
            None if begun.elapsed() > PATIENCE => {
                child.kill().expect("ours");
                panic!("it still runs");
            }
            // A process that ends tells only who waits for it without end.
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(!ended.success());
}

/// Why a server ended that has not begun to listen.
#[track_caller]
fn refusal_of(mut child: Child) -> String {
    ends_badly(&mut child);
    let said = child.wait_with_output().expect("it ended").stderr;
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn rows_that_somebody_edited_halt_the_sale_and_repair_lets_it_go_on() {
    let sale = Sale::new();
    let server = sale.serves();
    let (ann, held) = server.reserves("ann");
    let (bob, bought) = server.reserves("bob");
    server.checkout(&bob, &bought, "card").is(200);
    let crowd = Crowd::start(&[server.address], "a", &tokens(6));
    crowd.hears(50);
    sale.sql("UPDATE stockade.inventory SET total = total + 5, available = available + 5");
    // The one that halts says why, and so does the next one.
    let (is_fine, why) = server.ends();
    assert!(!is_fine);
    let told = crowd.stop();
    for why in [why, sale.is_refused()] {
        assert!(
            why.contains("inventory row SNEAKER") && why.contains("flash-sale repair --store"),
            "{why}"
        );
    }
    // More damage, of all kinds.
    sale.sql(&format!(
        "UPDATE stockade.reservations SET status = 'EXPIRED' WHERE stockade.reservation_text(id) = '{bought}'"
    ));
    sale.sql(&format!(
        "DELETE FROM stockade.reservations WHERE stockade.reservation_text(id) = '{held}'"
    ));
    let shown = sale.does(&["repair"]);
    for part in [
        "inventory row SNEAKER: total 1000005, available ",
        " -> total 1000000, available ",
        "status EXPIRED -> status CONFIRMED",
        "missing ->",
        "3 rows differ",
        "--apply",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!sale.asks(&["audit"]).0, "a look changes nothing");
    sale.does(&["repair", "--apply"]);
    assert!(sale.does(&["audit"]).contains("all laws hold"));
    assert!(sale.does(&["repair"]).contains("0 rows differ"));
    let server = sale.serves();
    let shown = server.reservation("GET", &ann, &held).is(200);
    assert_eq!(shown.text("status"), "RESERVED");
    assert_eq!(
        server.reservation("GET", &bob, &bought).text("status"),
        "CONFIRMED"
    );
    all_are_explained(&server, &told);
    let crowd = Crowd::start(&[server.address], "b", &tokens(6));
    crowd.hears(50);
    all_are_explained(&server, &crowd.stop());
    assert!(server.terminate());
    assert!(sale.does(&["audit"]).contains("all laws hold"));
}

#[test]
fn a_backup_that_lacks_the_last_batches_halts_the_sale_until_resume_accepts_the_loss() {
    let mut sale = Sale::new();
    let server = sale.serves();
    let ann = server.reserves("ann");
    let crowd = Crowd::start(&[server.address], "a", &tokens(6));
    crowd.hears(50);
    let kept = crowd.stop();
    assert!(server.terminate());
    // The backup.
    sale.database.kill();
    let data = sale.database.dir().join("server/data");
    let backup = sale.database.dir().join("server/backup");
    copy(&data, &backup);
    sale.database.restart();
    await_ready(&sale);

    let server = sale.serves();
    let bob = server.reserves("bob");
    let standby = sale.starts();
    await_standby(&sale.url);

    // In mid-sale everything is lost but the backup, and what the standby knows.
    let crowd = Crowd::start(&[server.address], "b", &tokens(6));
    crowd.hears(50);
    sale.database.kill();
    server.kill();
    crowd.stop();
    std::fs::remove_dir_all(&data).expect("it is ours");
    copy(&backup, &data);
    sale.database.restart();
    let told = refusal_of(standby);
    assert!(told.contains("batches are missing"), "{told}");
    let why = sale.is_refused();
    let after = batch_named(&why);
    assert_eq!(after, batch_named(&told));
    assert!(why.contains("flash-sale resume --store"), "{why}");
    let (is_fine, said) = sale.asks(&["audit"]);
    assert!(!is_fine && said.contains("flash-sale resume"), "{said}");
    let (is_done, said) = sale.asks(&["repair", "--apply"]);
    assert!(!is_done && said.contains("flash-sale resume"), "{said}");
    let (is_done, said) = sale.asks(&["resume", "--after-batch", "100000"]);
    assert!(!is_done && said.contains("nothing was changed"), "{said}");

    let said = sale.does(&["resume", "--after-batch", &after]);
    assert!(said.contains("accepted"), "{said}");
    assert!(sale.does(&["audit"]).contains("all laws hold"));
    let server = sale.serves();
    let shown = server.reservation("GET", &ann.0, &ann.1).is(200);
    assert_eq!(shown.text("status"), "RESERVED");
    // What was lost is not known, and its key is free.
    assert_eq!(server.reservation("GET", &bob.0, &bob.1).status, 404);
    server.reserve(&bob.0, "bob", ONE).is(201);
    all_are_explained(&server, &kept);
    assert!(server.terminate());
    assert!(sale.does(&["audit"]).contains("all laws hold"));
}

#[test]
fn a_log_whose_end_was_deleted_is_gone_on_with_after_resume() {
    let sale = Sale::new();
    let server = sale.serves();
    let ann = server.reserves("ann");
    let last = sale.sql("SELECT max(batch) FROM stockade.events");
    let bob = server.reserves("bob");
    assert!(server.terminate());
    sale.sql(&format!(
        "DELETE FROM stockade.batches WHERE number > {last}"
    ));
    let why = sale.is_refused();
    assert_eq!(batch_named(&why), last, "{why}");
    let (is_done, said) = sale.asks(&["repair"]);
    assert!(!is_done && batch_named(&said) == last, "{said}");
    sale.does(&["resume", "--after-batch", &last]);
    assert!(sale.does(&["audit"]).contains("all laws hold"));
    let server = sale.serves();
    server.reservation("GET", &ann.0, &ann.1).is(200);
    assert_eq!(server.reservation("GET", &bob.0, &bob.1).status, 404);
    assert!(server.terminate());
}

#[test]
fn the_last_orders_beyond_a_total_are_listed() {
    let sale = Sale::new();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let both = [sale.serves(), Server::start(&journal, &FLAGS)];
    let last = both.map(|server| {
        let bought = ["ann", "bob", "cid"].map(|user| {
            let (token, id) = server.reserves(user);
            server.checkout(&token, &id, "card").is(200);
            id
        });
        server.reserves("dan");
        assert!(server.terminate());
        bought
    });
    let oversold = |total: &str| {
        let arguments = ["audit", "--oversold", "--sku", "SNEAKER", "--total", total];
        let rows = sale.does(&arguments);
        let files = flash_sale().args(arguments).arg(&journal).output();
        let files = files.expect("the program starts");
        assert!(files.status.success(), "{files:?}");
        [rows, String::from_utf8_lossy(&files.stdout).into_owned()]
    };
    for (said, bought) in oversold("1").iter().zip(&last) {
        let orders: Vec<&str> = said
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(orders[..2], bought[1..], "{said}");
        assert!(
            said.contains("3 sold, 2 beyond 1, in the last 2 orders"),
            "{said}"
        );
    }
    for said in oversold("3") {
        assert!(said.starts_with("none\n"), "{said}");
    }
}

/// A writer of one pool.
fn pool(sale: &Sale, shard: u16) -> (Engine, Handle) {
    let store = PostgresStore::new(PostgresOptions::new(sale.url.clone()));
    let engine = Engine::builder().store(store).shard(shard).start();
    let engine = engine.expect("it starts");
    let handle = engine.handle();
    (engine, handle)
}

#[test]
fn an_audit_of_pools_finds_units_that_one_of_them_never_sent() {
    let sale = Sale::new();
    let admin = UserId(1);
    let key = |n: u128| IdempotencyKey::new(n).expect("not zero");
    let name = || SkuName::new("SNEAKER").expect("a name");
    let transfer = Transfer {
        sku: SkuId(0),
        from: 1,
        to: 2,
        number: 1,
        units: 4,
    };
    let (one, from) = pool(&sale, 1);
    let (two, to) = pool(&sale, 2);
    for (handle, units) in [(&from, 10), (&to, 20)] {
        let define = handle.define_sku(DefineSku::new(admin, name(), units));
        define.expect("room").wait().expect("defined");
    }
    let defined = sale.sql("SELECT max(batch) FROM stockade.events WHERE shard = 1");
    let leave = Withdraw::new(admin, key(1), transfer).expect("can be");
    assert_eq!(from.withdraw(leave).expect("room").wait(), Ok(4));
    let said = sale.does(&["audit"]);
    let row = |total: &str| format!("{:<24} {total:>12}", "SNEAKER");
    assert!(said.contains(&row("26")), "{said}");
    let in_flight = "SNEAKER: 4 units in flight from shard 1 to shard 2";
    assert!(said.contains(in_flight), "{said}");
    let come = Deposit::new(admin, key(2), transfer).expect("can be");
    assert_eq!(to.deposit(come).expect("room").wait(), Ok(4));
    let said = sale.does(&["audit"]);
    assert!(said.contains(&row("30")), "{said}");
    assert!(!said.contains("in flight"), "{said}");
    for engine in [one, two] {
        assert!(engine.shutdown(PATIENCE).is_clean);
    }
    // The sender loses its tail, and an operator accepts that: four units are there twice.
    sale.sql(&format!(
        "DELETE FROM stockade.batches WHERE shard = 1 AND number > {defined}"
    ));
    sale.does(&["resume", "--shard", "1", "--after-batch", &defined]);
    let (is_fine, said) = sale.asks(&["audit"]);
    assert!(
        !is_fine && said.contains("SNEAKER: L2: shard 1 sent 0 transfers"),
        "{said}"
    );
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.expect("cp runs").success());
}

fn await_ready(sale: &Sale) {
    let begun = Instant::now();
    while !Command::new("psql")
        .args(["-Atc", "SELECT 1", &sale.url])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("psql runs")
        .success()
    {
        assert!(begun.elapsed() < PATIENCE, "it isn't ready");
        // Another process tells nobody.
        std::thread::sleep(Duration::from_millis(20));
    }
}
