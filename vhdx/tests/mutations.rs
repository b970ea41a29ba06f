//! Goal: each damage is met as the format says, by open or by the first look at it. Method: one
//! change of a fixed image by Windows per test row, checksums repaired, then read it all.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests state and say what they find"
)]

mod support;

use std::sync::Arc;

use failback_vhdx::{Error, ErrorKind, FileAt, Image, MemoryFile, Uuid, Warning, is_vhdx};
use support::{MIB, load, patch, read_all, read_u64};

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
const FILE_PARAMETERS: &str = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B";
const VIRTUAL_SIZE: &str = "2FA54224-CD1B-4876-B211-5DBED83BF4B8";
const LOGICAL_SECTOR: &str = "8141BF1D-A96F-4709-BA47-F233A8FAAB5F";
const PHYSICAL_SECTOR: &str = "CDA348C7-445D-4471-9CC9-E9885251C556";

/// The image to damage, and where its parts are.
struct Base {
    file: MemoryFile,
    content: Vec<u8>,
    bat: u64,
    metadata: u64,
    /// Which header is current.
    current: usize,
}

impl Base {
    fn load() -> Option<Self> {
        let file = load("fat-parent.vhdx")?;
        let content = read_all(&Image::open(Arc::new(file.clone())).unwrap());
        let region = |guid: &str| {
            let wanted = Uuid::parse_str(guid).unwrap().to_bytes_le();
            let entry = (0..2).map(|entry| REGIONS[0] + 16 + entry * 32).find(|at| {
                let mut found = [0; 16];
                file.read_at(*at, &mut found).unwrap();
                found == wanted
            });
            read_u64(&file, entry.unwrap() + 16)
        };
        let bat = region("2DC27766-F623-4200-9D64-115E9BFD4A08");
        let metadata = region("8B7CA206-4790-4B9A-B8FE-575F050F886E");
        let [first, second] = HEADERS.map(|at| read_u64(&file, at + 8));
        let current = usize::from(second > first);
        Some(Self {
            file,
            content,
            bat,
            metadata,
            current,
        })
    }

    fn file(&self) -> MemoryFile {
        self.file.clone()
    }

    /// Where the table entry of a metadata item is.
    fn item_entry(&self, guid: &str) -> u64 {
        let wanted = Uuid::parse_str(guid).unwrap().to_bytes_le();
        let mut entries = (1..16).map(|entry| self.metadata + entry * 32);
        let found = entries.find(|at| {
            let mut found = [0; 16];
            self.file.read_at(*at, &mut found).unwrap();
            found == wanted
        });
        found.unwrap()
    }

    /// Where the content of a metadata item is.
    fn item(&self, guid: &str) -> u64 {
        let mut at = [0; 4];
        self.file
            .read_at(self.item_entry(guid) + 16, &mut at)
            .unwrap();
        self.metadata + u64::from(u32::from_le_bytes(at))
    }
}

fn open(file: MemoryFile) -> Result<Image, Error> {
    Image::open(Arc::new(file))
}

fn refused(file: MemoryFile) -> ErrorKind {
    open(file).unwrap_err().kind()
}

fn patch_both(file: &MemoryFile, at: [u64; 2], len: usize, change: impl Fn(&mut [u8])) {
    for at in at {
        patch(file, at, len, &change);
    }
}

#[test]
fn one_bad_header_is_survived_and_reported() {
    let Some(base) = Base::load() else { return };
    for at in HEADERS {
        let file = base.file();
        file.write_at(at + 100, &[1]).unwrap();
        let image = open(file).unwrap();
        assert!(read_all(&image) == base.content);
        assert_eq!(image.warnings(), [Warning::HeaderDamaged { at }]);
    }
}

