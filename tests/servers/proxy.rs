//! A TCP proxy that fails on demand: it cuts connections, lets them hang, is slow, or swallows what a server answers.
//!
//! Each direction of a connection has two threads: one takes bytes in and says when they are due, the other lets them out then. So
//! a slow link delays and neither reorders nor narrows: what follows is on its way meanwhile.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Pieces of up to 64 KiB that are on their way in one direction at most; beyond, the sender's own window fills.
const ON_THE_WAY_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Bytes go through both ways.
    Open,
    /// Nothing goes through, and nobody is told: as on a network that drops packets.
    Stalled,
    /// The next answer of the server is swallowed, and its connection cut; then it is open again.
    CutNextAnswer,
    /// Connections are cut as soon as they are made.
    Closed,
    /// It is being dropped.
    Ended,
}

struct State {
    mode: Mode,
    /// How long each piece is on its way, in each direction.
    delay: Duration,
    /// Both ends of every connection that was made.
    streams: Vec<TcpStream>,
    /// Answers that were swallowed.
    swallowed: u32,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Listens on a port of its own, in front of another port of this machine.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    pub(crate) fn start(to_port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback address");
        let port = listener.local_addr().expect("it is bound").port();
        let state = State {
            mode: Mode::Open,
            delay: Duration::ZERO,
            streams: Vec::new(),
            swallowed: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mode = accepting.lock().mode;
                match mode {
                    Mode::Ended => return,
                    Mode::Closed => drop(client),
                    _ => connect(&accepting, client, to_port),
                }
            }
        });
        Self { port, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Lets everything hang, connections that are made meanwhile too.
    pub(crate) fn stall(&self) {
        self.set(Mode::Stalled);
    }

    /// Lets everything through again and at once, what was held back first.
    pub(crate) fn open(&self) {
        self.slow(Duration::ZERO);
    }

    /// Lets everything through, so much later in each direction.
    pub(crate) fn slow(&self, delay: Duration) {
        self.shared.lock().delay = delay;
        self.set(Mode::Open);
    }

    /// Cuts all connections, and those that are made until it is opened.
    pub(crate) fn close(&self) {
        self.set(Mode::Closed);
        self.cut();
    }

    /// Cuts all connections; new ones are let through.
    pub(crate) fn cut(&self) {
        cut(&mut self.shared.lock());
    }

    /// Lets the next request through, and cuts its connection instead of giving the answer.
    pub(crate) fn cut_next_answer(&self) {
        self.set(Mode::CutNextAnswer);
    }

    pub(crate) fn swallowed(&self) -> u32 {
        self.shared.lock().swallowed
    }

    fn set(&self, mode: Mode) {
        self.shared.lock().mode = mode;
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::Ended);
        self.cut();
        // The listener's thread looks once more.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

fn cut(state: &mut State) {
    for stream in state.streams.drain(..) {
        // One that has ended is as good as cut.
        drop(stream.shutdown(Shutdown::Both));
    }
}

fn connect(shared: &Arc<Shared>, client: TcpStream, to_port: u16) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", to_port)) else {
        return;
    };
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let both = (client.try_clone(), server.try_clone());
    let (Ok(client_again), Ok(server_again)) = both else {
        return;
    };
    let mut state = shared.lock();
    for stream in [&client, &server] {
        state.streams.extend(stream.try_clone());
    }
    drop(state);
    carry(shared, client, server, false);
    carry(shared, server_again, client_again, true);
}

/// Carries bytes one way until either end is closed.
fn carry(shared: &Arc<Shared>, mut from: TcpStream, to: TcpStream, is_answer: bool) {
    let Ok(from_again) = from.try_clone() else {
        return;
    };
    let (put, take) = sync_channel(ON_THE_WAY_MAX);
    let (taking, letting) = (Arc::clone(shared), Arc::clone(shared));
    std::thread::spawn(move || {
        let mut bytes = vec![0; 65_536];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            let due = Instant::now() + taking.lock().delay;
            if put.send((due, bytes[..read].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        let mut to = to;
        let_out(&letting, &take, &mut to, is_answer);
        drop((
            from_again.shutdown(Shutdown::Both),
            to.shutdown(Shutdown::Both),
        ));
    });
}

/// Lets bytes out when they are due, in their order, until there are no more or they are lost.
fn let_out(
    shared: &Shared,
    taken: &Receiver<(Instant, Vec<u8>)>,
    to: &mut TcpStream,
    is_answer: bool,
) {
    for (due, bytes) in taken {
        // Time on the way is what a slow link is.
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut state = shared.lock();
        while state.mode == Mode::Stalled {
            state = shared.changed.wait(state).expect("no holder panics");
        }
        // What was held back is lost with the connection.
        if matches!(state.mode, Mode::Closed | Mode::Ended) {
            return;
        }
        if state.mode == Mode::CutNextAnswer && is_answer {
            state.mode = Mode::Open;
            state.swallowed += 1;
            cut(&mut state);
            return;
        }
        drop(state);
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
}
