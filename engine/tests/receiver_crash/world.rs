//! A host whose power can be cut: files by name, and a record of every change to any of them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use failback_engine::state::{Elsewhere, Folder};
use failback_vhdx::{FileAt, FileExtent, MemoryFile};

/// Bytes that a medium writes whole.
pub(crate) const SECTOR: usize = 512;
/// The target's name, in a directory of its own.
pub(crate) const TARGET: &str = "vm/target";
/// Where a new file stands that is to take its place.
pub(crate) const BESIDE: &str = "vm/beside";

/// The directory of a name: the target's, or that of the state.
fn directory(name: &str) -> &str {
    name.split_once('/').map_or("", |(directory, _)| directory)
}

/// One change.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Write {
        file: usize,
        at: u64,
        data: Arc<[u8]>,
    },
    Zero {
        file: usize,
        range: Range<u64>,
    },
    SetLen {
        file: usize,
        len: u64,
    },
    /// Earlier changes of the file became durable.
    Sync {
        file: usize,
    },
    /// These bytes, which were just written, became durable, and nothing else.
    SyncWrite {
        file: usize,
        at: u64,
        data: Arc<[u8]>,
    },
    /// A new, empty file got this name.
    Create {
        name: String,
        file: usize,
    },
    Rename {
        from: String,
        to: String,
    },
    /// Two names were swapped in one step.
    Exchange {
        a: String,
        b: String,
    },
    Remove {
        name: String,
    },
    /// Earlier changes of names in this directory became durable.
    SyncNames {
        directory: String,
    },
}

impl Op {
    pub(crate) fn file(&self) -> Option<usize> {
        match self {
            Self::Write { file, .. }
            | Self::Zero { file, .. }
            | Self::SetLen { file, .. }
            | Self::Sync { file }
            | Self::SyncWrite { file, .. } => Some(*file),
            _ => None,
        }
    }

    /// The directory whose names it changes or makes durable.
    pub(crate) fn directory(&self) -> Option<&str> {
        match self {
            Self::Create { name, .. } | Self::Remove { name } => Some(directory(name)),
            Self::Rename { from, .. } => Some(directory(from)),
            Self::Exchange { a, .. } => Some(directory(a)),
            Self::SyncNames { directory } => Some(directory),
            _ => None,
        }
    }

    /// Whether it makes a file of this name.
    pub(crate) fn makes(&self, file: &str) -> bool {
        matches!(self, Self::Create { name, .. } if name == file)
    }

    pub(crate) fn is_sync(&self) -> bool {
        matches!(
            self,
            Self::Sync { .. } | Self::SyncWrite { .. } | Self::SyncNames { .. }
        )
    }

    /// Whether it makes this change of a file durable.
    pub(crate) fn covers(&self, change: &Self) -> bool {
        match self {
            Self::Sync { file } => change.file() == Some(*file),
            Self::SyncWrite { file, at, data } => matches!(
                change,
                Self::Write { file: of, at: from, data: bytes }
                    if (of, from, bytes) == (file, at, data)
            ),
            _ => false,
        }
    }
}

/// Files and names at one moment. A clone costs little.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) files: Vec<Arc<MemoryFile>>,
    pub(crate) names: BTreeMap<String, usize>,
    /// Changes of each file: stands for the time of its last change.
    changes: BTreeMap<usize, u64>,
}

impl Host {
    /// The same with files of its own.
    pub(crate) fn copied(&self) -> Self {
        let files = self.files.iter();
        Self {
            files: files
                .map(|file| Arc::new(MemoryFile::clone(file)))
                .collect(),
            names: self.names.clone(),
            changes: self.changes.clone(),
        }
    }

