//! The header of images that have a block table, and where it says their parent is.

use failback_vhdx::{FileAt, Finding};
use uuid::Uuid;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::check;
use super::footer::checksum;
use super::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, BLOCKS_MAX, NO_OFFSET, SECTOR};
use crate::error::one_line;

/// A header whose sum is right and whose fields keep the limits.
#[derive(Clone, Debug)]
pub(super) struct Header {
    /// Where it lies in the file.
    pub(super) at: u64,
    /// Where the block table lies in the file.
    pub(super) table_at: u64,
    /// Entries of the block table, at most `BLOCKS_MAX`.
    pub(super) entry_count: u32,
    /// Bytes of a block: a power of two in `BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX`.
    pub(super) block_size: u32,
    pub(super) parent_id: Uuid,
    /// Seconds since 2000; 0 where the maker of the image did not care, as Windows 10 does not.
    pub(super) parent_timestamp: u32,
    /// Foreign text, control characters escaped.
    pub(super) parent_name: String,
    pub(super) locators: Vec<Locator>,
}

/// One of the up to eight places that may tell where the parent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Locator {
    /// `W2ru`: relative path, `W2ku`: absolute path; others are of old Macintoshes.
    pub(super) code: [u8; 4],
    /// Bytes reserved for it. The specification says sectors, Windows writes bytes.
    pub(super) space: u32,
    /// Bytes of its text.
    pub(super) len: u32,
    /// Where its text lies in the file.
    pub(super) at: u64,
}

impl Header {
    /// Reads the header of 1024 bytes that lies at `at`. What is wrong goes to `findings`; `None`
    /// when one of them is an error.
    pub(super) fn parse(
        bytes: &[u8; HEADER_LEN],
        at: u64,
        findings: &mut Vec<Finding>,
    ) -> Option<Self> {
        let raw = RawHeader::ref_from_bytes(bytes).expect("the length is that of the struct");
        let first = findings.len();
        raw.find_errors(at, findings);
        if findings.len() > first {
            return None;
        }
        if raw.data_offset.get() != NO_OFFSET || raw.reserved_end.iter().any(|byte| *byte != 0) {
            let detail = "data offset is not all ones, or reserved bytes are not zero";
            findings.push(check::warning(STRUCTURE, at, "header-reserved", detail));
        }
        let locators = raw.locators.iter().filter(|locator| locator.code != [0; 4]);
        Some(Self {
            at,
            table_at: raw.table_at.get(),
            entry_count: raw.entry_count.get(),
            block_size: raw.block_size.get(),
            parent_id: Uuid::from_bytes(raw.parent_id),
            parent_timestamp: raw.parent_timestamp.get(),
            parent_name: shown(&raw.parent_name, u16::from_be_bytes),
            locators: locators
                .map(|locator| Locator {
                    code: locator.code,
                    space: locator.space.get(),
                    len: locator.len.get(),
                    at: locator.at.get(),
                })
                .collect(),
        })
    }

