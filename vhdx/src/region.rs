//! The region tables (section 2.2.3): where the BAT and the metadata are, and what is taken.

use std::collections::HashSet;
use std::ops::Range;

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Result};
use crate::format::{
    HEADER_SECTION_LEN, MIB, REGION_BAT, REGION_IS_REQUIRED, REGION_METADATA, REGION_TABLES_AT,
    RawRegionEntry, RawRegionTable, TABLE_ENTRIES_MAX, TABLE_LEN, is_sealed, seal,
};
use crate::image::Warning;
use crate::storage::Storage;

/// Byte ranges of the file that are taken by structures.
#[derive(Clone, Debug)]
pub(crate) struct Regions {
    pub(crate) bat: Range<u64>,
    pub(crate) metadata: Range<u64>,
    /// Header section, log and every region, known or not; sorted, none overlaps another.
    pub(crate) occupied: Vec<Range<u64>>,
}

impl Regions {
    /// Reads the first table, or the second where the first is damaged.
    pub(crate) fn read(
        storage: &Storage,
        log: &Range<u64>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self> {
        let mut chosen = None;
        for at in REGION_TABLES_AT {
            let mut bytes = vec![0; TABLE_LEN];
            storage
                .read_at(at, &mut bytes)
                .map_err(|error| error.of("region table"))?;
            if !bytes.starts_with(SIGNATURE) || !is_sealed(&bytes) {
                warnings.push(Warning::RegionTableDamaged { at });
            } else if chosen.is_none() {
                chosen = Some((at, bytes));
            }
        }
        let (at, bytes) = chosen.ok_or_else(|| {
            Error::damaged("region table", "both copies are damaged").offset(REGION_TABLES_AT[0])
        })?;
        parse(&bytes, log).map_err(|error| error.of("region table").offset(at))
    }

    /// Whether `range` lies outside of everything that is taken.
    pub(crate) fn is_free(&self, range: &Range<u64>) -> bool {
        is_free(&self.occupied, range)
    }
}

/// Whether `range` lies outside of all ranges of `occupied`, which are sorted and do not overlap.
pub(crate) fn is_free(occupied: &[Range<u64>], range: &Range<u64>) -> bool {
    let after = occupied.partition_point(|taken| taken.end <= range.start);
    occupied
        .get(after)
        .is_none_or(|taken| range.end <= taken.start)
}

/// The table of a new image with these two regions.
pub(crate) fn encode(bat: &Range<u64>, metadata: &Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; TABLE_LEN];
    let head = RawRegionTable {
        signature: *SIGNATURE,
        checksum: 0.into(),
        entry_count: 2.into(),
        reserved: 0.into(),
    };
    bytes[..16].copy_from_slice(head.as_bytes());
    let entries = [(REGION_BAT, bat), (REGION_METADATA, metadata)];
    for (slot, (guid, range)) in bytes[16..].chunks_exact_mut(32).zip(entries) {
        let entry = RawRegionEntry {
            guid: guid.to_bytes_le(),
            at: range.start.into(),
            len: u32::try_from(range.end - range.start)
                .expect("a region below 4 GiB")
                .into(),
            flags: REGION_IS_REQUIRED.into(),
        };
        slot.copy_from_slice(entry.as_bytes());
    }
    seal(&mut bytes);
    bytes
}

fn parse(bytes: &[u8], log: &Range<u64>) -> Result<Regions> {
    let damaged = |detail| Err(Error::damaged("region table", detail));
    let (head, entries) = RawRegionTable::ref_from_prefix(bytes).expect("a whole table");
    let count = head.entry_count.get();
    if count > u32::from(TABLE_ENTRIES_MAX) {
        return damaged("too many entries");
    }
    let (mut bat, mut metadata) = (None, None);
    let mut seen = HashSet::new();
    let mut occupied = Vec::new();
    occupied.push(0..HEADER_SECTION_LEN);
    if !log.is_empty() {
        occupied.push(log.clone());
    }
    for entry in entries.chunks_exact(32).take(count as usize) {
        let entry = RawRegionEntry::ref_from_bytes(entry).expect("32 bytes");
        let guid = Uuid::from_bytes_le(entry.guid);
        if !seen.insert(guid) {
            return damaged("one region twice");
        }
        let (at, len) = (entry.at.get(), u64::from(entry.len.get()));
        let end = at.checked_add(len);
        let (Some(end), 0, 0, true) = (end, at % MIB, len % MIB, len > 0) else {
            return damaged("region not on whole MiB");
        };
        match guid {
            REGION_BAT => bat = Some(at..end),
            REGION_METADATA => metadata = Some(at..end),
            _ if entry.flags.get() & REGION_IS_REQUIRED != 0 => {
                return Err(Error::unsupported(format!(
                    "required region {guid} is not known"
                )));
            }
            _ => {}
        }
        occupied.push(at..end);
    }
    occupied.sort_by_key(|range| range.start);
    if occupied.windows(2).any(|pair| pair[0].end > pair[1].start) {
        return damaged("regions, log or header section overlap");
    }
    let (Some(bat), Some(metadata)) = (bat, metadata) else {
        return damaged("no BAT or no metadata");
    };
    Ok(Regions {
        bat,
        metadata,
        occupied,
    })
}

pub(crate) const SIGNATURE: &[u8; 4] = b"regi";

#[cfg(test)]
mod tests {
    // Goal: tables round-trip and overlaps are seen. Method: encode, parse with several logs.
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let bytes = encode(&(3 * MIB..4 * MIB), &(2 * MIB..3 * MIB));
        let regions = parse(&bytes, &(MIB..2 * MIB)).unwrap();
        assert!(is_sealed(&bytes));
        assert_eq!(
            (regions.bat, regions.metadata),
            (3 * MIB..4 * MIB, 2 * MIB..3 * MIB)
        );
    }

    #[test]
    fn refuses_a_log_in_a_region() {
        let bytes = encode(&(3 * MIB..4 * MIB), &(2 * MIB..3 * MIB));
        assert!(parse(&bytes, &(3 * MIB..5 * MIB)).is_err());
    }

    #[test]
    fn free_means_touching_nothing() {
        let bytes = encode(&(5 * MIB..6 * MIB), &(2 * MIB..3 * MIB));
        let regions = parse(&bytes, &(MIB..2 * MIB)).unwrap();
        assert!(regions.is_free(&(3 * MIB..5 * MIB)));
        assert!(regions.is_free(&(6 * MIB..70 * MIB)));
        assert!(!regions.is_free(&(4 * MIB..6 * MIB)));
        assert!(!regions.is_free(&(0..MIB)));
    }
}
