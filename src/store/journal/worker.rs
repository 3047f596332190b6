//! The helpers' threads: jobs are given to them, results are taken, and they end with their owner. What they do is
//! [`keeper`](super::keeper)'s and the segments' to say.
//!
//! Invariant. I1: a helper has ended when its `Worker` is dropped.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

/// Warnings that are remembered.
const WARNINGS_MAX: usize = 8;

/// What helpers share with the writer.
#[derive(Clone, Default)]
pub(super) struct Notes(Arc<Mutex<NotesInner>>);

#[derive(Default)]
struct NotesInner {
    stop: bool,
    warnings: Vec<String>,
}

impl Notes {
    pub(super) fn stopped(&self) -> bool {
        self.0.lock().stop
    }

    pub(super) fn stop(&self) {
        self.0.lock().stop = true;
    }

    pub(super) fn warn(&self, warning: String) {
        let warnings = &mut self.0.lock().warnings;
        if warnings.len() < WARNINGS_MAX && !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.0.lock().warnings.clone()
    }
}

/// Does jobs one after the other: on a thread, or on the caller's at once.
pub(super) struct Worker<J, R> {
    /// `None` once it is to end.
    jobs: Option<Jobs<J, R>>,
    results: Receiver<R>,
    thread: Option<JoinHandle<()>>,
}

enum Jobs<J, R> {
    Thread(Sender<J>),
    Inline(Box<dyn FnMut(J) -> R + Send>, Sender<R>),
}

impl<J: Send + 'static, R: Send + 'static> Worker<J, R> {
    /// Jobs are done on a thread of this name; a patient one leaves the processor to everybody else.
    pub(super) fn on_thread(
        name: &str,
        patient: bool,
        mut work: impl FnMut(J) -> R + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, todo) = channel::<J>();
        let (done, results) = channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if patient {
                    lower_priority();
                }
                for job in todo {
                    if done.send(work(job)).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self {
            jobs: Some(Jobs::Thread(jobs)),
            results,
            thread: Some(thread),
        })
    }

    /// Jobs are done where they are given: for tests, which want one order of things.
    pub(super) fn inline(work: impl FnMut(J) -> R + Send + 'static) -> Self {
        let (done, results) = channel();
        Self {
            jobs: Some(Jobs::Inline(Box::new(work), done)),
            results,
            thread: None,
        }
    }

    pub(super) fn give(&mut self, job: J) {
        // A helper that has ended (it can't, but by a panic it reported) leaves the job undone.
        match &mut self.jobs {
            Some(Jobs::Thread(jobs)) => drop(jobs.send(job)),
            Some(Jobs::Inline(work, done)) => drop(done.send(work(job))),
            None => {}
        }
    }

    /// The result of a finished job.
    pub(super) fn take(&self) -> Option<R> {
        self.results.try_recv().ok()
    }

    /// Waits for the result of a job; `None` if there is none to come.
    pub(super) fn wait(&self) -> Option<R> {
        self.results.recv().ok()
    }
}

impl<J, R> Drop for Worker<J, R> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported as a warning where it happened.
            let _ = thread.join();
        }
    }
}

/// The writer's thread should get the processor first.
#[cfg(target_os = "linux")]
fn lower_priority() {
    // On Linux this is the calling thread's own; without it everything works, only less smoothly.
    let _ = rustix::process::setpriority_process(None, 19);
}

#[cfg(not(target_os = "linux"))]
fn lower_priority() {}
