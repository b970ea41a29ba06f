//! An open image.

use std::fmt;
use std::sync::{Arc, MutexGuard};

use uuid::Uuid;

use crate::alloc::Allocator;
use crate::bat::Bat;
use crate::chain;
use crate::error::{Error, ErrorKind, Result};
use crate::file::FileAt;
use crate::format::{CREATOR_LEN, FILE_MAGIC, HEADER_SECTION_LEN, LOG_LEN_MAX};
use crate::geometry::{BlockIndex, Geometry};
use crate::header::{Header, Headers};
use crate::locator::ParentLocator;
use crate::log;
use crate::metadata::Metadata;
use crate::pages::Pages;
use crate::region::Regions;
use crate::storage::Storage;
use crate::writing::{Session, Writing};

/// An open VHDX image. All methods take `&self` and may be called from many threads at once.
///
/// Dropping an image that was written and not [closed](Self::close) writes nothing: what was
/// flushed is in the file or its log, and the next open replays the log.
#[derive(Debug)]
pub struct Image {
    pub(crate) storage: Storage,
    pub(crate) geometry: Geometry,
    pub(crate) bat: Bat,
    pub(crate) kind: Kind,
    pub(crate) pages: Arc<Pages>,
    pub(crate) is_writable: bool,
    pub(crate) writing: Writing,
    pub(crate) parent: Option<Arc<Self>>,
    /// Images below this one.
    depth: u32,
    locator: Option<ParentLocator>,
    physical_sector_size: u32,
    disk_id: Uuid,
    creator: String,
    log_state: LogState,
    warnings: Vec<Warning>,
}

/// Whether blocks are allocated at creation or when first written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Every block has its place from the start.
    Fixed,
    /// A block gets a place when it is first written.
    Dynamic,
    /// As dynamic, and what was never written is with a parent.
    Differencing,
}

/// What an image says of itself, found without its BAT and without its parent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Description {
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of a sector as the guest addresses it.
    pub logical_sector_size: u32,
    /// Bytes of a sector as the medium is said to have.
    pub physical_sector_size: u32,
    /// Fixed, dynamic or differencing.
    pub kind: Kind,
    /// Identity of the virtual disk.
    pub disk_id: Uuid,
    /// What a child of this image names as its parent.
    pub data_write_guid: Uuid,
    /// Where the image says its parent is; there exactly for differencing images.
    pub locator: Option<ParentLocator>,
    /// What the log held.
    pub log_state: LogState,
    /// Sequence number of the current header.
    pub sequence: u64,
}

/// What opening found in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogState {
    /// Nothing: the image was closed cleanly.
    Empty,
    /// The log in the file had to be replayed, which was done in memory.
    Replayed {
        /// How many log entries were replayed.
        entries: u64,
    },
}

/// Something wrong that did not keep the image from being opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Warning {
    /// Only the header at this byte offset of the file is damaged.
    HeaderDamaged {
        /// 64 KiB or 128 KiB.
        at: u64,
    },
    /// Only the region table at this byte offset of the file is damaged.
    RegionTableDamaged {
        /// 192 KiB or 256 KiB.
        at: u64,
    },
    /// The parent is the one named, but has another virtual disk id.
    ParentIsOfAnotherDisk,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderDamaged { at } => {
                write!(f, "header at {at:#x} is damaged, the other is used")
            }
            Self::RegionTableDamaged { at } => {
                write!(f, "region table at {at:#x} is damaged, the other is used")
            }
            Self::ParentIsOfAnotherDisk => f.write_str("the parent has another virtual disk id"),
        }
    }
}

/// Whether a file that begins with these bytes says it is a VHDX; 8 bytes are enough.
pub fn is_vhdx(first_bytes: &[u8]) -> bool {
    first_bytes.starts_with(FILE_MAGIC)
}

impl Image {
    /// Opens for reading. Nothing is ever written, not even when the log has to be replayed:
    /// that is done in memory.
    ///
    /// # Errors
    /// [`NotVhdx`](ErrorKind::NotVhdx) by the first 8 bytes; [`Damaged`](ErrorKind::Damaged) and
    /// [`Truncated`](ErrorKind::Truncated) by headers, log, region tables, metadata and the first
    /// page of the BAT, or all of a small one; [`Unsupported`](ErrorKind::Unsupported) for unknown
    /// required parts and versions; [`ParentNeeded`](ErrorKind::ParentNeeded) for differencing
    /// images; [`Io`](ErrorKind::Io).
    pub fn open(file: Arc<dyn FileAt>) -> Result<Self> {
        Self::open_as(file, None, false)
    }

