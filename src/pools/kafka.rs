//! Pools whose writers are reached through Kafka: what an API node, or a process of its own, balances with.
//!
//! ```text
//! Pools<KafkaPool> ─ view, withdraw, deposit ─► reservation-requests/p ─► writer of shard p
//!        ▲                                                                    │
//!        └───────────────── KafkaClient ◄─ reservation-replies/own ◄──────────┘
//! ```
//!
//! A pool's stock is what its writer last said: to the question with which every step of the balancer begins, and to its
//! transfers. The balancer needs the accounts from that question anyway, and they must be the writer's, so the counts come with
//! them: no database and no cache has to be asked, and nothing can be older than the last step. What users do in between isn't
//! seen before the next one.
//!
//! Nothing is kept here that must not be lost. A command whose reply doesn't come may have been decided, or lie in the topic
//! still: the next step asks behind it, in the same partition, and goes on from what the accounts say. A question is decided by
//! nobody and recorded nowhere, but it rides in a batch: several a second and pool cost nothing, thousands do.

use super::{Pool, PooledStock};
use crate::engine::CommandError;
use crate::kafka::{AskError, KafkaClient, Request};
use crate::types::{
    Command, Decision, Deposit, IdempotencyKey, PoolView, Refusal, SkuName, Withdraw,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// How long an answer is waited for, if nothing else is said.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// A pool whose writer is reached through Kafka.
pub struct KafkaPool {
    client: Arc<KafkaClient>,
    shard: u16,
    sku: SkuName,
    answer_within: Duration,
    known: Mutex<Option<PooledStock>>,
}

impl KafkaPool {
    /// All pools of a SKU, in the order of the client's [placement](crate::kafka::Placement::pools): one, if it says nothing
    /// of pools. Nobody is asked yet.
    pub fn all(client: &Arc<KafkaClient>, sku: &SkuName) -> Vec<Self> {
        let shards = client.placement().shards_of(sku).into_iter();
        let of_shard = |shard| Self {
            client: Arc::clone(client),
            shard,
            sku: sku.clone(),
            answer_within: ANSWER_WITHIN,
            known: Mutex::new(None),
        };
        shards.map(of_shard).collect()
    }

    /// How long to wait for an answer (1 s): longer than a writer is behind under load. A step waits so long for a writer that is
    /// away, while users of the other pools get no units from each other.
    #[must_use]
    pub fn answer_within(mut self, time: Duration) -> Self {
        self.answer_within = time;
        self
    }

    fn ask(
        &self,
        command: impl Into<Command>,
        key: IdempotencyKey,
    ) -> Result<Decision, CommandError> {
        let name = |_| Some(self.sku.clone());
        let request = Request::from_command(command.into(), key, name);
        let request = request.ok_or(CommandError::NotDecided)?;
        let replied = self.client.ask(&request, self.answer_within);
        match replied.map_err(|error| unanswered(&error))?.decision {
            Decision::Refused(refusal) => Err(CommandError::Refused(refusal)),
            decision => Ok(decision),
        }
    }

    /// Units have left or come since the pool was last looked at.
    fn moved(&self, change: impl Fn(u64) -> u64) {
        if let Some(known) = &mut *self.known.lock() {
            known.available = change(known.available);
            known.total = change(known.total);
        }
    }
}

fn unanswered(error: &AskError) -> CommandError {
    match error {
        AskError::Unknown => CommandError::Unknown,
        // Nothing was sent.
        _ => CommandError::NotDecided,
    }
}

impl Pool for KafkaPool {
    fn shard(&self) -> u16 {
        self.shard
    }

    fn stock(&self) -> Option<PooledStock> {
        *self.known.lock()
    }

    fn view(&self) -> Result<PoolView, CommandError> {
        let found = self.client.pool(self.shard, &self.sku, self.answer_within);
        let view = found.map_err(|error| unanswered(&error))?;
        let view = view.ok_or(CommandError::Refused(Refusal::UnknownSku { line: 0 }))?;
        if view.shard != self.shard {
            // The partition's writer has another number.
            let shard = view.shard;
            return Err(CommandError::Refused(Refusal::OtherShard { shard }));
        }
        *self.known.lock() = Some(PooledStock {
            available: view.available,
            reserved: view.reserved,
            sold: view.sold,
            total: view.total,
        });
        Ok(view)
    }

    fn withdraw(&self, command: Withdraw) -> Result<u64, CommandError> {
        let Decision::Withdrawn { units } = self.ask(command, command.key)? else {
            return Err(CommandError::Unknown);
        };
        self.moved(|count| count.saturating_sub(units));
        Ok(units)
    }

    fn deposit(&self, command: Deposit) -> Result<u64, CommandError> {
        let Decision::Deposited { units } = self.ask(command, command.key)? else {
            return Err(CommandError::Unknown);
        };
        self.moved(|count| count.saturating_add(units));
        Ok(units)
    }
}
