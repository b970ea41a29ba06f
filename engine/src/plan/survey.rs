//! What one side finds out about its own disk, in a tenth of a second.
//!
//! First what is allocated and which pieces to look at; then both sides read the same pieces at the
//! same time, so that what they have in common (a machine, a disk) is measured as it is shared.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::cost::Packing;
use super::number::float;
use super::sample::{PIECE_LEN, Picks, PieceSums, SPAN_LEN, SUMS, pick, pick_blindly};
use crate::abort::Abort;
use crate::disk::{ExtentKind, Source};
use crate::error::Result;
use crate::hash::{Hasher, is_zero, sub_block_sum};
use crate::schedule::{Mutex, now, scope};
use crate::units::{ByteOffset, SUB_BLOCK_LEN};

/// Longest walk over the extents of a disk: some 10 ms where each is two calls of the system. Not a
/// time, so that the same disk always gives the same sample.
const WALK_COUNT_MAX: usize = 4 << 10;
/// Threads that read pieces at least: where these are not in memory, reading them is waiting.
const PIECE_THREADS: usize = 8;
/// Pieces that are compressed at most.
const PACKED_COUNT: usize = 64;
/// What is taken for the rate of a disk that had nothing to measure, in bytes per second.
const RATE_UNKNOWN: f64 = 1e9;
/// Bounds of a rate, in bytes per second.
const RATE_MIN: f64 = 1e3;
const RATE_MAX: f64 = 1e12;

/// What is allocated, and what is to be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Bytes that have to be read to be known, by the image's own account, in whole pieces.
    pub allocated: u64,
    /// Whether all of the disk was walked over; else `allocated` is an estimate from random places.
    pub is_whole: bool,
    /// What both sides look at.
    pub picks: Picks,
}

/// Walks over the extents of a disk and draws a sample of what is allocated.
///
/// # Errors
/// Those of the disk.
pub fn survey(disk: &dyn Source, seed: u64) -> Result<Survey> {
    let len = disk.info().virtual_size;
    if let Some(runs) = walk(disk, len)? {
        return Ok(Survey {
            allocated: runs.iter().map(|run| run.end - run.start).sum(),
            is_whole: true,
            picks: pick(seed, &runs),
        });
    }
    let (picks, share) = pick_blindly(seed, len, |piece| {
        let start = piece * PIECE_LEN;
        let extent = disk.extent_at(ByteOffset(start))?;
        // As in a walk: any of it.
        let is_left = extent.end.0 < len.min(start + PIECE_LEN);
        Ok::<_, crate::Error>(extent.kind == ExtentKind::Data || is_left)
    })?;
    Ok(Survey {
        allocated: super::number::whole(share * float(len)).min(len),
        is_whole: false,
        picks,
    })
}

/// The runs of pieces that hold data; `None` when there are too many of them. A trimmed disk has
/// holes of single pages by the thousand, and a piece with one is read all the same.
fn walk(disk: &dyn Source, len: u64) -> Result<Option<Vec<Range<u64>>>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let (mut at, mut steps) = (0, 0);
    while at < len {
        if steps == WALK_COUNT_MAX {
            return Ok(None);
        }
        steps += 1;
        let extent = disk.extent_at(ByteOffset(at))?;
        let is_data = extent.kind == ExtentKind::Data;
        let unit = if is_data { PIECE_LEN } else { 1 };
        let end = extent.end.0.min(len).next_multiple_of(unit).min(len);
        // A disk that does not move on would be walked for ever.
        let end = end.max(at + 1);
        if is_data {
            let start = at / PIECE_LEN * PIECE_LEN;
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        at = end;
    }
    Ok(Some(runs))
}

/// How a sample is read.
#[derive(Clone, Debug)]
pub struct SurveyTask<'a> {
    /// Hashes spans.
    pub hasher: &'a Hasher,
    /// The zstd level to try; `None`: none.
    pub level: Option<i8>,
    /// Threads, as many as the session will have.
    pub threads: usize,
    /// How long it may take.
    pub patience: Patience,
}

/// The longest times of a reading, each begun after the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For spans.
    pub spans: Duration,
    /// For pieces.
    pub pieces: Duration,
    /// For compressing some of them.
    pub packing: Duration,
}

impl Default for Patience {
    /// A tenth of a second.
    fn default() -> Self {
        Self {
            spans: Duration::from_millis(35),
            pieces: Duration::from_millis(55),
            packing: Duration::from_millis(10),
        }
    }
}

