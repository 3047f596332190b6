//! Hot SKU pools: random histories with crashes between the halves of a transfer, lost answers, repeated and reordered
//! messages; and four engines that sell one SKU out, to the unit.

#[path = "pools/history.rs"]
mod history;
#[path = "pools/sale.rs"]
mod sale;
