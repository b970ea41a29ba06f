//! The frame around a message: 40 bytes of header, the head, the payload.

use std::mem::size_of;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::field::Fault;
use super::limit::{
    CONTROL_DISK_COUNT_MAX, CONTROL_NAME_LEN_MAX, CONTROL_SNAPSHOT_COUNT_MAX, HASH_COUNT_MAX,
    HEAD_LEN_MAX, NAME_LEN_MAX, NODE_COUNT_MAX, NODE_INDEX_LEN, PAYLOAD_LEN_MAX, PIECE_COUNT_MAX,
    PIECE_ID_LEN, PIECE_SUMS_LEN, POSITION_LEN, PROBE_LEN_MAX, RUN_COUNT_MAX,
    SAMPLE_PIECE_COUNT_MAX, SAMPLE_SPAN_COUNT_MAX, SPAN_SUM_LEN, SUB_HASH_LEN, TEXT_LEN_MAX,
};

/// First bytes of every frame: `FBK` and the version of the frame itself.
pub const FRAME_MAGIC: [u8; 4] = *b"FBK\x01";

/// Bit of [`FrameHeader::flags`]: the payload is not summed. For links within one process.
pub(super) const FLAG_UNSUMMED: u16 = 1;

/// Opens every frame. 40 bytes, little-endian, any alignment; drawn in docs/wire.md.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub(super) struct FrameHeader {
    /// Must be [`FRAME_MAGIC`].
    pub(super) magic: [u8; 4],
    /// A number of [`MessageType`].
    pub(super) message_type: U16,
    /// [`FLAG_UNSUMMED`] or 0.
    pub(super) flags: U16,
    /// Frames sent before in this direction.
    pub(super) sequence: U64,
    /// Bytes of the head, at most [`MessageType::head_len_max`]; checked before any allocation.
    pub(super) head_len: U32,
    /// Bytes of the payload, at most [`MessageType::payload_len_max`]; checked likewise.
    pub(super) payload_len: U32,
    /// XXH3-64 of the payload; 0 with [`FLAG_UNSUMMED`].
    pub(super) payload_sum: U64,
    /// XXH3-64 of the 32 bytes before and of the head.
    pub(super) head_sum: U64,
}

pub(super) const HEADER_LEN: usize = size_of::<FrameHeader>();
const HEADER_SUMMED_LEN: usize = HEADER_LEN - size_of::<U64>();
const _: () = assert!(HEADER_LEN == 40);

impl FrameHeader {
    /// What `head_sum` must be.
    pub(super) fn sum_with(&self, head: &[u8]) -> u64 {
        let mut sum = Xxh3::new();
        sum.update(&self.as_bytes()[..HEADER_SUMMED_LEN]);
        sum.update(head);
        sum.digest()
    }

    /// Checks all that can be checked before the rest of the frame is there.
    pub(super) fn check(&self, sequence: u64, trusted: bool) -> Result<MessageType, Fault> {
        if self.magic != FRAME_MAGIC {
            return Err("frame does not begin with the magic of this protocol");
        }
        if self.sequence.get() != sequence {
            return Err("frame is not the next one");
        }
        let message_type =
            MessageType::from_number(self.message_type.get()).ok_or("unknown message type")?;
        match self.flags.get() {
            0 => {}
            FLAG_UNSUMMED if !trusted => return Err("payload without a sum on this link"),
            FLAG_UNSUMMED if self.payload_sum.get() != 0 => return Err("payload is half summed"),
            FLAG_UNSUMMED => {}
            _ => return Err("unknown frame flags"),
        }
        if self.head_len.get() > message_type.head_len_max() {
            return Err("head is too long");
        }
        if self.payload_len.get() > message_type.payload_len_max() {
            return Err("payload is too long");
        }
        Ok(message_type)
    }

    /// Checks the payload's sum, where there is one.
    pub(super) fn check_payload(&self, payload: &[u8]) -> Result<(), Fault> {
        let unsummed = self.flags.get() & FLAG_UNSUMMED != 0;
        if unsummed || xxh3_64(payload) == self.payload_sum.get() {
            Ok(())
        } else {
            Err("payload does not have its sum")
        }
    }
}

