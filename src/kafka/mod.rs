//! Kafka: requests in, decisions back to the API node that asked, events out.
//!
//! ```text
//! API node   KafkaClient ──► reservation-requests/p ──► KafkaSource ──► engine of shard p ──► KafkaSink ──► reservation-events/p
//!                 ▲                                          │ │                 ▲
//!                 └──── reservation-replies/node ◄───────────┘ └► reservation-   └ commits offset and effect together
//!                                                                 dead-letters
//! ```
//!
//! Partition `p` of the request topic is shard `p`: one writer, which owns it by its store's token and never by a consumer group.
//! Which SKU is sold by which is the [`Placement`] of those who ask: a SKU has one shard, or several as its pools, between which
//! units move by messages of this topic ([`pools`](crate::pools#over-kafka)). The number of partitions is fixed with the topic:
//! with another, SKUs would have other writers, so a client that was told of another refuses to start.
//!
//! - I1 (exactly once): the offset is stored with the batch that decides its messages, and the writer reads on from there: see
//!   [`Submit`](crate::types::Submit). Nothing else says where to read on. What is committed to the consumer group is a copy, so
//!   that API nodes and Kafka's own tools see the lag, and nodes whose replies will never come.
//! - I2: a reply is sent once its decision is durable. It may come twice (a key's answer is repeated) or never (the writer died
//!   just then): then the client asks once more with the same key, and so does who has given up. The first decision of a key never
//!   differs, and what is no decision (not open, busy) is asked anew only where no reply came.
//! - I3: a full engine makes the source wait; it refuses nothing. An offset outside the topic halts the source; nothing is reset.
//!   Messages that were gone before they were read halt it too, once what it had read is submitted.
//! - I4: a message that can't be read goes to the dead-letter topic, with the reason in its headers, and the next one follows, if
//!   need be after some seconds without the letter: it is counted as lost then, and what it held is in the partition still.
//! - I5: per shard the events may repeat a suffix but never skip: see [`KafkaSink`].
//!
//! Formats are versioned: [`request`], [`reply`], [`sink`].

pub mod client;
mod cluster;
mod command;
#[cfg(test)]
mod formats;
mod hex;
mod placement;
pub mod reply;
pub mod request;
pub mod sink;
mod source;
mod view;

pub use client::{AskError, ClientOptions, KafkaClient, Pending};
pub use cluster::{KafkaCluster, KafkaError, TopicSettings};
pub use placement::{Placement, PlacementError};
pub use reply::Reply;
pub use request::{Body, NamedTransfer, Request};
pub use sink::{EventCursor, KafkaEvents, KafkaSink, Published};
pub use source::{KafkaSource, SourceOptions, SourceState, SourceStatus};
