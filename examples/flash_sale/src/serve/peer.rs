//! One connection, seen from outside its task: whether it is too slow, and how it is asked to stop.
//!
//! A timer per request would cost as much as a read. So a connection only notes the second in which its last answer was
//! ready, and one watchman looks at all of them once a second.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;
use tokio::task::AbortHandle;

/// How long a connection may take for a request's head or to read an answer, and idle between requests, in seconds.
const IDLE_S_MAX: u32 = 30;
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// A request is being answered.
    is_busy: AtomicBool,
    /// When it was last busy.
    idle_since_s: AtomicU32,
    is_stopping: AtomicBool,
    waker: OnceLock<Waker>,
    task: OnceLock<AbortHandle>,
}

impl Peer {
    /// A request's head has come.
    pub(super) fn begin(&self) {
        self.is_busy.store(true, Ordering::Relaxed);
    }

    /// Its answer is ready.
    pub(super) fn end(&self, peers: &Peers) {
        let now = peers.second.load(Ordering::Relaxed);
        self.idle_since_s.store(now, Ordering::Relaxed);
        self.is_busy.store(false, Ordering::Relaxed);
    }

    /// True once it shall finish what it is at and close.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// Called by its task in every poll: a task's waker stays the same.
    pub(super) fn note_waker(&self, waker: &Waker) {
        if self.waker.get().is_none() {
            // Already set: the same one.
            let _ = self.waker.set(waker.clone());
            if self.is_stopping() {
                waker.wake_by_ref(); // `stop` may have looked for it too early
            }
        }
    }

    fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Peers {
    open: Mutex<BTreeMap<u64, Arc<Peer>>>,
    /// Seconds since the start.
    second: AtomicU32,
}

/// Takes its connection off the list when it is dropped with the connection's task.
pub(super) struct Listed {
    peers: Arc<Peers>,
    number: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.peers.lock().remove(&self.number);
    }
}

impl Peers {
    /// Puts a connection on the list. `number` must not be on it.
    pub(super) fn add(self: &Arc<Self>, number: u64) -> (Arc<Peer>, Listed) {
        let peer = Arc::new(Peer::default());
        let now = self.second.load(Ordering::Relaxed);
        peer.idle_since_s.store(now, Ordering::Relaxed);
        self.lock().insert(number, peer.clone());
        let listed = Listed {
            peers: self.clone(),
            number,
        };
        (peer, listed)
    }

    /// The task that serves it, so that it can be cut off.
    pub(super) fn served_by(peer: &Peer, task: AbortHandle) {
        // Called once per connection.
        let _ = peer.task.set(task);
    }

    /// Cuts off whoever is too slow, for ever.
    pub(super) async fn watch(&self) {
        loop {
            // That a peer does nothing is no event: only time shows it.
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.second.fetch_add(1, Ordering::Relaxed) + 1;
            for peer in self.lock().values() {
                let idle_s = now.saturating_sub(peer.idle_since_s.load(Ordering::Relaxed));
                if !peer.is_busy.load(Ordering::Relaxed)
                    && idle_s > IDLE_S_MAX
                    && let Some(task) = peer.task.get()
                {
                    task.abort();
                }
            }
        }
    }

    /// Asks every connection to finish the request it is in.
    pub(super) fn stop(&self) {
        for peer in self.lock().values() {
            peer.stop();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Peer>>> {
        // The list is whole at every step, whatever panicked elsewhere.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps its connection busy as long as an answer is streamed.
pub(crate) struct Streaming {
    peer: Arc<Peer>,
    peers: Arc<Peers>,
}

impl Streaming {
    pub(super) fn new(peer: Arc<Peer>, peers: Arc<Peers>) -> Self {
        Self { peer, peers }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.peer.end(&self.peers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_cut_off_and_a_busy_one_is_not() {
        let peers = Arc::new(Peers::default());
        let open = |number, is_busy| {
            let (peer, listed) = peers.add(number);
            let task = tokio::spawn(async move {
                let _listed = listed;
                std::future::pending::<()>().await;
            });
            Peers::served_by(&peer, task.abort_handle());
            if is_busy {
                peer.begin();
            }
            task
        };
        let (idle, busy) = (open(1, false), open(2, true));
        let watching = {
            let peers = peers.clone();
            tokio::spawn(async move { peers.watch().await })
        };
        // Time is what is tested. The runtime's clock is paused: it jumps as soon as every task waits.
        tokio::time::sleep(Duration::from_secs(u64::from(IDLE_S_MAX) - 1)).await;
        assert!(!idle.is_finished());
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(idle.is_finished() && !busy.is_finished());
        assert_eq!(peers.lock().len(), 1, "the list forgets it");
        watching.abort();
    }
}