#[test]
fn headers_that_leave_no_choice_are_refused() {
    let Some(base) = Base::load() else { return };
    let bad = base.file();
    HEADERS
        .iter()
        .for_each(|at| bad.write_at(*at + 100, &[1]).unwrap());
    assert_eq!(refused(bad), ErrorKind::Damaged);
    let equal = base.file();
    patch_both(&equal, HEADERS, 4096, |header| header[8..16].fill(9));
    patch(&equal, HEADERS[0], 4096, |header| header[16] ^= 1);
    assert_eq!(refused(equal), ErrorKind::Damaged);
    let version = base.file();
    patch_both(&version, HEADERS, 4096, |header| header[66] = 2);
    assert_eq!(refused(version), ErrorKind::Unsupported);
}

#[test]
fn identical_headers_are_taken_and_can_be_written() {
    let Some(base) = Base::load() else { return };
    let file = base.file();
    let mut header = vec![0; 4096];
    file.read_at(HEADERS[base.current], &mut header).unwrap();
    HEADERS
        .iter()
        .for_each(|at| file.write_at(*at, &header).unwrap());
    let file = Arc::new(file);
    let image = Image::open_rw(file.clone()).unwrap();
    assert!(read_all(&image) == base.content);
    image.write_at(0, &[1; 512]).unwrap();
    image.close().unwrap();
    assert_eq!(read_all(&Image::open(file).unwrap())[0], 1);
}

#[test]
fn a_log_version_matters_only_to_a_log() {
    let Some(base) = Base::load() else { return };
    let file = base.file();
    patch_both(&file, HEADERS, 4096, |header| header[64] = 1);
    assert!(read_all(&open(file.clone()).unwrap()) == base.content);
    patch_both(&file, HEADERS, 4096, |header| header[48] = 1);
    assert_eq!(refused(file), ErrorKind::Unsupported);
}

#[test]
fn a_log_in_use_without_entries_is_refused() {
    let Some(base) = Base::load() else { return };
    let file = base.file();
    patch_both(&file, HEADERS, 4096, |header| header[48] ^= 0x55);
    assert_eq!(refused(file), ErrorKind::Damaged);
}

#[test]
fn a_log_over_the_bat_is_refused() {
    let Some(base) = Base::load() else { return };
    let file = base.file();
    patch_both(&file, HEADERS, 4096, |header| {
        header[72..80].copy_from_slice(&base.bat.to_le_bytes());
    });
    assert_eq!(refused(file), ErrorKind::Damaged);
}

#[test]
fn either_region_table_is_enough() {
    let Some(base) = Base::load() else { return };
    for at in REGIONS {
        let file = base.file();
        file.write_at(at + 1000, &[1]).unwrap();
        let image = open(file).unwrap();
        assert!(read_all(&image) == base.content);
        assert_eq!(image.warnings(), [Warning::RegionTableDamaged { at }]);
    }
    let file = base.file();
    REGIONS
        .iter()
        .for_each(|at| file.write_at(*at + 1000, &[1]).unwrap());
    assert_eq!(refused(file), ErrorKind::Damaged);
}

/// Adds a region with this flag behind the two that are there.
fn add_region(file: &MemoryFile, required: u8) {
    patch_both(file, REGIONS, 64 << 10, |table| {
        table[8] = 3;
        table[80..96].fill(0xEE);
        table[96..104].copy_from_slice(&(1000 * MIB).to_le_bytes());
        table[104..108].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        table[108] = required;
    });
}

#[test]
fn unknown_regions_are_refused_only_when_required() {
    let Some(base) = Base::load() else { return };
    let optional = base.file();
    add_region(&optional, 0);
    assert!(read_all(&open(optional).unwrap()) == base.content);
    let required = base.file();
    add_region(&required, 1);
    assert_eq!(refused(required), ErrorKind::Unsupported);
}

