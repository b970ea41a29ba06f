//! Sessions of writing that are recorded: what is done, to which images, and how they are opened.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use failback_vhdx::{ChildOptions, CreateOptions, FileAt, Image, Kind, MemoryFile, Result};

use crate::history::History;
use crate::record::{Op, Record, RecordedFile, SECTOR};
use crate::sites::{self, Site};
use crate::states::Random;

/// A step of a session. Sectors have 512 bytes.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Fills sectors with a byte.
    Write(Range<u64>, u8),
    Zero(Range<u64>),
    Flush,
    Close,
}

/// A recorded session on one image.
pub(crate) struct Session {
    pub(crate) base: MemoryFile,
    pub(crate) parent: Option<Arc<Image>>,
    pub(crate) ops: Vec<Op>,
    pub(crate) history: History,
}

/// An image before a session.
pub(crate) struct Disk {
    pub(crate) file: MemoryFile,
    pub(crate) parent: Option<Arc<Image>>,
}

impl Disk {
    pub(crate) fn new(kind: Kind, size: u64, sector: u32) -> Self {
        let file = Arc::new(MemoryFile::new());
        let options = CreateOptions {
            block_size: Some(1 << 20),
            logical_sector_size: sector,
            ..CreateOptions::new(size, kind)
        };
        drop(Image::create(file.clone(), &options).unwrap());
        let file = MemoryFile::clone(&file);
        Self { file, parent: None }
    }

    /// A child of this disk.
    pub(crate) fn child(self) -> Self {
        let parent = Arc::new(open(Arc::new(self.file), self.parent, false).unwrap());
        let file = Arc::new(MemoryFile::new());
        let options = ChildOptions {
            block_size: Some(1 << 20),
            ..ChildOptions::new(".\\parent.vhdx")
        };
        drop(Image::create_child(file.clone(), parent.clone(), &options).unwrap());
        let file = MemoryFile::clone(&file);
        let parent = Some(parent);
        Self { file, parent }
    }

    /// The disk after these steps, whose last may be a flush: then there is a log to replay.
    pub(crate) fn after(self, steps: &[Step]) -> Self {
        let file = Arc::new(self.file);
        let image = open(file.clone(), self.parent.clone(), true).unwrap();
        steps.iter().for_each(|step| step.run(&image));
        drop(image);
        let file = MemoryFile::clone(&file);
        Self { file, ..self }
    }

    /// The disk after these steps and a power cut behind the last log entry, whose pages are lost.
    pub(crate) fn cut_after(self, steps: &[Step]) -> Self {
        let session = self.record(steps);
        let sites = sites::find(&session.ops, false);
        let entry = sites.iter().rev().find(|(_, site)| *site == Site::LogEntry);
        let (cut, _) = entry.expect("a session with a log entry");
        let file = session.base;
        for op in &session.ops[..*cut] {
            op.apply(&file, |_| true);
        }
        let parent = session.parent;
        Self { file, parent }
    }

    /// Records these steps.
    pub(crate) fn record(self, steps: &[Step]) -> Session {
        let record = Arc::new(Record::default());
        let file = RecordedFile::new(&record, 0, &self.file);
        let image = open(file, self.parent.clone(), true).unwrap();
        let watched = watched(steps, image.virtual_size() / SECTOR as u64);
        let mut history = History::new(watched, &image);
        for step in steps {
            let started = record.now();
            match step {
                Step::Write(sectors, byte) => history.change(started, sectors, *byte),
                Step::Zero(sectors) => history.change(started, sectors, 0),
                Step::Flush | Step::Close => {}
            }
            step.run(&image);
            match step {
                Step::Write(..) | Step::Zero(_) => {}
                Step::Flush => history.flush(record.now()),
                Step::Close => history.close(record.now()),
            }
        }
        Session {
            base: self.file,
            parent: self.parent,
            ops: record.ops(),
            history,
        }
    }
}

impl Step {
    fn run(&self, image: &Image) {
        let bytes = |sectors: &Range<u64>| {
            let sector = SECTOR as u64;
            sectors.start * sector..sectors.end * sector
        };
        let done = match self {
            Self::Write(sectors, byte) => {
                let range = bytes(sectors);
                let len = usize::try_from(range.end - range.start).unwrap();
                image.write_at(range.start, &vec![*byte; len])
            }
            Self::Zero(sectors) => image.zero(bytes(sectors)),
            Self::Flush => image.flush(),
            Self::Close => image.close(),
        };
        done.unwrap();
    }
}

pub(crate) fn open(
    file: Arc<dyn FileAt>,
    parent: Option<Arc<Image>>,
    is_writable: bool,
) -> Result<Image> {
    match (parent, is_writable) {
        (None, false) => Image::open(file),
        (None, true) => Image::open_rw(file),
        (Some(parent), false) => Image::open_child(file, parent),
        (Some(parent), true) => Image::open_child_rw(file, parent),
    }
}

/// Both ends and the middle of each range. On a small disk, the same places of every block: where
/// bytes of another block would show.
fn watched(steps: &[Step], sectors: u64) -> BTreeSet<u64> {
    let ranges = steps.iter().filter_map(|step| match step {
        Step::Write(sectors, _) | Step::Zero(sectors) => Some(sectors),
        Step::Flush | Step::Close => None,
    });
    let chosen: BTreeSet<u64> = ranges
        .flat_map(|range| [range.start, range.start.midpoint(range.end), range.end - 1])
        .collect();
    if sectors > SMALL_DISK {
        return chosen;
    }
    let blocks = (0..sectors).step_by(usize::try_from(IN_BLOCK).unwrap());
    blocks
        .flat_map(|block| chosen.iter().map(move |sector| block + sector % IN_BLOCK))
        .filter(|sector| *sector < sectors)
        .collect()
}

/// Random steps on a disk of so many sectors. `unit` is the number of sectors that make a sector
/// of the disk itself.
pub(crate) fn random_steps(seed: u64, sectors: u64, unit: u64, count: u64) -> Vec<Step> {
    let mut random = Random(seed);
    let mut steps = Vec::new();
    for step in 0..count {
        let blocks = sectors / IN_BLOCK;
        let block = random.below(blocks) * IN_BLOCK;
        let start = block + PLACES[usize::try_from(random.below(6)).unwrap()];
        let len = LENGTHS[usize::try_from(random.below(5)).unwrap()];
        let range = start / unit * unit..((start + len).next_multiple_of(unit)).min(sectors);
        let byte = u8::try_from(step % 200 + 1).unwrap();
        steps.push(match random.below(10) {
            0..=3 => Step::Write(range, byte),
            4 => Step::Write(block..block + IN_BLOCK, byte),
            5 => Step::Zero(range),
            6 | 7 => Step::Zero(block..block + IN_BLOCK),
            _ => Step::Flush,
        });
    }
    steps.push(Step::Close);
    steps
}

/// Few places, so that changes meet: ends of blocks, of pages of the bitmap, and their neighbours.
const PLACES: [u64; 6] = [0, 1, 8, 1000, 2032, 2047];
const LENGTHS: [u64; 5] = [1, 2, 8, 17, 300];
/// Sectors in a block of all these disks.
pub(crate) const IN_BLOCK: u64 = 2048;
/// Sectors of a disk of which every block is watched.
const SMALL_DISK: u64 = 16 * IN_BLOCK;