    /// The bytes on disk of a new header; the name of the parent is UTF-16.
    pub(super) fn to_bytes(&self, parent_name: &[u16]) -> [u8; HEADER_LEN] {
        let mut raw = RawHeader::new_zeroed();
        raw.cookie = *COOKIE;
        raw.data_offset = U64::new(NO_OFFSET);
        raw.table_at = U64::new(self.table_at);
        raw.version = U32::new(VERSION);
        raw.entry_count = U32::new(self.entry_count);
        raw.block_size = U32::new(self.block_size);
        raw.parent_id = *self.parent_id.as_bytes();
        raw.parent_timestamp = U32::new(self.parent_timestamp);
        for (place, unit) in raw.parent_name.chunks_exact_mut(2).zip(parent_name) {
            place.copy_from_slice(&unit.to_be_bytes());
        }
        for (place, locator) in raw.locators.iter_mut().zip(&self.locators) {
            place.code = locator.code;
            place.space = U32::new(locator.space);
            place.len = U32::new(locator.len);
            place.at = U64::new(locator.at);
        }
        raw.checksum = U32::new(checksum(raw.as_bytes(), CHECKSUM_AT));
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Bytes of the block table, without what fills its last sector.
    pub(super) fn table_len(&self) -> u64 {
        u64::from(self.entry_count) * 4
    }
}

impl Locator {
    /// The text as something that can be shown: code, path. `None` when it cannot be read or is no
    /// path of Windows.
    pub(super) fn text(&self, file: &dyn FileAt) -> Option<String> {
        if !matches!(&self.code, b"W2ru" | b"W2ku") || self.len > LOCATOR_LEN_MAX {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(self.len).ok()?];
        file.read_at(self.at, &mut bytes).ok()?;
        Some(shown(&bytes, u16::from_le_bytes))
    }
}

/// UTF-16 up to the first zero, made fit to be shown.
fn shown(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes
        .chunks_exact(2)
        .map(|pair| unit([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0);
    let text: String = char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    one_line(&text)
}

/// 1024 bytes, big-endian; drawn in docs/formats.md.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawHeader {
    cookie: [u8; 8],
    /// All ones: nothing further is defined.
    data_offset: U64,
    table_at: U64,
    version: U32,
    entry_count: U32,
    block_size: U32,
    checksum: U32,
    parent_id: [u8; 16],
    parent_timestamp: U32,
    reserved: U32,
    /// UTF-16, big-endian.
    parent_name: [u8; 512],
    locators: [RawLocator; 8],
    reserved_end: [u8; 256],
}

/// 24 bytes, big-endian.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawLocator {
    code: [u8; 4],
    space: U32,
    len: U32,
    reserved: U32,
    at: U64,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);
const _: () = assert!(size_of::<RawLocator>() == 24);

impl RawHeader {
    fn find_errors(&self, at: u64, findings: &mut Vec<Finding>) {
        let mut error = |rule, detail: String| {
            findings.push(check::error(STRUCTURE, at, rule, detail));
        };
        if self.cookie != *COOKIE {
            let detail = "does not begin with the magic `cxsparse`".into();
            return error("header-signature", detail);
        }
        let (found, expected) = (self.checksum.get(), checksum(self.as_bytes(), CHECKSUM_AT));
        if found != expected {
            let detail = format!("sum is {found:#010x}, its bytes give {expected:#010x}");
            error("header-checksum", detail);
        }
        if self.version.get() >> 16 != VERSION >> 16 {
            let detail = format!("version {:#010x} is unknown", self.version.get());
            error("header-version", detail);
        }
        let block_size = self.block_size.get();
        if !block_size.is_power_of_two() {
            let detail = format!("a block of {block_size} bytes is no power of two");
            error("block-size", detail);
        } else if !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size) {
            let detail = format!("a block of {block_size} bytes; 4 KiB to 256 MiB are supported");
            error("block-size-beyond-limit", detail);
        }
        let count = self.entry_count.get();
        if count > BLOCKS_MAX {
            let detail = format!("a table of {count} blocks; {BLOCKS_MAX} are supported");
            error("table-beyond-limit", detail);
        }
        let table_at = self.table_at.get();
        if table_at < SECTOR || table_at.checked_add(u64::from(count) * 4).is_none() {
            let detail = format!("the block table cannot lie at {table_at:#x}");
            error("table-place", detail);
        }
    }
}

/// Bytes of the header.
pub(super) const HEADER_LEN: usize = 1024;
/// UTF-16 units that the name of the parent can have.
pub(super) const PARENT_NAME_MAX: usize = 255;
const STRUCTURE: &str = "header";
const COOKIE: &[u8; 8] = b"cxsparse";
const CHECKSUM_AT: usize = 36;
const VERSION: u32 = 0x0001_0000;
/// Bytes of a path that are still read to be shown: 32,767 UTF-16 units, what Windows allows.
const LOCATOR_LEN_MAX: u32 = 65_534;
