//! A directory in memory that fails like a disk: what was not synced may be lost, torn between sectors or kept, and it
//! can stop at any step. Everything it does follows from a seed.
//!
//! Invariants. I1: what a `sync`, or a write through [`Access::Append`], has returned for survives. I2: of the rest any
//! subset of sectors, and any first part of the name changes, may. I3: after the crash every operation fails.

use super::disk::{Access, BLOCK, Disk, DiskFile};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What a device writes atomically in bytes.
pub(super) const SECTOR: usize = 512;

/// What becomes of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Survival {
    Nothing,
    Everything,
    /// A first part of every file's writes.
    Prefix,
    /// A last part.
    Suffix,
    /// Each sector or not.
    Sectors,
}

impl Survival {
    pub(super) const ALL: [Self; 5] = [
        Self::Nothing,
        Self::Everything,
        Self::Prefix,
        Self::Suffix,
        Self::Sectors,
    ];
}

/// Splitmix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let drawn = u128::from(z ^ (z >> 31)) * end as u128;
        usize::try_from(drawn >> 64).unwrap_or(0)
    }
}

/// A directory; clones are the same one.
#[derive(Clone, Default)]
pub(super) struct SimDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    name_changes: Vec<NameChange>,
    files: Vec<FileState>,
    locked: bool,
    step: u64,
    stop: Option<(u64, Stop)>,
    dead: bool,
}

/// What happens at a chosen step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Power is lost.
    Crash,
    /// The operation fails, later ones don't.
    Fail(io::ErrorKind),
}

#[derive(Clone)]
enum NameChange {
    Set(String, usize),
    Unset(String),
}

#[derive(Default, Clone)]
struct FileState {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Clone)]
enum Pending {
    Sector { at: usize, bytes: Vec<u8> },
    Cut(usize),
}

impl Pending {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Sector { at, bytes } => {
                let end = at + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*at..end].copy_from_slice(bytes);
            }
            Self::Cut(len) => content.truncate(*len),
        }
    }
}

impl FileState {
    fn settle(&mut self) {
        for pending in self.pending.drain(..) {
            pending.apply(&mut self.durable);
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Set(name, file) => drop(names.insert(name.clone(), *file)),
            Self::Unset(name) => drop(names.remove(name)),
        }
    }
}

impl SimDisk {
    /// Steps so far.
    pub(super) fn steps(&self) -> u64 {
        self.0.lock().step
    }

    /// Arranges what happens at a step, counted from the beginning.
    pub(super) fn stop_at(&self, step: u64, how: Stop) {
        self.0.lock().stop = Some((step, how));
    }

    /// The disk after the process was killed: what it wrote is there to be read, but not durable.
    pub(super) fn after_kill(&self) -> Self {
        let state = self.0.lock();
        Self(Arc::new(Mutex::new(State {
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            name_changes: state.name_changes.clone(),
            files: state.files.clone(),
            ..State::default()
        })))
    }

    /// The disk after a loss of power.
    pub(super) fn after_crash(&self, survival: Survival, seed: u64) -> Self {
        let state = self.0.lock();
        let mut random = Random(seed);
        let mut names = state.durable_names.clone();
        let kept = match survival {
            Survival::Nothing => 0,
            Survival::Everything => state.name_changes.len(),
            _ => random.below(state.name_changes.len() + 1),
        };
        for change in &state.name_changes[..kept] {
            change.apply(&mut names);
        }
        let files = state.files.iter().map(|file| {
            let mut content = file.durable.clone();
            let len = file.pending.len();
            let cut = random.below(len + 1);
            for (index, pending) in file.pending.iter().enumerate() {
                let survives = match survival {
                    Survival::Nothing => false,
                    Survival::Everything => true,
                    Survival::Prefix => index < cut,
                    Survival::Suffix => index >= cut,
                    Survival::Sectors => random.below(2) == 0,
                };
                if survives {
                    pending.apply(&mut content);
                }
            }
            FileState {
                live: content.clone(),
                durable: content,
                pending: Vec::new(),
            }
        });
        let files = files.collect();
        Self(Arc::new(Mutex::new(State {
            durable_names: names.clone(),
            names,
            files,
            ..State::default()
        })))
    }

