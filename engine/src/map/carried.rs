//! A map that a job carries from one pass to the next: of what a target will be, which is what its
//! source was. Nothing tells of it but the job, and nobody else believes it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::abort::Abort;
use crate::disk::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, HashKind, Hasher, is_zero};
use crate::map::audit::{Audit, audit};
use crate::map::{MapBuilder, MapFile, MapKey, MapWriter, Noted, TrustedMap};
use crate::tree::Leaf;
use crate::units::{BlockIndex, ByteOffset, Geometry};

/// Where such a map is, in a directory of the job's own.
#[derive(Clone, Debug)]
pub struct CarriedMap {
    path: PathBuf,
}

impl CarriedMap {
    /// The map of that name in `directory`, which is there and private.
    #[must_use]
    pub fn at(directory: &Path, name: &str) -> Self {
        Self {
            path: directory.join(name),
        }
    }

    fn key(&self) -> Result<MapKey> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        MapKey::load_or_make(directory)
    }

    /// Begins a new one, which takes the place of the old one when it is kept; `None` where it
    /// cannot be, which is only told.
    pub(crate) fn begin(&self, geometry: Geometry, hash: HashKind) -> Option<MapWriter> {
        let begun = self
            .key()
            .and_then(|_| MapWriter::begin(&self.path, geometry, hash));
        begun.unwrap_or_else(|error| {
            tracing::info!(error = error.chain(), "no map is carried on");
            None
        })
    }

    /// Completes one. It is made while a machine is off, and not waited for: one that is lost costs
    /// reads, and one that is damaged is found out.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub(crate) fn keep(&self, writer: MapWriter, root: Digest) -> Result<()> {
        let key = self.key()?;
        writer.finish_unflushed(&Noted {
            root,
            facts: None,
            key: &key,
        })
    }

    /// The map, if it is whole and this job's, and has `root`.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(crate) fn load(&self, root: &str) -> Result<TrustedMap> {
        let map = MapFile::open(&self.path, &self.key()?)?;
        match map.claim().is_authentic && map.root().to_string() == root {
            true => Ok(TrustedMap { map, audited: 0 }),
            false => {
                let message = "the map that was carried on is not the one that was left";
                Err(Error::new(ErrorKind::Damaged, message).path(&self.path))
            }
        }
    }

    /// Makes in `patched` the map of `disk`, of which only `changed` differs from this one, which
    /// has `root`. What is not named is looked at here and there: as much as there is time for. The
    /// new root, and the bytes that were read.
    ///
    /// # Errors
    /// `MapRejected` when what was not named differs; `Damaged`, `Io`, `Cancelled`.
    pub(crate) fn patch(
        &self,
        root: &str,
        disk: &dyn Source,
        changed: &[Range<ByteOffset>],
        (patched, abort): (&Self, &Abort),
    ) -> Result<(Digest, u64)> {
        let trusted = self.load(root)?;
        let (geometry, hash) = (trusted.map.geometry(), trusted.map.hash());
        let hasher = Hasher::new(hash);
        let writer = patched.begin(geometry, hash);
        let mut map = MapBuilder::new(&hasher, geometry, writer);
        let mut changed = Blocks::new(changed, geometry);
        let mut read = 0;
        let mut at = 0;
        for run in trusted.map.walk()? {
            let (leaf, count) = run?;
            let end = at + count;
            while at < end {
                abort.check()?;
                match changed.next_in(at..end) {
                    // Up to there nothing is named.
                    Some(block) if block > at => {
                        map.push_run(leaf, block - at);
                        at = block;
                    }
                    Some(_) => {
                        let block = BlockIndex(at);
                        let mut bytes = vec![0; geometry.block_len(block)];
                        disk.read(geometry.start_of(block), &mut bytes)?;
                        read += bytes.len() as u64;
                        let leaf = match is_zero(&bytes) {
                            true => Leaf::Zero,
                            false => Leaf::Data(hasher.leaf(&bytes)),
                        };
                        map.push(leaf, 1);
                        at += 1;
                    }
                    None => {
                        map.push_run(leaf, end - at);
                        at = end;
                    }
                }
            }
        }
        let (root, writer) = map.finish();
        let writer = writer.ok_or_else(|| {
            Error::new(
                ErrorKind::Io,
                "the map that a job carries on cannot be written",
            )
        })?;
        patched.keep(writer, root)?;
        let made = patched.load(&root.to_string())?;
        audit(&made.map, disk, Audit::Quick).map_err(|refusal| {
            let message = format!("more was changed than was named ({})", refusal.code());
            Error::new(ErrorKind::MapRejected, message)
        })?;
        Ok((root, read))
    }

    /// Removes it.
    pub(crate) fn remove(&self) {
        // One that stays is believed by nobody without its root.
        let _gone = std::fs::remove_file(&self.path);
    }
}

