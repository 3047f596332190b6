//! [`Placement`]: which partition, and so which writer, decides a request.
//!
//! ```text
//! a group of SKUs    one partition, by the hash of the group's name
//! a hot SKU          several partitions, its pools: a user's by the hash of the user
//! a reservation      the partition that made it
//! ```
//!
//! Whoever asks, and whoever moves units, must have the same placement, as long as anything is sold by it.

use super::client::AskError;
use super::request::{Body, NamedTransfer, Request};
use crate::types::{ReservationId, SkuName, UserId, pool_of};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Which partition, and so which writer, sells what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    partitions: u32,
    groups: BTreeMap<SkuName, String>,
    pools: BTreeMap<SkuName, Vec<u32>>,
}

/// The shards that sell a SKU can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// A SKU has at least one.
    #[error("{0} has no pools: name its shards")]
    None(SkuName),
    /// One twice.
    #[error("{sku} has two pools of shard {shard}: name each once")]
    Twice {
        /// Of which SKU.
        sku: SkuName,
        /// Which.
        shard: u16,
    },
    /// One that is no partition.
    #[error("{sku} has a pool of shard {shard}, and there are {partitions} partitions")]
    UnknownShard {
        /// Of which SKU.
        sku: SkuName,
        /// Which.
        shard: u16,
        /// How many there are.
        partitions: u32,
    },
}

impl Placement {
    /// Every SKU is a group of its own, placed as Kafka's own partitioner places a record under the group's name as its key.
    pub fn new(partitions: u32) -> Self {
        Self {
            partitions: partitions.max(1),
            groups: BTreeMap::new(),
            pools: BTreeMap::new(),
        }
    }

    /// Puts SKUs that are sold in one cart into one group. A SKU that has been sold stays where it was.
    #[must_use]
    pub fn group(mut self, name: &str, skus: impl IntoIterator<Item = SkuName>) -> Self {
        let placed = skus.into_iter().map(|sku| (sku, name.to_owned()));
        self.groups.extend(placed);
        self
    }

    /// Splits a hot SKU over the writers of several shards: a user is served by the one at [`pool_of`] in this order. SKUs
    /// with the same pools in the same order can be in one cart. Neither number nor order may change during a sale: most
    /// users would have another pool, where their limits begin anew and their keys are not known.
    ///
    /// # Errors
    /// Shards that can't be.
    pub fn pools(
        mut self,
        sku: SkuName,
        shards: impl IntoIterator<Item = u16>,
    ) -> Result<Self, PlacementError> {
        let mut pools: Vec<u32> = Vec::new();
        for shard in shards {
            let partitions = self.partitions;
            if u32::from(shard) >= partitions {
                return Err(PlacementError::UnknownShard {
                    sku,
                    shard,
                    partitions,
                });
            }
            if pools.contains(&shard.into()) {
                return Err(PlacementError::Twice { sku, shard });
            }
            pools.push(shard.into());
        }
        if pools.is_empty() {
            return Err(PlacementError::None(sku));
        }
        self.pools.insert(sku, pools);
        Ok(self)
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u32 {
        self.partitions
    }

    /// The group of a SKU: the key of its requests' records.
    pub fn group_of<'a>(&'a self, sku: &'a SkuName) -> &'a str {
        self.groups.get(sku).map_or(sku.as_str(), String::as_str)
    }

    /// The partition of a SKU, which is its shard; the first of a SKU with pools.
    pub fn partition_of(&self, sku: &SkuName) -> u32 {
        self.partitions_of(sku)[0]
    }

    /// The shards that sell a SKU, at least one: its pools in their order.
    pub fn shards_of(&self, sku: &SkuName) -> Vec<u16> {
        let partitions = self.partitions_of(sku);
        let shards = partitions.iter();
        // A topic with more partitions than there are shards has writers for those that there are.
        shards
            .filter_map(|&partition| u16::try_from(partition).ok())
            .collect()
    }

    /// The partition that serves a user who wants a SKU.
    pub fn partition_for(&self, sku: &SkuName, user: UserId) -> u32 {
        let pools = self.partitions_of(sku);
        pools[pool_of(user, pools.len())]
    }

    /// The partitions of a SKU, at least one.
    fn partitions_of(&self, sku: &SkuName) -> Cow<'_, [u32]> {
        if let Some(pools) = self.pools.get(sku) {
            return Cow::Borrowed(pools);
        }
        let hash = murmur2(self.group_of(sku).as_bytes()) & 0x7FFF_FFFF;
        Cow::Owned(vec![hash % self.partitions])
    }

