//! Checks the metadata table and its items (section 2.6).

use std::collections::HashSet;
use std::ops::Range;

use uuid::Uuid;
use zerocopy::FromBytes;

use super::findings::Findings;
use super::view::View;
use crate::error::Result;
use crate::format::{
    BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, HAS_PARENT, ITEM_DISK_ID, ITEM_FILE_PARAMETERS,
    ITEM_IS_REQUIRED, ITEM_IS_USER, ITEM_IS_VIRTUAL_DISK, ITEM_LEN_MAX, ITEM_LOGICAL_SECTOR,
    ITEM_PARENT_LOCATOR, ITEM_PHYSICAL_SECTOR, ITEM_VIRTUAL_SIZE, LEAVE_BLOCKS_ALLOCATED,
    RawMetadataEntry, RawMetadataTable, TABLE_ENTRIES_MAX, TABLE_LEN, USER_ITEMS_MAX,
    VIRTUAL_SIZE_MAX, to_usize,
};
use crate::geometry::Geometry;
use crate::locator::ParentLocator;
use crate::metadata::{SIGNATURE, is_known};

/// What the metadata say of the virtual disk; made only of sizes that can be.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) geometry: Geometry,
    /// `None` when the item is missing.
    pub(super) disk_id: Option<Uuid>,
    pub(super) is_fixed: bool,
    pub(super) has_parent: bool,
    /// The parent locator and its byte offset in the file, when it can be read.
    pub(super) locator: Option<(u64, ParentLocator)>,
}

impl Disk {
    pub(super) fn kind_name(&self) -> &'static str {
        match (self.has_parent, self.is_fixed) {
            (true, _) => "differencing",
            (false, true) => "fixed",
            (false, false) => "dynamic",
        }
    }
}

/// Checks all of it; `None` when the sizes are not known in the end.
pub(super) fn check(
    view: &View<'_>,
    region: &Range<u64>,
    findings: &mut Findings,
) -> Result<Option<Disk>> {
    let mut table = vec![0; TABLE_LEN];
    if !view.read_at(region.start, &mut table)? {
        findings.error(TABLE, region.start, "metadata-truncated", || {
            "the file ends before or in it".to_owned()
        });
        return Ok(None);
    }
    let (head, _) = RawMetadataTable::ref_from_prefix(&table).expect("a whole table");
    if head.signature != *SIGNATURE {
        findings.error(TABLE, region.start, "metadata-signature", || {
            "does not begin with \"metadata\"".to_owned()
        });
        return Ok(None);
    }
    let items = Items::check(&table, region, findings);
    Reader {
        view,
        items,
        region_at: region.start,
        findings,
    }
    .read_disk()
}

/// The known system items, where they lie in the file.
struct Items(Vec<(Uuid, Range<u64>)>);

impl Items {
    fn check(table: &[u8], region: &Range<u64>, findings: &mut Findings) -> Self {
        let (head, entries) = RawMetadataTable::ref_from_prefix(table).expect("a whole table");
        let count = head.entry_count.get();
        if count > TABLE_ENTRIES_MAX {
            findings.error(TABLE, region.start + 10, "metadata-count", || {
                format!("{count} entries")
            });
        }
        if head.reserved.get() != 0 || head.reserved2 != [0; 20] {
            findings.note(TABLE, region.start, "metadata-reserved", || {
                "reserved bytes are not zero".to_owned()
            });
        }
        let mut seen = HashSet::new();
        let mut ranges = Vec::new();
        let mut items = Vec::new();
        let count = usize::from(count.min(TABLE_ENTRIES_MAX));
        let raw = entries.chunks_exact(32).take(count);
        for (at, raw) in (region.start + 32..).step_by(32).zip(raw) {
            let entry = RawMetadataEntry::ref_from_bytes(raw).expect("32 bytes");
            let guid = Uuid::from_bytes_le(entry.guid);
            let is_user = entry.flags.get() & ITEM_IS_USER != 0;
            if !seen.insert((guid, is_user)) {
                findings.error(TABLE, at, "item-duplicate", || {
                    format!("{} is there twice", name_of(guid))
                });
            }
            check_flags(at, guid, entry, findings);
            let Some(range) = check_place(at, guid, entry, region, findings) else {
                continue;
            };
            if is_known(guid) && !is_user && !items.iter().any(|(known, _)| *known == guid) {
                items.push((guid, range.clone()));
            }
            if !range.is_empty() {
                ranges.push((range, at));
            }
        }
        if seen.iter().filter(|(_, is_user)| *is_user).count() > USER_ITEMS_MAX {
            findings.error(TABLE, region.start, "item-user-count", || {
                format!("more than {USER_ITEMS_MAX} user items")
            });
        }
        check_overlaps(ranges, findings);
        Self(items)
    }
}

