//! Goal: space that a block lost goes to others and shows none of its bytes, undefined blocks can
//! be made zero, fixed images have their space. Method: marks in blocks, entries set by hand, and
//! the length and the blocks of real files.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests state and say what they find"
)]

mod support;

use std::sync::Arc;

use failback_vhdx::{CreateOptions, FileAt, Image, Kind, MemoryFile};
use support::{MIB, header_guids, new_file, read_all, read_u64, small};

/// Where this crate puts the table of a new image.
const BAT: u64 = 3 * MIB;

#[test]
fn space_of_zeroed_blocks_is_used_again_and_shows_nothing_old() {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    image.write_at(0, &vec![9; 4 << 20]).unwrap();
    image.flush().unwrap();
    image.zero(MIB..3 * MIB).unwrap();
    image.flush().unwrap();
    image.write_at(6 * MIB + 4096, &[5; 512]).unwrap();
    image.write_at(7 * MIB, &vec![6; 1 << 20]).unwrap();
    image.close().unwrap();
    assert_eq!(
        file.len().unwrap(),
        8 * MIB,
        "four blocks behind four MiB of structures"
    );
    let bytes = read_all(&Image::open(file).unwrap());
    assert!(bytes[1 << 20..3 << 20].iter().all(|byte| *byte == 0));
    assert!(
        bytes[6 << 20..(6 << 20) + 4096]
            .iter()
            .all(|byte| *byte == 0)
    );
    assert_eq!(bytes[(6 << 20) + 4096..(6 << 20) + 4608], [5; 512]);
    assert!(
        bytes[(6 << 20) + 4608..7 << 20]
            .iter()
            .all(|byte| *byte == 0)
    );
    assert!(bytes[7 << 20..].iter().all(|byte| *byte == 6));
}

#[test]
fn space_is_not_used_again_before_its_loss_is_durable() {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    image.write_at(0, &vec![9; 1 << 20]).unwrap();
    image.flush().unwrap();
    image.zero(0..MIB).unwrap();
    image.write_at(4 * MIB, &vec![6; 1 << 20]).unwrap();
    // As after a power cut: the table in the file still has the old block.
    let cut = Image::open(Arc::new(MemoryFile::clone(&file))).unwrap();
    assert!(read_all(&cut)[..1 << 20].iter().all(|byte| *byte == 9));
}

#[test]
fn gaps_of_a_file_are_filled_before_it_grows() {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    image.write_at(0, &vec![9; 3 << 20]).unwrap();
    image.zero(MIB..2 * MIB).unwrap();
    image.close().unwrap();
    let len = file.len().unwrap();
    let image = Image::open_rw(file.clone()).unwrap();
    image.write_at(5 * MIB, &[1; 512]).unwrap();
    image.close().unwrap();
    assert_eq!(file.len().unwrap(), len);
    let mut bytes = vec![7; 1 << 20];
    image.read_at(5 * MIB, &mut bytes).unwrap();
    assert!(bytes[512..].iter().all(|byte| *byte == 0));
}

#[test]
fn bytes_behind_the_last_whole_mib_are_nobodys_gap() {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    image.write_at(0, &vec![9; 1 << 20]).unwrap();
    image.close().unwrap();
    file.write_at(5 * MIB, &[0xAA; 512]).unwrap();
    let image = Image::open_rw(file.clone()).unwrap();
    image.write_at(4 * MIB, &vec![1; 1 << 20]).unwrap();
    image.close().unwrap();
    let mut trailing = [0; 512];
    file.read_at(5 * MIB, &mut trailing).unwrap();
    assert_eq!(trailing, [0xAA; 512]);
    assert_eq!(read_all(&Image::open(file).unwrap())[4 << 20], 1);
}

#[test]
fn undefined_and_discarded_blocks_become_zero_ones() {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    image.write_at(0, &vec![9; 1 << 20]).unwrap();
    image.close().unwrap();
    // An anchor to old content, as Windows leaves it, and a block without one.
    file.write_at(BAT + 16, &((4 * MIB) | 3).to_le_bytes())
        .unwrap();
    file.write_at(BAT + 40, &1_u64.to_le_bytes()).unwrap();
    let [before, _] = header_guids(&*file);
    let image = Image::open_rw(file.clone()).unwrap();
    assert_eq!(image.zero_undefined().unwrap(), 2);
    image.close().unwrap();
    assert_eq!(
        [2, 5].map(|block| read_u64(&*file, BAT + block * 8)),
        [2, 2]
    );
    let [after, _] = header_guids(&*file);
    assert_ne!(
        before[16..32],
        after[16..32],
        "another reader may see a change"
    );
    let image = Image::open_rw(file.clone()).unwrap();
    let unchanged = MemoryFile::clone(&file);
    assert_eq!(image.zero_undefined().unwrap(), 0);
    image.close().unwrap();
    assert_eq!(*file, unchanged);
}

#[test]
fn places_no_file_can_have_are_damage_on_a_real_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("far.vhdx");
    let image = Image::create(new_file(&path), &CreateOptions::new(8 * MIB, Kind::Dynamic));
    drop(image.unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    for table in [192 << 10, 256 << 10] {
        // The metadata region, the second entry.
        bytes[table + 16 + 32 + 16..][..8].copy_from_slice(&(1_u64 << 63).to_le_bytes());
        bytes[table + 4..table + 8].fill(0);
        let sum = support::crc32c(&bytes[table..table + (64 << 10)]);
        bytes[table + 4..table + 8].copy_from_slice(&sum.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    let file = support::open_file(&path);
    let error = Image::open(file.clone()).unwrap_err();
    assert_eq!(error.kind(), failback_vhdx::ErrorKind::Truncated);
    let found = failback_vhdx::check(&*file, &failback_vhdx::CheckOptions::default()).unwrap();
    assert!(!found.is_sound());
}

#[test]
#[cfg(target_os = "linux")]
fn a_fixed_image_has_its_space_and_keeps_it() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fixed.vhdx");
    let options = CreateOptions::new(32 * MIB, Kind::Fixed);
    let image = Image::create(new_file(&path), &options).unwrap();
    let space = || std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(space() >= 32 * MIB, "{}", space());
    image.write_at(0, &vec![1; 8 << 20]).unwrap();
    image.zero(0..16 * MIB).unwrap();
    image.close().unwrap();
    assert!(space() >= 32 * MIB, "{}", space());
    assert!(read_all(&image).iter().all(|byte| *byte == 0));
}