    /// Changes a file behind the journal's back.
    pub(super) fn edit<T>(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut state = self.0.lock();
        let file = *state.names.get(name).expect("a file of that name");
        let edited = edit(&mut state.files[file].live);
        state.files[file].durable = state.files[file].live.clone();
        edited
    }
}

impl State {
    /// Counts a step that changes something; false: it happens, but nobody hears of it.
    fn step(&mut self) -> io::Result<bool> {
        self.alive()?;
        self.step += 1;
        match self.stop {
            Some((step, Stop::Crash)) if step == self.step => {
                self.dead = true;
                Ok(false)
            }
            Some((step, Stop::Fail(kind))) if step == self.step => Err(kind.into()),
            _ => Ok(true),
        }
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("the machine is off"));
        }
        Ok(())
    }

    fn change(&mut self, changes: Vec<NameChange>) -> io::Result<()> {
        let heard = self.step()?;
        for change in changes {
            change.apply(&mut self.names);
            self.name_changes.push(change);
        }
        if heard { Ok(()) } else { self.alive() }
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        let found = self.names.get(name).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

struct Locked(SimDisk);

impl Drop for Locked {
    fn drop(&mut self) {
        self.0.0.lock().locked = false;
    }
}

impl Disk for SimDisk {
    fn path(&self) -> &Path {
        Path::new("sim")
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        state.alive()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn lock(&self) -> io::Result<Option<Box<dyn Send>>> {
        let mut state = self.0.lock();
        state.alive()?;
        if std::mem::replace(&mut state.locked, true) {
            return Ok(None);
        }
        Ok(Some(Box::new(Locked(self.clone()))))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock();
        state.alive()?;
        let file = if access == Access::Fill {
            let file = state.files.len();
            state.files.push(FileState::default());
            state.change(vec![NameChange::Set(name.to_owned(), file)])?;
            file
        } else {
            state.find(name)?
        };
        Ok(Box::new(SimFile {
            disk: self.clone(),
            file,
            access,
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        let file = state.find(from)?;
        state.change(vec![
            NameChange::Unset(from.to_owned()),
            NameChange::Set(to.to_owned(), file),
        ])
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.find(name)?;
        state.change(vec![NameChange::Unset(name.to_owned())])
    }

    fn archive(&self, name: &str, _: &Path) -> io::Result<()> {
        self.remove(name)?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.step()? {
            return state.alive();
        }
        state.durable_names = state.names.clone();
        state.name_changes.clear();
        Ok(())
    }

    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

struct SimFile {
    disk: SimDisk,
    file: usize,
    access: Access,
}

impl SimFile {
    fn change(&self, durable: bool, changes: impl Iterator<Item = Pending>) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let heard = state.step()?;
        let file = &mut state.files[self.file];
        for pending in changes {
            pending.apply(&mut file.live);
            file.pending.push(pending);
        }
        if heard && durable {
            file.settle();
        }
        state.alive()
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let state = self.disk.0.lock();
        state.alive()?;
        Ok(state.files[self.file].live.len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        assert!(at.is_multiple_of(BLOCK), "reads begin at a block");
        assert!(bytes.len().is_multiple_of(BLOCK), "reads are whole blocks");
        assert_eq!(bytes.as_ptr().align_offset(BLOCK), 0, "reads are aligned");
        let state = self.disk.0.lock();
        state.alive()?;
        let content = &state.files[self.file].live;
        let content = content.get(at..).unwrap_or_default();
        let len = content.len().min(bytes.len());
        bytes[..len].copy_from_slice(&content[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        assert!(self.access != Access::Read, "only writers write");
        assert!(at.is_multiple_of(BLOCK), "writes begin at a block");
        assert!(bytes.len().is_multiple_of(BLOCK), "writes are whole blocks");
        assert_eq!(bytes.as_ptr().align_offset(BLOCK), 0, "writes are aligned");
        let sectors = bytes.chunks(SECTOR).enumerate();
        let sectors = sectors.map(|(index, sector)| Pending::Sector {
            at: at + index * SECTOR,
            bytes: sector.to_vec(),
        });
        self.change(self.access == Access::Append, sectors)
    }

    fn cut(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.change(false, std::iter::once(Pending::Cut(len)))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        if state.step()? {
            state.files[self.file].settle();
        }
        state.alive()
    }
}
