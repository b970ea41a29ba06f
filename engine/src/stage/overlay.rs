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
    /// Asked for each staged block as a read comes to its start, so that no walk over the disk
    /// misses one, however small its steps.
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

    /// Holds a staged block against what it was, where a read of `buf` at `at` begins it.
    fn look(&self, record: &Record, at: ByteOffset, buf: &[u8]) -> Result<()> {
        let block = BlockIndex(record.block);
        let start = self.geometry.start_of(block);
        let Some(old) = record.old_leaf.filter(|_| start >= at) else {
            return Ok(());
        };
        if let Some(whole) = self.whole(block, at, buf) {
            return (self.check_old)(whole, old);
        }
        let mut whole = vec![0; self.geometry.block_len(block)];
        self.disk.read(start, &mut whole)?;
        (self.check_old)(&whole, old)
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
                self.look(&record, at, buf)?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use failback_vhdx::MemoryFile;
    use uuid::Uuid;

    use super::*;
    use crate::disk::MemoryDisk;
    use crate::hash::{HashKind, Hasher};
    use crate::stage::Old;
    use crate::state::Barriers;
    use crate::units::BlockSize;

    // Goal: a walk looks at each staged block as it was, once, in whatever steps it goes. Method:
    // one page of the second of three blocks is staged; walks in steps of a page up to the whole
    // disk.
    #[test]
    fn a_walk_looks_at_each_staged_block_once() {
        const BLOCK: usize = 64 << 10;
        let block_size = BlockSize::new(BLOCK as u64).unwrap();
        let geometry = Geometry::new(3 * BLOCK as u64, block_size).unwrap();
        let disk = MemoryDisk::new(vec![7; 3 * BLOCK]);
        let file = Arc::new(MemoryFile::new());
        let stage = StageLog::new(file, Uuid::from_u128(1), geometry, Barriers::new());
        let old = Leaf::Data(Hasher::new(HashKind::Blake3).leaf(&[7; BLOCK]));
        let leaves = (Some(Leaf::Zero), Some(old));
        let run = std::ops::Range {
            start: 8192,
            end: 12288,
        };
        let put = stage.put(
            BlockIndex(1),
            &[run],
            Some(&[8; 4096]),
            Old::NotKept,
            leaves,
        );
        assert!(!put.unwrap());
        for step in [4096, 12288, BLOCK, 2 * BLOCK, 3 * BLOCK] {
            let looks = AtomicU64::new(0);
            let check_old = |bytes: &[u8], leaf| {
                assert_eq!((bytes, leaf), ([7; BLOCK].as_slice(), old));
                looks.fetch_add(1, Ordering::Relaxed);
                Ok(())
            };
            let overlay = Overlay {
                check_old: &check_old,
                disk: &disk,
                stage: &stage,
                geometry,
            };
            let mut seen = vec![0; 3 * BLOCK];
            for (index, part) in seen.chunks_mut(step).enumerate() {
                overlay
                    .read(ByteOffset((index * step) as u64), part)
                    .unwrap();
            }
            assert_eq!(looks.into_inner(), 1, "{step}");
            let changed: Vec<_> = (0..seen.len()).filter(|at| seen[*at] != 7).collect();
            assert_eq!(changed, (BLOCK + 8192..BLOCK + 12288).collect::<Vec<_>>());
        }
    }
}
