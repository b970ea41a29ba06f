//! The map as a file, version 1. Drawn in docs/formats.md.
//!
//! ```text
//! 0      header, 4096 bytes: magic, hash, block size, disk length, block count, root,
//!        identity, sum
//! 4096   leaf of block 0, 32 (BLAKE3) or 16 (XXH3-128) bytes; then block 1 ...
//! ```
//! A leaf of zero bytes stands for a block of zeros, so the map of an empty disk is a hole: the 2
//! GiB of leaves of a 64 TiB disk occupy what its data needs. In this release a saved map is a
//! record; it is never trusted in place of a read.

use std::fs::File;
use std::path::Path;

use failback_vhdx::FileAt;
use memmap2::Mmap;
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, HashKind, Hasher};
use crate::system::{map_own_file, sync_directory_of};
use crate::tree::{Leaf, TreeBuilder};
use crate::units::{BlockIndex, BlockSize, Geometry};

/// First bytes of a map file; the last one is the version.
pub const MAP_MAGIC: [u8; 8] = *b"FBCKMAP\x01";
const HEADER_LEN: u64 = 4096;
const IDENTITY_MAX: usize = 1024;

/// The first bytes of the file; the rest of its 4096 bytes is zero.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Header {
    /// [`MAP_MAGIC`].
    magic: [u8; 8],
    /// 0 BLAKE3-256, 1 XXH3-128.
    hash: U16,
    /// Bytes of `identity` in use.
    identity_len: U16,
    /// Bytes of a block.
    block_size: U32,
    /// Bytes of the disk.
    disk_len: U64,
    /// Leaves that follow.
    block_count: U64,
    /// Root; 16 bytes and zeros for XXH3-128.
    root: [u8; 32],
    /// Identity of the disk when the map was made, UTF-8.
    identity: [u8; IDENTITY_MAX],
    /// XXH3-64 of all bytes before: against accidents.
    header_sum: U64,
}

const _: () = assert!(size_of::<Header>() == 64 + IDENTITY_MAX + 8);

/// Writes a map in block order, under a temporary name until it is complete.
#[derive(Debug)]
pub struct MapWriter {
    file: tempfile::NamedTempFile,
    geometry: Geometry,
    hash: HashKind,
    next: u64,
    waiting: Vec<u8>,
}

/// Bytes of leaves that are written at once.
const WRITE_LEN: usize = 1 << 20;

impl MapWriter {
    /// A map file beside `path`.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(path: &Path, geometry: Geometry, hash: HashKind) -> Result<Self> {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let file = tempfile::NamedTempFile::new_in(parent)
            .map_err(|e| Error::io(e, "make map file").path(path))?;
        let len = HEADER_LEN + geometry.block_count().0 * hash.digest_len() as u64;
        FileAt::set_len(file.as_file(), len)
            .map_err(|e| Error::io(e, "set length of map file").path(path))?;
        Ok(Self {
            file,
            geometry,
            hash,
            next: 0,
            waiting: Vec::new(),
        })
    }

    /// The next `count` blocks hold `leaf`.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn push(&mut self, leaf: Leaf, count: u64) -> Result<()> {
        match leaf {
            Leaf::Data(digest) => {
                self.waiting.extend_from_slice(digest.as_bytes());
                self.next += count;
                if self.waiting.len() >= WRITE_LEN {
                    self.write()
                } else {
                    Ok(())
                }
            }
            Leaf::Zero => {
                self.write()?;
                self.next += count;
                Ok(())
            }
        }
    }

    /// Completes the map and gives it its name, durably. Replaces an older map of that name, and
    /// nothing else.
    ///
    /// # Errors
    /// `Refused` when a file that is no map has that name, `NoSpace`, `Io`.
    pub fn finish(mut self, path: &Path, root: &Digest, identity: &str) -> Result<()> {
        self.write()?;
        assert_eq!(
            self.next,
            self.geometry.block_count().0,
            "every block has its leaf"
        );
        let failed = |e| Error::io(e, "write map file").path(path);
        if path.symlink_metadata().is_ok() && MapFile::open(path).is_err() {
            let message = "exists and is not a map; it is not replaced";
            return Err(Error::new(ErrorKind::Refused, message).path(path));
        }
        let header = header_of(&self.geometry, self.hash, root, identity);
        self.file
            .as_file()
            .write_at(0, header.as_bytes())
            .map_err(failed)?;
        FileAt::sync(self.file.as_file()).map_err(failed)?;
        self.file.persist(path).map_err(|e| failed(e.error))?;
        sync_directory_of(path).map_err(failed)
    }

    fn write(&mut self) -> Result<()> {
        let digest_len = self.hash.digest_len() as u64;
        let first = self.next - self.waiting.len() as u64 / digest_len;
        let at = HEADER_LEN + first * digest_len;
        let written = self.file.as_file().write_at(at, &self.waiting);
        self.waiting.clear();
        written.map_err(|e| Error::io(e, "write map file").path(self.file.path()))
    }
}

