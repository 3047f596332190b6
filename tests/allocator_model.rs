//! The allocator against the naive model, over random scripts: `PROPTEST_CASES=20000 cargo test --release --test
//! allocator_model` looks longer. A failure prints its script; `proptest-regressions/` keeps it.

mod model;

use model::pair::Pair;
use proptest::prelude::*;
use std::collections::BTreeSet;
use stockade::types::RefusalCode;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn allocator_decides_as_the_model_and_survives_recovery(
        bytes in prop::collection::vec(any::<u8>(), 0..6_000)
    ) {
        Pair::run(&bytes);
    }
}

fn cases() -> u32 {
    let set = std::env::var("PROPTEST_CASES").ok();
    set.and_then(|cases| cases.parse().ok()).unwrap_or(500)
}

/// Fixed scripts reach every kind of event and every refusal: a generator that stopped doing so would prove nothing.
#[test]
fn scripts_reach_every_event_and_every_refusal() {
    let mut kinds = BTreeSet::new();
    let mut codes = BTreeSet::new();
    for seed in 0..60_u64 {
        let pair = Pair::run(&bytes(seed, 8_000));
        kinds.extend(pair.events.iter().map(|event| event.encode()[0]));
        codes.extend(pair.refusals.iter().map(stockade::types::Refusal::code));
    }
    let missing: Vec<_> = RefusalCode::ALL
        .iter()
        .filter(|code| !codes.contains(code))
        .collect();
    assert!(missing.is_empty(), "refusals that never came: {missing:?}");
    assert_eq!(kinds, (1..=19).collect(), "kinds of events by number");
}

/// `SplitMix64` (Steele, Lea, Flood 2014).
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}
