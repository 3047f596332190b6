//! Errors as people and programs read them: RFC 9457 problem documents with a stable `code`.
//!
//! | status | codes |
//! |---|---|
//! | 400 | `bad_json`, `bad_request`, `quantity_invalid`, `cart_invalid`, `cross_group`, `idempotency_key_missing`, `too_many_lines` |
//! | 401, 403 | `token_missing`, `token_invalid`, `token_expired`; `not_owner`, `admin_only` |
//! | 402 | `payment_declined` (the hold is kept) |
//! | 404, 405 | `not_found`, `unknown_sku`, `unknown_reservation`; `method_not_allowed` |
//! | 408, 413 | `request_timeout`, `body_too_large` |
//! | 409 | `sold_out`, `user_limit`, `request_limit`, `hold_limit`, `not_open`, `paused`, `key_conflict`, `sku_differs`, `in_payment`, `confirmed`, ... |
//! | 410 | `expired`, `released`, `too_old`, `refunded` |
//! | 429 | `queue_full`, with `queue_depth` and Retry-After |
//! | 421 | `ask_writer`, `ask_api_node` (of those that have these roles apart) |
//! | 503 | `halted`, `draining`, `busy`, `not_decided`, `outcome_unknown`; with Kafka in front also `unavailable`, `lagging` |
//! | 504 | `payment_timeout` (the hold is kept) |

use super::body::Body;
use crate::engine::{Busy, BusyReason, CommandError, failing_line};
use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::{Map, Value};
use stockade::types::{HoldStatus, Refusal, SkuName};

