//! The target as it will be: the disk as it is, seen through the stage.

use crate::disk::{DiskInfo, Extent, ExtentKind, Source};
use crate::error::Result;
use crate::stage::StageLog;
use crate::stage::record::Record;
use crate::tree::Leaf;
use crate::units::{BlockIndex, ByteOffset, Geometry};

/// Whether a block of the disk, as it is, has the leaf that it had when it was staged.
pub(crate) type IsOld<'a> = dyn Fn(&[u8], Leaf) -> Result<()> + Sync + 'a;

/// Reads `disk` with what is staged laid over it.
pub(crate) struct Overlay<'a> {
    /// Asked for each staged block that is read whole.
    pub(crate) check_old: &'a IsOld<'a>,
    pub(crate) disk: &'a dyn Source,
    pub(crate) stage: &'a StageLog,
    pub(crate) geometry: Geometry,
}

impl std::fmt::Debug for Overlay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl Overlay<'_> {
    /// The bytes of a block, if all of it is in `buf`, which begins at `at`.
    fn whole<'b>(&self, block: BlockIndex, at: ByteOffset, buf: &'b [u8]) -> Option<&'b [u8]> {
        let start = self.geometry.start_of(block).0.checked_sub(at.0)?;
        let start = usize::try_from(start).ok()?;
        buf.get(start..start + self.geometry.block_len(block))
    }

    fn lay_over(&self, record: &Record, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        let start = self.geometry.start_of(BlockIndex(record.block)).0;
        let bytes = self.stage.new_bytes(record)?;
        let mut taken = 0;
        for run in &record.runs {
            let len = (run.end - run.start) as usize;
            let run_at = start + u64::from(run.start);
            let (from, to) = (
                run_at.max(at.0),
                (run_at + len as u64).min(at.0 + buf.len() as u64),
            );
            if from < to {
                let index = |offset: u64| usize::try_from(offset).expect("inside a buffer");
                let piece = &mut buf[index(from - at.0)..index(to - at.0)];
                let within = taken + index(from - run_at);
                match record.new_is_zero {
                    true => piece.fill(0),
                    false => piece.copy_from_slice(&bytes[within..within + piece.len()]),
                }
            }
            taken += len;
        }
        Ok(())
    }
}

impl Source for Overlay<'_> {
    fn info(&self) -> DiskInfo {
        self.disk.info()
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.disk.read(at, buf)?;
        let end = at.advanced(buf.len() as u64);
        let mut next = self.geometry.block_at(at);
        while let Some(block) = next.and_then(|block| self.stage.next_from(block))
            && self.geometry.start_of(block) < end
        {
            if let Some(record) = self.stage.find(block)? {
                if let (Some(whole), Some(old)) = (self.whole(block, at, buf), record.old_leaf) {
                    (self.check_old)(whole, old)?;
                }
                self.lay_over(&record, at, buf)?;
            }
            next = Some(BlockIndex(block.0 + 1));
        }
        Ok(())
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        let below = self.disk.extent_at(at)?;
        let block = self.geometry.block_at(at);
        let Some(staged) = block.and_then(|block| self.stage.next_from(block)) else {
            return Ok(below);
        };
        let range = self.geometry.range_of(staged, 1);
        Ok(match range.start <= at {
            true => Extent {
                kind: ExtentKind::Data,
                end: range.end,
            },
            false => Extent {
                kind: below.kind,
                end: below.end.min(range.start),
            },
        })
    }
}
