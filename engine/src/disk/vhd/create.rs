//! Making a new VHD.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use failback_vhdx::FileAt;
use uuid::Uuid;

use super::footer::{FOOTER_LEN, Footer, NewFooter, VhdKind};
use super::geometry::Layout;
use super::header::{HEADER_LEN, Header, Locator, PARENT_NAME_MAX};
use super::image::VhdImage;
use super::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, BLOCKS_MAX, NEW_DISK_LEN_MAX, SECTOR};
use crate::error::{Error, ErrorKind, Result};

/// What a new image should be.
#[derive(Clone, Copy, Debug)]
pub struct CreateOptions {
    /// Bytes of the disk: a multiple of 512, at most 2040 GiB.
    pub len: u64,
    /// Whether the file holds the whole disk at once.
    pub is_fixed: bool,
    /// Bytes of a block, a power of two from 4 KiB to 256 MiB; 2 MiB by default. A fixed disk has
    /// no blocks and ignores it.
    pub block_size: Option<u32>,
    /// Id by which children will know it; a new one by default.
    pub unique_id: Option<Uuid>,
}

impl CreateOptions {
    /// A disk of `len` bytes with defaults for the rest.
    #[must_use]
    pub fn new(len: u64, is_fixed: bool) -> Self {
        Self {
            len,
            is_fixed,
            block_size: None,
            unique_id: None,
        }
    }
}

/// How a child calls its parent.
#[derive(Clone, Copy, Debug)]
pub struct ParentNames<'a> {
    /// Path from the folder of the child, as Windows writes it: `.\parent.vhd`.
    pub relative: &'a str,
    /// Path on the machine that will use the child: `C:\disks\parent.vhd`.
    pub absolute: Option<&'a str>,
}

impl VhdImage {
    /// Makes a fixed or dynamic image in an empty file and opens it for writing; all of it reads
    /// zero. The space of a fixed disk is really taken from the file system.
    ///
    /// # Errors
    /// `Usage` for sizes that a VHD cannot have, before anything is written; `NoSpace`, `Io`.
    pub fn create(file: Arc<dyn FileAt>, options: &CreateOptions) -> Result<Self> {
        check_len(options.len)?;
        let unique_id = options.unique_id.unwrap_or_else(Uuid::new_v4);
        if options.is_fixed {
            let footer = footer(VhdKind::Fixed, options.len, unique_id);
            write_fixed(file.as_ref(), options.len, &footer)?;
        } else {
            let header = header(options.len, options.block_size)?;
            let footer = footer(VhdKind::Dynamic, options.len, unique_id);
            write_sparse(file.as_ref(), &footer, &header, &[], &[])?;
        }
        Self::open_rw(file)
    }

