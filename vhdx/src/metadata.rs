//! The metadata region (section 2.6): what the virtual disk is, and where its parent may be.

use std::collections::HashSet;
use std::ops::Range;

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    HAS_PARENT, ITEM_DISK_ID, ITEM_FILE_PARAMETERS, ITEM_IS_REQUIRED, ITEM_IS_USER,
    ITEM_IS_VIRTUAL_DISK, ITEM_LEN_MAX, ITEM_LOGICAL_SECTOR, ITEM_PARENT_LOCATOR,
    ITEM_PHYSICAL_SECTOR, ITEM_VIRTUAL_SIZE, LEAVE_BLOCKS_ALLOCATED, RawMetadataEntry,
    RawMetadataTable, TABLE_ENTRIES_MAX, TABLE_LEN, USER_ITEMS_MAX, to_usize,
};
use crate::geometry::Geometry;
use crate::image::Kind;
use crate::locator::ParentLocator;
use crate::storage::Storage;

/// What the metadata say, checked.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    pub(crate) geometry: Geometry,
    pub(crate) physical_sector_size: u32,
    pub(crate) disk_id: Uuid,
    pub(crate) kind: Kind,
    /// There exactly when the image is a differencing one.
    pub(crate) locator: Option<ParentLocator>,
    /// Items that belong to the virtual disk and mean nothing here; a child gets copies.
    pub(crate) others: Vec<OtherItem>,
}

/// A metadata item that is passed on unread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OtherItem {
    guid: Uuid,
    flags: u32,
    content: Vec<u8>,
}

impl Metadata {
    /// Reads the table and the items known here.
    pub(crate) fn read(storage: &Storage, region: &Range<u64>) -> Result<Self> {
        let items = Items::read(storage, region)?;
        let parameters: [u8; 8] =
            items.content(storage, ITEM_FILE_PARAMETERS, "file parameters")?;
        let [block_size, flags] = [&parameters[..4], &parameters[4..]]
            .map(|half| u32::from_le_bytes(half.try_into().expect("4 bytes")));
        let locator = match flags & HAS_PARENT {
            0 => None,
            _ => Some(items.read_locator(storage)?),
        };
        let size = items.content(storage, ITEM_VIRTUAL_SIZE, "virtual disk size")?;
        let logical = items.content(storage, ITEM_LOGICAL_SECTOR, "logical sector size")?;
        let physical = items.content(storage, ITEM_PHYSICAL_SECTOR, "physical sector size")?;
        let disk_id = items.content(storage, ITEM_DISK_ID, "virtual disk id")?;
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
        let kind = match (&locator, flags & LEAVE_BLOCKS_ALLOCATED) {
            (Some(_), _) => Kind::Differencing,
            (None, 0) => Kind::Dynamic,
            (None, _) => Kind::Fixed,
        };
        let geometry = match kind {
            Kind::Differencing => geometry.with_bitmaps(),
            Kind::Fixed | Kind::Dynamic => geometry,
        };
        Ok(Self {
            geometry,
            physical_sector_size,
            disk_id: Uuid::from_bytes_le(disk_id),
            kind,
            locator,
            others: Vec::new(),
        })
    }

    /// The items of the virtual disk that mean nothing here.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when they are longer than [`OTHERS_LEN_MAX`] together.
    pub(crate) fn read_others(storage: &Storage, region: &Range<u64>) -> Result<Vec<OtherItem>> {
        let items = Items::read(storage, region)?;
        let others = items.0.iter().filter(|item| {
            item.flags & ITEM_IS_VIRTUAL_DISK != 0 && (item.is_user() || !is_known(item.guid))
        });
        let mut read = Vec::new();
        let mut left = OTHERS_LEN_MAX;
        for item in others {
            if read.len() >= OTHERS_MAX {
                return Err(Error::unsupported(
                    "more metadata than is copied to a child",
                ));
            }
            left = left
                .checked_sub(item.range.end - item.range.start)
                .ok_or_else(|| Error::unsupported("more metadata than is copied to a child"))?;
            read.push(OtherItem {
                guid: item.guid,
                flags: item.flags,
                content: item.bytes(storage)?,
            });
        }
        Ok(read)
    }

