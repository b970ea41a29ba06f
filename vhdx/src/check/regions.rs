//! Checks both region tables (section 2.2.3).

use std::collections::HashSet;
use std::ops::Range;

use uuid::Uuid;
use zerocopy::FromBytes;

use super::Severity;
use super::findings::Findings;
use super::view::View;
use crate::error::Result;
use crate::format::{
    HEADER_SECTION_LEN, MIB, REGION_BAT, REGION_IS_REQUIRED, REGION_METADATA, REGION_TABLES_AT,
    RawRegionEntry, RawRegionTable, TABLE_ENTRIES_MAX, TABLE_LEN, is_sealed,
};
use crate::region::SIGNATURE;

/// What of the file is taken, as far as the tables tell.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) bat: Option<Range<u64>>,
    pub(super) metadata: Option<Range<u64>>,
    /// Header section, log and every region; sorted, none touches or overlaps another.
    pub(super) occupied: Vec<Range<u64>>,
}

/// Checks both copies and gives what the one in use says: the first, where it is whole.
pub(super) fn check(view: &View<'_>, log: &Range<u64>, findings: &mut Findings) -> Result<Layout> {
    let mut tables = Vec::new();
    for at in REGION_TABLES_AT {
        let mut bytes = vec![0; TABLE_LEN];
        let is_there = view.read_at(at, &mut bytes)?;
        let is_signed = bytes.starts_with(SIGNATURE);
        tables.push((at, is_there, is_signed, is_sealed(&bytes), bytes));
    }
    let is_valid = |table: &(u64, bool, bool, bool, Vec<u8>)| table.1 && table.2 && table.3;
    let used = tables.iter().position(is_valid);
    let severity = match used {
        Some(_) => Severity::Warning,
        None => Severity::Error,
    };
    for (at, is_there, is_signed, is_sealed, _) in &tables {
        let mut tell = |rule, detail: &str| {
            findings.add(severity, TABLE, *at, rule, || detail.to_owned());
        };
        if !is_there {
            tell("region-table-truncated", "the file ends before or in it");
            continue;
        }
        if !is_signed {
            tell("region-table-signature", "does not begin with \"regi\"");
        }
        if !is_sealed {
            let detail = "its checksum is not that of its bytes";
            tell("region-table-checksum", detail);
        }
    }
    let mut layout = None;
    for (slot, table) in tables
        .iter()
        .enumerate()
        .filter(|(_, table)| is_valid(table))
    {
        let severity = match used == Some(slot) {
            true => Severity::Error,
            false => Severity::Warning,
        };
        let mut copy = Copy {
            at: table.0,
            severity,
            findings: &mut *findings,
        };
        let found = copy.check(&table.4, log, view.len());
        layout.get_or_insert(found);
    }
    if tables.iter().all(is_valid) && tables[0].4 != tables[1].4 {
        findings.warning(
            TABLE,
            REGION_TABLES_AT[1],
            "region-table-copies-differ",
            || "the two tables are not the same; the first is used".to_owned(),
        );
    }
    Ok(layout.unwrap_or_default())
}

/// A range that is taken, its name, and the offset in the file of the entry that says so.
struct Taken {
    range: Range<u64>,
    name: String,
    entry_at: Option<u64>,
}

/// One copy of the table.
struct Copy<'a> {
    at: u64,
    /// Of what keeps readers from using it.
    severity: Severity,
    findings: &'a mut Findings,
}

