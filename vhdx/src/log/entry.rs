//! One log entry (section 2.3.1): its arithmetic, its descriptors, and how it is written.

use std::ops::Range;

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Result};
use crate::format::{
    FILE_LEN_MAX, PAGE, PAGE_LEN, REGION_TABLES_AT, RawDataSector, RawDescriptor, RawLogHeader,
    seal, to_usize,
};

/// The header of an entry whose own arithmetic is right; the rest of it is not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryHeader {
    /// Bytes, a positive multiple of 4 KiB up to the length of the log.
    pub(crate) len: u64,
    /// Byte offset in the log, a multiple of 4 KiB below its length.
    pub(crate) tail: u64,
    /// Greater than 0.
    pub(crate) sequence: u64,
    pub(crate) descriptor_count: u64,
    pub(crate) checksum: u32,
    pub(crate) flushed_file_len: u64,
    pub(crate) last_file_len: u64,
}

impl EntryHeader {
    /// The header in these 64 bytes, if it can be one of a log with this GUID and length.
    pub(crate) fn parse(bytes: &[u8], log_guid: Uuid, log_len: u64) -> Option<Self> {
        let (raw, _) = RawLogHeader::ref_from_prefix(bytes).ok()?;
        if raw.signature != *ENTRY || Uuid::from_bytes_le(raw.log_guid) != log_guid {
            return None;
        }
        let header = Self {
            len: raw.entry_len.get().into(),
            tail: raw.tail.get().into(),
            sequence: raw.sequence.get(),
            descriptor_count: raw.descriptor_count.get().into(),
            checksum: raw.checksum.get(),
            flushed_file_len: raw.flushed_file_len.get(),
            last_file_len: raw.last_file_len.get(),
        };
        let sizes_fit = header.len.is_multiple_of(PAGE)
            && (header.descriptor_sectors() * PAGE..=log_len).contains(&header.len)
            && header.tail.is_multiple_of(PAGE)
            && header.tail < log_len;
        (sizes_fit && header.sequence > 0).then_some(header)
    }

    /// 4 KiB sectors that header and descriptors take.
    pub(crate) fn descriptor_sectors(&self) -> u64 {
        descriptor_sectors(self.descriptor_count)
    }

    /// 4 KiB sectors that pages take; one for each page descriptor.
    pub(crate) fn data_sectors(&self) -> u64 {
        self.len / PAGE - self.descriptor_sectors()
    }
}

/// What a descriptor asks for.
#[derive(Clone, Debug)]
pub(crate) enum Descriptor {
    /// Zeros over this range of the file.
    Zeros(Range<u64>),
    /// The next data sector, between these bytes, at this offset of the file.
    Page {
        at: u64,
        leading: [u8; 8],
        trailing: [u8; 4],
    },
}

impl Descriptor {
    /// `None` when the bytes are no descriptor of the entry with this sequence number.
    pub(crate) fn parse(bytes: &[u8], sequence: u64) -> Option<Self> {
        let raw = RawDescriptor::ref_from_bytes(bytes).ok()?;
        let at = raw.at.get();
        if raw.sequence.get() != sequence || !at.is_multiple_of(PAGE) {
            return None;
        }
        match &raw.signature {
            ZERO => {
                let len = u64::from_le_bytes(raw.leading);
                let end = at.checked_add(len)?;
                len.is_multiple_of(PAGE).then_some(Self::Zeros(at..end))
            }
            PAGE_DESCRIPTOR => Some(Self::Page {
                at,
                leading: raw.leading,
                trailing: raw.trailing,
            }),
            _ => None,
        }
    }

    /// Whether it may be done: not to the headers, not to the log, not far behind any file.
    pub(crate) fn check(&self, log: &Range<u64>) -> Result<()> {
        let range = match self {
            Self::Zeros(range) => range.clone(),
            Self::Page { at, .. } => *at..at.saturating_add(PAGE),
        };
        let refused = |detail| Err(Error::damaged("log descriptor", detail).offset(range.start));
        if range.start < REGION_TABLES_AT[0] {
            return refused("targets the headers");
        }
        if range.start < log.end && log.start < range.end {
            return refused("targets the log");
        }
        if range.end > FILE_LEN_MAX {
            return refused("targets bytes past any file");
        }
        Ok(())
    }
}

