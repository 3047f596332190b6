//! The payment gateway, as checkout sees it, and a simulated provider.
//!
//! Checkout calls `charge` only after the engine has logged the attempt, so that a crash between the two leaves a
//! trace. The contract that makes retries safe: **a payment reference has one outcome for ever**. Charging the same
//! reference again gives the first outcome and never takes money twice; a voided reference is never captured later.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use stockade::types::PaymentRef;

/// How a charge ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Charge {
    /// The money is taken.
    Captured,
    /// It was refused; nothing is taken.
    Declined,
    /// No answer in time: ask the provider to void it.
    TimedOut,
}

/// A charge under way.
pub(crate) type Charging<'a> = Pin<Box<dyn Future<Output = Charge> + Send + 'a>>;
/// A void or refund under way; true once the provider has acknowledged it.
pub(crate) type Acknowledged<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

/// A provider of payments.
pub(crate) trait PaymentGateway: Send + Sync {
    /// Takes the money. Idempotent by `payment_ref`.
    fn charge<'a>(&'a self, payment_ref: PaymentRef, token: &'a str) -> Charging<'a>;

    /// Makes sure that a charge of unknown outcome captures nothing. Idempotent.
    fn void(&self, payment_ref: PaymentRef) -> Acknowledged<'_>;

    /// Gives captured money back. Idempotent.
    fn refund(&self, payment_ref: PaymentRef) -> Acknowledged<'_>;
}

/// A provider whose behaviour is chosen by the payment token:
///
/// | token contains | the charge |
/// |---|---|
/// | `decline` | is declined |
/// | `timeout` | gets no answer within the provider's time limit |
/// | `slow` | is captured after a second |
/// | anything else | is captured after the usual latency |
#[derive(Debug, Clone)]
pub(crate) struct SimulatedGateway {
    /// How long a charge usually takes.
    latency: Duration,
    /// How long an answer is waited for.
    time_limit: Duration,
}

const SLOW: Duration = Duration::from_secs(1);
const TIME_LIMIT: Duration = Duration::from_secs(2);

impl SimulatedGateway {
    pub(crate) fn new(latency: Duration) -> Self {
        Self {
            latency,
            time_limit: TIME_LIMIT,
        }
    }
}

impl PaymentGateway for SimulatedGateway {
    fn charge<'a>(&'a self, _: PaymentRef, token: &'a str) -> Charging<'a> {
        Box::pin(async move {
            let (wait, charge) = if token.contains("decline") {
                (self.latency, Charge::Declined)
            } else if token.contains("timeout") {
                (self.time_limit, Charge::TimedOut)
            } else if token.contains("slow") {
                (SLOW, Charge::Captured)
            } else {
                (self.latency, Charge::Captured)
            };
            if !wait.is_zero() {
                // The time that a payment takes is what is simulated.
                tokio::time::sleep(wait).await;
            }
            charge
        })
    }

    fn void(&self, _: PaymentRef) -> Acknowledged<'_> {
        Box::pin(std::future::ready(true))
    }

    fn refund(&self, _: PaymentRef) -> Acknowledged<'_> {
        Box::pin(std::future::ready(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_token_chooses_the_outcome() {
        let gateway = SimulatedGateway {
            latency: Duration::ZERO,
            time_limit: Duration::from_millis(1),
        };
        let payment = PaymentRef::new(1).expect("not zero");
        for (token, expected) in [
            ("tok_visa", Charge::Captured),
            ("tok_decline", Charge::Declined),
            ("tok_timeout", Charge::TimedOut),
        ] {
            assert_eq!(gateway.charge(payment, token).await, expected, "{token}");
        }
    }
}
