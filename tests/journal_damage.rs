//! Damage to a journal's files, over random scripts: `PROPTEST_CASES=100000 cargo test --release --test journal_damage`
//! looks longer, the fuzz target `journal` looks cleverer.

mod damage;

use damage::Outcome;
use proptest::prelude::*;
use std::collections::BTreeSet;

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases())
    })]

    #[test]
    fn a_damaged_journal_is_served_as_it_was_written_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..40)
    ) {
        damage::run(&bytes);
    }
}

fn cases() -> u32 {
    let set = std::env::var("PROPTEST_CASES").ok();
    set.and_then(|cases| cases.parse().ok()).unwrap_or(1_000)
}

/// Scripts that only ever led to refusals would prove little.
#[test]
fn scripts_reach_every_outcome() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..4_000_u64 {
        let mut script = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
        // Not forged.
        script[1] &= !1;
        outcomes.insert(damage::run(&script));
    }
    outcomes.insert(damage::run(&[0, 1, 0, 0]));
    let all = [
        Outcome::Whole,
        Outcome::Dropped,
        Outcome::Gone,
        Outcome::Refused,
        Outcome::Forged,
    ];
    assert_eq!(outcomes, all.into_iter().collect());
}