    /// Where a request goes.
    pub(super) fn place(&self, request: &Request) -> Result<u32, AskError> {
        if let Body::Withdraw(transfer) | Body::Deposit(transfer) = &request.body {
            let is_out = matches!(request.body, Body::Withdraw(_));
            return self.place_half(transfer, is_out);
        }
        let mut skus = request.skus();
        let Some(first) = skus.next() else {
            let reservation = request.reservation();
            return self.known(reservation.map_or(0, ReservationId::shard));
        };
        let pools = self.partitions_of(first);
        if let Some(other) = skus.find(|sku| self.partitions_of(sku) != pools) {
            return Err(AskError::CrossGroup {
                first: first.clone(),
                other: other.clone(),
            });
        }
        if let Some(reservation) = request.reservation() {
            return self.seller(first, reservation.shard());
        }
        if pools.len() > 1 && !matches!(request.body, Body::Reserve { .. }) {
            return Err(AskError::WhichPool {
                sku: first.clone(),
                pools: pools.len(),
            });
        }
        Ok(pools[pool_of(request.user, pools.len())])
    }

    /// Where a request goes that a shard is named for: one of those that sell what it speaks of.
    pub(super) fn place_at(&self, request: &Request, shard: u16) -> Result<u32, AskError> {
        match self.place(request) {
            Err(AskError::WhichPool { sku, .. }) => self.seller(&sku, shard),
            Ok(partition) if partition != u32::from(shard) => {
                Err(AskError::OtherShard { shard: partition })
            }
            placed => placed,
        }
    }

    fn place_half(&self, transfer: &NamedTransfer, is_out: bool) -> Result<u32, AskError> {
        let (from, to) = (transfer.from, transfer.to);
        let from = self.seller(&transfer.sku, from)?;
        let to = self.seller(&transfer.sku, to)?;
        Ok(if is_out { from } else { to })
    }

    /// The partition of a shard that sells a SKU.
    pub(super) fn seller(&self, sku: &SkuName, shard: u16) -> Result<u32, AskError> {
        let partition = self.known(shard)?;
        if self.partitions_of(sku).contains(&partition) {
            return Ok(partition);
        }
        let sku = sku.clone();
        Err(AskError::NotSoldThere { sku, shard })
    }

    /// The partition of a shard.
    fn known(&self, shard: u16) -> Result<u32, AskError> {
        let partitions = self.partitions;
        if u32::from(shard) < partitions {
            return Ok(shard.into());
        }
        Err(AskError::UnknownShard { shard, partitions })
    }
}

