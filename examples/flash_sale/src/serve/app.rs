//! What every request can use: the desk, the SKUs by name, who may do what, and the counters.

use super::Config;
use super::catalogue::Catalogue;
use super::depletion::Depletion;
use super::desk::Desk;
use super::metrics::Metrics;
use super::problem::Problem;
use crate::engine::{Ask, Health};
use crate::ingest::Feed;
use crate::payment::PaymentGateway;
use crate::token::{Secrets, TokenError, Verifier};
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use stockade::types::{IdempotencyKey, Line, ReservationId, ReservationView, UserId};
use tokio::sync::Semaphore;

const KEY_LEN_MAX: usize = 255;
/// Streams of stock that may be open at once.
const STREAMS_MAX: usize = 1_024;

/// See the module.
pub(crate) struct App {
    pub(crate) desk: Arc<Desk>,
    /// What brings requests from Kafka, if anything does.
    pub(crate) feed: Option<Arc<Feed>>,
    pub(crate) catalogue: Catalogue,
    pub(crate) depletion: Depletion,
    pub(crate) gateway: Arc<dyn PaymentGateway>,
    pub(crate) metrics: Metrics,
    pub(crate) streams: Arc<Semaphore>,
    /// Checkouts that may be under way, whether or not somebody still waits for them: as many as connections.
    pub(crate) checkouts: Arc<Semaphore>,
    secrets: Secrets,
    verifier: Verifier,
    draining: AtomicBool,
    stale: AtomicBool,
    takes_changes: bool,
}

impl App {
    pub(crate) fn new(desk: Desk, config: Config) -> Self {
        let Config {
            secrets,
            gateway,
            feed,
            takes_changes,
            connections_max,
            ..
        } = config;
        let desk = Arc::new(desk);
        Self {
            catalogue: Catalogue::new(Arc::clone(&desk)),
            depletion: Depletion::default(),
            desk,
            feed,
            gateway,
            metrics: Metrics::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            checkouts: Arc::new(Semaphore::new(connections_max as usize)),
            verifier: Verifier::new(&secrets.jwt),
            secrets,
            draining: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            takes_changes,
        }
    }

    /// From now on `/readyz` says no.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Looks whether stock can still be known.
    pub(crate) fn refresh(&self) {
        self.stale.store(self.desk.is_stale(), Ordering::Relaxed);
    }

    /// Whether the stock that is shown may have changed since, as of the last look.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// Whether sales go through this server; a writer behind Kafka only shows what is so.
    pub(crate) fn takes_changes(&self) -> bool {
        self.takes_changes
    }

    /// The desk's, with what keeps requests from coming.
    pub(crate) fn health(&self) -> Health {
        let mut health = self.desk.health();
        let waits = self.feed.as_ref().and_then(|feed| feed.warning());
        health.warnings.extend(waits);
        health
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

    /// Puts a command in line and waits for its decision. `lines` are those of the cart, for a refusal to name.
    pub(crate) async fn ask<C: Ask>(
        &self,
        command: C,
        lines: &[Line],
    ) -> Result<C::Accepted, Problem> {
        let names = self.catalogue.names();
        self.desk.ask(command, &names, lines).await
    }

    /// A reservation, live or ended.
    pub(crate) async fn reservation(
        &self,
        id: ReservationId,
    ) -> Result<Option<ReservationView>, Problem> {
        let names = self.catalogue.names();
        self.desk.reservation(id, &names).await
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