#[test]
fn regions_out_of_place_are_refused() {
    let Some(base) = Base::load() else { return };
    for at in [base.metadata, base.metadata + 512, 0, u64::MAX - MIB + 1] {
        let file = base.file();
        patch_both(&file, REGIONS, 64 << 10, |table| {
            for entry in [16, 48] {
                table[entry + 16..entry + 24].copy_from_slice(&at.to_le_bytes());
            }
        });
        assert_eq!(refused(file), ErrorKind::Damaged, "{at:#x}");
    }
    let crowded = base.file();
    patch_both(&crowded, REGIONS, 64 << 10, |table| table[8..12].fill(0xFF));
    assert_eq!(refused(crowded), ErrorKind::Damaged);
}

/// Adds a metadata item behind those that are there.
fn add_item(base: &Base, flags: u8, at: u32, len: u32) -> MemoryFile {
    let file = base.file();
    let mut count = [0; 2];
    file.read_at(base.metadata + 10, &mut count).unwrap();
    let entry = base.metadata + 32 * (1 + u64::from(u16::from_le_bytes(count)));
    file.write_at(
        base.metadata + 10,
        &(u16::from_le_bytes(count) + 1).to_le_bytes(),
    )
    .unwrap();
    file.write_at(entry, &[0xEE; 16]).unwrap();
    file.write_at(entry + 16, &at.to_le_bytes()).unwrap();
    file.write_at(entry + 20, &len.to_le_bytes()).unwrap();
    file.write_at(entry + 24, &[flags]).unwrap();
    file
}

#[test]
fn unknown_items_are_refused_only_when_required() {
    let Some(base) = Base::load() else { return };
    for (flags, at, len) in [(0, 0x20000, 16), (1, 0x20000, 16), (0, 0, 0)] {
        let image = open(add_item(&base, flags, at, len)).unwrap();
        assert!(read_all(&image) == base.content);
    }
    assert_eq!(
        refused(add_item(&base, 4, 0x20000, 16)),
        ErrorKind::Unsupported
    );
    assert_eq!(refused(add_item(&base, 0, 0x10004, 16)), ErrorKind::Damaged);
    assert_eq!(
        refused(add_item(&base, 0, 0xFF_FFF0, 32)),
        ErrorKind::Damaged
    );
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let Some(base) = Base::load() else { return };
    let rows: [(&str, &[u8]); 8] = [
        (LOGICAL_SECTOR, &520_u32.to_le_bytes()),
        (PHYSICAL_SECTOR, &520_u32.to_le_bytes()),
        (FILE_PARAMETERS, &(3_u32 << 20).to_le_bytes()),
        (FILE_PARAMETERS, &(512_u32 << 20).to_le_bytes()),
        (FILE_PARAMETERS, &0_u32.to_le_bytes()),
        (VIRTUAL_SIZE, &(65_u64 << 40).to_le_bytes()),
        (VIRTUAL_SIZE, &0_u64.to_le_bytes()),
        (VIRTUAL_SIZE, &(4 * MIB + 100).to_le_bytes()),
    ];
    for (item, bytes) in rows {
        let file = base.file();
        file.write_at(base.item(item), bytes).unwrap();
        assert_eq!(refused(file), ErrorKind::Damaged, "{item} {bytes:x?}");
    }
    let missing = base.file();
    missing
        .write_at(base.item_entry(PHYSICAL_SECTOR), &[0xEE; 16])
        .unwrap();
    missing
        .write_at(base.item_entry(PHYSICAL_SECTOR) + 24, &[0])
        .unwrap();
    assert_eq!(refused(missing), ErrorKind::Damaged);
    let parent = base.file();
    parent
        .write_at(base.item(FILE_PARAMETERS) + 4, &[2])
        .unwrap();
    assert_eq!(refused(parent), ErrorKind::Damaged, "no locator");
}

#[test]
fn sectors_of_4096_bytes_read_the_same() {
    let Some(base) = Base::load() else { return };
    let file = base.file();
    file.write_at(base.item(LOGICAL_SECTOR), &4096_u32.to_le_bytes())
        .unwrap();
    assert!(read_all(&open(file).unwrap()) == base.content);
}

