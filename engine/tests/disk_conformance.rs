//! Goal: every disk keeps the contract of `Source` and `Target`. Method: one suite, run by memory,
//! raw files, VHDX of both kinds and sector sizes, VHD of all kinds; the model is a vector of
//! bytes.
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_engine::disk::{
    ExtentKind, Format, MemoryDisk, NewDisk, OpenOptions, Source, Target, create, create_child,
    open_source, open_target,
};
use failback_engine::units::ByteOffset;
use failback_engine::{ErrorKind, Result};

const LEN: usize = (9 << 20) + 4096 * 3;

fn new_disk(format: Format, sector_size: u32, is_fixed: bool) -> NewDisk {
    NewDisk {
        format,
        len: LEN as u64,
        sector_size,
        block_size: Some(1 << 20),
        is_fixed,
    }
}

fn made(dir: &Path, name: &str, new: &NewDisk) -> PathBuf {
    let path = dir.join(name);
    create(&path, new).unwrap();
    path
}

/// The whole contract; `disk` reads zero everywhere at first.
fn keeps_the_contract(disk: &dyn Target) {
    let mut model = vec![0_u8; LEN];
    assert_eq!(disk.info().virtual_size, LEN as u64);
    reads_as(disk, &model);
    let writes = [
        (0, 4096),
        (12_288, 8192),
        ((1 << 20) - 4096, 8192),
        (5 << 20, 2 << 20),
        (LEN - 4096, 4096),
    ];
    for (index, (at, len)) in writes.into_iter().enumerate() {
        let data = vec![u8::try_from(index).unwrap() + 1; len];
        disk.write(ByteOffset(at as u64), &data).unwrap();
        model[at..at + len].copy_from_slice(&data);
    }
    reads_as(disk, &model);
    let zeros = [
        (0, 4096),
        ((5 << 20) + 8192, 1 << 20),
        ((1 << 20) - 4096, 1 << 20),
        (LEN - 4096, 4096),
    ];
    for (at, len) in zeros {
        disk.zero(ByteOffset(at as u64)..ByteOffset((at + len) as u64))
            .unwrap();
        model[at..at + len].fill(0);
    }
    reads_as(disk, &model);
    parallel_writers_do_not_disturb_each_other(disk, &mut model);
    disk.flush().unwrap();
    reads_back_as(disk, &model);
    refuses_what_is_outside(disk);
    disk.close().unwrap();
    reads_as(disk, &model);
}

fn reads_as(disk: &dyn Target, model: &[u8]) {
    let mut whole = vec![0xaa; LEN];
    disk.read(ByteOffset(0), &mut whole).unwrap();
    assert!(whole == model, "content differs");
    let mut odd = vec![0xaa; 70_001];
    disk.read(ByteOffset((1 << 20) - 35_000), &mut odd).unwrap();
    assert!(
        odd == model[(1 << 20) - 35_000..(1 << 20) + 35_001],
        "an odd range differs"
    );
    extents_tell_the_truth(disk, model);
}

fn extents_tell_the_truth(disk: &dyn Target, model: &[u8]) {
    let mut at = ByteOffset(0);
    while at.0 < LEN as u64 {
        let extent = disk.extent_at(at).unwrap();
        assert!(
            extent.end > at && extent.end.0 <= LEN as u64,
            "extents go forward and stay inside"
        );
        let run = &model[usize::try_from(at.0).unwrap()..usize::try_from(extent.end.0).unwrap()];
        assert!(
            extent.kind == ExtentKind::Data || run.iter().all(|byte| *byte == 0),
            "zero that is not"
        );
        at = extent.end;
    }
}

fn parallel_writers_do_not_disturb_each_other(disk: &dyn Target, model: &mut [u8]) {
    std::thread::scope(|scope| {
        for lane in 0..4_usize {
            scope.spawn(move || {
                for step in 0..64 {
                    let at = (3 << 20) + (step * 4 + lane) * 4096;
                    disk.write(
                        ByteOffset(at as u64),
                        &[u8::try_from(lane + 100).unwrap(); 4096],
                    )
                    .unwrap();
                }
            });
        }
    });
    for piece in 0..256 {
        let at = (3 << 20) + piece * 4096;
        model[at..at + 4096].fill(u8::try_from(piece % 4 + 100).unwrap());
    }
    reads_as(disk, model);
}