    /// The start of a metadata region that says this: table and items, in the places where
    /// Windows puts them.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut parameters = [0; 8];
        parameters[..4].copy_from_slice(&self.geometry.block_size().to_le_bytes());
        parameters[4..].copy_from_slice(&match self.kind {
            Kind::Dynamic => [0; 4],
            Kind::Fixed => LEAVE_BLOCKS_ALLOCATED.to_le_bytes(),
            Kind::Differencing => HAS_PARENT.to_le_bytes(),
        });
        let size = self.geometry.virtual_size().to_le_bytes();
        let logical = self.geometry.sector_size().to_le_bytes();
        let physical = self.physical_sector_size.to_le_bytes();
        let disk_id = self.disk_id.to_bytes_le();
        let locator = self.locator.as_ref().map(ParentLocator::encode);
        let of_disk = ITEM_IS_VIRTUAL_DISK | ITEM_IS_REQUIRED;
        let mut items: Vec<(Uuid, u32, &[u8])> = vec![
            (ITEM_FILE_PARAMETERS, ITEM_IS_REQUIRED, &parameters),
            (ITEM_VIRTUAL_SIZE, of_disk, &size),
            (ITEM_LOGICAL_SECTOR, of_disk, &logical),
            (ITEM_PHYSICAL_SECTOR, of_disk, &physical),
            (ITEM_DISK_ID, of_disk, &disk_id),
        ];
        if let Some(locator) = &locator {
            items.push((ITEM_PARENT_LOCATOR, ITEM_IS_REQUIRED, locator));
        }
        for other in &self.others {
            items.push((other.guid, other.flags, &other.content));
        }
        let mut bytes = vec![0; TABLE_LEN];
        let head = RawMetadataTable {
            signature: *SIGNATURE,
            reserved: 0.into(),
            entry_count: u16::try_from(items.len())
                .expect("as many as a table has")
                .into(),
            reserved2: [0; 20],
        };
        bytes[..32].copy_from_slice(head.as_bytes());
        for (slot, (guid, flags, content)) in (1_usize..).zip(items) {
            let entry = raw_entry(guid, flags, bytes.len(), content.len());
            bytes[slot * 32..(slot + 1) * 32].copy_from_slice(entry.as_bytes());
            bytes.extend_from_slice(content);
        }
        bytes
    }
}

/// What to write where, as bytes of the file, so that an image has another parent locator: the
/// item in place when it has the same length, else behind all others, with its entry.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when there is no room.
pub(crate) fn replace_locator(
    storage: &Storage,
    region: &Range<u64>,
    locator: &ParentLocator,
) -> Result<Vec<(u64, Vec<u8>)>> {
    let items = Items::read(storage, region)?;
    let found = items
        .0
        .iter()
        .find(|item| item.guid == ITEM_PARENT_LOCATOR && !item.is_user())
        .ok_or_else(|| Error::damaged("parent locator", "missing"))?;
    let bytes = locator.encode();
    let len = bytes.len() as u64;
    // A key more can be one too many: what cannot be read again is not written.
    if ParentLocator::parse(&bytes).is_err() {
        return Err(Error::unsupported(
            "no room for another key in the parent locator",
        ));
    }
    if len == found.range.end - found.range.start {
        return Ok(vec![(found.range.start, bytes)]);
    }
    let ends = items.0.iter().map(|item| item.range.end);
    let at = ends
        .fold(region.start + TABLE_LEN as u64, u64::max)
        .next_multiple_of(8);
    if len > LOCATOR_LEN_MAX || at + len > region.end.min(storage.len()) {
        return Err(Error::unsupported("no room for a longer parent locator"));
    }
    let entry = raw_entry(
        found.guid,
        found.flags,
        to_usize(at - region.start),
        bytes.len(),
    );
    Ok(vec![
        (at, bytes),
        (found.entry_at, entry.as_bytes().to_vec()),
    ])
}

fn raw_entry(guid: Uuid, flags: u32, at: usize, len: usize) -> RawMetadataEntry {
    RawMetadataEntry {
        guid: guid.to_bytes_le(),
        at: match len {
            0 => 0.into(),
            _ => u32::try_from(at).expect("a place in the region").into(),
        },
        len: u32::try_from(len).expect("at most ITEM_LEN_MAX").into(),
        flags: flags.into(),
        reserved: 0.into(),
    }
}

