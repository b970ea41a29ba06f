//! Whether two disks can become equal.

use crate::disk::DiskInfo;
use crate::error::{Error, ErrorKind, Result};

/// Refuses disks that cannot become equal.
///
/// # Errors
/// `GeometryMismatch` for different lengths, or different sectors where both formats state one.
pub(super) fn check_fit(source: &DiskInfo, target: &DiskInfo) -> Result<()> {
    let mismatch = |message: String| Err(Error::new(ErrorKind::GeometryMismatch, message));
    if source.virtual_size != target.virtual_size {
        return mismatch(format!(
            "the disks differ in length: source has {} bytes, target {}",
            source.virtual_size, target.virtual_size
        ));
    }
    match (source.logical_sector_size, target.logical_sector_size) {
        (Some(a), Some(b)) if a != b => mismatch(format!(
            "the disks differ in sector size: source has {a} bytes, target {b}"
        )),
        _ => Ok(()),
    }
}
