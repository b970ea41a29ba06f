//! Goal: a power cut at any moment leaves an image that opens, in which every sector is old or
//! new and everything flushed is there. Method: record all changes of a session, materialise
//! every prefix with random subsets of the changes not yet synced, some torn, open and read. The
//! seed is fixed and printed with a failure.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests state and say what they find"
)]

mod support;

use std::sync::Arc;

use failback_vhdx::{CrashFile, CreateOptions, Fate, FileAt, Image, Kind, MemoryFile};
use support::{MIB, header_guids, load, small};

const SECTOR: usize = 512;

/// A small generator of numbers: xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 32) % limit
    }

    fn fate(&mut self) -> Fate {
        match self.below(5) {
            0 | 1 => Fate::Kept,
            2 | 3 => Fate::Lost,
            _ => Fate::Torn(usize::try_from(self.below(64)).unwrap() * SECTOR),
        }
    }
}

/// What each sector may read as, by the number of changes recorded when it was so.
struct History {
    /// (changes recorded before the write, changes recorded when it was durable, content)
    versions: Vec<Vec<(usize, u8)>>,
    /// Content that was flushed, with the number of changes recorded when the flush returned.
    flushed: Vec<(usize, Vec<u8>)>,
    now: Vec<u8>,
}

impl History {
    fn new(sectors: usize) -> Self {
        Self {
            versions: vec![vec![(0, 0)]; sectors],
            flushed: vec![(0, vec![0; sectors])],
            now: vec![0; sectors],
        }
    }

    fn change(&mut self, started: usize, first: usize, count: usize, byte: u8) {
        for sector in first..first + count {
            self.versions[sector].push((started, byte));
            self.now[sector] = byte;
        }
    }

    fn flush(&mut self, done: usize) {
        self.flushed.push((done, self.now.clone()));
    }

    /// Whether a sector may read so when the power is cut behind `prefix` changes: it is what the
    /// last flush before made durable, or some change made after that value and begun before.
    fn allows(&self, sector: usize, prefix: usize, byte: u8) -> bool {
        let (_, durable) = self
            .flushed
            .iter()
            .rev()
            .find(|(done, _)| *done <= prefix)
            .unwrap();
        let flushed_at = self
            .flushed
            .iter()
            .rev()
            .find(|(done, _)| *done <= prefix)
            .unwrap()
            .0;
        byte == durable[sector]
            || self.versions[sector]
                .iter()
                .any(|(started, value)| *value == byte && (flushed_at..prefix).contains(started))
    }
}

/// Random changes of a disk of this many sectors through `image`, told to `history`.
fn play(image: &Image, file: &CrashFile, history: &mut History, random: &mut Random, steps: u64) {
    let sectors = history.now.len() as u64;
    for step in 0..steps {
        let started = file.op_count();
        let first = random.below(sectors);
        let count = (1 + random.below(24)).min(sectors - first);
        let [at, len] = [first, count].map(|number| usize::try_from(number).unwrap());
        match random.below(8) {
            0..=4 => {
                let byte = u8::try_from(step % 250 + 1).unwrap();
                image
                    .write_at(first * 512, &vec![byte; len * SECTOR])
                    .unwrap();
                history.change(started, at, len, byte);
            }
            5 => {
                image.zero(first * 512..(first + count) * 512).unwrap();
                history.change(started, at, len, 0);
            }
            6 => {
                let block = first * 512 / MIB;
                image.zero(block * MIB..(block + 1) * MIB).unwrap();
                history.change(started, usize::try_from(block).unwrap() * 2048, 2048, 0);
            }
            _ => {
                image.flush().unwrap();
                history.flush(file.op_count());
            }
        }
    }
    image.close().unwrap();
    history.flush(file.op_count());
}

fn check_all_prefixes(file: &CrashFile, history: &History, random: &mut Random, subsets: usize) {
    for prefix in 0..=file.op_count() {
        for subset in 0..subsets {
            let seed = random.0;
            let cut = file.materialise(prefix, |_| match subset {
                0 => Fate::Kept,
                1 => Fate::Lost,
                _ => random.fate(),
            });
            let what = format!("prefix {prefix}, subset {subset}, seed {seed:#x}");
            check(&cut, history, prefix, &what);
        }
    }
}

