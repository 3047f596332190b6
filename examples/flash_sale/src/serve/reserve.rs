//! `POST /api/reserve`: a cart becomes a hold, all lines or none.
//!
//! The same Idempotency-Key gives the same answer, also after a restart; so whoever got no answer asks again.

use super::app::{App, idempotency_key};
use super::body::{Body, json, read_json};
use super::cart::{CartBody, LineView, view};
use super::desk::DECISION_TIME_MAX;
use super::problem::Problem;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde::Serialize;
use stockade::types::{Reserve, Timestamp};

#[derive(Serialize)]
struct ReservedView<'a> {
    reservation_id: String,
    status: &'static str,
    expires_at: String,
    expires_in_seconds: f64,
    lines: Vec<LineView<'a>>,
}

/// Answers.
pub(crate) async fn post(app: &App, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
    if !app.desk.has_room() {
        return Err(Problem::queue_full(app.desk.queue_depth()));
    }
    let (head, body) = request.into_parts();
    let user = app.user(&head.headers)?;
    let key = idempotency_key(&head.headers)?;
    let cart: CartBody = read_json(body).await?;
    let lines = cart.lines(&app.catalogue)?;
    let named = lines.clone();
    // Whoever has stopped waiting gets no units.
    let command = Reserve::cart(user, lines)
        .key(key)
        .decide_by(app.desk.now().plus(DECISION_TIME_MAX));
    let reservation = app.ask(command, named.as_slice()).await?;
    let names = app.catalogue.names();
    Ok(json(
        StatusCode::CREATED,
        &ReservedView {
            reservation_id: reservation.id.to_string(),
            status: "RESERVED",
            expires_at: reservation.expires_at.to_string(),
            expires_in_seconds: seconds_until(
                reservation.expires_at,
                app.desk.now_of(reservation.id),
            ),
            lines: view(&names, named.as_slice()),
        },
    ))
}

/// To the millisecond, cut: never more than there is.
pub(crate) fn seconds_until(at: Timestamp, now: Timestamp) -> f64 {
    let ms = u32::try_from(at.micros_since(now) / 1_000).unwrap_or(u32::MAX);
    f64::from(ms) / 1_000.0
}
