//! Checks both headers (section 2.2.2).

use uuid::Uuid;
use zerocopy::transmute;

use super::Severity;
use super::findings::Findings;
use super::view::read_file;
use crate::error::Result;
use crate::file::FileAt;
use crate::format::{
    HEADER_SECTION_LEN, HEADER_VERSION, HEADERS_AT, LOG_LEN_MAX, MIB, PAGE_LEN, RawHeader,
    is_sealed,
};
use crate::header::{Header, SIGNATURE};

/// Checks both and gives what the current one says. Where two claim to be current, the first
/// does: nothing else can be checked without one.
pub(super) fn check(file: &dyn FileAt, findings: &mut Findings) -> Result<Option<Header>> {
    let mut raw = [[0_u8; PAGE_LEN]; 2];
    let mut is_there = [true; 2];
    for ((bytes, at), is_there) in raw.iter_mut().zip(HEADERS_AT).zip(&mut is_there) {
        *is_there = read_file(file, at, bytes)?;
    }
    let is_identical = raw[0] == raw[1];
    let is_valid = [0, 1]
        .map(|slot| is_there[slot] && raw[slot].starts_with(SIGNATURE) && is_sealed(&raw[slot]));
    // One whole header is enough for every reader; none is enough for no reader.
    let severity = match is_valid {
        [false, false] => Severity::Error,
        _ => Severity::Warning,
    };
    for slot in 0..2 {
        check_whole(slot, is_there[slot], &raw[slot], severity, findings);
    }
    let raw: [RawHeader; 2] = raw.map(|bytes| transmute!(bytes));
    let current = match is_valid {
        [false, false] => return Ok(None),
        [true, false] => 0,
        [false, true] => 1,
        [true, true] => usize::from(raw[1].sequence.get() > raw[0].sequence.get()),
    };
    for slot in (0..2).filter(|slot| is_valid[*slot]) {
        let severity = match slot == current {
            true => Severity::Error,
            false => Severity::Warning,
        };
        check_fields(HEADERS_AT[slot], &raw[slot], severity, findings);
    }
    if is_valid == [true, true] && !is_identical {
        compare(&raw, findings);
    }
    Ok(to_header(&raw[current]))
}

fn check_whole(
    slot: usize,
    is_there: bool,
    bytes: &[u8; PAGE_LEN],
    severity: Severity,
    findings: &mut Findings,
) {
    let at = HEADERS_AT[slot];
    if !is_there {
        findings.add(severity, HEADER, at, "header-truncated", || {
            "the file ends before or in it".to_owned()
        });
        return;
    }
    if !bytes.starts_with(SIGNATURE) {
        findings.add(severity, HEADER, at, "header-signature", || {
            "does not begin with \"head\"".to_owned()
        });
    }
    if !is_sealed(bytes) {
        findings.add(severity, HEADER, at, "header-checksum", || {
            "its checksum is not that of its bytes".to_owned()
        });
    }
}

/// Checks the fields of a whole header; `severity` is that of what keeps readers from using it.
fn check_fields(at: u64, raw: &RawHeader, severity: Severity, findings: &mut Findings) {
    if raw.version.get() != HEADER_VERSION {
        findings.add(severity, HEADER, at, "header-version", || {
            format!("version {} is not known", raw.version)
        });
    }
    let is_log_used = raw.log_guid != [0; 16];
    if raw.log_version.get() != 0 {
        let severity = if is_log_used {
            severity
        } else {
            Severity::Note
        };
        findings.add(severity, HEADER, at, "header-log-version", || {
            format!("log version {} is not known", raw.log_version)
        });
    }
    let (log_at, log_len) = (raw.log_at.get(), u64::from(raw.log_len.get()));
    let is_placed = log_at.is_multiple_of(MIB)
        && log_len.is_multiple_of(MIB)
        && (log_len == 0 || log_at >= HEADER_SECTION_LEN)
        && log_at.checked_add(log_len).is_some();
    if !is_placed {
        findings.add(severity, HEADER, at, "header-log-place", || {
            format!("log of {log_len:#x} bytes at {log_at:#x}, not whole MiB behind the headers")
        });
    }
    if log_len > LOG_LEN_MAX {
        findings.add(severity, HEADER, at, "header-log-length", || {
            format!("log of {log_len} bytes, more than is replayed")
        });
    }
    if log_len == 0 && !is_log_used {
        findings.note(HEADER, at, "header-log-length", || {
            "no space for a log, so nobody can write".to_owned()
        });
    }
    if raw.reserved.iter().any(|byte| *byte != 0) {
        findings.note(HEADER, at, "header-reserved", || {
            "reserved bytes are not zero".to_owned()
        });
    }
}

/// Compares two whole headers that are not the same.
fn compare(raw: &[RawHeader; 2], findings: &mut Findings) {
    if raw[0].sequence == raw[1].sequence {
        findings.error(HEADER, HEADERS_AT[0], "header-sequence", || {
            format!("two that differ have sequence number {}", raw[0].sequence)
        });
    }
    let older = usize::from(raw[1].sequence.get() < raw[0].sequence.get());
    let guids = [
        (
            "file write GUIDs",
            raw.each_ref().map(|raw| raw.file_write_guid),
        ),
        (
            "data write GUIDs",
            raw.each_ref().map(|raw| raw.data_write_guid),
        ),
        ("log GUIDs", raw.each_ref().map(|raw| raw.log_guid)),
    ];
    for (name, [first, second]) in guids {
        if first != second {
            findings.note(HEADER, HEADERS_AT[older], "header-copies-differ", || {
                format!("{name} of the two headers are not the same")
            });
        }
    }
}

/// `None` where the log cannot be placed; then the GUIDs mean nothing either.
fn to_header(raw: &RawHeader) -> Option<Header> {
    let (log_at, log_len) = (raw.log_at.get(), u64::from(raw.log_len.get()));
    Some(Header {
        sequence: raw.sequence.get(),
        file_write_guid: Uuid::from_bytes_le(raw.file_write_guid),
        data_write_guid: Uuid::from_bytes_le(raw.data_write_guid),
        log_guid: Uuid::from_bytes_le(raw.log_guid),
        log: log_at..log_at.checked_add(log_len)?,
    })
}

const HEADER: &str = "header";