fn check(cut: &MemoryFile, history: &History, prefix: usize, what: &str) {
    let image =
        Image::open(Arc::new(cut.clone())).unwrap_or_else(|error| panic!("{error}: {what}"));
    let bytes = support::read_all(&image);
    for (sector, content) in bytes.chunks(SECTOR).enumerate() {
        let byte = content[0];
        assert!(
            content.iter().all(|other| *other == byte),
            "torn sector {sector}: {what}"
        );
        assert!(
            history.allows(sector, prefix, byte),
            "sector {sector} reads {byte}: {what}"
        );
    }
}

#[test]
fn every_cut_of_a_session_leaves_old_or_new_sectors() {
    for (seed, kind) in [(0x5eed_0001, Kind::Dynamic), (0x5eed_0002, Kind::Fixed)] {
        let mut random = Random(seed);
        let (base, _) = small(4 * MIB, kind);
        let file = Arc::new(CrashFile::new(MemoryFile::clone(&base)));
        let image = Image::open_rw(file.clone()).unwrap();
        let mut history = History::new(8192);
        play(&image, &file, &mut history, &mut random, 40);
        check_all_prefixes(&file, &history, &mut random, 5);
    }
}

#[test]
fn every_cut_of_a_session_that_only_zeroes_leaves_old_or_new_sectors() {
    let mut random = Random(0x5eed_0006);
    let (base, image) = small(4 * MIB, Kind::Dynamic);
    image.write_at(0, &vec![9; 4 << 20]).unwrap();
    image.close().unwrap();
    let file = Arc::new(CrashFile::new(MemoryFile::clone(&base)));
    let image = Image::open_rw(file.clone()).unwrap();
    let mut history = History::new(8192);
    history.change(0, 0, 8192, 9);
    history.flushed = vec![(0, history.now.clone())];
    image.zero(MIB..3 * MIB).unwrap();
    history.change(0, 2048, 4096, 0);
    image.flush().unwrap();
    history.flush(file.op_count());
    image.close().unwrap();
    history.flush(file.op_count());
    check_all_prefixes(&file, &history, &mut random, 24);
}

#[test]
fn every_cut_of_a_flush_of_many_log_entries_leaves_old_or_new_blocks() {
    // One block in each of 300 pages of the BAT: three log entries, which go around the ring.
    let mut random = Random(0x5eed_0007);
    let (base, _) = small(300 * 512 * MIB, Kind::Dynamic);
    let file = Arc::new(CrashFile::new(MemoryFile::clone(&base)));
    let image = Image::open_rw(file.clone()).unwrap();
    let places: Vec<u64> = (0..300).map(|page| page * 512 * MIB).collect();
    for at in &places {
        image.write_at(*at, &[7; SECTOR]).unwrap();
    }
    let written = file.op_count();
    image.flush().unwrap();
    for prefix in written..=file.op_count() {
        for _ in 0..2 {
            let seed = random.0;
            let cut = file.materialise(prefix, |_| random.fate());
            let image = Image::open(Arc::new(cut)).unwrap();
            let mut found = Vec::new();
            for at in &places {
                let mut bytes = [1; SECTOR];
                image.read_at(*at, &mut bytes).unwrap();
                assert!(
                    bytes == [0; SECTOR] || bytes == [7; SECTOR],
                    "seed {seed:#x}"
                );
                found.push(bytes[0]);
            }
            // Entries become durable from the end of the table on.
            assert!(found.is_sorted(), "prefix {prefix}, seed {seed:#x}");
        }
    }
    drop(image);
    let cut = file.materialise(file.op_count(), |_| Fate::Lost);
    assert_eq!(
        Image::open(Arc::new(cut))
            .unwrap()
            .scan_allocation()
            .unwrap()
            .present,
        300
    );
}

