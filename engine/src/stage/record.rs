//! One record of the stage. Drawn in docs/formats.md.
//!
//! ```text
//! 0      header; runs of the block, each start u32 and length u32; zeros to the next 4096 bytes
//! n      bytes that the runs get, one after the other; zeros to the next 4096 bytes
//! m      bytes that the runs have in the target as it is; zeros to the next 4096 bytes
//! ```

use std::ops::Range;

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::hash::Digest;
use crate::tree::Leaf;
use crate::units::{BlockSize, SUB_BLOCK_LEN};

/// Records and their parts begin at multiples of this many bytes.
pub(super) const PAGE_LEN: u64 = PAGE as u64;
const PAGE: usize = 4096;
/// Runs of one record: every other sub-block of the largest block, twice over, as a record may
/// join the runs of two.
pub(super) const RUNS_MAX: usize = BlockSize::MAX as usize / SUB_BLOCK_LEN;
/// First bytes of every record; the last one is the version.
const MAGIC: [u8; 8] = *b"FBSTAGE\x01";

const FLAG_DROP: u8 = 1;
const FLAG_NEW_IS_ZERO: u8 = 2;
const FLAG_OLD_IS_ZERO: u8 = 4;
const FLAG_OLD_IS_KEPT: u8 = 8;

/// The first bytes of a record.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Header {
    /// [`MAGIC`].
    magic: [u8; 8],
    /// The job; records of another one do not count.
    job: [u8; 16],
    /// Records before this one; a later record of a block takes the place of an earlier one.
    sequence: U64,
    /// Bytes of the stage that were durable when this was written: damage below is no torn tail.
    durable: U64,
    /// The block.
    block: U64,
    /// Bytes of `new`; 0 when they are zeros.
    new_len: U32,
    /// Bytes of `old`; 0 when they are zeros or not kept.
    old_len: U32,
    /// Runs that follow, at most [`RUNS_MAX`].
    run_count: U16,
    /// `FLAG_*`; all others zero.
    flags: u8,
    /// Zero.
    reserved: u8,
    /// Digest of the whole block with the runs in it.
    new_leaf: LeafField,
    /// Digest of the whole block as the target has it.
    old_leaf: LeafField,
    /// XXH3-64 of `new`.
    new_sum: U64,
    /// XXH3-64 of `old`.
    old_sum: U64,
    /// XXH3-64 of the bytes before and of the runs.
    head_sum: U64,
}

pub(super) const HEADER_LEN: usize = size_of::<Header>();
const _: () = assert!(HEADER_LEN == 150);

/// Length of the digest: 16 or 32; 0: the block is zero; 255: not known. Then the digest.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct LeafField {
    len: u8,
    digest: [u8; 32],
}

const LEAF_UNKNOWN: u8 = 255;

impl LeafField {
    fn of(leaf: Option<Leaf>) -> Self {
        let mut field = Self {
            len: LEAF_UNKNOWN,
            digest: [0; 32],
        };
        match leaf {
            None => {}
            Some(Leaf::Zero) => field.len = 0,
            Some(Leaf::Data(digest)) => {
                let bytes = digest.as_bytes();
                field.len = u8::try_from(bytes.len()).expect("16 or 32");
                field.digest[..bytes.len()].copy_from_slice(bytes);
            }
        }
        field
    }

    /// `None` when the field makes no sense.
    fn leaf(&self) -> Option<Option<Leaf>> {
        match self.len {
            LEAF_UNKNOWN => Some(None),
            0 => Some(Some(Leaf::Zero)),
            32 => Some(Some(Leaf::Data(Digest::from(self.digest)))),
            16 => {
                let mut short = [0; 16];
                short.copy_from_slice(&self.digest[..16]);
                Some(Some(Leaf::Data(Digest::from(short))))
            }
            _ => None,
        }
    }
}

/// What a run held or gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bytes<'a> {
    /// Zeros.
    Zero,
    /// These bytes, the runs one after the other.
    Kept(&'a [u8]),
    /// Not known; of old bytes only.
    Unknown,
}

/// A record to be written.
#[derive(Debug)]
pub(super) struct NewRecord<'a> {
    pub(super) block: u64,
    /// The block has its old content again: earlier records of it do not count any more.
    pub(super) is_drop: bool,
    pub(super) runs: &'a [Range<u32>],
    pub(super) new: Bytes<'a>,
    pub(super) old: Bytes<'a>,
    pub(super) new_leaf: Option<Leaf>,
    pub(super) old_leaf: Option<Leaf>,
}

