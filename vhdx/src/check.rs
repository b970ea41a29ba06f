//! Looks at every structure of an image and tells all that is wrong, not only the first of it.
//!
//! ```text
//! headers --> log --> view of the file after replay --> region tables --> metadata --> BAT
//!   |          |                                           |                |           |
//!   +----------+------------------> findings <-------------+----------------+-----------+
//! ```
//!
//! Each structure is read as [`Image::open`](crate::Image::open) reads it, by code that goes on
//! where that stops. What a damaged structure would have said is then not known: what hangs on it
//! is left out, and a note says so. Cost: one pass over the BAT without its holes, no payload;
//! memory for one bit per MiB of the file and for the findings, whose number has a limit.

mod bat;
mod findings;
mod headers;
mod log;
mod metadata;
mod parent;
mod regions;
mod space;
mod view;

use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::file::FileAt;
use crate::format::{FILE_MAGIC, HEADER_SECTION_LEN, MIB};
use crate::image::is_vhdx;
use findings::Findings;
use view::View;

/// Checks the image in `file` and changes nothing.
///
/// # Errors
/// [`NotVhdx`](ErrorKind::NotVhdx) when the file does not begin like one, [`Io`](ErrorKind::Io).
/// Everything else is a [`Finding`].
pub fn check(file: &dyn FileAt, options: &CheckOptions) -> Result<CheckReport> {
    run(file, options).map_err(|error| error.during("check"))
}

/// How to check.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckOptions {
    /// What the parent of a differencing image says of itself. `None` leaves that link unchecked.
    pub parent: Option<ParentIdentity>,
    /// At most so many findings of each severity are kept; the others are only counted.
    pub findings_max: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            parent: None,
            findings_max: FINDINGS_MAX,
        }
    }
}

/// What an image says of itself to those that may stand on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentIdentity {
    /// Changes with each change of content; a child names it.
    pub data_write_guid: Uuid,
    /// Identity of the virtual disk (SCSI page 83), the same in parent and child.
    pub disk_id: Uuid,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// 512 or 4096, the same in parent and child.
    pub logical_sector_size: u32,
}

/// What a check found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckReport {
    /// In the order of the structures: headers, log, region tables, metadata, BAT, file.
    pub findings: Vec<Finding>,
    /// Findings beyond [`CheckOptions::findings_max`].
    pub omitted: u64,
    /// Findings that are errors, whether kept or omitted.
    pub errors: u64,
    /// What the image is made of, as far as it could be read.
    pub summary: CheckSummary,
    /// Who the image is to its children, where headers and metadata could be read.
    pub identity: Option<ParentIdentity>,
}

impl CheckReport {
    /// Whether there is no error: the image can be opened, and every block of it read.
    pub fn is_sound(&self) -> bool {
        self.errors == 0
    }
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which structure of the format.
    pub structure: &'static str,
    /// Byte offset in the file of the structure, or of the entry or field of it that is meant.
    pub at: Option<u64>,
    /// Which rule is broken, in words joined by hyphens. Names do not change between releases.
    pub rule: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, for people. May quote text of the image.
    pub detail: String,
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; no rule is broken.
    Note,
    /// A rule is broken, and readers get over it without harm.
    Warning,
    /// A reader must or may refuse the image, or would read wrong data.
    Error,
}

/// What an image is made of. Counts of what could not be read are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckSummary {
    /// `fixed`, `dynamic` or `differencing`, where the metadata tell.
    pub kind: Option<&'static str>,
    /// Bytes of the file as it is, without replay.
    pub file_len: u64,
    /// Log entries of the current log that are whole; 0 when the log is not in use.
    pub log_entries_valid: u64,
    /// Those of them that have to be replayed.
    pub log_entries_active: u64,
    /// Blocks of the virtual disk by what the BAT says of them.
    pub blocks: BlockSummary,
    /// Sector bitmap blocks that are in the file.
    pub bitmap_blocks: u64,
    /// Bytes in whole MiB that neither a structure nor a block uses.
    pub unreferenced_len: u64,
    /// Runs of such MiB.
    pub unreferenced_ranges: u64,
    /// Bytes behind the last whole MiB of the file.
    pub trailing_len: u64,
}

/// Blocks by state (section 2.5.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockSummary {
    /// State 0: never written, or that of the parent.
    pub not_present: u64,
    /// State 1: content undefined.
    pub undefined: u64,
    /// State 2: zero.
    pub zero: u64,
    /// State 3: discarded.
    pub unmapped: u64,
    /// State 6: stored in the file.
    pub present: u64,
    /// State 7: stored in part, the other sectors are those of the parent.
    pub partial: u64,
    /// Any other state.
    pub invalid: u64,
}

fn run(file: &dyn FileAt, options: &CheckOptions) -> Result<CheckReport> {
    let file_len = file
        .len()
        .map_err(|error| Error::io("read file length", error))?;
    check_file_id(file, file_len)?;
    let mut findings = Findings::new(options.findings_max);
    let mut summary = CheckSummary {
        file_len,
        trailing_len: file_len % MIB,
        ..CheckSummary::default()
    };
    if file_len < HEADER_SECTION_LEN {
        findings.error(HEADER_SECTION, 0, "header-section-truncated", || {
            format!("the file ends in it, after {file_len:#x} bytes")
        });
    }
    let header = headers::check(file, &mut findings)?;
    let view = match &header {
        Some(header) => log::check(file, header, &mut findings, &mut summary)?,
        None => View::new(file, file_len),
    };
    let log = header.as_ref().map(|header| header.log.clone());
    let regions = regions::check(&view, &log.unwrap_or_default(), &mut findings)?;
    let disk = match &regions.metadata {
        Some(region) => metadata::check(&view, region, &mut findings)?,
        None => None,
    };
    if let Some(disk) = &disk {
        summary.kind = Some(disk.kind_name());
        parent::check(disk, options.parent.as_ref(), &mut findings);
        bat::check(&view, &regions, disk, &mut findings, &mut summary)?;
    } else {
        findings.note("BAT", None, "bat-not-checked", || {
            "without the metadata nothing is known of it".to_owned()
        });
    }
    if summary.trailing_len > 0 {
        let at = file_len - summary.trailing_len;
        findings.note("file", at, "trailing-data", || {
            format!("{} bytes behind the last whole MiB", summary.trailing_len)
        });
    }
    let identity = header.zip(disk).and_then(|(header, disk)| {
        Some(ParentIdentity {
            data_write_guid: header.data_write_guid,
            disk_id: disk.disk_id?,
            virtual_size: disk.geometry.virtual_size(),
            logical_sector_size: disk.geometry.sector_size(),
        })
    });
    let (findings, omitted, errors) = findings.into_parts();
    Ok(CheckReport {
        findings,
        omitted,
        errors,
        summary,
        identity,
    })
}

fn check_file_id(file: &dyn FileAt, file_len: u64) -> Result<()> {
    let mut magic = [0; FILE_MAGIC.len()];
    if file_len >= magic.len() as u64 {
        file.read_at(0, &mut magic)
            .map_err(|error| Error::io("read", error).of("file identifier").offset(0))?;
    }
    match is_vhdx(&magic) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::NotVhdx, "no VHDX signature")),
    }
}

const HEADER_SECTION: &str = "header section";
/// Findings of each severity that are kept when nothing else is said: more than anybody reads.
const FINDINGS_MAX: usize = 10_000;
