//! The metadata region (section 2.6): what the virtual disk is.

use std::collections::HashSet;
use std::ops::Range;

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    HAS_PARENT, ITEM_DISK_ID, ITEM_FILE_PARAMETERS, ITEM_IS_REQUIRED, ITEM_IS_USER,
    ITEM_IS_VIRTUAL_DISK, ITEM_LEN_MAX, ITEM_LOGICAL_SECTOR, ITEM_PARENT_LOCATOR,
    ITEM_PHYSICAL_SECTOR, ITEM_VIRTUAL_SIZE, LEAVE_BLOCKS_ALLOCATED, RawMetadataEntry,
    RawMetadataTable, TABLE_ENTRIES_MAX, TABLE_LEN, USER_ITEMS_MAX,
};
use crate::geometry::Geometry;
use crate::image::Kind;
use crate::storage::Storage;

/// What the metadata say, checked.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    pub(crate) geometry: Geometry,
    pub(crate) physical_sector_size: u32,
    pub(crate) disk_id: Uuid,
    pub(crate) kind: Kind,
}

impl Metadata {
    /// Reads the table and the items known here.
    pub(crate) fn read(storage: &Storage, region: &Range<u64>) -> Result<Self> {
        let mut table = vec![0; TABLE_LEN];
        storage
            .read_at(region.start, &mut table)
            .map_err(|error| error.of("metadata table"))?;
        let items = Items::parse(&table, region)
            .map_err(|error| error.of("metadata table").offset(region.start))?;
        let parameters: [u8; 8] = items.read(storage, ITEM_FILE_PARAMETERS, "file parameters")?;
        let [block_size, flags] = [&parameters[..4], &parameters[4..]]
            .map(|half| u32::from_le_bytes(half.try_into().expect("4 bytes")));
        if flags & HAS_PARENT != 0 {
            return Err(Error::unsupported(
                "differencing VHDX: not supported in this release",
            ));
        }
        let size = items.read(storage, ITEM_VIRTUAL_SIZE, "virtual disk size")?;
        let logical = items.read(storage, ITEM_LOGICAL_SECTOR, "logical sector size")?;
        let physical = items.read(storage, ITEM_PHYSICAL_SECTOR, "physical sector size")?;
        let disk_id = items.read(storage, ITEM_DISK_ID, "virtual disk id")?;
        let physical_sector_size = u32::from_le_bytes(physical);
        if !matches!(physical_sector_size, 512 | 4096) {
            return Err(Error::damaged(
                "physical sector size",
                "neither 512 nor 4096",
            ));
        }
        let geometry = Geometry::new(
            u64::from_le_bytes(size),
            block_size,
            u32::from_le_bytes(logical),
        )
        .map_err(|detail| Error::damaged("metadata", detail).offset(region.start))?;
        Ok(Self {
            geometry,
            physical_sector_size,
            disk_id: Uuid::from_bytes_le(disk_id),
            kind: match flags & LEAVE_BLOCKS_ALLOCATED {
                0 => Kind::Dynamic,
                _ => Kind::Fixed,
            },
        })
    }

    /// The start of a metadata region that says this: table and items, in the places where
    /// Windows puts them.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut parameters = [0; 8];
        parameters[..4].copy_from_slice(&self.geometry.block_size().to_le_bytes());
        parameters[4] = u8::from(self.kind == Kind::Fixed);
        let size = self.geometry.virtual_size().to_le_bytes();
        let logical = self.geometry.sector_size().to_le_bytes();
        let physical = self.physical_sector_size.to_le_bytes();
        let disk_id = self.disk_id.to_bytes_le();
        let of_disk = ITEM_IS_VIRTUAL_DISK | ITEM_IS_REQUIRED;
        let items: [(Uuid, u32, &[u8]); 5] = [
            (ITEM_FILE_PARAMETERS, ITEM_IS_REQUIRED, &parameters),
            (ITEM_VIRTUAL_SIZE, of_disk, &size),
            (ITEM_LOGICAL_SECTOR, of_disk, &logical),
            (ITEM_PHYSICAL_SECTOR, of_disk, &physical),
            (ITEM_DISK_ID, of_disk, &disk_id),
        ];
        let mut bytes = vec![0; TABLE_LEN];
        let head = RawMetadataTable {
            signature: *SIGNATURE,
            reserved: 0.into(),
            entry_count: 5.into(),
            reserved2: [0; 20],
        };
        bytes[..32].copy_from_slice(head.as_bytes());
        for (slot, (guid, flags, content)) in (1_usize..).zip(items) {
            let entry = RawMetadataEntry {
                guid: guid.to_bytes_le(),
                at: u32::try_from(bytes.len())
                    .expect("64 KiB and a little")
                    .into(),
                len: u32::try_from(content.len()).expect("a few bytes").into(),
                flags: flags.into(),
                reserved: 0.into(),
            };
            bytes[slot * 32..(slot + 1) * 32].copy_from_slice(entry.as_bytes());
            bytes.extend_from_slice(content);
        }
        bytes
    }
}

