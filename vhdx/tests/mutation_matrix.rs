//! Goal: for each damage of a fixed image by Windows, open does what the format says, and check
//! names the structure and the place. Method: one row for each damage, checksums repaired, then
//! the whole disk read and the whole report looked at. What the format leaves open stays open.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests state and say what they find"
)]

mod support;

use std::sync::Arc;

use failback_vhdx::{
    CheckOptions, CreateOptions, ErrorKind, FileAt, Image, Kind, MemoryFile, Severity, check,
};
use support::{MIB, load, patch, read_all, read_u64};

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
const LOG: u64 = MIB;
const METADATA: u64 = 2 * MIB;
const BAT: u64 = 3 * MIB;
/// Where Windows puts the items.
const PARAMETERS: u64 = METADATA + 0x10000;
const SIZE: u64 = METADATA + 0x10008;
const LOGICAL: u64 = METADATA + 0x10010;
/// The fourth entry of the metadata table: that of the physical sector.
const PHYSICAL_ENTRY: u64 = METADATA + 4 * 32;
/// The entry behind the last of a table.
const NEW_ITEM: u64 = METADATA + 6 * 32;
const NEW_REGION: u64 = 16 + 2 * 32;

/// What the specification wants of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Refuse,
    Same,
    /// The first block reads zero, the others as before.
    Zeros,
    /// It does not say; the data may be others.
    Any,
}

use Wanted::{Any, Refuse, Same, Zeros};

type Mutation = Box<dyn Fn(&MemoryFile)>;
/// Structure, rule, offset in the file.
type Expected = (&'static str, &'static str, u64);

struct Row {
    name: &'static str,
    wanted: Wanted,
    expected: Vec<Expected>,
    mutation: Mutation,
}

fn row(
    name: &'static str,
    wanted: Wanted,
    expected: &[Expected],
    mutation: impl Fn(&MemoryFile) + 'static,
) -> Row {
    Row {
        name,
        wanted,
        expected: expected.to_vec(),
        mutation: Box::new(mutation),
    }
}

/// The current header first, then the older one.
fn current_first(file: &MemoryFile) -> [u64; 2] {
    let [first, second] = HEADERS.map(|at| read_u64(file, at + 8));
    match second > first {
        true => [HEADERS[1], HEADERS[0]],
        false => HEADERS,
    }
}

fn headers(file: &MemoryFile, change: impl Fn(&mut [u8])) {
    HEADERS
        .iter()
        .for_each(|at| patch(file, *at, 4096, &change));
}

fn regions(file: &MemoryFile, change: impl Fn(&mut [u8])) {
    REGIONS
        .iter()
        .for_each(|at| patch(file, *at, 64 << 10, &change));
}

fn spoil(file: &MemoryFile, at: u64) {
    file.write_at(at, &[0x5A]).unwrap();
}

fn add_region(file: &MemoryFile, flags: u8) {
    regions(file, |table| {
        table[8] = 3;
        table[80..96].fill(0xEE);
        table[96..104].copy_from_slice(&(1000 * MIB).to_le_bytes());
        table[104..108].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        table[108] = flags;
    });
}

/// Moves both regions of the tables to `at`.
fn move_regions(file: &MemoryFile, at: u64) {
    regions(file, |table| {
        for entry in [16, 48] {
            table[entry + 16..entry + 24].copy_from_slice(&at.to_le_bytes());
        }
    });
}

fn add_item(file: &MemoryFile, flags: u8, at: u32, len: u32) {
    file.write_at(METADATA + 10, &[6]).unwrap();
    file.write_at(NEW_ITEM, &[0xEE; 16]).unwrap();
    file.write_at(NEW_ITEM + 16, &at.to_le_bytes()).unwrap();
    file.write_at(NEW_ITEM + 20, &len.to_le_bytes()).unwrap();
    file.write_at(NEW_ITEM + 24, &[flags]).unwrap();
}

fn put(at: u64, bytes: &[u8]) -> impl Fn(&MemoryFile) + use<> {
    let bytes = bytes.to_vec();
    move |file| file.write_at(at, &bytes).unwrap()
}

/// Changes the first entry of the BAT.
fn first_entry(change: impl Fn(u64) -> u64) -> impl Fn(&MemoryFile) {
    move |file| {
        let raw = change(read_u64(file, BAT));
        file.write_at(BAT, &raw.to_le_bytes()).unwrap();
    }
}

