//! What of a differing block travels: dirty 4 KiB runs, zero runs, compressed where that is
//! shorter.

use bytes::Bytes;
use failback_transport::{Base, BlockData, Encoding, RunKind, SubRun};

use super::compressor::Compressor;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, is_zero, sub_block_sum};
use crate::pipeline::PooledBuffer;
use crate::units::SUB_BLOCK_LEN;

/// A block ready to be sent.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) data: BlockData,
    /// Bytes of the sub-blocks that differ.
    pub(super) changed_len: u64,
}

/// Sums of all sub-blocks of a block.
pub(super) fn sub_block_sums(block: &[u8], seed: u64) -> Bytes {
    block
        .chunks(SUB_BLOCK_LEN)
        .flat_map(|piece| sub_block_sum(piece, seed).to_le_bytes())
        .collect()
}

/// What turns a block with the sub-block sums `theirs` into `bytes`.
///
/// When no sum differs although the blocks do, two sums collide: then everything travels.
///
/// # Errors
/// `Protocol` when there are not as many sums as sub-blocks.
pub(super) fn pack_difference(
    block: u64,
    new_hash: Digest,
    bytes: PooledBuffer,
    theirs: &[u8],
    seed: u64,
    compressor: &Compressor,
) -> Result<Packed> {
    let sums = theirs.chunks_exact(8);
    if sums.len() != bytes.as_ref().len().div_ceil(SUB_BLOCK_LEN) || !sums.remainder().is_empty() {
        return Err(
            Error::new(ErrorKind::Protocol, "peer: wrong number of sub-block sums").at(block),
        );
    }
    let mut runs = Vec::new();
    for (index, (piece, sum)) in bytes.as_ref().chunks(SUB_BLOCK_LEN).zip(sums).enumerate() {
        if sub_block_sum(piece, seed).to_le_bytes() != *sum {
            let kind = if is_zero(piece) {
                RunKind::Zero
            } else {
                RunKind::Data
            };
            push_run(&mut runs, index, kind);
        }
    }
    match runs.is_empty() {
        true => Ok(pack_whole(block, new_hash, bytes, compressor)),
        false => Ok(pack(block, Base::Old, new_hash, bytes, runs, compressor)),
    }
}

/// The whole block, for a target that holds zeros there or whose content does not matter. Zero
/// sub-blocks stay at home.
pub(super) fn pack_whole(
    block: u64,
    new_hash: Digest,
    bytes: PooledBuffer,
    compressor: &Compressor,
) -> Packed {
    let mut runs = Vec::new();
    for (index, piece) in bytes.as_ref().chunks(SUB_BLOCK_LEN).enumerate() {
        if !is_zero(piece) {
            push_run(&mut runs, index, RunKind::Data);
        }
    }
    if runs.is_empty() {
        // Zero by now: a message has to have a run.
        let count = bytes.as_ref().len().div_ceil(SUB_BLOCK_LEN);
        let count = u16::try_from(count).expect("a block has at most 1024 sub-blocks");
        runs.push(SubRun {
            first: 0,
            count,
            kind: RunKind::Zero,
        });
    }
    pack(block, Base::Zero, new_hash, bytes, runs, compressor)
}

fn push_run(runs: &mut Vec<SubRun>, index: usize, kind: RunKind) {
    let first = u16::try_from(index).expect("a block has at most 1024 sub-blocks");
    match runs.last_mut() {
        Some(last) if last.kind == kind && last.first + last.count == first => last.count += 1,
        _ => runs.push(SubRun {
            first,
            count: 1,
            kind,
        }),
    }
}

/// Keeps the block's buffer lent for as long as its payload waits to be sent: the pool bounds what
/// is under way.
struct HeldPayload {
    bytes: Vec<u8>,
    _buffer: PooledBuffer,
}