/// A record that is in the stage: everything but its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Where it begins in the stage.
    pub(super) at: u64,
    pub(super) sequence: u64,
    pub(super) durable: u64,
    pub(super) is_drop: bool,
    pub(super) new_len: u32,
    pub(super) old_len: u32,
    pub(super) new_sum: u64,
    pub(super) old_sum: u64,
    pub(super) head_sum: u64,
    head_len: u64,
    /// The block.
    pub(crate) block: u64,
    /// Ranges of the block in bytes, ascending, without overlap.
    pub(crate) runs: Vec<Range<u32>>,
    /// The runs become zeros.
    pub(crate) new_is_zero: bool,
    /// The runs are zeros in the target as it is.
    pub(crate) old_is_zero: bool,
    /// What the runs hold in the target as it is, is in the record.
    pub(crate) old_is_kept: bool,
    /// Digest of the block with the runs in it.
    pub(crate) new_leaf: Option<Leaf>,
    /// Digest of the block in the target as it is.
    pub(crate) old_leaf: Option<Leaf>,
}

fn page_up(len: u64) -> u64 {
    len.next_multiple_of(PAGE_LEN)
}

impl Record {
    /// Where the bytes of the runs begin.
    pub(super) fn new_at(&self) -> u64 {
        self.at + page_up(self.head_len)
    }

    /// Where the old bytes of the runs begin.
    pub(super) fn old_at(&self) -> u64 {
        self.new_at() + page_up(self.new_len.into())
    }

    /// Where the next record begins.
    pub(super) fn end(&self) -> u64 {
        self.old_at() + page_up(self.old_len.into())
    }

    /// Whether the target can be brought back to what it was before.
    pub(crate) fn can_undo(&self) -> bool {
        self.old_is_kept || self.old_is_zero
    }
}

impl NewRecord<'_> {
    /// The record with its bytes as it stands in the stage from `at` on.
    pub(super) fn encode(
        &self,
        job: Uuid,
        sequence: u64,
        durable: u64,
        at: u64,
    ) -> (Record, Vec<u8>) {
        let kept = |bytes: &Bytes<'_>| match bytes {
            Bytes::Kept(bytes) => bytes.to_vec(),
            Bytes::Zero | Bytes::Unknown => Vec::new(),
        };
        let (new, old) = (kept(&self.new), kept(&self.old));
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).expect("at most a block");
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let mut header = Header {
            magic: MAGIC,
            job: *job.as_bytes(),
            sequence: sequence.into(),
            durable: durable.into(),
            block: self.block.into(),
            new_len: len(&new).into(),
            old_len: len(&old).into(),
            run_count: u16::try_from(self.runs.len())
                .expect("at most RUNS_MAX")
                .into(),
            flags: flag(self.is_drop, FLAG_DROP)
                | flag(self.new == Bytes::Zero, FLAG_NEW_IS_ZERO)
                | flag(self.old == Bytes::Zero, FLAG_OLD_IS_ZERO)
                | flag(matches!(self.old, Bytes::Kept(_)), FLAG_OLD_IS_KEPT),
            reserved: 0,
            new_leaf: LeafField::of(self.new_leaf),
            old_leaf: LeafField::of(self.old_leaf),
            new_sum: xxh3_64(&new).into(),
            old_sum: xxh3_64(&old).into(),
            head_sum: 0.into(),
        };
        let mut runs = Vec::with_capacity(self.runs.len() * 8);
        for run in self.runs {
            runs.extend_from_slice(&run.start.to_le_bytes());
            runs.extend_from_slice(&(run.end - run.start).to_le_bytes());
        }
        header.head_sum = head_sum(&header, &runs).into();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&runs);
        for part in [&new, &old] {
            bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
            bytes.extend_from_slice(part);
        }
        bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
        let record = record_of(&header, &runs, at).expect("made just now");
        (record, bytes)
    }
}

fn head_sum(header: &Header, runs: &[u8]) -> u64 {
    let mut bytes = header.as_bytes()[..HEADER_LEN - 8].to_vec();
    bytes.extend_from_slice(runs);
    xxh3_64(&bytes)
}

/// How many bytes of runs follow a header, if it may be one of this job.
pub(super) fn runs_len(head: &[u8; HEADER_LEN], job: Uuid) -> Option<usize> {
    let header = Header::ref_from_bytes(head).expect("as long as a header");
    let count = usize::from(header.run_count.get());
    let is_one = header.magic == MAGIC && header.job == *job.as_bytes() && count <= RUNS_MAX;
    is_one.then_some(count * 8)
}

