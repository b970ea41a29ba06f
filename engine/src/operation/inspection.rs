//! `info`: what an image is. Takes no lock and writes nothing.

use std::path::Path;
use std::sync::Arc;

use failback_vhdx::{FileAt, Image, Kind, LogState};
use serde::Serialize;

use super::replacement::is_missing;
use crate::disk::vhd::VhdImage;
use crate::disk::{
    Format, OpenOptions, RawDisk, Source, VhdDisk, VhdxDisk, decide_format, open_parents,
};
use crate::error::{Error, Result};
use crate::state::{Journal, find_elsewhere, peek, state_directory};
use crate::system::{Access, HostFile};

/// What `failback info` prints. Fields keep their names.
#[derive(Clone, Debug, Serialize)]
pub struct ImageInfo {
    /// `failback.info/1`.
    pub schema: &'static str,
    /// As it was named.
    pub path: String,
    /// `raw`, `vhdx`, `vhd`.
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
    /// State of the last sync to this image, a word of docs/operating.md; `null`: none is known of.
    pub state: Option<&'static str>,
    /// The image is neither the old disk nor the new one, and must not be started.
    pub is_mixed: bool,
    /// What does not check in that state and was got over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub state_warnings: Vec<String>,
    /// What only a VHDX has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhdx: Option<VhdxInfo>,
    /// What only a VHD has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhd: Option<VhdInfo>,
}

/// What only a VHD has. Texts from the image are escaped.
#[derive(Clone, Debug, Serialize)]
pub struct VhdInfo {
    /// `fixed`, `dynamic` or `differencing`.
    pub kind: &'static str,
    /// Id by which children know it.
    pub disk_id: String,
    /// Program and system that made the image; it decides what its size is.
    pub creator: String,
    /// Field that the size was taken from: `current_size` or `geometry`.
    pub size_rule: &'static str,
    /// Cylinders, heads, sectors.
    pub geometry: [u32; 3],
    /// Blocks of the disk; `null` for a fixed one.
    pub blocks_total: Option<u64>,
    /// Blocks that have space in the file.
    pub blocks_allocated: Option<u64>,
    /// Name of the parent of a differencing disk.
    pub parent_name: Option<String>,
    /// Id of that parent.
    pub parent_id: Option<String>,
    /// Paths at which it is said to be; `failback` opens none of them by itself.
    pub parent_paths: Vec<String>,
    /// What is odd and was got over.
    pub warnings: Vec<String>,
}

/// One step down a chain.
#[derive(Clone, Debug, Serialize)]
pub struct ParentInfo {
    /// Where the child says its parent is; a text of the image, not looked at.
    pub named: String,
    /// The file that was taken for it; `null` where none was named or followed, which ends the
    /// list.
    pub path: Option<String>,
    /// What the parent's DataWriteGuid, or the unique id of a VHD, has to be.
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
/// options name or let follow; without any, nothing but the image itself is looked at. `state` is
/// where the state of syncs is kept; `None`: beside the image.
///
/// # Errors
/// `Damaged`, `Unsupported`, `Refused`, `Io`.
pub fn info(path: &Path, options: &OpenOptions, state: Option<&Path>) -> Result<ImageInfo> {
    let directory = state_directory(path, state)?;
    let elsewhere = find_elsewhere(path, &directory)?;
    let note = elsewhere
        .as_ref()
        .map(|(found, _)| format!("the state is kept elsewhere: {}", found.display()));
    let journal = match elsewhere {
        Some((_, journal)) => Some(journal),
        None => peek(&directory)?,
    };
    let file = HostFile::open(path, Access::Inspect).map_err(|error| match &journal {
        Some(journal) if is_missing(path) => {
            let word = journal.word().name();
            let message = format!("does not exist; the last sync to it ended as {word}");
            Error::new(error.kind(), message).path(path)
        }
        _ => error,
    })?;
    let file = Arc::new(file);
    let file_identity = file
        .identity()
        .map_err(|e| Error::io(e, "stat").path(path))?;
    let file_size = file
        .len()
        .map_err(|e| Error::io(e, "read length").path(path))?;
    let file_allocated = file
        .allocated_len()
        .map_err(|e| Error::io(e, "stat").path(path))?;
    let (disk, chain, vhdx, vhd) = match decide_format(&file, options.format)? {
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
            (disk.info(), chain, Some(vhdx), None)
        }
        Format::Vhd => {
            let parents = open_parents(&file, options, Access::Inspect, Access::Inspect)?;
            let chain = vhd_chain_of(&file, &parents)?;
            let disk = VhdDisk::inspect(file)?;
            (disk.info(), chain, None, Some(vhd_info(disk.image())))
        }
        _ => (RawDisk::open(file)?.info(), Vec::new(), None, None),
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
        state: journal.as_ref().map(|journal| journal.word().name()),
        state_warnings: {
            let warnings = journal.as_ref().map(Journal::warnings);
            note.into_iter()
                .chain(warnings.unwrap_or_default())
                .collect()
        },
        is_mixed: journal.is_some_and(|journal| {
            journal.is_mixed() || journal.may_have_lost_commit(&file_identity)
        }),
        vhdx,
        vhd,
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

/// As [`chain_of`], for VHDs.
fn vhd_chain_of(file: &Arc<HostFile>, parents: &[Arc<HostFile>]) -> Result<Vec<ParentInfo>> {
    let mut chain = Vec::new();
    let mut image = file;
    let mut parents = parents.iter();
    loop {
        let found = VhdDisk::inspect(image.clone())?;
        let Some(id) = found.image().parent_id() else {
            return Ok(chain);
        };
        let named = found.image().parent_name().unwrap_or_default();
        let parent = parents.next();
        chain.push(ParentInfo {
            named: crate::error::one_line(named),
            path: parent.map(|parent| parent.path().display().to_string()),
            linkage: id.to_string(),
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

fn vhd_info(image: &VhdImage) -> VhdInfo {
    let chs = image.geometry();
    let counts = image.block_counts();
    VhdInfo {
        kind: image.kind().name(),
        disk_id: image.unique_id().to_string(),
        creator: image.creator(),
        size_rule: image.size_rule().name(),
        geometry: [chs.cylinders.into(), chs.heads.into(), chs.sectors.into()],
        blocks_total: counts.map(|(total, _)| total),
        blocks_allocated: counts.map(|(_, stored)| stored),
        parent_name: image.parent_name().map(str::to_owned),
        parent_id: image.parent_id().map(|id| id.to_string()),
        parent_paths: image.parent_paths(),
        warnings: image.warnings().to_vec(),
    }
}
