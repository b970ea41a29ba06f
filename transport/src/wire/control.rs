//! What the two sides agree on before data flows.

use bytes::BytesMut;

use super::digest::Digest;
use super::field::{Fault, Field, HeadReader, codes, fields};
use super::limit::{
    BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, DISK_SIZE_MAX, NAME_LEN_MAX, NEW_DISK_BLOCK_SIZE_MAX,
    TEXT_LEN_MAX, ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN,
};
use crate::link::LINKS_MAX;

/// The first message of each side. Its frame and its fields never change between versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest version the sender speaks; from 1.
    pub version_min: u16,
    /// Highest version the sender speaks; not below `version_min`.
    pub version_max: u16,
    /// One bit for each optional feature the sender has; unknown bits are ignored.
    pub features: u64,
    /// Name and version of the sender's program, for reports; at most [`NAME_LEN_MAX`] bytes.
    pub software: String,
}

/// Asks the agent for a disk that it was told to grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// Name of the grant, never a path; 1 to [`NAME_LEN_MAX`] bytes.
    pub name: String,
    /// What the client wants to do with it.
    pub access: Access,
    /// What to make when nothing exists under that name; `None`: nothing.
    pub create: Option<NewDisk>,
    /// What is asked of the saved map of the disk; `None`: it is left alone.
    pub map: Option<MapWish>,
    /// The session has several connections; `None`: this one.
    pub links: Option<LinkGroup>,
}

/// Connections that carry one session together. This one only begins it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkGroup {
    /// How many join, 1 to [`LINKS_MAX`].
    pub count: u8,
    /// 16 random bytes by which they are known.
    pub token: Digest,
}

/// What is asked of a saved map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapWish {
    /// Hash of the blocks.
    pub hash: HashKind,
    /// Bytes of a block, as in [`SessionParams::block_size`].
    pub block_size: u32,
    /// Whether it may stand for reads; else it is only made anew.
    pub trust: bool,
    /// Whether the audit reads a fixed number of blocks, however long that takes.
    pub full_audit: bool,
}

/// What is known of a saved map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapState {
    /// Its root, when it speaks of the disk as it is.
    pub root: Option<Digest>,
    /// Number of the reason why it is not believed; the receiver must bear unknown ones.
    pub refusal: Option<u8>,
    /// Blocks that were read for the audit.
    pub audited_blocks: u64,
    /// Blocks that hold data, by the map.
    pub data_blocks: u64,
    /// Nothing of the disk is left undefined by its format: when roots are equal, nothing is left
    /// to do.
    pub is_settled: bool,
}

/// What a client may do with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read it: the disk is the source.
    Read,
    /// Make it equal to the source: the disk is the target.
    Write,
    /// Look at it as the target of a session that is only planned: nothing is changed or made.
    Plan,
}

/// The disk that a first sync makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewDisk {
    /// Bytes of the virtual disk, at most [`DISK_SIZE_MAX`].
    pub size: u64,
    /// 512 or 4096 bytes; 0: not stated.
    pub logical_sector_size: u32,
    /// Block size that suits the image, a power of two of at most [`NEW_DISK_BLOCK_SIZE_MAX`]
    /// bytes; 0: not stated.
    pub block_size_hint: u32,
}

/// What the agent opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Name of the image format, at most [`NAME_LEN_MAX`] bytes.
    pub format: String,
    /// Bytes of the virtual disk, at most [`DISK_SIZE_MAX`].
    pub virtual_size: u64,
    /// 512 or 4096 bytes; 0: not stated.
    pub logical_sector_size: u32,
    /// What tells this disk from others, for reports; at most [`TEXT_LEN_MAX`] bytes.
    pub identity: String,
    /// Whether there was no such disk before.
    pub is_new: bool,
    /// Whether a full copy that was cut off left something to go on with.
    pub is_partial: bool,
    /// Bytes that hold data, by the image's own account: a hint. Not known: `virtual_size`.
    pub allocated_bytes: u64,
    /// What is known of the saved map that was asked for.
    pub map: MapState,
}

