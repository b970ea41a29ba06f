//! VHD images in memory, the real ones, and foreign programs.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use failback_engine::disk::vhd::{CreateOptions, ParentNames, VhdImage};
use failback_vhdx::{FileAt, MemoryFile};
use sha2::{Digest, Sha256};

pub(crate) const SECTOR: usize = 512;
pub(crate) const NAMES: ParentNames<'_> = ParentNames {
    relative: ".\\parent.vhd",
    absolute: Some("C:\\disks\\parent.vhd"),
};

/// A small generator of numbers: xorshift64*.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % limit
    }
}

/// The file of a new, empty, closed image.
pub(crate) fn empty(len: u64, is_fixed: bool, block_size: u32) -> Arc<MemoryFile> {
    let file = Arc::new(MemoryFile::new());
    let options = CreateOptions {
        block_size: Some(block_size),
        ..CreateOptions::new(len, is_fixed)
    };
    VhdImage::create(file.clone(), &options)
        .unwrap()
        .close()
        .unwrap();
    file
}

/// A parent of which every third sector is its own, and the file of an empty child.
pub(crate) fn chain(len: u64, block_size: u32) -> (Arc<VhdImage>, Arc<MemoryFile>) {
    let file = empty(len, false, block_size);
    let parent = VhdImage::open_rw(file.clone()).unwrap();
    for at in (0..len).step_by(3 * SECTOR) {
        parent.write_at(at, &[200; SECTOR]).unwrap();
    }
    parent.close().unwrap();
    let parent = Arc::new(VhdImage::open(file).unwrap());
    let file = Arc::new(MemoryFile::new());
    VhdImage::create_child(file.clone(), parent.clone(), NAMES, Some(block_size))
        .unwrap()
        .close()
        .unwrap();
    (parent, file)
}

pub(crate) fn read_all(image: &VhdImage) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(image.virtual_size()).unwrap()];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Makes the sums of header and footers right again, so that damage gets past them; the footer at
/// the end becomes the damaged copy.
pub(crate) fn mend_sums(file: &MemoryFile) {
    let mut bytes = file.to_bytes();
    let end = bytes.len() - 512;
    for (range, sum_at) in [(0..512, 64), (512..1536, 36)] {
        let part = &mut bytes[range];
        part[sum_at..sum_at + 4].fill(0);
        let sum = part
            .iter()
            .fold(0_u32, |sum, byte| sum.wrapping_add((*byte).into()));
        part[sum_at..sum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
    }
    bytes.copy_within(0..512, end);
    file.write_at(0, &bytes).unwrap();
}

/// Offsets of a disk in memory.
pub(crate) fn span(range: &Range<u64>) -> Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A real image and the sum of its content; `None`, said aloud, where there are none.
pub(crate) fn unpack(name: &str, into: &Path) -> Option<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/images");
    let Ok(table) = fs::read_to_string(folder.join("contents.tsv")) else {
        skipped("no real images beside the checkout");
        return None;
    };
    let row = table.lines().find(|row| row.starts_with(name)).unwrap();
    let target = into.join(name);
    for (suffix, tool) in [("gz", "gzip"), ("bz2", "bzip2")] {
        let packed = folder.join(format!("{name}.{suffix}"));
        if packed.is_file() {
            let output = run(tool, &["-dc", packed.to_str().unwrap()]);
            fs::write(&target, output.stdout).unwrap();
        }
    }
    Some((target, row.split('\t').nth(4).unwrap().to_owned()))
}

/// Whether a program is there; said aloud where it is not, and an error where `CI` is set.
pub(crate) fn has(program: &str) -> bool {
    let is_there = Command::new(program).arg("--help").output().is_ok();
    assert!(
        is_there || std::env::var_os("CI").is_none(),
        "{program} is missing: run tests/setup.sh"
    );
    if !is_there {
        skipped(program);
    }
    is_there
}

#[allow(clippy::print_stderr, reason = "a skipped test has to be heard")]
fn skipped(what: &str) {
    eprintln!("SKIP: {what}; tests/setup.sh installs programs");
}

/// Runs a program that has to succeed.
pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