macro_rules! message_types {
    ($($name:ident = $number:literal),* $(,)?) => {
        /// Which message a frame holds. Numbers are never used again for something else.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum MessageType { $($name = $number),* }

        impl MessageType {
            pub(super) fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            pub(super) fn number(self) -> u16 {
                match self { $(Self::$name => $number),* }
            }

            pub(super) fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

message_types! {
    Hello = 1, Open = 2, Opened = 3, Start = 4, Failure = 5, KeepAlive = 6, Bye = 7,
    Join = 8, Joined = 14,
    Survey = 9, Surveyed = 10, Sample = 11, Sampled = 12, Probe = 13,
    Hashes = 16, ZeroBlocks = 17, ScanEnd = 18, SubHashes = 19, Resend = 20, Result = 21,
    Nodes = 22, Settled = 23,
    Compared = 32, Want = 33, Data = 34, Zero = 35, End = 36, Descend = 37,
    Replan = 38,
    Control = 48, Controlled = 49, Ask = 50, Told = 51,
}

/// Head bytes that messages of fixed fields and one name never exceed.
const PLAIN_HEAD_LEN_MAX: u32 = 512;
/// Head bytes of messages with up to two texts: the texts and their fixed fields.
const TEXT_HEAD_LEN_MAX: u32 = 9 << 10;
const _: () = assert!(TEXT_HEAD_LEN_MAX as usize >= 2 * TEXT_LEN_MAX + NAME_LEN_MAX + 64);
const _: () = assert!(PLAIN_HEAD_LEN_MAX as usize >= NAME_LEN_MAX + 128);
const _: () = assert!(PLAIN_HEAD_LEN_MAX as usize >= 4 * (CONTROL_NAME_LEN_MAX + 3) + 64);
const SNAPSHOTS: usize = CONTROL_SNAPSHOT_COUNT_MAX as usize;
const _: () = assert!(TEXT_HEAD_LEN_MAX as usize >= SNAPSHOTS * (CONTROL_NAME_LEN_MAX + 2) + 2);
const DISKS: usize = CONTROL_DISK_COUNT_MAX as usize;
const _: () = assert!(TEXT_HEAD_LEN_MAX as usize >= (DISKS + 2) * (CONTROL_NAME_LEN_MAX + 3) + 64);

/// Payload bytes of the positions of a whole sample.
const POSITIONS_LEN_MAX: u32 = 6 << 10;
/// Payload bytes of the sums of a whole sample.
const SUMS_LEN_MAX: u32 = 34 << 10;
const PIECES: usize = SAMPLE_PIECE_COUNT_MAX as usize;
const SPANS: usize = SAMPLE_SPAN_COUNT_MAX as usize;
const _: () = assert!(POSITIONS_LEN_MAX as usize >= (PIECES + SPANS) * POSITION_LEN);
const _: () = assert!(SUMS_LEN_MAX as usize >= PIECES * PIECE_SUMS_LEN + SPANS * SPAN_SUM_LEN);

impl MessageType {
    pub(super) fn head_len_max(self) -> u32 {
        match self {
            Self::Data => HEAD_LEN_MAX,
            Self::Failure | Self::Opened | Self::Controlled | Self::Told => TEXT_HEAD_LEN_MAX,
            _ => PLAIN_HEAD_LEN_MAX,
        }
    }

    pub(super) fn payload_len_max(self) -> u32 {
        match self {
            Self::Data => PAYLOAD_LEN_MAX,
            Self::Hashes | Self::Nodes => HASH_COUNT_MAX * 32,
            Self::Descend => NODE_COUNT_MAX * NODE_INDEX_LEN,
            Self::SubHashes => RUN_COUNT_MAX * SUB_HASH_LEN,
            Self::Want => PIECE_COUNT_MAX * PIECE_ID_LEN,
            Self::Surveyed | Self::Sample => POSITIONS_LEN_MAX,
            Self::Sampled => SUMS_LEN_MAX,
            Self::Probe => PROBE_LEN_MAX,
            _ => 0,
        }
    }
}