/// How the session goes; from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionParams {
    /// What is to be done.
    pub task: Task,
    /// Hash of the blocks.
    pub hash: HashKind,
    /// Bytes of a block: a power of two, [`BLOCK_SIZE_MIN`] to [`BLOCK_SIZE_MAX`].
    pub block_size: u32,
    /// How far the target is read back.
    pub verify: VerifyLevel,
    /// How the source may pack data.
    pub compress: Compress,
    /// Seed of the hashes of sub-blocks, new in each session.
    pub sub_hash_seed: u64,
    /// The role that the receiver of this message plays.
    pub peer_role: Role,
    /// How the target is changed.
    pub apply: Apply,
    /// Where what it becomes is kept until all of it is there; `None`: the target's choice.
    pub container: Option<Container>,
    /// The comparison is with what a full copy that was cut off has left, not with the old disk.
    pub goes_on: bool,
    /// Tells the source, in the state it is in, from any other: a target that goes on with what an
    /// earlier session left sees whether the source was changed. Nothing rests on it.
    pub source_mark: u64,
    /// Root of the saved map of the target, where both sides have one that is believed: the source
    /// asks for what is below the nodes of its tree that differ, and no hash is sent unasked.
    /// `None`: the target sends all of them.
    pub target_root: Option<Digest>,
    /// Whether the source may send blocks whole without asking what of them differs, where that is
    /// likely to be done sooner.
    pub may_send_whole: bool,
}

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Compare blocks, send what differs.
    Delta,
    /// Send all data, compare nothing.
    Full,
    /// Compare both disks, change nothing.
    Compare,
    /// Hash one disk, change nothing.
    Map,
}

/// Hash of the blocks of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HashKind {
    /// BLAKE3-256: proves equality.
    Blake3,
    /// XXH3-128: fast, for trusted guests only.
    Xxh3,
}

impl HashKind {
    /// Bytes of one hash: 32 or 16.
    #[must_use]
    pub fn hash_len(self) -> u8 {
        match self {
            Self::Blake3 => 32,
            Self::Xxh3 => 16,
        }
    }
}

/// How far the target is read back after the last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VerifyLevel {
    /// The whole disk.
    Full,
    /// What was written.
    Changed,
    /// Nothing.
    Off,
}

/// How the target is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Apply {
    /// As data comes: it is mixed until the end.
    InPlace,
    /// Staged, and written when everything is there; the old disk can be restored until it is
    /// proven.
    Stage,
    /// The same, and the old disk can be restored until somebody accepts the new one.
    StageKeepUndo,
    /// Staged; what the target had is not kept.
    StageNoUndo,
}

/// What keeps that which a target becomes, until all of it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Container {
    /// A log of changes, applied to the target in the end.
    Log,
    /// A new file that takes the target's place.
    File,
    /// A clone of the target that shares its bytes and takes its place.
    Clone,
    /// A differencing image, merged into the target in the end.
    Child,
}

/// How the source may pack data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compress {
    /// Not at all.
    Off,
    /// zstd where that is smaller, at a level from [`ZSTD_LEVEL_MIN`] to [`ZSTD_LEVEL_MAX`]. A
    /// wish: the source has its own bounds.
    Zstd(i8),
    /// While it runs, as the source finds that it pays.
    Auto,
}

/// The part of an agent in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Its disk is read.
    Source,
    /// Its disk is made equal to the other.
    Target,
}

/// Why a side ends the session. Nothing follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Number of the engine's error kind; the receiver must bear unknown ones.
    pub kind: u16,
    /// One line, at most [`TEXT_LEN_MAX`] bytes. Foreign text: escape it before it is printed.
    pub message: String,
    /// The file concerned, as the sender names it; at most [`TEXT_LEN_MAX`] bytes; empty: none.
    pub path: String,
    /// Byte offset concerned.
    pub offset: Option<u64>,
}

impl Hello {
    pub(super) fn check(&self) -> Result<(), Fault> {
        check_name(&self.software, 0)?;
        if self.version_min == 0 || self.version_min > self.version_max {
            return Err("version range is empty");
        }
        Ok(())
    }
}

impl OpenRequest {
    pub(super) fn check(&self) -> Result<(), Fault> {
        check_name(&self.name, 1)?;
        if self.map.is_some_and(|map| !is_block_size(map.block_size)) {
            return Err("block size is out of range");
        }
        if let Some(group) = self.links {
            if !(1..=LINKS_MAX).contains(&usize::from(group.count)) {
                return Err("number of connections is out of range");
            }
            check_token(&group.token)?;
        }
        let Some(disk) = self.create else {
            return Ok(());
        };
        check_geometry(disk.size, disk.logical_sector_size)?;
        let hint = disk.block_size_hint;
        if hint != 0 && (!hint.is_power_of_two() || hint > NEW_DISK_BLOCK_SIZE_MAX) {
            return Err("block size of the new disk is out of range");
        }
        Ok(())
    }
}

