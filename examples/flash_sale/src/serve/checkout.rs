//! `POST /api/checkout`: pays for a hold and confirms it.
//!
//! ```text
//! begin_payment ──► gateway.charge ──► captured: confirm ──► 200, or refund and 410
//!  (logged first)                 ├──► declined: payment_failed(keep) ──► 402
//!                                 └──► no answer: void, payment_failed(keep) ──► 504
//! ```
//!
//! The payment's reference is made of the reservation and the payment token, and is the key of both commands. So the
//! same checkout again, after a lost answer or a crash at any point, repeats what was decided and charged, and takes no
//! money twice; another token is another payment.

use super::app::App;
use super::body::{Body, json, read_json};
use super::problem::Problem;
use super::reservations::parse;
use crate::payment::Charge;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::json as object;
use stockade::types::{
    BeginPayment, CommandKind, Confirm, Confirmation, Decision, Disposition, IdempotencyKey,
    PaymentFailed, PaymentRef, Query, QueryAnswer, ReservationId, UserId,
};

#[derive(Deserialize)]
struct CheckoutBody {
    reservation_id: String,
    payment_token: String,
}

/// One payment for one reservation.
struct Payment {
    user: UserId,
    reservation: ReservationId,
    reference: PaymentRef,
    key: IdempotencyKey,
}

const TOKEN_LEN_MAX: usize = 512;

/// Answers.
pub(crate) async fn post(app: &App, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
    let (head, body) = request.into_parts();
    let user = app.user(&head.headers)?;
    let body: CheckoutBody = read_json(body).await?;
    if body.payment_token.is_empty() || body.payment_token.len() > TOKEN_LEN_MAX {
        return Err(Problem::bad_request(
            "bad_request",
            format!("a payment_token has 1 to {TOKEN_LEN_MAX} bytes"),
        ));
    }
    let reservation = parse(&body.reservation_id)?;
    let text = format!("{reservation} {}", body.payment_token);
    let (Ok(payment_ref), Ok(key)) = (
        PaymentRef::from_text(&text),
        IdempotencyKey::from_text(&text),
    ) else {
        return Err(Problem::bad_request("bad_request", "no payment_token"));
    };
    let payment = Payment {
        user,
        reservation,
        reference: payment_ref,
        key,
    };
    let begin = BeginPayment::new(user, reservation, payment_ref).key(key);
    let attempt = match app.ask(begin, &[]).await {
        Ok(payment) => payment.attempt,
        Err(problem) if problem.code == "confirmed" => {
            return payment.repeat(app).await?.ok_or(problem);
        }
        Err(problem) => return Err(problem),
    };
    match app.gateway.charge(payment_ref, &body.payment_token).await {
        Charge::Captured => payment.confirm(app, attempt).await,
        Charge::Declined => {
            payment.keep(app, attempt).await?;
            Err(Problem::new(
                StatusCode::PAYMENT_REQUIRED,
                "payment_declined",
                "the payment was declined; the hold is kept: try another payment before it lapses",
            )
            .with("reservation_id", reservation.to_string()))
        }
        Charge::TimedOut => {
            // Unless the void is acknowledged the money may yet be taken: the hold stays in payment, until its grace ends.
            if app.gateway.void(payment_ref).await {
                payment.keep(app, attempt).await?;
            }
            Err(Problem::new(
                StatusCode::GATEWAY_TIMEOUT,
                "payment_timeout",
                "the payment provider did not answer and nothing is charged; the hold is kept: try again before it lapses",
            )
            .with("reservation_id", reservation.to_string())
            .retry_after(1))
        }
    }
}

impl Payment {
    async fn confirm(&self, app: &App, attempt: u32) -> Result<Response<Body>, Problem> {
        let command =
            Confirm::paid(self.user, self.reservation, attempt, self.reference).key(self.key);
        let confirmation = app.ask(command, &[]).await?;
        self.answer(app, confirmation).await
    }

    async fn answer(&self, app: &App, outcome: Confirmation) -> Result<Response<Body>, Problem> {
        match outcome {
            Confirmation::Sold { reservation } => Ok(json(
                StatusCode::OK,
                &object!({
                    "order_id": reservation.to_string().replacen("res-", "ord-", 1),
                    "reservation_id": reservation.to_string(),
                    "status": "CONFIRMED",
                    "payment_ref": self.reference.to_string(),
                }),
            )),
            Confirmation::RefundDue { payment_ref } => {
                let refunded = app.gateway.refund(payment_ref).await;
                Err(Problem::new(
                    StatusCode::GONE,
                    "refunded",
                    "the hold had lapsed before the payment came and nothing is left: the payment goes back",
                )
                .with("payment_ref", payment_ref.to_string())
                .with("refund_acknowledged", refunded))
            }
        }
    }

    /// The reservation is confirmed: by this payment, then this is its answer again; else `None`.
    async fn repeat(&self, app: &App) -> Result<Option<Response<Body>>, Problem> {
        let query = Query::Status {
            user: self.user,
            kind: CommandKind::Confirm,
            key: self.key,
        };
        match app.ask(query, &[]).await? {
            QueryAnswer::Status(Some(Decision::Confirmed(outcome))) => {
                self.answer(app, outcome).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Nothing was taken: the hold goes on. A later attempt may have begun meanwhile, or the hold may have ended; then
    /// there is nothing left to say.
    async fn keep(&self, app: &App, attempt: u32) -> Result<(), Problem> {
        let failed = PaymentFailed::new(self.user, self.reservation, attempt, Disposition::Keep);
        match app.ask(failed, &[]).await {
            Err(problem) if problem.status == StatusCode::SERVICE_UNAVAILABLE => Err(problem),
            _ => Ok(()),
        }
    }
}
