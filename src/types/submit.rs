//! How sources outside the process, such as a partition of messages, feed an engine: the trait [`Submit`].
//!
//! A source reads in order and submits runs of commands, each with the position to read from once it is decided. The batch that
//! holds a command's answer also holds its position, in the same commit. So a source that begins at [`Submit::position`] has every
//! command decided exactly once, whenever and wherever the one before it was killed:
//!
//! - I1: no position is in the log that includes a command without an answer in the log: positions ride with their commands.
//! - I2: no command's answer is committed without a position that includes it, not even one that records nothing.
//! - I3: a source's positions only grow; a command whose position was submitted before is refused, not decided again. Only an
//!   operator may [move](Submit::move_source) a source back.

use super::{Answer, Command, SkuId, SkuName, SourcePosition, Timestamp};
use std::time::Duration;

/// A command and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sourced {
    /// What is asked.
    pub command: Command,
    /// The source, and the position to read from once the command is decided. `None`: from nowhere that is read again.
    pub from: Option<SourcePosition>,
}

/// A run was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// There is no room for the whole run now: wait for answers, then submit it again.
    #[error("the queue has no room for the run: wait for answers, then submit it again")]
    Full,
    /// The run is longer than the queue: split it.
    #[error("the run is longer than the queue: split it")]
    TooLong,
    /// The source has been read beyond this position already, by this source or by another one under its number.
    #[error(
        "source {source_id} stands at {stands}: a command that ends at {position} was submitted before; one reader only may feed a source"
    )]
    Repeated {
        /// Which source.
        source_id: u64,
        /// The position of the command.
        position: u64,
        /// Where the source stands.
        stands: u64,
    },
    /// The log has a place for so many sources only.
    #[error("the engine has {max} sources already: give source {source_id} another engine")]
    TooManySources {
        /// The one more.
        source_id: u64,
        /// How many there can be.
        max: usize,
    },
    /// The engine takes no more commands; its successor goes on from the position.
    #[error("the engine has ended: its successor goes on")]
    Ended,
}

/// What takes commands from sources: an engine's handle.
pub trait Submit: Send + Sync {
    /// Where to read a source from: after everything of it that is in the log or on its way there. `None` if nothing ever was.
    fn position(&self, source: u64) -> Option<u64>;

    /// Commands that a run can have at most.
    fn run_max(&self) -> usize;

    /// Takes the commands of a run, all or none, to be decided in order. The `Vec` is left empty on success, and as it was
    /// otherwise.
    ///
    /// # Errors
    /// Why they were not taken.
    fn submit_run(&self, run: &mut Vec<Sourced>) -> Result<Box<dyn Answers>, SubmitError>;

    /// Moves a source to a position, also back: an operator's word about what lies between, while nobody reads the source. The
    /// log has it once the answer is there.
    ///
    /// # Errors
    /// As [`submit_run`](Self::submit_run).
    fn move_source(&self, to: SourcePosition) -> Result<Box<dyn Answers>, SubmitError>;

    /// The log's time, by which commands are decided. It may differ from this machine's clock.
    fn now(&self) -> Timestamp;

    /// True once it takes no more commands: it was shut down, or it halted.
    fn has_ended(&self) -> bool;

    /// The index of a SKU; `None` if no committed batch has defined it.
    fn sku(&self, name: &str) -> Option<SkuId>;

    /// The name of a SKU.
    fn sku_name(&self, sku: SkuId) -> Option<SkuName>;
}

/// Brings the answers to a run once the last of them is durable.
pub trait Answers: Send {
    /// Blocks for at most `timeout`. The answers are in the order of the commands; `None` where the engine ended between
    /// decision and commit, so that the outcome is unknown.
    ///
    /// # Errors
    /// Itself, if the time passed.
    fn wait(self: Box<Self>, timeout: Duration) -> Result<Vec<Option<Answer>>, Box<dyn Answers>>;
}
