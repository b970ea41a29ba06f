//! What a target that is missing is made as.

use std::path::Path;

use failback_transport as wire;

use super::copy::SyncRequest;
use crate::disk::vhd::{NEW_DISK_LEN_MAX, SECTOR_SIZE};
use crate::disk::{DiskInfo, Format, NewDisk};
use crate::error::{Error, ErrorKind, Remedy, Result};

/// What an agent is to make of a missing target.
pub(super) fn wished_disk(source: &DiskInfo) -> wire::NewDisk {
    wire::NewDisk {
        size: source.virtual_size,
        logical_sector_size: source.logical_sector_size.unwrap_or(0),
        block_size_hint: source.image_block_size.unwrap_or(0),
    }
}

/// What a missing target becomes, as the request of a sync has it.
pub(super) fn wanted_disk(
    request: &SyncRequest,
    path: &Path,
    source: &DiskInfo,
) -> Result<NewDisk> {
    if !request.target_open.parents.is_empty() {
        let message = "does not exist, yet a parent of it was named; \
                       make a differencing image first (failback create)";
        return Err(Error::new(ErrorKind::Usage, message).path(path));
    }
    new_disk(path, request.target_open.format, source)
}

/// What a missing target becomes: named by the operator or by its suffix, in the source's measure.
pub(crate) fn new_disk(path: &Path, format: Option<Format>, source: &DiskInfo) -> Result<NewDisk> {
    let format = format.or_else(|| Format::of_suffix(path)).ok_or_else(|| {
        let message = "does not exist, and its suffix does not say what to make \
                       (.vhdx, .vhd, .raw, .img)";
        Error::new(ErrorKind::Usage, message)
            .path(path)
            .remedy_is(Remedy::NameFormat)
    })?;
    let sector_size = source.logical_sector_size.unwrap_or(SECTOR_SIZE_DEFAULT);
    if format == Format::Vhd {
        return new_vhd(path, source, sector_size);
    }
    if format == Format::Vhdx && !source.virtual_size.is_multiple_of(u64::from(sector_size)) {
        let message = format!(
            "a disk of {} bytes does not fit a VHDX: not a multiple of {sector_size}",
            source.virtual_size
        );
        return Err(Error::new(ErrorKind::GeometryMismatch, message).path(path));
    }
    Ok(NewDisk {
        format,
        len: source.virtual_size,
        sector_size,
        // A VHD may have smaller blocks than any VHDX.
        block_size: source
            .image_block_size
            .filter(|size| *size >= VHDX_BLOCK_SIZE_MIN),
        is_fixed: false,
    })
}

/// A fixed VHD: the kind that Azure takes, and the one that a crash cannot disorder.
fn new_vhd(path: &Path, source: &DiskInfo, sector_size: u32) -> Result<NewDisk> {
    let len = source.virtual_size;
    let unfit = match () {
        () if sector_size != SECTOR_SIZE => Some(format!("its sectors have {sector_size} bytes")),
        () if len == 0 || !len.is_multiple_of(SECTOR_SIZE.into()) => {
            Some(format!("{len} bytes are no whole number of sectors"))
        }
        () if len > NEW_DISK_LEN_MAX => Some(format!("{len} bytes are more than 2040 GiB")),
        () => None,
    };
    match unfit {
        Some(why) => {
            let message = format!("the source does not fit a VHD: {why}");
            Err(Error::new(ErrorKind::GeometryMismatch, message).path(path))
        }
        None => Ok(NewDisk {
            format: Format::Vhd,
            len,
            sector_size,
            block_size: None,
            is_fixed: true,
        }),
    }
}

/// Bytes of the smallest block of a VHDX.
const VHDX_BLOCK_SIZE_MIN: u32 = 1 << 20;

/// Sector of a new disk whose source states none.
const SECTOR_SIZE_DEFAULT: u32 = 512;
