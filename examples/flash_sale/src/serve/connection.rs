//! Connections: accepts them up to a limit, serves HTTP/1.1 on each, and cuts off whoever is too slow.
//!
//! - A request's head must come within [`HEAD_TIME_MAX`], its body within ten seconds; an idle connection is closed too.
//! - What is sent must be acknowledged within [`UNREAD_TIME_MAX`], so a client that doesn't read can't keep memory.
//! - On shutdown each connection finishes the request it is in.

use super::app::App;
use super::router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How long a connection may take for a request's head, and idle between requests.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// How long sent bytes may stay unacknowledged.
const UNREAD_TIME_MAX: Duration = Duration::from_secs(30);
/// What is read ahead of a connection's requests.
const BUFFER_SIZE: usize = 64 * 1024;
/// The pause after accept fails, say for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` turns true, then waits for the open connections, at most `drain_time`.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    connections_max: u32,
    mut stop: watch::Receiver<bool>,
    drain_time: Duration,
) {
    let places = Arc::new(Semaphore::new(connections_max as usize));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(place) = places.clone().try_acquire_owned() else {
                    // No answer: whoever floods us with connections gets none of our time.
                    app.metrics.connections_refused.fetch_add(1, Relaxed);
                    continue;
                };
                tokio::spawn(connection(stream, app.clone(), place, stop.clone()));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    drop(listener);
    let all = places.acquire_many(connections_max);
    // Those that are still open then are cut off; what the engine has taken it decides all the same.
    let _ = tokio::time::timeout(drain_time, all).await;
}

/// Completes when `stop` turns true, or nobody is left to turn it.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(
    stream: TcpStream,
    app: Arc<App>,
    _place: OwnedSemaphorePermit,
    mut stop: watch::Receiver<bool>,
) {
    if prepare(&stream).is_err() {
        return; // it is gone already
    }
    app.metrics.connections.fetch_add(1, Relaxed);
    let service = service_fn(|request| {
        let app = app.clone();
        async move { Ok::<_, Infallible>(router::respond(app, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(BUFFER_SIZE)
        .pipeline_flush(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // An error of a connection is the client's: it broke off or was too slow.
    let stopping = tokio::select! {
        _ = &mut connection => false,
        () = stopped(&mut stop) => true,
    };
    if stopping {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
    app.metrics.connections.fetch_sub(1, Relaxed);
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(UNREAD_TIME_MAX))?;
    Ok(())
}
