//! The target's host: files by name, whose medium fails, lies, and loses power.
//!
//! ```text
//! now       what the process sees
//! durable   what is on the medium for certain
//! pending   changes that came since; a power cut keeps any of them, torn at 512 bytes, and the
//!           first so many of the changes of names, which a file system keeps in order
//! ```
//! Locks here are never held while another thread of the simulation goes on.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use failback_engine::schedule::{Dice, note, pause};
use failback_engine::state::{Elsewhere, Folder};
use failback_vhdx::{FileAt, FileExtent, MemoryFile};

use crate::fault::{Failure, HostFaults, Lie, PLANTED, is_due};
use crate::link::Wire;

/// Bytes that a medium writes whole.
pub(crate) const SECTOR: usize = 512;
/// The target has no name here: it is there before the state directory is.
pub(crate) const TARGET: usize = 0;

#[derive(Clone, Debug)]
enum Change {
    Write { at: u64, data: Arc<[u8]> },
    Zero(Range<u64>),
    SetLen(u64),
}

impl Change {
    /// Makes it, of a write only the sectors whose bits are set.
    fn make(&self, file: &MemoryFile, kept: u64) {
        let made = match self {
            Self::Write { at, data } if kept == u64::MAX => file.write_at(*at, data),
            Self::Write { at, data } => {
                let pieces = data.chunks(SECTOR).enumerate();
                let mut pieces = pieces.filter(|(piece, _)| kept >> (piece % 64) & 1 == 1);
                pieces.try_for_each(|(piece, bytes)| {
                    file.write_at(at + (piece * SECTOR) as u64, bytes)
                })
            }
            Self::Zero(range) => file.zero(range.clone()),
            Self::SetLen(len) => file.set_len(*len),
        };
        made.expect("memory takes all");
    }

    fn about(&self) -> (u64, u64) {
        match self {
            Self::Write { at, data } => (*at, data.len() as u64),
            Self::Zero(range) => (range.start, range.end),
            Self::SetLen(len) => (u64::MAX, *len),
        }
    }
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

impl NameChange {
    fn make(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Create(name, file) => drop(names.insert(name.clone(), *file)),
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove(name) => drop(names.remove(name)),
        }
    }
}

#[derive(Debug, Default)]
struct HostedFile {
    now: Arc<MemoryFile>,
    durable: MemoryFile,
    pending: Vec<Change>,
    /// A flush failed: what is in memory need not be what the medium has.
    is_doubtful: bool,
}

impl HostedFile {
    fn make(&mut self, change: Change, kept: u64) {
        change.make(&self.now, kept);
        match (change, kept) {
            (change, u64::MAX) => self.pending.push(change),
            (Change::Write { at, data }, kept) => {
                // What is torn already is not torn once more.
                for (piece, bytes) in data.chunks(SECTOR).enumerate() {
                    if kept >> (piece % 64) & 1 == 1 {
                        let at = at + (piece * SECTOR) as u64;
                        let data = bytes.into();
                        self.pending.push(Change::Write { at, data });
                    }
                }
            }
            (change, _) => self.pending.push(change),
        }
    }

    fn flush(&mut self) {
        for change in self.pending.drain(..) {
            change.make(&self.durable, u64::MAX);
        }
    }

    /// Makes one write durable, which may be flushed already.
    fn flush_write(&mut self, at: u64, data: &[u8]) {
        let is_it = |change: &Change| match change {
            Change::Write {
                at: of,
                data: bytes,
            } => (*of, &**bytes) == (at, data),
            _ => false,
        };
        if let Some(found) = self.pending.iter().rposition(is_it) {
            self.pending.remove(found).make(&self.durable, u64::MAX);
        }
    }

    /// The system forgets what it could not write, at once or when the file is opened anew.
    fn fail_flush(&mut self, dice: &mut Dice) {
        for change in std::mem::take(&mut self.pending) {
            if dice.one_in(2) {
                change.make(&self.durable, u64::MAX);
            }
        }
        self.is_doubtful = true;
        if dice.one_in(2) {
            self.forget_cache();
        }
    }

