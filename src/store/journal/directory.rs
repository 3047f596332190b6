//! The real file layer: one directory of the file system.
//!
//! On Linux it reads and writes past the page cache (`O_DIRECT`, and `O_DSYNC` where a write is to be durable when it
//! returns), if a probe says that the file system does so in blocks of 4 KiB; elsewhere it writes through the page
//! cache and calls `fdatasync`. Which of both is decided once, when a writer opens the directory.
//!
//! A failed sync is reported once and the pages may be marked clean after it: the caller never goes on after one.

use super::disk::{Access, BLOCK, Blocks, Disk, DiskFile};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The file that a writer locks; it has no content.
pub(super) const LOCK_NAME: &str = "lock";
const PROBE_NAME: &str = "probe.new";

/// A directory.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Whether writes go past the page cache: probed when it is locked, for only a writer writes.
    direct: OnceLock<bool>,
}

impl Directory {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            direct: OnceLock::new(),
        }
    }

    fn probe(&self) -> io::Result<bool> {
        let probe = self.path.join(PROBE_NAME);
        let made = File::create(&probe).and_then(|file| file.sync_all());
        let direct = made.map(|()| probe_direct(&probe));
        // Best effort: the next opening removes it as well.
        let _ = fs::remove_file(&probe);
        direct
    }

    fn open_file(&self, name: &str, access: Access) -> io::Result<RealFile> {
        let path = self.path.join(name);
        let direct = match access {
            Access::Read => platform::READS_DIRECT,
            Access::Fill | Access::Append => self.direct.get().is_some_and(|&direct| direct),
        };
        let (file, direct) = match Self::options(access, direct).open(&path) {
            // Nobody probes for a reader: where direct reads are not known, the page cache serves.
            Err(error) if direct && error.kind() == io::ErrorKind::InvalidInput => {
                (Self::options(access, false).open(&path)?, false)
            }
            opened => (opened?, direct),
        };
        Ok(RealFile {
            file,
            sync_each_write: access == Access::Append && !direct,
        })
    }

    fn options(access: Access, direct: bool) -> OpenOptions {
        let mut options = OpenOptions::new();
        match access {
            Access::Read => options.read(true),
            Access::Fill => options.write(true).create(true).truncate(true),
            Access::Append => options.write(true),
        };
        if direct {
            platform::direct(&mut options, access == Access::Append);
        }
        options
    }
}

/// True if a direct durable write of one block works.
fn probe_direct(path: &Path) -> bool {
    let mut options = OpenOptions::new();
    options.write(true);
    platform::direct(&mut options, true)
        && options.open(path).is_ok_and(|file| {
            platform::aligned_to(&file, BLOCK)
                && platform::write_all_at(&file, &Blocks::zeroed(BLOCK), 0).is_ok()
        })
}

