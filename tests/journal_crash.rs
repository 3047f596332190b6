//! The journal on a real disk, through its public interface. What a disk may do at its worst is tested beside the file
//! layer, on one that can be told to.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stockade::store::conformance::{self, Tally};
use stockade::store::journal::{self, Retention};
use stockade::store::{
    JournalOptions, JournalStore, OpenRequest, Recovered, Replica, Store, StoreError,
};
use stockade::types::{Batch, Event, EventKind, Timestamp};

/// A directory of its own on the disk that holds the build, removed at the end.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("journal-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.0)
            .expect("it lists")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into()
            })
            .collect();
        names.sort();
        names
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Small segments and frequent snapshots: all that a large log does, in little time.
fn small(dir: &Path) -> JournalOptions {
    let mut options = JournalOptions::new(dir);
    options.first_segment_size = 16 << 10;
    options.segment_size = 128 << 10;
    options.snapshot_every_bytes = Some(256 << 10);
    options
}

fn request(shard: u16) -> OpenRequest {
    OpenRequest {
        shard,
        writer: 5,
        replicas: Arc::new(|| Box::new(Tally::default())),
    }
}

fn open(options: &JournalOptions) -> Result<(JournalStore, Recovered, Tally), StoreError> {
    let mut store = JournalStore::new(options.clone());
    let mut tally = Tally::default();
    let recovered = store.open(&request(0), &mut tally, &mut |_| {})?;
    Ok((store, recovered, tally))
}

/// Commits batches of some events each.
fn write(store: &mut JournalStore, recovered: &Recovered, tally: &mut Tally, batches: u64) {
    for _ in 0..batches {
        let mut batch = Batch::default();
        batch.header.number = tally.batches + 1;
        batch.header.token = recovered.token;
        batch.header.first_sequence = tally.events + 1;
        batch.header.stamp = Timestamp::from_micros(tally.batches);
        for sequence in (tally.events + 1..).take(40) {
            batch.push_event(&Event {
                sequence,
                at: batch.header.stamp,
                shard: 0,
                epoch: 1,
                kind: EventKind::DeadlinesCredited { micros: sequence },
            });
        }
        batch.seal(tally.last_hash);
        store.commit(&batch).expect("it commits");
        tally.apply(&batch).expect("the batch follows");
    }
}

/// A closed log of so many batches.
fn closed_log(options: &JournalOptions, batches: u64) -> Tally {
    let (mut store, recovered, mut tally) = open(options).expect("it opens");
    write(&mut store, &recovered, &mut tally, batches);
    store.close().expect("it closes");
    tally
}

/// A closed log, written until the helpers beside its writer, who have their own time, have come so far.
fn log_until(options: &JournalOptions, what: &str, is_so: impl Fn() -> bool) -> Tally {
    let (mut store, recovered, mut tally) = open(options).expect("it opens");
    while !is_so() {
        assert!(tally.batches < 50_000, "{what}");
        write(&mut store, &recovered, &mut tally, 10);
    }
    assert_eq!(store.warnings(), Vec::<String>::new());
    store.close().expect("it closes");
    tally
}

fn refusal(options: &JournalOptions) -> String {
    match open(options) {
        Ok(_) => panic!("it opens"),
        Err(StoreError::Fatal(text)) => text,
        Err(error) => panic!("another kind of error: {error}"),
    }
}

fn same_log(a: &Tally, b: &Tally) -> bool {
    (a.batches, a.events, a.fold) == (b.batches, b.events, b.fold)
}

#[test]
fn the_journal_is_a_store() {
    let root = TempDir::new("conformance");
    let mut logs = 0;
    let report = conformance::prove(|| {
        logs += 1;
        let dir = root.0.join(logs.to_string());
        move || JournalStore::new(small(&dir))
    });
    assert!(report.is_ok(), "{report:?}");
}

#[test]
fn a_journal_of_the_default_sizes_is_a_store() {
    let root = TempDir::new("defaults");
    let mut logs = 0;
    let report = conformance::prove(|| {
        logs += 1;
        let dir = root.0.join(logs.to_string());
        move || JournalStore::new(JournalOptions::new(&dir))
    });
    assert!(report.is_ok(), "{report:?}");
}