    fn forget_cache(&mut self) {
        if std::mem::take(&mut self.is_doubtful) {
            self.now = Arc::new(self.durable.clone());
            for change in &self.pending {
                change.make(&self.now, u64::MAX);
            }
        }
    }

    /// Whether anything survived that was not durable.
    fn lose_power(&mut self, dice: &mut Dice) -> bool {
        let often = [0, 1, 2, 3, 4][dice.index(5)];
        let mut any = false;
        for change in std::mem::take(&mut self.pending) {
            let kept = match dice.below(4) < often {
                false => 0,
                true if dice.one_in(4) => match dice.below(3) {
                    0 => (1 << dice.below(63)) - 1,
                    1 => u64::MAX << (1 + dice.below(62)),
                    _ => dice.next_u64(),
                },
                true => u64::MAX,
            };
            any |= kept != 0;
            if kept != 0 {
                change.make(&self.durable, kept);
            }
        }
        self.is_doubtful = false;
        self.now = Arc::new(self.durable.clone());
        any
    }
}

#[derive(Debug)]
struct Inner {
    files: Vec<HostedFile>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    dice: Dice,
    faults: HostFaults,
    /// Every call fails from here on: the process is dead.
    is_dead: bool,
    /// What has to notice that.
    wire: Option<Arc<Wire>>,
    /// Stands for the time of the target's last change.
    changed: (u64, u64),
    /// Where the records end that were written to the stage since it was made.
    staged_ends: Vec<u64>,
}

/// A running host. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Host(Arc<Mutex<Inner>>);

impl Host {
    /// A host with an empty target.
    pub(crate) fn new(dice: Dice) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            files: vec![HostedFile::default()],
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            dice,
            faults: HostFaults::default(),
            is_dead: false,
            wire: None,
            changed: (0, 0),
            staged_ends: Vec::new(),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to go wrong from here on.
    pub(crate) fn arm(&self, faults: HostFaults, wire: Option<Arc<Wire>>) {
        let mut inner = self.inner();
        inner.faults = faults;
        inner.wire = wire;
    }

    /// Nothing goes wrong any more. Whether the process was alive, and how the medium lied.
    pub(crate) fn mend(&self) -> (bool, Option<Lie>) {
        let mut inner = self.inner();
        let faults = std::mem::take(&mut inner.faults);
        inner.wire = None;
        (!inner.is_dead, faults.lied)
    }

    /// A new process, after a power cut or only the end of the old one.
    pub(crate) fn restart(&self, lost_power: bool) {
        let mut inner = self.inner();
        inner.is_dead = false;
        if !lost_power {
            return;
        }
        let Inner { files, dice, .. } = &mut *inner;
        let kept = files.iter_mut().map(|file| file.lose_power(dice));
        let is_target_changed = kept.collect::<Vec<_>>()[TARGET];
        if !is_target_changed && inner.dice.one_in(2) {
            inner.changed.0 = inner.changed.1;
        }
        let len = inner.pending_names.len();
        let kept = inner.dice.index(len + 1);
        let Inner {
            names,
            durable_names,
            pending_names,
            ..
        } = &mut *inner;
        for change in pending_names.drain(..).take(kept) {
            change.make(durable_names);
        }
        names.clone_from(durable_names);
    }

    /// All state of jobs is gone: an operator gave up.
    pub(crate) fn clear_state(&self) {
        let mut inner = self.inner();
        inner.names.clear();
        inner.durable_names.clear();
        inner.pending_names.clear();
    }

    /// What tells this state of the target from others.
    pub(crate) fn identity(&self) -> String {
        format!("the target, changed {}", self.inner().changed.0)
    }

    /// Where the records of the stage end, in the order in which they were written.
    pub(crate) fn staged_ends(&self) -> Vec<u64> {
        self.inner().staged_ends.clone()
    }

    /// What a failed flush left in memory is not to be believed; what was not flushed is now.
    pub(crate) fn forget_cache(&self) {
        let mut inner = self.inner();
        inner.files[TARGET].flush();
        inner.files[TARGET].forget_cache();
    }

    pub(crate) fn target(&self) -> Arc<HostFile> {
        self.file(TARGET)
    }

