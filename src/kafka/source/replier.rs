//! The thread that answers: a reply for each durable decision, to the node that asked.

use super::super::reply::{self, Reply};
use super::super::request::ReplyTo;
use super::{POLL, REPLY, Sent, Shared};
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
        let mut are_durable = true;
        for (answer, to) in answers.into_iter().zip(to) {
            match (answer, to) {
                (Some(Answer::Decided(decision)), Some(to)) => self.decided(to, decision),
                (Some(Answer::Found(found)), Some(to)) => self.found(to, &found),
                // The successor decides it, or has decided it already: this writer knows nothing that it may say.
                (None | Some(Answer::NotDecided), _) => are_durable = false,
                (Some(Answer::Decided(_) | Answer::Found(_)), None) => {}
            }
        }
        if are_durable {
            self.shared.position.store(end, Ordering::Release);
        }
        self.reader.unpark();
    }

    fn decided(&self, to: ReplyTo, decision: Decision) {
        let sku = match &decision {
            Decision::Refused(refusal) => reply::sku_of(refusal),
            _ => None,
        };
        let sku = sku.and_then(|sku| self.engine.sku_name(sku));
        self.reply(to, &reply::encode(to.node, to.id, &Reply { decision, sku }));
    }

    fn found(&self, to: ReplyTo, found: &QueryAnswer) {
        // The only question that messages ask.
        if let QueryAnswer::Pool(view) = found {
            self.reply(to, &reply::encode_pool(to.node, to.id, view.as_ref()));
        }
    }

    fn reply(&self, to: ReplyTo, message: &[u8]) {
        let producer = &self.shared.producer;
        let topic = &self.shared.options.replies;
        let mut record = BaseRecord::<(), [u8], usize>::with_opaque_to(topic, REPLY)
            .partition(to.partition.max(0))
            .payload(message);
        while let Err((error, again)) = producer.send(record) {
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull)
                || self.shared.is_stopped()
            {
                let lost = &self.shared.counts.replies_lost;
                lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
            // Room comes with the next delivery report.
            producer.poll(POLL);
            record = again;
        }
    }
}
