//! Goal: a check tells every damage with its place, and agrees with open. Method: the real
//! images, two damages at once, and random bytes whose verdict is compared with that of open.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests state and say what they find"
)]

mod support;

use std::sync::Arc;

use failback_vhdx::{
    CheckOptions, CheckReport, CreateOptions, ErrorKind, FileAt, Image, Kind, MemoryFile,
    ParentIdentity, Severity, Uuid, check,
};
use proptest::prelude::*;
use support::{MIB, load, open_file, patch, read_u64, real_images, small, unpack};

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Where `Image::create` puts metadata and BAT.
const METADATA: u64 = 2 * MIB;
const BAT: u64 = 3 * MIB;

fn report(file: &dyn FileAt) -> CheckReport {
    check(file, &CheckOptions::default()).unwrap()
}

/// Rules and places of all findings that are not notes.
fn rules(report: &CheckReport) -> Vec<(&'static str, Option<u64>)> {
    let findings = report.findings.iter();
    findings
        .filter(|finding| finding.severity > Severity::Note)
        .map(|finding| (finding.rule, finding.at))
        .collect()
}

/// Whether the image opens and every entry of its BAT makes sense.
fn is_accepted(file: &MemoryFile) -> bool {
    Image::open_detached(Arc::new(file.clone()))
        .and_then(|image| image.scan_allocation())
        .is_ok()
}

/// A dynamic image with blocks 0 and 2 of 8 stored.
fn sample() -> MemoryFile {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    for at in [0, 2 * MIB] {
        image.write_at(at, &[1; 512]).unwrap();
    }
    image.close().unwrap();
    MemoryFile::clone(&file)
}

fn put_entry(file: &MemoryFile, slot: u64, raw: u64) {
    file.write_at(BAT + slot * 8, &raw.to_le_bytes()).unwrap();
}

