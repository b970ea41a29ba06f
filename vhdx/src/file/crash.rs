//! A file that remembers every change, so that a test can cut the power at any of them.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{FileAt, FileExtent, MemoryFile};

/// A memory file with a record of all changes since it was made.
///
/// [`materialise`](Self::materialise) gives the file as a power cut could have left it: every
/// change before the last sync of a prefix, and of those after it whatever the test chooses.
#[derive(Debug)]
pub struct CrashFile {
    base: MemoryFile,
    now: MemoryFile,
    ops: Mutex<Vec<CrashOp>>,
}

/// One recorded change.
#[derive(Clone, Debug)]
pub enum CrashOp {
    /// Bytes written at an offset.
    Write {
        /// Where, in bytes from the start of the file.
        at: u64,
        /// What.
        data: Vec<u8>,
    },
    /// A range made zero.
    Zero(Range<u64>),
    /// A new length in bytes.
    SetLen(u64),
    /// All earlier changes became durable.
    Sync,
    /// The write just before became durable, and nothing else.
    SyncLast,
}

/// What a power cut does to one change that was not yet durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It reached the medium.
    Kept,
    /// It did not.
    Lost,
    /// Only its first bytes did, rounded down to 512; for writes, others are lost.
    Torn(usize),
}

impl CrashFile {
    /// Starts a record on top of `base`, which counts as durable.
    pub fn new(base: MemoryFile) -> Self {
        Self {
            now: base.clone(),
            base,
            ops: Mutex::new(Vec::new()),
        }
    }

    /// The changes so far, oldest first.
    pub fn ops(&self) -> Vec<CrashOp> {
        self.record().clone()
    }

    /// How many changes (syncs counted) were recorded so far.
    pub fn op_count(&self) -> usize {
        self.record().len()
    }

    /// The content as a reader sees it now.
    pub fn current(&self) -> MemoryFile {
        self.now.clone()
    }

    /// The file after a power cut behind the first `prefix` changes. `fate` is asked, by index,
    /// about each change of the prefix that no sync of the prefix covers.
    pub fn materialise(&self, prefix: usize, mut fate: impl FnMut(usize) -> Fate) -> MemoryFile {
        let file = self.base.clone();
        let ops = self.record();
        let ops = &ops[..prefix.min(ops.len())];
        let durable = ops
            .iter()
            .rposition(|op| matches!(op, CrashOp::Sync))
            .map_or(0, |at| at + 1);
        for (index, op) in ops.iter().enumerate() {
            let is_synced_itself = matches!(ops.get(index + 1), Some(CrashOp::SyncLast));
            let fate = if index < durable || is_synced_itself {
                Fate::Kept
            } else {
                fate(index)
            };
            apply(&file, op, fate).expect("a memory file takes every change");
        }
        file
    }

    fn record(&self) -> MutexGuard<'_, Vec<CrashOp>> {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, op: CrashOp) -> io::Result<()> {
        self.changes([op])
    }

    /// No other change comes between these.
    fn changes(&self, changes: impl IntoIterator<Item = CrashOp>) -> io::Result<()> {
        let mut ops = self.record();
        for op in changes {
            apply(&self.now, &op, Fate::Kept)?;
            ops.push(op);
        }
        Ok(())
    }
}

impl FileAt for CrashFile {
    fn len(&self) -> io::Result<u64> {
        self.now.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.now.read_at(at, buf)
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.change(CrashOp::Write {
            at,
            data: data.to_vec(),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(CrashOp::SetLen(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.change(CrashOp::Sync)
    }

    fn write_through(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let data = data.to_vec();
        self.changes([CrashOp::Write { at, data }, CrashOp::SyncLast])
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.change(CrashOp::Zero(range))
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        // Changes no byte, so there is nothing to record.
        self.now.allocate(range)
    }

    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        self.now.extent_at(at)
    }
}

fn apply(file: &MemoryFile, op: &CrashOp, fate: Fate) -> io::Result<()> {
    match (op, fate) {
        (_, Fate::Lost) | (CrashOp::Sync | CrashOp::SyncLast, _) => Ok(()),
        (CrashOp::Write { at, data }, Fate::Kept) => file.write_at(*at, data),
        (CrashOp::Write { at, data }, Fate::Torn(len)) => {
            file.write_at(*at, &data[..len.min(data.len()) / 512 * 512])
        }
        (CrashOp::Zero(range), Fate::Kept) => file.zero(range.clone()),
        (CrashOp::SetLen(len), Fate::Kept) => file.set_len(*len),
        (CrashOp::Zero(_) | CrashOp::SetLen(_), Fate::Torn(_)) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    // Goal: synced changes always survive, others as asked. Method: two writes, a sync between.
    use super::*;

    #[test]
    fn a_sync_protects_what_came_before() {
        let file = CrashFile::new(MemoryFile::new());
        file.write_at(0, &[1; 1024]).unwrap();
        file.sync().unwrap();
        file.write_at(0, &[2; 1024]).unwrap();
        let old = file.materialise(3, |_| Fate::Lost).to_bytes();
        let torn = file.materialise(3, |_| Fate::Torn(600)).to_bytes();
        assert_eq!(old, [1; 1024]);
        assert_eq!((torn[511], torn[512]), (2, 1));
    }

    // Goal: a write that is synced by itself survives, what was written before need not. Method:
    // both, and a cut behind.
    #[test]
    fn a_write_through_protects_itself_only() {
        let file = CrashFile::new(MemoryFile::new());
        file.write_at(0, &[1; 1024]).unwrap();
        file.write_through(512, &[2; 512]).unwrap();
        let cut = file.materialise(file.op_count(), |_| Fate::Lost).to_bytes();
        assert_eq!((cut[0], cut[512]), (0, 2));
    }
}
