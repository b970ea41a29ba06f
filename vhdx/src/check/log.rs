//! Checks a log that is in use (section 2.3) and replays it in memory.

use std::collections::BTreeMap;

use super::findings::Findings;
use super::view::View;
use super::{CheckSummary, Severity};
use crate::error::{Error, ErrorKind, Result};
use crate::file::FileAt;
use crate::format::{FILE_LEN_MAX, HEADER_SECTION_LEN, LOG_LEN_MAX, MIB, PAGE_LEN};
use crate::header::Header;
use crate::log::{Descriptor, EntryHeader, Ring, active_head, replay, restore_page, scan, visit};

/// Gives the file as it is after replay, or as it is where it cannot be replayed.
pub(super) fn check<'a>(
    file: &'a dyn FileAt,
    header: &Header,
    findings: &mut Findings,
    summary: &mut CheckSummary,
) -> Result<View<'a>> {
    let plain = View::new(file, summary.file_len);
    let log = &header.log;
    let is_used = !header.log_guid.is_nil();
    let errors_before = findings.error_count();
    if log.end > summary.file_len && !log.is_empty() {
        let severity = match is_used {
            true => Severity::Error,
            false => Severity::Warning,
        };
        findings.add(severity, LOG, log.start, "log-past-end", || {
            format!("ends at {:#x}, behind the end of the file", log.end)
        });
    }
    if !is_used {
        return Ok(plain);
    }
    if log.is_empty() {
        findings.error(LOG, log.start, "log-no-space", || {
            "in use, but has no space".to_owned()
        });
    }
    let len = log.end - log.start;
    let is_placed = log.start.is_multiple_of(MIB)
        && len.is_multiple_of(MIB)
        && (HEADER_SECTION_LEN..=summary.file_len).contains(&log.start);
    // Whatever is wrong with the place of the log was told with the header.
    if findings.error_count() == errors_before && is_placed && len <= LOG_LEN_MAX {
        let ring = Ring {
            file,
            log: log.clone(),
        };
        check_ring(&ring, header, findings, summary)?;
    }
    if findings.error_count() == errors_before && is_placed {
        match replay(file, log, header.log_guid) {
            Ok((overlay, _)) => return Ok(View::replayed(file, overlay)),
            Err(error) => tell(error, "log-replay", findings)?,
        }
    }
    findings.note(LOG, log.start, "log-not-replayed", || {
        "what follows was read without it".to_owned()
    });
    Ok(plain)
}

fn check_ring(
    ring: &Ring<'_>,
    header: &Header,
    findings: &mut Findings,
    summary: &mut CheckSummary,
) -> Result<()> {
    let entries = match scan(ring, header.log_guid) {
        Ok(entries) => entries,
        Err(error) => return tell(error, "log-scan", findings),
    };
    summary.log_entries_valid = entries.len() as u64;
    let Some(active) = active_head(&entries, ring.len()) else {
        findings.error(LOG, ring.log.start, "log-no-entry", || {
            let count = entries.len();
            format!("in use, but no entry can be replayed ({count} are whole)")
        });
        return Ok(());
    };
    let head = &entries[&active];
    let head_at = ring.log.start + active;
    if summary.file_len < head.flushed_file_len {
        findings.error(ENTRY, head_at, "log-flushed-length", || {
            format!(
                "the file has {:#x} bytes, and had {:#x} when it was written",
                summary.file_len, head.flushed_file_len
            )
        });
    }
    if head.last_file_len > FILE_LEN_MAX {
        findings.error(ENTRY, head_at, "log-last-length", || {
            format!("wants a file of {:#x} bytes", head.last_file_len)
        });
    }
    check_active(ring, &entries, active, findings, summary)
}

/// Checks the entries from the head's tail to the head.
fn check_active(
    ring: &Ring<'_>,
    entries: &BTreeMap<u64, EntryHeader>,
    active: u64,
    findings: &mut Findings,
    summary: &mut CheckSummary,
) -> Result<()> {
    let mut at = entries[&active].tail;
    loop {
        let entry = &entries[&at];
        summary.log_entries_active += 1;
        check_descriptors(ring, at, entry, findings)?;
        if at == active {
            return Ok(());
        }
        at = ring.wrap(at + entry.len);
    }
}

fn check_descriptors(
    ring: &Ring<'_>,
    at: u64,
    entry: &EntryHeader,
    findings: &mut Findings,
) -> Result<()> {
    // Descriptors begin behind the 64 bytes of the header and follow each other without gaps.
    let mut descriptor_at = at + 64;
    visit(ring, at, entry, |descriptor, data_at| {
        let place = ring.log.start + ring.wrap(descriptor_at);
        descriptor_at += 32;
        let Some(descriptor) = descriptor else {
            // An entry that is whole has no such descriptor: the file changed meanwhile.
            findings.error(DESCRIPTOR, place, "log-descriptor", || {
                "belongs to another entry".to_owned()
            });
            return Ok(true);
        };
        if let Err(error) = descriptor.check(&ring.log) {
            findings.error(DESCRIPTOR, place, "log-descriptor-target", || {
                let target = error.at().unwrap_or(0);
                format!("{}: {target:#x}", error.detail())
            });
        }
        if let Descriptor::Page {
            leading, trailing, ..
        } = descriptor
        {
            let mut sector = [0; PAGE_LEN];
            ring.read(data_at, &mut sector)?;
            if restore_page(&sector, entry.sequence, leading, trailing).is_none() {
                let sector_at = ring.log.start + ring.wrap(data_at);
                findings.error(ENTRY, sector_at, "log-data-sector", || {
                    "data sector belongs to another entry".to_owned()
                });
            }
        }
        Ok(true)
    })
}

/// Makes a finding of an error, unless the system is to blame.
fn tell(error: Error, rule: &'static str, findings: &mut Findings) -> Result<()> {
    if error.kind() == ErrorKind::Io {
        return Err(error);
    }
    findings.error(LOG, error.at(), rule, || error.detail().to_owned());
    Ok(())
}

const LOG: &str = "log";
const ENTRY: &str = "log entry";
const DESCRIPTOR: &str = "log descriptor";
