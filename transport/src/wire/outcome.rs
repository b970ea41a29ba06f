//! What each side says it did, at the end.

use super::control::Container;
use super::digest::Digest;
use super::field::{codes, fields};

/// The last word of the source on the data. Counts are of this session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceEnd {
    /// Root over the whole source; `None` when nothing asked for it.
    pub root: Option<Digest>,
    /// Bytes read from the source.
    pub source_read: u64,
    /// Blocks that were hashed.
    pub hashed_blocks: u64,
    /// Blocks known to be zero without a read.
    pub skipped_blocks: u64,
    /// Blocks that differed.
    pub differing_blocks: u64,
    /// Blocks sent as zeros.
    pub zeroed_blocks: u64,
    /// Bytes of sub-blocks that differed.
    pub changed_bytes: u64,
    /// Payload bytes sent, before compression.
    pub raw_bytes: u64,
    /// Payload bytes sent, after compression.
    pub sent_bytes: u64,
    /// Bytes with data that were not read, since a saved map says what they are.
    pub vouched_bytes: u64,
    /// How often the plan for blocks that differ was changed.
    pub replans: u64,
    /// Regions of which blocks were sent whole by that.
    pub whole_regions: u64,
    /// Bytes of these blocks.
    pub whole_bytes: u64,
}

/// The verdict of the target. Counts are of this session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetResult {
    /// Root over the whole target as it is now; `None` when nothing asked for it.
    pub root: Option<Digest>,
    /// Whether the target's content is proved equal to the source's.
    pub equal: bool,
    /// Bytes read from the target.
    pub target_read: u64,
    /// Bytes written to the target.
    pub written: u64,
    /// Bytes read back after the last write.
    pub verified: u64,
    /// Blocks made zero.
    pub zeroed_blocks: u64,
    /// Blocks that were hashed.
    pub hashed_blocks: u64,
    /// Blocks known to be zero without a read.
    pub skipped_blocks: u64,
    /// Blocks that differed.
    pub differing_blocks: u64,
    /// Where the bytes of `verified` came from.
    pub verified_from: VerifiedFrom,
    /// Microseconds that reading back took.
    pub verify_micros: u64,
    /// Blocks that an earlier session had staged.
    pub resumed_blocks: u64,
    /// What became of an earlier session's stage: bit 0 gone on with, 1 the source was changed
    /// since, 2 given up as the target was changed, 3 given up as it was made in another way, 4 an
    /// apply of its was lost. Why a log and no other file: 5 the target has to stay what it is, 6
    /// nothing can stand beside it, 7 there are no clones.
    pub resume_notes: u8,
    /// What kept that which the target became; `None`: nothing did.
    pub container: Option<Container>,
    /// Bytes with data that were not read, since a saved map says what they are.
    pub vouched_bytes: u64,
}

/// Where bytes that were read back came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum VerifiedFrom {
    /// Nothing was read back.
    #[default]
    None,
    /// The medium.
    Medium,
    /// The page cache.
    Cache,
    /// A server that keeps the disk.
    Server,
}

fields!(SourceEnd {
    root,
    source_read,
    hashed_blocks,
    skipped_blocks,
    differing_blocks,
    zeroed_blocks,
    changed_bytes,
    raw_bytes,
    sent_bytes,
    vouched_bytes,
    replans,
    whole_regions,
    whole_bytes,
});
fields!(TargetResult {
    root,
    equal,
    target_read,
    written,
    verified,
    zeroed_blocks,
    hashed_blocks,
    skipped_blocks,
    differing_blocks,
    verified_from,
    verify_micros,
    resumed_blocks,
    resume_notes,
    container,
    vouched_bytes,
});
codes!(VerifiedFrom { None = 0, Medium = 1, Cache = 2, Server = 3 });
