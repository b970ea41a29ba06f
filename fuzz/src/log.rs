//! A log: is replayed in memory what is replayed on disk?

use std::sync::{Arc, OnceLock};

use failback_vhdx::{CreateOptions, FileAt, Image, Kind, LogState, MemoryFile};

use crate::image;
use crate::sums::{self, HEADERS_AT, LOG_GUID_AT, LOG_SECTOR_LEN};

/// GUID under which every entry stands; bytes of no meaning.
const LOG_GUID: [u8; 16] = *b"failback log\x01\x02\x03\x04";
/// Where an entry holds it.
const ENTRY_GUID_AT: usize = 32;
const DISK_LEN: u64 = 4 << 20;
const FILE_LEN: u64 = 128 << 20;
const RECORD_LEN: usize = 4;

/// Input: records of a sector number (u16), a length (u16) and so many bytes, laid over the log of
/// a sound image. Entries get the right GUID and sums.
///
/// # Panics
///
/// When opening changes the file, when the replay on disk leaves another content than the replay in
/// memory showed, or leaves a log to replay.
pub fn vhdx_log_replay(data: &[u8]) {
    let Some(file) = with_log(data) else { return };
    let before = file.clone();
    let file = Arc::new(file);
    let shared: Arc<dyn FileAt> = file.clone();
    let Ok(image) = Image::open(shared.clone()) else {
        assert!(*file == before, "opening changed the file");
        return;
    };
    image::check(&image, &file);
    assert!(*file == before, "opening changed the file");
    if image.virtual_size() > DISK_LEN {
        // A replayed entry may state any size; comparing all of it would take too long.
        return;
    }
    let Some(in_memory) = content(&image) else {
        return;
    };
    drop(image);
    check_on_disk(shared, &in_memory);
}

/// Writes through a second opening, which makes the replay lasting, and reads the file again.
fn check_on_disk(file: Arc<dyn FileAt>, in_memory: &[u8]) {
    let Ok(writer) = Image::open_rw(file.clone()) else {
        return;
    };
    let written = writer.write_at(0, &in_memory[..LOG_SECTOR_LEN.min(in_memory.len())]);
    if written
        .and_then(|()| writer.flush())
        .and_then(|()| writer.close())
        .is_err()
    {
        // A crafted table may leave no room to write; what was read stays what it was.
        return;
    }
    let reader = Image::open(file).expect("a closed image opens");
    assert_eq!(reader.log_state(), LogState::Empty);
    assert!(
        content(&reader).as_deref() == Some(in_memory),
        "the replay on disk differs"
    );
}

fn content(image: &Image) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(image.virtual_size()).ok()?];
    image.read_at(0, &mut bytes).ok()?;
    Some(bytes)
}

/// The sound image with the log that the input describes; `None` where no image can be made.
fn with_log(mut data: &[u8]) -> Option<MemoryFile> {
    static SOUND: OnceLock<Option<MemoryFile>> = OnceLock::new();
    let file = SOUND.get_or_init(sound).clone()?;
    let (log_at, log_len) = sums::log_of(&file, HEADERS_AT[0])?;
    let sectors = log_len / LOG_SECTOR_LEN as u64;
    while let Some((record, bytes)) = data.split_first_chunk::<RECORD_LEN>() {
        let [a, b, c, d] = *record;
        let at = log_at + u64::from(u16::from_le_bytes([a, b])) % sectors * LOG_SECTOR_LEN as u64;
        let len = usize::from(u16::from_le_bytes([c, d])) % (LOG_SECTOR_LEN + 1);
        let (bytes, rest) = bytes.split_at(len.min(bytes.len()));
        file.write_at(at, bytes).ok()?;
        if bytes.starts_with(b"loge") && bytes.len() > ENTRY_GUID_AT {
            file.write_at(at + ENTRY_GUID_AT as u64, &LOG_GUID).ok()?;
        }
        data = rest;
    }
    sums::repair_log(&file, log_at, log_len);
    Some(file)
}

/// A dynamic image with some blocks written, whose headers ask for a replay.
fn sound() -> Option<MemoryFile> {
    let file = Arc::new(MemoryFile::new());
    let mut options = CreateOptions::new(DISK_LEN, Kind::Dynamic);
    options.block_size = Some(1 << 20);
    let image = Image::create(file.clone(), &options).ok()?;
    image.write_at(0, &[0x11; 8192]).ok()?;
    image.write_at(2 << 20, &[0x22; 8192]).ok()?;
    image.close().ok()?;
    // A log states how long the file was, and is refused for a shorter one.
    file.set_len(FILE_LEN).ok()?;
    for at in HEADERS_AT {
        file.write_at(at + LOG_GUID_AT as u64, &LOG_GUID).ok()?;
        sums::repair_header(&*file, at);
    }
    Some((*file).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: the target does reach the replay. Method: the seed's log opens as one to replay.
    #[test]
    fn seed_is_a_log_to_replay() {
        let seed = include_bytes!("../corpus/vhdx_log_replay/one_block_allocated");
        let file = with_log(seed).unwrap();

        let image = Image::open(Arc::new(file)).unwrap();

        assert!(matches!(
            image.log_state(),
            LogState::Replayed { entries: 1.. }
        ));
    }
}
