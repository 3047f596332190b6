//! Where the run writes: a directory on a disk that keeps what it is given.

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// File systems whose "durable" is a word only.
const VOLATILE: [&str; 3] = ["tmpfs", "ramfs", "devtmpfs"];

/// The name of the file system under `dir`.
///
/// # Errors
/// If it keeps nothing across a restart of the machine.
pub(crate) fn file_system(dir: &Path) -> Result<String> {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mounts") else {
        return Ok("a file system without a name".to_owned());
    };
    let dir = dir.canonicalize()?;
    let mut best = (PathBuf::new(), "a file system without a name");
    for mount in mounts.lines() {
        let mut fields = mount.split(' ').skip(1);
        let (Some(at), Some(kind)) = (fields.next(), fields.next()) else {
            continue;
        };
        // Spaces are escaped there.
        let at = PathBuf::from(at.replace("\\040", " "));
        // Of two mounts on one place the later one counts.
        if dir.starts_with(&at) && at.components().count() >= best.0.components().count() {
            best = (at, kind);
        }
    }
    if VOLATILE.contains(&best.1) {
        bail!(
            "{} is on {}, where every commit is free: choose a directory on a disk with --dir",
            dir.display(),
            best.1
        );
    }
    Ok(best.1.to_owned())
}
