//! What every request can use: the engine's handle, the SKUs by name, who may do what, and the counters.

use super::catalogue::Catalogue;
use super::depletion::Depletion;
use super::metrics::Metrics;
use super::problem::Problem;
use crate::engine::{Ask, Handle, Ticket};
use crate::payment::PaymentGateway;
use crate::token::{Secrets, TokenError, Verifier};
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stockade::types::{IdempotencyKey, Line, UserId};
use tokio::sync::Semaphore;

/// How long a request waits for its decision; then its outcome is unknown to it.
pub(crate) const DECISION_TIME_MAX: Duration = Duration::from_secs(10);
const KEY_LEN_MAX: usize = 255;
/// Streams of stock that may be open at once.
const STREAMS_MAX: usize = 1_024;

/// See the module.
pub(crate) struct App {
    pub(crate) handle: Handle,
    pub(crate) catalogue: Catalogue,
    pub(crate) depletion: Depletion,
    pub(crate) gateway: Arc<dyn PaymentGateway>,
    pub(crate) metrics: Metrics,
    pub(crate) streams: Arc<Semaphore>,
    secrets: Secrets,
    verifier: Verifier,
    draining: AtomicBool,
}

impl App {
    pub(crate) fn new(handle: Handle, secrets: Secrets, gateway: Arc<dyn PaymentGateway>) -> Self {
        Self {
            catalogue: Catalogue::new(handle.clone()),
            depletion: Depletion::default(),
            handle,
            gateway,
            metrics: Metrics::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            verifier: Verifier::new(&secrets.jwt),
            secrets,
            draining: AtomicBool::new(false),
        }
    }

    /// From now on `/readyz` says no.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Whose request it is.
    pub(crate) fn user(&self, headers: &HeaderMap) -> Result<UserId, Problem> {
        self.verifier
            .user(bearer(headers)?)
            .map_err(|error| match error {
                TokenError::Expired => {
                    Problem::unauthorized("token_expired", "the token has expired: get a new one")
                }
                TokenError::Invalid => Problem::unauthorized(
                    "token_invalid",
                    "the token is none of ours: sign it by HS256 with `sub` and `exp`",
                ),
            })
    }

    /// That an operator asks.
    pub(crate) fn admit_admin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if self.secrets.is_admin(bearer(headers)?) {
            return Ok(());
        }
        Err(Problem::new(
            hyper::StatusCode::FORBIDDEN,
            "admin_only",
            "this takes the operators' token",
        ))
    }

    /// Puts a command in line.
    pub(crate) fn submit<C: Ask>(&self, command: C) -> Result<Ticket<C>, Problem> {
        self.handle
            .submit(command)
            .map_err(|busy| Problem::busy(&busy))
    }

    /// Puts a command in line and waits for its decision. `lines` are those of the cart, for a refusal to name.
    pub(crate) async fn ask<C: Ask>(
        &self,
        command: C,
        lines: &[Line],
    ) -> Result<C::Accepted, Problem> {
        match tokio::time::timeout(DECISION_TIME_MAX, self.submit(command)?).await {
            Ok(Ok(accepted)) => Ok(accepted),
            Ok(Err(error)) => {
                let names = self.catalogue.names();
                Err(Problem::command(&error, |line| {
                    names.name(lines.get(usize::from(line))?.sku)
                }))
            }
            Err(_) => Err(Problem::outcome_unknown()),
        }
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        })
        .ok_or_else(|| Problem::unauthorized("token_missing", "send `Authorization: Bearer TOKEN`"))
}

/// The key under which the request may be sent again.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<IdempotencyKey, Problem> {
    let text = headers
        .get("idempotency-key")
        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
        .unwrap_or_default();
    if text.len() > KEY_LEN_MAX {
        return Err(Problem::bad_request(
            "idempotency_key_missing",
            format!("the Idempotency-Key has more than {KEY_LEN_MAX} bytes"),
        ));
    }
    IdempotencyKey::from_text(text).map_err(|_| {
        Problem::bad_request(
            "idempotency_key_missing",
            "send an Idempotency-Key: a text of your own, new for each order and the same for each retry",
        )
    })
}
