//! Contents of disks, made from a seed, and changes to them.
//!
//! A disk is written as a sparse raw file. Its data stands in runs of 64 KiB pieces: text-like,
//! random, padded pages, and zeros that are written down. Equal seeds give equal bytes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rand::rngs::StdRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};

/// Bytes of the unit that a change replaces.
pub const PAGE_LEN: usize = 4096;
/// Bytes of the unit in which data and holes alternate.
pub const PIECE_LEN: usize = 64 << 10;

/// One replaced page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Byte offset on the disk, a multiple of [`PAGE_LEN`].
    pub at: u64,
    /// The new bytes, [`PAGE_LEN`] of them.
    pub page: Vec<u8>,
}

/// Writes a sparse raw disk of `len` bytes, of which about `data_percent` are written.
///
/// # Panics
///
/// When the file cannot be written.
pub fn write_raw(path: &Path, len: u64, data_percent: u32, seed: u64) {
    let file = File::create(path).expect("raw disk");
    file.set_len(len).expect("length of the raw disk");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut piece = vec![0; PIECE_LEN];
    let mut at = 0;
    while at < len {
        let run = rng.random_range(1..64);
        let is_data = rng.random_range(0..100) < data_percent;
        for _ in 0..run {
            let here = usize::try_from(len - at)
                .unwrap_or(PIECE_LEN)
                .min(PIECE_LEN);
            if is_data {
                fill(&mut piece[..here], &mut rng);
                file.write_all_at(&piece[..here], at).expect("write data");
            }
            at += here as u64;
            if at == len {
                break;
            }
        }
    }
}

/// `count` changes at different pages of a disk of `len` bytes, in the order of their offsets.
///
/// # Panics
///
/// When the disk has fewer pages.
pub fn changes(len: u64, count: usize, seed: u64) -> Vec<Change> {
    let mut rng = StdRng::seed_from_u64(seed);
    let pages = usize::try_from(len).expect("a test disk fits in memory") / PAGE_LEN;
    let mut places = index::sample(&mut rng, pages, count).into_vec();
    places.sort_unstable();
    let mut change = |place: usize| {
        let mut page = vec![0; PAGE_LEN];
        fill(&mut page, &mut rng);
        // Never zeros and never what another seed wrote here: each change is one.
        page[..8].copy_from_slice(&(seed ^ place as u64 ^ 0x5eed_0000_0000_0001).to_le_bytes());
        Change {
            at: (place * PAGE_LEN) as u64,
            page,
        }
    };
    places.into_iter().map(&mut change).collect()
}

/// Writes changes into a raw disk.
///
/// # Panics
///
/// When the file cannot be written.
pub fn write_changes(path: &Path, changes: &[Change]) {
    let file = OpenOptions::new().write(true).open(path).expect("raw disk");
    for change in changes {
        file.write_all_at(&change.page, change.at)
            .expect("write a change");
    }
}

/// The naive way to apply changes to a disk in memory.
///
/// # Panics
///
/// When a change stands past the end.
pub fn apply(disk: &mut [u8], changes: &[Change]) {
    for change in changes {
        let at = usize::try_from(change.at).expect("offset in memory");
        disk[at..at + change.page.len()].copy_from_slice(&change.page);
    }
}

/// Where in an image's file its data begins, given that the disk's first block comes first:
/// everything before is structure.
///
/// # Panics
///
/// When the disk's first page with content is not in the file.
pub fn first_data(image: &[u8], disk: &[u8]) -> u64 {
    let pages = disk.chunks(PAGE_LEN);
    let mut pages = pages
        .enumerate()
        .skip_while(|(_, page)| page.iter().all(|byte| *byte == 0));
    let (index, page) = pages.next().expect("a page with content");
    let sectors = image
        .chunks(512)
        .enumerate()
        .map(|(sector, _)| sector * 512);
    let mut found = sectors.filter(|at| image[*at..].starts_with(page));
    let at = found.next().expect("the page is in the image");
    (at - index * PAGE_LEN) as u64
}

fn fill(buf: &mut [u8], rng: &mut StdRng) {
    match rng.random_range(0..8) {
        0 => buf.fill(0),
        1..=2 => rng.fill(buf),
        3..=5 => {
            let line = format!(
                "{} host{} daemon: started\n",
                rng.random::<u32>(),
                rng.random::<u8>()
            );
            buf.iter_mut()
                .zip(line.bytes().cycle())
                .for_each(|(to, from)| *to = from);
        }
        _ => {
            for page in buf.chunks_mut(PAGE_LEN) {
                page.fill(0);
                let used = rng.random_range(1..=page.len());
                rng.fill(&mut page[..used]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: the generator can stand behind expected sums. Method: same seed twice, another seed
    // once.
    #[test]
    fn same_seed_gives_the_same_disk() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));

        write_raw(&a, (3 << 20) + 512, 50, 7);
        write_raw(&b, (3 << 20) + 512, 50, 7);
        write_raw(&c, (3 << 20) + 512, 50, 8);

        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        assert_ne!(std::fs::read(&a).unwrap(), std::fs::read(&c).unwrap());
    }

    // Goal: changes on file and in memory are the same. Method: apply both ways, compare.
    #[test]
    fn written_changes_match_naive_apply() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        write_raw(&path, 2 << 20, 50, 1);
        let mut naive = std::fs::read(&path).unwrap();
        let changes = changes(2 << 20, 100, 2);

        apply(&mut naive, &changes);
        write_changes(&path, &changes);

        assert_eq!(changes.len(), 100);
        assert_eq!(std::fs::read(&path).unwrap(), naive);
    }
}
