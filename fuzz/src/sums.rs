//! Checksums of a VHDX put right again, so that a mutation reaches what stands behind them.
//!
//! The places are those of MS-VHDX 2.2 and 2.3; nothing of the crate under test is used.

use failback_vhdx::FileAt;

pub(crate) const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
const REGION_TABLES_AT: [u64; 2] = [192 << 10, 256 << 10];
const HEADER_LEN: usize = 4 << 10;
const REGION_TABLE_LEN: usize = 64 << 10;
pub(crate) const LOG_SECTOR_LEN: usize = 4 << 10;
/// A log is walked this far; what writers make is 1 MiB.
const LOG_LEN_MAX: u64 = 2 << 20;
/// Where a header says which log is valid.
pub(crate) const LOG_GUID_AT: usize = 48;
/// Every structure has its sum at this offset.
const SUM_AT: usize = 4;

/// Puts the sums of headers, region tables and log entries right. Whatever is not there is left.
pub(crate) fn repair(file: &dyn FileAt) {
    for at in HEADERS_AT {
        repair_at(file, at, HEADER_LEN);
    }
    for at in REGION_TABLES_AT {
        repair_at(file, at, REGION_TABLE_LEN);
    }
    for at in HEADERS_AT {
        if let Some((log_at, log_len)) = log_of(file, at) {
            repair_log(file, log_at, log_len.min(LOG_LEN_MAX));
        }
    }
}

/// Byte offset and length of the log that the header at `at` names.
pub(crate) fn log_of(file: &dyn FileAt, at: u64) -> Option<(u64, u64)> {
    let mut fields = [0; 12];
    file.read_at(at + 68, &mut fields).ok()?;
    let [a, b, c, d, e @ ..] = fields;
    Some((
        u64::from_le_bytes(e),
        u64::from(u32::from_le_bytes([a, b, c, d])),
    ))
}

/// Gives each entry in the log its sum, and the GUID of the header where it has a signature only.
pub(crate) fn repair_log(file: &dyn FileAt, log_at: u64, log_len: u64) {
    let Ok(len) = usize::try_from(log_len) else {
        return;
    };
    let mut log = vec![0; len];
    if log_at.checked_add(log_len).is_none() || file.read_at(log_at, &mut log).is_err() {
        return;
    }
    for start in (0..len).step_by(LOG_SECTOR_LEN) {
        if !log[start..].starts_with(b"loge") {
            continue;
        }
        let field = log
            .get(start + 8..start + 12)
            .and_then(|field| field.try_into().ok());
        let entry_len = field.map_or(0, u32::from_le_bytes) as usize;
        if entry_len < 64 || entry_len > len {
            continue;
        }
        // The log is a ring: an entry may go on at its start.
        let head_len = entry_len.min(len - start);
        log[start + SUM_AT..start + SUM_AT + 4].fill(0);
        let sum = crc32c::crc32c(&log[start..start + head_len]);
        let sum = crc32c::crc32c_append(sum, &log[..entry_len - head_len]);
        log[start + SUM_AT..start + SUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
    }
    let _ = file.write_at(log_at, &log);
}

pub(crate) fn repair_header(file: &dyn FileAt, at: u64) {
    repair_at(file, at, HEADER_LEN);
}

fn repair_at(file: &dyn FileAt, at: u64, len: usize) {
    let mut bytes = vec![0; len];
    if file.read_at(at, &mut bytes).is_ok() {
        bytes[SUM_AT..SUM_AT + 4].fill(0);
        let sum = crc32c::crc32c(&bytes);
        let _ = file.write_at(at + SUM_AT as u64, &sum.to_le_bytes());
    }
}