    /// Makes the change, of a write only the sectors that `keeps` names.
    pub(crate) fn apply(&mut self, op: &Op, keeps: impl Fn(usize) -> bool) {
        if let Op::Write { file, .. } | Op::Zero { file, .. } | Op::SetLen { file, .. } = op {
            *self.changes.entry(*file).or_default() += 1;
        }
        match op {
            Op::Write { file, at, data } => {
                for (piece, bytes) in data.chunks(SECTOR).enumerate() {
                    if keeps(piece) {
                        let at = at + (piece * SECTOR) as u64;
                        self.files[*file].write_at(at, bytes).unwrap();
                    }
                }
            }
            Op::Zero { file, range } => self.files[*file].zero(range.clone()).unwrap(),
            Op::SetLen { file, len } => self.files[*file].set_len(*len).unwrap(),
            Op::Create { name, file } => {
                self.names.insert(name.clone(), *file);
            }
            Op::Rename { from, to } => {
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            Op::Exchange { a, b } => {
                let [of_a, of_b] = [a, b].map(|name| self.names.get(name).copied());
                // A name whose making was lost takes no part.
                if let (Some(of_a), Some(of_b)) = (of_a, of_b) {
                    self.names.insert(a.clone(), of_b);
                    self.names.insert(b.clone(), of_a);
                }
            }
            Op::Remove { name } => {
                self.names.remove(name);
            }
            Op::Sync { .. } | Op::SyncWrite { .. } | Op::SyncNames { .. } => {}
        }
        // A file whose name is durable before its content is empty.
        if let Op::Create { file, .. } = op {
            while self.files.len() <= *file {
                self.files.push(Arc::default());
            }
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    now: Host,
    ops: Vec<Op>,
    is_recorded: bool,
    /// What is durable, kept where something is to fail.
    durable: Option<Host>,
    /// Changes until one fails, once or for good.
    fails_in: Option<usize>,
    stays_full: bool,
    /// Calls until one panics; none left once it has.
    panics_in: Option<usize>,
    has_panicked: bool,
    /// Of this file the medium has another byte than memory, which is seen when it is opened.
    rots: Option<(&'static str, u64)>,
}

impl Inner {
    fn check_fault(&mut self, op: &Op) -> io::Result<()> {
        let takes_room = matches!(op, Op::Write { .. } | Op::SetLen { .. } | Op::Create { .. });
        let is_due = match &mut self.fails_in {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        if is_due {
            self.fails_in = None;
        }
        match (op, is_due) {
            (Op::Sync { file } | Op::SyncWrite { file, .. }, true) => {
                // The system forgets what it could not write, and says so once.
                let durable = self.durable.as_ref().expect("a failing world");
                self.now.files[*file] = Arc::new(MemoryFile::clone(&durable.files[*file]));
                Err(io::Error::other("input/output error"))
            }
            (Op::SyncNames { .. }, true) => Err(io::Error::other("input/output error")),
            (_, is_due) if takes_room && (is_due || self.stays_full) => {
                self.stays_full = true;
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn make_durable(&mut self, op: &Op) {
        let Some(durable) = &mut self.durable else {
            return;
        };
        while durable.files.len() < self.now.files.len() {
            durable.files.push(Arc::default());
        }
        match op {
            Op::Sync { file } => {
                durable.files[*file] = Arc::new(MemoryFile::clone(&self.now.files[*file]));
                let changes = self.now.changes.get(file).copied();
                durable.changes.insert(*file, changes.unwrap_or_default());
            }
            Op::SyncWrite { file, at, data } => durable.files[*file].write_at(*at, data).unwrap(),
            Op::SyncNames { directory: of } => {
                durable.names.retain(|name, _| directory(name) != of);
                let now = self.now.names.iter();
                let now = now.filter(|(name, _)| directory(name) == of);
                durable
                    .names
                    .extend(now.map(|(name, file)| (name.clone(), *file)));
            }
            _ => {}
        }
    }
}

/// A running host.
#[derive(Clone, Debug)]
pub(crate) struct World(Arc<Mutex<Inner>>);

impl World {
    /// Starts a record on what is there, which counts as durable.
    pub(crate) fn on(host: &Host) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            now: host.copied(),
            ops: Vec::new(),
            is_recorded: true,
            ..Inner::default()
        })))
    }

    /// The same, where the change with this number fails: a flush, and what it was to make durable
    /// is gone; a write for want of room, as all that come after it.
    pub(crate) fn failing(host: &Host, number: usize) -> Self {
        let world = Self::like(host);
        world.inner().fails_in = Some(number);
        world.inner().durable = Some(host.copied());
        world
    }

    /// The same, where the call with this number panics, reads included.
    pub(crate) fn panicking(host: &Host, number: usize) -> Self {
        let world = Self::like(host);
        world.inner().panics_in = Some(number);
        world
    }

    pub(crate) fn has_panicked(&self) -> bool {
        self.inner().has_panicked
    }

    /// Counts a call.
    fn touch(&self) {
        let mut inner = self.inner();
        match inner.panics_in {
            None => {}
            Some(0) => {
                inner.panics_in = None;
                inner.has_panicked = true;
                drop(inner);
                panic!("a call of the host");
            }
            Some(left) => inner.panics_in = Some(left - 1),
        }
    }

    /// The same, where the medium of a file has another byte than memory.
    pub(crate) fn rotting(host: &Host, name: &'static str, at: u64) -> Self {
        let world = Self::like(host);
        world.inner().rots = Some((name, at));
        world
    }

    fn rot(&self, name: &str, file: usize) {
        let Some((_, at)) = self.inner().rots.filter(|(of, _)| *of == name) else {
            return;
        };
        let (memory, mut byte) = (self.memory(file), [0]);
        memory.read_at(at, &mut byte).unwrap();
        memory.write_at(at, &[byte[0] ^ 1]).unwrap();
        self.inner().rots = None;
    }

    /// Whether a change has failed; nothing fails any more.
    pub(crate) fn mend(&self) -> bool {
        let mut inner = self.inner();
        inner.stays_full = false;
        inner.fails_in.take().is_none()
    }

    /// What a reader sees now, and what a power cut would leave if it lost all that it can.
    pub(crate) fn now_and_durable(&self) -> [Host; 2] {
        let inner = self.inner();
        let durable = inner.durable.as_ref().expect("a failing world");
        [inner.now.copied(), durable.copied()]
    }

    /// What a reader sees now.
    pub(crate) fn now(&self) -> Host {
        self.inner().now.copied()
    }

    /// What is there, without a record of what becomes of it.
    pub(crate) fn like(host: &Host) -> Self {
        let world = Self::on(host);
        world.inner().is_recorded = false;
        world
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there now.
    pub(crate) fn host(&self) -> Host {
        self.inner().now.copied()
    }

    pub(crate) fn ops(&self) -> Vec<Op> {
        self.inner().ops.clone()
    }

    pub(crate) fn file(&self, file: usize) -> Arc<WorldFile> {
        Arc::new(WorldFile {
            world: self.clone(),
            file,
        })
    }

    /// The target's file, if the name is somebody's.
    pub(crate) fn target(&self) -> Option<Arc<WorldFile>> {
        self.number_of(TARGET).map(|file| self.file(file))
    }

    /// Which file has this name.
    pub(crate) fn number_of(&self, name: &str) -> Option<usize> {
        self.inner().now.names.get(name).copied()
    }

    /// What tells one state of a file from another; changes with each write.
    pub(crate) fn mark_of(&self, file: usize) -> String {
        let changes = self.inner().now.changes.get(&file).copied();
        format!("{file}:{}", changes.unwrap_or_default())
    }

    /// Changes a byte of the target in a way that nothing but the byte tells: as on a device, which
    /// has no time of change.
    pub(crate) fn change_behind(&self, at: u64) {
        let target = self.memory(self.number_of(TARGET).unwrap());
        let mut byte = [0];
        target.read_at(at, &mut byte).unwrap();
        target.write_at(at, &[byte[0] ^ 1]).unwrap();
    }

    /// Swaps two names, or moves the one file to the other name.
    pub(crate) fn swap(&self, a: &str, b: &str) -> io::Result<()> {
        let (a, b) = (a.to_owned(), b.to_owned());
        match (self.number_of(&a), self.number_of(&b)) {
            (Some(_), Some(_)) => self.change(Op::Exchange { a, b }),
            (Some(_), None) => self.change(Op::Rename { from: a, to: b }),
            (None, Some(_)) => self.change(Op::Rename { from: b, to: a }),
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Makes all names of this directory durable.
    pub(crate) fn sync_names_of(&self, directory: &str) -> io::Result<()> {
        self.change(Op::SyncNames {
            directory: directory.to_owned(),
        })
    }

    /// Makes all names of the target's directory durable.
    pub(crate) fn sync_beside(&self) -> io::Result<()> {
        self.sync_names_of(directory(TARGET))
    }

    /// Makes an empty file of a name that nobody has.
    pub(crate) fn make(&self, name: &str) -> io::Result<Arc<WorldFile>> {
        let file = self.inner().now.files.len();
        self.change(Op::Create {
            name: name.to_owned(),
            file,
        })?;
        Ok(self.file(file))
    }

    fn change(&self, op: Op) -> io::Result<()> {
        self.touch();
        let mut inner = self.inner();
        inner.check_fault(&op)?;
        inner.now.apply(&op, |_| true);
        inner.make_durable(&op);
        if inner.is_recorded {
            inner.ops.push(op);
        }
        Ok(())
    }

    fn memory(&self, file: usize) -> Arc<MemoryFile> {
        self.inner().now.files[file].clone()
    }
}

/// A file of a running host.
#[derive(Debug)]
pub(crate) struct WorldFile {
    world: World,
    file: usize,
}

impl FileAt for WorldFile {
    fn len(&self) -> io::Result<u64> {
        self.world.memory(self.file).len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.world.touch();
        self.world.memory(self.file).read_at(at, buf)
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.world.change(Op::Write {
            file: self.file,
            at,
            data: data.into(),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.world.change(Op::SetLen {
            file: self.file,
            len,
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.world.change(Op::Sync { file: self.file })
    }

    fn write_through(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(at, data)?;
        self.world.change(Op::SyncWrite {
            file: self.file,
            at,
            data: data.into(),
        })
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.world.change(Op::Zero {
            file: self.file,
            range,
        })
    }

    fn allocate(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        self.world.memory(self.file).extent_at(at)
    }
}

impl Folder for World {
    fn forget(&self, name: &str, _from: u64) -> io::Result<bool> {
        Ok(Folder::open(self, name)?.is_some())
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn FileAt>>> {
        let found = self.number_of(name);
        found.into_iter().for_each(|file| self.rot(name, file));
        Ok(found.map(|file| -> Arc<dyn FileAt> { self.file(file) }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn FileAt>> {
        match self.number_of(name) {
            Some(file) => {
                self.change(Op::SetLen { file, len: 0 })?;
                Ok(self.file(file))
            }
            None => Ok(self.make(name)?),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(Op::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if self.inner().now.names.contains_key(name) {
            self.change(Op::Remove {
                name: name.to_owned(),
            })?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.change(Op::SyncNames {
            directory: String::new(),
        })
    }
    fn elsewhere(&self) -> Option<Elsewhere<'_>> {
        None
    }
}
