//! Partition tables for tests.

use uuid::Uuid;

use super::HEAD_LEN;

pub(super) const EFI: Uuid = Uuid::from_u128(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
pub(super) const POOL: Uuid = Uuid::from_u128(0xe75caf8f_f680_4cee_afa3_b001e56efc2d);

/// A disk's start with a GPT of these types, 1 MiB apart.
pub(super) fn gpt_of(types: &[Uuid], sector: usize) -> Vec<u8> {
    let mut head = vec![0; HEAD_LEN];
    head[510..512].copy_from_slice(&[0x55, 0xaa]);
    head[450] = 0xee;
    head[sector..sector + 8].copy_from_slice(b"EFI PART");
    head[sector + 72..sector + 80].copy_from_slice(&2_u64.to_le_bytes());
    head[sector + 80..sector + 84].copy_from_slice(&128_u32.to_le_bytes());
    head[sector + 84..sector + 88].copy_from_slice(&128_u32.to_le_bytes());
    for (number, kind) in types.iter().enumerate() {
        let at = 2 * sector + 128 * number;
        head[at..at + 16].copy_from_slice(&kind.to_bytes_le());
        let first = ((number as u64 + 1) << 20) / sector as u64;
        head[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
    }
    head
}
