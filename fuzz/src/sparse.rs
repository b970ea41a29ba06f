//! A file in few bytes: what a VHDX of some MiB looks like in a corpus.
//!
//! ```text
//!   length of the file, u32, in pages | record | record | ...
//!   record: page number, u32 | bytes, u16 | so many bytes; the rest of the page is zero
//! ```
//!
//! Little-endian. Any bytes are a file: numbers past the limits wrap, a cut record ends early.

use failback_vhdx::{FileAt, MemoryFile};

/// Bytes of a page.
const PAGE_LEN: usize = 4096;
/// Files are at most 64 GiB: room for blocks far out, and still quick to walk.
const PAGES_MAX: u32 = 1 << 24;
/// Bytes of page number and length.
const RECORD_LEN: usize = 6;

/// The file that these bytes describe.
///
/// # Panics
///
/// Never for bytes of any kind: memory takes every write below its limits.
pub fn unpack(data: &[u8]) -> MemoryFile {
    let file = MemoryFile::new();
    let Some((pages, mut rest)) = data.split_first_chunk::<4>() else {
        return file;
    };
    let pages = u32::from_le_bytes(*pages) % (PAGES_MAX + 1);
    file.set_len(u64::from(pages) * PAGE_LEN as u64)
        .expect("length in memory");
    while let Some((record, bytes)) = rest.split_first_chunk::<RECORD_LEN>() {
        let [a, b, c, d, e, f] = *record;
        let page = u32::from_le_bytes([a, b, c, d]) % PAGES_MAX;
        let len = usize::from(u16::from_le_bytes([e, f])) % (PAGE_LEN + 1);
        let (bytes, after) = bytes.split_at(len.min(bytes.len()));
        // A page past the end would make the file longer than it says.
        if page < pages {
            file.write_at(u64::from(page) * PAGE_LEN as u64, bytes)
                .expect("memory");
        }
        rest = after;
    }
    file
}

/// The bytes that describe this file; the way that seeds are made.
///
/// # Panics
///
/// When the file is longer than 64 GiB.
pub fn pack(file: &[u8]) -> Vec<u8> {
    let pages = u32::try_from(file.len().div_ceil(PAGE_LEN)).expect("a small file");
    assert!(pages <= PAGES_MAX, "a small file");
    let mut out = pages.to_le_bytes().to_vec();
    for (number, page) in (0_u32..).zip(file.chunks(PAGE_LEN)) {
        let len = page
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        if len > 0 {
            out.extend(number.to_le_bytes());
            out.extend(u16::try_from(len).expect("at most a page").to_le_bytes());
            out.extend(&page[..len]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: a seed is the file it was made from. Method: pages full, empty, short, and a cut
    // record.
    #[test]
    fn packed_files_come_back() {
        let mut file = vec![0; 5 * PAGE_LEN];
        file[7] = 1;
        file[2 * PAGE_LEN..3 * PAGE_LEN].fill(2);

        let packed = pack(&file);

        assert!(packed.len() < PAGE_LEN + 64);
        assert_eq!(unpack(&packed).to_bytes(), file);
        assert_eq!(
            unpack(&packed[..packed.len() - 1]).len().unwrap(),
            5 * PAGE_LEN as u64
        );
    }
}
