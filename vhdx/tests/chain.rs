//! Goal: a child reads as its own sectors over its parent's, only over the parent it was made
//! from, and a merge moves them down without the chain ever reading otherwise. Method: the real
//! chain by Windows, chains in memory, and power cuts at every change of a merge.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests state and say what they find"
)]

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;

use failback_vhdx::{
    ChildOptions, CrashFile, CreateOptions, ErrorKind, ExtentKind, Fate, FileAt, Image, Kind,
    MemoryFile, Merge,
};
use support::{MIB, content_hash, load, read_all, small};

const CHILD_HASH: &str = "a538161f34bc44c12bf9a542ce9218741c62728723ea18d0e4f6ea92e9f32e93";

fn child_of(parent: &Arc<Image>, block_size: u32) -> (Arc<MemoryFile>, Image) {
    let file = Arc::new(MemoryFile::new());
    let options = ChildOptions {
        block_size: Some(block_size),
        ..ChildOptions::new(".\\parent.vhdx")
    };
    let image = Image::create_child(file.clone(), parent.clone(), &options).unwrap();
    (file, image)
}

/// A closed dynamic image of 8 MiB, blocks of 1 MiB, with a mark in each but the last two.
fn parent() -> Arc<MemoryFile> {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    for block in 0..6 {
        let mark = u8::try_from(block + 1).unwrap();
        image.write_at(block * MIB + 4096, &[mark; 8192]).unwrap();
    }
    image.close().unwrap();
    file
}

fn bytes_at(image: &Image, at: u64) -> u8 {
    let mut byte = [0];
    image.read_at(at, &mut byte).unwrap();
    byte[0]
}

#[test]
fn the_chain_by_windows_reads_to_its_known_hash() {
    let (Some(parent), Some(child)) = (load("fat-parent.vhdx"), load("fat-differential.vhdx"))
    else {
        return;
    };
    let before = child.clone();
    let child = Arc::new(child);
    let parent = Arc::new(Image::open(Arc::new(parent)).unwrap());
    let image = Image::open_child_rw(child.clone(), parent).unwrap();
    assert_eq!(content_hash(&image), CHILD_HASH);
    assert_eq!(image.kind(), Kind::Differencing);
    assert!(image.warnings().is_empty());
    let blocks = image.scan_allocation().unwrap();
    assert!(blocks.partially_present > 0 && blocks.bitmaps == 1);
    image.close().unwrap();
    assert!(
        *child == before,
        "opened for writing, not written: not changed"
    );
}

#[test]
fn a_written_child_by_windows_keeps_what_was_not_written() {
    let (Some(parent), Some(child)) = (load("fat-parent.vhdx"), load("fat-differential.vhdx"))
    else {
        return;
    };
    let child = Arc::new(child);
    let parent = Arc::new(Image::open(Arc::new(parent)).unwrap());
    let image = Image::open_child_rw(child.clone(), parent.clone()).unwrap();
    let mut expected = read_all(&image);
    image.write_at(512 * 777, &[7; 512]).unwrap();
    image.zero(3 * MIB..3 * MIB + 4096).unwrap();
    image.close().unwrap();
    expected[512 * 777..512 * 778].fill(7);
    expected[3 << 20..(3 << 20) + 4096].fill(0);
    let image = Image::open_child(child, parent).unwrap();
    assert!(read_all(&image) == expected);
}

#[test]
fn only_the_named_parent_fits() {
    let file = parent();
    let image = Arc::new(Image::open(file.clone()).unwrap());
    let (child, opened) = child_of(&image, 1 << 20);
    drop(opened);
    let alone = Image::open(child.clone()).unwrap_err();
    assert_eq!(alone.kind(), ErrorKind::ParentNeeded);
    assert!(alone.to_string().contains(".\\parent.vhdx"), "{alone}");
    let detached = Image::open_detached(child.clone()).unwrap();
    assert_eq!(detached.scan_allocation().unwrap().not_present, 8);
    let beyond = detached.read_at(0, &mut [0; 512]).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::ParentNeeded);
    let (_, stranger) = small(8 * MIB, Kind::Dynamic);
    let wrong = Image::open_child(child.clone(), Arc::new(stranger)).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::WrongParent);
    let not_needed = Image::open_child(file.clone(), image.clone()).unwrap_err();
    assert_eq!(not_needed.kind(), ErrorKind::InvalidArgument);
    let writer = Image::open_rw(file.clone()).unwrap();
    writer.write_at(0, &[9; 512]).unwrap();
    writer.close().unwrap();
    let changed = Arc::new(Image::open(file).unwrap());
    let error = Image::open_child(child, changed).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongParent);
}