#[test]
fn a_cut_while_recovering_from_a_cut_is_survived() {
    let mut random = Random(0x5eed_0003);
    let (base, _) = small(4 * MIB, Kind::Dynamic);
    let file = Arc::new(CrashFile::new(MemoryFile::clone(&base)));
    let image = Image::open_rw(file.clone()).unwrap();
    let mut history = History::new(8192);
    play(&image, &file, &mut history, &mut random, 16);
    for prefix in (0..=file.op_count()).step_by(3) {
        let cut = file.materialise(prefix, |_| random.fate());
        let again = Arc::new(CrashFile::new(cut));
        let found = support::read_all(&Image::open(again.clone()).unwrap());
        let image = Image::open_rw(again.clone()).unwrap();
        image.write_at(0, &[255; SECTOR]).unwrap();
        image.close().unwrap();
        for second in 0..=again.op_count() {
            let cut = Arc::new(again.materialise(second, |_| random.fate()));
            let bytes = support::read_all(&Image::open(cut).unwrap());
            assert!(
                bytes[SECTOR..] == found[SECTOR..],
                "prefix {prefix}, then {second}"
            );
            assert!(
                bytes[0] == found[0] || bytes[0] == 255,
                "prefix {prefix}, then {second}"
            );
        }
    }
}

#[test]
fn a_cut_while_replaying_the_log_of_qemu_is_survived() {
    let Some(base) = load("iotest-dirtylog-10G-4M.vhdx") else {
        return;
    };
    let file = Arc::new(CrashFile::new(base));
    let image = Image::open_rw(file.clone()).unwrap();
    let mut random = Random(0x5eed_0004);
    image.write_at(9 << 30, &[1; SECTOR]).unwrap();
    image.close().unwrap();
    for prefix in 0..=file.op_count() {
        for _ in 0..4 {
            let cut = Arc::new(file.materialise(prefix, |_| random.fate()));
            let image = Image::open(cut).unwrap();
            for block in 0..18 {
                let mut bytes = [0; SECTOR];
                image.read_at(block * MIB + 4096, &mut bytes).unwrap();
                assert_eq!(bytes, [0xa5; SECTOR], "block {block}, prefix {prefix}");
            }
        }
    }
}

#[test]
fn a_cut_while_creating_leaves_nothing_or_an_empty_image() {
    for kind in [Kind::Dynamic, Kind::Fixed] {
        let file = Arc::new(CrashFile::new(MemoryFile::new()));
        let options = CreateOptions {
            block_size: Some(1 << 20),
            ..CreateOptions::new(3 * MIB, kind)
        };
        Image::create(file.clone(), &options).unwrap();
        for prefix in 0..=file.op_count() {
            // Every subset of the last changes, which are fewer than these bits.
            for kept in 0..1 << prefix.min(8) {
                let is_kept = |index| kept >> (prefix - 1 - index) & 1 == 1;
                let fate = |index| {
                    if is_kept(index) {
                        Fate::Kept
                    } else {
                        Fate::Lost
                    }
                };
                let cut = Arc::new(file.materialise(prefix, fate));
                if let Ok(image) = Image::open(cut) {
                    assert!(support::read_all(&image).iter().all(|byte| *byte == 0));
                    assert_eq!((image.virtual_size(), image.kind()), (3 * MIB, kind));
                    let blocks = if kind == Kind::Fixed { 3 } else { 0 };
                    assert_eq!(image.scan_allocation().unwrap().present, blocks);
                } else {
                    assert!(prefix < file.op_count(), "a finished image does not open");
                }
            }
        }
    }
}

#[test]
fn both_headers_agree_after_a_cut_in_the_middle_of_writing() {
    let (base, _) = small(4 * MIB, Kind::Dynamic);
    let file = Arc::new(CrashFile::new(MemoryFile::clone(&base)));
    let image = Image::open_rw(file.clone()).unwrap();
    image.write_at(0, &[1; SECTOR]).unwrap();
    let cut = file.materialise(file.op_count(), |_| Fate::Lost);
    let [first, second] = header_guids(&cut);
    assert_eq!(first, second);
    assert_ne!(first[32..], [0; 16]);
    cut.zero(64 << 10..68 << 10).unwrap();
    Image::open(Arc::new(cut)).unwrap();
}
