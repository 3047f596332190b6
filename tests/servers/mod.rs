//! Real servers for tests: each runs in a temporary folder and on a free port, under a script of its kind beside this file, and
//! ends with the test. A test may kill one, pause it, and start it again on what it left.

pub(crate) mod proxy;

use rustix::process::{Pid, Signal, kill_process};
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until it listens.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// Waits at its input for a line. If that ends without one, whoever held it has died: the server's group is killed, and its folder
/// removed, once nobody writes there.
const GUARD: &str =
    r#"read -r _ || { kill -s KILL -- "-$1"; until rm -rf "$2"; do sleep 0.1; done; } 2>/dev/null"#;

/// A server's process, its port and its folder. Dropped, the process is killed and the folder removed; and so they are if this
/// process ends without that, as at Ctrl-C.
pub(crate) struct Server {
    script: &'static str,
    arguments: Vec<String>,
    process: Option<Child>,
    guard: Option<Child>,
    port: u16,
    dir: tempfile::TempDir,
}

impl Server {
    /// Runs `tests/servers/SCRIPT DIR PORT ARGUMENTS..` and waits until the port listens.
    ///
    /// # Panics
    /// If it doesn't, with what the server said.
    pub(crate) fn start(script: &'static str, arguments: &[String]) -> Self {
        Self::start_with(script, |_| arguments.to_vec())
    }

    /// The same, with arguments that depend on its port.
    pub(crate) fn start_with(
        script: &'static str,
        arguments: impl FnOnce(u16) -> Vec<String>,
    ) -> Self {
        let port = free_port();
        let dir = tempfile::Builder::new().prefix("stockade-").tempdir();
        let dir = dir.expect("a temporary folder");
        // A server that runs as another user must get through.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("the folder is ours");
        let mut server = Self {
            script,
            arguments: arguments(port),
            process: None,
            guard: None,
            port,
            dir,
        };
        server.restart();
        server
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the server again on its folder and port, after [`kill`](Self::kill).
    pub(crate) fn restart(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let script = scripts().join(self.script);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path());
        let log = log.expect("a log in the server's folder");
        let child = Command::new(&script)
            .arg(self.dir.path().join("server"))
            .arg(self.port.to_string())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            .process_group(0)
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        self.guard = Some(guard(&child, self.dir.path()));
        self.process = Some(child);
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self
                .process
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            assert!(
                ended.is_none() && begun.elapsed() < STARTS_WITHIN,
                "{} doesn't listen on port {}: {}",
                self.script,
                self.port,
                self.log()
            );
            // A foreign program tells nobody that it listens.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills the server and all its processes at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            signal(&child, Signal::KILL);
            child.wait().expect("it was killed");
        }
        if let Some(mut guard) = self.guard.take() {
            let stdin = guard.stdin.as_mut().expect("it is piped");
            // One that is gone itself does no harm.
            let _ = stdin.write_all(b"\n");
            guard.wait().expect("it ends after a line");
        }
    }

    /// Lets go of its guard as the death of this process does, and waits for what that does.
    pub(crate) fn abandon(&mut self) {
        let mut guard = self.guard.take().expect("it runs");
        drop(guard.stdin.take());
        guard.wait().expect("it ends when nobody holds it");
    }

    /// Stops the server's processes without ending them: connections stay open and nobody answers.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a paused server go on.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// What the server has written to its output.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    fn signal(&self, what: Signal) {
        signal(self.process.as_ref().expect("it runs"), what);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What outlives this process, if only for a moment.
fn guard(server: &Child, dir: &Path) -> Child {
    let guard = Command::new("sh")
        .args(["-c", GUARD, "guard"])
        .arg(server.id().to_string())
        .arg(dir)
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn();
    guard.expect("a shell")
}

/// Signals the process and all that descend from it, also those that have left its group and session, as PostgreSQL's do. Each
/// is stopped first, so that none is born unseen.
fn signal(child: &Child, what: Signal) {
    let mut reached: Vec<i32> = Vec::new();
    let mut next = vec![Pid::from_child(child).as_raw_pid()];
    while let Some(pid) = next.pop() {
        // One that has ended meanwhile has no more children either.
        if let Some(process) = Pid::from_raw(pid)
            && kill_process(process, Signal::STOP).is_ok()
        {
            reached.push(pid);
            next.extend(children(pid));
        }
    }
    for process in reached.into_iter().filter_map(Pid::from_raw) {
        // One that has ended needs no signal.
        let _ = kill_process(process, what);
    }
}

/// The processes whose parent this is.
fn children(parent: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").expect("a mounted /proc");
    let pids = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // pid (name) state parent ..: a name may hold anything.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        after_name.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    pids.filter(is_child).collect()
}

/// This folder, whichever package of the workspace tests with it.
fn scripts() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = package.ancestors().map(|dir| dir.join("tests/servers"));
    let mut found = found.filter(|dir| dir.join("mod.rs").exists());
    found.next().expect("the scripts lie beside this file")
}

/// A port that nobody listens on just now.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback address");
    listener.local_addr().expect("it is bound").port()
}