#[test]
fn states_without_a_place_read_zero() {
    let Some(base) = Base::load() else { return };
    for state in 0..4_u64 {
        let file = base.file();
        let entry = read_u64(&file, base.bat) & !7 | state;
        file.write_at(base.bat, &entry.to_le_bytes()).unwrap();
        let mut expected = base.content.clone();
        let block = usize::try_from(open(base.file()).unwrap().block_size()).unwrap();
        expected[..block].fill(0);
        assert!(read_all(&open(file).unwrap()) == expected, "state {state}");
    }
}

#[test]
fn entries_that_make_no_sense_are_refused() {
    let Some(base) = Base::load() else { return };
    let entry = read_u64(&base.file, base.bat);
    let with_state = |state| entry & !7 | state;
    let rows = [
        with_state(4),
        with_state(5),
        with_state(7),
        entry | 8,
        entry | 1 << 19,
        (1_u64 << 40) | 6,
        u64::MAX << 20 | 6,
        6,
        base.metadata | 6,
        base.bat | 6,
    ];
    for raw in rows {
        let file = base.file();
        file.write_at(base.bat, &raw.to_le_bytes()).unwrap();
        assert_eq!(refused(file), ErrorKind::Damaged, "{raw:#x}");
    }
}

#[test]
fn entries_past_the_last_block_are_ignored() {
    let Some(base) = Base::load() else { return };
    let file = base.file();
    let image = open(base.file()).unwrap();
    let blocks = image.virtual_size().div_ceil(image.block_size().into());
    file.write_at(base.bat + blocks * 8, &u64::MAX.to_le_bytes())
        .unwrap();
    assert!(read_all(&open(file).unwrap()) == base.content);
}

#[test]
fn blocks_that_share_space_are_found_when_a_small_table_is_opened() {
    let file = shared_space(8 * MIB);
    assert_eq!(refused(MemoryFile::clone(&file)), ErrorKind::Damaged);
}

#[test]
fn blocks_that_share_space_are_found_before_anything_is_written() {
    let file = shared_space(20 << 30);
    let before = MemoryFile::clone(&file);
    let image = Image::open_rw(file.clone()).unwrap();
    for changed in [
        image.write_at(4 * MIB, &[2; 512]),
        image.write_at(0, &[2; 512]),
        image.zero(0..512),
    ] {
        assert_eq!(changed.unwrap_err().kind(), ErrorKind::Damaged);
    }
    assert_eq!(*file, before);
}

/// A disk whose first two blocks have the same place.
fn shared_space(size: u64) -> Arc<MemoryFile> {
    let file = Arc::new(MemoryFile::new());
    let options = failback_vhdx::CreateOptions {
        block_size: Some(1 << 20),
        ..failback_vhdx::CreateOptions::new(size, failback_vhdx::Kind::Dynamic)
    };
    let image = Image::create(file.clone(), &options).unwrap();
    image.write_at(0, &[1; 512]).unwrap();
    image.close().unwrap();
    let entry = read_u64(&*file, 3 * MIB);
    file.write_at(3 * MIB + 8, &entry.to_le_bytes()).unwrap();
    file
}

#[test]
fn ends_of_the_file_matter_only_where_something_is() {
    let Some(base) = Base::load() else { return };
    let longer = base.file();
    longer.set_len(longer.len().unwrap() + 512).unwrap();
    assert!(read_all(&open(longer).unwrap()) == base.content);
    let shorter = base.file();
    shorter.set_len(shorter.len().unwrap() - 512).unwrap();
    assert_eq!(refused(shorter), ErrorKind::Damaged);
    let headless = base.file();
    headless.set_len(100).unwrap();
    assert_eq!(refused(headless), ErrorKind::Truncated);
    let file_id = base.file();
    file_id.write_at(0, b"V").unwrap();
    assert_eq!(refused(file_id), ErrorKind::NotVhdx);
    assert_eq!(refused(MemoryFile::new()), ErrorKind::NotVhdx);
    assert!(is_vhdx(b"vhdxfile and more") && !is_vhdx(b"vhdxfil"));
}
