//! The signals that ask a program to end.

use std::io;

/// SIGTERM and SIGINT, caught from the moment this is made.
#[cfg(unix)]
pub(crate) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    /// Called inside a runtime.
    pub(crate) fn catch() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Completes at the first of them.
    pub(crate) async fn first(&mut self) -> io::Result<()> {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        Ok(())
    }
}

/// Ctrl-C.
#[cfg(not(unix))]
pub(crate) struct Signals;

#[cfg(not(unix))]
impl Signals {
    /// It is caught once it is waited for.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self)
    }

    /// Completes at it.
    pub(crate) async fn first(&mut self) -> io::Result<()> {
        tokio::signal::ctrl_c().await
    }
}
