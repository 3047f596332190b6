//! The operators' endpoints, all with the admin token. `GET /api/admin/skus/{sku}` shows a SKU: its rules, units and gates.
//! The others are `POST`s under an Idempotency-Key:
//!
//! | address | body |
//! |---|---|
//! | `/api/admin/skus` | `{"sku_id":"SNEAKER","units":100}`, with `hold_ms` (120000), `per_user` (1) and `per_request` (0) as need be; 0 is no limit |
//! | `/api/admin/products/{sku}/open`, `close`, `end` | |
//! | `/api/admin/products/{sku}/pause`, `resume` | `{"what":"reservations"}` or `"confirms"` |
//! | `/api/admin/products/{sku}/restock` | `{"units":100}`; negative units withdraw |
//! | `/api/admin/products/{sku}/return` | `{"units":1}`: sold units come back, without naming the sale |
//! | `/api/admin/reservations/{id}/return` | `{}` for all of it, or a cart |
//!
//! Each but the first takes a `reason`, of which the log keeps 16 bytes. A SKU is defined once: its sale is closed until it
//! is opened, its rules stay, and the same definition again changes nothing.

use super::app::{App, idempotency_key};
use super::body::{Body, json, read_json};
use super::cart::CartBody;
use super::problem::Problem;
use super::reservations::parse;
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::json as object;
use stockade::types::{
    Adjust, DefineSku, Gate, IdempotencyKey, Line, Lines, Query, QueryAnswer, Reason, Return,
    Rules, SetGate, SkuId, SkuName, TOTAL_MAX, Timestamp, UserId,
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

/// Rules stay as they are defined: a member that is misspelt must not be passed over.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DefineBody {
    sku_id: String,
    units: u64,
    hold_ms: Option<u32>,
    per_user: Option<u32>,
    per_request: Option<u32>,
}

impl DefineBody {
    fn command(&self, key: IdempotencyKey) -> Result<DefineSku, Problem> {
        let invalid = |error: String| Problem::bad_request("bad_request", error);
        let name = SkuName::new(&self.sku_id).map_err(|error| invalid(error.to_string()))?;
        if self.units > TOTAL_MAX {
            let text = format!("{} units: give 0 to {TOTAL_MAX}", self.units);
            return Err(Problem::bad_request("quantity_invalid", text));
        }
        let default = Rules::default();
        let limit = |given: Option<u32>, default: Option<u32>| {
            given.map_or(default, |units| (units > 0).then_some(units))
        };
        let rules = Rules {
            hold_ms: self.hold_ms.unwrap_or(default.hold_ms),
            per_user: limit(self.per_user, default.per_user),
            per_request: limit(self.per_request, default.per_request),
            ..default
        };
        DefineSku::new(actor(), name, self.units)
            .key(key)
            .rules(rules)
            .map_err(|error| invalid(error.to_string()))
    }
}

/// `/api/admin/skus`
pub(crate) async fn define(
    app: &App,
    request: Request<Incoming>,
) -> Result<Response<Body>, Problem> {
    let (head, body) = request.into_parts();
    app.admit_admin(&head.headers)?;
    let key = idempotency_key(&head.headers)?;
    let body: DefineBody = read_json(body).await?;
    let command = body.command(key)?;
    let name = command.name.clone();
    app.ask(command, &[]).await?;
    app.catalogue.grow();
    Ok(json(
        StatusCode::CREATED,
        &object!({"sku_id": name.as_str(), "units": body.units}),
    ))
}

/// `GET /api/admin/skus/{sku}`: the rules in the words of a definition, with the times of a sale that has some.
pub(crate) async fn show(
    app: &App,
    headers: &HeaderMap,
    name: &str,
) -> Result<Response<Body>, Problem> {
    app.admit_admin(headers)?;
    let sku = app.catalogue.id(name)?;
    let QueryAnswer::Sku(Some(view)) = app.ask(Query::Sku(sku), &[]).await? else {
        return Err(Problem::unknown_sku(name));
    };
    let rules = view.rules;
    let time = |at: Timestamp, none: Timestamp| (at != none).then(|| at.to_string());
    Ok(json(
        StatusCode::OK,
        &object!({
            "sku_id": view.name.as_str(),
            "status": view.status.name(),
            "sale": view.sale,
            "reservations_paused": view.reservations_paused,
            "confirms_paused": view.confirms_paused,
            "units": view.defined_total,
            "total": view.total,
            "available": view.available,
            "reserved": view.reserved,
            "sold": view.sold,
            "hold_ms": rules.hold_ms,
            "per_user": rules.per_user.unwrap_or(0),
            "per_request": rules.per_request.unwrap_or(0),
            "opens_at": time(rules.opens_at, Timestamp::MIN),
            "closes_at": time(rules.closes_at, Timestamp::MAX),
        }),
    ))
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
        actor: actor(),
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

fn actor() -> UserId {
    UserId::from_text("admin")
}

/// The SKU as a line, for a refusal to name it.
fn one(sku: SkuId) -> [Line; 1] {
    [Line { sku, quantity: 1 }]
}
