//! Goal: images by Windows, QEMU and Disk2vhd read to the known content and are not changed by
//! reading. Method: hash the disk through the image, compare with the list beside the images.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests state and say what they find"
)]

mod support;

use std::sync::Arc;

use failback_vhdx::{ExtentKind, Image, LogState, Place};
use support::{content_hash, file_hash, load, open_file, real_images, unpack};

fn reads_to_its_known_hash(wanted: impl Fn(&str) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    for (name, size, hash) in real_images().into_iter().filter(|(name, ..)| wanted(name)) {
        let path = unpack(&name, dir.path()).unwrap();
        let before = file_hash(&path);
        let image = Image::open(open_file(&path)).unwrap();
        assert_eq!(
            (image.virtual_size(), content_hash(&image)),
            (size, hash),
            "{name}"
        );
        assert_eq!(file_hash(&path), before, "{name} was changed by reading");
    }
}

/// Those of 10 GiB, each hashed by a test of its own so that they run side by side.
const LARGE: [&str; 3] = ["iotest-dirtylog-10G-4M.vhdx", "lvm2.vhdx", "swap.vhdx"];

#[test]
fn the_dirty_image_reads_to_its_known_hash() {
    reads_to_its_known_hash(|name| name == LARGE[0]);
}

#[test]
fn the_image_with_unmapped_blocks_reads_to_its_known_hash() {
    reads_to_its_known_hash(|name| name == LARGE[1]);
}

#[test]
fn the_image_of_three_chunks_reads_to_its_known_hash() {
    reads_to_its_known_hash(|name| name == LARGE[2]);
}

#[test]
fn every_other_image_reads_to_its_known_hash() {
    reads_to_its_known_hash(|name| !LARGE.contains(&name));
}

#[test]
fn runs_and_extents_agree_with_reading() {
    let dir = tempfile::tempdir().unwrap();
    for (name, size, _) in real_images() {
        let path = unpack(&name, dir.path()).unwrap();
        let image = Image::open(open_file(&path)).unwrap();
        let mut runs = Vec::new();
        image.resolve(0..size, &mut runs).unwrap();
        let mut at = 0;
        for run in &runs {
            assert_eq!(run.disk.start, at, "{name}");
            at = run.disk.end;
            let count = usize::try_from((run.disk.end - run.disk.start).min(1 << 18)).unwrap();
            let (mut direct, mut through) = (vec![0; count], vec![0; count]);
            image.read_at(run.disk.start, &mut through).unwrap();
            match run.place {
                Place::File { at } => image.file().read_at(at, &mut direct).unwrap(),
                Place::Zero | Place::Parent => {}
                Place::Replayed => image.read_at(run.disk.start, &mut direct).unwrap(),
            }
            assert!(direct == through, "{name} at {:#x}", run.disk.start);
        }
        assert_eq!(at, size, "{name}");
        let mut at = 0;
        while at < size {
            let extent = image.extent_at(at).unwrap();
            assert!(extent.end > at && extent.end <= size, "{name}");
            if extent.kind != ExtentKind::Data {
                let count = usize::try_from((extent.end - at).min(1 << 20)).unwrap();
                let mut bytes = vec![1; count];
                image
                    .read_at(extent.end - count as u64, &mut bytes)
                    .unwrap();
                assert!(bytes.iter().all(|byte| *byte == 0), "{name} at {at:#x}");
            }
            at = extent.end;
        }
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_dirty_image_keeps_every_byte_until_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = unpack("iotest-dirtylog-10G-4M.vhdx", dir.path()) else {
        return;
    };
    let before = file_hash(&path);
    let image = Image::open_rw(open_file(&path)).unwrap();
    assert_eq!(image.log_state(), LogState::Replayed { entries: 1 });
    image.flush().unwrap();
    image.close().unwrap();
    drop(image);
    assert_eq!(file_hash(&path), before);
}

#[test]
fn the_first_write_replays_the_log_in_the_file() {
    let Some(file) = load("iotest-dirtylog-10G-4M.vhdx") else {
        return;
    };
    let file = Arc::new(file);
    let image = Image::open_rw(file.clone()).unwrap();
    image.write_at(5 << 30, &[7; 512]).unwrap();
    image.close().unwrap();
    let image = Image::open(file).unwrap();
    let mut bytes = vec![0; 18 << 20];
    image.read_at(0, &mut bytes).unwrap();
    assert_eq!(image.log_state(), LogState::Empty);
    assert!(bytes.iter().all(|byte| *byte == 0xa5));
    image.read_at(5 << 30, &mut bytes[..513]).unwrap();
    assert_eq!((bytes[511], bytes[512]), (7, 0));
}