impl Disk for Directory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn lock(&self) -> io::Result<Option<Box<dyn Send>>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(self.path.join(LOCK_NAME))?;
        match file.try_lock() {
            Ok(()) => {
                let direct = self.probe()?;
                self.direct.get_or_init(|| direct);
                Ok(Some(Box::new(file)))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(self.open_file(name, access)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn archive(&self, name: &str, to: &Path) -> io::Result<()> {
        let (from, target) = (self.path.join(name), to.join(name));
        match fs::rename(&from, &target) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let temporary = to.join(super::segment::unfinished(name));
                fs::copy(&from, &temporary)?;
                File::open(&temporary)?.sync_all()?;
                fs::rename(&temporary, &target)?;
                sync_directory(to)?;
                fs::remove_file(&from)?;
            }
            renamed => {
                renamed?;
                sync_directory(to)?;
            }
        }
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        sync_directory(&self.path)
    }

    fn warnings(&self) -> Vec<String> {
        let volatile = platform::volatile_file_system(&self.path).map(|file_system| {
            format!(
                "{} is on {file_system}, which keeps nothing across a restart of the machine: put the journal on a disk",
                self.path.display()
            )
        });
        volatile.into_iter().collect()
    }
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Other systems can't open a directory as a file; their renames are as durable as they make them.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

struct RealFile {
    file: File,
    sync_each_write: bool,
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < bytes.len() {
            match platform::read_at(&self.file, &mut bytes[filled..], at + filled as u64) {
                // A direct read that is not whole blocks ended at the end of the file.
                Ok(read) => {
                    filled += read;
                    if read == 0 || !read.is_multiple_of(BLOCK) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        platform::write_all_at(&self.file, bytes, at)?;
        if self.sync_each_write {
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn cut(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

#[cfg(target_os = "linux")]
mod platform {
    pub(super) use super::unix::{read_at, write_all_at};
    use rustix::fs::{AtFlags, OFlags, StatxFlags};
    use std::fs::{File, OpenOptions};
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::Path;

    pub(super) const READS_DIRECT: bool = true;

    /// File systems in memory, by the magic numbers that `statfs` gives.
    const VOLATILE: [(u64, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];

    /// `O_DSYNC`; rustix gives `O_SYNC` under that name, which also writes the inode's times: a journal commit of the
    /// file system for every batch. Its value differs on a few old architectures, where `O_SYNC` has to do.
    const O_DSYNC: u32 = if cfg!(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64",
        target_arch = "s390x"
    )) {
        0o10_000
    } else {
        OFlags::SYNC.bits()
    };

    /// False where there is no such way of writing.
    pub(super) fn direct(options: &mut OpenOptions, durable: bool) -> bool {
        let flags = OFlags::DIRECT.bits() | if durable { O_DSYNC } else { 0 };
        // The kernel's flags are an `int`; these bits are far below its sign.
        i32::try_from(flags).is_ok_and(|flags| {
            options.custom_flags(flags);
            true
        })
    }

    /// Whether direct reads and writes in multiples of `block` are said to work. A kernel that doesn't say leaves it to
    /// the write that follows.
    pub(super) fn aligned_to(file: &File, block: usize) -> bool {
        let Ok(stat) = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        else {
            return true;
        };
        let said = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
        let fits = |align: u32| align != 0 && block.is_multiple_of(align as usize);
        !said || (fits(stat.stx_dio_mem_align) && fits(stat.stx_dio_offset_align))
    }

    pub(super) fn volatile_file_system(path: &Path) -> Option<&'static str> {
        let magic = u64::try_from(rustix::fs::statfs(path).ok()?.f_type).ok()?;
        let known = VOLATILE.iter().find(|(volatile, _)| *volatile == magic);
        known.map(|&(_, name)| name)
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
mod platform {
    pub(super) use super::unix::{read_at, write_all_at};
    use std::fs::{File, OpenOptions};
    use std::path::Path;

    pub(super) const READS_DIRECT: bool = false;

    pub(super) fn direct(_: &mut OpenOptions, _: bool) -> bool {
        false
    }

    pub(super) fn aligned_to(_: &File, _: usize) -> bool {
        false
    }

    pub(super) fn volatile_file_system(_: &Path) -> Option<&'static str> {
        None
    }
}

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;

    pub(super) fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        file.read_at(bytes, at)
    }

    pub(super) fn write_all_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }
}

#[cfg(windows)]
mod platform {
    use std::fs::{File, OpenOptions};
    use std::io;
    use std::os::windows::fs::FileExt;
    use std::path::Path;

    pub(super) const READS_DIRECT: bool = false;

    pub(super) fn direct(_: &mut OpenOptions, _: bool) -> bool {
        false
    }

    pub(super) fn aligned_to(_: &File, _: usize) -> bool {
        false
    }

    pub(super) fn volatile_file_system(_: &Path) -> Option<&'static str> {
        None
    }

    pub(super) fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        file.seek_read(bytes, at)
    }

    pub(super) fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = file.seek_write(bytes, at)?;
            bytes = &bytes[written..];
            at += written as u64;
        }
        Ok(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// By a flag of the file or by a sync after each write: no test can take the power away from a real disk.
    #[test]
    fn what_is_appended_is_durable_when_the_write_returns() {
        let path = std::env::temp_dir().join(format!("stockade-append-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory for the test");
        for direct in [false, true] {
            let directory = Directory::new(&path);
            // A file system that takes no direct writes has nothing to show here.
            let direct = direct && directory.probe().expect("it takes files");
            directory.direct.get_or_init(|| direct);
            drop(directory.open_file("a", Access::Fill).expect("it is made"));
            let append = directory.open_file("a", Access::Append).expect("it opens");
            assert_eq!(append.sync_each_write, !direct);
            let flags = rustix::fs::fcntl_getfl(&append.file).expect("an open file");
            // `O_SYNC` has this bit and one more.
            let is_synced = flags.bits() & 0o10_000 != 0;
            assert_eq!(is_synced, direct, "{flags:?}");
        }
        fs::remove_dir_all(&path).expect("it is the test's own");
    }
}
