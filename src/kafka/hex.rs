//! How both kinds of messages spell numbers that JSON readers would round: in hexadecimal.

/// 32 digits, which is how ids are displayed.
pub(super) fn parse(text: &str) -> Option<u128> {
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

/// 16 digits: a number that JSON readers would round.
pub(super) mod u64 {
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
