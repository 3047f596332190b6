//! A server in trouble, over real HTTP: a full queue, a full disk, a wrong clock, a directory it should leave alone. Each
//! is said, with what to do, and nothing is lost or overwritten.

mod common;

use common::{ADMIN_TOKEN, Answer, JWT_SECRET, ONE, Server, ask, flash_sale, serve, token};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use stockade::Engine;
use stockade::engine::{Ask, Handle, Runner};
use stockade::store::{JournalOptions, JournalStore};
use stockade::types::{DefineSku, Gate, ManualClock, Reserve, SetGate, SkuName, Timestamp, UserId};

const HOUR: Duration = Duration::from_secs(3_600);
const MINUTE: Duration = Duration::from_secs(60);

/// Runs a server that can't start. Gives what it says.
#[track_caller]
fn refused(mut command: Command) -> String {
    let output = command.output().expect("starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(output.stdout.is_empty(), "it never listens");
    text
}

/// What a directory holds.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("readable");
    entries
        .map(|entry| {
            let entry = entry.expect("readable");
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).expect("readable"))
        })
        .collect()
}

/// An engine in the test's own hands, to write a journal that a server then meets.
struct Author {
    handle: Handle,
    runner: Runner,
}

impl Author {
    fn new(dir: &Path, now: Timestamp) -> Self {
        let (handle, runner) = Engine::builder()
            .store(JournalStore::new(JournalOptions::new(dir)))
            .clock(Arc::new(ManualClock::at(now)))
            .build()
            .expect("an empty directory");
        Self { handle, runner }
    }

    fn tell<C: Ask>(&mut self, command: C) -> C::Accepted {
        let Ok(ticket) = self.handle.submit(command) else {
            panic!("the queue is empty");
        };
        self.runner.step().expect("it runs");
        ticket.wait().unwrap_or_else(|error| panic!("{error}"))
    }
}

/// A journal with an open sale of 5 units and a hold of ann's, written when the clock said `now`.
fn journal_with_a_hold(dir: &Path, now: Timestamp) -> String {
    let mut author = Author::new(dir, now);
    let actor = UserId::from_text("serve");
    let name = SkuName::new("SNEAKER").expect("a name");
    let sku = author.tell(DefineSku::new(actor, name, 5));
    author.tell(SetGate::new(actor, sku, Gate::Open));
    let reserve = Reserve::one(UserId::from_text("ann"), sku, 1).expect("a cart");
    let held = author.tell(reserve);
    author.runner.shutdown().expect("in good order");
    held.id.to_string()
}

fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970")
}

fn stamp(since_1970: Duration) -> Timestamp {
    Timestamp::MIN.plus(since_1970)
}

#[track_caller]
fn retry_after(answer: &Answer) -> u32 {
    let head = answer.head.to_lowercase();
    let value = head
        .lines()
        .find_map(|line| line.strip_prefix("retry-after: "));
    let seconds = value.and_then(|value| value.trim().parse().ok());
    seconds.unwrap_or_else(|| panic!("no Retry-After: {answer:?}"))
}

/// Requests of a whole crowd at once: all are on their way before the first answer is read.
fn burst(server: &Server, users: &[String], key: &str) -> Vec<Answer> {
    let streams: Vec<TcpStream> = users
        .iter()
        .map(|user| {
            let mut stream = TcpStream::connect(server.address).expect("connects");
            let request = format!(
                "POST /api/reserve HTTP/1.1\r\nhost: t\r\nconnection: close\r\nauthorization: Bearer {user}\r\n\
                 idempotency-key: {key}\r\ncontent-length: {}\r\n\r\n{ONE}",
                ONE.len()
            );
            stream.write_all(request.as_bytes()).expect("writes");
            stream
        })
        .collect();
    streams.into_iter().map(answer).collect()
}

