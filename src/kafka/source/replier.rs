//! The thread that answers: a reply for each durable decision, to the node that asked.

use super::super::reply::{self, Reply};
use super::super::request::ReplyTo;
use super::{POLL, Sent, Shared};
use crate::types::{Answer, Decision, QueryAnswer, Submit};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseRecord, Producer as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// A source that was stopped waits so long for the answers to what it has submitted.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Replier {
    pub(super) shared: Arc<Shared>,
    pub(super) engine: Arc<dyn Submit>,
    pub(super) reader: std::thread::Thread,
}

impl Replier {
    pub(super) fn run(self, sent: &Receiver<Sent>) {
        loop {
            match sent.recv_timeout(POLL) {
                Ok(sent) => self.answer(sent),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.shared.producer.poll(Duration::ZERO);
        }
        // Whoever doesn't get his reply asks again.
        let _ = self.shared.producer.flush(POLL);
    }

    fn answer(&self, sent: Sent) {
        let Sent {
            mut answers,
            to,
            end,
        } = sent;
        let mut patience = STOP_PATIENCE;
        let answers = loop {
            match answers.wait(POLL) {
                Ok(answers) => break answers,
                Err(again) => answers = again,
            }
            if self.shared.is_stopped() {
                patience = patience.saturating_sub(POLL);
                if patience.is_zero() {
                    return;
                }
            }
            self.shared.producer.poll(Duration::ZERO);
        };
        // Else the successor decides it, or has decided it already: this writer knows nothing that it may say.
        let are_durable = answers
            .iter()
            .all(|answer| !matches!(answer, None | Some(Answer::NotDecided)));
        let answers = answers.into_iter().zip(to).filter_map(|(answer, to)| {
            let to = to?;
            Some((to.partition, self.message(to, answer?)?))
        });
        let replies: Vec<_> = answers.collect();
        if are_durable {
            self.shared.told.add(end, replies.len());
        }
        for (partition, message) in replies {
            self.reply(end, partition, &message);
        }
        if are_durable {
            self.shared.position.store(end, Ordering::Release);
        }
        self.reader.unpark();
    }

    fn message(&self, to: ReplyTo, answer: Answer) -> Option<Vec<u8>> {
        let decision = match answer {
            Answer::Decided(decision) => decision,
            Answer::Found(found) => {
                // The only question that messages ask.
                let QueryAnswer::Pool(view) = *found else {
                    return None;
                };
                return Some(reply::encode_pool(to.node, to.id, view.as_ref()));
            }
            Answer::NotDecided => return None,
        };
        let sku = match &decision {
            Decision::Refused(refusal) => reply::sku_of(refusal),
            _ => None,
        };
        let sku = sku.and_then(|sku| self.engine.sku_name(sku));
        Some(reply::encode(to.node, to.id, &Reply { decision, sku }))
    }

    /// Sends a reply of the run that ends there.
    fn reply(&self, end: u64, partition: i32, message: &[u8]) {
        let producer = &self.shared.producer;
        let topic = &self.shared.options.replies;
        let tag = usize::try_from(end).unwrap_or(usize::MAX);
        let mut record = BaseRecord::<(), [u8], usize>::with_opaque_to(topic, tag)
            .partition(partition.max(0))
            .payload(message);
        while let Err((error, again)) = producer.send(record) {
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull)
                || self.shared.is_stopped()
            {
                let lost = &self.shared.counts.replies_lost;
                lost.fetch_add(1, Ordering::Relaxed);
                self.shared.told.arrived(end);
                return;
            }
            // Room comes with the next delivery report.
            producer.poll(POLL);
            record = again;
        }
    }
}