/// An answer that is no success.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    detail: String,
    members: Map<String, Value>,
    pub(crate) retry_after_s: Option<u32>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            members: Map::new(),
            retry_after_s: None,
        }
    }

    pub(crate) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub(crate) fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is nothing at this address",
        )
    }

    pub(crate) fn unknown_sku(name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "unknown_sku",
            format!("no SKU `{name}` is sold here"),
        )
    }

    pub(crate) fn unauthorized(code: &'static str, detail: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
    }

    /// The engine may have decided, but the answer did not come.
    pub(crate) fn outcome_unknown() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "outcome_unknown",
            "whether this was done is not known: ask again with the same Idempotency-Key",
        )
        .retry_after(1)
    }

    /// An API node can't know.
    #[cfg(feature = "kafka")]
    pub(crate) fn ask_writer() -> Self {
        let text = "only the writer of this SKU knows: ask it";
        Self::new(StatusCode::MISDIRECTED_REQUEST, "ask_writer", text)
    }

    /// A writer takes requests from Kafka alone.
    pub(crate) fn ask_api_node() -> Self {
        let text = "this is a writer, which takes requests from Kafka: ask an API node";
        Self::new(StatusCode::MISDIRECTED_REQUEST, "ask_api_node", text)
    }

    /// A further member of the document.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// In so many seconds it may go better.
    #[must_use]
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// What a refusal means over HTTP; `name_of` names the SKU of a cart's line.
    pub(crate) fn refused<'a>(
        refusal: &Refusal,
        name_of: impl Fn(u16) -> Option<&'a SkuName>,
    ) -> Self {
        let mut problem = Self::new(status_of(refusal), code_of(refusal), refusal.to_string());
        if let Some(name) = failing_line(refusal).and_then(name_of) {
            problem.detail = detail_with_name(refusal, name);
            problem = problem.with("sku_id", name.as_str());
        }
        match *refusal {
            Refusal::SoldOut {
                available,
                lapsing,
                not_before,
                ..
            } => {
                problem = problem
                    .with("available", available)
                    .with("lapsing", lapsing);
                if let Some(at) = not_before {
                    problem = problem.with("not_before", at.to_string());
                }
                problem
            }
            Refusal::UserLimit { max, has, .. } => problem.with("max", max).with("has", has),
            Refusal::RequestLimit { max, .. } | Refusal::HoldLimit { max } => {
                problem.with("max", max)
            }
            Refusal::NotOpen {
                opens_at: Some(at), ..
            } => problem.with("opens_at", at.to_string()),
            Refusal::KeyConflict { field } | Refusal::SkuDiffers { field } => {
                problem.with("field", field.name())
            }
            Refusal::Paused { .. } | Refusal::Busy { .. } | Refusal::InPayment { .. } => {
                problem.retry_after(2)
            }
            Refusal::TooLate => problem.retry_after(1),
            Refusal::ExceedsSold { sold, .. } => problem.with("sold", sold),
            Refusal::TotalOutOfRange { min } => problem.with("min", min),
            _ => problem,
        }
    }

    /// There is no room for one more request.
    pub(crate) fn queue_full(queue_depth: usize) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "queue_full",
            "too many requests are in line: try again shortly",
        )
        .with("queue_depth", queue_depth)
        .retry_after(1)
    }

    /// An engine that doesn't take the command.
    pub(crate) fn busy<C>(busy: &Busy<C>) -> Self {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        match busy.reason {
            BusyReason::Full | BusyReason::Tickets | BusyReason::TooLong => {
                Self::queue_full(busy.queue_depth)
            }
            BusyReason::Halted => Self::new(
                unavailable,
                "halted",
                "sales have stopped until an operator has looked at it",
            )
            .retry_after(30),
            _ => Self::draining(),
        }
    }

    /// The server is on its way out.
    pub(crate) fn draining() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "draining",
            "this server is shutting down: try again",
        )
        .retry_after(1)
    }

    /// The engine did not answer the command as hoped.
    pub(crate) fn command<'a>(
        error: &CommandError,
        name_of: impl Fn(u16) -> Option<&'a SkuName>,
    ) -> Self {
        match error {
            CommandError::Refused(refusal) => Self::refused(refusal, name_of),
            CommandError::NotDecided => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not_decided",
                "nothing was done: try again",
            )
            .retry_after(1),
            _ => Self::outcome_unknown(),
        }
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        let mut document = Map::new();
        document.insert("type".into(), "about:blank".into());
        document.insert(
            "title".into(),
            self.status.canonical_reason().unwrap_or("Error").into(),
        );
        document.insert("status".into(), self.status.as_u16().into());
        document.insert("code".into(), self.code.into());
        document.insert("detail".into(), self.detail.into());
        document.extend(self.members);
        let bytes = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = Response::new(Body::full(Bytes::from(bytes)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// For a buyer the SKU's name says more than its number in the engine.
fn detail_with_name(refusal: &Refusal, name: &SkuName) -> String {
    let text = refusal.to_string();
    match refusal {
        Refusal::UserLimit { sku, .. }
        | Refusal::RequestLimit { sku, .. }
        | Refusal::SoldOut { sku, .. }
        | Refusal::ExceedsSold { sku, .. } => text.replace(&sku.to_string(), name.as_str()),
        _ => text,
    }
}

fn code_of(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Ended { status } => match status {
            HoldStatus::Expired => "expired",
            HoldStatus::Released => "released",
            HoldStatus::Confirmed => "confirmed",
            HoldStatus::Held | HoldStatus::InPayment => "ended",
        },
        other => other.code().name(),
    }
}

fn status_of(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::TooManyLines { .. } => StatusCode::BAD_REQUEST,
        Refusal::NotOwner => StatusCode::FORBIDDEN,
        Refusal::UnknownSku { .. } | Refusal::UnknownReservation => StatusCode::NOT_FOUND,
        Refusal::TooOld
        | Refusal::Ended {
            status: HoldStatus::Expired | HoldStatus::Released,
        } => StatusCode::GONE,
        Refusal::TooLate | Refusal::Busy { .. } => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::CONFLICT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stockade::types::{RefusalCode, SkuId};

    #[test]
    fn a_sold_out_refusal_names_the_sku_and_what_may_come_back() {
        let name = SkuName::new("SNEAKER").expect("a name");
        let refusal = Refusal::SoldOut {
            line: 0,
            sku: SkuId(0),
            available: 0,
            lapsing: 3,
            not_before: None,
        };
        let problem = Problem::refused(&refusal, |_| Some(&name));
        assert_eq!(
            (problem.status, problem.code),
            (StatusCode::CONFLICT, RefusalCode::SoldOut.name())
        );
        assert!(problem.detail.contains("SNEAKER"), "{}", problem.detail);
        assert_eq!(problem.members["lapsing"], 3);
    }

    #[test]
    fn an_expired_hold_is_gone_and_a_full_queue_says_how_deep_it_is() {
        let refusal = Refusal::Ended {
            status: HoldStatus::Expired,
        };
        let problem = Problem::refused(&refusal, |_| None);
        assert_eq!(
            (problem.status, problem.code),
            (StatusCode::GONE, "expired")
        );
        let busy = Busy {
            command: (),
            queue_depth: 9,
            reason: BusyReason::Full,
        };
        let response = Problem::busy(&busy).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(response.headers().contains_key(RETRY_AFTER));
    }
}
