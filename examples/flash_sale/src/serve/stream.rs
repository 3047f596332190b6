//! `GET /api/products/{sku}/stream`: server-sent events, one `stock` event whenever a SKU's stock has changed.
//!
//! A stream looks at the snapshot ten times a second, however fast sales go: a client sees the latest stock, not every
//! step to it. The event's id is the sequence. A client that doesn't read is dropped with its connection.

use super::app::App;
use super::availability::render;
use super::body::Body;
use super::problem::Problem;
use bytes::Bytes;
use hyper::Response;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A comment after so much silence, so that a broken connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that a slow client may be behind.
const BEHIND_MAX: usize = 4;

/// Answers.
pub(crate) fn get(app: &Arc<App>, name: &str) -> Result<Response<Body>, Problem> {
    let sku = app.catalogue.id(name)?;
    let Ok(place) = app.streams.clone().try_acquire_owned() else {
        return Err(Problem::new(
            hyper::StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many streams are open: read the availability now and then",
        )
        .retry_after(5));
    };
    let (pieces, body) = mpsc::channel(BEHIND_MAX);
    let app = app.clone();
    let names = app.catalogue.names();
    let Some(name) = names.name(sku).cloned() else {
        return Err(Problem::unknown_sku(name));
    };
    tokio::spawn(async move {
        let _place = place;
        let mut sent_sequence = None;
        let mut last_piece = Instant::now();
        while !app.is_draining() {
            let Some(stock) = app.desk.availability(sku) else {
                return;
            };
            let piece = if sent_sequence == Some(stock.sequence) {
                (last_piece.elapsed() >= KEEP_ALIVE).then(|| Bytes::from_static(b":\n\n"))
            } else {
                sent_sequence = Some(stock.sequence);
                let mut event =
                    format!("id: {}\nevent: stock\ndata: ", stock.sequence).into_bytes();
                event.extend_from_slice(&render(&name, &stock, app.is_stale()));
                event.extend_from_slice(b"\n\n");
                Some(Bytes::from(event))
            };
            if let Some(piece) = piece {
                if pieces.send(piece).await.is_err() {
                    return; // the client has gone
                }
                last_piece = Instant::now();
            }
            // At most so many pieces a second, however fast the stock changes.
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    let mut response = Response::new(Body::Stream(body, None));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
