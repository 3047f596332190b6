//! The journal on a real disk, through its public interface.

use std::path::PathBuf;
use stockade::store::conformance;
use stockade::store::{JournalOptions, JournalStore};

/// A directory of its own on the disk that holds the build, removed at the end.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("journal-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_journal_is_a_store() {
    let root = TempDir::new("conformance");
    let mut logs = 0;
    let report = conformance::prove(|| {
        logs += 1;
        let dir = root.0.join(logs.to_string());
        move || JournalStore::new(JournalOptions::new(&dir))
    });
    assert!(report.is_ok(), "{report:?}");
}
