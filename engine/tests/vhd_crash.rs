//! Goal: a power cut at any moment leaves a VHD that opens, in which every sector is old or new
//! and everything flushed is there. Method: record all changes of a session, materialise every
//! prefix with random subsets of the changes not yet synced, some torn at sectors, open and read.
//! The seed is fixed and printed with a failure.
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod vhd_support;

use std::sync::Arc;

use failback_engine::disk::vhd::{CreateOptions, Finding, Severity, VhdImage, check};
use failback_engine::{ErrorKind, Result};
use failback_vhdx::{CrashFile, CrashOp, Fate, FileAt, MemoryFile};
use vhd_support::{Random, SECTOR, chain, empty, read_all};

const LEN: u64 = 512 << 10;
const SECTORS: usize = 1024;
const BLOCK: u32 = 4 << 10;

fn fate(random: &mut Random) -> Fate {
    match random.below(5) {
        0 | 1 => Fate::Kept,
        2 | 3 => Fate::Lost,
        _ => Fate::Torn(usize::try_from(random.below(16)).unwrap() * SECTOR),
    }
}

/// What each sector may read as, by the number of changes recorded when it was so.
struct History {
    /// (changes recorded before the write, content)
    versions: Vec<Vec<(usize, u8)>>,
    /// Content that was flushed, with the number of changes recorded when the flush returned.
    flushed: Vec<(usize, Vec<u8>)>,
    now: Vec<u8>,
}