    /// Opens for reading and writing. Nothing is written before the first
    /// [`write_at`](Self::write_at) or [`zero`](Self::zero) that changes something; a log is
    /// replayed in the file only then. The caller keeps other writers away.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_rw(file: Arc<dyn FileAt>) -> Result<Self> {
        Self::open_as(file, None, true)
    }

    /// Opens a differencing image over its parent, for reading. As for [`open`](Self::open),
    /// nothing is ever written. The caller keeps all writers away from the parent.
    ///
    /// # Errors
    /// As for [`open`](Self::open); [`WrongParent`](ErrorKind::WrongParent) when the parent is
    /// not the one that the image names by GUID (section 2.6.2.6), or another kind of disk;
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) when the image has no parent;
    /// [`Unsupported`](ErrorKind::Unsupported) for chains of more than [`CHAIN_LEN_MAX`]
    /// images.
    pub fn open_child(file: Arc<dyn FileAt>, parent: Arc<Self>) -> Result<Self> {
        Self::open_as(file, Some(parent), false)
    }

    /// Opens a differencing image over its parent, for reading and writing. As for
    /// [`open_rw`](Self::open_rw), nothing is written before the first change, and nothing to the
    /// parent.
    ///
    /// # Errors
    /// As for [`open_child`](Self::open_child).
    pub fn open_child_rw(file: Arc<dyn FileAt>, parent: Arc<Self>) -> Result<Self> {
        Self::open_as(file, Some(parent), true)
    }

    /// Opens an image for reading without its parent, if it has one: to look at its structure, or
    /// at what is stored in this file alone. Reading sectors that are with the parent fails with
    /// [`ParentNeeded`](ErrorKind::ParentNeeded).
    ///
    /// # Errors
    /// As for [`open`](Self::open), except that no parent is needed.
    pub fn open_detached(file: Arc<dyn FileAt>) -> Result<Self> {
        let parse = || Self::assemble(Structures::read(file, LOG_LEN_MAX)?, None, false);
        parse().map_err(|error| error.during("open"))
    }

    /// What the image says of itself. Reads headers, log, region tables and metadata, and needs no
    /// parent.
    ///
    /// # Errors
    /// As for [`open`](Self::open), except by the BAT.
    pub fn inspect(file: Arc<dyn FileAt>) -> Result<Description> {
        Self::inspect_within(file, LOG_LEN_MAX)
    }

    /// As [`inspect`](Self::inspect), for images that nobody vouches for: a log in use of more than
    /// `log_len_max` bytes is not replayed, since reading it takes time by its length.
    ///
    /// # Errors
    /// As for [`inspect`](Self::inspect); [`Unsupported`](ErrorKind::Unsupported) for such a log.
    pub fn inspect_within(file: Arc<dyn FileAt>, log_len_max: u64) -> Result<Description> {
        let structures =
            Structures::read(file, log_len_max).map_err(|error| error.during("inspect"))?;
        let metadata = structures.metadata;
        Ok(Description {
            virtual_size: metadata.geometry.virtual_size(),
            block_size: metadata.geometry.block_size(),
            logical_sector_size: metadata.geometry.sector_size(),
            physical_sector_size: metadata.physical_sector_size,
            kind: metadata.kind,
            disk_id: metadata.disk_id,
            data_write_guid: structures.headers.current.data_write_guid,
            locator: metadata.locator,
            log_state: structures.log_state,
            sequence: structures.headers.current.sequence,
        })
    }

    /// Bytes of the virtual disk.
    pub fn virtual_size(&self) -> u64 {
        self.geometry.virtual_size()
    }

    /// Bytes of a block, a power of two.
    pub fn block_size(&self) -> u32 {
        self.geometry.block_size()
    }

    /// Bytes of a sector as the guest addresses it, 512 or 4096: the unit of writing.
    pub fn logical_sector_size(&self) -> u32 {
        self.geometry.sector_size()
    }

    /// Bytes of a sector as the medium is said to have, 512 or 4096.
    pub fn physical_sector_size(&self) -> u32 {
        self.physical_sector_size
    }

    /// Identity of the virtual disk (SCSI page 83); stays the same in copies.
    pub fn disk_id(&self) -> Uuid {
        self.disk_id
    }

    /// Changes once per opening in which the disk's content was changed. May block while a flush
    /// runs.
    pub fn data_write_guid(&self) -> Uuid {
        self.session().headers.current.data_write_guid
    }

    /// Changes once per opening in which any byte of the file was changed. May block while a
    /// flush runs.
    pub fn file_write_guid(&self) -> Uuid {
        self.session().headers.current.file_write_guid
    }

    /// Sequence number of the current header; rises with each change of the headers. May block
    /// while a flush runs.
    pub fn sequence(&self) -> u64 {
        self.session().headers.current.sequence
    }

    /// The image this one stands on.
    pub fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    /// Where the image says its parent is, for people; there exactly for differencing images.
    pub fn parent_locator(&self) -> Option<&ParentLocator> {
        self.locator.as_ref()
    }

    /// Fixed, dynamic or differencing, as the image says of itself.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Name of the program that made the image, for people only.
    pub fn creator(&self) -> String {
        self.creator.clone()
    }

    /// What opening found in the log; does not change later.
    pub fn log_state(&self) -> LogState {
        self.log_state
    }

    /// What is wrong with the image, yet did not keep it from being opened.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The file below. Payload may be read from it where [`resolve`](Self::resolve) says.
    pub fn file(&self) -> &Arc<dyn FileAt> {
        self.storage.file()
    }

    fn open_as(
        file: Arc<dyn FileAt>,
        parent: Option<Arc<Self>>,
        is_writable: bool,
    ) -> Result<Self> {
        Self::parse(file, parent, is_writable).map_err(|error| error.during("open"))
    }

    fn parse(file: Arc<dyn FileAt>, parent: Option<Arc<Self>>, is_writable: bool) -> Result<Self> {
        let mut structures = Structures::read(file, LOG_LEN_MAX)?;
        if depth_over(parent.as_deref()) >= CHAIN_LEN_MAX {
            return Err(Error::unsupported(format!(
                "chain of more than {CHAIN_LEN_MAX} images"
            )));
        }
        chain::check_parent(
            &structures.metadata,
            parent.as_deref(),
            &mut structures.warnings,
        )?;
        Self::assemble(structures, parent, is_writable)
    }

    fn assemble(
        structures: Structures,
        parent: Option<Arc<Self>>,
        is_writable: bool,
    ) -> Result<Self> {
        let (storage, metadata) = (structures.storage, structures.metadata);
        let geometry = metadata.geometry;
        let pages = Arc::new(Pages::default());
        let bat = Bat::new(geometry, structures.regions, pages.clone(), &storage)?;
        let writing = Writing::new(structures.headers);
        // Damage of a small table shows now rather than at some read. Of a large one the first
        // page is looked at, the others when they are needed or before the first change.
        if geometry.slot_count() <= SCANNED_SLOTS_MAX {
            let space = Allocator::scan(&geometry, &bat, &storage)?;
            if is_writable {
                writing.keep_space(space);
            }
        } else {
            bat.entry(&storage, BlockIndex(0))?;
        }
        Ok(Self {
            storage,
            geometry,
            physical_sector_size: metadata.physical_sector_size,
            disk_id: metadata.disk_id,
            kind: metadata.kind,
            locator: metadata.locator,
            depth: depth_over(parent.as_deref()),
            parent,
            creator: structures.creator,
            log_state: structures.log_state,
            warnings: structures.warnings,
            bat,
            pages,
            is_writable,
            writing,
        })
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.writing.session()
    }
}

