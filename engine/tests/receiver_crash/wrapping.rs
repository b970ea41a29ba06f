//! A VHDX in which a change is as hard as it can be, and what of that a record holds.
//!
//! ```text
//! file before    | block 0 | gap, old bytes |
//! file after     | block 0 | block 1        | block 2 |     and the log around its end
//! ```

use std::fmt;
use std::sync::Arc;

use failback_vhdx::{CreateOptions, FileAt, Image, Kind, MemoryFile, Place};

use crate::disk::Format;
use crate::scenario::{BLOCK, Disk, Record, after, empty, pattern};
use crate::world::{Host, Op, TARGET, World};

/// Blocks of the VHDX.
pub(crate) const IMAGE_BLOCK: usize = 1 << 20;
/// The log of images made here.
const LOG: std::ops::Range<u64> = 1 << 20..2 << 20;
/// Two pages before the end of the log: the entry that opens a session has one page, and the one
/// with the changed page of the BAT has two, one on each side of the end.
pub(crate) const LOG_START: u64 = LOG.end - LOG.start - 8192;

/// Dynamic VHDX: a block changed in part, of which a part becomes zero where it is; one that comes
/// where another was long ago; one that lets the file grow.
pub(crate) fn vhdx_disk() -> Disk {
    let mut old = vec![0; 3 * IMAGE_BLOCK];
    old[..BLOCK].copy_from_slice(&pattern(1, BLOCK));
    old[4 * BLOCK..6 * BLOCK].copy_from_slice(&pattern(2, 2 * BLOCK));
    let mut new = old.clone();
    new[4096..8192].copy_from_slice(&pattern(60, 4096));
    new[4 * BLOCK..6 * BLOCK].fill(0);
    new[IMAGE_BLOCK + 3 * BLOCK..][..BLOCK].copy_from_slice(&pattern(62, BLOCK));
    new[2 * IMAGE_BLOCK + 15 * BLOCK + 512..][..2000].copy_from_slice(&pattern(63, 2000));
    let mut disk = empty(Format::Vhdx, old, new);
    let world = World::on(&disk.host);
    let options = CreateOptions {
        block_size: Some(u32::try_from(IMAGE_BLOCK).unwrap()),
        ..CreateOptions::new(disk.old.len() as u64, Kind::Dynamic)
    };
    let image = Image::create(world.target().unwrap(), &options).unwrap();
    let gone = 2 * IMAGE_BLOCK as u64;
    image.write_at(0, &disk.old[..6 * BLOCK]).unwrap();
    image.write_at(gone, &pattern(9, IMAGE_BLOCK)).unwrap();
    image.zero(gone..gone + IMAGE_BLOCK as u64).unwrap();
    image.close().unwrap();
    disk.host = after(&disk.host, &world.ops());
    disk
}

/// What of a VHDX was used while a record was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// A block got an entry in the BAT.
    bat_grew: bool,
    /// A block got space in which another was before.
    space_was_recycled: bool,
    /// An entry of the log has one part at the end of the log and one at its start.
    log_wrapped: bool,
}

impl Features {
    pub(crate) fn of(record: &Record) -> Self {
        if record.disk.format != Format::Vhdx {
            return Self::default();
        }
        let done = after(&record.base, &record.ops);
        let of = |host: &Host| host.names.get(TARGET).copied();
        let (Some(number), true) = (of(&record.base), of(&record.base) == of(&done)) else {
            // Another file has the name now: nothing in it was changed.
            return Self::default();
        };
        let file = &record.base.files[number];
        let before = stored(file);
        let now = stored(&done.files[number]);
        let came = before.iter().zip(&now).filter(|(old, new)| old != new);
        let came: Vec<u64> = came.filter_map(|(_, new)| *new).collect();
        let old_end = file.len().unwrap();
        Self {
            bat_grew: !came.is_empty(),
            space_was_recycled: came.iter().any(|at| *at < old_end),
            log_wrapped: wraps(&record.ops, number),
        }
    }

    pub(crate) fn has_all(self) -> bool {
        self.bat_grew && self.space_was_recycled && self.log_wrapped
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.bat_grew, "BAT growth"),
            (self.space_was_recycled, "recycled block"),
            (self.log_wrapped, "wrapping log"),
        ];
        let names: Vec<&str> = names
            .into_iter()
            .filter_map(|(is_there, name)| is_there.then_some(name))
            .collect();
        f.write_str(&names.join(", "))
    }
}

/// Where in the file each block is.
fn stored(file: &Arc<MemoryFile>) -> Vec<Option<u64>> {
    let image = Image::open(file.clone()).unwrap();
    let place = |block: u64| {
        let start = block * IMAGE_BLOCK as u64;
        let mut runs = Vec::new();
        image.resolve(start..start + 512, &mut runs).unwrap();
        match runs[0].place {
            Place::File { at } => Some(at),
            _ => None,
        }
    };
    (0..image.virtual_size() / IMAGE_BLOCK as u64)
        .map(place)
        .collect()
}

/// Whether a write up to the end of the log is followed by one at its start: both of one entry, as
/// no sync is between them.
fn wraps(ops: &[Op], number: usize) -> bool {
    let target = |op: &Op| match op {
        Op::Write { file, at, data } if *file == number => Some(*at..*at + data.len() as u64),
        _ => None,
    };
    ops.windows(2).any(|pair| {
        let [Some(first), Some(second)] = [target(&pair[0]), target(&pair[1])] else {
            return false;
        };
        first.end == LOG.end && first.start >= LOG.start && second.start == LOG.start
    })
}