/// The hash of Kafka's default partitioner, so that producers elsewhere agree with this one.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5BD1_E995;
    const SEED: u32 = 0x9747_B28C;
    let mix = |k: u32| {
        let k = k.wrapping_mul(M);
        (k ^ (k >> 24)).wrapping_mul(M)
    };
    let (words, rest) = data.as_chunks::<4>();
    let mut hash = SEED ^ u32::try_from(data.len()).unwrap_or(u32::MAX);
    for &word in words {
        hash = hash.wrapping_mul(M) ^ mix(u32::from_le_bytes(word));
    }
    if !rest.is_empty() {
        let word = rest.iter().rev();
        hash ^= word.fold(0, |word, &byte| (word << 8) | u32::from(byte));
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Gate, IdempotencyKey, Reason};

    fn sku(name: &str) -> SkuName {
        SkuName::new(name).expect("a name")
    }

    fn request(user: u64, body: Body) -> Request {
        Request::new(
            UserId::from(user),
            IdempotencyKey::new(1).expect("not zero"),
            body,
        )
    }

    fn cart(user: u64, skus: &[&str]) -> Request {
        let lines = skus.iter().map(|name| (sku(name), 1)).collect();
        request(user, Body::Reserve { lines })
    }

    /// `HOT` and `HOTTER` in three pools, whose order is not that of their numbers; `COLD` is a group in partition 2.
    fn placement() -> Placement {
        let placed = Placement::new(8).pools(sku("HOT"), [5, 2, 7]);
        let placed = placed.and_then(|placed| placed.pools(sku("HOTTER"), [5, 2, 7]));
        let placed = placed.and_then(|placed| placed.pools(sku("OTHER"), [2, 5, 7]));
        let placed = placed.expect("partitions that there are");
        let groups = (0..).map(|n| placed.clone().group(&format!("group {n}"), [sku("COLD")]));
        let mut fitting = groups.filter(|placed| placed.partition_of(&sku("COLD")) == 2);
        fitting.next().expect("one of eight")
    }

    #[test]
    fn a_user_meets_one_pool_and_a_reservation_its_own() {
        let placed = placement();
        let mut met = [0; 3];
        for user in 0..300 {
            let pool = pool_of(UserId::from(user), 3);
            met[pool] += 1;
            let partition = [5, 2, 7][pool];
            for skus in [&["HOT"][..], &["HOTTER"], &["HOT", "HOTTER"]] {
                assert_eq!(placed.place(&cart(user, skus)), Ok(partition));
            }
            // Whoever names it, and where the user is served.
            let reservation = ReservationId::new(7, 1);
            let ends = request(user, Body::Release { reservation });
            assert_eq!(placed.place(&ends), Ok(7));
            let back = Body::Return {
                reservation: Some(reservation),
                lines: Some(vec![(sku("HOT"), 1)]),
                reason: Reason::default(),
            };
            assert_eq!(placed.place(&request(user, back)), Ok(7));
        }
        assert!(met.iter().all(|&users| users > 60), "{met:?}");
        let reservation = ReservationId::new(8, 1);
        let ends = request(1, Body::Release { reservation });
        let unknown = AskError::UnknownShard {
            shard: 8,
            partitions: 8,
        };
        assert_eq!(placed.place(&ends), Err(unknown));
        let back = Body::Return {
            reservation: Some(ReservationId::new(3, 1)),
            lines: Some(vec![(sku("HOT"), 1)]),
            reason: Reason::default(),
        };
        let elsewhere = AskError::NotSoldThere {
            sku: sku("HOT"),
            shard: 3,
        };
        assert_eq!(placed.place(&request(1, back)), Err(elsewhere));
    }

    /// Also for the users whom one partition would happen to serve: a cart that only some can order is none.
    #[test]
    fn a_cart_that_spans_writers_is_refused_for_everybody() {
        let placed = placement();
        for user in 0..30 {
            for (first, other) in [("HOT", "COLD"), ("COLD", "HOT"), ("HOT", "OTHER")] {
                let crossed = AskError::CrossGroup {
                    first: sku(first),
                    other: sku(other),
                };
                assert_eq!(placed.place(&cart(user, &[first, other])), Err(crossed));
            }
        }
    }

    #[test]
    fn what_an_administrator_does_is_for_a_pool_that_he_names() {
        let placed = placement();
        let open = |name| {
            let (change, reason) = (Gate::Open, Reason::default());
            let sku = sku(name);
            request(
                1,
                Body::SetGate {
                    sku,
                    change,
                    reason,
                },
            )
        };
        let which = AskError::WhichPool {
            sku: sku("HOT"),
            pools: 3,
        };
        assert_eq!(placed.place(&open("HOT")), Err(which));
        for shard in [5, 2, 7] {
            assert_eq!(placed.place_at(&open("HOT"), shard), Ok(shard.into()));
        }
        let elsewhere = AskError::NotSoldThere {
            sku: sku("HOT"),
            shard: 3,
        };
        assert_eq!(placed.place_at(&open("HOT"), 3), Err(elsewhere));
        assert_eq!(placed.place(&open("COLD")), Ok(2));
        assert_eq!(placed.place_at(&open("COLD"), 2), Ok(2));
        let other = Err(AskError::OtherShard { shard: 2 });
        assert_eq!(placed.place_at(&open("COLD"), 5), other);
        // No user is served by another pool than his own, whoever says so.
        let user = (0..100_u64).find(|&user| pool_of(UserId::from(user), 3) == 1);
        let asked = cart(user.expect("a third of them"), &["HOT"]);
        let other = Err(AskError::OtherShard { shard: 2 });
        assert_eq!(placed.place_at(&asked, 5), other);
        assert_eq!(placed.place_at(&asked, 2), Ok(2));
    }

    #[test]
    fn halves_of_a_transfer_go_to_its_shards_which_must_be_pools() {
        let placed = placement();
        let half = |from, to, is_out| {
            let transfer = NamedTransfer {
                sku: sku("HOT"),
                from,
                to,
                number: 1,
                units: 1,
            };
            let body = if is_out {
                Body::Withdraw(transfer)
            } else {
                Body::Deposit(transfer)
            };
            placed.place(&request(1, body))
        };
        assert_eq!((half(5, 7, true), half(5, 7, false)), (Ok(5), Ok(7)));
        let elsewhere = AskError::NotSoldThere {
            sku: sku("HOT"),
            shard: 3,
        };
        assert_eq!(half(5, 3, true), Err(elsewhere));
    }

    #[test]
    fn pools_that_can_not_be_are_refused() {
        let of = |shards: &[u16]| Placement::new(4).pools(sku("A"), shards.iter().copied());
        assert_eq!(of(&[]), Err(PlacementError::None(sku("A"))));
        let twice = PlacementError::Twice {
            sku: sku("A"),
            shard: 1,
        };
        assert_eq!(of(&[1, 2, 1]), Err(twice));
        let unknown = PlacementError::UnknownShard {
            sku: sku("A"),
            shard: 4,
            partitions: 4,
        };
        assert_eq!(of(&[0, 4]), Err(unknown));
    }

    #[test]
    fn groups_lie_where_kafkas_own_partitioner_puts_them() {
        // As in the tests of org.apache.kafka.common.utils.Utils.
        for (key, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }
}