/// Images below one that stands on `parent`.
fn depth_over(parent: Option<&Image>) -> u32 {
    parent.map_or(0, |parent| parent.depth + 1)
}

/// Everything but the BAT, read and checked.
struct Structures {
    storage: Storage,
    headers: Headers,
    regions: Regions,
    metadata: Metadata,
    creator: String,
    log_state: LogState,
    warnings: Vec<Warning>,
}

impl Structures {
    fn read(file: Arc<dyn FileAt>, log_len_max: u64) -> Result<Self> {
        let mut warnings = Vec::new();
        let creator = read_creator(&*file)?;
        let headers = Headers::read(&*file, &mut warnings)?;
        let Header { log, log_guid, .. } = headers.current.clone();
        let (overlay, log_state) = if log_guid.is_nil() {
            (None, LogState::Empty)
        } else if log.end - log.start > log_len_max {
            let detail = format!("log of {} bytes in use", log.end - log.start);
            return Err(Error::unsupported(detail));
        } else {
            let (overlay, entries) = log::replay(&*file, &log, log_guid)?;
            (Some(overlay), LogState::Replayed { entries })
        };
        let storage = Storage::new(file, overlay)?;
        let regions = Regions::read(&storage, &log, &mut warnings)?;
        let metadata = Metadata::read(&storage, &regions.metadata)?;
        Ok(Self {
            storage,
            headers,
            regions,
            metadata,
            creator,
            log_state,
            warnings,
        })
    }
}

/// Checks the first bytes and reads who made the file.
fn read_creator(file: &dyn FileAt) -> Result<String> {
    let len = file
        .len()
        .map_err(|error| Error::io("read file length", error))?;
    let mut bytes = [0; 8 + CREATOR_LEN];
    let there = bytes.len().min(usize::try_from(len).unwrap_or(usize::MAX));
    file.read_at(0, &mut bytes[..there])
        .map_err(|error| Error::io("read", error).of("file identifier").offset(0))?;
    if !is_vhdx(&bytes) {
        return Err(Error::new(ErrorKind::NotVhdx, "no VHDX signature"));
    }
    if len < HEADER_SECTION_LEN {
        return Err(Error::new(ErrorKind::Truncated, "file ends in it").of("header section"));
    }
    let (pairs, _) = bytes[8..].as_chunks::<2>();
    let units: Vec<u16> = pairs
        .iter()
        .map(|pair| u16::from_le_bytes(*pair))
        .take_while(|unit| *unit != 0)
        .collect();
    Ok(String::from_utf16_lossy(&units))
}

/// Images on top of each other, the lowest one counted: what Windows allows, and more than reads
/// that go down one by one should cross.
pub const CHAIN_LEN_MAX: u32 = 64;
/// Entries of a BAT that is looked at as a whole when it is opened, 128 KiB: a disk of 512 GiB at
/// the usual 32 MiB a block.
const SCANNED_SLOTS_MAX: u64 = 1 << 14;