fn answer(mut stream: TcpStream) -> Answer {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    Answer {
        status: head[9..12].parse().expect("a status"),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

#[test]
fn a_full_queue_is_429_with_its_depth_and_when_to_come_again() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let flags = ["--sku", "SNEAKER=100000", "--per-user", "0", "--queue", "2"];
    let server = Server::start(&dir.path().join("journal"), &flags);
    // Two in line and at most eight with the writer: of so many at once some find the queue full.
    let users: Vec<String> = (0..64).map(|user| token(&format!("user-{user}"))).collect();
    let end = Instant::now() + Duration::from_secs(30);
    let (mut held, mut full) = (0, Vec::new());
    for round in 0.. {
        assert!(Instant::now() < end, "the queue never filled");
        for answer in burst(&server, &users, &round.to_string()) {
            match answer.status {
                201 => held += 1,
                _ => full.push(answer),
            }
        }
        if !full.is_empty() {
            break;
        }
    }
    for answer in &full {
        answer.is_problem(429, "queue_full");
        assert!(retry_after(answer) >= 1);
        let depth = answer.json()["queue_depth"].as_u64();
        assert!(depth.is_some_and(|depth| depth <= 2), "{answer:?}");
    }
    let stock = server.get("/api/products/SNEAKER/availability").json();
    assert_eq!(stock["reserved"], held, "a 429 holds nothing");
    // Whoever comes again is served, under the same key.
    server.reserve(&users[0], "again", ONE).is(201);
    let metrics = server.get("/metrics").is(200).body;
    let refused = format!(
        "http_requests_total{{route=\"reserve\",status=\"429\"}} {}",
        full.len()
    );
    assert!(metrics.contains(&refused), "{metrics}");
}

/// A shell that lets no file grow beyond `blocks` of 512 bytes: to the program the disk is full.
fn with_file_limit(blocks: u32) -> Command {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!(
            "trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""
        ))
        .arg(env!("CARGO_BIN_EXE_flash-sale"))
        .env("FLASH_SALE_JWT_SECRET", JWT_SECRET)
        .env("FLASH_SALE_ADMIN_TOKEN", ADMIN_TOKEN);
    command
}

#[test]
fn a_full_disk_halts_the_sale_and_nothing_that_was_answered_is_lost() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let mut flags: Vec<String> = ["--per-user", "0", "--hold", "1h"]
        .map(str::to_owned)
        .into();
    let skus: Vec<String> = (0..300).map(|number| format!("SKU-{number}")).collect();
    for sku in &skus {
        flags.extend(["--sku".to_owned(), format!("{sku}=1000000")]);
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    // The first segment fits, 1 MiB; it can hardly grow, and there is no second.
    let server = Server::of(serve(with_file_limit(2_304), &journal, &flags));
    let lines: Vec<String> = skus
        .iter()
        .map(|sku| format!(r#"{{"sku_id":"{sku}","quantity":1}}"#))
        .collect();
    let cart = format!(r#"{{"lines":[{}]}}"#, lines.join(","));
    let ann = token("ann");
    let mut held = Vec::new();
    let unknown = loop {
        let answer = server.reserve(&ann, &held.len().to_string(), &cart);
        if answer.status != 201 {
            break answer;
        }
        held.push(answer.text("reservation_id"));
        assert!(held.len() < 1_000, "the disk is never full");
    };
    unknown.is_problem(503, "outcome_unknown");
    assert!(retry_after(&unknown) >= 1);
    let halted = server.reserve(&ann, "later", &cart);
    halted.is_problem(503, "halted");
    assert!(retry_after(&halted) >= 1);
    server
        .reservation("GET", &ann, &held[0])
        .is_problem(503, "halted");
    for path in ["/livez", "/readyz"] {
        let probe = server.get(path).is(503).json();
        assert_eq!(probe["state"], "halted");
        let reason = probe["reason"].as_str().expect("a reason");
        assert!(reason.contains("segment-0000000001.log"), "{reason}");
    }
    let metrics = server.get("/metrics").is(200).body;
    for expected in ["flash_sale_up 0\n", "oversell_count 0\n"] {
        assert!(metrics.contains(expected), "{metrics}");
    }
    let stock = server.get("/api/products/SKU-7/availability").is(200);
    assert_eq!(stock.json()["reserved"], held.len(), "reads go on");
    assert!(!server.terminate(), "no good order");

    let server = Server::start(&journal, &[]);
    for id in &held {
        let found = server.reservation("GET", &ann, id).is(200);
        assert_eq!(found.text("status"), "RESERVED");
    }
    // The same key gives the truth, whichever it is.
    let key = held.len().to_string();
    let truth = server.reserve(&ann, &key, &cart).is(201);
    assert!(!held.contains(&truth.text("reservation_id")));
    let stock = server.get("/api/products/SKU-7/availability").json();
    assert_eq!(stock["reserved"], held.len() + 1);
    assert!(server.terminate());
}

#[test]
fn a_clock_an_hour_behind_the_log_is_a_warning_and_the_sale_goes_on() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let ahead = stamp(now() + HOUR);
    let id = journal_with_a_hold(&journal, ahead);
    let server = Server::start(&journal, &[]);
    for path in ["/livez", "/readyz"] {
        let probe = server.get(path).is(200).json();
        assert_eq!(probe["state"], "degraded");
        let warning = probe["warnings"][0].as_str().expect("a warning");
        assert!(warning.contains("behind the log"), "{warning}");
    }
    let ann = token("ann");
    let shown = server.reservation("GET", &ann, &id).is(200).json();
    assert_eq!(shown["status"], "RESERVED");
    let left = shown["expires_in_seconds"].as_f64().expect("a number");
    assert!((60.0..=120.0).contains(&left), "by the log's time: {left}");
    server.checkout(&ann, &id, "card").is(200);
    let held = server.reserve(&token("bob"), "k", ONE).is(201);
    let expires = held.text("expires_at");
    assert!(expires > ahead.to_string(), "{expires} is after {ahead}");
    assert!(server.terminate());
}

#[test]
fn a_clock_far_ahead_of_live_holds_is_refused_and_the_message_names_the_flag() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let id = journal_with_a_hold(&journal, stamp(now().saturating_sub(HOUR + MINUTE)));
    let before = contents(&journal);
    let text = refused(serve(flash_sale(), &journal, &[]));
    assert!(text.contains("set the clock"), "{text}");
    assert!(contents(&journal) == before, "nothing was changed");
    let flag = text
        .split_once("--clock-jump-max ")
        .and_then(|(_, rest)| rest.split(')').next())
        .expect("a flag");
    let server = Server::start(&journal, &["--clock-jump-max", flag]);
    assert_eq!(server.get("/readyz").is(200).json()["state"], "running");
    let ann = token("ann");
    let shown = server.reservation("GET", &ann, &id).is(200);
    assert_eq!(shown.text("status"), "EXPIRED");
    let stock = server.get("/api/products/SNEAKER/availability").json();
    assert_eq!(stock["available"], 5, "{stock}");
    server.reserve(&ann, "k", ONE).is(201);
    assert!(server.terminate());
}

#[test]
fn a_clock_less_than_an_hour_ahead_is_the_time_that_has_passed() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let id = journal_with_a_hold(
        &journal,
        stamp(now().saturating_sub(HOUR.saturating_sub(MINUTE))),
    );
    let server = Server::start(&journal, &[]);
    let shown = server.reservation("GET", &token("ann"), &id).is(200);
    assert_eq!(shown.text("status"), "EXPIRED");
    assert!(server.terminate());
}