fn header_of(geometry: &Geometry, hash: HashKind, root: &Digest, identity: &str) -> Header {
    let mut header = Header {
        magic: MAP_MAGIC,
        hash: U16::new(u16::from(hash == HashKind::Xxh3)),
        identity_len: U16::new(0),
        block_size: U32::new(geometry.block_size().as_u32()),
        disk_len: U64::new(geometry.disk_len()),
        block_count: U64::new(geometry.block_count().0),
        root: [0; 32],
        identity: [0; IDENTITY_MAX],
        header_sum: U64::new(0),
    };
    header.root[..root.as_bytes().len()].copy_from_slice(root.as_bytes());
    let identity = &identity.as_bytes()[..identity.len().min(IDENTITY_MAX)];
    header.identity[..identity.len()].copy_from_slice(identity);
    header.identity_len = U16::new(u16::try_from(identity.len()).expect("at most 1024"));
    header.header_sum = U64::new(header.sum());
    header
}

impl Header {
    fn sum(&self) -> u64 {
        xxh3_64(&self.as_bytes()[..size_of::<Self>() - 8])
    }
}

/// A saved map, mapped into memory.
#[derive(Debug)]
pub struct MapFile {
    bytes: Mmap,
    geometry: Geometry,
    hash: HashKind,
    root: Digest,
    identity: String,
}

impl MapFile {
    /// Opens a map file and checks its header.
    ///
    /// # Errors
    /// `Damaged` when it is not a sound map, `Io`.
    pub fn open(path: &Path) -> Result<Self> {
        let damaged = |what: &str| Error::new(ErrorKind::Damaged, what.to_owned()).path(path);
        let file = File::open(path).map_err(|e| Error::io(e, "open").path(path))?;
        let bytes = map_own_file(&file).map_err(|e| Error::io(e, "map").path(path))?;
        let (header, _) =
            Header::ref_from_prefix(&bytes).map_err(|_| damaged("is too short for a map"))?;
        if header.magic != MAP_MAGIC {
            return Err(damaged("is not a checksum map of this version"));
        }
        if header.header_sum.get() != header.sum() {
            return Err(damaged("map header does not match its sum"));
        }
        let hash = match header.hash.get() {
            0 => HashKind::Blake3,
            1 => HashKind::Xxh3,
            _ => return Err(damaged("map names an unknown hash")),
        };
        let block = BlockSize::new(header.block_size.get().into())
            .map_err(|_| damaged("map has a bad block size"))?;
        let geometry = Geometry::new(header.disk_len.get(), block)
            .map_err(|_| damaged("map is of too large a disk"))?;
        let leaves_len = geometry.block_count().0 * hash.digest_len() as u64;
        if header.block_count.get() != geometry.block_count().0
            || bytes.len() as u64 != HEADER_LEN + leaves_len
        {
            return Err(damaged("map does not have a leaf for every block"));
        }
        let root =
            Digest::from_slice(&header.root[..hash.digest_len()]).expect("the length of the hash");
        let identity = header.identity.get(..header.identity_len.get().into());
        let identity = identity.and_then(|text| std::str::from_utf8(text).ok());
        let identity = identity
            .ok_or_else(|| damaged("map has no readable identity"))?
            .to_owned();
        Ok(Self {
            bytes,
            geometry,
            hash,
            root,
            identity,
        })
    }

