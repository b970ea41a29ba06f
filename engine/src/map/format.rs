//! The map file, drawn in docs/formats.md.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, HashKind};
use crate::identity::Facts;
use crate::map::MapKey;
use crate::tree::Place;
use crate::units::{BlockSize, Geometry};

/// First bytes of a map file; the last one is the version.
pub const MAP_MAGIC: [u8; 8] = *b"FBCKMAP\x02";
/// Bytes before the first level: the header and the facts of a chain of 64 images.
pub(super) const HEAD_LEN: u64 = 64 << 10;
/// Levels and the table of counts begin at multiples of it.
const LEVEL_ALIGN: u64 = 4096;
/// Leaves that one entry of the table of counts is about.
pub(super) const GROUP_LEN: u64 = 1024;
/// Bytes of an entry of the table of counts.
pub(super) const COUNT_LEN: u64 = 2;

/// The first bytes of the file; the facts follow as JSON, then zeros.
#[repr(C)]
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub(super) struct Header {
    /// [`MAP_MAGIC`].
    magic: [u8; 8],
    /// 0 BLAKE3-256, 1 XXH3-128.
    hash: U16,
    /// 0.
    reserved: U16,
    /// Bytes of a block.
    block_size: U32,
    /// Bytes of the disk.
    disk_len: U64,
    /// Leaves.
    block_count: U64,
    /// Leaves that are not zero.
    data_count: U64,
    /// Bytes of the facts, at most [`FACTS_LEN_MAX`].
    facts_len: U32,
    /// 0.
    reserved_too: U32,
    /// Root; 16 bytes and zeros for XXH3-128.
    root: [u8; 32],
    /// BLAKE3 of the table of counts.
    counts_hash: [u8; 32],
    /// Keyed BLAKE3 of all bytes before and of the facts.
    mac: [u8; 32],
}

const HEADER_LEN: usize = size_of::<Header>();
const MACED_LEN: usize = HEADER_LEN - 32;
const _: () = assert!(HEADER_LEN == 144);
/// Bytes of the facts.
const FACTS_LEN_MAX: usize = 65536 - HEADER_LEN;

/// What a header says, checked.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) geometry: Geometry,
    pub(super) hash: HashKind,
    pub(super) root: Digest,
    pub(super) data_count: u64,
    pub(super) counts_hash: [u8; 32],
    pub(super) facts: Option<Facts>,
}

impl Head {
    /// The first [`HEAD_LEN`] bytes of the file, without the zeros at their end.
    pub(super) fn to_bytes(&self, key: &MapKey) -> Result<Vec<u8>> {
        let facts = serde_json::to_vec(&self.facts);
        let facts = facts.map_err(|e| Error::new(ErrorKind::Internal, "facts").caused_by(e))?;
        if facts.len() > FACTS_LEN_MAX {
            let message = "what is to be noted of the disk does not fit a map";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let mut header = Header {
            magic: MAP_MAGIC,
            hash: U16::new(u16::from(self.hash == HashKind::Xxh3)),
            reserved: U16::ZERO,
            block_size: U32::new(self.geometry.block_size().as_u32()),
            disk_len: U64::new(self.geometry.disk_len()),
            block_count: U64::new(self.geometry.block_count().0),
            data_count: U64::new(self.data_count),
            facts_len: U32::new(u32::try_from(facts.len()).expect("below 64 KiB")),
            reserved_too: U32::ZERO,
            root: [0; 32],
            counts_hash: self.counts_hash,
            mac: [0; 32],
        };
        header.root[..self.root.as_bytes().len()].copy_from_slice(self.root.as_bytes());
        header.mac = key.mac(&[&header.as_bytes()[..MACED_LEN], &facts]);
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&facts);
        Ok(bytes)
    }

    /// Reads it back; whether the MAC is that of `key` comes with it. Facts of a header without the
    /// right MAC are not looked at.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn parse(
        bytes: &[u8],
        file_len: u64,
        key: &MapKey,
    ) -> std::result::Result<(Self, bool), &'static str> {
        let (header, rest) =
            Header::ref_from_prefix(bytes).map_err(|_| "is too short for a map")?;
        if header.magic != MAP_MAGIC {
            return Err("is not a checksum map of this version");
        }
        let hash = match header.hash.get() {
            0 => HashKind::Blake3,
            1 => HashKind::Xxh3,
            _ => return Err("names an unknown hash"),
        };
        let block = BlockSize::new(header.block_size.get().into());
        let block = block.map_err(|_| "has a bad block size")?;
        let geometry = Geometry::new(header.disk_len.get(), block);
        let geometry = geometry.map_err(|_| "is of too large a disk")?;
        let layout = Layout::new(&geometry, hash);
        if header.block_count.get() != geometry.block_count().0 || file_len != layout.file_len {
            return Err("does not have a leaf for every block");
        }
        let facts_len = usize::try_from(header.facts_len.get()).unwrap_or(usize::MAX);
        let facts = rest.get(..facts_len).ok_or("has too many facts")?;
        let maced = &header.as_bytes()[..MACED_LEN];
        let is_authentic = key.is_mac(&[maced, facts], &header.mac);
        let facts = match is_authentic {
            true => serde_json::from_slice(facts).map_err(|_| "has no readable facts")?,
            false => None,
        };
        let root = Digest::from_slice(&header.root[..hash.digest_len()]);
        let head = Self {
            geometry,
            hash,
            root: root.expect("the length of the hash"),
            data_count: header.data_count.get(),
            counts_hash: header.counts_hash,
            facts,
        };
        Ok((head, is_authentic))
    }
}

/// What lies where.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    digest_len: u64,
    /// Where each level begins.
    levels: Vec<u64>,
    /// Where the table of counts begins.
    pub(super) counts_at: u64,
    /// Bytes of the table of counts.
    pub(super) counts_len: u64,
    pub(super) file_len: u64,
}

impl Layout {
    pub(super) fn new(geometry: &Geometry, hash: HashKind) -> Self {
        let digest_len = hash.digest_len() as u64;
        let block_count = geometry.block_count().0;
        let mut levels = Vec::new();
        let (mut at, mut count) = (HEAD_LEN, block_count);
        // At most 2^30 leaves of 32 bytes, and as much above them: far below 2^63.
        while count > 0 {
            levels.push(at);
            at = (at + count * digest_len).next_multiple_of(LEVEL_ALIGN);
            count = match count {
                1 => 0,
                more => more.div_ceil(2),
            };
        }
        let counts_len = block_count.div_ceil(GROUP_LEN) * COUNT_LEN;
        Self {
            digest_len,
            levels,
            counts_at: at,
            counts_len,
            file_len: at + counts_len,
        }
    }

    /// Where a node is, which the tree has.
    pub(super) fn place(&self, place: Place) -> u64 {
        self.levels[place.level as usize] + place.index * self.digest_len
    }

    pub(super) fn level_count(&self) -> usize {
        self.levels.len()
    }
}
