//! A server in a process of its own on a free port, and a client that says exactly what it sends.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

pub mod crowd;

use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const JWT_SECRET: &str = "a secret of the tests";
pub const ADMIN_TOKEN: &str = "an admin token of the tests";

/// The program, with the tests' secrets.
pub fn flash_sale() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flash-sale"));
    command
        .env("FLASH_SALE_JWT_SECRET", JWT_SECRET)
        .env("FLASH_SALE_ADMIN_TOKEN", ADMIN_TOKEN);
    command
}

/// The program or what runs it, told to serve `dir` on a free port.
pub fn serve(mut command: Command, dir: &Path, flags: &[&str]) -> Command {
    command.args(SERVE).arg("--data").arg(dir).args(flags);
    command
}

/// Told to serve what a PostgreSQL server keeps.
pub fn serve_shared(url: &str, flags: &[&str]) -> Command {
    let mut command = flash_sale();
    command.args(SERVE).args(["--store", url]).args(flags);
    command
}

/// How long a server may take that ends by itself.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

pub const SERVE: [&str; 5] = ["serve", "--listen", "127.0.0.1:0", "--threads", "2"];

/// A bearer token of a user.
pub fn token(user: &str) -> String {
    token_valid(user, "1h")
}

/// A token that is valid for so long.
pub fn token_valid(user: &str, valid: &str) -> String {
    let output = flash_sale()
        .args(["token", "--user", user, "--valid", valid])
        .output()
        .expect("the program starts");
    assert!(output.status.success());
    String::from_utf8(output.stdout)
        .expect("a token is ASCII")
        .trim()
        .to_owned()
}

/// A server; killed when it is dropped.
pub struct Server {
    pub child: Child,
    pub address: SocketAddr,
    errors: File,
}

impl Server {
    /// On `dir`, with further flags.
    pub fn start(dir: &Path, flags: &[&str]) -> Self {
        Self::of(serve(flash_sale(), dir, flags))
    }

    /// As a command that serves.
    pub fn of(command: Command) -> Self {
        Starting::of(command).listens()
    }

    /// Waits until it ends by itself. Gives whether it says that all is well, and what it wrote to its standard error.
    pub fn ends(mut self) -> (bool, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("ours") {
                break status;
            }
            assert!(begun.elapsed() < ENDS_WITHIN, "it still runs");
            // A process that ends tells only who waits for it without end.
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut said = String::new();
        self.errors.rewind().expect("a file");
        self.errors.read_to_string(&mut said).expect("it is text");
        (status.success(), said)
    }

    /// As `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// SIGTERM; true if it ended in good order.
    pub fn terminate(mut self) -> bool {
        signal(&self.child, "TERM");
        self.child.wait().expect("it ends").success()
    }

    /// One request on a connection of its own.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        ask(self.address, method, path, headers, body.as_bytes()).expect("an answer")
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    pub fn reserve(&self, token: &str, key: &str, body: &str) -> Answer {
        let headers = [
            ("authorization", &*format!("Bearer {token}")),
            ("idempotency-key", key),
        ];
        self.ask("POST", "/api/reserve", &headers, body)
    }

    /// A unit for a new user; his token and the reservation.
    pub fn reserves(&self, user: &str) -> (String, String) {
        let token = token(user);
        let held = self.reserve(&token, user, ONE).is(201);
        (token, held.text("reservation_id"))
    }

    pub fn checkout(&self, token: &str, reservation: &str, payment_token: &str) -> Answer {
        let headers = [("authorization", &*format!("Bearer {token}"))];
        let body = checkout_body(reservation, payment_token);
        self.ask("POST", "/api/checkout", &headers, &body)
    }

    /// Begins a checkout, and breaks the connection off once the payment is under way.
    #[track_caller]
    pub fn leaves_checkout(&self, token: &str, reservation: &str, payment_token: &str) {
        let body = checkout_body(reservation, payment_token);
        let mut buyer = TcpStream::connect(self.address).expect("it listens");
        write!(
            buyer,
            "POST /api/checkout HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("it reads");
        becomes("the reservation", "IN_PAYMENT", || {
            self.status_of(token, reservation)
        });
    }

    /// As its owner sees it.
    #[track_caller]
    pub fn status_of(&self, token: &str, reservation: &str) -> String {
        let shown = self.reservation("GET", token, reservation).is(200);
        shown.text("status")
    }

    /// `GET` or `DELETE` of a reservation.
    pub fn reservation(&self, method: &str, token: &str, reservation: &str) -> Answer {
        let headers = [("authorization", &*format!("Bearer {token}"))];
        let path = format!("/api/reservations/{reservation}");
        self.ask(method, &path, &headers, "")
    }

    pub fn admin(&self, path: &str, key: &str, body: &str) -> Answer {
        let headers = [
            ("authorization", &*format!("Bearer {ADMIN_TOKEN}")),
            ("idempotency-key", key),
        ];
        self.ask("POST", &format!("/api/admin/{path}"), &headers, body)
    }

    /// What operators see of a SKU.
    pub fn sku(&self, name: &str) -> Answer {
        let headers = [("authorization", &*format!("Bearer {ADMIN_TOKEN}"))];
        self.ask("GET", &format!("/api/admin/skus/{name}"), &headers, "")
    }
}

/// A server that has not said yet where it listens, such as a standby. Killed when it is dropped.
pub struct Starting(Option<Child>, Option<File>);

impl Starting {
    pub fn of(mut command: Command) -> Self {
        let errors = tempfile::tempfile().expect("a temporary file");
        let stderr = errors.try_clone().expect("a second handle of it");
        let child = command.stdout(Stdio::piped()).stderr(stderr).spawn();
        Self(Some(child.expect("the program starts")), Some(errors))
    }