/// The page that a data sector restores, or `None` when it belongs to another entry.
pub(crate) fn restore_page(
    sector: &[u8; PAGE_LEN],
    sequence: u64,
    leading: [u8; 8],
    trailing: [u8; 4],
) -> Option<Box<[u8; PAGE_LEN]>> {
    let raw = RawDataSector::ref_from_bytes(sector).ok()?;
    let found = u64::from(raw.sequence_high.get()) << 32 | u64::from(raw.sequence_low.get());
    if raw.signature != *DATA || found != sequence {
        return None;
    }
    let mut page = Box::new([0; PAGE_LEN]);
    page[..8].copy_from_slice(&leading);
    page[8..PAGE_LEN - 4].copy_from_slice(&raw.middle);
    page[PAGE_LEN - 4..].copy_from_slice(&trailing);
    Some(page)
}

/// What an entry to be written says besides its pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryFields {
    pub(crate) log_guid: Uuid,
    pub(crate) sequence: u64,
    /// Byte offset in the log.
    pub(crate) tail: u64,
    pub(crate) flushed_file_len: u64,
    pub(crate) last_file_len: u64,
}

/// The bytes of an entry that restores these pages, each by its offset in the file.
pub(crate) fn encode(fields: &EntryFields, pages: &[(u64, &[u8; PAGE_LEN])]) -> Vec<u8> {
    let count = pages.len() as u64;
    let head_len = to_usize(descriptor_sectors(count) * PAGE);
    let mut bytes = vec![0; head_len];
    for (slot, (at, page)) in bytes[size_of::<RawLogHeader>()..]
        .chunks_exact_mut(32)
        .zip(pages)
    {
        let raw = RawDescriptor {
            signature: *PAGE_DESCRIPTOR,
            trailing: page[PAGE_LEN - 4..].try_into().expect("4 bytes"),
            leading: page[..8].try_into().expect("8 bytes"),
            at: (*at).into(),
            sequence: fields.sequence.into(),
        };
        slot.copy_from_slice(raw.as_bytes());
    }
    let half = |value: u64| u32::try_from(value & 0xFFFF_FFFF).expect("32 bits").into();
    for (_, page) in pages {
        let raw = RawDataSector {
            signature: *DATA,
            sequence_high: half(fields.sequence >> 32),
            middle: page[8..PAGE_LEN - 4].try_into().expect("4084 bytes"),
            sequence_low: half(fields.sequence),
        };
        bytes.extend_from_slice(raw.as_bytes());
    }
    let raw = RawLogHeader {
        signature: *ENTRY,
        checksum: 0.into(),
        entry_len: half(bytes.len() as u64),
        tail: half(fields.tail),
        sequence: fields.sequence.into(),
        descriptor_count: half(count),
        reserved: 0.into(),
        log_guid: fields.log_guid.to_bytes_le(),
        flushed_file_len: fields.flushed_file_len.into(),
        last_file_len: fields.last_file_len.into(),
    };
    bytes[..size_of::<RawLogHeader>()].copy_from_slice(raw.as_bytes());
    seal(&mut bytes);
    bytes
}

/// Sectors for a header and `count` descriptors: 64 bytes and 32 bytes for each.
fn descriptor_sectors(count: u64) -> u64 {
    (64 + 32 * count).div_ceil(PAGE)
}

const ENTRY: &[u8; 4] = b"loge";
const ZERO: &[u8; 4] = b"zero";
const PAGE_DESCRIPTOR: &[u8; 4] = b"desc";
const DATA: &[u8; 4] = b"data";

#[cfg(test)]
mod tests {
    // Goal: an entry reads back as written. Method: encode two pages, parse each part.
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let page: [u8; PAGE_LEN] = std::array::from_fn(|at| u8::try_from(at % 251).unwrap());
        let fields = EntryFields {
            log_guid: Uuid::from_u128(7),
            sequence: 0x1_2345_6789,
            tail: 8192,
            flushed_file_len: 1,
            last_file_len: 2,
        };
        let bytes = encode(&fields, &[(1 << 20, &page), (2 << 20, &[5; PAGE_LEN])]);
        let header = EntryHeader::parse(&bytes, fields.log_guid, 1 << 20).unwrap();
        assert_eq!((header.len, header.data_sectors()), (3 * PAGE, 2));
        let first = Descriptor::parse(&bytes[64..96], fields.sequence).unwrap();
        let Descriptor::Page {
            at,
            leading,
            trailing,
        } = first
        else {
            panic!("{first:?}")
        };
        let sector: &[u8; PAGE_LEN] = bytes[PAGE_LEN..2 * PAGE_LEN].try_into().unwrap();
        let restored = restore_page(sector, fields.sequence, leading, trailing).unwrap();
        assert_eq!((at, *restored), (1 << 20, page));
    }

    #[test]
    fn sectors_hold_126_then_128_descriptors() {
        assert_eq!(
            [0, 126, 127, 254, 255].map(descriptor_sectors),
            [1, 1, 2, 2, 3]
        );
    }
}
