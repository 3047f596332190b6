//! What lies in Redis: keys, fields, and the script that writes them. The module's docs list them for other programs.

use crate::cache::{CacheEntry, Change, ReservationChange, ReservationEntry};
use crate::types::{Availability, HoldStatus, ReservationId, SkuId, SkuName, Timestamp, UserId};
use ::redis::{Cmd, Script, Value, cmd};
use std::time::Duration;

/// Numbers in Lua are doubles: versions below this compare exactly.
pub(super) const VERSION_MAX: u64 = 1 << 53;
/// A hold outlives its deadline in Redis by so much: the writer's own expiry comes first while there is a writer.
const HOLD_GRACE: Duration = Duration::from_secs(1);

/// `KEYS` the hash, `ARGV` epoch, sequence, time-to-live in milliseconds (0: remove it), `known` to leave a missing one
/// missing, then fields and values. 0 if a newer version is there, or nothing of what must be.
pub(super) const PUT: &str = "\
local known = redis.call('HMGET', KEYS[1], 'epoch', 'sequence')
local epoch, sequence = tonumber(known[1]), tonumber(known[2])
if epoch then
  local new = tonumber(ARGV[1])
  if epoch > new or (epoch == new and sequence > tonumber(ARGV[2])) then return 0 end
elseif ARGV[4] == 'known' then return 0 end
if ARGV[3] == '0' then return redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'sequence', ARGV[2], unpack(ARGV, 5))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
";

const STOCK_FIELDS: [&str; 10] = [
    "epoch",
    "sequence",
    "reservations_from",
    "sku",
    "available",
    "reserved",
    "sold",
    "total",
    "as_of",
    "not_before",
];
const RESERVATION_FIELDS: [&str; 6] =
    ["epoch", "sequence", "user", "status", "expires_at", "lines"];

/// What stands before a reservation's id in its key.
pub(super) const RESERVATION: &str = "reservation:{";

/// Makes the commands. Braces mark what a cluster hashes, so that other keys of a SKU can lie beside its stock.
pub(super) struct Layout {
    prefix: String,
    stock_ttl: Duration,
    put_hash: String,
}

impl Layout {
    pub(super) fn new(prefix: &str, stock_ttl: Duration) -> Self {
        Self {
            prefix: prefix.to_owned(),
            stock_ttl,
            put_hash: Script::new(PUT).get_hash().to_owned(),
        }
    }

    pub(super) fn stock_key(&self, name: &SkuName) -> String {
        format!("{}stock:{{{}}}", self.prefix, name.as_str())
    }

    pub(super) fn reservation_key(&self, id: ReservationId) -> String {
        format!("{}{RESERVATION}{id}}}", self.prefix)
    }

    fn put(&self, key: &str, epoch: u64, sequence: u64, ttl: Duration, known: bool) -> Cmd {
        let mut put = cmd("EVALSHA");
        put.arg(&self.put_hash)
            .arg(1)
            .arg(key)
            .arg(epoch)
            .arg(sequence);
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        put.arg(ttl_ms).arg(if known { "known" } else { "" });
        put
    }

    pub(super) fn put_stock(&self, key: &str, entry: &CacheEntry) -> Cmd {
        let stock = &entry.availability;
        let mut put = self.put(key, entry.epoch, stock.sequence, self.stock_ttl, false);
        let not_before = stock.not_before.map(|at| at.as_micros().to_string());
        let numbers = [
            entry.reservations_from,
            stock.sku.0.into(),
            stock.available,
            stock.reserved,
            stock.sold,
            stock.total,
            stock.as_of.as_micros(),
        ];
        for (field, number) in STOCK_FIELDS[2..].iter().zip(numbers) {
            put.arg(field).arg(number);
        }
        put.arg("not_before").arg(not_before.unwrap_or_default());
        put
    }

