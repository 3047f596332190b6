//! A script of damage to a real journal's files, and what opening it may give: the log, a prefix of it that nothing left
//! in the files contradicts, or a refusal that changes nothing. Never anything else. Shared by a property and a
//! fuzz target.
//!
//! ```text
//! script: which log | how it is opened | edit | edit | ..
//! ```
//!
//! A forged script computes the checksums anew after its edits. What it gives is not compared, for then it is another
//! log by right; it must end without a panic, and within the bounds of time and memory that the fuzzer sets.

mod edits;
mod logs;
mod script;

use edits::Editor;
use logs::{Files, LOGS, Log, append, read_all, request};
use script::Script;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use stockade::store::conformance::Tally;
use stockade::store::{JournalStore, Recovered, Store, StoreError, journal};

/// Edits of one script.
const EDITS_MAX: usize = 24;
/// No writer of a pristine log has it.
const WRITER: u128 = 77;

/// What became of a damaged log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// All of it is there.
    Whole,
    /// Its end was dropped, and reported.
    Dropped,
    /// Its end is gone, with everything that could tell.
    Gone,
    /// It was refused.
    Refused,
    /// Anything: it was forged.
    Forged,
}

/// How a script opens its log.
struct Way {
    forged: bool,
    from_snapshot: bool,
    as_writer: bool,
}

/// Runs a script.
///
/// # Panics
/// Where a law of the journal breaks. Under a fuzzer, which doesn't unwind, the directory stays to be looked at.
pub(crate) fn run(bytes: &[u8]) -> Outcome {
    let mut script = Script::new(bytes);
    let log = &LOGS[script.below(LOGS.len())];
    let flags = script.byte();
    let way = Way {
        forged: flags & 1 != 0,
        from_snapshot: flags & 2 != 0,
        as_writer: flags & 4 != 0,
    };
    let mut files = log.files.clone();
    let mut editor = Editor::new(&mut files);
    for _ in 0..EDITS_MAX {
        if script.is_over() {
            break;
        }
        if way.forged {
            editor.forge(&mut script);
        } else {
            editor.damage(&mut script);
        }
    }
    let dir = TempDir::new("damaged");
    for (name, bytes) in &files {
        fs::write(dir.0.join(name), bytes).expect("a file");
    }
    let outcome = if way.as_writer {
        open(log, &files, &way, &dir.0)
    } else {
        read(log, &files, &way, &dir.0)
    };
    assert!(
        way.as_writer || read_all(&dir.0) == files,
        "a reader changes nothing"
    );
    outcome
}

/// Reads the log as an audit does.
fn read(log: &Log, files: &Files, way: &Way, dir: &Path) -> Outcome {
    let mut tally = Tally::default();
    match journal::read(dir, way.from_snapshot, &mut tally, &mut |_| {}) {
        Ok(recovered) => check(log, files, way, &recovered, &tally),
        Err(error) => refused(way, &error),
    }
}

/// Opens the log as its next writer, goes on, and opens it once more.
fn open(log: &Log, files: &Files, way: &Way, dir: &Path) -> Outcome {
    let way = Way {
        from_snapshot: true,
        ..*way
    };
    let options = log.options(dir, false);
    let mut store = JournalStore::new(options.clone());
    let mut tally = Tally::default();
    let opened = store.open(&request(WRITER), &mut tally, &mut |_| {});
    let recovered = match opened {
        Ok(recovered) => recovered,
        Err(error) => {
            let mut left = read_all(dir);
            left.remove("lock");
            assert!(way.forged || left == *files, "a refusal changes nothing");
            return refused(&way, &error);
        }
    };
    let outcome = check(log, files, &way, &recovered, &tally);
    if way.forged {
        // It may have ended at the last number there is.
        let _ = store.close();
        return outcome;
    }
    append(&mut store, &recovered, &mut tally, 2);
    store.close().expect("it closes");

    let mut again = Tally::default();
    let recovered = JournalStore::new(options)
        .open(&request(WRITER + 1), &mut again, &mut |_| {})
        .expect("what was opened and closed opens again");
    assert!(same(&again, &tally), "what was opened, with what was added");
    assert_eq!(recovered.dropped_tail, None, "it was closed");
    outcome
}

fn refused(way: &Way, error: &StoreError) -> Outcome {
    let text = error.to_string();
    assert!(!text.contains("panicked"), "{text}");
    assert!(
        way.forged || matches!(error, StoreError::Fatal(_)),
        "damage is nothing that passes: {text}"
    );
    if way.forged {
        Outcome::Forged
    } else {
        Outcome::Refused
    }
}

/// What was served is a prefix of what was written, as long as the files prove it to be, and reported if cut.
fn check(log: &Log, files: &Files, way: &Way, recovered: &Recovered, tally: &Tally) -> Outcome {
    if way.forged {
        return Outcome::Forged;
    }
    assert_eq!(
        (
            recovered.last_batch,
            recovered.last_hash,
            recovered.last_sequence,
            recovered.last_stamp
        ),
        (tally.batches, tally.last_hash, tally.events, tally.stamp),
        "what it reports is what it gave"
    );
    let kept = usize::try_from(tally.batches).expect("few");
    let written = log.states.get(kept);
    assert!(
        written.is_some_and(|state| same(state, tally)),
        "an altered log"
    );
    let proof = edits::proof(log, files, way.from_snapshot);
    assert!(
        tally.batches >= proof.vouched,
        "batch {} is gone",
        proof.vouched
    );
    assert!(
        tally.batches >= proof.begun || recovered.dropped_tail.is_some(),
        "batch {} is dropped in silence",
        proof.begun
    );
    if kept + 1 == log.states.len() {
        Outcome::Whole
    } else if recovered.dropped_tail.is_some() {
        Outcome::Dropped
    } else {
        Outcome::Gone
    }
}

/// Equality but for how a tally came about.
fn same(a: &Tally, b: &Tally) -> bool {
    let fields = |t: &Tally| {
        (
            t.batches,
            t.events,
            t.refusals,
            t.fold,
            t.last_hash,
            t.stamp,
        )
    };
    fields(a) == fields(b)
}

/// A directory of its own, in memory where there is such a place: what a disk may do is tested elsewhere.
pub(crate) struct TempDir(pub(crate) PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let shared = Path::new("/dev/shm");
        let root = if shared.is_dir() {
            shared.to_owned()
        } else {
            std::env::temp_dir()
        };
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = root.join(format!("stockade-{name}-{process}-{count}"));
        fs::create_dir(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