#[test]
fn a_child_has_the_disk_of_its_parent_and_is_described_without_it() {
    let options = CreateOptions {
        logical_sector_size: 4096,
        ..CreateOptions::new(100 * MIB, Kind::Fixed)
    };
    let parent = Image::create(Arc::new(MemoryFile::new()), &options).unwrap();
    let parent = Arc::new(parent);
    let (file, child) = child_of(&parent, 2 << 20);
    assert_eq!(child.disk_id(), parent.disk_id());
    assert_eq!(child.logical_sector_size(), 4096);
    let found = Image::inspect(file).unwrap();
    assert_eq!(
        (found.kind, found.virtual_size),
        (Kind::Differencing, 100 * MIB)
    );
    assert_eq!(found.block_size, 2 << 20);
    let locator = found.locator.unwrap();
    assert_eq!(locator.linkage(), parent.data_write_guid());
    assert_eq!(locator.relative_path(), Some(".\\parent.vhdx"));
}

#[test]
fn zeros_hide_the_parent() {
    let parent = Arc::new(Image::open(parent()).unwrap());
    let (_, child) = child_of(&parent, 2 << 20);
    assert_eq!(bytes_at(&child, 4096), 1);
    child.zero(4096..4608).unwrap();
    assert_eq!((bytes_at(&child, 4607), bytes_at(&child, 4608)), (0, 1));
    child.zero(0..2 * MIB).unwrap();
    assert_eq!(
        (bytes_at(&child, 5000), bytes_at(&child, MIB + 5000)),
        (0, 0)
    );
    assert_eq!(child.scan_allocation().unwrap().zero, 1);
    child.write_at(MIB, &[5; 512]).unwrap();
    assert_eq!(
        (bytes_at(&child, MIB), bytes_at(&child, MIB + 5000)),
        (5, 0)
    );
    assert_eq!(child.scan_allocation().unwrap().present, 1);
}

#[test]
fn extents_of_a_child_are_those_of_the_chain() {
    let parent = Arc::new(Image::open(parent()).unwrap());
    let (_, child) = child_of(&parent, 1 << 20);
    child.zero(5 * MIB..6 * MIB).unwrap();
    let kind = |at| child.extent_at(at).unwrap().kind;
    assert_eq!(kind(4096), ExtentKind::Data);
    assert_eq!(kind(5 * MIB + 4096), ExtentKind::Zero);
    assert_eq!(kind(6 * MIB), ExtentKind::Absent);
    assert_eq!(child.extent_at(6 * MIB).unwrap().end, 8 * MIB);
}

