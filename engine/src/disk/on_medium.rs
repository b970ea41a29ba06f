//! Whether an image on its medium leads to what was read back.
//!
//! Reading back goes by the block table in memory. A medium that lost a write of the table, or of
//! what stands before it, would give every byte of the proof and still hold another disk. So after
//! the last write the image is opened once more, past the page cache, as another program will, and
//! has to lead to the same places.

use std::sync::Arc;

use failback_vhdx::{ErrorKind as FormatError, Image};

use super::vhdx::convert;
use crate::error::{Error, ErrorKind, Result};
use crate::system::{HostFile, PastCache};

/// Holds the image that was just closed against its file as the medium has it.
///
/// # Errors
/// `VerifyFailed` when the medium has another image, `Io`.
pub(super) fn check_vhdx(image: &Image, file: &Arc<HostFile>) -> Result<()> {
    let medium = Arc::new(PastCache::new(file.clone()));
    image.prove_structure(medium).map_err(|e| match e.kind() {
        FormatError::Io => convert(&e, file),
        _ => not_as_written(file, &e.to_string(), e.at().unwrap_or(0)),
    })
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
