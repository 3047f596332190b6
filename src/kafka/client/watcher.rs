//! The thread that watches: how far each writer is behind, and whose replies will never come.
//!
//! With its position a writer copies the offset up to which everybody was told: their replies are in the topic, or given up, or were
//! a former writer's. So a request before it at one look, and without an answer when this node has heard all that its reply topic
//! held at that look, gets none any more: it is sent once more.

use super::super::cluster;
use super::Shared;
use crate::types::Clock;
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::TopicPartitionList;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often the cluster is asked, and how long one answer may take.
const WATCH_EVERY: Duration = Duration::from_secs(1);
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_millis(800);
/// How long the cluster may not answer before requests are refused.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// What the cluster said at one look.
struct Look {
    /// By partition: up to where everybody was told.
    told: Vec<u64>,
    /// The end of this node's replies, asked for after that.
    replies_end: i64,
}

impl Shared {
    pub(super) fn watch(&self) {
        let mut answered_at = self.time.monotonic();
        let mut last: Option<Look> = None;
        while !self.is_stopped() {
            let asked_at = self.time.monotonic();
            let now = match self.measure() {
                Ok(look) => {
                    answered_at = self.time.monotonic();
                    if let Some(last) = last.replace(look) {
                        self.ask_again(&last);
                    }
                    None
                }
                Err(error) => Some(error),
            };
            let silence = self.time.monotonic().saturating_sub(answered_at);
            // One question without an answer is no trouble yet.
            *self.trouble.lock() = now.filter(|_| silence > SILENCE_MAX);
            let passed = self.time.monotonic().saturating_sub(asked_at);
            std::thread::park_timeout(WATCH_EVERY.saturating_sub(passed));
        }
    }

    /// Sends what the look says was told once more, if this node has heard all replies of then and there was none.
    fn ask_again(&self, last: &Look) {
        if self.heard.load(Ordering::Acquire) < last.replies_end {
            return;
        }
        for id in self.in_flight.passed(&last.told) {
            // It may have been given up meanwhile.
            let Some(message) = self.in_flight.take_message(id) else {
                continue;
            };
            self.asked_again.fetch_add(1, Ordering::Relaxed);
            if self.transmit(id, &message).is_err() {
                // The producer has no room: at the next look.
                self.asked_again.fetch_sub(1, Ordering::Relaxed);
                self.in_flight.keep_message(id, message);
            }
        }
    }

    /// How far each writer is behind what the topic holds.
    fn measure(&self) -> Result<Look, String> {
        let topic = &self.options.requests;
        let mut list = TopicPartitionList::new();
        let partitions = (0_i32..).take(self.lags.len());
        for partition in partitions.clone() {
            list.add_partition(topic, partition);
        }
        let copied = self.watcher.committed_offsets(list, ANSWERS_WITHIN);
        let copied = copied.map_err(|error| error.to_string())?;
        let mut told = Vec::new();
        for (partition, lag) in partitions.zip(&self.lags) {
            let (low, high) = cluster::bounds(&self.watcher, topic, partition, ANSWERS_WITHIN)
                .map_err(|error| error.to_string())?;
            let copy = copied.find_partition(topic, partition);
            let (at, all_told) = copy.map_or((0, 0), |copy| cluster::copied(&copy));
            // At 0 no writer has begun.
            let at = if at == 0 { low.unsigned_abs() } else { at };
            let behind = high.unsigned_abs().saturating_sub(at);
            lag.store(behind, Ordering::Relaxed);
            cluster::meter("stockade_kafka_lag_seen", topic, partition, behind);
            told.push(all_told);
        }
        let (replies, own) = (&self.options.replies, self.options.reply_partition);
        let (_, replies_end) = cluster::bounds(&self.watcher, replies, own, ANSWERS_WITHIN)
            .map_err(|error| error.to_string())?;
        Ok(Look { told, replies_end })
    }
}
