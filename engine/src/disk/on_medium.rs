//! Whether an image on its medium leads to what was read back.
//!
//! Reading back goes by the block table in memory. A medium that lost a write of the table, or of
//! what stands before it, would give every byte of the proof and still hold another disk. So after
//! the last write the image is opened once more, past the page cache, as another program will, and
//! has to lead to the same places.

use std::path::Path;
use std::sync::Arc;

use failback_vhdx::{ErrorKind as FormatError, Image};

use super::layers::ImageFile;
use super::vhdx::convert_at;
use crate::error::{Error, ErrorKind, Result};

/// Holds the image that was just closed against its file as the medium has it.
///
/// # Errors
/// `VerifyFailed` when the medium has another image, `Io`.
pub(super) fn check_vhdx(image: &Image, file: &Arc<dyn ImageFile>) -> Result<()> {
    image
        .prove_structure(file.clone().past_cache())
        .map_err(|e| match e.kind() {
            FormatError::Io => convert_at(&e, file.path()),
            _ => not_as_written(file.path(), &e.to_string(), e.at().unwrap_or(0)),
        })
}

/// The image on the medium is not the one that was written; `what` of it, and near which byte.
pub(super) fn not_as_written(path: &Path, what: &str, at: u64) -> Error {
    let message = format!(
        "what the medium holds of the image is not what was written ({what}): the target is not \
         to be trusted"
    );
    Error::new(ErrorKind::VerifyFailed, message)
        .path(path)
        .at(at)
}
