//! A VHD: footers, header and table with a change in them, then a disk that is written.

use std::sync::{Arc, OnceLock};

use failback_engine::disk::vhd::{CreateOptions, ParentNames, VhdImage, VhdKind};
use failback_vhdx::{FileAt, MemoryFile};

const SECTOR: u64 = 512;
const DISK_LEN: u64 = 256 << 10;
const BLOCK_LEN: u32 = 32 << 10;
const FOOTER_LEN: usize = 512;
/// Where a new image has its header, and behind that the table and the names of a parent.
const HEADER_AT: u64 = 512;
const HEADER_LEN: usize = 1024;
/// Where the sums are in footer and header.
const FOOTER_SUM: usize = 64;
const HEADER_SUM: usize = 36;
const EDIT_LEN: usize = 4;
const STEP_LEN: usize = 5;
const STEPS_MAX: usize = 48;

/// Input: a byte whose low bits choose fixed, dynamic or a child, whose bit 3 asks for right sums,
/// and whose high bits count edits of 4 bytes: which structure, a place (u16), a byte. Then steps
/// of 5 bytes: what, a byte, a sector (u16), a count.
///
/// # Panics
///
/// When opening changes the file, when what is read differs from what was written last, before or
/// after reopening, or when an image that was not edited refuses a step.
pub fn vhd_disk(data: &[u8]) {
    static SOUND: OnceLock<Vec<(MemoryFile, Option<Arc<VhdImage>>)>> = OnceLock::new();
    let Some((choice, data)) = data.split_first() else {
        return;
    };
    let sound = SOUND.get_or_init(sound);
    let (file, parent) = &sound[usize::from(choice & 7) % sound.len()];
    let (edits, steps) = data.split_at((usize::from(choice >> 4) * EDIT_LEN).min(data.len()));
    let file = file.clone();
    edits
        .as_chunks()
        .0
        .iter()
        .for_each(|edit| lay(&file, *edit));
    if choice & 8 != 0 {
        repair(&file);
    }
    let before = file.clone();
    let disk = Disk {
        file: Arc::new(file),
        parent: parent.clone(),
    };
    drop(VhdImage::inspect(disk.file.clone()));
    let read_only = disk.open(false);
    let writable = disk.open(true);
    assert!(*disk.file == before, "opening changed the file");
    let Ok(image) = read_only else { return };
    if image.virtual_size() > 2 * DISK_LEN {
        return;
    }
    let Some(model) = content(&image) else { return };
    if let Ok(writable) = writable {
        disk.play(writable, model, steps.as_chunks().0, !edits.is_empty());
    }
}

struct Disk {
    file: Arc<MemoryFile>,
    parent: Option<Arc<VhdImage>>,
}

impl Disk {
    fn open(&self, is_writable: bool) -> failback_engine::Result<VhdImage> {
        let file = self.file.clone();
        let is_child = VhdImage::inspect(file.clone())?.kind() == VhdKind::Differencing;
        match (&self.parent, is_writable) {
            (Some(parent), false) if is_child => VhdImage::open_child(file, parent.clone()),
            (Some(parent), true) if is_child => VhdImage::open_child_rw(file, parent.clone()),
            (_, false) => VhdImage::open(file),
            (_, true) => VhdImage::open_rw(file),
        }
    }