    /// Makes a differencing image over `parent` in an empty file and opens it for writing; it
    /// reads as its parent does. The parent must not be changed from now on.
    ///
    /// # Errors
    /// As [`VhdImage::create`]; `Usage` for names too long to be stored.
    pub fn create_child(
        file: Arc<dyn FileAt>,
        parent: Arc<Self>,
        names: ParentNames<'_>,
        block_size: Option<u32>,
    ) -> Result<Self> {
        check_len(parent.virtual_size())?;
        let utf16 = |text: &str| text.encode_utf16().collect::<Vec<u16>>();
        let name = utf16(names.absolute.unwrap_or(names.relative));
        if name.len() > PARENT_NAME_MAX {
            let message = format!("the name of the parent has more than {PARENT_NAME_MAX} units");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let absolute = names.absolute.map(|path| (*b"W2ku", path));
        let paths = absolute.into_iter().chain([(*b"W2ru", names.relative)]);
        let mut header = Header {
            parent_id: parent.unique_id(),
            ..header(parent.virtual_size(), block_size)?
        };
        let mut texts = Vec::new();
        let mut at = (header.table_at + header.table_len()).next_multiple_of(SECTOR);
        for (code, path) in paths {
            let text: Vec<u8> = utf16(path).iter().flat_map(|u| u.to_le_bytes()).collect();
            let space = text.len().next_multiple_of(FOOTER_LEN);
            let number = |len: usize| u32::try_from(len).expect("names are short");
            header.locators.push(Locator {
                code,
                space: number(space),
                len: number(text.len()),
                at,
            });
            at += space as u64;
            texts.push(text);
        }
        let len = parent.virtual_size();
        let footer = footer(VhdKind::Differencing, len, Uuid::new_v4());
        write_sparse(file.as_ref(), &footer, &header, &name, &texts)?;
        Self::open_child_rw(file, parent)
    }
}

fn check_len(len: u64) -> Result<()> {
    if len == 0 || !len.is_multiple_of(SECTOR) {
        let message = format!("a VHD has whole sectors of 512 bytes, not {len} bytes");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    if len > NEW_DISK_LEN_MAX {
        let message = format!("{len} bytes are more than the 2040 GiB a VHD can have");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(())
}

fn header(len: u64, block_size: Option<u32>) -> Result<Header> {
    let block_size = block_size.unwrap_or(BLOCK_SIZE_DEFAULT);
    let is_in_range = (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size);
    if !block_size.is_power_of_two() || !is_in_range {
        let message =
            format!("a block of {block_size} bytes is not a power of two from 4 KiB to 256 MiB");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let entry_count = u32::try_from(Layout { len, block_size }.block_count()).ok();
    let entry_count = entry_count.filter(|count| *count <= BLOCKS_MAX);
    let entry_count = entry_count.ok_or_else(|| {
        let message = format!("a disk of {len} bytes wants blocks larger than {block_size} bytes");
        Error::new(ErrorKind::Usage, message)
    })?;
    Ok(Header {
        at: HEADER_AT,
        table_at: HEADER_AT + HEADER_LEN as u64,
        entry_count,
        block_size,
        parent_id: Uuid::nil(),
        // As Windows 10 leaves it: tools disagree on whether it is of the footer or of the file,
        // and refuse a parent over it.
        parent_timestamp: 0,
        parent_name: String::new(),
        locators: Vec::new(),
    })
}

fn footer(kind: VhdKind, len: u64, unique_id: Uuid) -> Footer {
    let now = SystemTime::now().duration_since(UNIX_EPOCH + SINCE);
    Footer::new(&NewFooter {
        kind,
        len,
        timestamp: now.map_or(0, |now| u32::try_from(now.as_secs()).unwrap_or(u32::MAX)),
        unique_id,
    })
}

fn write_fixed(file: &dyn FileAt, len: u64, footer: &Footer) -> Result<()> {
    file.set_len(len + FOOTER_LEN as u64)
        .map_err(|e| Error::io(e, "set length"))?;
    file.allocate(0..len)
        .map_err(|e| Error::io(e, "take the space of a fixed disk"))?;
    write(file, len, footer.bytes())?;
    sync(file)
}

/// One barrier is enough: what a crash leaves before it lacks a footer, the header or a part of the
/// table, and is refused; or it is whole.
fn write_sparse(
    file: &dyn FileAt,
    footer: &Footer,
    header: &Header,
    parent_name: &[u16],
    texts: &[Vec<u8>],
) -> Result<()> {
    write(file, header.at, &header.to_bytes(parent_name))?;
    let table_end = (header.table_at + header.table_len()).next_multiple_of(SECTOR);
    let mut end = table_end;
    for (locator, text) in header.locators.iter().zip(texts) {
        write(file, locator.at, text)?;
        end = locator.at + u64::from(locator.space);
    }
    let unused = vec![0xff; UNUSED_PIECE];
    let mut at = header.table_at;
    while at < table_end {
        let len = usize::try_from((table_end - at).min(UNUSED_PIECE as u64)).expect("a piece");
        write(file, at, &unused[..len])?;
        at += len as u64;
    }
    file.set_len(end + FOOTER_LEN as u64)
        .map_err(|e| Error::io(e, "set length"))?;
    write(file, 0, footer.bytes())?;
    write(file, end, footer.bytes())?;
    sync(file)
}

fn write(file: &dyn FileAt, at: u64, bytes: &[u8]) -> Result<()> {
    let written = file.write_at(at, bytes);
    written.map_err(|e| Error::io(e, "write").at(at))
}

fn sync(file: &dyn FileAt) -> Result<()> {
    file.sync().map_err(|e| Error::io(e, "flush"))
}

/// What Windows and QEMU take.
const BLOCK_SIZE_DEFAULT: u32 = 2 << 20;
/// The header follows the copy of the footer.
const HEADER_AT: u64 = SECTOR;
/// 2000-01-01 UTC after 1970-01-01.
const SINCE: Duration = Duration::from_secs(946_684_800);
/// Bytes of an empty block table that are written at once.
const UNUSED_PIECE: usize = 1 << 20;