impl History {
    fn new(content: Vec<u8>) -> Self {
        Self {
            versions: vec![Vec::new(); content.len()],
            flushed: vec![(0, content.clone())],
            now: content,
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
    /// last flush before made durable, or what a change begun since then and before made it.
    fn allows(&self, sector: usize, prefix: usize, byte: u8) -> bool {
        let mut flushes = self.flushed.iter().rev();
        let (done, durable) = flushes.find(|(done, _)| *done <= prefix).unwrap();
        byte == durable[sector]
            || self.versions[sector]
                .iter()
                .any(|(started, value)| *value == byte && (*done..prefix).contains(started))
    }
}

/// The content of each sector, by its first byte.
fn sectors_of(image: &VhdImage, what: &str) -> Vec<u8> {
    let bytes = read_all(image);
    let sectors = bytes.chunks(SECTOR).enumerate();
    sectors
        .map(|(sector, content)| {
            let is_whole = content.iter().all(|byte| *byte == content[0]);
            assert!(is_whole, "torn sector {sector}: {what}");
            content[0]
        })
        .collect()
}

fn play(image: &VhdImage, file: &CrashFile, history: &mut History, random: &mut Random) {
    for step in 0..60 {
        let started = file.op_count();
        let first = random.below(SECTORS as u64);
        let count = (1 + random.below(24)).min(SECTORS as u64 - first);
        let range = first * 512..(first + count) * 512;
        let [at, len] = [first, count].map(|number| usize::try_from(number).unwrap());
        match random.below(8) {
            0..=4 => {
                let byte = u8::try_from(step % 190 + 1).unwrap();
                image
                    .write_at(range.start, &vec![byte; len * SECTOR])
                    .unwrap();
                history.change(started, at, len, byte);
            }
            5 | 6 => {
                image.zero(range).unwrap();
                history.change(started, at, len, 0);
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

/// Plays a session on `base` and looks at every cut of it.
fn survives(
    seed: u64,
    base: &MemoryFile,
    open_rw: impl Fn(Arc<dyn FileAt>) -> Result<VhdImage>,
    open: impl Fn(Arc<dyn FileAt>) -> Result<VhdImage>,
) {
    let mut random = Random(seed);
    let file = Arc::new(CrashFile::new(base.clone()));
    let image = open_rw(file.clone()).unwrap();
    let mut history = History::new(sectors_of(&image, "before"));
    play(&image, &file, &mut history, &mut random);
    for prefix in 0..=file.op_count() {
        for subset in 0..6 {
            let what = format!("prefix {prefix}, subset {subset}, seed {:#x}", random.0);
            let cut = file.materialise(prefix, |_| match subset {
                0 => Fate::Kept,
                1 => Fate::Lost,
                _ => fate(&mut random),
            });
            let findings = check(&cut).unwrap();
            let is_sound = findings.iter().all(|one| one.severity == Severity::Warning);
            assert!(is_sound, "{findings:?}: {what}");
            let image = open(Arc::new(cut)).unwrap_or_else(|error| panic!("{error}: {what}"));
            for (sector, byte) in sectors_of(&image, &what).into_iter().enumerate() {
                let is_allowed = history.allows(sector, prefix, byte);
                assert!(is_allowed, "sector {sector} reads {byte}: {what}");
            }
        }
    }
}

#[test]
fn every_cut_of_a_session_on_a_dynamic_disk_leaves_old_or_new_sectors() {
    for seed in [0x5eed_0001, 0x5eed_0002] {
        let base = empty(LEN, false, BLOCK);
        survives(seed, &base, VhdImage::open_rw, VhdImage::open);
    }
}

#[test]
fn every_cut_of_a_session_on_a_fixed_disk_leaves_old_or_new_sectors() {
    let base = empty(LEN, true, BLOCK);
    survives(0x5eed_0003, &base, VhdImage::open_rw, VhdImage::open);
}

#[test]
fn every_cut_of_a_session_on_a_child_leaves_old_or_new_sectors() {
    for seed in [0x5eed_0004, 0x5eed_0005] {
        let (parent, base) = chain(LEN, BLOCK);
        survives(
            seed,
            &base,
            |file| VhdImage::open_child_rw(file, parent.clone()),
            |file| VhdImage::open_child(file, parent.clone()),
        );
    }
}

#[test]
fn an_old_footer_of_511_bytes_is_replaced_safely() {
    let base = empty(LEN, false, BLOCK);
    base.set_len(base.len().unwrap() - 1).unwrap();
    survives(0x5eed_0006, &base, VhdImage::open_rw, VhdImage::open);
}

#[test]
fn a_lost_footer_is_mended_safely() {
    for cut in [0, 512, 300] {
        let base = empty(LEN, false, BLOCK);
        let len = base.len().unwrap();
        base.zero(len - 512..len).unwrap();
        base.set_len(len - cut).unwrap();
        survives(0x5eed_0007, &base, VhdImage::open_rw, VhdImage::open);
    }
}

#[test]
fn a_damaged_copy_is_mended_safely() {
    let base = empty(LEN, false, BLOCK);
    base.write_at(100, &[1]).unwrap();
    survives(0x5eed_0008, &base, VhdImage::open_rw, VhdImage::open);
}

// Goal: recovering from a cut is as safe as the rest, with what the first cut left where new blocks
// go. Method: cut a session, change one sector of what is left, cut that at every change.
fn survives_twice(
    seed: u64,
    base: &MemoryFile,
    open_rw: impl Fn(Arc<dyn FileAt>) -> Result<VhdImage>,
    open: impl Fn(Arc<dyn FileAt>) -> Result<VhdImage>,
) {
    let mut random = Random(seed);
    let file = Arc::new(CrashFile::new(base.clone()));
    let image = open_rw(file.clone()).unwrap();
    let mut history = History::new(sectors_of(&image, "before"));
    play(&image, &file, &mut history, &mut random);
    for prefix in (0..=file.op_count()).step_by(3) {
        let cut = file.materialise(prefix, |_| fate(&mut random));
        let again = Arc::new(CrashFile::new(cut));
        let found = read_all(&open(again.clone()).unwrap());
        let image = open_rw(again.clone()).unwrap();
        let places = [0, 41, 433, 701, SECTORS - 1].map(|sector| sector * SECTOR);
        for at in places {
            image.write_at(at as u64, &[255; SECTOR]).unwrap();
        }
        image.close().unwrap();
        for second in 0..=again.op_count() {
            let cut = Arc::new(again.materialise(second, |_| fate(&mut random)));
            let mut bytes = read_all(&open(cut).unwrap());
            for at in places {
                let sector = &mut bytes[at..at + SECTOR];
                if sector == [255; SECTOR] {
                    sector.copy_from_slice(&found[at..at + SECTOR]);
                }
            }
            assert!(
                bytes == found,
                "prefix {prefix}, then {second}, seed {seed:#x}"
            );
        }
    }
}

#[test]
fn a_cut_after_a_cut_of_a_disk_is_survived() {
    let base = empty(LEN, false, BLOCK);
    survives_twice(0x5eed_0009, &base, VhdImage::open_rw, VhdImage::open);
}

#[test]
fn a_cut_after_a_cut_of_a_child_is_survived() {
    let (parent, base) = chain(LEN, BLOCK);
    survives_twice(
        0x5eed_000a,
        &base,
        |file| VhdImage::open_child_rw(file, parent.clone()),
        |file| VhdImage::open_child(file, parent.clone()),
    );
}

// Goal: once the file has grown there is a footer at its end at any time: some readers know no
// copy. Method: every cut of a session from where it overwrites the old footer, up to its close.
#[test]
fn a_grown_file_always_ends_with_a_footer() {
    let mut random = Random(0x5eed_000b);
    // The first block begins where its table and the footer meet.
    let base = empty(4 * LEN, false, BLOCK);
    let old_footer = base.len().unwrap() - 512;
    let file = Arc::new(CrashFile::new(MemoryFile::clone(&base)));
    let image = VhdImage::open_rw(file.clone()).unwrap();
    image.write_at(0, &[1; 4096]).unwrap();
    image.flush().unwrap();
    image.close().unwrap();
    let overwrites = |op: &CrashOp| match op {
        CrashOp::Write { at, data } => (*at..*at + data.len() as u64).contains(&old_footer),
        CrashOp::Zero(range) => range.contains(&old_footer),
        _ => false,
    };
    let grown = file.ops().iter().position(overwrites).unwrap();
    for prefix in grown..=file.op_count() {
        for _ in 0..16 {
            let cut = file.materialise(prefix, |_| fate(&mut random));
            let findings = check(&cut).unwrap();
            let is_footer = |one: &Finding| one.structure.starts_with("footer");
            assert!(
                !findings.iter().any(is_footer),
                "prefix {prefix}: {findings:?}"
            );
        }
    }
}

#[test]
fn a_cut_while_creating_leaves_nothing_or_an_empty_disk() {
    for is_fixed in [false, true] {
        let file = Arc::new(CrashFile::new(MemoryFile::new()));
        let options = CreateOptions::new(3 << 20, is_fixed);
        drop(VhdImage::create(file.clone(), &options).unwrap());
        for prefix in 0..=file.op_count() {
            for kept in 0..1 << prefix.min(8) {
                let fate = |index| match kept >> (prefix - 1 - index) & 1 {
                    1 => Fate::Kept,
                    _ => Fate::Lost,
                };
                let cut = Arc::new(file.materialise(prefix, fate));
                match VhdImage::open(cut) {
                    Ok(image) => {
                        assert_eq!(image.virtual_size(), 3 << 20);
                        assert!(read_all(&image).iter().all(|byte| *byte == 0));
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Damaged);
                        assert!(prefix < file.op_count(), "a finished image does not open");
                    }
                }
            }
        }
    }
}
