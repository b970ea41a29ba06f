//! What a differencing image holds itself: saved from below it, summed up, counted.

use std::ops::Range;

use failback_vhdx::{ExtentKind, Image, Place, Run};

use crate::abort::Abort;
use crate::disk::{
    ExtentKind as DiskKind, Source, Target, TargetAccess, VhdxDisk, vhdx_error_bare,
};
use crate::error::{Error, Result};
use crate::hash::is_zero;
use crate::units::ByteOffset;

/// Bytes of the disk whose places are looked up at once.
const WINDOW_LEN: u64 = 64 << 20;
/// Bytes of the disk that are read at once, and summed up as one.
const PIECE_LEN: u64 = 1 << 20;

/// A part of the disk that a layer holds.
struct Piece {
    disk: Range<u64>,
    is_zero: bool,
}

impl Piece {
    fn len(&self) -> usize {
        usize::try_from(self.disk.end - self.disk.start).expect("at most a MiB")
    }
}

/// Hands every piece that `layer` holds itself to `look`, in order: always the same ones, as long
/// as nothing is written to it.
fn each_piece(
    layer: &Image,
    abort: &Abort,
    mut look: impl FnMut(&Piece) -> Result<()>,
) -> Result<()> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    while at < layer.virtual_size() {
        let end = layer.virtual_size().min(at + WINDOW_LEN);
        runs.clear();
        layer.resolve(at..end, &mut runs).map_err(of_image)?;
        for Run { disk, place } in &runs {
            let mut from = disk.start;
            while *place != Place::Parent && from < disk.end {
                // A broken link is nothing to this; the operator may still stop it.
                abort.check_cancelled()?;
                let to = disk.end.min(from + PIECE_LEN);
                look(&Piece {
                    disk: from..to,
                    is_zero: *place == Place::Zero,
                })?;
                from = to;
            }
        }
        at = end;
    }
    Ok(())
}

/// A sum of pieces and of what is there.
#[derive(Default)]
struct Sum(blake3::Hasher);

impl Sum {
    /// `None`: zeros.
    fn add(&mut self, disk: &Range<u64>, bytes: Option<&[u8]>) {
        self.0.update(&disk.start.to_le_bytes());
        self.0.update(&disk.end.to_le_bytes());
        let bytes = bytes.filter(|bytes| !is_zero(bytes));
        self.0.update(&[u8::from(bytes.is_some())]);
        self.0.update(bytes.unwrap_or_default());
    }

    fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// The sum of what `layer` holds.
pub(super) fn sum_of(layer: &Image, abort: &Abort) -> Result<String> {
    let (mut sum, mut bytes) = (Sum::default(), Vec::new());
    each_piece(layer, abort, |piece| {
        if piece.is_zero {
            sum.add(&piece.disk, None);
            return Ok(());
        }
        bytes.resize(piece.len(), 0);
        let read = layer.read_at(piece.disk.start, &mut bytes);
        read.map_err(of_image)?;
        sum.add(&piece.disk, Some(&bytes));
        Ok(())
    })?;
    Ok(sum.finish())
}

/// The sum of what the medium of `disk` has at the places that `layer` holds, and how many bytes
/// were read.
pub(super) fn sum_at(layer: &Image, disk: &VhdxDisk, abort: &Abort) -> Result<(String, u64)> {
    let (mut sum, mut read, mut bytes) = (Sum::default(), 0, Vec::new());
    each_piece(layer, abort, |piece| {
        let at = ByteOffset(piece.disk.start);
        let found = disk.extent_at(at)?;
        if found.kind != DiskKind::Data && found.end.0 >= piece.disk.end {
            sum.add(&piece.disk, None);
            return Ok(());
        }
        bytes.resize(piece.len(), 0);
        disk.read_back(at, &mut bytes)?;
        read += bytes.len() as u64;
        sum.add(&piece.disk, Some(&bytes));
        Ok(())
    })?;
    Ok((sum.finish(), read))
}

/// Writes to `undo` what `old` has at the places that `layer` holds; the sum of that.
pub(super) fn save_old(layer: &Image, old: &Image, undo: &Image, abort: &Abort) -> Result<String> {
    let (mut sum, mut bytes) = (Sum::default(), Vec::new());
    each_piece(layer, abort, |piece| {
        let disk = piece.disk.clone();
        let found = old.extent_at(disk.start).map_err(of_image)?;
        let mut is_nothing = found.kind != ExtentKind::Data && found.end >= disk.end;
        if !is_nothing {
            bytes.resize(piece.len(), 0);
            old.read_at(disk.start, &mut bytes).map_err(of_image)?;
            is_nothing = is_zero(&bytes);
        }
        match is_nothing {
            true => {
                sum.add(&disk, None);
                undo.zero(disk).map_err(of_image)
            }
            false => {
                sum.add(&disk, Some(&bytes));
                undo.write_at(disk.start, &bytes).map_err(of_image)
            }
        }
    })?;
    Ok(sum.finish())
}

/// Bytes that the target has to grow by to take what `layer` holds.
pub(super) fn growth(layer: &Image, target: &dyn TargetAccess, abort: &Abort) -> Result<u64> {
    let disk = target.source();
    let unit = u64::from(disk.info().image_block_size.unwrap_or(1));
    // The image block that was counted last: several pieces can lie in one.
    let (mut needed, mut counted_to) = (0, 0);
    each_piece(layer, abort, |piece| {
        let mut at = piece.disk.start;
        while !piece.is_zero && at < piece.disk.end {
            let found = disk.extent_at(ByteOffset(at))?;
            let end = found.end.0.min(piece.disk.end);
            if found.kind != DiskKind::Data {
                let (from, to) = (at / unit * unit, end.next_multiple_of(unit));
                needed += to - from.max(counted_to).min(to);
                counted_to = to;
            }
            at = end;
        }
        Ok(())
    })?;
    Ok(needed)
}

/// An error of an image of this job.
#[expect(clippy::needless_pass_by_value, reason = "as `map_err` hands it over")]
pub(super) fn of_image(error: failback_vhdx::Error) -> Error {
    vhdx_error_bare(&error)
}
