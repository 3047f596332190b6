//! Connections: accepts them up to a limit, serves HTTP/1.1 on each, and cuts off whoever is too slow.
//!
//! - Heads, unread answers and idle times are bounded by [`peer`](super::peer), bodies by [`body`](super::body).
//! - What is sent must be acknowledged within [`UNREAD_TIME_MAX`], so a client that doesn't read can't keep memory.
//! - On shutdown each connection finishes the request it is in.

use super::app::App;
use super::body::Body;
use super::peer::{Listed, Peer, Peers, Streaming};
use super::router::{self, Answer};
use hyper::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How long sent bytes may stay unacknowledged.
const UNREAD_TIME_MAX: Duration = Duration::from_secs(30);
/// What is read ahead of a connection's requests.
const BUFFER_SIZE: usize = 64 * 1024;
/// The pause after accept fails, say for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` turns true, then waits for the open connections and for checkouts whose buyers have left, at most
/// `drain_time`.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    connections_max: u32,
    mut stop: watch::Receiver<bool>,
    drain_time: Duration,
) {
    let places = Arc::new(Semaphore::new(connections_max as usize));
    let peers = Arc::new(Peers::default());
    let watchman = {
        let peers = peers.clone();
        tokio::spawn(async move { peers.watch().await })
    };
    for number in 0.. {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(place) = places.clone().try_acquire_owned() else {
                    // No answer: whoever floods us with connections gets none of our time.
                    app.metrics.connections_refused.fetch_add(1, Relaxed);
                    continue;
                };
                let (peer, listed) = peers.add(number);
                let connection = Connection {
                    app: app.clone(),
                    peers: peers.clone(),
                    peer: peer.clone(),
                    _listed: listed,
                    _place: place,
                };
                let task = tokio::spawn(connection.run(stream));
                Peers::served_by(&peer, task.abort_handle());
            }
            // The system tells nobody when it has file descriptors again.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    drop(listener);
    peers.stop();
    let all = async {
        drop(places.acquire_many(connections_max).await);
        drop(app.checkouts.acquire_many(connections_max).await);
    };
    // Those that are still open then are cut off; what the engine has taken it decides all the same.
    let _ = tokio::time::timeout(drain_time, all).await;
    watchman.abort();
}

struct Connection {
    app: Arc<App>,
    peers: Arc<Peers>,
    peer: Arc<Peer>,
    _listed: Listed,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, stream: TcpStream) {
        if prepare(&stream).is_err() {
            return; // it is gone already
        }
        let open = &self.app.metrics.connections;
        open.fetch_add(1, Relaxed);
        let _closed = OnDrop(|| {
            open.fetch_sub(1, Relaxed);
        });
        let service = service_fn(|request| {
            self.peer.begin();
            Serving {
                answer: router::respond(&self.app, request),
                connection: &self,
            }
        });
        let http = http1::Builder::new()
            .max_buf_size(BUFFER_SIZE)
            .pipeline_flush(true)
            .serve_connection(TokioIo::new(stream), service);
        let mut http = std::pin::pin!(http);
        let mut is_stopping = false;
        std::future::poll_fn(|context| {
            if !is_stopping && self.peer.is_stopping() {
                is_stopping = true;
                http.as_mut().graceful_shutdown();
            }
            // An error is the client's: it broke off or sent what is no HTTP.
            let polled = http.as_mut().poll(context).map(|_| ());
            self.peer.note_waker(context.waker());
            polled
        })
        .await;
    }

    fn answered(&self, mut response: Response<Body>) -> Response<Body> {
        match response.body_mut() {
            Body::Full(_) => self.peer.end(&self.peers),
            Body::Stream(_, streaming) => {
                *streaming = Some(Streaming::new(self.peer.clone(), self.peers.clone()));
            }
        }
        response
    }
}

/// An answer under way, which tells its connection's watch when it is ready.
struct Serving<'a> {
    answer: Answer,
    connection: &'a Connection,
}

impl Future for Serving<'_> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = self.answer.poll(context);
        polled.map(|response| Ok(self.connection.answered(response)))
    }
}

/// Also when a connection is cut off.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(UNREAD_TIME_MAX))?;
    Ok(())
}
