//! Which address is what. One `match`, no table: there are few, and the hottest comes before it.

use super::app::App;
use super::body::{Body, json, of_type};
use super::metrics::Route;
use super::problem::Problem;
use super::{admin, availability, checkout, metrics, reservations, reserve, stream};
use crate::engine::State;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json as object;
use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

/// An answer: there already, or on its way.
pub(super) enum Answer {
    Ready(Option<Response<Body>>),
    Later(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
}

impl Answer {
    /// As of a future; not again once it was ready.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Response<Body>> {
        match self {
            Self::Ready(response) => response.take().map_or(Poll::Pending, Poll::Ready),
            Self::Later(future) => future.as_mut().poll(context),
        }
    }
}

/// Answers any request, and counts it. The hottest one needs no future.
pub(super) fn respond(app: &Arc<App>, request: Request<Incoming>) -> Answer {
    let began = Instant::now();
    if let Some(sku) = availability_of(&request) {
        let outcome = decode(sku).and_then(|sku| availability::get(app, &sku));
        return Answer::Ready(Some(counted(app, Route::Availability, outcome, began)));
    }
    let app = app.clone();
    Answer::Later(Box::pin(async move {
        let (route, outcome) = dispatch(&app, request).await;
        counted(&app, route, outcome, began)
    }))
}

fn availability_of(request: &Request<Incoming>) -> Option<&str> {
    let path = request.uri().path().strip_prefix("/api/products/")?;
    let sku = path.strip_suffix("/availability")?;
    (request.method() == Method::GET && !sku.contains('/')).then_some(sku)
}

fn counted(app: &App, route: Route, outcome: Outcome, began: Instant) -> Response<Body> {
    let response = outcome.unwrap_or_else(Problem::into_response);
    let status = response.status().as_u16();
    app.metrics.count(route, status, began.elapsed());
    response
}

type Outcome = Result<Response<Body>, Problem>;

async fn dispatch(app: &Arc<App>, request: Request<Incoming>) -> (Route, Outcome) {
    let uri = request.uri().clone(); // shares its bytes
    let mut segments = uri.path().strip_prefix('/').unwrap_or_default().split('/');
    let path = [(); 6].map(|()| segments.next().unwrap_or_default());
    if segments.next().is_some() {
        return (Route::Other, Err(Problem::not_found()));
    }
    if path[0] == "api" && request.method() != Method::GET && !app.takes_changes() {
        return (Route::Other, Err(Problem::ask_api_node()));
    }
    let headers = request.headers();
    match (request.method(), path) {
        (&Method::POST, ["api", "reserve", "", "", "", ""]) => {
            (Route::Reserve, reserve::post(app, request).await)
        }
        (&Method::POST, ["api", "checkout", "", "", "", ""]) => {
            (Route::Checkout, checkout::post(app, request).await)
        }
        (&Method::GET, ["api", "reservations", id, "", "", ""]) => (
            Route::Reservation,
            reservations::get(app, headers, id).await,
        ),
        (&Method::DELETE, ["api", "reservations", id, "", "", ""]) => (
            Route::Reservation,
            reservations::delete(app, headers, id).await,
        ),
        (&Method::GET, ["api", "products", sku, "stream", "", ""]) => (
            Route::Stream,
            decode(sku).and_then(|sku| stream::get(app, &sku)),
        ),
        (&Method::POST, ["api", "admin", "skus", "", "", ""]) => {
            (Route::Admin, admin::define(app, request).await)
        }
        (&Method::GET, ["api", "admin", "skus", name, "", ""]) if !name.is_empty() => (
            Route::Admin,
            match decode(name) {
                Ok(name) => admin::show(app, headers, &name).await,
                Err(problem) => Err(problem),
            },
        ),
        (&Method::POST, ["api", "admin", kind, name, action, ""]) if !action.is_empty() => (
            Route::Admin,
            match decode(name) {
                Ok(name) => admin::post(app, request, kind, &name, action).await,
                Err(problem) => Err(problem),
            },
        ),
        (&Method::GET | &Method::HEAD, ["livez" | "readyz", "", "", "", "", ""]) => {
            (Route::Other, Ok(probe(app, path[0] == "readyz")))
        }
        (&Method::GET, ["metrics", "", "", "", "", ""]) => {
            let text = Bytes::from(metrics::render(app));
            let kind = "text/plain; version=0.0.4";
            (Route::Other, Ok(of_type(StatusCode::OK, kind, text)))
        }
        (_, path) => (Route::Other, wrong_method(path)),
    }
}

/// The process is alive unless the engine has halted; it is ready while it also takes new requests.
fn probe(app: &App, readiness: bool) -> Response<Body> {
    let health = app.health();
    let state = match &health.state {
        State::Running if health.is_degraded() => "degraded",
        State::Running => "running",
        State::Halted(_) => "halted",
        _ => "draining",
    };
    let reason = match health.state {
        State::Halted(reason) => Some(reason),
        _ => None,
    };
    let fine = state != "halted" && !(readiness && app.is_draining());
    let status = if fine {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json(
        status,
        &object!({
            "state": state,
            "reason": reason,
            "draining": app.is_draining(),
            "warnings": health.warnings,
            "queue_depth": app.desk.queue_depth(),
        }),
    )
}

fn wrong_method(path: [&str; 6]) -> Outcome {
    let allowed = match path {
        ["api", "reserve" | "checkout", "", "", "", ""] | ["api", "admin", "skus", "", "", ""] => {
            "POST"
        }
        ["api", "products", _, "availability" | "stream", "", ""]
        | ["api", "admin", "skus", _, "", ""]
        | ["livez" | "readyz" | "metrics", "", "", "", "", ""] => "GET",
        ["api", "reservations", _, "", "", ""] => "GET, DELETE",
        ["api", "admin", _, _, action, ""] if !action.is_empty() => "POST",
        _ => return Err(Problem::not_found()),
    };
    let problem = Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("this address takes {allowed}"),
    );
    let mut response = problem.into_response();
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    Ok(response)
}

/// Undoes percent-encoding.
fn decode(segment: &str) -> Result<Cow<'_, str>, Problem> {
    if !segment.contains('%') {
        return Ok(Cow::Borrowed(segment));
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let hex = (byte == b'%')
            .then(|| std::str::from_utf8(after.get(..2)?).ok())
            .flatten();
        match (byte, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(decoded)) => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            (b'%', None) => return Err(Problem::not_found()),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8(bytes)
        .map(Cow::Owned)
        .map_err(|_| Problem::not_found())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_addresses_are_percent_decoded() {
        let decoded = |text| decode(text).ok().map(Cow::into_owned);
        assert_eq!(decoded("a%20b%C3%A9").as_deref(), Some("a bé"));
        assert_eq!(decoded("plain").as_deref(), Some("plain"));
        assert_eq!(decoded("%"), None);
        assert_eq!(decoded("%zz"), None);
        assert_eq!(decoded("%FF"), None);
    }
}
