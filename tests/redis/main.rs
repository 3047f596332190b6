//! `stockade::redis` against real servers: one, a primary with its replica, a cluster of three; running, killed and paused.
#![expect(clippy::disallowed_methods, reason = "real servers take real time")]

mod cluster;
mod hints;
mod outages;

#[path = "../servers/mod.rs"]
#[expect(dead_code, reason = "shared by several test programs")]
mod servers;
mod versions;

use parking_lot::Mutex;
use std::sync::Arc;
use stockade::cache::{CacheEntry, ReservationEntry};
use stockade::engine::Handle;
use stockade::redis::Fallback;
use stockade::types::{
    Availability, DefineSku, Gate, Query, QueryAnswer, Reserve, Rules, SetGate, SkuId, SkuName,
    Timestamp, UserId,
};

const ADMIN: UserId = UserId(1 << 100);

fn name(text: &str) -> SkuName {
    SkuName::new(text).expect("a name")
}

/// Stock of one unit more for each sequence, so that what was read tells its version.
fn entry(sku: &str, epoch: u64, sequence: u64) -> CacheEntry {
    CacheEntry {
        name: name(sku),
        epoch,
        reservations_from: 0,
        availability: Availability {
            sku: SkuId(0),
            available: sequence,
            reserved: 1,
            sold: epoch,
            total: sequence + epoch + 1,
            sequence,
            as_of: Timestamp::from_micros(sequence),
            not_before: None,
        },
    }
}

fn open_sku(handle: &Handle, sku: &str, total: u64) -> SkuId {
    let rules = Rules {
        per_user: None,
        ..Rules::default()
    };
    let define = DefineSku::new(ADMIN, name(sku), total)
        .rules(rules)
        .expect("rules");
    let sku = handle
        .define_sku(define)
        .expect("room")
        .wait()
        .expect("defined");
    let open = SetGate::new(ADMIN, sku, Gate::Open);
    handle.set_gate(open).expect("room").wait().expect("opened");
    sku
}

fn reserve(handle: &Handle, user: u64, sku: SkuId) -> stockade::types::Reservation {
    let asked = Reserve::one(UserId::from(user), sku, 1).expect("a cart");
    handle.reserve(asked).expect("room").wait().expect("units")
}

/// The engine itself as the authority, once there is one.
#[derive(Clone, Default)]
struct Authority(Arc<Mutex<Option<Handle>>>);

impl Authority {
    fn of(handle: &Handle) -> Self {
        Self(Arc::new(Mutex::new(Some(handle.clone()))))
    }

    fn handle(&self) -> Result<Handle, String> {
        self.0
            .lock()
            .clone()
            .ok_or_else(|| "there is no engine".to_owned())
    }
}

impl Fallback for Authority {
    fn stock(&self, name: &SkuName) -> Result<Option<Availability>, String> {
        let handle = self.handle()?;
        Ok(handle
            .sku(name.as_str())
            .and_then(|sku| handle.availability(sku)))
    }

    fn reservation(
        &self,
        id: stockade::types::ReservationId,
    ) -> Result<Option<ReservationEntry>, String> {
        let handle = self.handle()?;
        let asked = handle
            .query(Query::Reservation(id))
            .map_err(|busy| busy.to_string())?;
        let found = match asked.wait().map_err(|error| error.to_string())? {
            QueryAnswer::Reservation(found) => found,
            other => return Err(format!("{other:?}")),
        };
        Ok(found.map(|view| ReservationEntry {
            id,
            epoch: 0,
            sequence: 0,
            user: view.user,
            status: view.status,
            expires_at: view.expires_at,
            lines: view
                .lines
                .iter()
                .filter_map(|line| Some((handle.sku_name(line.sku)?, line.quantity)))
                .collect(),
        }))
    }
}
