//! Files that remember every change, several of them in one record.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use failback_vhdx::{FileAt, FileExtent, MemoryFile};

/// The changes of all files of a session, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Record(Mutex<Vec<Op>>);

/// One change of one file.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) file: usize,
    pub(crate) change: Change,
}

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Write {
        at: u64,
        data: Arc<[u8]>,
    },
    Zero(Range<u64>),
    SetLen(u64),
    Sync,
    /// Of the write just before, and of nothing else.
    SyncLast,
    /// A sync that was left out.
    Nothing,
}

/// A file of a record, which holds all changes.
#[derive(Debug)]
pub(crate) struct RecordedFile {
    record: Arc<Record>,
    file: usize,
    now: MemoryFile,
}

impl Record {
    pub(crate) fn ops(&self) -> Vec<Op> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How many changes there are by now: the clock of a session.
    pub(crate) fn now(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn push(&self, op: Op) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(op);
    }
}

impl RecordedFile {
    /// File number `file` of `record`, which begins as `base`.
    pub(crate) fn new(record: &Arc<Record>, file: usize, base: &MemoryFile) -> Arc<Self> {
        Arc::new(Self {
            record: record.clone(),
            file,
            now: base.clone(),
        })
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let file = self.file;
        let op = Op { file, change };
        op.apply(&self.now, |_| true);
        self.record.push(op);
        Ok(())
    }
}

impl FileAt for RecordedFile {
    fn len(&self) -> io::Result<u64> {
        self.now.len()
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.now.read_at(at, buf)
    }
    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let data = data.into();
        self.change(Change::Write { at, data })
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len))
    }
    fn sync(&self) -> io::Result<()> {
        self.change(Change::Sync)
    }
    fn write_through(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(at, data)?;
        self.change(Change::SyncLast)
    }
    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.change(Change::Zero(range))
    }
    fn allocate(&self, _range: Range<u64>) -> io::Result<()> {
        // Changes no byte.
        Ok(())
    }
    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        self.now.extent_at(at)
    }
}

impl Op {
    pub(crate) fn is_sync(&self) -> bool {
        matches!(self.change, Change::Sync | Change::SyncLast)
    }

    /// Whether it is a sync of all that was changed before.
    pub(crate) fn covers_all(&self) -> bool {
        matches!(self.change, Change::Sync)
    }

    /// Into how many pieces a power cut can tear it: sectors of 512 bytes, but few for zeros.
    pub(crate) fn piece_count(&self) -> usize {
        match &self.change {
            Change::Write { data, .. } => data.len().div_ceil(SECTOR),
            Change::Zero(_) => ZERO_PIECES,
            Change::SetLen(_) => 1,
            Change::Sync | Change::SyncLast | Change::Nothing => 0,
        }
    }

    /// Whether it is a header or a log entry.
    pub(crate) fn has_checksum(&self) -> bool {
        match self.change {
            Change::Write { at, .. } => HEADERS.contains(&at) || LOG.contains(&at),
            _ => false,
        }
    }

    /// Writes the first bytes of the change.
    pub(crate) fn apply_first(&self, file: &MemoryFile, count: usize) {
        if let Change::Write { at, data } = &self.change {
            let data = &data[..count.min(data.len())];
            file.write_at(*at, data).expect("memory takes every write");
        }
    }

    /// Does to `file` those pieces of the change that `is_kept`.
    pub(crate) fn apply(&self, file: &MemoryFile, is_kept: impl Fn(usize) -> bool) {
        let done = match &self.change {
            Change::Write { at, data } => apply_write(file, *at, data, is_kept),
            Change::Zero(range) => {
                let len = (range.end - range.start).div_ceil(ZERO_PIECES as u64);
                let len = len.next_multiple_of(SECTOR as u64);
                (0..ZERO_PIECES).filter(|i| is_kept(*i)).try_for_each(|i| {
                    let at = range.start + len * i as u64;
                    file.zero(at.min(range.end)..(at + len).min(range.end))
                })
            }
            Change::SetLen(len) if is_kept(0) => file.set_len(*len),
            Change::SetLen(_) | Change::Sync | Change::SyncLast | Change::Nothing => Ok(()),
        };
        done.expect("memory takes every change");
    }
}

/// Writes runs of kept sectors at once.
fn apply_write(
    file: &MemoryFile,
    at: u64,
    data: &[u8],
    is_kept: impl Fn(usize) -> bool,
) -> io::Result<()> {
    let mut start = 0;
    while start < data.len() {
        let kept = is_kept(start / SECTOR);
        let mut end = (start + SECTOR).min(data.len());
        while end < data.len() && is_kept(end / SECTOR) == kept {
            end = (end + SECTOR).min(data.len());
        }
        if kept {
            file.write_at(at + start as u64, &data[start..end])?;
        }
        start = end;
    }
    Ok(())
}

/// What a medium writes as a whole.
pub(crate) const SECTOR: usize = 512;
pub(crate) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// The log of every image made here.
pub(crate) const LOG: Range<u64> = 1 << 20..2 << 20;
const ZERO_PIECES: usize = 4;