    /// Waits until it listens.
    pub fn listens(mut self) -> Server {
        let child = self.0.as_mut().expect("it runs");
        let stdout = child.stdout.take().expect("its output is piped");
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("it prints");
        let address = line
            .trim()
            .strip_prefix("listening on http://")
            .and_then(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("the server did not start: {line:?}"));
        let child = self.0.take().expect("it runs");
        Server {
            child,
            address,
            errors: self.1.take().expect("it is kept"),
        }
    }

    /// Waits until it has ended instead. Gives what it wrote to its standard error.
    pub fn refuses(mut self) -> String {
        let status = self.0.as_mut().expect("it runs").wait();
        assert!(!status.expect("it ends").success());
        let mut said = String::new();
        let errors = self.1.as_mut().expect("it is kept");
        errors.rewind().expect("a file");
        errors.read_to_string(&mut said).expect("it is text");
        said
    }

    /// SIGTERM; true if it ended in good order.
    pub fn terminate(mut self) -> bool {
        let mut child = self.0.take().expect("it runs");
        signal(&child, "TERM");
        child.wait().expect("it ends").success()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends a signal by its name.
pub fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-s", name, &pid]).status();
    assert!(sent.expect("kill runs").success());
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn checkout_body(reservation: &str, payment_token: &str) -> String {
    format!(r#"{{"reservation_id":"{reservation}","payment_token":"{payment_token}"}}"#)
}

/// A cart of one unit.
pub const ONE: &str = r#"{"sku_id":"SNEAKER","quantity":1}"#;

/// A server with so many sneakers, and laces.
pub fn sale(units: u32, flags: &[&str]) -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let sku = format!("SNEAKER={units}");
    let mut all = vec![
        "--sku",
        &sku,
        "--sku",
        "LACES=100",
        "--payment-latency",
        "0s",
    ];
    all.extend(flags);
    let server = Server::start(&dir.path().join("journal"), &all);
    (dir, server)
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub fn text(&self, member: &str) -> String {
        let json = self.json();
        let text = json[member].as_str();
        text.unwrap_or_else(|| panic!("no {member} in {self:?}"))
            .to_owned()
    }

    /// Asserts status and code, and that it is a whole problem document.
    #[track_caller]
    pub fn is_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let json = self.json();
        assert_eq!(json["code"], code, "{self:?}");
        assert_eq!(json["status"], status, "{self:?}");
        assert!(
            json["title"].is_string() && json["type"].is_string(),
            "{self:?}"
        );
        assert!(
            json["detail"].as_str().is_some_and(|text| !text.is_empty()),
            "{self:?}"
        );
        assert!(self.head.contains("application/problem+json"), "{self:?}");
    }

    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

/// One request on a connection of its own; an error if it breaks off.
pub fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut request = Vec::new();
    write!(
        request,
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n"
    )?;
    for (name, value) in headers {
        write!(request, "{name}: {value}\r\n")?;
    }
    write!(request, "content-length: {}\r\n\r\n", body.len())?;
    stream.write_all(&request)?;
    stream.write_all(body)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.get(9..12).and_then(|digits| digits.parse().ok());
    Ok(Answer {
        status: status.ok_or(std::io::ErrorKind::InvalidData)?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// How long other programs may take to hear of something.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks until the answer is as expected.
#[track_caller]
pub fn becomes(what: &str, expected: &str, ask: impl Fn() -> String) {
    let begun = Instant::now();
    loop {
        let found = ask();
        if found == expected {
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{what} is {found:?} and not {expected:?}"
        );
        // Another process tells nobody.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Until a standby has met the writer, and read what is in the log of `store` now: it looks every 50 ms, and reads what it sees before
/// it looks again: two queries a round at most. Whoever reads the log for other reasons is soon through.
#[track_caller]
pub fn await_standby(store: &str) {
    let looks = "SELECT pid, query_start FROM pg_stat_activity WHERE application_name = 'stockade'
        AND (query LIKE 'SELECT epoch, writer_id%' OR query LIKE '%FROM batches WHERE shard = $1 AND number > $2%')";
    let begun = Instant::now();
    let mut seen: HashMap<String, BTreeSet<String>> = HashMap::new();
    while seen.values().all(|looks| looks.len() < 6) {
        assert!(begun.elapsed() < PATIENCE, "nobody follows");
        let found = said("psql", &["-Atc", looks, store]);
        for (standby, look) in found.lines().filter_map(|line| line.split_once('|')) {
            seen.entry(standby.into()).or_default().insert(look.into());
        }
        // Another process tells nobody.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a program prints.
pub fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