/// What a side found in a sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Of the first pieces.
    pub pieces: Vec<PieceSums>,
    /// Of the first spans: a part of their hash.
    pub spans: Vec<u32>,
    /// How the spans were read and hashed.
    pub scan: Timed,
    /// How pieces were compressed; no bytes where nobody asked, or nothing was tried.
    pub pack: Timed,
    /// Bytes that compression made of them.
    pub packed: u64,
}

/// Bytes, and how long work on them took with all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timed {
    /// Bytes.
    pub bytes: u64,
    /// Microseconds.
    pub micros: u64,
}

impl Timed {
    fn since(started: Instant, len: usize) -> Self {
        Self {
            bytes: len as u64,
            micros: micros(started.elapsed()),
        }
    }

    /// All bytes, at the pace of the median, of two of the faster: one thread that was kept waiting
    /// is no news of a disk.
    fn of_median(mut times: Vec<Self>, threads: usize) -> Self {
        let bytes: u64 = times.iter().map(|time| time.bytes).sum();
        times.sort_unstable_by_key(|time| time.micros);
        let median = times
            .get(times.len().saturating_sub(1) / 2)
            .copied()
            .unwrap_or_default();
        let pieces = bytes.checked_div(median.bytes).unwrap_or(0);
        Self {
            bytes,
            micros: pieces * median.micros.max(1) / threads.max(1) as u64,
        }
    }

    /// Bytes per second; `None` where there was too little to tell. Never 0, and never more than
    /// any memory does: half of it comes from peers.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        let is_told = self.bytes > 0 && self.micros > 0;
        let rate = || (float(self.bytes) / float(self.micros) * 1e6).clamp(RATE_MIN, RATE_MAX);
        is_told.then(rate)
    }
}

impl Reading {
    /// Bytes read and hashed per second.
    #[must_use]
    pub fn scan_rate(&self) -> f64 {
        self.scan.rate().unwrap_or(RATE_UNKNOWN)
    }

    /// How data compresses, where that was tried.
    #[must_use]
    pub fn packing(&self) -> Option<Packing> {
        self.pack.rate().map(|rate| Packing {
            ratio: (float(self.packed) / float(self.pack.bytes)).min(1.0),
            rate,
        })
    }
}

/// Reads what was picked: as much of it as there is time for.
///
/// # Errors
/// Those of the disk.
pub fn read_sample(disk: &dyn Source, picks: &Picks, task: &SurveyTask<'_>) -> Result<Reading> {
    let len = disk.info().virtual_size;
    let scan = |span: &u32, bytes: &mut Vec<u8>| {
        // The first touch of new memory takes longer than the reading, and a scan does it once.
        bytes.resize(usize::try_from(SPAN_LEN).expect("a MiB"), 0);
        let started = now();
        fill_from(disk, len, u64::from(*span) * SPAN_LEN, (SPAN_LEN, bytes))?;
        let digest = task.hasher.leaf(bytes);
        let mut first = [0; 4];
        first.copy_from_slice(&digest.as_bytes()[..4]);
        let sum = u32::from_le_bytes(first);
        Ok((sum, Timed::since(started, bytes.len())))
    };
    let spans = in_order(&picks.spans, (task.threads, task.patience.spans), scan)?;
    let (spans, times): (Vec<_>, Vec<_>) = spans.into_iter().unzip();
    let kept = if task.level.is_some() {
        PACKED_COUNT
    } else {
        0
    };
    let kept: Vec<u32> = picks.pieces.iter().take(kept).copied().collect();
    let read = |piece: &u32, bytes: &mut Vec<u8>| {
        fill_from(disk, len, u64::from(*piece) * PIECE_LEN, (PIECE_LEN, bytes))?;
        let kept = kept.contains(piece).then(|| bytes.clone());
        Ok((sums_of(bytes), kept))
    };
    let readers = task.threads.max(PIECE_THREADS);
    let pieces = in_order(&picks.pieces, (readers, task.patience.pieces), read)?;
    let (pieces, kept): (Vec<_>, Vec<_>) = pieces.into_iter().unzip();
    let (pack, packed) = pack(kept.into_iter().flatten().collect(), task)?;
    Ok(Reading {
        pieces,
        spans,
        scan: Timed::of_median(times, task.threads),
        pack,
        packed,
    })
}