impl MapBuilder {
    /// As many leaves of one kind; data is told one by one.
    fn push_run(&mut self, leaf: Leaf, count: u64) {
        match leaf {
            Leaf::Zero => self.push(leaf, count),
            Leaf::Data(_) => (0..count).for_each(|_| self.push(leaf, 1)),
        }
    }
}

/// Blocks that ranges touch, ascending.
struct Blocks<'a> {
    ranges: &'a [Range<ByteOffset>],
    geometry: Geometry,
}

impl<'a> Blocks<'a> {
    fn new(ranges: &'a [Range<ByteOffset>], geometry: Geometry) -> Self {
        Self { ranges, geometry }
    }

    /// The first of them in `within`, whose start only grows from call to call.
    fn next_in(&mut self, within: Range<u64>) -> Option<u64> {
        let start = self.geometry.start_of(BlockIndex(within.start));
        while self.ranges.first().is_some_and(|range| range.end <= start) {
            self.ranges = &self.ranges[1..];
        }
        let from = self.ranges.first()?.start.max(start);
        let block = self.geometry.block_at(from)?.0;
        (block < within.end).then_some(block)
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{MemoryDisk, Target};
    use crate::units::BlockSize;

    const BLOCK: u64 = 64 << 10;

    fn geometry() -> Geometry {
        Geometry::new(20 * BLOCK + 512, BlockSize::new(BLOCK).unwrap()).unwrap()
    }

    fn save(at: &CarriedMap, disk: &MemoryDisk) -> Digest {
        let hasher = Hasher::new(HashKind::Blake3);
        let writer = at.begin(geometry(), HashKind::Blake3);
        let mut map = MapBuilder::new(&hasher, geometry(), writer);
        for block in (0..geometry().block_count().0).map(BlockIndex) {
            let mut bytes = vec![0; geometry().block_len(block)];
            disk.read(geometry().start_of(block), &mut bytes).unwrap();
            let leaf = match is_zero(&bytes) {
                true => Leaf::Zero,
                false => Leaf::Data(hasher.leaf(&bytes)),
            };
            map.push(leaf, 1);
        }
        let (root, writer) = map.finish();
        at.keep(writer.unwrap(), root).unwrap();
        root
    }

    fn disk() -> MemoryDisk {
        let mut bytes = vec![0; usize::try_from(geometry().disk_len()).unwrap()];
        for block in [0, 1, 2, 7, 8, 19, 20] {
            bytes[block * usize::try_from(BLOCK).unwrap()] = 1;
        }
        MemoryDisk::new(bytes)
    }

    // Goal: a patched map is the map of the disk as it is, and only what was named was read.
    // Method: writes in data and holes, at edges and at the short end; ranges that touch several
    // blocks.
    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "the one range is the case")]
    fn a_patched_map_is_that_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (
            CarriedMap::at(dir.path(), "a"),
            CarriedMap::at(dir.path(), "b"),
        );
        let cases: [&[Range<u64>]; 6] = [
            &[],
            &[0..1],
            &[BLOCK - 1..BLOCK + 1],
            &[3 * BLOCK..5 * BLOCK, 5 * BLOCK + 7..5 * BLOCK + 9],
            &[20 * BLOCK..20 * BLOCK + 512],
            &[0..20 * BLOCK + 512],
        ];
        for ranges in cases {
            let disk = disk();
            let root = save(&old, &disk);
            let mut touched = 0;
            for range in ranges {
                let len = usize::try_from(range.end - range.start).unwrap();
                disk.write(ByteOffset(range.start), &vec![9; len]).unwrap();
                touched += (range.end - 1) / BLOCK - range.start / BLOCK + 1;
            }
            let named: Vec<_> = ranges
                .iter()
                .map(|range| ByteOffset(range.start)..ByteOffset(range.end))
                .collect();
            let patched = old
                .patch(&root.to_string(), &disk, &named, (&new, &Abort::new()))
                .unwrap();
            assert_eq!(patched.0, save(&old, &disk), "{ranges:?}");
            assert!(patched.1 <= touched * BLOCK, "{ranges:?}");
        }
    }

    // Goal: who names too little is found out here and now, where the audit meets it. Method: every
    // block changed, none named.
    #[test]
    fn what_was_not_named_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (
            CarriedMap::at(dir.path(), "a"),
            CarriedMap::at(dir.path(), "b"),
        );
        let disk = disk();
        let root = save(&old, &disk).to_string();
        for block in 0..20 {
            disk.write(ByteOffset(block * BLOCK), b"changed").unwrap();
        }
        let error = old
            .patch(&root, &disk, &[], (&new, &Abort::new()))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MapRejected);
        assert!(old.load(&"0".repeat(64)).is_err(), "another root");
    }
}
