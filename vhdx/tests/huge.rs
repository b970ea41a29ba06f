//! Goal: the largest disk there can be costs nothing while it is empty. Method: 64 TiB at 1 MiB
//! blocks, a BAT of 513 MiB, in memory and in a sparse file; time and memory are looked at.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests state and say what they find"
)]

mod support;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use failback_vhdx::{CreateOptions, ExtentKind, FileAt, Image, Kind, MemoryFile};
use support::{MIB, new_file};

const SIZE: u64 = 64 << 40;

fn options() -> CreateOptions {
    CreateOptions {
        block_size: Some(1 << 20),
        ..CreateOptions::new(SIZE, Kind::Dynamic)
    }
}

/// What "at once" means. A busy machine makes one try longer than that, a slow way all of them.
const AT_ONCE: Duration = Duration::from_millis(200);
const TRIES: usize = 5;

fn check_speed(new_file: impl Fn() -> Arc<dyn FileAt>) {
    let create = || {
        let file = new_file();
        let start = Instant::now();
        Image::create(file.clone(), &options()).unwrap();
        let image = Image::open_rw(file).unwrap();
        let all = image.extent_at(0).unwrap();
        let took = start.elapsed();
        assert_eq!((all.kind, all.end), (ExtentKind::Absent, SIZE));
        (took < AT_ONCE).then_some(image)
    };
    let image = (0..TRIES).find_map(|_| create()).expect("not at once");
    assert_eq!(image.scan_allocation().unwrap().not_present, SIZE / MIB);
    image.write_at(SIZE - 512, &[9; 512]).unwrap();
    image.write_at(SIZE / 2, &[8; 512]).unwrap();
    let ends = [0, SIZE / 2 + MIB].map(|at| image.extent_at(at).unwrap().end);
    assert_eq!(ends, [SIZE / 2, SIZE - MIB]);
    image.close().unwrap();
    let image = Image::open(image.file().clone()).unwrap();
    let mut bytes = [0; 1024];
    image.read_at(SIZE - 1024, &mut bytes).unwrap();
    assert_eq!((bytes[511], bytes[512]), (0, 9));
    assert_eq!(image.scan_allocation().unwrap().present, 2);
    let walk = || {
        let (start, mut at, mut extents) = (Instant::now(), 0, 0);
        while at < SIZE {
            at = image.extent_at(at).unwrap().end;
            extents += 1;
        }
        assert!(extents < 12, "{extents} extents");
        start.elapsed()
    };
    assert!((0..TRIES).any(|_| walk() < AT_ONCE));
}

#[test]
fn an_empty_64_tib_disk_opens_at_once_in_memory() {
    let files = RefCell::new(Vec::new());
    check_speed(|| {
        let file = Arc::new(MemoryFile::new());
        files.borrow_mut().push(file.clone());
        file
    });
    for file in files.take() {
        assert!(file.allocated() < 4 * MIB, "{} bytes", file.allocated());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_empty_64_tib_disk_opens_at_once_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let count = Cell::new(0);
    check_speed(|| {
        count.set(count.get() + 1);
        new_file(&dir.path().join(format!("{}.vhdx", count.get())))
    });
}

#[test]
fn entries_of_every_chunk_end_are_found_again() {
    let file = Arc::new(MemoryFile::new());
    let image = Image::create(file.clone(), &options()).unwrap();
    // 4096 blocks of 1 MiB with 512-byte sectors follow each other before a bitmap entry.
    let blocks = [4095, 4096, 4097, 8191, 8192, 67_108_863];
    for block in blocks {
        image
            .write_at(block * MIB + 512, &block.to_le_bytes().repeat(64))
            .unwrap();
    }
    image.close().unwrap();
    let image = Image::open(file).unwrap();
    for block in blocks {
        let mut bytes = [0; 1024];
        image.read_at(block * MIB, &mut bytes).unwrap();
        assert_eq!(bytes[..512], [0; 512]);
        assert_eq!(bytes[512..520], block.to_le_bytes());
    }
    assert_eq!(image.scan_allocation().unwrap().present, 6);
}
