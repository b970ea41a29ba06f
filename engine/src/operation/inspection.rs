//! `info`: what an image is. Takes no lock and writes nothing.

use std::path::Path;
use std::sync::Arc;

use failback_vhdx::{FileAt, Image, Kind, LogState};
use serde::Serialize;

use crate::disk::{Format, OpenOptions, RawDisk, Source, VhdxDisk, decide_format, open_parents};
use crate::error::{Error, Result};
use crate::system::{Access, HostFile};

/// What `failback info` prints. Fields keep their names.
#[derive(Clone, Debug, Serialize)]
pub struct ImageInfo {
    /// `failback.info/1`.
    pub schema: &'static str,
    /// As it was named.
    pub path: String,
    /// `raw`, `vhdx`.
    pub format: String,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Length of the file (or device) in bytes.
    pub file_size: u64,
    /// Bytes that the file occupies on its file system.
    pub file_allocated: u64,
    /// Logical sector in bytes; `null` where the format states none.
    pub logical_sector_size: Option<u32>,
    /// Block of the image format in bytes; `null` where it has none.
    pub block_size: Option<u32>,
    /// Changes when the image is replaced or rewritten.
    pub identity: String,
    /// The images that this one stands on, nearest first; empty for one without a parent.
    pub chain: Vec<ParentInfo>,
    /// State of an interrupted job on this image; `null`: none. Always `null` in this release.
    pub state: Option<&'static str>,
    /// What only a VHDX has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhdx: Option<VhdxInfo>,
}

/// One step down a chain.
#[derive(Clone, Debug, Serialize)]
pub struct ParentInfo {
    /// Where the child says its parent is; a text of the image, not looked at.
    pub named: String,
    /// The file that was taken for it; `null` where none was named or followed, which ends the
    /// list.
    pub path: Option<String>,
    /// What the parent's DataWriteGuid has to be.
    pub linkage: String,
}

/// What only a VHDX has.
#[derive(Clone, Debug, Serialize)]
pub struct VhdxInfo {
    /// `dynamic`, `fixed` or `differencing`.
    pub kind: &'static str,
    /// Physical sector in bytes.
    pub physical_sector_size: u32,
    /// Virtual disk id (SCSI page 83).
    pub disk_id: String,
    /// Changes before the first change a guest could see, once an open.
    pub data_write_guid: String,
    /// Changes before the first change of any kind, once an open.
    pub file_write_guid: String,
    /// Program that made the image; diagnostic only.
    pub creator: String,
    /// `empty`, or `replayed` when the file's log had to be replayed in memory.
    pub log: &'static str,
    /// Entries that were replayed in memory.
    pub log_entries: u64,
    /// Sequence number of the current header.
    pub sequence: u64,
    /// Blocks of the disk.
    pub blocks_total: u64,
    /// Blocks that have space in the file.
    pub blocks_allocated: u64,
    /// Of those, blocks that hold some of their sectors, the others being the parent's.
    pub blocks_partial: u64,
    /// Bytes of those blocks.
    pub allocated: u64,
    /// What is odd and was got over.
    pub warnings: Vec<String>,
}

/// Looks at the image at `path`. Of the parents of a differencing image those are opened that the
/// options name or let follow; without any, nothing but the image itself is looked at.
///
/// # Errors
/// `Damaged`, `Unsupported`, `Refused`, `Io`.
pub fn info(path: &Path, options: &OpenOptions) -> Result<ImageInfo> {
    let file = Arc::new(HostFile::open(path, Access::Inspect)?);
    let file_size = file
        .len()
        .map_err(|e| Error::io(e, "read length").path(path))?;
    let file_allocated = file
        .allocated_len()
        .map_err(|e| Error::io(e, "stat").path(path))?;
    let (disk, chain, vhdx) = match decide_format(&file, options.format)? {
        Format::Vhdx => {
            let failed = |e| crate::disk::vhdx_error(&e, &file);
            let parents = open_parents(&file, options, Access::Inspect, Access::Inspect)?;
            let chain = chain_of(&file, &parents)?;
            let is_whole = chain.last().is_none_or(|last| last.path.is_some());
            let disk = match is_whole {
                true => VhdxDisk::open(file.clone(), parents)?,
                false => VhdxDisk::open_detached(file.clone())?,
            };
            let vhdx = vhdx_info(disk.image(), disk.info().warnings).map_err(failed)?;
            (disk.info(), chain, Some(vhdx))
        }
        _ => (RawDisk::open(file)?.info(), Vec::new(), None),
    };
    Ok(ImageInfo {
        schema: "failback.info/1",
        path: path.display().to_string(),
        format: disk.format,
        virtual_size: disk.virtual_size,
        file_size,
        file_allocated,
        logical_sector_size: disk.logical_sector_size,
        block_size: disk.image_block_size,
        identity: disk.identity,
        chain,
        state: None,
        vhdx,
    })
}

/// What each image of the chain says of its parent, and which file was taken for it.
fn chain_of(file: &Arc<HostFile>, parents: &[Arc<HostFile>]) -> Result<Vec<ParentInfo>> {
    let mut chain = Vec::new();
    let mut image = file;
    let mut parents = parents.iter();
    loop {
        let found = Image::inspect(image.clone());
        let found = found.map_err(|e| crate::disk::vhdx_error(&e, image))?;
        let Some(locator) = found.locator else {
            return Ok(chain);
        };
        let paths = [
            locator.relative_path(),
            locator.volume_path(),
            locator.absolute_win32_path(),
        ];
        let named = paths.into_iter().flatten().next().unwrap_or_default();
        let parent = parents.next();
        chain.push(ParentInfo {
            named: crate::error::one_line(named),
            path: parent.map(|parent| parent.path().display().to_string()),
            linkage: locator.linkage().to_string(),
        });
        match parent {
            Some(parent) => image = parent,
            None => return Ok(chain),
        }
    }
}

fn vhdx_info(image: &Image, warnings: Vec<String>) -> failback_vhdx::Result<VhdxInfo> {
    let allocation = image.scan_allocation()?;
    let (log, log_entries) = match image.log_state() {
        LogState::Replayed { entries } => ("replayed", entries),
        _ => ("empty", 0),
    };
    Ok(VhdxInfo {
        kind: match image.kind() {
            Kind::Fixed => "fixed",
            Kind::Dynamic => "dynamic",
            Kind::Differencing => "differencing",
        },
        physical_sector_size: image.physical_sector_size(),
        disk_id: image.disk_id().to_string(),
        data_write_guid: image.data_write_guid().to_string(),
        file_write_guid: image.file_write_guid().to_string(),
        creator: crate::error::one_line(&image.creator()),
        log,
        log_entries,
        sequence: image.sequence(),
        blocks_total: image.virtual_size().div_ceil(u64::from(image.block_size())),
        blocks_allocated: allocation.present + allocation.partially_present,
        blocks_partial: allocation.partially_present,
        allocated: allocation.allocated,
        warnings,
    })
}