/// Runs the rows; each starts from an image of its own.
fn run(rows: Vec<Row>) {
    let Some(base) = load("fat-parent.vhdx") else {
        return;
    };
    let content = read_all(&Image::open(Arc::new(base.clone())).unwrap());
    let block_size = Image::open(Arc::new(base.clone())).unwrap().block_size();
    let mut with_zeros = content.clone();
    with_zeros[..usize::try_from(block_size).unwrap()].fill(0);
    for row in rows {
        let file = base.clone();
        (row.mutation)(&file);
        let name = row.name;
        let found = check(&file, &CheckOptions::default()).unwrap();
        for expected in &row.expected {
            let is_there = found.findings.iter().any(|finding| {
                (finding.structure, finding.rule, finding.at)
                    == (expected.0, expected.1, Some(expected.2))
            });
            assert!(
                is_there,
                "{name}: no {expected:x?} in {:#x?}",
                found.findings
            );
        }
        // Nothing else is told, so that no row passes by a finding of something else.
        let told = found
            .findings
            .iter()
            .filter(|finding| finding.severity > Severity::Note);
        for finding in told {
            let is_expected = row
                .expected
                .iter()
                .any(|expected| expected.1 == finding.rule);
            assert!(is_expected, "{name}: {finding:#x?}");
        }
        let read = Image::open(Arc::new(file)).and_then(|image| {
            let mut bytes = vec![0; usize::try_from(image.virtual_size()).unwrap()];
            image.read_at(0, &mut bytes).map(|()| bytes)
        });
        let verdict = match &read {
            Err(_) => Refuse,
            Ok(bytes) if *bytes == content => Same,
            Ok(bytes) if *bytes == with_zeros => Zeros,
            Ok(_) => Any,
        };
        assert!(
            row.wanted == Any || row.wanted == verdict,
            "{name}: {verdict:?}"
        );
        assert_eq!(found.is_sound(), read.is_ok(), "{name}");
    }
}

#[test]
fn the_image_to_damage_is_laid_out_as_windows_does_it() {
    run(vec![row("unchanged", Same, &[], |_| ())]);
}

#[test]
fn headers_are_met_as_the_format_says() {
    let checksum = |at| ("header", "header-checksum", at);
    run(vec![
        row("first header bad CRC", Same, &[checksum(HEADERS[0])], |f| {
            spoil(f, HEADERS[0] + 100);
        }),
        row(
            "second header bad CRC",
            Same,
            &[checksum(HEADERS[1])],
            |f| {
                spoil(f, HEADERS[1] + 100);
            },
        ),
        row("both headers bad", Refuse, &HEADERS.map(checksum), |f| {
            HEADERS.iter().for_each(|at| spoil(f, at + 100));
        }),
        row(
            "equal sequence, different",
            Refuse,
            &[("header", "header-sequence", HEADERS[0])],
            |f| {
                headers(f, |header| header[8..16].fill(9));
                patch(f, HEADERS[0], 4096, |header| header[16] ^= 1);
            },
        ),
        row("identical headers", Same, &[], |f| {
            let [current, older] = current_first(f);
            let mut header = vec![0; 4096];
            f.read_at(current, &mut header).unwrap();
            f.write_at(older, &header).unwrap();
        }),
        row(
            "version 2",
            Refuse,
            &HEADERS.map(|at| ("header", "header-version", at)),
            |f| headers(f, |header| header[66] = 2),
        ),
        row(
            "log version 1, log empty",
            Same,
            &HEADERS.map(|at| ("header", "header-log-version", at)),
            |f| headers(f, |header| header[64] = 1),
        ),
    ]);
}

#[test]
fn logs_are_met_as_the_format_says() {
    run(vec![
        row(
            "log overlaps BAT",
            Refuse,
            &[("region table", "region-overlap", REGIONS[0] + 16)],
            |f| {
                headers(f, |header| {
                    header[72..80].copy_from_slice(&BAT.to_le_bytes());
                });
            },
        ),
        row(
            "log of no length, not in use",
            Any,
            &HEADERS.map(|at| ("header", "header-log-length", at)),
            |f| headers(f, |header| header[68..72].fill(0)),
        ),
        row(
            "log in use, no entry",
            Refuse,
            &[("log", "log-no-entry", LOG)],
            |f| headers(f, |header| header[48] ^= 0x55),
        ),
        row(
            "log in use, version 1",
            Refuse,
            &[
                ("header", "header-log-version", HEADERS[0]),
                ("log", "log-no-entry", LOG),
            ],
            |f| {
                headers(f, |header| {
                    header[48] ^= 0x55;
                    header[64] = 1;
                });
            },
        ),
        row(
            "log in use, no space",
            Refuse,
            &[("log", "log-no-space", LOG)],
            |f| {
                headers(f, |header| {
                    header[48] ^= 0x55;
                    header[68..72].fill(0);
                });
            },
        ),
    ]);
}

