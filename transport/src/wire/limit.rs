//! Every limit of the protocol, once, with its reason.

/// Smallest block that a session compares, in bytes: below it the hashes outweigh what they save.
pub const BLOCK_SIZE_MIN: u32 = 64 << 10;

/// Largest block that a session compares, in bytes: bounds the payload of one frame.
pub const BLOCK_SIZE_MAX: u32 = 4 << 20;

/// Largest virtual disk, in bytes: the limit of VHDX.
pub const DISK_SIZE_MAX: u64 = 64 << 40;

/// Most blocks of a disk: the largest disk in the smallest blocks. A block index is below it.
pub const BLOCK_COUNT_MAX: u64 = DISK_SIZE_MAX / BLOCK_SIZE_MIN as u64;

/// Largest block size that a new image may be given, in bytes: the limit of VHDX.
pub const NEW_DISK_BLOCK_SIZE_MAX: u32 = 256 << 20;

/// Bytes of a sub-block: the unit in which a block that differs is compared and sent.
pub const SUB_BLOCK_LEN: u32 = 4 << 10;

/// Bytes of the hash of one sub-block. It only picks what to send; the block's hash proves it.
pub const SUB_HASH_LEN: u32 = 8;

/// Bytes of a piece: the unit in which two blocks that differ are compared by what both sides know
/// of them already.
pub const PIECE_LEN: u32 = 64 << 10;

/// Most pieces of a block; a set of them is a `u64`.
pub const PIECE_COUNT_MAX: u32 = BLOCK_SIZE_MAX / PIECE_LEN;

/// Bytes of the name of one piece: of its digest, which is cut off. It only picks what to look at.
pub const PIECE_ID_LEN: u32 = 8;

/// Most bytes of the head of a frame: room for [`RUN_COUNT_MAX`] runs and two texts.
pub const HEAD_LEN_MAX: u32 = 64 << 10;

/// Most bytes of the payload of a frame: the largest block and some slack.
pub const PAYLOAD_LEN_MAX: u32 = BLOCK_SIZE_MAX + (64 << 10);

/// Most bytes of a name: what file systems allow one.
pub const NAME_LEN_MAX: usize = 255;

/// Most bytes of a text: a path of the longest kind.
pub const TEXT_LEN_MAX: usize = 4 << 10;

/// Most block hashes in one message: 64 KiB of BLAKE3, so that they never delay data for long.
pub const HASH_COUNT_MAX: u32 = 2048;

/// Highest level of the tree over a disk above its leaves: the largest disk in the smallest blocks.
pub const TREE_LEVEL_MAX: u8 = 30;

/// Most nodes of a tree that one message asks about.
pub const NODE_COUNT_MAX: u32 = 128;

/// Levels below a node that one message may ask for: 16 digests for each node, so that a path from
/// the root to a leaf costs few round trips and few digests that turn out to be equal.
pub const DESCENT_DEPTH_MAX: u8 = 4;

/// Bytes of the index of a node within its level.
pub const NODE_INDEX_LEN: u32 = 4;

/// Most runs of sub-blocks in one message; also the sub-blocks of the largest block.
pub const RUN_COUNT_MAX: u32 = BLOCK_SIZE_MAX / SUB_BLOCK_LEN;

/// Most pieces of a sample: with 1,000 a share is known to some hundredths.
pub const SAMPLE_PIECE_COUNT_MAX: u16 = 1000;

/// Most spans of a sample: 256 MiB, which a fast disk reads in a tenth of a second.
pub const SAMPLE_SPAN_COUNT_MAX: u16 = 256;

/// Bytes of the position of a piece or span.
pub const POSITION_LEN: usize = 4;

/// Bytes of the sums of one piece: 2 for each of 16 sub-blocks.
pub const PIECE_SUMS_LEN: usize = 32;

/// Bytes of the sum of one span.
pub const SPAN_SUM_LEN: usize = 4;

/// Most bytes of a probe: 25 ms of a link of 160 MB/s. One that is faster does not decide anything.
pub const PROBE_LEN_MAX: u32 = 4 << 20;

/// Most bytes of the name of a job, side, disk or snapshot on a control link: they become names of
/// files, and words of commands.
pub const CONTROL_NAME_LEN_MAX: usize = 64;

/// Most snapshots of one job of one disk that an answer names: a job keeps one, and a crash leaves
/// few.
pub const CONTROL_SNAPSHOT_COUNT_MAX: u8 = 64;

/// Most disks of a machine that an agent names: controllers of virtual machines take 64.
pub const CONTROL_DISK_COUNT_MAX: u8 = 64;

/// Most blocks that an answer names, of those that a tracker concealed.
pub const CONTROL_BLOCK_COUNT_MAX: u8 = 8;

/// Longest time that a peer can make an agent wait for a guest, in milliseconds: a day.
pub const CONTROL_LIMIT_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// Lowest zstd level that a session may ask for.
pub const ZSTD_LEVEL_MIN: i8 = -7;

/// Highest zstd level that a session may ask for: the ones above it cost too much memory.
pub const ZSTD_LEVEL_MAX: i8 = 19;

const _: () = assert!(BLOCK_COUNT_MAX == 1 << 30);
const _: () = assert!(RUN_COUNT_MAX == 1024);
const _: () = assert!(1 << TREE_LEVEL_MAX == BLOCK_COUNT_MAX);
const _: () = assert!(NODE_COUNT_MAX << DESCENT_DEPTH_MAX == HASH_COUNT_MAX);
