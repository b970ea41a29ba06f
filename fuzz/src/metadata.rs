//! Metadata: does what an image says of itself hold?

use std::sync::{Arc, OnceLock};

use failback_vhdx::{ChildOptions, CreateOptions, FileAt, Image, Kind, MemoryFile};

use crate::{image, sums};

const REGION_AT: u64 = 2 << 20;
/// Items begin behind the table.
const ITEMS_AT: u64 = REGION_AT + (64 << 10);
/// Table and items that an input can reach.
const REACH: u64 = 1 << 10;
const RECORD_LEN: usize = 4;

/// Input: a byte that chooses a dynamic image or a child, then records of a place (u16, the high
/// bit chooses table or items), a length (u16) and so many bytes, laid over the metadata.
///
/// # Panics
///
/// When opening changes the file, when description and image disagree, when a locator is found in
/// an image without a parent, or as [`vhdx_open`](crate::vhdx_open) does.
pub fn vhdx_metadata(data: &[u8]) {
    static SOUND: OnceLock<Option<[MemoryFile; 2]>> = OnceLock::new();
    let Some((choice, mut data)) = data.split_first() else {
        return;
    };
    let Some(sound) = SOUND.get_or_init(sound) else {
        return;
    };
    let file = sound[usize::from(choice % 2)].clone();
    while let Some((record, bytes)) = data.split_first_chunk::<RECORD_LEN>() {
        let [a, b, c, d] = *record;
        let place = u16::from_le_bytes([a, b]);
        let part = if place >> 15 == 0 {
            REGION_AT
        } else {
            ITEMS_AT
        };
        let len = usize::from(u16::from_le_bytes([c, d])).min(bytes.len());
        let (bytes, rest) = bytes.split_at(len);
        let at = part + u64::from(place & 0x7fff) % REACH;
        file.write_at(at, bytes).expect("memory takes every write");
        data = rest;
    }
    sums::repair(&file);
    let before = file.clone();
    let file = Arc::new(file);
    let shared: Arc<dyn FileAt> = file.clone();
    let description = Image::inspect(shared.clone());
    let opened = Image::open(shared);
    if let Ok(found) = &description {
        assert_eq!(found.locator.is_some(), found.kind == Kind::Differencing);
        assert!(
            found
                .virtual_size
                .is_multiple_of(found.logical_sector_size.into())
        );
        assert!(found.block_size.is_power_of_two());
    }
    if let Ok(image) = &opened {
        let found = description.expect("what opens can be described");
        assert_eq!(
            (
                found.virtual_size,
                found.block_size,
                found.kind,
                found.disk_id
            ),
            (
                image.virtual_size(),
                image.block_size(),
                image.kind(),
                image.disk_id()
            )
        );
        assert!(image.parent_locator().is_none(), "opens without its parent");
        image::check(image, &file);
    }
    assert!(*file == before, "opening changed the file");
}

/// A dynamic image with a block, and a child of it.
fn sound() -> Option<[MemoryFile; 2]> {
    let files = [MemoryFile::new(), MemoryFile::new()].map(Arc::new);
    let options = CreateOptions {
        block_size: Some(1 << 20),
        ..CreateOptions::new(4 << 20, Kind::Dynamic)
    };
    let image = Image::create(files[0].clone(), &options).ok()?;
    image.write_at(0, &[0x11; 8192]).ok()?;
    image.close().ok()?;
    let options = ChildOptions::new(".\\parent.vhdx");
    Image::create_child(files[1].clone(), Arc::new(image), &options).ok()?;
    Some(files.map(|file| MemoryFile::clone(&file)))
}