/// One entry of the metadata table.
struct Item {
    guid: Uuid,
    flags: u32,
    /// Bytes of the file; empty for an item without content.
    range: Range<u64>,
    /// Byte offset in the file of the entry itself.
    entry_at: u64,
}

impl Item {
    fn is_user(&self) -> bool {
        self.flags & ITEM_IS_USER != 0
    }

    fn bytes(&self, storage: &Storage) -> Result<Vec<u8>> {
        let mut bytes = vec![0; to_usize(self.range.end - self.range.start)];
        storage
            .read_at(self.range.start, &mut bytes)
            .map_err(|error| error.of("metadata item"))?;
        Ok(bytes)
    }
}

/// All items, known or not.
struct Items(Vec<Item>);

impl Items {
    fn read(storage: &Storage, region: &Range<u64>) -> Result<Self> {
        let mut table = vec![0; TABLE_LEN];
        storage
            .read_at(region.start, &mut table)
            .map_err(|error| error.of("metadata table"))?;
        Self::parse(&table, region).map_err(|error| error.of("metadata table").offset(region.start))
    }

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
        let mut items = Vec::new();
        let places = (region.start + 32..).step_by(32);
        for (entry_at, entry) in places.zip(entries.chunks_exact(32).take(usize::from(count))) {
            let entry = RawMetadataEntry::ref_from_bytes(entry).expect("32 bytes");
            let item = Item {
                guid: Uuid::from_bytes_le(entry.guid),
                flags: entry.flags.get(),
                range: item_range(entry, region)?,
                entry_at,
            };
            if !seen.insert((item.guid, item.is_user())) {
                return damaged("one item twice");
            }
            let is_known = is_known(item.guid) && !item.is_user();
            if !is_known && item.flags & ITEM_IS_REQUIRED != 0 {
                return Err(Error::unsupported(format!(
                    "required item {} is not known",
                    item.guid
                )));
            }
            items.push(item);
        }
        if items.iter().filter(|item| item.is_user()).count() > USER_ITEMS_MAX {
            return damaged("too many user items");
        }
        let mut ranges: Vec<Range<u64>> = items.iter().map(|item| item.range.clone()).collect();
        ranges.retain(|range| !range.is_empty());
        ranges.sort_by_key(|range| range.start);
        if ranges.windows(2).any(|pair| pair[0].end > pair[1].start) {
            return damaged("items overlap");
        }
        Ok(Self(items))
    }

    fn find(&self, guid: Uuid, name: &'static str) -> Result<&Item> {
        let found = self
            .0
            .iter()
            .find(|item| item.guid == guid && !item.is_user());
        found.ok_or_else(|| Error::damaged(name, "missing"))
    }

    /// The content of an item that has to be there with exactly `N` bytes.
    fn content<const N: usize>(
        &self,
        storage: &Storage,
        guid: Uuid,
        name: &'static str,
    ) -> Result<[u8; N]> {
        let range = &self.find(guid, name)?.range;
        if range.end - range.start != N as u64 {
            return Err(Error::new(ErrorKind::Damaged, "wrong length").of(name));
        }
        let mut bytes = [0; N];
        storage
            .read_at(range.start, &mut bytes)
            .map_err(|error| error.of(name))?;
        Ok(bytes)
    }

    fn read_locator(&self, storage: &Storage) -> Result<ParentLocator> {
        let item = self.find(ITEM_PARENT_LOCATOR, "parent locator")?;
        ParentLocator::parse(&item.bytes(storage)?)
            .map_err(|error| error.of("parent locator").offset(item.range.start))
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
/// Bytes of items that mean nothing here and are copied to a child: what fits behind the table of
/// a new image beside a locator.
const OTHERS_LEN_MAX: u64 = 512 << 10;
/// Such items.
const OTHERS_MAX: usize = 1024;
/// Bytes of a locator written anew: with the entry's page it fits one log entry.
const LOCATOR_LEN_MAX: u64 = 256 << 10;
