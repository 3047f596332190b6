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
//!
//! A checkout runs in a task of its own: a buyer who leaves ends nothing. Once his money is taken the confirm is repeated until it
//! is decided, also after he was told that it takes longer.

use super::app::App;
use super::body::{Body, json, read_json};
use super::problem::Problem;
use super::reservations::parse;
use crate::payment::Charge;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::json as object;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use stockade::types::{
    BeginPayment, CommandKind, Confirm, Confirmation, Decision, Disposition, IdempotencyKey,
    PaymentFailed, PaymentRef, Query, QueryAnswer, ReservationId, UserId,
};
use tokio::sync::oneshot;

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
    /// As the gateway takes it.
    token: String,
}

type Outcome = Result<Response<Body>, Problem>;

const TOKEN_LEN_MAX: usize = 512;
/// How often a confirm is repeated, each time after the pause that its refusal asks for, 1 s at least.
const REPEATS_MAX: u32 = 600;

/// Answers.
pub(crate) async fn post(app: &Arc<App>, request: Request<Incoming>) -> Outcome {
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
    let (Ok(reference), Ok(key)) = (
        PaymentRef::from_text(&text),
        IdempotencyKey::from_text(&text),
    ) else {
        return Err(Problem::bad_request("bad_request", "no payment_token"));
    };
    let payment = Payment {
        user,
        reservation,
        reference,
        key,
        token: body.payment_token,
    };
    let Ok(place) = app.checkouts.clone().try_acquire_owned() else {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many payments are under way: try again shortly",
        )
        .retry_after(1));
    };
    let app = Arc::clone(app);
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let _place = place;
        payment.run(&app, tell).await;
    });
    told.await
        .unwrap_or_else(|_| Err(Problem::outcome_unknown()))
}

impl Payment {
    async fn run(&self, app: &App, tell: oneshot::Sender<Outcome>) {
        let (attempt, outcome) = match self.charge(app).await {
            ControlFlow::Continue(attempt) => (attempt, self.confirm(app, attempt).await),
            ControlFlow::Break(outcome) => {
                // Whoever has left is told nothing.
                let _ = tell.send(outcome);
                return;
            }
        };
        let mut again = again_after(&outcome);
        let _ = tell.send(outcome);
        for _ in 0..REPEATS_MAX {
            let Some(pause) = again else { return };
            // Who put it off said for how long; the end of that is no event.
            tokio::time::sleep(pause).await;
            again = again_after(&self.confirm(app, attempt).await);
        }
    }

    /// Takes the money. Gives the attempt, or the answer if there is nothing to confirm.
    async fn charge(&self, app: &App) -> ControlFlow<Outcome, u32> {
        let begin = BeginPayment::new(self.user, self.reservation, self.reference).key(self.key);
        let attempt = match app.ask(begin, &[]).await {
            Ok(payment) => payment.attempt,
            Err(problem) if problem.code == "confirmed" => {
                return ControlFlow::Break(self.repeat(app, problem).await);
            }
            Err(problem) => return ControlFlow::Break(Err(problem)),
        };
        let problem = match app.gateway.charge(self.reference, &self.token).await {
            Charge::Captured => return ControlFlow::Continue(attempt),
            Charge::Declined => {
                if let Err(problem) = self.keep(app, attempt).await {
                    return ControlFlow::Break(Err(problem));
                }
                Problem::new(
                    StatusCode::PAYMENT_REQUIRED,
                    "payment_declined",
                    "the payment was declined; the hold is kept: try another payment before it lapses",
                )
            }
            Charge::TimedOut => {
                // Unless the void is acknowledged the money may yet be taken: the hold stays in payment, until its grace ends.
                if app.gateway.void(self.reference).await
                    && let Err(problem) = self.keep(app, attempt).await
                {
                    return ControlFlow::Break(Err(problem));
                }
                Problem::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "payment_timeout",
                    "the payment provider did not answer and nothing is charged; the hold is kept: try again before it lapses",
                )
                .retry_after(1)
            }
        };
        let id = self.reservation.to_string();
        ControlFlow::Break(Err(problem.with("reservation_id", id)))
    }

    async fn confirm(&self, app: &App, attempt: u32) -> Outcome {
        let command =
            Confirm::paid(self.user, self.reservation, attempt, self.reference).key(self.key);
        let confirmation = app.ask(command, &[]).await?;
        self.answer(app, confirmation).await
    }

    async fn answer(&self, app: &App, outcome: Confirmation) -> Outcome {
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

    /// The reservation is confirmed: by this payment, then this is its answer again; else that is the problem.
    async fn repeat(&self, app: &App, problem: Problem) -> Outcome {
        let query = Query::Status {
            user: self.user,
            kind: CommandKind::Confirm,
            key: self.key,
        };
        match app.ask(query, &[]).await {
            Ok(QueryAnswer::Status(Some(Decision::Confirmed(outcome)))) => {
                self.answer(app, outcome).await
            }
            // An API node can't ask, and need not: it was told `confirmed` in answer to a key that the writer doesn't know.
            Err(unasked) if unasked.code != "ask_writer" => Err(unasked),
            _ => Err(problem),
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

/// When to try again what may go better then.
fn again_after(outcome: &Outcome) -> Option<Duration> {
    let problem = outcome.as_ref().err()?;
    let seconds = problem.retry_after_s?;
    Some(Duration::from_secs(seconds.into()))
}