fn reads_back_as(disk: &dyn Target, model: &[u8]) {
    for (at, len) in [
        (0, LEN),
        (4096, 8192),
        ((1 << 20) - 1000, 5000),
        (LEN - 4096, 4096),
    ] {
        let mut back = vec![0xaa; len];
        disk.read_back(ByteOffset(at as u64), &mut back).unwrap();
        assert!(back == model[at..at + len], "read back differs at {at}");
    }
}

fn refuses_what_is_outside(disk: &dyn Target) {
    let mut page = [0; 4096];
    assert!(disk.read(ByteOffset(LEN as u64 - 512), &mut page).is_err());
    assert!(disk.read(ByteOffset(u64::MAX), &mut page).is_err());
    assert!(disk.write(ByteOffset(LEN as u64), &page).is_err());
    assert!(disk.write(ByteOffset(u64::MAX - 4095), &page).is_err());
}

#[test]
fn memory() {
    keeps_the_contract(&MemoryDisk::new(vec![0; LEN]));
}

#[test]
fn raw_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = made(dir.path(), "a.raw", &new_disk(Format::Raw, 512, false));
    keeps_the_contract(
        open_target(&path, &OpenOptions::default())
            .unwrap()
            .as_ref(),
    );
    assert_eq!(std::fs::metadata(&path).unwrap().len(), LEN as u64);
}

fn vhdx(sector_size: u32, is_fixed: bool) {
    let dir = tempfile::tempdir().unwrap();
    let path = made(
        dir.path(),
        "a.vhdx",
        &new_disk(Format::Vhdx, sector_size, is_fixed),
    );
    keeps_the_contract(
        open_target(&path, &OpenOptions::default())
            .unwrap()
            .as_ref(),
    );
}

#[test]
fn vhdx_dynamic_512() {
    vhdx(512, false);
}

#[test]
fn vhdx_dynamic_4096() {
    vhdx(4096, false);
}

#[test]
fn vhdx_fixed_512() {
    vhdx(512, true);
}

#[test]
fn vhdx_fixed_4096() {
    vhdx(4096, true);
}

fn vhd(is_fixed: bool) {
    let dir = tempfile::tempdir().unwrap();
    let new = new_disk(Format::Vhd, 512, is_fixed);
    let path = made(dir.path(), "a.vhd", &new);
    keeps_the_contract(
        open_target(&path, &OpenOptions::default())
            .unwrap()
            .as_ref(),
    );
}

#[test]
fn vhd_dynamic() {
    vhd(false);
}

#[test]
fn vhd_fixed() {
    vhd(true);
}

fn child(format: Format) {
    let dir = tempfile::tempdir().unwrap();
    let new = new_disk(format, 512, false);
    let parent = made(dir.path(), "parent.image", &new);
    let path = dir.path().join("child.image");
    let options = OpenOptions {
        parents: vec![parent],
        ..OpenOptions::of_format(Some(format))
    };
    create_child(&path, &options, Some(1 << 20)).unwrap();
    let options = OpenOptions {
        skip_sibling_check: true,
        ..options
    };
    keeps_the_contract(open_target(&path, &options).unwrap().as_ref());
}

#[test]
fn vhd_differencing() {
    child(Format::Vhd);
}

#[test]
fn vhdx_differencing() {
    child(Format::Vhdx);
}

// Goal: one writer, many readers, and the same rules for all formats. Method: each pair of opens on
// one file.
#[test]
#[cfg(unix)]
fn a_disk_has_one_writer_or_many_readers() {
    let dir = tempfile::tempdir().unwrap();
    let path = made(dir.path(), "a.vhdx", &new_disk(Format::Vhdx, 512, false));
    let kind_of = |result: Result<()>| result.unwrap_err().kind();
    let reader: Arc<dyn Source> = open_source(&path, &OpenOptions::default()).unwrap();
    let second: Arc<dyn Source> = open_source(&path, &OpenOptions::default()).unwrap();
    assert_eq!(
        kind_of(open_target(&path, &OpenOptions::default()).map(drop)),
        ErrorKind::InUse
    );
    drop((reader, second));
    let writer = open_target(&path, &OpenOptions::default()).unwrap();
    assert_eq!(
        kind_of(open_target(&path, &OpenOptions::default()).map(drop)),
        ErrorKind::InUse
    );
    assert_eq!(
        kind_of(open_source(&path, &OpenOptions::default()).map(drop)),
        ErrorKind::InUse
    );
    drop(writer);
    open_target(&path, &OpenOptions::default()).unwrap();
}