    fn file(&self, file: usize) -> Arc<HostFile> {
        let host = self.clone();
        Arc::new(HostFile { host, file })
    }

    fn memory(&self, file: usize) -> io::Result<Arc<MemoryFile>> {
        let mut inner = self.inner();
        inner.check_alive()?;
        let is_due = inner.faults.is_read_due();
        match is_due {
            true => {
                note("read fails", (file as u64, 0));
                Err(io::Error::other("input/output error"))
            }
            false => Ok(inner.files[file].now.clone()),
        }
    }

    fn change(&self, file: usize, change: Change) -> io::Result<()> {
        let mut inner = self.inner();
        inner.check_alive()?;
        note("change", change.about());
        if file == TARGET {
            inner.changed.0 += 1;
        }
        if let Change::Write { at, data } = &change
            && inner.names.get("stage") == Some(&file)
        {
            inner.staged_ends.push(at + data.len() as u64);
        }
        let torn = |dice: &mut Dice| (1 << dice.below(40)) - 1;
        if inner.dies() {
            let kept = torn(&mut inner.dice);
            if matches!(change, Change::Write { .. }) {
                inner.files[file].make(change, kept);
            }
            return Err(dead());
        }
        let takes_room = matches!(change, Change::Write { .. } | Change::SetLen(_));
        if let Some(failure) = inner.faults.failure_due(takes_room) {
            let kept = torn(&mut inner.dice);
            if matches!(change, Change::Write { .. }) {
                inner.files[file].make(change, kept);
            }
            return Err(failure.error());
        }
        let is_write = matches!(change, Change::Write { .. });
        let (change, kept) = match inner.faults.lie_due(file, is_write) {
            Some(lie) => inner.lie(lie, change),
            None => (change, u64::MAX),
        };
        if kept != 0 {
            inner.files[file].make(change, kept);
        }
        Ok(())
    }

    fn sync_file(&self, file: usize) -> io::Result<()> {
        self.sync_part(file, HostedFile::flush)?;
        let mut inner = self.inner();
        inner.changed.1 = inner.changed.0;
        Ok(())
    }

    /// Makes durable what `flush` does.
    fn sync_part(&self, file: usize, flush: impl Fn(&mut HostedFile)) -> io::Result<()> {
        let mut inner = self.inner();
        inner.check_alive()?;
        note("sync", (file as u64, 0));
        // It may have reached the medium all the same.
        if inner.dies() {
            if inner.dice.one_in(2) {
                flush(&mut inner.files[file]);
            }
            return Err(dead());
        }
        if inner.faults.failure_due(false).is_some() {
            let Inner { files, dice, .. } = &mut *inner;
            files[file].fail_flush(dice);
            return Err(io::Error::other("input/output error"));
        }
        flush(&mut inner.files[file]);
        Ok(())
    }

    fn change_name(&self, change: NameChange) -> io::Result<()> {
        pause();
        let mut inner = self.inner();
        inner.check_alive()?;
        note("name", (inner.names.len() as u64, 0));
        if inner.dies() {
            return Err(dead());
        }
        let takes_room = matches!(change, NameChange::Create(..));
        if let Some(failure) = inner.faults.failure_due(takes_room) {
            return Err(failure.error());
        }
        change.make(&mut inner.names);
        inner.pending_names.push(change);
        Ok(())
    }
}

impl Inner {
    fn check_alive(&mut self) -> io::Result<()> {
        if is_due(&mut self.faults.panics_in) {
            note("panics", (0, 0));
            panic!("{PLANTED}");
        }
        match self.is_dead {
            false => Ok(()),
            true => Err(dead()),
        }
    }

    fn dies(&mut self) -> bool {
        self.is_dead = self.faults.is_death_due();
        if self.is_dead {
            note("dies", (0, 0));
            self.wire.iter().for_each(|wire| wire.die());
        }
        self.is_dead
    }

