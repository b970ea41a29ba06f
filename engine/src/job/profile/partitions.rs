//! What stands at the start of a disk: an MBR or a GPT, as far as a profile asks. The bytes are a
//! guest's, who may have written anything: nothing is followed but counts that are bounded.

use uuid::Uuid;

/// Bytes of a disk's start that are looked at: a GPT of sectors of 4 KiB with all of its entries.
pub const HEAD_LEN: usize = 64 << 10;
/// Entries of a GPT that are looked at; nobody writes more.
pub const ENTRY_COUNT_MAX: usize = 128;
/// Bytes of a boot sector's name that BitLocker puts there.
pub const BITLOCKER: &[u8; 8] = b"-FVE-FS-";
/// Where a volume has it.
pub const BITLOCKER_AT: u64 = 3;

const MBR_ENTRIES_AT: usize = 446;
const MBR_ENTRY_LEN: usize = 16;
const MBR_SIGN_AT: usize = 510;
const GPT_SIGN: &[u8; 8] = b"EFI PART";
const GPT_ENTRY_LEN_MIN: usize = 128;
const EFI_SYSTEM: Uuid = Uuid::from_u128(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
const STORAGE_SPACES: Uuid = Uuid::from_u128(0xe75caf8f_f680_4cee_afa3_b001e56efc2d);
const LDM_DATA: Uuid = Uuid::from_u128(0xaf9b60a0_1431_4f62_bc68_3311714a69ad);
const LDM_META: Uuid = Uuid::from_u128(0x5808c8aa_7e8f_42e0_85d2_e1e90434cfb3);

/// How a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Not at all, or nobody can tell.
    None,
    /// By a master boot record.
    Mbr,
    /// By a GUID partition table.
    Gpt,
}

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Booted from by EFI.
    EfiSystem,
    /// A member of a storage pool.
    StorageSpaces,
    /// Of a dynamic disk.
    Dynamic,
    /// Anything else.
    Other,
}

/// A partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// What for.
    pub used_for: Use,
    /// Byte of the disk that it begins at; may lie anywhere.
    pub start: u64,
}

/// The partitions of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partitions {
    /// How it is divided.
    pub scheme: Scheme,
    /// In the order of the table, 128 at most. Of an MBR the four primary ones.
    pub all: Vec<Partition>,
}

impl Partitions {
    /// Reads the first bytes of a disk with logical sectors of `sector` bytes.
    #[must_use]
    pub fn of(head: &[u8], sector: u32) -> Self {
        let sector = if sector == 4096 { 4096 } else { 512 };
        gpt(head, sector)
            .or_else(|| mbr(head, sector))
            .unwrap_or(Self {
                scheme: Scheme::None,
                all: Vec::new(),
            })
    }

    /// Whether any is used for this.
    #[must_use]
    pub fn has(&self, wanted: Use) -> bool {
        self.all.iter().any(|it| it.used_for == wanted)
    }
}

fn mbr(head: &[u8], sector: usize) -> Option<Partitions> {
    if head.get(MBR_SIGN_AT..MBR_SIGN_AT + 2)? != [0x55, 0xaa] {
        return None;
    }
    let entries = head.get(MBR_ENTRIES_AT..MBR_SIGN_AT)?;
    let mut all = Vec::new();
    for entry in entries.chunks_exact(MBR_ENTRY_LEN) {
        // A volume without a table has a boot sector with the same sign: its bytes are no entries.
        if entry[0] & 0x7f != 0 {
            return None;
        }
        let used_for = match entry[4] {
            0 => continue,
            0xef => Use::EfiSystem,
            0xe7 => Use::StorageSpaces,
            0x42 => Use::Dynamic,
            _ => Use::Other,
        };
        let first = u64::from(u32_at(entry, 8)?);
        all.push(Partition {
            used_for,
            start: first.saturating_mul(sector as u64),
        });
    }
    Some(Partitions {
        scheme: Scheme::Mbr,
        all,
    })
}

fn gpt(head: &[u8], sector: usize) -> Option<Partitions> {
    let header = head.get(sector..sector.checked_add(92)?)?;
    if &header[..8] != GPT_SIGN {
        return None;
    }
    let first = usize::try_from(u64_at(header, 72)?).ok()?;
    let count = usize::try_from(u32_at(header, 80)?).ok()?;
    let len = usize::try_from(u32_at(header, 84)?).ok()?;
    if len < GPT_ENTRY_LEN_MIN || !len.is_power_of_two() {
        return None;
    }
    let entries = head.get(first.checked_mul(sector)?..)?;
    let all = entries
        .chunks_exact(len)
        .take(count.min(ENTRY_COUNT_MAX))
        .filter_map(|entry| {
            let kind = Uuid::from_bytes_le(entry[..16].try_into().ok()?);
            let used_for = match kind {
                _ if kind.is_nil() => return None,
                EFI_SYSTEM => Use::EfiSystem,
                STORAGE_SPACES => Use::StorageSpaces,
                LDM_DATA | LDM_META => Use::Dynamic,
                _ => Use::Other,
            };
            Some(Partition {
                used_for,
                start: u64_at(entry, 32)?.saturating_mul(sector as u64),
            })
        })
        .collect();
    Some(Partitions {
        scheme: Scheme::Gpt,
        all,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::profile::sample::{EFI, POOL, gpt_of};

    // Goal: uses and places as a GPT has them, with either sector. Method: tables made by hand.
    #[test]
    fn a_gpt_is_read() {
        for sector in [512, 4096] {
            let head = gpt_of(&[EFI, POOL, LDM_DATA, Uuid::from_u128(7)], sector);
            let found = Partitions::of(&head, u32::try_from(sector).unwrap());
            assert_eq!(found.scheme, Scheme::Gpt);
            let uses: Vec<_> = found.all.iter().map(|it| it.used_for).collect();
            let wanted = [Use::EfiSystem, Use::StorageSpaces, Use::Dynamic, Use::Other];
            assert_eq!(uses, wanted);
            let starts: Vec<_> = found.all.iter().map(|it| it.start >> 20).collect();
            assert_eq!(starts, [1, 2, 3, 4]);
        }
    }

    // Goal: an MBR is read, and a boot sector of a volume is none. Method: by hand.
    #[test]
    fn an_mbr_is_read() {
        let mut head = vec![0; HEAD_LEN];
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        head[446] = 0x80;
        head[450] = 7;
        head[454..458].copy_from_slice(&2048_u32.to_le_bytes());
        head[466] = 0x42;
        let found = Partitions::of(&head, 512);
        assert_eq!((found.scheme, found.all.len()), (Scheme::Mbr, 2));
        assert_eq!(found.all[0].start, 1 << 20);
        assert!(found.has(Use::Dynamic) && !found.has(Use::EfiSystem));
        head[446] = 0x13;
        assert_eq!(Partitions::of(&head, 512).scheme, Scheme::None);
        assert_eq!(Partitions::of(&[], 512).scheme, Scheme::None);
    }

    // Goal: hostile tables are read without panic and without end. Method: largest numbers in each
    // field.
    #[test]
    fn hostile_tables_are_bounded() {
        let sound = gpt_of(&[EFI; 128], 512);
        for (at, len) in [(72, 8), (80, 4), (84, 4)] {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut head = sound.clone();
                head[512 + at..512 + at + len].fill(byte);
                assert!(Partitions::of(&head, 512).all.len() <= ENTRY_COUNT_MAX);
            }
        }
        let mut head = sound;
        head[1024 + 32..1024 + 40].fill(0xff);
        assert_eq!(Partitions::of(&head, 512).all[0].start, u64::MAX);
    }
}
