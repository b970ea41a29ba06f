//! Changes by where bytes lie on the device.

use std::io;
use std::path::Path;
use std::sync::Arc;

use failback_vhdx::FileAt;

use super::layout::{Layout, differing};
use super::{ChangeTracker, Changed};
use crate::disk::{Format, VhdxDisk, decide_format, vhdx_error};
use crate::error::{Error, ErrorKind, Result};
use crate::step::Step;
use crate::system::{Access, FileRun, HostFile};

/// Changes by where bytes lie on the device, for snapshots that are clones ([`Reflink`]), of raw
/// disks and of VHDX without parents. Works below any hypervisor.
///
/// A stretch of the disk is unchanged only if both images have it at the same shared place of the
/// same device, or both read zeros there. Whatever the file system does not say plainly
/// (compressed, inline, not yet written) is named. Costs what the number of extents costs, whatever
/// the length of the disk.
///
/// [`Reflink`]: crate::snapshot::Reflink
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extents;

impl ChangeTracker for Extents {
    fn changed(&self, then: &Path, now: &Path, step: &Step<'_>) -> Result<Changed> {
        changed(then, now, None, step)
    }
}

/// [`Extents`] of images whose format was named, where their first bytes are not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentsAs(pub Format);

impl ChangeTracker for ExtentsAs {
    fn changed(&self, then: &Path, now: &Path, step: &Step<'_>) -> Result<Changed> {
        changed(then, now, Some(self.0), step)
    }
}

fn changed(then: &Path, now: &Path, format: Option<Format>, step: &Step<'_>) -> Result<Changed> {
    step.check()?;
    let now = match Traced::of(now, format)? {
        Ok(now) => now,
        Err(why) => return Ok(Changed::Unknown(why)),
    };
    step.check()?;
    let then = match Traced::of(then, format) {
        Ok(Ok(then)) => then,
        Ok(Err(why)) => return Ok(Changed::Unknown(why)),
        Err(error) => {
            let error = error.chain();
            tracing::warn!(error, "a snapshot cannot be compared with");
            return Ok(Changed::Unknown("snapshot"));
        }
    };
    let compared = [
        (then.format == now.format, "image_format"),
        (then.len == now.len, "size"),
        (then.device == now.device, "file_system"),
    ];
    Ok(match compared.iter().find(|(is_same, _)| !is_same) {
        Some((_, why)) => Changed::Unknown(why),
        None => Changed::Ranges(differing(&then.layout, &now.layout)),
    })
}

/// An image, and where its bytes are.
struct Traced {
    format: Format,
    /// Bytes of the virtual disk.
    len: u64,
    /// The file system that it lies on.
    device: u64,
    layout: Layout,
}

impl Traced {
    /// Or why it cannot be told.
    fn of(path: &Path, format: Option<Format>) -> Result<std::result::Result<Self, &'static str>> {
        // No lock: whoever asks has the image locked himself, or it is a snapshot.
        let file = Arc::new(HostFile::open(path, Access::Inspect)?);
        let failed = |e| Error::io(e, "find extents").path(path);
        let Some(device) = file.file_system_id().map_err(failed)? else {
            return Ok(Err("file_system"));
        };
        let format = decide_format(&file, format)?;
        let runs = match file.places() {
            Ok(runs) => runs,
            Err(e) if e.kind() == io::ErrorKind::Unsupported => return Ok(Err("file_system")),
            Err(e) if e.kind() == io::ErrorKind::QuotaExceeded => return Ok(Err("extents")),
            Err(e) => return Err(failed(e)),
        };
        let file_len = file.len().map_err(failed)?;
        let (len, layout) = match format {
            Format::Raw => (file_len, Layout::of_file(&runs, file_len)),
            Format::Vhdx => match of_vhdx(&file, &runs, file_len)? {
                Some(found) => found,
                None => return Ok(Err("parent_chain")),
            },
            _ => return Ok(Err("image_format")),
        };
        Ok(Ok(Self {
            format,
            len,
            device,
            layout,
        }))
    }
}

/// Length of the disk and its layout; `None` for a differencing image. A log is replayed in memory:
/// what comes from it is in doubt, and what the table says then is where the bytes are.
fn of_vhdx(file: &Arc<HostFile>, runs: &[FileRun], file_len: u64) -> Result<Option<(u64, Layout)>> {
    let disk = match VhdxDisk::open(file.clone(), Vec::new()) {
        Ok(disk) => disk,
        // A parent is missed: none was given.
        Err(error) if error.kind() == ErrorKind::Refused => return Ok(None),
        Err(error) => return Err(error),
    };
    let image = disk.image();
    let len = image.virtual_size();
    let mut places = Vec::new();
    let resolved = image.resolve(0..len, &mut places);
    resolved.map_err(|e| vhdx_error(&e, file))?;
    Ok(Some((len, Layout::of_image(&places, runs, file_len))))
}