    fn lie(&mut self, lie: Lie, change: Change) -> (Change, u64) {
        note("lies", (lie as u64, 0));
        match (lie, change) {
            (Lie::Misdirected, Change::Write { at, data }) => {
                let len = self.files[TARGET].now.len().expect("memory");
                let room = (len.saturating_sub(data.len() as u64) / 4096).max(1);
                let elsewhere = self.dice.below(room) * 4096;
                let at = match elsewhere == at / 4096 * 4096 {
                    true => at + 4096,
                    false => elsewhere,
                };
                (Change::Write { at, data }, u64::MAX)
            }
            // The first half of it; of one sector, nothing.
            (Lie::Torn, Change::Write { at, data }) => {
                let half = data.len() / 2 / SECTOR * SECTOR;
                let data: Arc<[u8]> = data[..half].into();
                let kept = if data.is_empty() { 0 } else { u64::MAX };
                (Change::Write { at, data }, kept)
            }
            (_, change) => (change, 0),
        }
    }
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

impl Failure {
    fn error(self) -> io::Error {
        match self {
            Self::Full => io::ErrorKind::StorageFull.into(),
            Self::Error => io::Error::other("input/output error"),
        }
    }
}

/// A file of a running host.
#[derive(Debug)]
pub(crate) struct HostFile {
    host: Host,
    file: usize,
}

impl HostFile {
    /// What tells this state of the file from others.
    pub(crate) fn mark(&self) -> String {
        self.host.identity()
    }

    /// Before and after each call others may go on; not for the target, whose image holds locks.
    fn paused<T>(&self, call: impl FnOnce() -> T) -> T {
        if self.file != TARGET {
            pause();
        }
        let result = call();
        if self.file != TARGET {
            pause();
        }
        result
    }
}

impl FileAt for HostFile {
    fn len(&self) -> io::Result<u64> {
        let mut inner = self.host.inner();
        inner.check_alive()?;
        inner.files[self.file].now.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.paused(|| self.host.memory(self.file)?.read_at(at, buf))
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let data = data.into();
        self.paused(|| self.host.change(self.file, Change::Write { at, data }))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.paused(|| self.host.change(self.file, Change::SetLen(len)))
    }

    fn sync(&self) -> io::Result<()> {
        self.paused(|| self.host.sync_file(self.file))
    }

    fn write_through(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(at, data)?;
        let flush = |file: &mut HostedFile| file.flush_write(at, data);
        self.paused(|| self.host.sync_part(self.file, flush))
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.paused(|| self.host.change(self.file, Change::Zero(range)))
    }

    fn allocate(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        self.host.memory(self.file)?.extent_at(at)
    }
}

impl Folder for Host {
    fn forget(&self, name: &str, _from: u64) -> io::Result<bool> {
        Ok(Folder::open(self, name)?.is_some())
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn FileAt>>> {
        let mut inner = self.inner();
        inner.check_alive()?;
        let found = inner.names.get(name).copied();
        if let Some(file) = found {
            inner.files[file].forget_cache();
        }
        drop(inner);
        Ok(found.map(|file| -> Arc<dyn FileAt> { self.file(file) }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn FileAt>> {
        let (found, new) = {
            let inner = self.inner();
            (inner.names.get(name).copied(), inner.files.len())
        };
        match found {
            Some(file) => self.change(file, Change::SetLen(0))?,
            None => self.change_name(NameChange::Create(name.to_owned(), new))?,
        }
        let mut inner = self.inner();
        if found.is_none() {
            inner.files.push(HostedFile::default());
        }
        if name == "stage" {
            inner.staged_ends.clear();
        }
        drop(inner);
        Ok(self.file(found.unwrap_or(new)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change_name(NameChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let is_there = self.inner().names.contains_key(name);
        if !is_there {
            return Ok(());
        }
        self.change_name(NameChange::Remove(name.to_owned()))
    }

    fn elsewhere(&self) -> Option<Elsewhere<'_>> {
        None
    }

    fn sync(&self) -> io::Result<()> {
        pause();
        let mut inner = self.inner();
        inner.check_alive()?;
        note("sync names", (0, 0));
        if inner.dies() {
            return Err(dead());
        }
        if inner.faults.failure_due(false).is_some() {
            return Err(io::Error::other("input/output error"));
        }
        let Inner {
            durable_names,
            pending_names,
            ..
        } = &mut *inner;
        for change in pending_names.drain(..) {
            change.make(durable_names);
        }
        Ok(())
    }
}