#[test]
fn a_journal_of_a_newer_format_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    journal_with_a_hold(&journal, stamp(now()));
    let segment = journal.join("segment-0000000001.log");
    let mut bytes = fs::read(&segment).expect("reads");
    // The version comes after eight bytes of magic; a newer release's header may be checked in another way.
    bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
    fs::write(&segment, bytes).expect("writes");
    let before = contents(&journal);
    for flags in [&[][..], &["--sku", "SNEAKER=5"]] {
        let text = refused(serve(flash_sale(), &journal, flags));
        for expected in [
            "segment-0000000001.log",
            "journal format 2 (this release reads 1)",
            "use the release that wrote it",
        ] {
            assert!(text.contains(expected), "{text}");
        }
    }
    assert!(contents(&journal) == before, "nothing was changed");
}

#[test]
fn a_directory_of_someone_elses_files_is_left_as_it_is() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::write(dir.path().join("thesis.txt"), "chapter 1").expect("writes");
    fs::write(dir.path().join("snapshot-of-us.jpg"), "holiday").expect("writes");
    let before = contents(dir.path());
    let text = refused(serve(flash_sale(), dir.path(), &["--sku", "SNEAKER=5"]));
    assert!(text.contains("and no journal"), "{text}");
    assert!(text.contains("choose an empty directory"), "{text}");
    assert!(contents(dir.path()) == before, "nothing was changed");
    let file = dir.path().join("thesis.txt");
    let text = refused(serve(flash_sale(), &file, &["--sku", "SNEAKER=5"]));
    assert!(text.contains("thesis.txt"), "{text}");
    assert!(contents(dir.path()) == before, "nothing was changed");
}