#[test]
fn a_second_writer_is_kept_out_until_the_first_one_ends() {
    let dir = TempDir::new("lock");
    let (mut first, recovered, mut tally) = open(&small(&dir.0)).expect("it opens");
    let text = refusal(&small(&dir.0));
    assert!(
        text.contains("another writer has this journal open"),
        "{text}"
    );
    write(&mut first, &recovered, &mut tally, 3);
    let mut again = Tally::default();
    let twice = first.open(&request(0), &mut again, &mut |_| {});
    assert!(twice.is_err(), "it is open already");
    drop(first);
    let (_, recovered, _) = open(&small(&dir.0)).expect("it opens now");
    assert_eq!(recovered.last_batch, 3);
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_alone() {
    let dir = TempDir::new("foreign");
    fs::write(dir.0.join("photo.jpg"), b"holiday").expect("a file");
    let text = refusal(&small(&dir.0));
    assert!(text.contains("\"photo.jpg\" and no journal"), "{text}");
    assert_eq!(dir.names(), ["photo.jpg"], "nothing was created");
}

#[test]
fn a_path_that_is_a_file_is_refused() {
    let dir = TempDir::new("file");
    let path = dir.0.join("file");
    fs::write(&path, b"").expect("a file");
    let text = refusal(&small(&path));
    assert!(text.contains("creating the directory failed"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_takes_no_files_is_refused() {
    // Nobody can create files there, not even root.
    let text = refusal(&small(Path::new("/proc/self/task")));
    assert!(text.contains("/proc/self/task"), "{text}");
}

#[test]
fn the_journal_of_another_shard_is_refused() {
    let dir = TempDir::new("shard");
    closed_log(&small(&dir.0), 2);
    let mut store = JournalStore::new(small(&dir.0));
    let other = store.open(&request(7), &mut Tally::default(), &mut |_| {});
    let text = other.expect_err("it is shard 0's").to_string();
    assert!(text.contains("the journal of shard 0"), "{text}");
}

#[test]
fn a_newer_format_is_refused() {
    let dir = TempDir::new("version");
    closed_log(&small(&dir.0), 2);
    let path = dir.0.join("segment-0000000001.log");
    let mut bytes = fs::read(&path).expect("the segment");
    bytes[8] = 2;
    fs::write(&path, &bytes).expect("it is written");
    let before = dir.names();
    let text = refusal(&small(&dir.0));
    assert!(
        text.contains("journal format 2 (this release reads 1)"),
        "{text}"
    );
    assert_eq!(dir.names(), before, "nothing was changed");
}

#[test]
fn a_damaged_batch_is_refused_by_file_and_offset() {
    let dir = TempDir::new("damage");
    closed_log(&small(&dir.0), 2);
    let path = dir.0.join("segment-0000000001.log");
    let mut bytes = fs::read(&path).expect("the segment");
    bytes[4096 + 300] ^= 1;
    fs::write(&path, &bytes).expect("it is written");
    let text = refusal(&small(&dir.0));
    assert!(text.contains("segment-0000000001.log, byte 4096"), "{text}");
}

#[test]
fn snapshots_are_made_beside_the_writer_and_old_segments_removed() {
    let dir = TempDir::new("snapshots");
    let mut options = small(&dir.0);
    options.retention = Retention::Delete;
    let has_snapshot = || dir.names().iter().any(|name| name.starts_with("snapshot-"));
    let has_begun = || !dir.names().contains(&"segment-0000000001.log".to_owned());
    log_until(&options, "a snapshot is made", has_snapshot);
    let written = log_until(&options, "the beginning is removed", has_begun);
    let (_, recovered, tally) = open(&options).expect("it opens");
    assert!(same_log(&tally, &written));
    assert!(
        recovered.batches_read < written.batches,
        "a snapshot spared some"
    );
    let whole = journal::read(&dir.0, false, &mut Tally::default(), &mut |_| {});
    assert!(whole.is_err(), "the beginning is gone");
}

#[test]
fn old_segments_can_be_archived() {
    let (dir, archive) = (TempDir::new("archived"), TempDir::new("archive"));
    let mut options = small(&dir.0);
    options.retention = Retention::Archive(archive.0.clone());
    log_until(&options, "segments are archived", || {
        !archive.names().is_empty()
    });
    // Together they are the whole log again.
    for name in archive.names() {
        fs::copy(archive.0.join(&name), dir.0.join(&name)).expect("it copies");
    }
    let mut tally = Tally::default();
    let read = journal::read(&dir.0, false, &mut tally, &mut |_| {}).expect("it reads");
    assert_eq!(read.last_batch, tally.batches);
    assert_eq!(read.batches_read, tally.batches);
}

#[test]
fn a_log_is_read_beside_its_writer() {
    let dir = TempDir::new("beside");
    let options = small(&dir.0);
    let (mut store, recovered, mut tally) = open(&options).expect("it opens");
    write(&mut store, &recovered, &mut tally, 10);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&mut store, &recovered, &mut tally, 400));
        let mut last = 10;
        while !writer.is_finished() {
            let mut seen = Tally::default();
            let read = journal::read(&dir.0, false, &mut seen, &mut |_| {}).expect("it reads");
            assert!(read.last_batch >= last, "what was committed is seen");
            last = read.last_batch;
        }
    });
    let mut seen = Tally::default();
    let mut steps = 0;
    let read = journal::read(&dir.0, false, &mut seen, &mut |progress| {
        assert!(progress.total.is_some_and(|total| progress.done <= total));
        steps += 1;
    });
    let read = read.expect("it reads");
    assert!(steps > 0, "progress is told");
    assert_eq!((read.last_batch, read.token), (410, recovered.token));
    assert!(same_log(&seen, &tally));
}

#[test]
fn nothing_to_read_is_an_error() {
    let dir = TempDir::new("nothing");
    let text = journal::read(&dir.0, true, &mut Tally::default(), &mut |_| {});
    let text = text.expect_err("there is nothing").to_string();
    assert!(text.contains("there is no journal here"), "{text}");
    assert_eq!(dir.names(), Vec::<String>::new(), "nothing was created");
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_system_in_memory_is_named() {
    let path = Path::new("/dev/shm");
    if !path.is_dir() {
        return;
    }
    let dir = TempDir(path.join(format!("stockade-{}", std::process::id())));
    // Not every machine has a tmpfs there.
    let (store, _, _) = open(&small(&dir.0)).expect("it opens");
    for warning in store.warnings() {
        assert!(warning.contains("put the journal on a disk"), "{warning}");
    }
}