    fn play(
        &self,
        image: VhdImage,
        mut model: Vec<u8>,
        steps: &[[u8; STEP_LEN]],
        may_refuse: bool,
    ) {
        let mut image = image;
        let sectors = model.len() as u64 / SECTOR;
        for [what, byte, low, high, count] in steps.iter().take(STEPS_MAX) {
            let first = u64::from(u16::from_le_bytes([*low, *high])) % sectors;
            let count = u64::from(*count).min(sectors - first);
            let range = first * SECTOR..(first + count) * SECTOR;
            let [from, to] = [range.start, range.end].map(|at| usize::try_from(at).expect("small"));
            let done = match what % 4 {
                0 => image
                    .write_at(range.start, &vec![*byte; to - from])
                    .map(|()| *byte),
                1 => image.zero(range).map(|()| 0),
                2 => image.flush().map(|()| model[from.min(model.len() - 1)]),
                _ => image.close().and_then(|()| {
                    image = self.open(true)?;
                    Ok(0)
                }),
            };
            match done {
                Ok(byte) if what % 4 < 2 => model[from..to].fill(byte),
                Ok(_) => {}
                Err(error) => {
                    assert!(may_refuse, "a sound image refuses {what}: {error}");
                    return;
                }
            }
        }
        assert!(
            content(&image).as_ref() == Some(&model),
            "reads other than written"
        );
        if image.close().is_ok() {
            let again = self.open(false).expect("a closed image opens");
            assert!(
                content(&again).as_ref() == Some(&model),
                "reads other when reopened"
            );
        }
    }
}

/// One of each kind, with something stored.
fn sound() -> Vec<(MemoryFile, Option<Arc<VhdImage>>)> {
    let make = |is_fixed| {
        let file = Arc::new(MemoryFile::new());
        let options = CreateOptions {
            block_size: Some(BLOCK_LEN),
            ..CreateOptions::new(DISK_LEN, is_fixed)
        };
        let image = VhdImage::create(file.clone(), &options).expect("a new image");
        image.write_at(8 * SECTOR, &[3; 2048]).expect("room");
        image.close().expect("closes");
        file
    };
    let dynamic = make(false);
    let parent = Arc::new(VhdImage::open(dynamic.clone()).expect("a sound image"));
    let child = Arc::new(MemoryFile::new());
    let names = ParentNames {
        relative: ".\\parent.vhd",
        absolute: None,
    };
    let image = VhdImage::create_child(child.clone(), parent.clone(), names, Some(BLOCK_LEN));
    let image = image.expect("a new child");
    image.write_at(9 * SECTOR, &[4; 512]).expect("room");
    image.close().expect("closes");
    vec![
        (MemoryFile::clone(&make(true)), None),
        (MemoryFile::clone(&dynamic), None),
        (MemoryFile::clone(&child), Some(parent)),
    ]
}

/// Changes one byte of the footer, its copy, the header, or what follows that.
fn lay(file: &MemoryFile, [part, low, high, byte]: [u8; EDIT_LEN]) {
    let len = file.len().expect("memory has a length");
    let place = u64::from(u16::from_le_bytes([low, high]));
    let at = match part % 4 {
        0 => len.saturating_sub(FOOTER_LEN as u64) + place % FOOTER_LEN as u64,
        1 => place % FOOTER_LEN as u64,
        2 => HEADER_AT + place % HEADER_LEN as u64,
        _ => HEADER_AT + HEADER_LEN as u64 + place % 2048,
    };
    file.write_at(at, &[byte])
        .expect("memory takes every write");
}

/// Makes the sums of both footers and the header right.
fn repair(file: &MemoryFile) {
    let len = file.len().expect("memory has a length");
    let end = len.saturating_sub(FOOTER_LEN as u64);
    for (at, len, sum_at) in [
        (end, FOOTER_LEN, FOOTER_SUM),
        (0, FOOTER_LEN, FOOTER_SUM),
        (HEADER_AT, HEADER_LEN, HEADER_SUM),
    ] {
        let mut bytes = vec![0; len];
        let is_ours = file.read_at(at, &mut bytes).is_ok()
            && (bytes.starts_with(b"conectix") || bytes.starts_with(b"cxsparse"));
        if is_ours {
            bytes[sum_at..sum_at + 4].fill(0);
            let sum = bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
            bytes[sum_at..sum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
            file.write_at(at, &bytes).expect("memory takes every write");
        }
    }
}

fn content(image: &VhdImage) -> Option<Vec<u8>> {
    let len = usize::try_from(image.virtual_size()).expect("a small disk");
    let mut bytes = vec![0; len];
    image.read_at(0, &mut bytes).ok()?;
    Some(bytes)
}
