//! Real images, a naive model of a disk, and bytes of images by hand.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use failback_vhdx::{CreateOptions, FileAt, Image, Kind, MemoryFile};
use sha2::{Digest, Sha256};

pub(crate) const MIB: u64 = 1 << 20;

/// The folder of real images, or `None` with a loud word where it is not there.
pub(crate) fn images_dir() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/images");
    if !dir.is_dir() {
        eprintln!("SKIPPED: no real images in {}", dir.display());
        return None;
    }
    Some(dir)
}

/// Unpacks a real image into `into`; `None` with a loud word where it is not there.
pub(crate) fn unpack(name: &str, into: &Path) -> Option<PathBuf> {
    let dir = images_dir()?;
    let target = into.join(name);
    for (suffix, tool) in [("gz", "gzip"), ("bz2", "bzip2")] {
        let packed = dir.join(format!("{name}.{suffix}"));
        if packed.is_file() {
            let output = Command::new(tool).arg("-dc").arg(packed).output().unwrap();
            assert!(output.status.success(), "{tool} cannot unpack {name}");
            fs::write(&target, output.stdout).unwrap();
            return Some(target);
        }
    }
    eprintln!("SKIPPED: no {name} among the real images");
    None
}

/// A real image in memory.
pub(crate) fn load(name: &str) -> Option<MemoryFile> {
    let dir = tempfile::tempdir().unwrap();
    let path = unpack(name, dir.path())?;
    Some(MemoryFile::from_bytes(&fs::read(path).unwrap()))
}

/// Name, virtual size and content hash of each real VHDX without a parent.
pub(crate) fn real_images() -> Vec<(String, u64, String)> {
    let Some(dir) = images_dir() else {
        return Vec::new();
    };
    let table = fs::read_to_string(dir.join("contents.tsv")).unwrap();
    let rows = table
        .lines()
        .skip(1)
        .map(|line| line.split('\t').collect::<Vec<_>>());
    rows.filter(|row| row[0].ends_with(".vhdx") && !row[0].contains("differential"))
        .map(|row| {
            (
                row[0].to_owned(),
                row[3].parse().unwrap(),
                row[4].to_owned(),
            )
        })
        .collect()
}

/// SHA-256 of the whole disk, read through the image.
pub(crate) fn content_hash(image: &Image) -> String {
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < image.virtual_size() {
        let count = usize::try_from((image.virtual_size() - at).min(1 << 20)).unwrap();
        image.read_at(at, &mut buf[..count]).unwrap();
        hash.update(&buf[..count]);
        at += count as u64;
    }
    hex(&hash.finalize())
}

pub(crate) fn file_hash(path: &Path) -> String {
    hex(&Sha256::digest(fs::read(path).unwrap()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn open_file(path: &Path) -> Arc<File> {
    Arc::new(File::options().read(true).write(true).open(path).unwrap())
}

pub(crate) fn new_file(path: &Path) -> Arc<File> {
    Arc::new(
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap(),
    )
}

/// A new image in memory with 1 MiB blocks.
pub(crate) fn small(size: u64, kind: Kind) -> (Arc<MemoryFile>, Image) {
    let file = Arc::new(MemoryFile::new());
    let options = CreateOptions {
        block_size: Some(1 << 20),
        ..CreateOptions::new(size, kind)
    };
    let image = Image::create(file.clone(), &options).unwrap();
    (file, image)
}

pub(crate) fn read_all(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(image.virtual_size()).unwrap()];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// CRC-32C, bit by bit.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !crc
}

/// Changes a structure and makes its checksum, bytes 4..8, right again.
pub(crate) fn patch(file: &MemoryFile, at: u64, len: usize, change: impl FnOnce(&mut [u8])) {
    let mut bytes = vec![0; len];
    file.read_at(at, &mut bytes).unwrap();
    change(&mut bytes);
    bytes[4..8].fill(0);
    let sum = crc32c(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    file.write_at(at, &bytes).unwrap();
}

pub(crate) fn read_u64(file: &dyn FileAt, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_at(at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// Write GUIDs of both headers and their log GUIDs: `[first, second]` of 3 times 16 bytes.
pub(crate) fn header_guids(file: &dyn FileAt) -> [[u8; 48]; 2] {
    [64 << 10, 128 << 10].map(|at: u64| {
        let mut guids = [0; 48];
        file.read_at(at + 16, &mut guids).unwrap();
        guids
    })
}

/// Whether the oracle is installed; says so loudly where not.
pub(crate) fn has_qemu() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: no qemu-img");
    }
    found
}

/// Runs a tool and returns its output and whether it succeeded.
pub(crate) fn run(tool: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new(tool).args(args).output().unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}
