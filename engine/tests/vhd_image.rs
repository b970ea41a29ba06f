//! Goal: a VHD reads as what was written to it, real images and chains read right, and no file
//! does harm. Method: random changes beside a vector of bytes, images that Windows and QEMU wrote,
//! files damaged byte by byte.
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod vhd_support;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use failback_engine::ErrorKind;
use failback_engine::disk::ExtentKind;
use failback_engine::disk::vhd::{CreateOptions, Severity, VhdImage, VhdKind, check};
use failback_vhdx::{FileAt, MemoryFile};
use proptest::prelude::*;
use vhd_support::{NAMES, Random, SECTOR, chain, empty, mend_sums, read_all, sha256, span, unpack};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// One change of a disk, in sectors.
#[derive(Clone, Copy, Debug)]
enum Change {
    Write { first: u64, count: u64, byte: u8 },
    Zero { first: u64, count: u64 },
    Flush,
    Reopen,
}

fn changes(sectors: u64) -> impl Strategy<Value = Vec<Change>> {
    let range = move || {
        (0..sectors).prop_flat_map(move |first| (Just(first), 0..=(sectors - first).min(40)))
    };
    let change = prop_oneof![
        5 => (range(), 1_u8..).prop_map(|((first, count), byte)| Change::Write {
            first,
            count,
            byte
        }),
        3 => range().prop_map(|(first, count)| Change::Zero { first, count }),
        1 => Just(Change::Flush),
        1 => Just(Change::Reopen),
    ];
    proptest::collection::vec(change, 1..40)
}

fn matches_naive(changes: &[Change], open: impl Fn() -> VhdImage) -> Result<(), TestCaseError> {
    let mut image = open();
    let mut model = read_all(&image);
    for change in changes {
        match *change {
            Change::Write { first, count, byte } => {
                let range = first * 512..(first + count) * 512;
                let len = usize::try_from(count).unwrap() * SECTOR;
                image.write_at(range.start, &vec![byte; len]).unwrap();
                model[span(&range)].fill(byte);
            }
            Change::Zero { first, count } => {
                let range = first * 512..(first + count) * 512;
                image.zero(range.clone()).unwrap();
                model[span(&range)].fill(0);
            }
            Change::Flush => image.flush().unwrap(),
            Change::Reopen => {
                image.close().unwrap();
                image = open();
            }
        }
        prop_assert!(read_all(&image) == model, "after {change:?}");
    }
    extents_tell_the_truth(&image, &model);
    image.close().unwrap();
    prop_assert!(read_all(&open()) == model, "after the last close");
    Ok(())
}

fn extents_tell_the_truth(image: &VhdImage, model: &[u8]) {
    let mut at = 0;
    while at < image.virtual_size() {
        let extent = image.extent_at(at).unwrap();
        let range = at..extent.end.0;
        assert!(range.end > at && range.end <= image.virtual_size());
        let is_zero = model[span(&range)].iter().all(|byte| *byte == 0);
        assert!(
            extent.kind == ExtentKind::Data || is_zero,
            "zero that is not: {range:?}"
        );
        at = range.end;
    }
}