#[test]
fn chains_of_64_images_read_and_longer_ones_are_refused() {
    let mut image = Arc::new(Image::open(parent()).unwrap());
    for level in 1..64_u64 {
        let (file, child) = child_of(&image, 1 << 20);
        let mark = u8::try_from(100 + level).unwrap();
        child.write_at(level * 512 + MIB, &[mark; 512]).unwrap();
        child.close().unwrap();
        image = Arc::new(Image::open_child(file, image).unwrap());
    }
    assert_eq!(
        (
            bytes_at(&image, MIB + 512),
            bytes_at(&image, MIB + 63 * 512)
        ),
        (101, 163)
    );
    assert_eq!(bytes_at(&image, 4096), 1);
    let options = ChildOptions::new(".\\parent.vhdx");
    let error = Image::create_child(Arc::new(MemoryFile::new()), image, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// Writes, zeros and trims in a child; returns what the chain reads afterwards.
fn change(child: &Image) -> Vec<u8> {
    child.write_at(4096 + 512, &[77; 1024]).unwrap();
    child.write_at(2 * MIB - 512, &[78; 1024]).unwrap();
    child.zero(3 * MIB..4 * MIB).unwrap();
    child.write_at(6 * MIB, &vec![79; 1 << 20]).unwrap();
    child.zero(4 * MIB + 4096..4 * MIB + 5120).unwrap();
    child.close().unwrap();
    read_all(child)
}

fn merge(child: Arc<dyn FileAt>, parent: Arc<dyn FileAt>) -> failback_vhdx::Result<Merge> {
    let parent = Arc::new(Image::open_rw(parent).unwrap());
    let child = Image::open_child_rw(child, parent).unwrap();
    child.merge_into_parent(&mut |_| ControlFlow::Continue(()))
}

#[test]
fn a_merged_parent_is_the_child() {
    let base = parent();
    let parent = Arc::new(Image::open(base.clone()).unwrap());
    let (file, child) = child_of(&parent, 1 << 20);
    let content = change(&child);
    let identity = child.data_write_guid();
    let child = Arc::new(child);
    let (grandchild, opened) = child_of(&child, 1 << 20);
    opened.write_at(0, &[55; 512]).unwrap();
    opened.close().unwrap();
    drop((opened, child, parent));
    let Merge::Done { copied, zeroed } = merge(file.clone(), base.clone()).unwrap() else {
        panic!("nobody stopped it");
    };
    assert_eq!((copied, zeroed), (MIB + 1024 + 1024 + 1024, MIB));
    let parent = Arc::new(Image::open(base).unwrap());
    assert!(read_all(&parent) == content);
    assert_eq!(parent.data_write_guid(), identity);
    let left = Image::open_child(file, parent.clone()).unwrap_err();
    assert_eq!(left.kind(), ErrorKind::WrongParent);
    let grandchild = Image::open_child(grandchild, parent).unwrap();
    assert_eq!(
        (bytes_at(&grandchild, 0), bytes_at(&grandchild, 6 * MIB)),
        (55, 79)
    );
}

#[test]
fn a_stopped_merge_goes_on() {
    let base = parent();
    let image = Arc::new(Image::open(base.clone()).unwrap());
    let (file, child) = child_of(&image, 1 << 20);
    let content = change(&child);
    drop((child, image));
    let opened = Arc::new(Image::open_rw(base.clone()).unwrap());
    let child = Image::open_child_rw(file.clone(), opened).unwrap();
    let stopped = child.merge_into_parent(&mut |_| ControlFlow::Break(()));
    assert_eq!(stopped.unwrap(), Merge::Stopped);
    let half = Arc::new(Image::open(base.clone()).unwrap());
    assert!(read_all(&Image::open_child(file.clone(), half).unwrap()) == content);
    assert!(matches!(
        merge(file, base.clone()).unwrap(),
        Merge::Done { .. }
    ));
    assert!(read_all(&Image::open(base).unwrap()) == content);
}

#[test]
fn a_second_name_that_a_child_came_with_is_not_given_to_a_parent() {
    let base = parent();
    let image = Arc::new(Image::open(base.clone()).unwrap());
    let (file, child) = child_of(&image, 1 << 20);
    let content = change(&child);
    let identity = child.data_write_guid();
    drop((child, image));
    // As if somebody had noted the child's own name: a parent that has it counts as merged.
    let utf16 =
        |text: String| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let mut metadata = vec![0; 1 << 20];
    file.read_at(2 * MIB, &mut metadata).unwrap();
    let nil = utf16(format!("{{{}}}", failback_vhdx::Uuid::nil()));
    let at = metadata
        .windows(nil.len())
        .position(|text| text == nil)
        .unwrap();
    file.write_at(2 * MIB + at as u64, &utf16(format!("{{{identity}}}")))
        .unwrap();
    let opened = Arc::new(Image::open_rw(base.clone()).unwrap());
    let linkage = opened.data_write_guid();
    let child = Image::open_child_rw(file.clone(), opened).unwrap();
    assert_eq!(child.parent_locator().unwrap().linkage2(), Some(identity));
    let stopped = child.merge_into_parent(&mut |_| ControlFlow::Break(()));
    assert_eq!(stopped.unwrap(), Merge::Stopped);
    let half = Arc::new(Image::open(base.clone()).unwrap());
    assert!(![identity, linkage].contains(&half.data_write_guid()));
    assert!(read_all(&Image::open_child(file, half).unwrap()) == content);
}

#[test]
fn undefined_blocks_of_a_parent_are_hidden_where_they_show_through() {
    let base = parent();
    // Blocks 1 and 2 of the parent are discarded, with an anchor to what they held.
    for block in [1, 2] {
        let at = 3 * MIB + block * 8;
        let entry = support::read_u64(&*base, at) & !7 | 3;
        base.write_at(at, &entry.to_le_bytes()).unwrap();
    }
    let lower = Arc::new(Image::open(base).unwrap());
    let (file, child) = child_of(&lower, 1 << 20);
    child.write_at(2 * MIB, &vec![7; 1 << 20]).unwrap();
    child.close().unwrap();
    let middle = Arc::new(Image::open_child(file, lower).unwrap());
    let (_, top) = child_of(&middle, 2 << 20);
    let before = read_all(&top);
    assert_eq!(top.zero_undefined().unwrap(), 1);
    assert!(read_all(&top) == before);
    let mut runs = Vec::new();
    top.resolve(MIB..2 * MIB, &mut runs).unwrap();
    assert!(
        runs.iter()
            .all(|run| run.place != failback_vhdx::Place::Parent)
    );
    assert_eq!(top.zero_undefined().unwrap(), 0);
}

#[test]
fn a_power_cut_at_any_change_of_a_merge_leaves_the_chain_and_the_merge_can_be_done() {
    let base = parent();
    let image = Arc::new(Image::open(base.clone()).unwrap());
    let (file, child) = child_of(&image, 1 << 20);
    let content = change(&child);
    drop((child, image));
    let below = Arc::new(CrashFile::new(MemoryFile::clone(&base)));
    let above = Arc::new(CrashFile::new(MemoryFile::clone(&file)));
    merge(above.clone(), below.clone()).unwrap();
    // The parent is not touched before the child is at rest again.
    let whole = (above.op_count(), below.op_count());
    let cuts = (0..whole.0)
        .map(|cut| (cut, 0))
        .chain((0..=whole.1).map(|cut| (whole.0, cut)));
    for (child_cut, parent_cut) in cuts {
        for fate in [Fate::Kept, Fate::Lost, Fate::Torn(1024)] {
            let child = Arc::new(above.materialise(child_cut, |_| fate));
            let base = Arc::new(below.materialise(parent_cut, |_| fate));
            let parent = Arc::new(Image::open(base.clone()).unwrap());
            let what = format!("cut {child_cut}, {parent_cut}, {fate:?}");
            let chain = match Image::open_child(child.clone(), parent.clone()) {
                Ok(chain) => read_all(&chain),
                Err(error) => {
                    // Only a parent that has become the child refuses the child.
                    assert_eq!(error.kind(), ErrorKind::WrongParent, "{what}");
                    read_all(&parent)
                }
            };
            assert!(chain == content, "{what}");
            drop(parent);
            if parent_cut % 5 == 0 && parent_cut < whole.1 / 2 {
                merge(child, base.clone()).unwrap();
                assert!(read_all(&Image::open(base).unwrap()) == content, "{what}");
            }
        }
    }
}

#[test]
fn a_merge_needs_equal_lengths_and_writable_images() {
    let base = parent();
    let image = Arc::new(Image::open(base).unwrap());
    let (file, child) = child_of(&image, 1 << 20);
    drop(child);
    let child = Image::open_child_rw(file, image).unwrap();
    let error = child
        .merge_into_parent(&mut |_| ControlFlow::Continue(()))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
}