/// How well pieces compress, and how fast. Zeros do not travel, so they say nothing.
fn pack(mut pieces: Vec<Vec<u8>>, task: &SurveyTask<'_>) -> Result<(Timed, u64)> {
    let Some(level) = task.level else {
        return Ok((Timed::default(), 0));
    };
    pieces.retain(|piece| !is_zero(piece));
    let pack = |piece: &Vec<u8>, packed: &mut Vec<u8>| {
        let started = now();
        // What cannot be compressed travels as it is.
        packed.resize(piece.len(), 0);
        let len = zstd::bulk::compress_to_buffer(piece, packed, i32::from(level));
        let len = len.unwrap_or(piece.len());
        Ok((len as u64, Timed::since(started, piece.len())))
    };
    let packed = in_order(&pieces, (task.threads, task.patience.packing), pack)?;
    let (lens, times): (Vec<u64>, Vec<_>) = packed.into_iter().unzip();
    Ok((Timed::of_median(times, task.threads), lens.iter().sum()))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Nothing past the end of the disk: positions come from peers.
fn fill_from(
    disk: &dyn Source,
    disk_len: u64,
    at: u64,
    (len, bytes): (u64, &mut Vec<u8>),
) -> Result<()> {
    let len = disk_len.saturating_sub(at).min(len);
    bytes.resize(usize::try_from(len).expect("at most a span"), 0);
    match len {
        0 => Ok(()),
        _ => disk.read(ByteOffset(at), bytes),
    }
}

fn sums_of(piece: &[u8]) -> PieceSums {
    let mut sums = [0; SUMS];
    for (sum, bytes) in sums.iter_mut().zip(piece.chunks(SUB_BLOCK_LEN)) {
        if !is_zero(bytes) {
            let bits = sub_block_sum(bytes, 0).to_le_bytes();
            *sum = u16::from_le_bytes([bits[0], bits[1]]).max(1);
        }
    }
    sums
}

/// Does `work` for the first positions, on several threads, until the time is over; each thread has
/// a buffer of its own for it. The results, in order and without a gap: a position that was begun
/// is ended.
fn in_order<P: Sync, T: Send>(
    positions: &[P],
    (threads, time): (usize, Duration),
    work: impl Fn(&P, &mut Vec<u8>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let deadline = now() + time;
    let next = AtomicUsize::new(0);
    let failed = Abort::new();
    let done = Mutex::new(Vec::with_capacity(positions.len()));
    let run = || {
        failed.guard(|| {
            let mut buffer = Vec::new();
            while now() < deadline && failed.check().is_ok() {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(position) = positions.get(number) else {
                    break;
                };
                let result = work(position, &mut buffer)?;
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                done.push((number, result));
            }
            Ok(())
        });
    };
    scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    failed.verdict()?;
    let mut done = std::mem::take(&mut *done.lock().unwrap_or_else(PoisonError::into_inner));
    done.sort_unstable_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{DiskInfo, Extent, MemoryDisk};
    use crate::hash::HashKind;
    use crate::plan::compare;
    use crate::units::BlockSize;

    const LEN: usize = 24 << 20;
    const PIECES: u32 = 24 << 4;

    /// Two thirds of it data.
    fn disk(change_every: Option<usize>) -> MemoryDisk {
        let mut bytes = vec![0; LEN];
        for (number, page) in bytes.chunks_mut(SUB_BLOCK_LEN).enumerate() {
            if number % (3 << 8) < 2 << 8 {
                page[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
            }
            if change_every.is_some_and(|every| (number / SUMS).is_multiple_of(every)) {
                page[9] = 1;
            }
        }
        MemoryDisk::new(bytes)
    }

    /// What is read depends on the disk alone, however slow the machine is.
    const ENDLESS: Patience = Patience {
        spans: Duration::from_mins(1),
        pieces: Duration::from_mins(1),
        packing: Duration::from_mins(1),
    };

    fn read(disk: &dyn Source, picks: &Picks) -> Reading {
        let hasher = Hasher::new(HashKind::Blake3);
        let task = SurveyTask {
            hasher: &hasher,
            level: Some(1),
            threads: 2,
            patience: ENDLESS,
        };
        read_sample(disk, picks, &task).unwrap()
    }

    // Goal: what is allocated is counted, and the sample can be drawn again. Method: a disk of two
    // thirds; the same seed twice, and another.
    #[test]
    fn a_survey_is_deterministic() {
        let disk = disk(None);
        let found = survey(&disk, 3).unwrap();
        assert_eq!(found.allocated, LEN as u64 / 3 * 2);
        assert!(found.is_whole);
        assert_eq!(found, survey(&disk, 3).unwrap());
        assert_eq!(
            read(&disk, &found.picks).pieces,
            read(&disk, &found.picks).pieces
        );
    }

    // Goal: equal disks look equal, and a change shows with about its share. Method: all pieces of
    // a disk against themselves, and against a disk with each fourth piece changed.
    #[test]
    fn a_reading_tells_equal_from_changed() {
        let (old, new) = (disk(None), disk(Some(4)));
        let picks = Picks {
            pieces: (0..PIECES).collect(),
            spans: (0..PIECES / 16).collect(),
        };
        let [old, again, new] = [&old, &old, &new].map(|disk| read(disk, &picks));
        let of = |a: &Reading, b: &Reading| {
            compare(
                (&a.pieces, &b.pieces),
                (&a.spans, &b.spans),
                BlockSize::DEFAULT,
            )
        };
        assert_eq!(of(&old, &again).differing, 0);
        assert!(of(&old, &again).change.zeros > 0.3);
        let share = of(&new, &old).change.bytes;
        assert!((share - 0.25).abs() < 0.01, "{share}");
        let blocks = of(&new, &old).change.blocks;
        assert!(blocks > 0.9, "{blocks}");
        assert!(new.scan.bytes > 0);
        assert!(new.packing().is_some_and(|packing| packing.ratio < 0.5));
    }

    // Goal: positions that no disk has are harmless: a peer may send them. Method: the last ones.
    #[test]
    fn positions_past_the_end_read_as_nothing() {
        let picks = Picks {
            pieces: vec![u32::MAX],
            spans: vec![u32::MAX],
        };
        let found = read(&disk(None), &picks);
        assert_eq!(found.pieces, [[0; SUMS]]);
    }

    /// In each piece holes and pages of data in turn, as trimming leaves them.
    #[derive(Debug)]
    struct Trimmed(u64);

    impl Source for Trimmed {
        fn info(&self) -> DiskInfo {
            DiskInfo {
                virtual_size: self.0,
                ..MemoryDisk::new(Vec::new()).info()
            }
        }

        fn read(&self, _: ByteOffset, buf: &mut [u8]) -> Result<()> {
            buf.fill(1);
            Ok(())
        }

        fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
            let page = at.0 / SUB_BLOCK_LEN as u64;
            Ok(Extent {
                kind: match page.is_multiple_of(2) {
                    true => ExtentKind::Absent,
                    false => ExtentKind::Data,
                },
                end: ByteOffset((page + 1) * SUB_BLOCK_LEN as u64),
            })
        }
    }

    // Goal: holes within a piece cost no patience, and a piece with data counts, counted or
    // estimated. Method: 16 Ki extents in 1,024 pieces; 1 TiB of them; a last piece that is short.
    #[test]
    fn holes_within_pieces_do_not_matter() {
        let len = 64 << 20;
        let found = survey(&Trimmed(len), 1).unwrap();
        assert!(found.is_whole);
        assert_eq!(found.allocated, len);
        let short = survey(&Trimmed(len + 12_288), 1).unwrap();
        assert_eq!((short.is_whole, short.allocated), (true, len + 12_288));

        let found = survey(&Trimmed(1 << 40), 1).unwrap();
        assert!(!found.is_whole);
        assert_eq!(found.allocated, 1 << 40);
    }

    /// Data and holes in turn, one piece each: more runs than are kept.
    #[derive(Debug)]
    struct Comb;

    impl Source for Comb {
        fn info(&self) -> DiskInfo {
            DiskInfo {
                virtual_size: 16 << 40,
                ..MemoryDisk::new(Vec::new()).info()
            }
        }

        fn read(&self, _: ByteOffset, buf: &mut [u8]) -> Result<()> {
            buf.fill(1);
            Ok(())
        }

        fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
            let piece = at.0 / PIECE_LEN;
            Ok(Extent {
                kind: match piece.is_multiple_of(2) {
                    true => ExtentKind::Data,
                    false => ExtentKind::Absent,
                },
                end: ByteOffset((piece + 1) * PIECE_LEN),
            })
        }
    }

    // Goal: a disk with too many extents is estimated, in a short time. Method: 16 TiB in 256 Mi
    // extents, half of them data.
    #[test]
    fn too_many_extents_are_estimated() {
        let found = survey(&Comb, 1).unwrap();
        assert!(!found.is_whole);
        let share = float(found.allocated) / float(16 << 40);
        assert!((share - 0.5).abs() < 0.05, "{share}");
        assert_eq!(found.picks.pieces.len(), 1000);
        assert!(
            found
                .picks
                .pieces
                .iter()
                .all(|piece| piece.is_multiple_of(2))
        );
    }
}
