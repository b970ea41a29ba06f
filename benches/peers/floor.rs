//! What no program can beat that does the same: floors, on all cores, in this process.
//!
//! Each reads by position into one buffer for each thread, skips holes, and flushes the target.

use std::fs::File;
use std::io::{Error, Result};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use failback_engine::hash::is_zero;
use nix::unistd::{Whence, lseek};
use twox_hash::XxHash3_128;

use crate::Run;
use crate::contender::{Contender, Outcome, timed};
use crate::disk::Place;

/// As large as fits into a core's own cache twice.
const PIECE: usize = 256 << 10;

/// Floors of a delta: reading both; with comparing, or hashing, and writing what differs.
pub(crate) fn delta() -> Vec<Contender> {
    let new = |name: &str, differs: fn(&[u8], &[u8]) -> bool| {
        Contender::new(name, &[], move |place| both(place, differs))
    };
    vec![
        new("floor: read both", |_, _| false).reading_only(),
        new("floor: compare", |a, b| a != b),
        // In the widest vectors that this processor has.
        new("floor: xxh3", |a, b| {
            XxHash3_128::oneshot(a) != XxHash3_128::oneshot(b)
        }),
        new("floor: blake3", |a, b| blake3::hash(a) != blake3::hash(b)),
    ]
}

/// The floor of a full copy: read, skip zeros, write.
pub(crate) fn full() -> Vec<Contender> {
    vec![Contender::new("floor: copy", &[], copy)]
}

impl Contender {
    /// A run that changes nothing is made good after the clock stopped.
    fn reading_only(mut self) -> Self {
        let read = self.run;
        self.run = std::sync::Arc::new(move |place| {
            let outcome = read(place)?;
            both(place, |a, b| a != b)?;
            Ok(outcome)
        });
        self
    }
}

fn both(place: &Place, differs: fn(&[u8], &[u8]) -> bool) -> Run {
    let (seconds, ()) = timed(place, || {
        let source = File::open(place.source())?;
        let target = File::options()
            .read(true)
            .write(true)
            .open(place.target())?;
        let mut pieces = pieces(&source)?;
        pieces.extend(self::pieces(&target)?);
        pieces.sort_unstable_by_key(|piece| piece.start);
        pieces.dedup();
        on_all_cores(&pieces, |at, [new, old]| {
            source.read_exact_at(new, at)?;
            target.read_exact_at(old, at)?;
            if differs(new, old) {
                write_differences(&target, at, new, old)?;
            }
            Ok(())
        })
    })?;
    Ok(Outcome {
        seconds,
        ..Outcome::default()
    })
}

/// Pages of 4 KiB, neighbours together.
fn write_differences(target: &File, at: u64, new: &[u8], old: &[u8]) -> Result<()> {
    let mut run: Option<Range<usize>> = None;
    let pages = new.chunks(4096).zip(old.chunks(4096)).enumerate();
    for (page, (a, b)) in pages {
        let (start, end) = (page * 4096, page * 4096 + a.len());
        match (a != b, &mut run) {
            (true, Some(run)) => run.end = end,
            (true, none) => *none = Some(start..end),
            (false, run) => write_run(target, at, new, run.take())?,
        }
    }
    write_run(target, at, new, run)
}

fn write_run(target: &File, at: u64, new: &[u8], run: Option<Range<usize>>) -> Result<()> {
    match run {
        Some(run) => target.write_all_at(&new[run.clone()], at + run.start as u64),
        None => Ok(()),
    }
}

fn copy(place: &Place) -> Run {
    let (seconds, ()) = timed(place, || {
        let source = File::open(place.source())?;
        let target = File::create(place.target())?;
        target.set_len(place.size)?;
        on_all_cores(&pieces(&source)?, |at, [new, _]| {
            source.read_exact_at(new, at)?;
            match is_zero(new) {
                true => Ok(()),
                false => target.write_all_at(new, at),
            }
        })
    })?;
    Ok(Outcome {
        seconds,
        ..Outcome::default()
    })
}

/// Aligned pieces that hold data.
fn pieces(file: &File) -> Result<Vec<Range<u64>>> {
    let len = file.metadata()?.len();
    let piece = PIECE as u64;
    let mut pieces: Vec<Range<u64>> = Vec::new();
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(Error::other)?;
        match lseek(file, at, whence) {
            Ok(at) => u64::try_from(at).map_err(Error::other),
            Err(nix::errno::Errno::ENXIO) => Ok(len),
            Err(errno) => Err(errno.into()),
        }
    };
    let mut at = 0;
    while at < len {
        let data = seek(at, Whence::SeekData)?;
        if data >= len {
            break;
        }
        let end = seek(data, Whence::SeekHole)?.next_multiple_of(piece);
        let end = end.min(len);
        // What lies before `at` is in the list.
        let start = (data / piece * piece).max(at);
        let starts = (start..end).step_by(PIECE);
        pieces.extend(starts.map(|start| start..(start + piece).min(len)));
        at = end;
    }
    Ok(pieces)
}

fn on_all_cores(
    pieces: &[Range<u64>],
    work: impl Fn(u64, [&mut [u8]; 2]) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut bufs = [vec![0; PIECE], vec![0; PIECE]];
                    while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let len = usize::try_from(piece.end - piece.start).map_err(Error::other)?;
                        let [a, b] = &mut bufs;
                        work(piece.start, [&mut a[..len], &mut b[..len]])?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a floor does not panic"))
    })
}