#[test]
fn region_tables_are_met_as_the_format_says() {
    let checksum = |at| ("region table", "region-table-checksum", at);
    let new = |rule| ("region table", rule, REGIONS[0] + NEW_REGION);
    let entry = |rule| ("region table", rule, REGIONS[0] + 48);
    run(vec![
        row("region table 1 bad", Same, &[checksum(REGIONS[0])], |f| {
            spoil(f, REGIONS[0] + 1000);
        }),
        row("region table 2 bad", Same, &[checksum(REGIONS[1])], |f| {
            spoil(f, REGIONS[1] + 1000);
        }),
        row(
            "both region tables bad",
            Refuse,
            &REGIONS.map(checksum),
            |f| REGIONS.iter().for_each(|at| spoil(f, at + 1000)),
        ),
        row(
            "unknown optional region",
            Same,
            &[new("region-unknown"), new("region-past-end")],
            |f| add_region(f, 0),
        ),
        row(
            "unknown required region",
            Refuse,
            &[new("region-unknown-required"), new("region-past-end")],
            |f| add_region(f, 1),
        ),
        row(
            "regions overlap",
            Refuse,
            &[
                entry("region-overlap"),
                ("BAT", "bat-not-checked", METADATA),
            ],
            |f| move_regions(f, METADATA),
        ),
        row(
            "regions not MiB aligned",
            Refuse,
            &[
                entry("region-place"),
                ("region table", "region-overlap", REGIONS[0] + 48),
                ("metadata table", "metadata-signature", METADATA + 512),
            ],
            |f| move_regions(f, METADATA + 512),
        ),
    ]);
}

#[test]
fn metadata_are_met_as_the_format_says() {
    let new = |rule| ("metadata table", rule, NEW_ITEM);
    let logical = |sector: u32| put(LOGICAL, &sector.to_le_bytes());
    let size = |size: u64| put(SIZE, &size.to_le_bytes());
    let block = |size: u32| put(PARAMETERS, &size.to_le_bytes());
    let bad_block = [("file parameters", "block-size", PARAMETERS)];
    let bad_size = [("virtual disk size", "virtual-size", SIZE)];
    run(vec![
        row("unknown optional item", Same, &[new("item-unknown")], |f| {
            add_item(f, 0, 0x20000, 16);
        }),
        row("unknown user item", Same, &[], |f| {
            add_item(f, 1, 0x20000, 16);
        }),
        row("empty item", Same, &[new("item-unknown")], |f| {
            add_item(f, 0, 0, 0);
        }),
        row(
            "unknown required item",
            Refuse,
            &[new("item-unknown-required")],
            |f| add_item(f, 4, 0x20000, 16),
        ),
        row("logical sector 4096", Same, &[], logical(4096)),
        row(
            "logical sector 520",
            Refuse,
            &[("logical sector size", "sector-size", LOGICAL)],
            logical(520),
        ),
        row("block of 3 MiB", Refuse, &bad_block, block(3 << 20)),
        row("block of 512 MiB", Refuse, &bad_block, block(512 << 20)),
        row("size of 65 TiB", Refuse, &bad_size, size(65 << 40)),
        row("size 0", Refuse, &bad_size, size(0)),
        row(
            "size not whole sectors",
            Refuse,
            &bad_size,
            size(4 * MIB + 100),
        ),
        row(
            "an item of a wrong length",
            Refuse,
            &[("physical sector size", "item-length", METADATA + 0x10014)],
            put(PHYSICAL_ENTRY + 20, &[3]),
        ),
        row(
            "no physical sector size",
            Refuse,
            &[
                ("physical sector size", "item-missing", METADATA),
                ("metadata table", "item-unknown", PHYSICAL_ENTRY),
            ],
            |f| {
                f.write_at(PHYSICAL_ENTRY, &[0xEE; 16]).unwrap();
                f.write_at(PHYSICAL_ENTRY + 24, &[0]).unwrap();
            },
        ),
        row(
            "a parent and no locator",
            Refuse,
            &[("parent locator", "locator-missing", METADATA)],
            put(PARAMETERS + 4, &[2]),
        ),
    ]);
}

