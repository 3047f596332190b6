//! The whole distributed sale as `system.sh` starts it: 10,000 units, far more buyers through two API nodes than there are units,
//! and a writer that is killed in the middle. `SALE_RATE=25000 SALE_CONNECTIONS=8000 SALE_WARM=20 cargo test --release -p
//! flash-sale --features kafka --test system ten_thousand -- --nocapture` tells what it met. `SALE_KILLS=0` leaves the writer
//! alive; `SALE_SECONDS` and `SALE_HOLD` say for how long.

use crate::common::{ask, becomes};
use crate::places::Places;
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use stockade::types::ReservationId;

const UNITS: u64 = 10_000;
const STARTS_WITHIN: Duration = Duration::from_secs(120);
/// So soon after the last commit all say the same.
const AGREE_WITHIN: f64 = 5.0;

/// What `system.sh` runs; ended with it.
struct Running {
    script: Child,
    dir: tempfile::TempDir,
    said: HashMap<String, String>,
}

impl Running {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("stockade-").tempdir();
        let dir = dir.expect("a temporary folder");
        // A server that runs as another user must get through.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("the folder is ours");
        let mut running = Self {
            script: script(dir.path()),
            dir,
            said: HashMap::new(),
        };
        running.await_places();
        running
    }

    /// Ends all of it, and runs it on what that left.
    fn again(&mut self) {
        self.end();
        assert!(!self.path("places").exists(), "nothing is there any more");
        self.script = script(self.dir.path());
        self.await_places();
    }

    fn end(&mut self) {
        // One that didn't start has ended by itself.
        if let Ok(None) = self.script.try_wait() {
            crate::common::signal(&self.script, "TERM");
        }
        let _ = self.script.wait();
    }

    fn await_places(&mut self) {
        let begun = Instant::now();
        let places = loop {
            if let Ok(places) = std::fs::read_to_string(self.path("places")) {
                break places;
            }
            let ended = self.script.try_wait().ok().flatten();
            assert!(
                ended.is_none() && begun.elapsed() < STARTS_WITHIN,
                "{ended:?}: {}",
                std::fs::read_to_string(self.path("system.log")).unwrap_or_default()
            );
            // A script tells nobody.
            std::thread::sleep(Duration::from_millis(50));
        };
        let places = places.lines().filter_map(|line| line.split_once('='));
        self.said = places
            .map(|(name, place)| (name.into(), place.into()))
            .collect();
    }

    /// Where an API node is.
    fn node(&self, name: &str) -> SocketAddr {
        let address = self.said[name].trim_start_matches("http://").parse();
        address.expect("an address")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Kills a process of it, as `kill -9`.
    fn kill(&self, name: &str) {
        let pid = std::fs::read_to_string(self.path(&format!("{name}.pid"))).expect("it runs");
        let killed = Command::new("kill").args(["-9", pid.trim()]).status();
        assert!(killed.expect("kill runs").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn script(dir: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("system.log"));
    let log = log.expect("a log");
    let script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("system.sh"))
        .arg(dir)
        .args(["--sku", "SNEAKER=10000", "--sku", "WARM-UP=1000000"])
        // Whoever gave up leaves units behind, which lapse and are sold again.
        .args(["--hold", &format!("{}s", setting("SALE_HOLD", 8))])
        .env("FLASH_SALE", env!("CARGO_BIN_EXE_flash-sale"))
        .stdout(log.try_clone().expect("a second handle of it"))
        .stderr(log)
        .spawn();
    script.expect("bash runs")
}

fn setting(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.and_then(|set| set.parse().ok()).unwrap_or(default)
}

fn available(node: SocketAddr) -> u64 {
    let path = "/api/products/SNEAKER/availability";
    let stock = ask(node, "GET", path, &[], b"").expect("an answer").is(200);
    stock.json()["available"].as_u64().expect("a number")
}

/// Reservations and checkouts that a node has shed, as it counts its answers.
pub(crate) fn shed_by(node: SocketAddr) -> u64 {
    let metrics = ask(node, "GET", "/metrics", &[], b"").expect("an answer");
    let count = |line: &str| {
        let (labels, count) = line.strip_prefix("http_requests_total")?.rsplit_once(' ')?;
        let one_of = |name: &str, values: [&str; 2]| {
            let values = values.map(|value| format!("{name}=\"{value}\""));
            values.iter().any(|value| labels.contains(value))
        };
        let is_shed = one_of("route", ["reserve", "checkout"]) && one_of("status", ["429", "503"]);
        is_shed.then(|| count.parse::<u64>().expect("a count"))
    };
    metrics.body.lines().filter_map(count).sum()
}

/// Asserts that of those that nodes have shed a load has counted all, but for answers that came too late for it. Gives how many.
#[track_caller]
pub(crate) fn is_counted(shed: u64, outcome: &Value) -> u64 {
    let failures = outcome["failures"].as_object();
    let failures = failures.expect("what failed, and how often");
    let met = |begins: &str| -> u64 {
        let of_them = failures.iter().filter(|(what, _)| what.starts_with(begins));
        of_them.filter_map(|(_, count)| count.as_u64()).sum()
    };
    let counted = met("429 ") + met("503 ");
    let may_be = counted..=counted + met("timed out");
    assert!(
        may_be.contains(&shed),
        "{shed} were shed, met: {failures:?}"
    );
    counted
}

#[test]
fn ten_thousand_units_are_sold_once_though_the_writer_is_killed() {
    let (rate, seconds) = (setting("SALE_RATE", 5_000), setting("SALE_SECONDS", 20));
    let _alone = crate::alone();
    let mut system = Running::start();
    let place = |name: &str| system.said[name].clone();
    let nodes = [place("node_0"), place("node_1")];
    let addresses = ["node_0", "node_1"].map(|name| system.node(name));
    let receipts = system.path("receipts");
    let connections = setting("SALE_CONNECTIONS", 1_024);
    let load = |seconds: u64| {
        let mut load = Command::new(env!("CARGO_BIN_EXE_flash-sale"));
        load.args(["load", "--insecure-dev", "--json"])
            .args(["--target", &nodes[0], "--target", &nodes[1]])
            .args(["--reserves", &rate.to_string(), "--reads", "1000"])
            .args(["--write-connections", &connections.to_string()])
            .args(["--checkout-connections", &(connections / 4).to_string()])
            .args(["--duration", &format!("{seconds}s")])
            .stdout(Stdio::piped());
        load
    };
    // A broker's compiler takes its time; people open their pages before a sale begins, too.
    let warm_up = setting("SALE_WARM", 0);
    if warm_up > 0 {
        let warm = load(warm_up)
            .args(["--sku", "WARM-UP", "--abandon", "1"])
            .status();
        assert!(warm.expect("the program starts").success());
    }
    let shed = || addresses.iter().copied().map(shed_by).sum::<u64>();
    let shed_before = shed();
    let load = load(seconds)
        .args(["--abandon", "0", "--receipts"])
        .arg(&receipts)
        .spawn();
    let load = load.expect("the program starts");
    if setting("SALE_KILLS", 1) > 0 {
        while available(addresses[0]) > UNITS / 2 {
            std::thread::yield_now();
        }
        system.kill("writer");
    }
    let ran = load.wait_with_output().expect("it ends");
    assert!(ran.status.success(), "{ran:?}");
    let outcome: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    println!("{outcome:#}");

    let places = Places {
        store: place("store"),
        cache: place("cache"),
        ingest: place("ingest"),
    };
    // Who came last may be about to pay.
    becomes("available, reserved, sold", "0|0|10000", || places.rows());
    places.counts_agree();
    let last = "SELECT extract(epoch FROM clock_timestamp() - max(stamp)) FROM stockade.batches
                WHERE events <> '' OR refusals <> ''";
    let since: f64 = places.sql(last).parse().expect("seconds");
    println!("all say the same {since:.2} s after the last commit");
    assert!(
        since < AGREE_WITHIN,
        "only {since:.2} s after the last commit"
    );
    places.agrees();

    is_counted(shed() - shed_before, &outcome);

    // Every answer that was given stands.
    let rows = "SELECT id, status FROM stockade.reservations
                UNION ALL SELECT replaces, status FROM stockade.reservations WHERE replaces IS NOT NULL";
    let rows = places.sql(rows);
    let mut statuses: HashMap<u64, Vec<&str>> = HashMap::new();
    for (id, status) in rows.lines().filter_map(|row| row.split_once('|')) {
        let id = id.parse().expect("a number");
        statuses.entry(id).or_default().push(status);
    }
    let receipts = std::fs::read_to_string(receipts).expect("receipts");
    for receipt in receipts.lines() {
        let (id, what) = receipt.split_once(' ').expect("an id and what it is");
        let id: ReservationId = id.parse().expect("an id");
        let found = statuses.get(&id.get()).map_or(&[][..], Vec::as_slice);
        let stands = !found.is_empty() && (what != "ordered" || found.contains(&"CONFIRMED"));
        assert!(stands, "{receipt} was answered, and is {found:?}");
    }
    let count = receipts.lines().count() as u64;
    assert!(count >= UNITS, "{count} answers for {UNITS} units");

    // A second one in the same folder leaves the first alone; and after it, it is the same sale, with nothing left to sell.
    let second = script(system.dir.path()).wait();
    assert_eq!(second.expect("it ends").code(), Some(1));
    assert_eq!(available(addresses[0]), 0);
    system.again();
    assert_eq!(available(system.node("node_0")), 0);
    places.agrees();
}