fn check_flags(at: u64, guid: Uuid, entry: &RawMetadataEntry, findings: &mut Findings) {
    let flags = entry.flags.get();
    let is_user = flags & ITEM_IS_USER != 0;
    let is_required = flags & ITEM_IS_REQUIRED != 0;
    let is_known = is_known(guid) && !is_user;
    if is_required && !is_known {
        findings.error(TABLE, at, "item-unknown-required", || {
            format!("required item {guid} is not known")
        });
    } else if !is_known && !is_user {
        findings.note(TABLE, at, "item-unknown", || {
            format!("item {guid} is not known and left alone")
        });
    } else if is_known && !is_required {
        findings.note(TABLE, at, "item-not-required", || {
            format!("{} is not marked as required", name_of(guid))
        });
    }
    let reserved = !(ITEM_IS_USER | ITEM_IS_VIRTUAL_DISK | ITEM_IS_REQUIRED);
    if flags & reserved != 0 || entry.reserved.get() != 0 {
        findings.warning(TABLE, at, "item-flags", || {
            format!("{} has reserved bits: flags {flags:#x}", name_of(guid))
        });
    }
}

/// Checks where an item lies and gives that; empty for one without content.
fn check_place(
    entry_at: u64,
    guid: Uuid,
    entry: &RawMetadataEntry,
    region: &Range<u64>,
    findings: &mut Findings,
) -> Option<Range<u64>> {
    let (at, len) = (u64::from(entry.at.get()), u64::from(entry.len.get()));
    if len == 0 {
        if at != 0 {
            findings.warning(TABLE, entry_at, "item-empty-with-offset", || {
                format!("{} has no bytes, yet the offset {at:#x}", name_of(guid))
            });
        }
        return Some(region.start..region.start);
    }
    let is_inside = at >= TABLE_LEN as u64 && at + len <= region.end - region.start;
    if !is_inside {
        findings.error(TABLE, entry_at, "item-place", || {
            let name = name_of(guid);
            format!("{name} has {len:#x} bytes at {at:#x}, outside of the region's items")
        });
    }
    if len > u64::from(ITEM_LEN_MAX) {
        findings.error(TABLE, entry_at, "item-too-long", || {
            format!("{} has {len} bytes", name_of(guid))
        });
        return None;
    }
    // Inside of the region, so below its end, which was computed without overflow.
    is_inside.then(|| region.start + at..region.start + at + len)
}

fn check_overlaps(mut ranges: Vec<(Range<u64>, u64)>, findings: &mut Findings) {
    ranges.sort_by_key(|(range, _)| range.start);
    let mut furthest = 0;
    for (range, entry_at) in ranges {
        if range.start < furthest {
            findings.error(TABLE, entry_at, "item-overlap", || {
                format!("item at {:#x} begins inside of another", range.start)
            });
        }
        furthest = furthest.max(range.end);
    }
}

/// Reads the items one by one.
struct Reader<'a, 'f> {
    view: &'a View<'f>,
    items: Items,
    region_at: u64,
    findings: &'a mut Findings,
}

impl Reader<'_, '_> {
    fn read_disk(mut self) -> Result<Option<Disk>> {
        let parameters = self.read::<8>(ITEM_FILE_PARAMETERS)?;
        let size = self.read::<8>(ITEM_VIRTUAL_SIZE)?;
        let logical = self.read::<4>(ITEM_LOGICAL_SECTOR)?;
        let physical = self.read::<4>(ITEM_PHYSICAL_SECTOR)?;
        let disk_id = self.read::<16>(ITEM_DISK_ID)?;
        let logical = logical.map(|(at, bytes)| (at, u32::from_le_bytes(bytes)));
        for (guid, sector) in [
            (ITEM_LOGICAL_SECTOR, logical),
            (
                ITEM_PHYSICAL_SECTOR,
                physical.map(|(at, bytes)| (at, u32::from_le_bytes(bytes))),
            ),
        ] {
            let Some((at, sector)) = sector else { continue };
            if !matches!(sector, 512 | 4096) {
                self.error(guid, at, "sector-size", || {
                    format!("{sector} bytes, neither 512 nor 4096")
                });
            }
        }
        let size = size.map(|(at, bytes)| (at, u64::from_le_bytes(bytes)));
        if let Some((at, size)) = size {
            self.check_size(at, size, logical.map(|(_, sector)| sector));
        }
        let Some((at, parameters)) = parameters else {
            return Ok(None);
        };
        let [block_size, flags] = [&parameters[..4], &parameters[4..]]
            .map(|half| u32::from_le_bytes(half.try_into().expect("4 bytes")));
        self.check_parameters(at, block_size, flags);
        let has_parent = flags & HAS_PARENT != 0;
        let locator = self.read_locator(has_parent)?;
        let (Some((_, size)), Some((_, logical))) = (size, logical) else {
            return Ok(None);
        };
        // What keeps the sizes from making a disk was told with each of them.
        let geometry = Geometry::new(size, block_size, logical).ok();
        Ok(geometry.map(|geometry| Disk {
            geometry,
            disk_id: disk_id.map(|(_, bytes)| Uuid::from_bytes_le(bytes)),
            is_fixed: flags & LEAVE_BLOCKS_ALLOCATED != 0,
            has_parent,
            locator,
        }))
    }

