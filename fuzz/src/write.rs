//! A disk that is written: is what was written what is read?

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use failback_vhdx::{ChildOptions, CreateOptions, FileAt, Image, Kind, MemoryFile};

use crate::sums;

const SECTOR: u64 = 512;
const DISK_LEN: u64 = 3 << 20;
const SECTORS: u64 = DISK_LEN / SECTOR;
/// Steps that are done, at most.
const STEPS_MAX: usize = 48;
const STEP_LEN: usize = 6;
/// Places of the file where a change is laid before it is opened: the page of the BAT with all
/// entries, and the table and items of the metadata.
const BAT_AT: u64 = 3 << 20;
const METADATA_AT: u64 = 2 << 20;

/// An image, and what it stands on.
struct Disk {
    file: Arc<MemoryFile>,
    parent: Option<Arc<Image>>,
}

/// Input: a byte that chooses the image, then steps of 6 bytes: what, a byte, a sector (u16) and a
/// count (u16). Bits 4 and up of the first byte say how many steps change the file beforehand.
///
/// # Panics
///
/// When a sector reads other than it was written last, before or after a reopening, when a writer
/// refuses what it must take, or when the file is not sound in the end.
pub fn vhdx_write(data: &[u8]) {
    let Some((choice, steps)) = data.split_first() else {
        return;
    };
    let Some(disk) = disk(*choice) else { return };
    let (steps, _) = steps.as_chunks::<STEP_LEN>();
    let (edits, steps) = steps.split_at(usize::from(choice >> 4).min(steps.len()));
    edits.iter().for_each(|edit| lay(&disk.file, *edit));
    let Ok(mut image) = disk.open() else { return };
    if image.virtual_size() > 2 * DISK_LEN {
        return;
    }
    // A changed table may hold what cannot be read, and a writer then refuses it at once.
    let Some(mut model) = content(&image) else {
        return;
    };
    if !edits.is_empty() && image.zero(0..0).is_err() {
        return;
    }
    for step in steps.iter().take(STEPS_MAX) {
        if run(*step, &mut image, &disk, &mut model).is_none() {
            assert!(!edits.is_empty(), "a sound image refuses {step:?}");
            return;
        }
    }
    let read = content(&image);
    assert!(read.as_ref() == Some(&model), "reads other than written");
    image.close().expect("a written image closes");
    drop(image);
    let image = disk.open().expect("a closed image opens");
    assert!(content(&image) == Some(model), "reads other after a close");
    image.scan_allocation().expect("a sound table");
}

impl Disk {
    fn open(&self) -> failback_vhdx::Result<Image> {
        let file = self.file.clone();
        match &self.parent {
            None => Image::open_rw(file),
            Some(parent) => Image::open_child_rw(file, parent.clone()),
        }
    }
}

/// Does a step to both; `None` when the image refuses it.
fn run(
    [what, byte, step @ ..]: [u8; STEP_LEN],
    image: &mut Image,
    disk: &Disk,
    model: &mut [u8],
) -> Option<()> {
    let unit = u64::from(image.logical_sector_size());
    let [a, b, c, d] = step;
    let sectors = image.virtual_size() / unit;
    let first = u64::from(u16::from_le_bytes([a, b])) % sectors;
    let count = u64::from(u16::from_le_bytes([c, d])) % SECTORS;
    let range = first * unit..(first + count).min(sectors) * unit;
    let block = u64::from(image.block_size());
    let whole = range.start / block * block;
    let whole = whole..(whole + block).min(image.virtual_size());
    match what % 8 {
        0..=2 => {
            let place = place(&range);
            model[place.clone()].fill(byte);
            image.write_at(range.start, &model[place]).ok()
        }
        3 => {
            model[place(&range)].fill(0);
            image.zero(range).ok()
        }
        4 => {
            model[place(&whole)].fill(0);
            image.zero(whole).ok()
        }
        5 => image.flush().ok(),
        6 => {
            image.close().ok()?;
            *image = disk.open().expect("a closed image opens");
            Some(())
        }
        // As after the end of the process: the log is replayed.
        _ => {
            image.flush().ok()?;
            *image = disk.open().expect("a flushed image opens");
            Some(())
        }
    }
}

fn place(range: &Range<u64>) -> Range<usize> {
    let at = |at| usize::try_from(at).expect("a small disk");
    at(range.start)..at(range.end)
}

/// Changes eight bytes of the BAT, or one of the metadata.
fn lay(file: &MemoryFile, [what, byte, step @ ..]: [u8; STEP_LEN]) {
    let [a, b, c, d] = step;
    let within = u64::from(u16::from_le_bytes([a, b]));
    let done = match what % 2 {
        0 => {
            let entry = u64::from(byte) | u64::from(u16::from_le_bytes([c, d])) << 20;
            file.write_at(BAT_AT + within % 8 * 8, &entry.to_le_bytes())
        }
        _ => file.write_at(
            METADATA_AT + within % 256 + u64::from(c % 2) * (64 << 10),
            &[byte],
        ),
    };
    done.expect("memory takes every write");
    sums::repair(file);
}

fn content(image: &Image) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(image.virtual_size()).ok()?];
    image.read_at(0, &mut bytes).ok()?;
    Some(bytes)
}

/// A copy of one of a few sound images.
fn disk(choice: u8) -> Option<Disk> {
    static DISKS: OnceLock<Vec<Disk>> = OnceLock::new();
    let disks = DISKS.get_or_init(|| disks().unwrap_or_default());
    let disk = disks.get(usize::from(choice & 0xf) % disks.len().max(1))?;
    Some(Disk {
        file: Arc::new(MemoryFile::clone(&disk.file)),
        parent: disk.parent.clone(),
    })
}

fn disks() -> Option<Vec<Disk>> {
    let mut disks = Vec::new();
    for (kind, sector) in [
        (Kind::Dynamic, 512),
        (Kind::Fixed, 512),
        (Kind::Dynamic, 4096),
    ] {
        let file = Arc::new(MemoryFile::new());
        let options = CreateOptions {
            block_size: Some(1 << 20),
            logical_sector_size: sector,
            ..CreateOptions::new(DISK_LEN, kind)
        };
        let image = Image::create(file.clone(), &options).ok()?;
        image.write_at(0, &[9; 8192]).ok()?;
        image.close().ok()?;
        if kind == Kind::Dynamic {
            let parent = Arc::new(Image::open(file.clone()).ok()?);
            let child = Arc::new(MemoryFile::new());
            let options = ChildOptions {
                block_size: Some(1 << 20),
                ..ChildOptions::new(".\\parent.vhdx")
            };
            Image::create_child(child.clone(), parent.clone(), &options).ok()?;
            let parent = Some(parent);
            disks.push(Disk {
                file: child,
                parent,
            });
        }
        disks.push(Disk { file, parent: None });
    }
    Some(disks)
}
