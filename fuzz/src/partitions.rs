//! The start of a disk as a guest left it: a partition table.

use failback_engine::job::profile::{ENTRY_COUNT_MAX, HEAD_LEN, Partitions, Scheme};

/// Input: a byte whose low bit chooses sectors of 4 KiB, and whose second bit asks for the signs of
/// both tables; then the bytes of a disk from its start.
///
/// # Panics
///
/// When there are more partitions than are ever looked at, partitions of no table, or when bytes
/// beyond the part that is looked at matter.
pub fn gpt_mbr(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else {
        return;
    };
    let sector: u32 = if choice & 1 == 0 { 512 } else { 4096 };
    let mut head = data.to_vec();
    head.truncate(HEAD_LEN);
    if choice & 2 != 0 {
        lay(&mut head, 510, &[0x55, 0xaa]);
        lay(&mut head, sector as usize, b"EFI PART");
    }
    let found = Partitions::of(&head, sector);
    assert!(found.all.len() <= ENTRY_COUNT_MAX);
    match found.scheme {
        Scheme::None => assert!(found.all.is_empty()),
        Scheme::Mbr => assert!(found.all.len() <= 4),
        Scheme::Gpt => {}
    }
    // Padded to what is always read, it is the same disk: no partition may go.
    let len = found.all.len();
    head.resize(HEAD_LEN, 0);
    let padded = Partitions::of(&head, sector);
    assert!(padded.scheme != found.scheme || padded.all.len() >= len);
}

fn lay(head: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = head.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