#[test]
fn entries_of_the_bat_are_met_as_the_format_says() {
    let entry = |rule| ("BAT entry", rule, BAT);
    let unallocated = ("BAT", "fixed-unallocated", BAT);
    let unused = entry("bat-offset-unused");
    run(vec![
        row(
            "state 0",
            Zeros,
            &[unallocated, unused],
            first_entry(|raw| raw & !7),
        ),
        row(
            "state 1",
            Zeros,
            &[unallocated],
            first_entry(|raw| (raw & !7) | 1),
        ),
        row(
            "state 2",
            Zeros,
            &[unallocated, unused],
            first_entry(|raw| (raw & !7) | 2),
        ),
        row(
            "state 3",
            Zeros,
            &[unallocated],
            first_entry(|raw| (raw & !7) | 3),
        ),
        row(
            "state 4",
            Refuse,
            &[entry("bat-state")],
            first_entry(|raw| (raw & !7) | 4),
        ),
        row(
            "state 5",
            Refuse,
            &[entry("bat-state")],
            first_entry(|raw| (raw & !7) | 5),
        ),
        row(
            "state 7",
            Refuse,
            &[entry("bat-state")],
            first_entry(|raw| raw | 7),
        ),
        row(
            "reserved bits",
            Any,
            &[entry("bat-reserved")],
            first_entry(|raw| raw | 8),
        ),
        row(
            "past the end",
            Refuse,
            &[entry("bat-past-end")],
            first_entry(|_| (1 << 40) | 6),
        ),
        row(
            "in the header section",
            Refuse,
            &[entry("bat-over-structure")],
            first_entry(|_| 6),
        ),
        row(
            "over metadata",
            Refuse,
            &[entry("bat-over-structure")],
            first_entry(|_| METADATA | 6),
        ),
        row(
            "two entries at one offset",
            Refuse,
            &[("BAT entry", "bat-shared-space", BAT + 8)],
            |f| {
                let first = read_u64(f, BAT);
                f.write_at(BAT + 8, &first.to_le_bytes()).unwrap();
            },
        ),
        row(
            "an entry past the last",
            Same,
            &[],
            put(BAT + 2048 * 8, &[6]),
        ),
    ]);
}

#[test]
fn ends_of_the_file_are_met_as_the_format_says() {
    let Some(base) = load("fat-parent.vhdx") else {
        return;
    };
    let len = base.len().unwrap();
    let entries = [0, 8].map(|slot| (read_u64(&base, BAT + slot) & !0xFFFFF, BAT + slot));
    let last = entries.iter().max().unwrap().1;
    run(vec![
        row(
            "trailing junk",
            Same,
            &[("file", "trailing-data", len)],
            move |f| {
                f.write_at(len, &[0x5A; 512]).unwrap();
            },
        ),
        row(
            "file cut",
            Refuse,
            &[("BAT entry", "bat-past-end", last)],
            move |f| f.set_len(len - 512).unwrap(),
        ),
    ]);
}

#[test]
fn a_damaged_file_id_is_no_vhdx() {
    let Some(file) = load("fat-parent.vhdx") else {
        return;
    };
    spoil(&file, 0);
    let found = check(&file, &CheckOptions::default()).unwrap_err();
    let opened = Image::open(Arc::new(file)).unwrap_err();
    let kinds = [found, opened].map(|error| error.kind());
    assert_eq!(kinds, [ErrorKind::NotVhdx; 2]);
}

// The real image is too small to have an entry for a bitmap that counts.
#[test]
fn a_bitmap_without_a_parent_is_told_and_got_over() {
    let file = Arc::new(MemoryFile::new());
    let options = CreateOptions {
        block_size: Some(1 << 20),
        ..CreateOptions::new(4097 * MIB, Kind::Dynamic)
    };
    Image::create(file.clone(), &options).unwrap();
    let at = BAT + 4096 * 8;
    file.write_at(at, &((4 * MIB) | 6).to_le_bytes()).unwrap();
    let found = check(&*file, &CheckOptions::default()).unwrap();
    let rules = found
        .findings
        .iter()
        .map(|finding| (finding.rule, finding.at));
    assert_eq!(Vec::from_iter(rules), [("bat-bitmap-unused", Some(at))]);
    assert!(found.is_sound());
    assert!(Image::open(file).unwrap().scan_allocation().is_ok());
}
