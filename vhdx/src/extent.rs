//! What a disk range resolves to.

use std::ops::Range;

/// A piece of the virtual disk and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes of the virtual disk.
    pub disk: Range<u64>,
    /// Where they are; for a file, the run has the same length there.
    pub place: Place,
}

/// Where the bytes of a [`Run`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file, from this byte offset on.
    File {
        /// Byte offset in the file of the first byte of the run.
        at: u64,
    },
    /// Nowhere: they read zero.
    Zero,
    /// With the [parent](crate::Image::parent), at the same place of its disk; zero behind its
    /// end.
    Parent,
    /// In the log replayed in memory: only [`Image::read_at`](crate::Image::read_at) has them.
    Replayed,
}

impl Run {
    /// Appends a run, or lengthens the last one where this one continues it.
    pub(crate) fn push(runs: &mut Vec<Self>, first: usize, run: Self) {
        if let Some(last) = runs.get_mut(first..).and_then(<[Self]>::last_mut) {
            let len = last.disk.end - last.disk.start;
            let continues = match (last.place, run.place) {
                (Place::File { at }, Place::File { at: next }) => at + len == next,
                (Place::Zero, Place::Zero)
                | (Place::Parent, Place::Parent)
                | (Place::Replayed, Place::Replayed) => true,
                _ => false,
            };
            if continues && last.disk.end == run.disk.start {
                last.disk.end = run.disk.end;
                return;
            }
        }
        runs.push(run);
    }
}

/// A run of the virtual disk of one kind, from the offset asked for to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// What a reader will find.
    pub kind: ExtentKind,
    /// Where the run ends, in bytes of the virtual disk. The next run may be of the same kind.
    pub end: u64,
}

/// What an [`Extent`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Bytes that have to be read to be known.
    Data,
    /// Zeros, because a block says so (state 2) or the file has a hole there.
    Zero,
    /// Nothing is stored, neither here (states 0, 1 and 3) nor with a parent; reads zero.
    Absent,
}

/// How many blocks of the virtual disk are in each state (section 2.5.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocationSummary {
    /// State 0: never written, or with the parent.
    pub not_present: u64,
    /// State 1: content undefined; read as zero here.
    pub undefined: u64,
    /// State 2: zero.
    pub zero: u64,
    /// State 3: discarded; read as zero here.
    pub unmapped: u64,
    /// State 6: stored in the file.
    pub present: u64,
    /// State 7: some sectors stored in the file, the others with the parent.
    pub partially_present: u64,
    /// Sector bitmaps, 1 MiB each; none without a parent.
    pub bitmaps: u64,
    /// Bytes of the file that blocks take, counting whole blocks and no bitmaps.
    pub allocated: u64,
}
