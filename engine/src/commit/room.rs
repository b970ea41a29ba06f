//! Whether the target has room for what it becomes.

use super::finish::Finisher;
use crate::disk::{Extent, ExtentKind, Source, TargetAccess};
use crate::error::{Error, ErrorKind, Result};
use crate::stage::StageLog;
use crate::units::Geometry;

/// Room beyond what the blocks need: tables of the image, and what others write meanwhile.
const ROOM_SPARE: u64 = 16 << 20;
/// What a file system takes for a run in a hole of a file.
const FILE_UNIT: u64 = 4096;

impl Finisher<'_> {
    /// Before COMMIT: what is written where the target has nothing yet makes it grow.
    ///
    /// # Errors
    /// `NoSpace`; `Damaged`, `Io`.
    pub(super) fn check_room(&self, access: &dyn TargetAccess, stage: &StageLog) -> Result<()> {
        check_room_for(access, || {
            growth(access.source(), stage, self.session.geometry)
        })
    }
}

/// Whether there is room for what a target has to grow by; that is only looked up where room is
/// known.
///
/// # Errors
/// `NoSpace`; those of `growth`.
pub(super) fn check_room_for(
    access: &dyn TargetAccess,
    growth: impl FnOnce() -> Result<u64>,
) -> Result<()> {
    let Some(room) = access.room()? else {
        return Ok(());
    };
    let needed = growth()?;
    if needed > 0 && room < needed + ROOM_SPARE {
        let message = format!(
            "the target needs {needed} bytes more than it has, and {room} are left; \
             nothing was changed"
        );
        return Err(Error::new(ErrorKind::NoSpace, message));
    }
    Ok(())
}

/// Bytes of the units, blocks of the image or pages of the file, that the stage fills first.
fn growth(disk: &dyn Source, stage: &StageLog, geometry: Geometry) -> Result<u64> {
    let unit = match u64::from(disk.info().image_block_size.unwrap_or(0)) {
        0 => FILE_UNIT,
        unit => unit,
    };
    let mut needed = 0;
    // Up to where units were counted: several runs can lie in one.
    let mut counted_to = 0;
    // Blocks ascend, and a run is asked for once: some systems walk all of it.
    let mut known: Option<Extent> = None;
    for block in stage.blocks() {
        let Some(record) = stage.find(block)?.filter(|record| !record.new_is_zero) else {
            continue;
        };
        let start = geometry.start_of(block);
        for run in &record.runs {
            let mut at = start.advanced(run.start.into());
            let end = start.advanced(run.end.into());
            while at < end {
                let extent = match known {
                    Some(known) if at < known.end => known,
                    _ => disk.extent_at(at)?,
                };
                known = Some(extent);
                let extent_end = extent.end.min(end);
                if extent.kind != ExtentKind::Data {
                    let from = (at.0 / unit * unit).max(counted_to);
                    let to = extent_end.0.next_multiple_of(unit);
                    needed += to.saturating_sub(from);
                    counted_to = to.max(counted_to);
                }
                at = extent_end;
            }
        }
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::stage::Old;
    use crate::state::Barriers;
    use crate::units::{BlockIndex, BlockSize};
    use failback_vhdx::MemoryFile;
    use std::ops::Range;
    use std::sync::Arc;
    use uuid::Uuid;

    // Goal: pages strewn over holes need their own room, and zeros none. Method: one page of each
    // of eight blocks of 1 MiB, one of them zeros, two of them where there is data.
    #[test]
    fn only_what_falls_into_holes_needs_room() {
        const BLOCK: usize = 1 << 20;
        let geometry = Geometry::new(8 << 20, BlockSize::new(BLOCK as u64).unwrap()).unwrap();
        let mut bytes = vec![0; 8 * BLOCK];
        bytes[..2 * BLOCK].fill(1);
        let (file, barriers) = (Arc::new(MemoryFile::new()), Barriers::new());
        let stage = StageLog::new(file, Uuid::from_u128(7), geometry, barriers);
        for block in 0..8 {
            let run = Range {
                start: 65536,
                end: 65536 + 4096,
            };
            let new = (block != 7).then_some(&[9; 4096][..]);
            let index = BlockIndex(block);
            stage
                .put(index, &[run], new, Old::Zero, (None, None))
                .unwrap();
        }

        let needed = growth(&MemoryDisk::new(bytes), &stage, geometry).unwrap();

        assert_eq!(needed, 5 * 4096);
    }
}