    /// How the disk is cut.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The hash it was made with.
    #[must_use]
    pub fn hash(&self) -> HashKind {
        self.hash
    }

    /// The root that the header states.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.root
    }

    /// Identity of the disk when the map was made.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What the map says of a block; `None` past the end.
    #[must_use]
    pub fn leaf(&self, block: BlockIndex) -> Option<Leaf> {
        let len = self.hash.digest_len();
        let at = usize::try_from(block.0)
            .ok()?
            .checked_mul(len)?
            .checked_add(4096)?;
        let bytes = self.bytes.get(at..at.checked_add(len)?)?;
        match crate::hash::is_zero(bytes) {
            true => Some(Leaf::Zero),
            false => Digest::from_slice(bytes).map(Leaf::Data),
        }
    }

    /// Computes the root from the leaves: equal to [`MapFile::root`] when the file is sound.
    #[must_use]
    pub fn root_of_leaves(&self) -> Digest {
        let mut tree = TreeBuilder::new(&Hasher::new(self.hash), self.geometry);
        let mut zeros = 0;
        for block in 0..self.geometry.block_count().0 {
            match self.leaf(BlockIndex(block)) {
                Some(leaf @ Leaf::Data(_)) => {
                    tree.push(Leaf::Zero, std::mem::take(&mut zeros));
                    tree.push(leaf, 1);
                }
                _ => zeros += 1,
            }
        }
        tree.push(Leaf::Zero, zeros);
        tree.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("disk.map");
        let geometry = Geometry::new((5 << 20) + 512, BlockSize::DEFAULT).unwrap();
        let hasher = Hasher::new(HashKind::Blake3);
        let mut tree = TreeBuilder::new(&hasher, geometry);
        let mut map = MapWriter::create(&path, geometry, HashKind::Blake3).unwrap();
        let pieces = [
            (Leaf::Zero, 2),
            (Leaf::Data(hasher.leaf(b"x")), 1),
            (Leaf::Zero, 2),
            (Leaf::Data(hasher.leaf(b"y")), 1),
        ];
        for (leaf, count) in pieces {
            tree.push(leaf, count);
            map.push(leaf, count).unwrap();
        }
        map.finish(&path, &tree.finish(), "raw:1").unwrap();
        path
    }

    // Goal: what was saved is what is read. Method: zero runs and data around a short last block.
    #[test]
    fn a_saved_map_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let map = MapFile::open(&saved(dir.path())).unwrap();
        assert_eq!(map.root_of_leaves(), map.root());
        assert_eq!(map.leaf(BlockIndex(1)), Some(Leaf::Zero));
        assert_eq!(
            map.leaf(BlockIndex(5)),
            Some(Leaf::Data(Hasher::new(HashKind::Blake3).leaf(b"y")))
        );
        assert_eq!(map.leaf(BlockIndex(6)), None);
        assert_eq!(map.identity(), "raw:1");
    }

    // Goal: damage is found. Method: flip each byte of the header, cut the file, and replace a
    // foreign file.
    #[test]
    fn a_damaged_map_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = saved(dir.path());
        let sound = std::fs::read(&path).unwrap();
        for at in 0..size_of::<Header>() {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(
                MapFile::open(&path).unwrap_err().kind(),
                ErrorKind::Damaged,
                "byte {at}"
            );
        }
        std::fs::write(&path, &sound[..sound.len() - 1]).unwrap();
        assert!(MapFile::open(&path).is_err());
    }
}