#[test]
fn real_images_are_sound() {
    let dir = tempfile::tempdir().unwrap();
    for (name, ..) in real_images() {
        let path = unpack(&name, dir.path()).unwrap();
        let found = report(&*open_file(&path));
        assert!(found.is_sound(), "{name}: {:#?}", found.findings);
        let blocks = Image::open(open_file(&path)).unwrap();
        let blocks = blocks.scan_allocation().unwrap();
        assert_eq!(found.summary.blocks.present, blocks.present, "{name}");
        assert_eq!(found.summary.blocks.zero, blocks.zero, "{name}");
        assert_eq!(
            found.summary.blocks.not_present, blocks.not_present,
            "{name}"
        );
        assert_eq!(found.summary.blocks.unmapped, blocks.unmapped, "{name}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn the_dirty_image_is_read_through_its_log() {
    let Some(file) = load("iotest-dirtylog-10G-4M.vhdx") else {
        return;
    };
    let found = report(&file).summary;
    assert_eq!((found.log_entries_valid, found.log_entries_active), (1, 1));
    let image = Image::open(Arc::new(file)).unwrap();
    let present = image.scan_allocation().unwrap().present;
    assert_eq!(found.blocks.present, present);
}

#[test]
fn a_log_that_must_not_be_replayed_is_told() {
    let Some(base) = load("iotest-dirtylog-10G-4M.vhdx") else {
        return;
    };
    let sixteen = |at: u64| {
        let mut bytes = [0; 16];
        base.read_at(at, &mut bytes).unwrap();
        bytes
    };
    // Remains of older logs have other GUIDs.
    let log = read_u64(&base, HEADERS[0] + 72);
    let mut sectors = (log..log + MIB).step_by(4096);
    let guid = sixteen(HEADERS[0] + 48);
    let entry = sectors.find(|at| sixteen(*at).starts_with(b"loge") && sixteen(at + 32) == guid);
    let entry = entry.unwrap();
    let mut len = [0; 4];
    base.read_at(entry + 8, &mut len).unwrap();
    let len = usize::try_from(u32::from_le_bytes(len)).unwrap();
    // Field of the entry, what it says, what is told and where.
    let rows = [
        (48, 1_u64 << 44, "log-flushed-length", entry),
        (56, 1 << 60, "log-last-length", entry),
        (80, HEADERS[1], "log-descriptor-target", entry + 64),
        (80, log, "log-descriptor-target", entry + 64),
        (16, 5, "log-no-entry", log),
    ];
    for (field, value, rule, at) in rows {
        let file = base.clone();
        patch(&file, entry, len, |bytes| {
            bytes[field..field + 8].copy_from_slice(&value.to_le_bytes());
        });
        let found = report(&file);
        assert!(
            rules(&found).contains(&(rule, Some(at))),
            "{:#?}",
            found.findings
        );
        assert!(!is_accepted(&file), "{rule}");
    }
    // A torn entry is none: with no other one there is nothing to replay.
    let torn = base.clone();
    torn.write_at(entry + 100, &[0xAA]).unwrap();
    assert!(rules(&report(&torn)).contains(&("log-no-entry", Some(log))));
}

#[test]
fn a_child_is_checked_against_its_parent() {
    let (Some(child), Some(parent)) = (load("fat-differential.vhdx"), load("fat-parent.vhdx"))
    else {
        return;
    };
    let identity = report(&parent).identity.unwrap();
    let with = |identity: ParentIdentity| {
        let mut options = CheckOptions::default();
        options.parent = Some(identity);
        check(&child, &options).unwrap()
    };
    let right = with(identity);
    assert!(right.is_sound(), "{:#?}", right.findings);
    assert_eq!(right.summary.kind, Some("differencing"));
    assert_eq!(right.summary.bitmap_blocks, 1);
    assert_eq!(right.summary.blocks.partial, 1);
    let wrong = with(ParentIdentity {
        data_write_guid: Uuid::from_u128(1),
        logical_sector_size: 4096,
        virtual_size: identity.virtual_size + 512,
        disk_id: Uuid::from_u128(2),
    });
    let at = Some(METADATA + 0x10028);
    let expected = [
        "parent-linkage",
        "parent-sector-size",
        "parent-size",
        "parent-disk-id",
    ];
    assert_eq!(rules(&wrong), expected.map(|rule| (rule, at)));
}

#[test]
fn a_partial_block_needs_its_bitmap() {
    let Some(file) = load("fat-differential.vhdx") else {
        return;
    };
    put_entry(&file, 2048, 0);
    let expected = [("bat-bitmap-missing", Some(BAT + 2048 * 8))];
    assert_eq!(rules(&report(&file)), expected);
    put_entry(&file, 2048, 5);
    let expected = ["bat-state", "bat-bitmap-missing"];
    let at = Some(BAT + 2048 * 8);
    assert_eq!(rules(&report(&file)), expected.map(|rule| (rule, at)));
}

#[test]
fn a_locator_that_lies_is_an_error() {
    let Some(file) = load("fat-differential.vhdx") else {
        return;
    };
    file.write_at(METADATA + 0x10028, &[0]).unwrap();
    assert_eq!(
        rules(&report(&file)),
        [("locator", Some(METADATA + 0x10028))]
    );
}

#[test]
fn every_damage_is_told() {
    let file = sample();
    file.write_at(HEADERS[0], b"x").unwrap();
    file.write_at(256 << 10, b"x").unwrap();
    file.write_at(METADATA + 0x10014, &[1]).unwrap();
    put_entry(&file, 1, 4);
    put_entry(&file, 3, 1 << 40 | 6);
    put_entry(&file, 4, (2 * MIB) | 6);
    put_entry(&file, 5, (4 * MIB) | 6);
    put_entry(&file, 6, (4 * MIB) | 2);
    put_entry(&file, 7, 8);
    let expected = [
        ("header-signature", HEADERS[0]),
        ("header-checksum", HEADERS[0]),
        ("region-table-signature", 256 << 10),
        ("region-table-checksum", 256 << 10),
        ("sector-size", METADATA + 0x10014),
        ("bat-state", BAT + 8),
        ("bat-past-end", BAT + 24),
        ("bat-over-structure", BAT + 32),
        ("bat-shared-space", BAT + 40),
        ("bat-offset-unused", BAT + 48),
        ("bat-reserved", BAT + 56),
    ];
    let found = report(&file);
    assert_eq!(rules(&found), expected.map(|(rule, at)| (rule, Some(at))));
    assert_eq!(found.errors, 6);
}

#[test]
fn space_that_nothing_uses_is_told() {
    let file = sample();
    let len = file.len().unwrap();
    file.set_len(len + 3 * MIB + 512).unwrap();
    put_entry(&file, 0, 0);
    let found = report(&file).summary;
    assert_eq!(
        (found.unreferenced_len, found.unreferenced_ranges),
        (4 * MIB, 2)
    );
    assert_eq!(found.trailing_len, 512);
}

#[test]
fn findings_are_limited_and_still_counted() {
    let file = sample();
    (0..8).for_each(|slot| put_entry(&file, slot, 4));
    let mut options = CheckOptions::default();
    options.findings_max = 3;
    let found = check(&file, &options).unwrap();
    assert_eq!((found.errors, found.omitted), (8, 5));
    assert_eq!(rules(&found).len(), 3);
}

#[test]
fn what_is_no_vhdx_is_an_error_of_its_own() {
    for bytes in [&b""[..], b"vhdx", b"conectix and more"] {
        let file = MemoryFile::from_bytes(bytes);
        let error = check(&file, &CheckOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotVhdx);
    }
    let cut = MemoryFile::from_bytes(b"vhdxfile");
    assert!(!report(&cut).is_sound());
}

#[test]
fn the_largest_disk_takes_little_time_and_memory() {
    let file = Arc::new(MemoryFile::new());
    let options = CreateOptions {
        block_size: Some(1 << 20),
        ..CreateOptions::new(64 << 40, Kind::Dynamic)
    };
    Image::create(file.clone(), &options).unwrap();
    let found = report(&*file);
    assert!(found.is_sound());
    assert_eq!(found.summary.blocks.not_present, 64 << 20);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn check_and_open_agree(
        // Small numbers are lengths, states and flags that nearly are right.
        flips in proptest::collection::vec(
            (0..8_usize, 0..192_u64, prop_oneof![any::<u8>(), 0..12_u8]),
            1..4,
        ),
        is_sealed in any::<bool>(),
    ) {
        let file = sample();
        let places = [
            HEADERS[0], HEADERS[1], 192 << 10, 256 << 10, METADATA, METADATA + 0x10000, BAT, BAT,
        ];
        for (place, at, value) in flips {
            file.write_at(places[place] + at, &[value]).unwrap();
        }
        // Without right checksums most changes would stop at the checksum.
        if is_sealed {
            HEADERS.iter().for_each(|at| patch(&file, *at, 4096, |_| ()));
            [192 << 10, 256 << 10].iter().for_each(|at| patch(&file, *at, 64 << 10, |_| ()));
        }
        let found = report(&file);
        let first = found.findings.iter().find(|f| f.severity == Severity::Error);
        prop_assert_eq!(found.is_sound(), is_accepted(&file), "{:?}", first);
    }
}
