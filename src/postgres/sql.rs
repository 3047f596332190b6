//! How the crate's ids travel to and from PostgreSQL: 128-bit ids as `uuid`, reservations as `int8`, times as `timestamptz`.
//!
//! Programs that read the tables use the same impls: a `UserId` is a parameter like any other.

use crate::types::{IdempotencyKey, PaymentRef, ReservationId, SkuName, Timestamp, UserId};
use bytes::BytesMut;
use std::error::Error;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

/// Microseconds from 1970 to 2000, where PostgreSQL's time begins: 10,957 days.
const EPOCH_MICROS: i64 = 10_957 * 86_400 * 1_000_000;

/// PostgreSQL's first time beyond its range.
const MICROS_END: i64 = 9_223_371_331_200_000_000;

type SqlError = Box<dyn Error + Sync + Send>;

/// 128 bits as a `uuid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id128(pub(super) u128);

impl ToSql for Id128 {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, SqlError> {
        out.extend_from_slice(&self.0.to_be_bytes());
        Ok(IsNull::No)
    }

    accepts!(UUID);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Id128 {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, SqlError> {
        Ok(Self(u128::from_be_bytes(raw.try_into()?)))
    }

    accepts!(UUID);
}

/// Impls of an id by those of what it is made of.
macro_rules! as_sql {
    ($id:ty, $inner:ty, |$value:ident| $to:expr, |$raw:ident| $from:expr) => {
        impl ToSql for $id {
            fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, SqlError> {
                let $value = self;
                <$inner as ToSql>::to_sql(&$to, kind, out)
            }

            fn accepts(kind: &Type) -> bool {
                <$inner as ToSql>::accepts(kind)
            }

            to_sql_checked!();
        }

        impl<'a> FromSql<'a> for $id {
            fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, SqlError> {
                let $raw = <$inner as FromSql>::from_sql(kind, raw)?;
                $from
            }

            fn accepts(kind: &Type) -> bool {
                <$inner as FromSql>::accepts(kind)
            }
        }
    };
}

as_sql!(UserId, Id128, |user| Id128(user.0), |id| Ok(Self(id.0)));
as_sql!(IdempotencyKey, Id128, |key| Id128(key.get()), |id| {
    Self::new(id.0).ok_or_else(|| "a key of zero".into())
});
as_sql!(PaymentRef, Id128, |payment| Id128(payment.get()), |id| {
    Self::new(id.0).ok_or_else(|| "a payment reference of zero".into())
});
as_sql!(ReservationId, i64, |id| id.get().cast_signed(), |number| {
    Ok(Self::from_u64(number.cast_unsigned()))
});

/// What lies beyond PostgreSQL's last day, the year 294276, is `infinity`.
impl ToSql for Timestamp {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, SqlError> {
        let micros = i64::try_from(self.as_micros()).map(|micros| micros - EPOCH_MICROS);
        let micros = micros.ok().filter(|&micros| micros < MICROS_END);
        let micros = micros.unwrap_or(i64::MAX);
        out.extend_from_slice(&micros.to_be_bytes());
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Timestamp {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, SqlError> {
        let micros = i64::from_be_bytes(raw.try_into()?);
        if micros >= MICROS_END {
            return Ok(Self::MAX);
        }
        let micros = u64::try_from(micros + EPOCH_MICROS)?;
        Ok(Self::from_micros(micros))
    }

    accepts!(TIMESTAMPTZ);
}

impl ToSql for SkuName {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, SqlError> {
        self.as_str().to_sql(kind, out)
    }

    fn accepts(kind: &Type) -> bool {
        <&str as ToSql>::accepts(kind)
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for SkuName {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, SqlError> {
        Ok(Self::new(<&str as FromSql>::from_sql(kind, raw)?)?)
    }

    fn accepts(kind: &Type) -> bool {
        <&str as FromSql>::accepts(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: ToSql + for<'a> FromSql<'a>>(value: &T, kind: &Type) -> T {
        assert!(
            <T as ToSql>::accepts(kind) && <T as FromSql>::accepts(kind),
            "{kind}"
        );
        let mut bytes = BytesMut::new();
        value.to_sql(kind, &mut bytes).expect("it can be sent");
        T::from_sql(kind, &bytes).expect("it can be read")
    }

    #[test]
    fn ids_survive_the_way_there_and_back() {
        let user = UserId(1 << 127 | 5);
        assert_eq!(round_trip(&user, &Type::UUID), user);
        let id = ReservationId::new(u16::MAX, 77);
        assert_eq!(round_trip(&id, &Type::INT8), id);
        let name = SkuName::new("SNEAKER-42").expect("a name");
        assert_eq!(round_trip(&name, &Type::TEXT), name);
    }

    #[test]
    fn times_survive_and_the_end_of_time_is_infinity() {
        for micros in [0, 1, 946_684_800_000_000, 1_800_000_000_123_456] {
            let at = Timestamp::from_micros(micros);
            assert_eq!(round_trip(&at, &Type::TIMESTAMPTZ), at);
        }
        assert_eq!(
            round_trip(&Timestamp::MAX, &Type::TIMESTAMPTZ),
            Timestamp::MAX
        );
        let before = (-EPOCH_MICROS - 1).to_be_bytes();
        assert!(
            Timestamp::from_sql(&Type::TIMESTAMPTZ, &before).is_err(),
            "before 1970"
        );
    }
}
