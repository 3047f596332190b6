//! The handle as sources see it: runs of commands whose positions travel with them into the batch that decides them.
//!
//! What rides the ring is a [`Cargo`]. A sourced command is boxed with its position: it has cost a message already, and so the slot
//! of every other command stays two cache lines long.

use super::handle::{Handle, Request};
use super::turn::Turn;
use crate::ring::BulkError;
use crate::ticket;
use crate::types::{
    Answer, Answers, Command, Query, SOURCES_MAX, SkuId, SkuName, SourcePosition, Sourced, Submit,
    SubmitError, Timestamp,
};
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A command in the ring.
pub(super) enum Cargo {
    Direct(Command),
    Sourced(Box<(Command, SourcePosition)>),
}

impl Cargo {
    #[inline]
    pub(super) fn command(&self) -> &Command {
        match self {
            Self::Direct(command) => command,
            Self::Sourced(sourced) => &sourced.0,
        }
    }

    pub(super) fn into_command(self) -> Command {
        match self {
            Self::Direct(command) => command,
            Self::Sourced(sourced) => sourced.0,
        }
    }

    fn into_sourced(self) -> Sourced {
        match self {
            Self::Direct(command) => Sourced {
                command,
                from: None,
            },
            Self::Sourced(sourced) => Sourced {
                command: sourced.0,
                from: Some(sourced.1),
            },
        }
    }
}

impl From<Sourced> for Cargo {
    fn from(sourced: Sourced) -> Self {
        match sourced.from {
            None => Self::Direct(sourced.command),
            Some(from) => Self::Sourced(Box::new((sourced.command, from))),
        }
    }
}

/// Where every source stands, once what is on its way is decided.
pub(super) struct Sources {
    stand: Mutex<Vec<SourcePosition>>,
    /// Some command has come from a source. Set before the command is pushed, which publishes it to the writer.
    are_any: AtomicBool,
}

impl Sources {
    pub(super) fn new(recovered: &[SourcePosition]) -> Self {
        Self {
            stand: Mutex::new(recovered.to_vec()),
            are_any: AtomicBool::new(false),
        }
    }

    /// Moves the positions of a batch to where its requests leave them; false if they stay.
    pub(super) fn advance(&self, turn: &mut Turn) -> bool {
        if !self.are_any.load(Ordering::Relaxed) {
            return false;
        }
        let sources = &mut turn.batch.header.sources;
        let mut have_moved = false;
        for request in &turn.requests {
            if let Cargo::Sourced(sourced) = &request.cargo {
                stand_at(sources, sourced.1);
                have_moved = true;
            }
        }
        have_moved
    }
}

fn position_of(sources: &[SourcePosition], source: u64) -> Option<u64> {
    let known = sources.iter().find(|known| known.source == source)?;
    Some(known.position)
}

fn stand_at(sources: &mut Vec<SourcePosition>, at: SourcePosition) {
    match sources.iter_mut().find(|known| known.source == at.source) {
        Some(known) => known.position = at.position,
        None => sources.push(at),
    }
}

/// Where the sources stand after the run.
fn after(stand: &[SourcePosition], run: &[Sourced]) -> Result<Vec<SourcePosition>, SubmitError> {
    let mut after = stand.to_vec();
    for at in run.iter().filter_map(|sourced| sourced.from) {
        match position_of(&after, at.source) {
            Some(stands) if at.position <= stands => {
                return Err(SubmitError::Repeated {
                    source_id: at.source,
                    position: at.position,
                    stands,
                });
            }
            _ => admit(&mut after, at)?,
        }
    }
    Ok(after)
}

/// A source stands there; the log has a place for it.
fn admit(stand: &mut Vec<SourcePosition>, at: SourcePosition) -> Result<(), SubmitError> {
    if stand.len() == SOURCES_MAX && position_of(stand, at.source).is_none() {
        return Err(SubmitError::TooManySources {
            source_id: at.source,
            max: SOURCES_MAX,
        });
    }
    stand_at(stand, at);
    Ok(())
}

impl Handle {
    /// Puts a run in line, after which the sources stand there. The lock is held until the run is in the ring: positions are
    /// pushed in the order in which they were checked.
    fn push_run(
        &self,
        run: &mut Vec<Sourced>,
        mut stand: MutexGuard<'_, Vec<SourcePosition>>,
        after: Vec<SourcePosition>,
    ) -> Result<Box<dyn Answers>, SubmitError> {
        if self.has_ended() {
            return Err(SubmitError::Ended);
        }
        let Some((completers, block)) = self.shared.pool.issue_block(run.len()) else {
            return Err(SubmitError::Full);
        };
        let mut requests: Vec<Request> = run
            .drain(..)
            .zip(completers)
            .map(|(sourced, completer)| Request {
                cargo: sourced.into(),
                completer,
            })
            .collect();
        self.shared.sources.are_any.store(true, Ordering::Relaxed);
        match self.producer.try_push_bulk(&mut requests) {
            Ok(()) => {
                *stand = after;
                Ok(Box::new(Run(block)))
            }
            Err(error) => {
                let back = requests.into_iter();
                run.extend(back.map(|request| request.cargo.into_sourced()));
                Err(match error {
                    BulkError::Full => SubmitError::Full,
                    BulkError::TooLong { .. } => SubmitError::TooLong,
                    BulkError::Closed => SubmitError::Ended,
                })
            }
        }
    }
}

impl Submit for Handle {
    fn position(&self, source: u64) -> Option<u64> {
        position_of(&self.shared.sources.stand.lock(), source)
    }

    fn run_max(&self) -> usize {
        self.producer.capacity()
    }

    fn submit_run(&self, run: &mut Vec<Sourced>) -> Result<Box<dyn Answers>, SubmitError> {
        if run.len() > self.run_max() {
            return Err(SubmitError::TooLong);
        }
        let stand = self.shared.sources.stand.lock();
        let after = after(&stand, run)?;
        self.push_run(run, stand, after)
    }

    fn move_source(&self, to: SourcePosition) -> Result<Box<dyn Answers>, SubmitError> {
        let stand = self.shared.sources.stand.lock();
        let mut after = stand.clone();
        admit(&mut after, to)?;
        // A position rides with a command; this one changes nothing.
        let mut run = vec![Sourced {
            command: Command::Query(Query::Sku(SkuId(u32::MAX))),
            from: Some(to),
        }];
        self.push_run(&mut run, stand, after)
    }

    fn now(&self) -> Timestamp {
        Handle::now(self)
    }

    fn has_ended(&self) -> bool {
        !self.shared.vitals.is_open()
    }

    fn sku(&self, name: &str) -> Option<SkuId> {
        Handle::sku(self, name)
    }

    fn sku_name(&self, sku: SkuId) -> Option<SkuName> {
        Handle::sku_name(self, sku)
    }
}

struct Run(ticket::Block<Answer>);

impl Answers for Run {
    fn wait(self: Box<Self>, timeout: Duration) -> Result<Vec<Option<Answer>>, Box<dyn Answers>> {
        match self.0.wait_timeout(timeout) {
            Ok(answers) => Ok(answers.collect()),
            Err(block) => Err(Box::new(Self(block))),
        }
    }
}
