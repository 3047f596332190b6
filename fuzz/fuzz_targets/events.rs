//! Any bytes: decoding never panics, and what decodes encodes back to the same bytes.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run events`

#![no_main]

use libfuzzer_sys::fuzz_target;
use stockade::types::{Batch, Event, RefusalRecord, StateRecord, Timestamp};

fuzz_target!(|bytes: &[u8]| {
    if let Some(record) = bytes.first_chunk() {
        if let Ok(event) = Event::decode(record) {
            assert_eq!(event.encode(), *record);
        }
        if let Ok(state) = StateRecord::decode(record) {
            assert_eq!(state.encode(), *record);
        }
    }
    if let Some((stamp, packed)) = bytes.split_first_chunk()
        && let Some(packed) = packed.first_chunk()
    {
        let stamp = Timestamp::from_micros(u64::from_le_bytes(*stamp));
        if let Ok(refusal) = RefusalRecord::decode(packed, stamp) {
            let before = RefusalRecord::events_before(packed);
            assert_eq!(refusal.encode(stamp, before), *packed);
        }
    }
    if let Ok(batch) = Batch::decode(bytes) {
        let mut again = Vec::new();
        batch.encode_into(&mut again);
        assert_eq!(again, bytes);
    }
});