impl DiskInfo {
    pub(super) fn check(&self) -> Result<(), Fault> {
        check_name(&self.format, 0)?;
        check_text(&self.identity)?;
        check_geometry(self.virtual_size, self.logical_sector_size)
    }
}

impl SessionParams {
    pub(super) fn check(&self) -> Result<(), Fault> {
        if !is_block_size(self.block_size) {
            return Err("block size is out of range");
        }
        match self.compress {
            Compress::Zstd(level) if !(ZSTD_LEVEL_MIN..=ZSTD_LEVEL_MAX).contains(&level) => {
                Err("zstd level is out of range")
            }
            Compress::Zstd(_) | Compress::Off | Compress::Auto => Ok(()),
        }
    }
}

impl Failure {
    pub(super) fn check(&self) -> Result<(), Fault> {
        check_text(&self.message)?;
        check_text(&self.path)
    }
}

pub(super) fn check_token(token: &Digest) -> Result<(), Fault> {
    match token.as_bytes().len() {
        16 => Ok(()),
        _ => Err("a token has 16 bytes"),
    }
}

fn is_block_size(size: u32) -> bool {
    size.is_power_of_two() && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&size)
}

pub(super) fn check_name(name: &str, len_min: usize) -> Result<(), Fault> {
    if (len_min..=NAME_LEN_MAX).contains(&name.len()) {
        Ok(())
    } else {
        Err("bad name length")
    }
}

pub(super) fn check_text(text: &str) -> Result<(), Fault> {
    if text.len() <= TEXT_LEN_MAX {
        Ok(())
    } else {
        Err("a text is too long")
    }
}

fn check_geometry(size: u64, logical_sector_size: u32) -> Result<(), Fault> {
    if size > DISK_SIZE_MAX {
        return Err("disk is too large");
    }
    if !matches!(logical_sector_size, 0 | 512 | 4096) {
        return Err("sector size is neither 512 nor 4096");
    }
    Ok(())
}

fields!(Hello {
    version_min,
    version_max,
    features,
    software
});
fields!(OpenRequest {
    name,
    access,
    create,
    map,
    links
});
fields!(LinkGroup { count, token });
fields!(MapWish {
    hash,
    block_size,
    trust,
    full_audit
});
fields!(MapState {
    root,
    refusal,
    audited_blocks,
    data_blocks,
    is_settled
});
fields!(NewDisk {
    size,
    logical_sector_size,
    block_size_hint
});
fields!(DiskInfo {
    format,
    virtual_size,
    logical_sector_size,
    identity,
    is_new,
    is_partial,
    allocated_bytes,
    map
});
fields!(SessionParams {
    task,
    hash,
    block_size,
    verify,
    compress,
    sub_hash_seed,
    peer_role,
    apply,
    container,
    goes_on,
    source_mark,
    target_root,
    may_send_whole
});
fields!(Failure {
    kind,
    message,
    path,
    offset
});
codes!(Access {
    Read = 0,
    Write = 1,
    Plan = 2
});
codes!(Task { Delta = 0, Full = 1, Compare = 2, Map = 3 });
codes!(HashKind { Blake3 = 0, Xxh3 = 1 });
codes!(VerifyLevel { Full = 0, Changed = 1, Off = 2 });
codes!(Apply {
    InPlace = 0,
    Stage = 1,
    StageKeepUndo = 2,
    StageNoUndo = 3
});
codes!(Container {
    Log = 0,
    File = 1,
    Clone = 2,
    Child = 3
});
codes!(Role { Source = 0, Target = 1 });

/// Two bytes: the method, then its level, which is 0 where there is none.
impl Field for Compress {
    fn put(&self, out: &mut BytesMut) {
        let (method, level) = match *self {
            Self::Off => (0_u8, 0),
            Self::Zstd(level) => (1, level),
            Self::Auto => (2, 0),
        };
        method.put(out);
        level.put(out);
    }

    fn take(input: &mut HeadReader<'_>) -> Result<Self, Fault> {
        match (u8::take(input)?, i8::take(input)?) {
            (0, 0) => Ok(Self::Off),
            (1, level) => Ok(Self::Zstd(level)),
            (2, 0) => Ok(Self::Auto),
            _ => Err("unknown Compress"),
        }
    }
}