impl AsRef<[u8]> for HeldPayload {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn pack(
    block: u64,
    base: Base,
    new_hash: Digest,
    bytes: PooledBuffer,
    runs: Vec<SubRun>,
    compressor: &Compressor,
) -> Packed {
    let block_len = bytes.as_ref().len();
    let span = |run: &SubRun| {
        let start = usize::from(run.first) * SUB_BLOCK_LEN;
        start..(start + usize::from(run.count) * SUB_BLOCK_LEN).min(block_len)
    };
    let changed_len = runs.iter().map(|run| span(run).len() as u64).sum();
    let data_runs: Vec<_> = runs
        .iter()
        .filter(|run| run.kind == RunKind::Data)
        .map(span)
        .collect();
    let raw_len = data_runs.iter().map(std::ops::Range::len).sum::<usize>();
    let joined = match data_runs.as_slice() {
        [_one] => None,
        several => Some(
            several
                .iter()
                .flat_map(|run| &bytes.as_ref()[run.clone()])
                .copied()
                .collect::<Vec<u8>>(),
        ),
    };
    let raw = joined
        .as_deref()
        .unwrap_or_else(|| &bytes.as_ref()[data_runs[0].clone()]);
    let (encoding, payload) = match compressor.compressed(raw) {
        Some(shorter) => (Encoding::Zstd, held(shorter, bytes)),
        None => (
            Encoding::Raw,
            match joined {
                Some(joined) => held(joined, bytes),
                // One run: the block's own buffer travels, not a copy.
                None => Bytes::from_owner(bytes).slice(data_runs[0].clone()),
            },
        ),
    };
    let raw_len = u32::try_from(raw_len).expect("a block is at most 4 MiB");
    Packed {
        data: BlockData {
            block,
            base,
            new_hash,
            encoding,
            raw_len,
            runs,
            payload,
        },
        changed_len,
    }
}

fn held(bytes: Vec<u8>, buffer: PooledBuffer) -> Bytes {
    Bytes::from_owner(HeldPayload {
        bytes,
        _buffer: buffer,
    })
}

/// The payload as it was before compression, exactly as long as the sender said.
///
/// # Errors
/// `Protocol` when it is not: the length met its limit when the message was decoded, and no more
/// than it is ever unpacked.
pub(crate) fn unpack(data: &BlockData) -> Result<Bytes> {
    let raw_len = data.raw_len as usize;
    match data.encoding {
        Encoding::Raw => Ok(data.payload.clone()),
        Encoding::Zstd => match zstd::bulk::decompress(&data.payload, raw_len) {
            Ok(raw) if raw.len() == raw_len => Ok(Bytes::from(raw)),
            _ => Err(Error::new(
                ErrorKind::Protocol,
                "peer: compressed data is not what it says",
            )
            .at(data.block)),
        },
    }
}

#[cfg(test)]
mod tests {
    use failback_transport::Compress;

    use super::super::compressor::LinkPace;
    use super::*;
    use crate::hash::{HashKind, Hasher};
    use crate::pipeline::BufferPool;

    fn buffer(bytes: &[u8]) -> PooledBuffer {
        let mut buffer = BufferPool::new(1).take(bytes.len(), || Ok(())).unwrap();
        buffer.bytes_mut().copy_from_slice(bytes);
        buffer
    }

    fn compressor(wish: Compress) -> Compressor {
        Compressor::new(wish, LinkPace::default())
    }

    fn leaf(bytes: &[u8]) -> Digest {
        Hasher::new(HashKind::Blake3).leaf(bytes)
    }

    // Goal: only dirty pages travel, zeros as runs. Method: one page changed, one zeroed, in a
    // short last block.
    #[test]
    fn dirty_pages_and_zero_runs() {
        let old = vec![7; 5 * SUB_BLOCK_LEN + 100];
        let mut new = old.clone();
        new[SUB_BLOCK_LEN] = 8;
        new[3 * SUB_BLOCK_LEN..].fill(0);
        let sums = sub_block_sums(&old, 42);
        let packed = pack_difference(
            9,
            leaf(&new),
            buffer(&new),
            &sums,
            42,
            &compressor(Compress::Off),
        )
        .unwrap();
        assert_eq!(
            packed.data.runs,
            [
                SubRun {
                    first: 1,
                    count: 1,
                    kind: RunKind::Data
                },
                SubRun {
                    first: 3,
                    count: 3,
                    kind: RunKind::Zero
                },
            ]
        );
        assert_eq!(packed.data.payload, new[SUB_BLOCK_LEN..2 * SUB_BLOCK_LEN]);
        assert_eq!(packed.changed_len, 3 * SUB_BLOCK_LEN as u64 + 100);
    }

    // Goal: a collision of sub-block sums loses nothing. Method: claim the new block's own sums for
    // the old one.
    #[test]
    fn equal_sums_of_a_differing_block_send_all_of_it() {
        let new = vec![3; 2 * SUB_BLOCK_LEN];
        let sums = sub_block_sums(&new, 1);
        let packed = pack_difference(
            0,
            leaf(&new),
            buffer(&new),
            &sums,
            1,
            &compressor(Compress::Off),
        )
        .unwrap();
        assert_eq!(packed.data.base, Base::Zero);
        assert_eq!(packed.data.payload.len(), new.len());
    }

    // Goal: compression is used where it helps and a lie about its length is found. Method: a
    // compressible page.
    #[test]
    fn compressed_payload_unpacks_to_its_stated_length_only() {
        let new = vec![9; 4 * SUB_BLOCK_LEN];
        let mut packed =
            pack_whole(0, leaf(&new), buffer(&new), &compressor(Compress::Zstd(1))).data;
        assert_eq!(packed.encoding, Encoding::Zstd);
        assert_eq!(unpack(&packed).unwrap(), new);
        packed.raw_len -= 1;
        assert!(unpack(&packed).is_err());
        packed.raw_len += 2;
        assert!(unpack(&packed).is_err());
    }
}