/// Where the system items are in the file.
struct Items(Vec<(Uuid, Range<u64>)>);

impl Items {
    fn parse(table: &[u8], region: &Range<u64>) -> Result<Self> {
        let damaged = |detail| Err(Error::damaged("metadata table", detail));
        let (head, entries) = RawMetadataTable::ref_from_prefix(table).expect("a whole table");
        if head.signature != *SIGNATURE {
            return damaged("wrong signature");
        }
        let count = head.entry_count.get();
        if count > TABLE_ENTRIES_MAX {
            return damaged("too many entries");
        }
        let mut seen = HashSet::new();
        let mut ranges = Vec::new();
        let mut items = Vec::new();
        for entry in entries.chunks_exact(32).take(usize::from(count)) {
            let entry = RawMetadataEntry::ref_from_bytes(entry).expect("32 bytes");
            let guid = Uuid::from_bytes_le(entry.guid);
            let is_user = entry.flags.get() & ITEM_IS_USER != 0;
            if !seen.insert((guid, is_user)) {
                return damaged("one item twice");
            }
            let range = item_range(entry, region)?;
            if is_known(guid) && !is_user {
                items.push((guid, range.clone()));
            } else if entry.flags.get() & ITEM_IS_REQUIRED != 0 {
                return Err(Error::unsupported(format!(
                    "required item {guid} is not known"
                )));
            }
            if !range.is_empty() {
                ranges.push(range);
            }
        }
        if seen.iter().filter(|(_, is_user)| *is_user).count() > USER_ITEMS_MAX {
            return damaged("too many user items");
        }
        ranges.sort_by_key(|range| range.start);
        if ranges.windows(2).any(|pair| pair[0].end > pair[1].start) {
            return damaged("items overlap");
        }
        Ok(Self(items))
    }

    /// The content of an item that has to be there with exactly `N` bytes.
    fn read<const N: usize>(
        &self,
        storage: &Storage,
        guid: Uuid,
        name: &'static str,
    ) -> Result<[u8; N]> {
        let Some((_, range)) = self.0.iter().find(|(known, _)| *known == guid) else {
            return Err(Error::damaged(name, "missing"));
        };
        if range.end - range.start != N as u64 {
            return Err(Error::new(ErrorKind::Damaged, "wrong length").of(name));
        }
        let mut bytes = [0; N];
        storage
            .read_at(range.start, &mut bytes)
            .map_err(|error| error.of(name))?;
        Ok(bytes)
    }
}

/// Where the item lies in the file; empty for an item without content.
fn item_range(entry: &RawMetadataEntry, region: &Range<u64>) -> Result<Range<u64>> {
    let (at, len) = (u64::from(entry.at.get()), u64::from(entry.len.get()));
    if len == 0 {
        return Ok(region.start..region.start);
    }
    let inside = at >= TABLE_LEN as u64 && at + len <= region.end - region.start;
    if !inside || len > u64::from(ITEM_LEN_MAX) {
        return Err(Error::new(
            ErrorKind::Damaged,
            "item lies outside of the region",
        ));
    }
    // The sum stays below the end of the region, which was computed without overflow.
    Ok(region.start + at..region.start + at + len)
}

pub(crate) fn is_known(guid: Uuid) -> bool {
    matches!(
        guid,
        ITEM_FILE_PARAMETERS
            | ITEM_VIRTUAL_SIZE
            | ITEM_DISK_ID
            | ITEM_LOGICAL_SECTOR
            | ITEM_PHYSICAL_SECTOR
            | ITEM_PARENT_LOCATOR
    )
}

pub(crate) const SIGNATURE: &[u8; 8] = b"metadata";
