//! Which node of a cluster has a key.

use super::nodes::Address;
use ::redis::Value;

/// Slots of a cluster.
const SLOTS: u16 = 16_384;

/// The slot of a key: CRC16 (XMODEM) of what stands between the first `{` and the next `}`, if anything does, else of the
/// whole key. Source: Redis cluster specification, "Hash tags".
pub(super) fn slot_of(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'));
    let hashed = tag
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty())
        .unwrap_or(key);
    let crc = hashed.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            }
        })
    });
    crc % SLOTS
}

/// A run of slots and the node that has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotRange {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) primary: Address,
}

/// The answer to `CLUSTER SLOTS` of the node at `asked`; `None` if it makes no sense.
pub(super) fn parse(answer: &Value, asked: &Address) -> Option<Vec<SlotRange>> {
    let range = |row: &Value| {
        let row = row.as_sequence()?;
        let node = row.get(2)?.as_sequence()?;
        let host: Option<String> = ::redis::from_redis_value_ref(node.first()?).ok()?;
        // A node that doesn't know its own name means the one under which it was asked.
        let host = host.filter(|host| !host.is_empty() && host != "?");
        Some(SlotRange {
            first: ::redis::from_redis_value_ref(row.first()?).ok()?,
            last: ::redis::from_redis_value_ref(row.get(1)?).ok()?,
            primary: Address {
                host: host.unwrap_or_else(|| asked.host.clone()),
                port: ::redis::from_redis_value_ref(node.get(1)?).ok()?,
            },
        })
    };
    answer.as_sequence()?.iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_lies_where_redis_puts_it() {
        // As `CLUSTER KEYSLOT` says.
        for (key, slot) in [
            ("123456789", 12_739),
            ("foo", 12_182),
            ("stock:{foo}", 12_182),
            ("{}foo", 9_500),
            ("foo{bar}{zap}", 5_061),
        ] {
            assert_eq!(slot_of(key), slot, "{key}");
        }
        assert_eq!(slot_of("foo{{bar}}zap"), slot_of("{bar"));
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_none() {
        let asked = Address {
            host: "here".into(),
            port: 1,
        };
        let node = Value::Array(vec![Value::BulkString(Vec::new()), Value::Int(7)]);
        let row = vec![Value::Int(0), Value::Int(16_383), node];
        let range = SlotRange {
            first: 0,
            last: 16_383,
            primary: Address {
                host: "here".into(),
                port: 7,
            },
        };
        let answer = Value::Array(vec![Value::Array(row)]);
        assert_eq!(parse(&answer, &asked), Some(vec![range]));
        assert_eq!(parse(&Value::Okay, &asked), None);
        assert_eq!(parse(&Value::Array(vec![Value::Int(1)]), &asked), None);
    }
}
