//! Whether an image on its medium leads to what was read back.
//!
//! Reading back goes by the block table in memory. A medium that lost a write of the table, or of
//! what stands before it, would give every byte of the proof and still hold another disk. So after
//! the last write the image is opened once more, past the page cache, as another program will, and
//! has to lead to the same places.

use std::sync::Arc;

use failback_vhdx::{ErrorKind as FormatError, Image, LogState};

use super::vhdx::convert;
use crate::error::{Error, ErrorKind, Result};
use crate::system::{HostFile, PastCache};

/// Bytes of the disk that are looked at together where they are stored: bounds the list of runs.
const WINDOW: u64 = 1 << 30;

/// Opens the file of `image`, which was just closed, as the medium has it and compares every block.
/// Space that is nowhere is passed over in long runs, so the cost follows the table.
///
/// # Errors
/// `VerifyFailed` when the medium has another image, `Io`.
pub(super) fn check_vhdx(image: &Image, file: &Arc<HostFile>) -> Result<()> {
    let failed = |e: failback_vhdx::Error| match e.kind() {
        FormatError::Io => convert(&e, file),
        _ => not_as_written(file, &e.to_string(), e.at().unwrap_or(0)),
    };
    let theirs = Image::open_detached(Arc::new(PastCache::new(file.clone()))).map_err(failed)?;
    let ids = |image: &Image| {
        let guids = [
            image.disk_id(),
            image.data_write_guid(),
            image.file_write_guid(),
        ];
        (guids, image.virtual_size(), image.block_size())
    };
    let is_odd = |odd| !image.warnings().contains(odd);
    if ids(image) != ids(&theirs) || theirs.warnings().iter().any(is_odd) {
        return Err(not_as_written(file, "its headers are not", 0));
    }
    if theirs.log_state() != LogState::Empty {
        return Err(not_as_written(file, "its log is not empty", 0));
    }
    let (mut our_runs, mut their_runs) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < image.virtual_size() {
        let mut end = image.virtual_size().min(at.saturating_add(WINDOW));
        if image.parent().is_none() {
            let ours = image.extent_at(at).map_err(|e| convert(&e, file))?;
            let found = theirs.extent_at(at).map_err(failed)?;
            if ours.kind != found.kind {
                return Err(not_as_written(file, "its block table is not", at));
            }
            let both = ours.end.min(found.end);
            if ours.kind != failback_vhdx::ExtentKind::Data {
                at = both;
                continue;
            }
            end = end.min(both);
        }
        our_runs.clear();
        their_runs.clear();
        let resolved = image.resolve(at..end, &mut our_runs);
        resolved.map_err(|e| convert(&e, file))?;
        theirs.resolve(at..end, &mut their_runs).map_err(failed)?;
        if our_runs != their_runs {
            return Err(not_as_written(file, "its block table is not", at));
        }
        at = end;
    }
    Ok(())
}

/// The image on the medium is not the one that was written; `what` of it, and near which byte.
pub(super) fn not_as_written(file: &HostFile, what: &str, at: u64) -> Error {
    let message = format!(
        "what the medium holds of the image is not what was written ({what}): the target is not \
         to be trusted"
    );
    Error::new(ErrorKind::VerifyFailed, message)
        .path(file.path())
        .at(at)
}