#[cfg(unix)]
#[test]
fn a_directory_that_can_not_be_written_is_named_with_what_to_do() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    journal_with_a_hold(&journal, stamp(now()));
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    mode(dir.path(), 0o755);
    mode(&journal, 0o555);
    let mut command = flash_sale();
    let probe = journal.join("probe");
    if fs::write(&probe, "").is_ok() {
        // We may write everywhere; somebody else may not.
        fs::remove_file(&probe).expect("it is ours");
        let mut may_run = Command::new(env!("CARGO_BIN_EXE_flash-sale"));
        may_run.arg("--version").uid(NOBODY).gid(NOBODY);
        if may_run.output().is_err() {
            eprintln!("SKIPPED: root writes everywhere, and nobody else can run the program");
            return;
        }
        command.uid(NOBODY).gid(NOBODY);
    }
    let before = contents(&journal);
    let text = refused(serve(command, &journal, &[]));
    assert!(text.contains(&journal.display().to_string()), "{text}");
    assert!(text.contains("make it writable for this user"), "{text}");
    assert!(contents(&journal) == before, "nothing was changed");
    mode(&journal, 0o755);
    assert!(Server::start(&journal, &[]).terminate(), "it is as it was");
}

#[test]
fn a_sku_that_was_defined_and_never_opened_is_opened_at_the_next_start() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let actor = UserId::from_text("serve");
    let name = |name| SkuName::new(name).expect("a name");
    // What a server leaves that is killed right after its first definition.
    let mut author = Author::new(&journal, stamp(now()));
    author.tell(DefineSku::new(actor, name("SNEAKER"), 5));
    // And one that operators have closed again.
    let laces = author.tell(DefineSku::new(actor, name("LACES"), 5));
    for gate in [Gate::Open, Gate::Close] {
        author.tell(SetGate::new(actor, laces, gate));
    }
    author.runner.shutdown().expect("in good order");
    let ann = token("ann");
    let one_of_laces = r#"{"sku_id":"LACES","quantity":1}"#;

    let skus = ["--sku", "SNEAKER=5", "--sku", "LACES=5"];
    let server = Server::start(&journal, &[&skus[..], &["--closed"]].concat());
    server.reserve(&ann, "k", ONE).is_problem(409, "not_open");
    server.kill();
    let server = Server::start(&journal, &skus);
    server.reserve(&ann, "k", ONE).is(201);
    server
        .reserve(&ann, "laces", one_of_laces)
        .is_problem(409, "not_open");
    server.admin("products/SNEAKER/close", "c", "").is(200);
    server.kill();
    let server = Server::start(&journal, &skus);
    server
        .reserve(&token("bob"), "k", ONE)
        .is_problem(409, "not_open");
    assert!(server.terminate());
}

/// A request whose head is under way when the server is told to end.
fn half_a_request(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).expect("connects");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("sets");
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\n")
        .expect("writes");
    stream
}

#[test]
fn a_server_that_drains_says_so_and_finishes_what_it_has() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let mut server = Server::start(&journal, &["--sku", "SNEAKER=5"]);
    let ann = token("ann");
    let id = server
        .reserve(&ann, "k", ONE)
        .is(201)
        .text("reservation_id");
    let mut half = half_a_request(&server);
    let address = server.address;
    let paying = std::thread::spawn(move || {
        let body = format!(r#"{{"reservation_id":"{id}","payment_token":"slow"}}"#);
        let headers = [("authorization", &*format!("Bearer {ann}"))];
        ask(address, "POST", "/api/checkout", &headers, body.as_bytes()).expect("an answer")
    });
    while !server
        .get("/metrics")
        .body
        .contains("decisions_total{outcome=\"accepted\"} 4")
    {
        std::thread::yield_now();
    }
    let pid = server.child.id().to_string();
    let sent = Command::new("kill").arg(pid).status().expect("kill runs");
    assert!(sent.success());
    // It listens no more as soon as it drains.
    while TcpStream::connect(address).is_ok() {
        std::thread::yield_now();
    }
    half.write_all(b"host: t\r\n\r\n").expect("writes");
    let drains = answer(half).is(503);
    assert_eq!(drains.json()["draining"], true, "{drains:?}");
    let paid = paying.join().expect("no panic").is(200);
    assert_eq!(paid.text("status"), "CONFIRMED");
    assert!(server.child.wait().expect("it ends").success());
}