impl Copy<'_> {
    fn check(&mut self, bytes: &[u8], log: &Range<u64>, file_len: u64) -> Layout {
        let (head, entries) = RawRegionTable::ref_from_prefix(bytes).expect("a whole table");
        let count = head.entry_count.get();
        if count > u32::from(TABLE_ENTRIES_MAX) {
            self.tell(self.at + 8, "region-count", || format!("{count} entries"));
        }
        if head.reserved.get() != 0 {
            self.note(self.at + 12, "region-table-reserved", || {
                "reserved bytes are not zero".to_owned()
            });
        }
        let count = count.min(TABLE_ENTRIES_MAX.into());
        let mut layout = Layout::default();
        let mut taken = vec![Taken {
            range: 0..HEADER_SECTION_LEN,
            name: "the header section".to_owned(),
            entry_at: None,
        }];
        if !log.is_empty() {
            taken.push(Taken {
                range: log.clone(),
                name: "the log".to_owned(),
                entry_at: None,
            });
        }
        let mut seen = HashSet::new();
        let entries = entries.chunks_exact(32).take(count as usize);
        for (entry_at, raw) in (self.at + 16..).step_by(32).zip(entries) {
            let entry = RawRegionEntry::ref_from_bytes(raw).expect("32 bytes");
            let guid = Uuid::from_bytes_le(entry.guid);
            if !seen.insert(guid) {
                self.tell(entry_at, "region-duplicate", || {
                    format!("{} is there twice", name_of(guid))
                });
            }
            let range = self.check_entry(entry_at, guid, entry, file_len);
            let slot = match guid {
                REGION_BAT => Some(&mut layout.bat),
                REGION_METADATA => Some(&mut layout.metadata),
                _ => None,
            };
            if let (Some(slot), Some(range)) = (slot, &range) {
                slot.get_or_insert(range.clone());
            }
            taken.extend(range.map(|range| Taken {
                range,
                name: name_of(guid),
                entry_at: Some(entry_at),
            }));
        }
        for guid in [REGION_BAT, REGION_METADATA] {
            if !seen.contains(&guid) {
                self.tell(self.at, "region-missing", || {
                    format!("{} is missing", name_of(guid))
                });
            }
        }
        layout.occupied = self.check_overlaps(taken);
        layout
    }

    /// Checks one entry and gives its range, where it is one at all.
    fn check_entry(
        &mut self,
        at: u64,
        guid: Uuid,
        entry: &RawRegionEntry,
        file_len: u64,
    ) -> Option<Range<u64>> {
        let (start, len) = (entry.at.get(), u64::from(entry.len.get()));
        let flags = entry.flags.get();
        let is_known = matches!(guid, REGION_BAT | REGION_METADATA);
        let is_required = flags & REGION_IS_REQUIRED != 0;
        if !is_known && is_required {
            self.tell(at, "region-unknown-required", || {
                format!("required {} is not known", name_of(guid))
            });
        } else if !is_known {
            self.note(at, "region-unknown", || {
                format!("{} is not known and left alone", name_of(guid))
            });
        } else if !is_required {
            self.note(at, "region-not-required", || {
                format!("{} is not marked as required", name_of(guid))
            });
        }
        if flags & !REGION_IS_REQUIRED != 0 {
            self.note(at, "region-flags", || format!("reserved flags {flags:#x}"));
        }
        let end = start.checked_add(len);
        if !start.is_multiple_of(MIB) || !len.is_multiple_of(MIB) || len == 0 || end.is_none() {
            self.tell(at, "region-place", || {
                let name = name_of(guid);
                format!("{name} has {len:#x} bytes at {start:#x}, not whole MiB")
            });
        }
        let range = start..end?;
        if range.end > file_len {
            let severity = Severity::Warning;
            self.findings
                .add(severity, TABLE, at, "region-past-end", || {
                    format!(
                        "{} ends at {:#x}, behind the end of the file",
                        name_of(guid),
                        range.end
                    )
                });
        }
        (len > 0).then_some(range)
    }

    /// Tells each range that begins before an earlier one ends, and joins what overlaps.
    fn check_overlaps(&mut self, mut taken: Vec<Taken>) -> Vec<Range<u64>> {
        taken.sort_by_key(|taken| taken.range.start);
        let mut occupied: Vec<Range<u64>> = Vec::new();
        let mut furthest: Option<&Taken> = None;
        for next in &taken {
            let overlapped = furthest.filter(|before| before.range.end > next.range.start);
            if let Some(before) = overlapped {
                let at = next.entry_at.or(before.entry_at).unwrap_or(self.at);
                self.tell(at, "region-overlap", || {
                    format!(
                        "{} at {:#x} and {} at {:#x} overlap",
                        before.name, before.range.start, next.name, next.range.start
                    )
                });
            }
            match occupied.last_mut() {
                Some(last) if last.end >= next.range.start => {
                    last.end = last.end.max(next.range.end);
                }
                _ => occupied.push(next.range.clone()),
            }
            if furthest.is_none_or(|before| before.range.end < next.range.end) {
                furthest = Some(next);
            }
        }
        occupied
    }

    fn tell(&mut self, at: u64, rule: &'static str, detail: impl FnOnce() -> String) {
        self.findings.add(self.severity, TABLE, at, rule, detail);
    }

    fn note(&mut self, at: u64, rule: &'static str, detail: impl FnOnce() -> String) {
        self.findings.note(TABLE, at, rule, detail);
    }
}

fn name_of(guid: Uuid) -> String {
    match guid {
        REGION_BAT => "the BAT".to_owned(),
        REGION_METADATA => "the metadata region".to_owned(),
        _ => format!("region {guid}"),
    }
}

const TABLE: &str = "region table";