/// Sizes that are no multiple of the block, and blocks whose bitmaps are filled and not.
const SHAPES: [(u64, u32); 3] = [
    (200 * KIB + 512, 4096),
    (300 * KIB, 65_536),
    (70 * KIB, 1 << 20),
];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn a_disk_matches_naive(shape in 0..3_usize, is_fixed: bool, changes in changes(140)) {
        let (len, block_size) = SHAPES[shape];
        let file = empty(len, is_fixed, block_size);
        matches_naive(&changes, || VhdImage::open_rw(file.clone()).unwrap())?;
        prop_assert!(check(file.as_ref()).unwrap().iter().all(is_warning));
    }

    #[test]
    fn a_child_matches_naive(shape in 0..3_usize, changes in changes(140)) {
        let (len, block_size) = SHAPES[shape];
        let (parent, file) = chain(len, block_size);
        let before = read_all(&parent);
        matches_naive(&changes, || {
            VhdImage::open_child_rw(file.clone(), parent.clone()).unwrap()
        })?;
        prop_assert!(read_all(&parent) == before, "the parent changed");
        prop_assert!(check(file.as_ref()).unwrap().iter().all(is_warning));
    }

    // Goal: no bytes do harm. Method: a sound image with some bytes replaced is opened, read, and
    // written to; only errors may come of it.
    #[test]
    fn damaged_files_do_no_harm(
        seed in 1_u64..,
        is_child: bool,
        patches in proptest::collection::vec((0_usize..3000, any::<u8>()), 1..6),
        is_summed: bool,
    ) {
        let (parent, file) = chain(64 * KIB, 4096);
        let image = VhdImage::open_child_rw(file.clone(), parent.clone()).unwrap();
        image.write_at(0, &[7; 4096]).unwrap();
        image.close().unwrap();
        let base = if is_child { file } else { empty(64 * KIB, false, 4096) };
        for (at, byte) in patches {
            base.write_at(at as u64, &[byte]).unwrap();
        }
        if is_summed {
            mend_sums(&base);
        }
        harmless(&base, &parent, &mut Random(seed));
    }
}

fn is_warning(finding: &failback_engine::disk::vhd::Finding) -> bool {
    finding.severity == Severity::Warning
}

fn harmless(file: &Arc<MemoryFile>, parent: &Arc<VhdImage>, random: &mut Random) {
    drop(check(file.as_ref()).unwrap());
    let opens = [
        VhdImage::open_rw(file.clone()),
        VhdImage::open_child_rw(file.clone(), parent.clone()),
        VhdImage::inspect(file.clone()),
    ];
    for image in opens.into_iter().flatten() {
        let last = image.virtual_size() - 512;
        let mut sector = [0; SECTOR];
        for at in [0, last, random.below(last / 512 + 1) * 512] {
            drop(image.read_at(at, &mut sector));
            drop(image.extent_at(at));
            drop(image.write_at(at, &sector));
        }
        drop(image.parent_paths());
        drop(image.close());
    }
}

#[test]
fn real_images_read_right() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["ext2.vhd", "fat-parent.vhd", "ntfs-dynamic.vhd"] {
        let Some((path, sum)) = unpack(name, dir.path()) else {
            return;
        };
        let image = VhdImage::open(Arc::new(File::open(&path).unwrap())).unwrap();
        assert_eq!(sha256(&read_all(&image)), sum, "{name}");
        assert!(image.warnings().is_empty(), "{:?}", image.warnings());
        let findings = check(&File::open(&path).unwrap()).unwrap();
        assert!(findings.is_empty(), "{name}: {findings:?}");
    }
}

#[test]
fn an_empty_disk_of_hyper_v_is_127_gib_of_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some((path, _)) = unpack("hyperv2012r2-dynamic.vhd", dir.path()) else {
        return;
    };
    let image = VhdImage::open(Arc::new(File::open(&path).unwrap())).unwrap();
    assert_eq!(image.virtual_size(), 136_365_211_648);
    let extent = image.extent_at(0).unwrap();
    assert_eq!(
        (extent.kind, extent.end.0),
        (ExtentKind::Absent, 136_365_211_648)
    );
    assert_eq!(image.block_counts(), Some((65_024, 0)));
    assert!(check(&File::open(&path).unwrap()).unwrap().is_empty());
}

