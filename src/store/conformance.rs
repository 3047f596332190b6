//! Proves any store: to be filled.
