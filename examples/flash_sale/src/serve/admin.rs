//! The operators' endpoints, all `POST`, all with the admin token and an Idempotency-Key:
//!
//! | address | body |
//! |---|---|
//! | `/api/admin/products/{sku}/open`, `close`, `end` | |
//! | `/api/admin/products/{sku}/pause`, `resume` | `{"what":"reservations"}` or `"confirms"` |
//! | `/api/admin/products/{sku}/restock` | `{"units":100}`; negative units withdraw |
//! | `/api/admin/products/{sku}/return` | `{"units":1}`: sold units come back, without naming the sale |
//! | `/api/admin/reservations/{id}/return` | `{}` for all of it, or a cart |
//!
//! Each takes a `reason`, of which the log keeps 16 bytes.

use super::app::{App, idempotency_key};
use super::body::{Body, json, read_json};
use super::cart::CartBody;
use super::problem::Problem;
use super::reservations::parse;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::json as object;
use stockade::types::{
    Adjust, Gate, IdempotencyKey, Line, Lines, Reason, Return, SetGate, SkuId, UserId,
};

#[derive(Deserialize, Default)]
struct AdminBody {
    what: Option<String>,
    units: Option<i64>,
    #[serde(default)]
    reason: String,
    #[serde(flatten)]
    cart: Option<CartBody>,
}

/// One request of an operator.
struct Operation<'a> {
    app: &'a App,
    actor: UserId,
    key: IdempotencyKey,
    body: AdminBody,
}

/// `/api/admin/{kind}/{name}/{action}`
pub(crate) async fn post(
    app: &App,
    request: Request<Incoming>,
    kind: &str,
    name: &str,
    action: &str,
) -> Result<Response<Body>, Problem> {
    let (head, body) = request.into_parts();
    app.admit_admin(&head.headers)?;
    let operation = Operation {
        app,
        actor: UserId::from_text("admin"),
        key: idempotency_key(&head.headers)?,
        body: read_json(body).await?,
    };
    match (kind, action) {
        ("products", "open") => operation.gate(name, Gate::Open).await,
        ("products", "close") => operation.gate(name, Gate::Close).await,
        ("products", "end") => operation.gate(name, Gate::EndSale).await,
        ("products", "pause" | "resume") => {
            let change = match (operation.body.what.as_deref(), action) {
                (Some("reservations"), "pause") => Gate::PauseReservations,
                (Some("reservations"), _) => Gate::ResumeReservations,
                (Some("confirms"), "pause") => Gate::PauseConfirms,
                (Some("confirms"), _) => Gate::ResumeConfirms,
                _ => {
                    return Err(Problem::bad_request(
                        "bad_request",
                        "give what: \"reservations\" or \"confirms\"",
                    ));
                }
            };
            operation.gate(name, change).await
        }
        ("products", "restock") => operation.restock(name).await,
        ("products", "return") => operation.return_sku(name).await,
        ("reservations", "return") => operation.return_reservation(name).await,
        _ => Err(Problem::not_found()),
    }
}

impl Operation<'_> {
    async fn gate(&self, name: &str, change: Gate) -> Result<Response<Body>, Problem> {
        let sku = self.app.catalogue.id(name)?;
        let command = SetGate::new(self.actor, sku, change)
            .key(self.key)
            .reason(self.reason());
        let sale = self.app.ask(command, &one(sku)).await?;
        Ok(json(
            StatusCode::OK,
            &object!({"sku_id": name, "sale": sale}),
        ))
    }

    async fn restock(&self, name: &str) -> Result<Response<Body>, Problem> {
        let sku = self.app.catalogue.id(name)?;
        let delta = self.units()?;
        let command = Adjust::new(self.actor, self.key, sku, delta).reason(self.reason());
        let total = self.app.ask(command, &one(sku)).await?;
        Ok(json(
            StatusCode::OK,
            &object!({"sku_id": name, "total": total}),
        ))
    }

    async fn return_sku(&self, name: &str) -> Result<Response<Body>, Problem> {
        let sku = self.app.catalogue.id(name)?;
        let lines = u32::try_from(self.units()?)
            .ok()
            .and_then(|units| Lines::one(sku, units).ok())
            .ok_or_else(|| {
                Problem::bad_request("quantity_invalid", "give units: 1 to 2147483647")
            })?;
        let command = Return::of_skus(self.actor, self.key, lines.clone()).reason(self.reason());
        let units = self.app.ask(command, lines.as_slice()).await?;
        Ok(json(
            StatusCode::OK,
            &object!({"sku_id": name, "returned": units}),
        ))
    }

    async fn return_reservation(&self, id: &str) -> Result<Response<Body>, Problem> {
        let reservation = parse(id)?;
        let lines = match &self.body.cart {
            Some(cart) if !cart.is_empty() => Some(cart.lines(&self.app.catalogue)?),
            _ => None,
        };
        let named = lines.clone();
        let command =
            Return::of_reservation(self.actor, self.key, reservation, lines).reason(self.reason());
        let named = named.as_ref().map_or(&[][..], Lines::as_slice);
        let units = self.app.ask(command, named).await?;
        Ok(json(
            StatusCode::OK,
            &object!({"reservation_id": reservation.to_string(), "returned": units}),
        ))
    }

    fn units(&self) -> Result<i64, Problem> {
        self.body
            .units
            .filter(|&units| units != 0)
            .ok_or_else(|| Problem::bad_request("quantity_invalid", "give units, not 0"))
    }

    fn reason(&self) -> Reason {
        Reason::new(&self.body.reason)
    }
}

/// The SKU as a line, for a refusal to name it.
fn one(sku: SkuId) -> [Line; 1] {
    [Line { sku, quantity: 1 }]
}
