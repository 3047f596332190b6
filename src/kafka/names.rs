//! The words and numbers that both kinds of messages have: gates, bounds, statuses and fields by name, ids in hexadecimal.

use crate::types::{Bound, Field, Gate, HoldStatus, RefusalCode};

/// Gates in the order of their numbers.
pub(super) const GATES: [(Gate, &str); 7] = [
    (Gate::Open, "open"),
    (Gate::Close, "close"),
    (Gate::PauseReservations, "pause_reservations"),
    (Gate::ResumeReservations, "resume_reservations"),
    (Gate::PauseConfirms, "pause_confirms"),
    (Gate::ResumeConfirms, "resume_confirms"),
    (Gate::EndSale, "end_sale"),
];

/// Bounds in the order of their numbers.
pub(super) const BOUNDS: [(Bound, &str); 6] = [
    (Bound::Reservations, "reservations"),
    (Bound::AcceptedKeys, "accepted_keys"),
    (Bound::Counters, "counters"),
    (Bound::Payments, "payments"),
    (Bound::Skus, "skus"),
    (Bound::HoldDurations, "hold_durations"),
];

// Names are looked up by number.
const _: () = {
    let mut index = 0;
    while index < GATES.len() {
        assert!(GATES[index].0 as usize == index, "gates are in order");
        index += 1;
    }
    index = 0;
    while index < BOUNDS.len() {
        assert!(BOUNDS[index].0 as usize == index, "bounds are in order");
        index += 1;
    }
};

pub(super) fn named<T: Copy>(names: &[(T, &str)], name: Option<&str>) -> Option<T> {
    let name = name?;
    let found = names.iter().find(|(_, known)| *known == name)?;
    Some(found.0)
}

pub(super) fn status(name: &str) -> Option<HoldStatus> {
    let all = [
        HoldStatus::Held,
        HoldStatus::InPayment,
        HoldStatus::Confirmed,
        HoldStatus::Released,
        HoldStatus::Expired,
    ];
    all.into_iter().find(|status| status.name() == name)
}

pub(super) fn field(name: &str) -> Option<Field> {
    let all = [
        Field::Lines,
        Field::Reservation,
        Field::PaymentRef,
        Field::Attempt,
        Field::Disposition,
        Field::Sku,
        Field::Delta,
        Field::Total,
        Field::Rules,
        Field::Change,
    ];
    all.into_iter().find(|field| field.name() == name)
}

pub(super) fn code(name: &str) -> Option<RefusalCode> {
    let codes = RefusalCode::ALL.iter().copied();
    codes.into_iter().find(|code| code.name() == name)
}

/// 32 digits, which is how ids are displayed.
pub(super) fn hex(text: &str) -> Option<u128> {
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

/// 16 digits: a number that JSON readers would round.
pub(super) mod hex_u64 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::borrow::Cow;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
    pub(in super::super) fn serialize<S: Serializer>(
        number: &u64,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{number:016x}"))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<u64, D::Error> {
        let text = Cow::<'de, str>::deserialize(from)?;
        let number = u64::from_str_radix(&text, 16).ok();
        let number = number.filter(|_| text.len() == 16 && !text.starts_with('+'));
        number.ok_or_else(|| D::Error::custom("not 16 hexadecimal digits"))
    }
}
