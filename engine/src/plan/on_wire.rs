//! Surveys and samples as messages.

use bytes::{BufMut, Bytes, BytesMut};
use failback_transport as wire;

use super::number::{float, whole};
use super::sample::{PIECE_COUNT_MAX, Picks, PieceSums, SPAN_COUNT_MAX, SUMS};
use super::seen::SeenRates;
use super::survey::{Reading, Survey, Timed};
use crate::draws::Draws;
use crate::error::{Error, ErrorKind, Result};

const _: () = assert!(PIECE_COUNT_MAX == wire::SAMPLE_PIECE_COUNT_MAX as usize);
const _: () = assert!(SPAN_COUNT_MAX == wire::SAMPLE_SPAN_COUNT_MAX as usize);
const _: () = assert!(SUMS * 2 == wire::PIECE_SUMS_LEN);

impl Picks {
    pub(crate) fn to_wire(&self) -> wire::Positions {
        let positions = self.pieces.iter().chain(&self.spans);
        let mut payload = BytesMut::new();
        positions.for_each(|position| payload.put_u32_le(*position));
        wire::Positions {
            piece_count: count(self.pieces.len()),
            span_count: count(self.spans.len()),
            payload: payload.freeze(),
        }
    }

    /// The codec has held the counts against their limits and the payload.
    pub(crate) fn from_wire(positions: &wire::Positions) -> Self {
        let all = u32s(&positions.payload);
        let (pieces, spans) = all.split_at(all.len().min(positions.piece_count.into()));
        Self {
            pieces: pieces.to_vec(),
            spans: spans.to_vec(),
        }
    }
}

impl Survey {
    pub(crate) fn from_wire(found: &wire::Surveyed) -> Self {
        Self {
            allocated: found.allocated_bytes,
            is_whole: found.is_whole,
            picks: Picks::from_wire(&found.picks),
        }
    }
}

impl SeenRates {
    pub(crate) fn to_wire(self) -> wire::SeenRates {
        let of = |rate: Option<f64>| rate.map_or(0, whole);
        wire::SeenRates {
            log: of(self.log),
            write: of(self.write),
            scattered_write: of(self.scattered_write),
            read_back: of(self.read_back),
        }
    }

    pub(crate) fn from_wire(seen: &wire::SeenRates) -> Self {
        let of = |rate: u64| (rate > 0).then(|| float(rate));
        Self {
            log: of(seen.log),
            write: of(seen.write),
            scattered_write: of(seen.scattered_write),
            read_back: of(seen.read_back),
        }
    }
}

impl Reading {
    pub(crate) fn to_wire(&self) -> wire::Sampled {
        let mut payload = BytesMut::new();
        let sums = self.pieces.iter().flatten();
        sums.for_each(|sum| payload.put_u16_le(*sum));
        self.spans.iter().for_each(|sum| payload.put_u32_le(*sum));
        wire::Sampled {
            scanned_bytes: self.scan.bytes,
            scan_micros: self.scan.micros,
            pack_raw_bytes: self.pack.bytes,
            packed_bytes: self.packed,
            pack_micros: self.pack.micros,
            piece_count: count(self.pieces.len()),
            span_count: count(self.spans.len()),
            payload: payload.freeze(),
        }
    }

    /// The codec has held the counts against the payload.
    ///
    /// # Errors
    /// `Protocol` for more than was asked for.
    pub(crate) fn from_wire(found: &wire::Sampled, asked: &Picks) -> Result<Self> {
        let pieces_len = usize::from(found.piece_count) * wire::PIECE_SUMS_LEN;
        let is_more = usize::from(found.piece_count) > asked.pieces.len()
            || usize::from(found.span_count) > asked.spans.len()
            || pieces_len > found.payload.len();
        if is_more {
            let message = "peer: answers for more pieces than it was asked for";
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        let (pieces, spans) = found.payload.split_at(pieces_len);
        Ok(Self {
            pieces: pieces
                .chunks_exact(wire::PIECE_SUMS_LEN)
                .map(sums)
                .collect(),
            spans: u32s(&Bytes::copy_from_slice(spans)),
            scan: Timed {
                bytes: found.scanned_bytes,
                micros: found.scan_micros,
            },
            pack: Timed {
                bytes: found.pack_raw_bytes,
                micros: found.pack_micros,
            },
            packed: found.packed_bytes,
        })
    }
}

/// Bytes that no link makes shorter.
pub(crate) fn probe_payload(len: u32) -> Bytes {
    let mut draws = Draws::of(len.into());
    let len = len as usize;
    let mut bytes = BytesMut::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.put_u64_le(draws.next());
    }
    bytes.truncate(len);
    bytes.freeze()
}

fn count(len: usize) -> u16 {
    u16::try_from(len).expect("a sample has at most 1000 pieces")
}

fn u32s(bytes: &[u8]) -> Vec<u32> {
    let words = bytes.as_chunks::<4>().0.iter();
    words.map(|word| u32::from_le_bytes(*word)).collect()
}

fn sums(bytes: &[u8]) -> PieceSums {
    let mut sums = [0; SUMS];
    for (sum, bytes) in sums.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *sum = u16::from_le_bytes(*bytes);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: both forms mean the same, and nobody answers for what was not asked. Method: there and
    // back; then fewer pieces asked for, then fewer spans.
    #[test]
    fn samples_survive_the_wire() {
        let picks = Picks {
            pieces: vec![3, u32::MAX],
            spans: vec![7],
        };
        let reading = Reading {
            pieces: vec![[1; SUMS], [0xfffe; SUMS]],
            spans: vec![0xdead_beef],
            scan: Timed {
                bytes: 1,
                micros: 2,
            },
            pack: Timed {
                bytes: 3,
                micros: 4,
            },
            packed: 5,
        };
        assert_eq!(Picks::from_wire(&picks.to_wire()), picks);
        let sent = reading.to_wire();
        assert_eq!(Reading::from_wire(&sent, &picks).unwrap(), reading);
        for (pieces, spans) in [(1, 1), (2, 0)] {
            let fewer = Picks {
                pieces: picks.pieces[..pieces].to_vec(),
                spans: picks.spans[..spans].to_vec(),
            };
            let refused = Reading::from_wire(&sent, &fewer).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Protocol);
        }
    }
}