/// The record whose header and runs these are; `None` when they do not check.
pub(super) fn parse(head: &[u8; HEADER_LEN], runs: &[u8], at: u64) -> Option<Record> {
    let header = Header::ref_from_bytes(head).expect("as long as a header");
    if head_sum(header, runs) != header.head_sum.get() {
        return None;
    }
    record_of(header, runs, at)
}

fn record_of(header: &Header, runs: &[u8], at: u64) -> Option<Record> {
    let mut ranges: Vec<Range<u32>> = Vec::with_capacity(runs.len() / 8);
    let mut total = 0_u64;
    for run in runs.chunks_exact(8) {
        let number =
            |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes of eight"));
        let (start, len) = (number(&run[..4]), number(&run[4..]));
        let end = start
            .checked_add(len)
            .filter(|end| *end <= BlockSize::MAX)?;
        let last_end = ranges.last().map_or(0, |last| last.end);
        if len == 0 || start < last_end {
            return None;
        }
        total += u64::from(len);
        ranges.push(start..end);
    }
    let has = |flag: u8| header.flags & flag != 0;
    let (new_len, old_len) = (header.new_len.get(), header.old_len.get());
    if has(FLAG_DROP) && (new_len, old_len, total) != (0, 0, 0) {
        return None;
    }
    // So neither is longer than the runs, which lie in a block.
    let is_new_whole = has(FLAG_NEW_IS_ZERO) || u64::from(new_len) == total;
    let is_old_whole = !has(FLAG_OLD_IS_KEPT) || u64::from(old_len) == total;
    if !is_new_whole
        || !is_old_whole
        || (has(FLAG_NEW_IS_ZERO) && new_len > 0)
        || (!has(FLAG_OLD_IS_KEPT) && old_len > 0)
    {
        return None;
    }
    Some(Record {
        at,
        sequence: header.sequence.get(),
        durable: header.durable.get(),
        is_drop: has(FLAG_DROP),
        new_len,
        old_len,
        new_sum: header.new_sum.get(),
        old_sum: header.old_sum.get(),
        head_sum: header.head_sum.get(),
        head_len: (HEADER_LEN + runs.len()) as u64,
        block: header.block.get(),
        runs: ranges,
        new_is_zero: has(FLAG_NEW_IS_ZERO),
        old_is_zero: has(FLAG_OLD_IS_ZERO),
        old_is_kept: has(FLAG_OLD_IS_KEPT),
        new_leaf: header.new_leaf.leaf()?,
        old_leaf: header.old_leaf.leaf()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: no length of a record is believed that its runs do not bear out: bytes are asked for by
    // it. Method: state other ones in each kind of record, with the sum made right.
    #[test]
    fn lengths_have_to_be_those_of_the_runs() {
        let run = Range {
            start: 0,
            end: 8192,
        };
        let bytes = [7; 8192];
        let kinds: [(bool, &[Range<u32>], Bytes<'_>, Bytes<'_>); 4] = [
            (true, &[], Bytes::Unknown, Bytes::Unknown),
            (false, std::slice::from_ref(&run), Bytes::Zero, Bytes::Zero),
            (
                false,
                std::slice::from_ref(&run),
                Bytes::Kept(&bytes),
                Bytes::Unknown,
            ),
            (
                false,
                std::slice::from_ref(&run),
                Bytes::Kept(&bytes),
                Bytes::Kept(&bytes),
            ),
        ];
        for (is_drop, runs, new, old) in kinds {
            let record = NewRecord {
                block: 1,
                is_drop,
                runs,
                new,
                old,
                new_leaf: None,
                old_leaf: None,
            };
            let (_, sound) = record.encode(Uuid::from_u128(7), 0, 0, 0);
            let sound = &sound[..HEADER_LEN + runs.len() * 8];
            assert!(stated(sound, |_| {}).is_some());
            assert_eq!(
                stated(sound, |header| header.new_len = u32::MAX.into()),
                None
            );
            assert_eq!(
                stated(sound, |header| header.old_len = u32::MAX.into()),
                None
            );
        }
    }

    /// What a record is taken for whose header was changed so.
    fn stated(bytes: &[u8], change: impl FnOnce(&mut Header)) -> Option<Record> {
        let (head, runs) = bytes.split_at(HEADER_LEN);
        let mut header = Header::read_from_bytes(head).unwrap();
        change(&mut header);
        header.head_sum = head_sum(&header, runs).into();
        parse(header.as_bytes().try_into().unwrap(), runs, 0)
    }
}
