//! Completion cells.