    pub(super) fn apply(&self, key: &str, changed: &ReservationChange) -> Cmd {
        let until = |expires_at: Timestamp| expires_at.since(changed.at) + HOLD_GRACE;
        let put = |ttl, known| self.put(key, changed.epoch, changed.sequence, ttl, known);
        match &changed.change {
            Change::Made {
                user,
                lines,
                expires_at,
            } => {
                let mut put = put(until(*expires_at), false);
                put.arg("user").arg(user.to_string());
                put.arg("status").arg(HoldStatus::Held.name());
                put.arg("expires_at").arg(expires_at.as_micros());
                let lines = lines
                    .iter()
                    .map(|(name, units)| format!("{units} {}\n", name.as_str()));
                put.arg("lines").arg(lines.collect::<String>());
                put
            }
            Change::Moved { status, expires_at } => {
                let mut put = put(until(*expires_at), true);
                put.arg("status").arg(status.name());
                put.arg("expires_at").arg(expires_at.as_micros());
                put
            }
            Change::Ended => put(Duration::ZERO, true),
        }
    }

    pub(super) fn get_stock(key: &str) -> Cmd {
        let mut get = cmd("HMGET");
        get.arg(key).arg(&STOCK_FIELDS);
        get
    }

    pub(super) fn get_reservation(key: &str) -> Cmd {
        let mut get = cmd("HMGET");
        get.arg(key).arg(&RESERVATION_FIELDS);
        get
    }
}

/// The answer to `get_stock`: `Ok(None)` for a key that is not there.
///
/// # Errors
/// If what is there is nothing that this program writes.
pub(super) fn stock(name: &SkuName, answer: &Value) -> Result<Option<CacheEntry>, String> {
    let Some(fields) = fields::<10>(answer)? else {
        return Ok(None);
    };
    let [
        epoch,
        sequence,
        reservations_from,
        sku,
        available,
        reserved,
        sold,
        total,
        as_of,
        not_before,
    ] = &fields;
    let not_before = if not_before.is_empty() {
        None
    } else {
        Some(Timestamp::from_micros(number(not_before)?))
    };
    Ok(Some(CacheEntry {
        name: name.clone(),
        epoch: number(epoch)?,
        reservations_from: number(reservations_from)?,
        availability: Availability {
            sku: SkuId(number(sku)?),
            available: number(available)?,
            reserved: number(reserved)?,
            sold: number(sold)?,
            total: number(total)?,
            sequence: number(sequence)?,
            as_of: Timestamp::from_micros(number(as_of)?),
            not_before,
        },
    }))
}

/// The answer to `get_reservation`, likewise.
///
/// # Errors
/// As for [`stock`].
pub(super) fn reservation(
    id: ReservationId,
    answer: &Value,
) -> Result<Option<ReservationEntry>, String> {
    let Some(fields) = fields::<6>(answer)? else {
        return Ok(None);
    };
    let [epoch, sequence, user, status, expires_at, lines] = &fields;
    let user = u128::from_str_radix(user, 16).map_err(|_| garbled(user))?;
    let status = [HoldStatus::Held, HoldStatus::InPayment]
        .into_iter()
        .find(|known| known.name() == status)
        .ok_or_else(|| garbled(status))?;
    let line = |line: &str| -> Result<_, String> {
        let (units, name) = line.split_once(' ').ok_or_else(|| garbled(line))?;
        Ok((
            SkuName::new(name).map_err(|_| garbled(line))?,
            number(units)?,
        ))
    };
    Ok(Some(ReservationEntry {
        id,
        epoch: number(epoch)?,
        sequence: number(sequence)?,
        user: UserId(user),
        status,
        expires_at: Timestamp::from_micros(number(expires_at)?),
        lines: lines.lines().map(line).collect::<Result<_, _>>()?,
    }))
}

/// All fields or none.
fn fields<const N: usize>(answer: &Value) -> Result<Option<[String; N]>, String> {
    let fields: Vec<Option<String>> =
        ::redis::from_redis_value_ref(answer).map_err(|error| error.to_string())?;
    if fields.iter().all(Option::is_none) {
        return Ok(None);
    }
    let fields: Option<Vec<String>> = fields.into_iter().collect();
    let fields = fields.and_then(|fields| <[String; N]>::try_from(fields).ok());
    fields
        .map(Some)
        .ok_or_else(|| "a field is missing".to_owned())
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| garbled(text))
}

fn garbled(text: &str) -> String {
    format!("`{text}` is not what belongs there")
}
