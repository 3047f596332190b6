//! `GET` and `DELETE /api/reservations/{id}`, for the reservation's owner only.

use super::app::App;
use super::body::{Body, json};
use super::cart::{LineView, view};
use super::problem::Problem;
use super::reserve::seconds_until;
use hyper::{HeaderMap, Response, StatusCode};
use serde::Serialize;
use serde_json::json as object;
use stockade::types::{Refusal, Release, ReservationId, ReservationView, UserId};

#[derive(Serialize)]
struct View<'a> {
    reservation_id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_seconds: Option<f64>,
    lines: Vec<LineView<'a>>,
}

/// Shows it.
pub(crate) async fn get(
    app: &App,
    headers: &HeaderMap,
    id: &str,
) -> Result<Response<Body>, Problem> {
    let user = app.user(headers)?;
    let found = find(app, parse(id)?, user).await?;
    let live = found.status.is_live();
    let now = app.desk.now_of(found.id);
    let names = app.catalogue.names();
    Ok(json(
        StatusCode::OK,
        &View {
            reservation_id: found.id.to_string(),
            status: found.status.name(),
            expires_at: live.then(|| found.expires_at.to_string()),
            expires_in_seconds: live.then(|| seconds_until(found.expires_at, now)),
            lines: view(&names, &found.lines),
        },
    ))
}

/// Gives it back. Once released, it stays released: asking again is fine.
pub(crate) async fn delete(
    app: &App,
    headers: &HeaderMap,
    id: &str,
) -> Result<Response<Body>, Problem> {
    let user = app.user(headers)?;
    let id = parse(id)?;
    match app.ask(Release::new(user, id), &[]).await {
        Ok(()) => {}
        Err(problem) if problem.code == "released" => {}
        Err(problem) => return Err(problem),
    }
    let released = object!({"reservation_id": id.to_string(), "status": "RELEASED"});
    Ok(json(StatusCode::OK, &released))
}

/// The id in an address or a body.
pub(crate) fn parse(id: &str) -> Result<ReservationId, Problem> {
    id.parse()
        .map_err(|_| Problem::refused(&Refusal::UnknownReservation, |_| None))
}

async fn find(app: &App, id: ReservationId, user: UserId) -> Result<ReservationView, Problem> {
    match app.reservation(id).await? {
        Some(found) if found.user == user => Ok(found),
        Some(_) => Err(Problem::refused(&Refusal::NotOwner, |_| None)),
        None => Err(Problem::refused(&Refusal::UnknownReservation, |_| None)),
    }
}
