//! What a planner asks of an agent before it chooses how a session is run.

use bytes::{Bytes, BytesMut};

use super::control::{Container, HashKind};
use super::field::{Fault, Field, HeadReader, fields};
use super::limit::{
    DISK_SIZE_MAX, PIECE_SUMS_LEN, POSITION_LEN, PROBE_LEN_MAX, SAMPLE_PIECE_COUNT_MAX,
    SAMPLE_SPAN_COUNT_MAX, SPAN_SUM_LEN, ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN,
};

/// What is allocated, and which pieces of it were drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surveyed {
    /// Bytes that have to be read to be known, at most [`DISK_SIZE_MAX`].
    pub allocated_bytes: u64,
    /// Whether that was counted; else it is an estimate.
    pub is_whole: bool,
    /// What a delta of this disk would be kept in until all of it is there; `None`: not told.
    pub delta_container: Option<Container>,
    /// What a full copy would.
    pub full_container: Option<Container>,
    /// What syncs before saw of the disk that it lies on.
    pub seen: SeenRates,
    /// The pieces and spans drawn.
    pub picks: Positions,
}

/// How fast a disk took bytes, in bytes per second; 0: that was not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenRates {
    /// Into a log.
    pub log: u64,
    /// One after the other.
    pub write: u64,
    /// Here and there.
    pub scattered_write: u64,
    /// Read back from its medium.
    pub read_back: u64,
}

fields!(SeenRates {
    log,
    write,
    scattered_write,
    read_back
});

/// Pieces of 64 KiB and spans of 1 MiB of a disk, in the order drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// At most [`SAMPLE_PIECE_COUNT_MAX`].
    pub piece_count: u16,
    /// At most [`SAMPLE_SPAN_COUNT_MAX`].
    pub span_count: u16,
    /// A u32 for each piece, in units of 64 KiB, then one for each span, in units of 1 MiB.
    pub payload: Bytes,
}

/// Asks for what some pieces hold, and how fast they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleWish {
    /// Hash of the spans.
    pub hash: HashKind,
    /// The zstd level to try; `None`: none. A wish, as in a session.
    pub zstd_level: Option<i8>,
    /// Where to look; places past the end of the disk hold nothing.
    pub picks: Positions,
}

/// What they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sampled {
    /// Bytes of spans that were read and hashed, and the microseconds it took.
    pub scanned_bytes: u64,
    /// See `scanned_bytes`.
    pub scan_micros: u64,
    /// Bytes that were compressed, those that it made of them, and the microseconds it took with
    /// all threads; 0 where none were.
    pub pack_raw_bytes: u64,
    /// See `pack_raw_bytes`.
    pub packed_bytes: u64,
    /// See `pack_raw_bytes`.
    pub pack_micros: u64,
    /// Pieces that there was time for: the first ones asked for.
    pub piece_count: u16,
    /// Spans likewise.
    pub span_count: u16,
    /// [`PIECE_SUMS_LEN`] bytes for each piece: 16 bits for each sub-block, 0 for zeros; then
    /// [`SPAN_SUM_LEN`] for each span: the first bytes of its hash.
    pub payload: Bytes,
}

/// Bytes without a meaning, there and back: how fast is the link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// Bytes that the answer is to have, at most [`PROBE_LEN_MAX`]; 0 in an answer.
    pub reply_len: u32,
    /// At most [`PROBE_LEN_MAX`] bytes.
    pub payload: Bytes,
}

impl Surveyed {
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.allocated_bytes > DISK_SIZE_MAX {
            return Err("disk is too large");
        }
        self.picks.check()
    }

    pub(super) fn put(&self, out: &mut BytesMut) {
        self.allocated_bytes.put(out);
        self.is_whole.put(out);
        self.delta_container.put(out);
        self.full_container.put(out);
        self.seen.put(out);
        self.picks.put(out);
    }

    pub(super) fn take(head: &mut HeadReader<'_>, payload: Bytes) -> Result<Self, Fault> {
        Ok(Self {
            allocated_bytes: Field::take(head)?,
            is_whole: Field::take(head)?,
            delta_container: Field::take(head)?,
            full_container: Field::take(head)?,
            seen: Field::take(head)?,
            picks: Positions::take(head, payload)?,
        })
    }
}

impl Positions {
    fn check(&self) -> Result<(), Fault> {
        check_counts(self.piece_count, self.span_count)?;
        let count = usize::from(self.piece_count) + usize::from(self.span_count);
        match self.payload.len() == count * POSITION_LEN {
            true => Ok(()),
            false => Err("positions are not as many as their counts say"),
        }
    }

    fn put(&self, out: &mut BytesMut) {
        self.piece_count.put(out);
        self.span_count.put(out);
    }

    fn take(head: &mut HeadReader<'_>, payload: Bytes) -> Result<Self, Fault> {
        Ok(Self {
            piece_count: Field::take(head)?,
            span_count: Field::take(head)?,
            payload,
        })
    }
}

impl SampleWish {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let level = self.zstd_level.unwrap_or(1);
        if !(ZSTD_LEVEL_MIN..=ZSTD_LEVEL_MAX).contains(&level) {
            return Err("zstd level is out of range");
        }
        self.picks.check()
    }

    pub(super) fn put(&self, out: &mut BytesMut) {
        self.hash.put(out);
        self.zstd_level.put(out);
        self.picks.put(out);
    }

    pub(super) fn take(head: &mut HeadReader<'_>, payload: Bytes) -> Result<Self, Fault> {
        Ok(Self {
            hash: Field::take(head)?,
            zstd_level: Field::take(head)?,
            picks: Positions::take(head, payload)?,
        })
    }
}

impl Sampled {
    pub(super) fn check(&self) -> Result<(), Fault> {
        check_counts(self.piece_count, self.span_count)?;
        let pieces = usize::from(self.piece_count) * PIECE_SUMS_LEN;
        let spans = usize::from(self.span_count) * SPAN_SUM_LEN;
        match self.payload.len() == pieces + spans {
            true => Ok(()),
            false => Err("sums are not as many as their counts say"),
        }
    }

    pub(super) fn put(&self, out: &mut BytesMut) {
        for count in [
            self.scanned_bytes,
            self.scan_micros,
            self.pack_raw_bytes,
            self.packed_bytes,
            self.pack_micros,
        ] {
            count.put(out);
        }
        self.piece_count.put(out);
        self.span_count.put(out);
    }

    pub(super) fn take(head: &mut HeadReader<'_>, payload: Bytes) -> Result<Self, Fault> {
        Ok(Self {
            scanned_bytes: Field::take(head)?,
            scan_micros: Field::take(head)?,
            pack_raw_bytes: Field::take(head)?,
            packed_bytes: Field::take(head)?,
            pack_micros: Field::take(head)?,
            piece_count: Field::take(head)?,
            span_count: Field::take(head)?,
            payload,
        })
    }
}

impl Probe {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let is_long = |len: usize| len > PROBE_LEN_MAX as usize;
        match self.reply_len > PROBE_LEN_MAX || is_long(self.payload.len()) {
            true => Err("a probe is too long"),
            false => Ok(()),
        }
    }
}

fn check_counts(pieces: u16, spans: u16) -> Result<(), Fault> {
    match pieces <= SAMPLE_PIECE_COUNT_MAX && spans <= SAMPLE_SPAN_COUNT_MAX {
        true => Ok(()),
        false => Err("a sample is too large"),
    }
}

/// Asks what is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SurveyWish {
    /// Seed of the draws: the same disk and seed give the same pieces.
    pub seed: u64,
}

fields!(SurveyWish { seed });