    fn check_size(&mut self, at: u64, size: u64, sector: Option<u32>) {
        if size == 0 || size > VIRTUAL_SIZE_MAX {
            self.error(ITEM_VIRTUAL_SIZE, at, "virtual-size", || {
                format!("{size} bytes, zero or above 64 TiB")
            });
        }
        let sector = sector.filter(|sector| matches!(sector, 512 | 4096));
        if let Some(sector) = sector
            && !size.is_multiple_of(sector.into())
        {
            self.error(ITEM_VIRTUAL_SIZE, at, "virtual-size", || {
                format!("{size} bytes, not whole sectors of {sector}")
            });
        }
    }

    fn check_parameters(&mut self, at: u64, block_size: u32, flags: u32) {
        let sizes = BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX;
        if !block_size.is_power_of_two() || !sizes.contains(&block_size) {
            self.error(ITEM_FILE_PARAMETERS, at, "block-size", || {
                format!("{block_size} bytes, not a power of two from 1 MiB to 256 MiB")
            });
        }
        if flags & !(LEAVE_BLOCKS_ALLOCATED | HAS_PARENT) != 0 {
            let name = name_of(ITEM_FILE_PARAMETERS);
            self.findings
                .warning(name, at + 4, "file-parameters-flags", || {
                    format!("reserved flags {flags:#x}")
                });
        }
    }

    fn read_locator(&mut self, has_parent: bool) -> Result<Option<(u64, ParentLocator)>> {
        let name = name_of(ITEM_PARENT_LOCATOR);
        let Some(range) = self.range_of(ITEM_PARENT_LOCATOR) else {
            if has_parent {
                self.error(
                    ITEM_PARENT_LOCATOR,
                    self.region_at,
                    "locator-missing",
                    || "the image has a parent, but does not say where".to_owned(),
                );
            }
            return Ok(None);
        };
        if !has_parent {
            self.findings
                .warning(name, range.start, "locator-unexpected", || {
                    "the image has no parent, yet says where it is".to_owned()
                });
        }
        let mut bytes = vec![0; to_usize(range.end - range.start)];
        if !self.view.read_at(range.start, &mut bytes)? {
            self.error(ITEM_PARENT_LOCATOR, range.start, "item-truncated", || {
                "the file ends in it".to_owned()
            });
            return Ok(None);
        }
        match ParentLocator::parse(&bytes) {
            Ok(locator) => Ok(Some((range.start, locator))),
            Err(error) => {
                let at = range.start + error.at().unwrap_or(0);
                let severity = match has_parent {
                    true => super::Severity::Error,
                    false => super::Severity::Warning,
                };
                self.findings
                    .add(severity, name, at, "locator", || error.detail().to_owned());
                Ok(None)
            }
        }
    }

    /// Offset in the file and content of an item that has to have exactly `N` bytes.
    fn read<const N: usize>(&mut self, guid: Uuid) -> Result<Option<(u64, [u8; N])>> {
        let Some(range) = self.range_of(guid) else {
            self.error(guid, self.region_at, "item-missing", || {
                "missing, or not where an item can be".to_owned()
            });
            return Ok(None);
        };
        let len = range.end - range.start;
        if len != N as u64 {
            self.error(guid, range.start, "item-length", || {
                format!("has {len} bytes instead of {N}")
            });
            return Ok(None);
        }
        let mut bytes = [0; N];
        if !self.view.read_at(range.start, &mut bytes)? {
            self.error(guid, range.start, "item-truncated", || {
                "the file ends before or in it".to_owned()
            });
            return Ok(None);
        }
        Ok(Some((range.start, bytes)))
    }

    fn range_of(&self, guid: Uuid) -> Option<Range<u64>> {
        let found = self.items.0.iter().find(|(known, _)| *known == guid);
        found.map(|(_, range)| range.clone())
    }

    fn error(&mut self, guid: Uuid, at: u64, rule: &'static str, detail: impl FnOnce() -> String) {
        self.findings.error(name_of(guid), at, rule, detail);
    }
}

fn name_of(guid: Uuid) -> &'static str {
    match guid {
        ITEM_FILE_PARAMETERS => "file parameters",
        ITEM_VIRTUAL_SIZE => "virtual disk size",
        ITEM_DISK_ID => "virtual disk id",
        ITEM_LOGICAL_SECTOR => "logical sector size",
        ITEM_PHYSICAL_SECTOR => "physical sector size",
        ITEM_PARENT_LOCATOR => "parent locator",
        _ => "an item of another kind",
    }
}

const TABLE: &str = "metadata table";