#[test]
fn a_chain_of_windows_reads_right() {
    let dir = tempfile::tempdir().unwrap();
    let Some((parent, _)) = unpack("fat-parent.vhd", dir.path()) else {
        return;
    };
    let (child, sum) = unpack("fat-differential.vhd", dir.path()).unwrap();
    let open = |path: &Path| Arc::new(File::open(path).unwrap());
    let parent = Arc::new(VhdImage::open(open(&parent)).unwrap());

    let alone = VhdImage::open(open(&child)).unwrap_err();
    let image = VhdImage::open_child(open(&child), parent).unwrap();

    assert_eq!(alone.kind(), ErrorKind::Refused);
    let name = "C:\\Projects\\dfvfs\\test_data\\fat-parent.vhd";
    assert!(alone.message().contains(name), "{alone}");
    assert_eq!(sha256(&read_all(&image)), sum);
    assert_eq!(image.parent_name(), Some(name));
    assert_eq!(image.parent_paths(), [name, ".\\fat-parent.vhd"]);
    assert!(image.warnings().is_empty(), "{:?}", image.warnings());
    assert!(check(&File::open(&child).unwrap()).unwrap().is_empty());
}

#[test]
fn a_child_takes_no_other_parent() {
    let (parent, child) = chain(64 * KIB, 4096);
    let (other, _) = chain(64 * KIB, 4096);
    let open = |parent: &Arc<VhdImage>| VhdImage::open_child(child.clone(), parent.clone());
    assert_eq!(open(&other).unwrap_err().kind(), ErrorKind::Refused);
    let lonely = VhdImage::inspect(child.clone()).unwrap();
    let refused = lonely.read_at(0, &mut [0; SECTOR]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    let no_child = VhdImage::open_child(empty(KIB, true, 4096), parent.clone());
    assert_eq!(no_child.unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(read_all(&open(&parent).unwrap()), read_all(&parent));
}

#[test]
fn a_chain_ends_at_64_images() {
    let file = empty(4 * KIB, false, 4096);
    let mut parent = Arc::new(VhdImage::open(file).unwrap());
    for _ in 1..64 {
        let file = Arc::new(MemoryFile::new());
        let child = VhdImage::create_child(file, parent, NAMES, Some(4096));
        parent = Arc::new(child.unwrap());
    }
    let mut sector = [1; SECTOR];
    parent.read_at(0, &mut sector).unwrap();
    assert_eq!(sector, [0; SECTOR]);
    let file = Arc::new(MemoryFile::new());
    let error = VhdImage::create_child(file, parent, NAMES, Some(4096)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_child_reads_zero_past_its_parent() {
    let (parent, child) = chain(64 * KIB, 4096);
    let mut bytes = child.to_bytes();
    bytes[48..56].copy_from_slice(&(66 * KIB).to_be_bytes());
    bytes[512 + 28..512 + 32].copy_from_slice(&17_u32.to_be_bytes());
    child.write_at(0, &bytes).unwrap();
    mend_sums(&child);
    let image = VhdImage::open_child(child, parent.clone()).unwrap();
    let content = read_all(&image);
    let (inside, outside) = content.split_at(64 << 10);
    assert!(inside == read_all(&parent));
    assert!(outside.iter().all(|byte| *byte == 0) && outside.len() == 2048);
}

#[test]
fn sizes_that_a_vhd_cannot_have_are_refused_before_a_byte_is_written() {
    for len in [0, 511, 2040 * GIB + 512, 64 << 40] {
        for is_fixed in [false, true] {
            let file = Arc::new(MemoryFile::new());
            let made = VhdImage::create(file.clone(), &CreateOptions::new(len, is_fixed));
            assert_eq!(made.unwrap_err().kind(), ErrorKind::Usage, "{len}");
            assert_eq!(file.len().unwrap(), 0);
        }
    }
}

#[test]
fn the_largest_disk_takes_little_space() {
    let file = Arc::new(MemoryFile::new());
    let image = VhdImage::create(file.clone(), &CreateOptions::new(2040 * GIB, false)).unwrap();
    image.write_at(2040 * GIB - 512, &[5; SECTOR]).unwrap();
    image.close().unwrap();
    let image = VhdImage::open(file.clone()).unwrap();
    assert_eq!(image.block_counts(), Some((1_044_480, 1)));
    let extent = image.extent_at(0).unwrap();
    assert_eq!(extent.end.0, 2040 * GIB - 2 * MIB);
    assert!(file.len().unwrap() < 8 * MIB);
}

// Goal: tables that would mix data are found before anything is written. Method: entries by hand.
#[test]
fn bad_entries_are_refused() {
    let entry = |block: u64, sector: u32| {
        let file = empty(64 * KIB, false, 4096);
        let image = VhdImage::open_rw(file.clone()).unwrap();
        image.write_at(0, &[1; 8192]).unwrap();
        image.close().unwrap();
        file.write_at(1536 + block * 4, &sector.to_be_bytes())
            .unwrap();
        file
    };
    let first = u32::from_be_bytes(entry(9, 7).to_bytes()[1536..1540].try_into().unwrap());
    // Copy of the footer, header, table, same as block 0, one sector into it, footer, far away.
    for sector in [
        0,
        1,
        3,
        first,
        first + 1,
        first - 1,
        first + 30,
        u32::MAX - 1,
    ] {
        let file = entry(5, sector);
        let before = file.to_bytes();
        for opened in [
            VhdImage::open(file.clone()),
            VhdImage::open_rw(file.clone()),
        ] {
            assert_eq!(
                opened.unwrap_err().kind(),
                ErrorKind::Damaged,
                "sector {sector}"
            );
        }
        let found = check(file.as_ref()).unwrap();
        assert!(
            found
                .iter()
                .any(|one| one.structure == "block table" && !is_warning(one))
        );
        assert!(file.to_bytes() == before);
    }
}

// Goal: no write makes an image that opens one that does not. Method: the text of a locator is put
// before, on and behind the end of the content, where blocks would come to lie.
#[test]
fn a_locator_past_the_end_is_read_and_not_written() {
    let (parent, sound) = chain(64 * KIB, 4096);
    let footer_at = sound.len().unwrap() - 512;
    let locator = |at: u64, len: u64| {
        let file = Arc::new(MemoryFile::clone(&sound));
        let field = 512 + 576 + 8;
        let [len, at] = [len << 32, at].map(u64::to_be_bytes);
        file.write_at(field, &len).unwrap();
        file.write_at(field + 8, &at).unwrap();
        mend_sums(&file);
        file
    };
    let rows = [
        (footer_at - 10, 11),
        (footer_at, 512),
        (footer_at + 9 * KIB, 30),
        (u64::MAX, 1),
    ];
    for (at, len) in rows {
        let file = locator(at, len);
        let before = file.to_bytes();
        let read = VhdImage::open_child(file.clone(), parent.clone()).unwrap();
        assert!(read_all(&read) == read_all(&parent), "{at:#x}");
        let refused = VhdImage::open_child_rw(file.clone(), parent.clone()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Damaged, "{refused}");
        let found = check(file.as_ref()).unwrap();
        assert!(found.iter().any(|one| one.rule == "locator-past-end"));
        assert!(found.iter().all(is_warning), "{found:?}");
        assert!(file.to_bytes() == before);
    }
    for (at, len) in [(footer_at - 10, 10), (footer_at + 9 * KIB, 0)] {
        let file = locator(at, len);
        let image = VhdImage::open_child_rw(file.clone(), parent.clone()).unwrap();
        image.write_at(0, &[7; 64 << 10]).unwrap();
        image.close().unwrap();
        let image = VhdImage::open_child(file, parent.clone()).unwrap();
        assert!(read_all(&image) == [7; 64 << 10], "{at:#x}");
    }
}

#[test]
fn check_lists_every_violation() {
    let file = empty(64 * KIB, false, 4096);
    file.write_at(1536, &0_u32.to_be_bytes()).unwrap();
    file.write_at(1540, &u32::MAX.wrapping_sub(9).to_be_bytes())
        .unwrap();
    file.write_at(200, &[1]).unwrap();
    let found = check(file.as_ref()).unwrap();
    let structures: Vec<_> = found
        .iter()
        .map(|one| (one.structure, one.severity))
        .collect();
    assert!(
        structures.contains(&("footer copy", Severity::Warning)),
        "{found:?}"
    );
    let errors = structures
        .iter()
        .filter(|one| **one == ("block table", Severity::Error));
    assert_eq!(errors.count(), 3, "{found:?}");
    let rules: Vec<&str> = found.iter().map(|one| one.rule).collect();
    let expected = [
        "footer-checksum",
        "block-past-end",
        "block-over-structure",
        "block-past-end",
    ];
    assert_eq!(rules, expected, "{found:?}");
}

// Goal: what is sound and beyond this release is told apart from damage. Method: one field each,
// sums mended.
#[test]
fn what_is_beyond_this_release_is_not_called_damaged() {
    let rows: [(u64, u32, &str); 5] = [
        (12, 2 << 16, "footer-version"),
        (60, 9, "footer-kind"),
        (512 + 24, 2 << 16, "header-version"),
        (512 + 32, 1 << 30, "block-size-beyond-limit"),
        (512 + 28, 1 << 25, "table-beyond-limit"),
    ];
    for (at, value, rule) in rows {
        let file = empty(64 * KIB, false, 4096);
        file.write_at(at, &value.to_be_bytes()).unwrap();
        mend_sums(&file);
        let found = check(file.as_ref()).unwrap();
        assert_eq!(found[0].rule, rule);
        let error = VhdImage::open(file).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{rule}");
    }
}

#[test]
fn a_fixed_disk_cut_short_is_damaged() {
    let file = empty(MIB, true, 4096);
    let footer = file.to_bytes()[usize::try_from(MIB).unwrap()..].to_vec();
    file.set_len(MIB - 512).unwrap();
    file.write_at(MIB - 1024, &footer).unwrap();
    let error = VhdImage::open(file).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

// Goal: what the guest stores decides nothing. Method: a dynamic VHD stored on a fixed one, whose
// own footer is damaged then.
#[test]
fn a_vhd_inside_a_vhd_is_not_opened_in_its_place() {
    let file = empty(MIB, true, 4096);
    let inner = empty(64 * KIB, false, 4096).to_bytes();
    file.write_at(0, &inner).unwrap();
    let image = VhdImage::open(file.clone()).unwrap();
    assert_eq!((image.kind(), image.virtual_size()), (VhdKind::Fixed, MIB));
    file.write_at(MIB + 200, &[1]).unwrap();
    assert_eq!(VhdImage::open(file).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn opening_for_writing_changes_nothing() {
    for is_fixed in [false, true] {
        let file = empty(MIB, is_fixed, 65_536);
        let before = file.to_bytes();
        let image = VhdImage::open_rw(file.clone()).unwrap();
        image.zero(0..MIB).unwrap();
        image.close().unwrap();
        assert!(file.to_bytes() == before);
    }
}

#[test]
fn a_reader_does_not_write() {
    let image = VhdImage::open(empty(MIB, false, 4096)).unwrap();
    assert_eq!(
        image.write_at(0, &[1; SECTOR]).unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
    let image = VhdImage::open_rw(empty(MIB, false, 4096)).unwrap();
    assert_eq!(
        image.write_at(1, &[1; SECTOR]).unwrap_err().kind(),
        ErrorKind::Usage
    );
    image.write_at(0, &[1; SECTOR]).unwrap();
}

#[test]
fn azure_is_warned_of() {
    for (len, warnings) in [(MIB, 0), (MIB + 512, 1)] {
        let image = VhdImage::open(empty(len, true, 4096)).unwrap();
        assert_eq!(image.warnings().len(), warnings, "{:?}", image.warnings());
    }
}
