//! A whole file: does it open, and what does it read?

use std::sync::Arc;

use failback_vhdx::{FileAt, Image, MemoryFile, Place, Run};

use crate::{sparse, sums};

/// Bit of the first byte: put the checksums right.
const REPAIR: u8 = 1;

/// Pieces of a disk that are looked at, spread over it.
const PLACES: u64 = 16;
/// Bytes of such a piece, at most.
const PIECE_LEN: u64 = 8 << 10;
/// Extents that are walked, at most.
const EXTENTS_MAX: usize = 64;

/// Input: a byte of flags, then a file in the sparse form.
///
/// # Panics
///
/// When an image that opens reads different bytes on a second look, reads past its end, resolves
/// to anything but what it was asked for, or when opening changes the file.
pub fn vhdx_open(data: &[u8]) {
    let Some((flags, data)) = data.split_first() else {
        return;
    };
    let file = sparse::unpack(data);
    if flags & REPAIR != 0 {
        sums::repair(&file);
    }
    let before = file.clone();
    let file = Arc::new(file);
    let shared: Arc<dyn FileAt> = file.clone();
    if let Ok(image) = Image::open(shared.clone()) {
        check(&image, &file);
    }
    // A writer that does not write leaves the file alone, whatever its log holds.
    drop(Image::open_rw(shared));
    assert!(*file == before, "opening changed the file");
}

/// What must hold for every image that opens.
pub(crate) fn check(image: &Image, file: &MemoryFile) {
    let size = image.virtual_size();
    assert!(size > 0 && size <= 64 << 40, "size {size}");
    assert!(image.block_size().is_power_of_two());
    assert!([512, 4096].contains(&image.logical_sector_size()));
    check_past_end(image, size);
    check_extents(image, size);
    for place in 0..PLACES {
        let at = (size - 1) / PLACES * place;
        check_piece(image, file, at, (at + PIECE_LEN).min(size));
    }
    check_piece(image, file, size.saturating_sub(PIECE_LEN), size);
}

fn check_past_end(image: &Image, size: u64) {
    let mut byte = [0];
    assert!(image.read_at(size, &mut byte).is_err(), "read past the end");
    assert!(
        image.read_at(u64::MAX, &mut byte).is_err(),
        "read past the end"
    );
    assert!(
        image.resolve(size - 1..size + 1, &mut Vec::new()).is_err(),
        "resolved past the end"
    );
}

fn check_extents(image: &Image, size: u64) {
    let mut at = 0;
    for _ in 0..EXTENTS_MAX {
        let Ok(extent) = image.extent_at(at) else {
            return;
        };
        assert!(
            extent.end > at && extent.end <= size,
            "extent at {at} ends at {}",
            extent.end
        );
        at = extent.end;
        if at == size {
            return;
        }
    }
}

/// Reads a piece twice and, along its runs, straight from the file.
fn check_piece(image: &Image, file: &MemoryFile, at: u64, end: u64) {
    let len = usize::try_from(end - at).expect("at most a piece");
    let (mut first, mut second) = (vec![0xa5; len], vec![0x5a; len]);
    let mut runs = Vec::new();
    let reads = image.read_at(at, &mut first).is_ok();
    assert_eq!(
        image.read_at(at, &mut second).is_ok(),
        reads,
        "one of two reads failed"
    );
    assert!(!reads || first == second, "two reads at {at} differ");
    if image.resolve(at..end, &mut runs).is_ok() && reads {
        check_runs(&runs, file, at, &first);
    }
}

fn check_runs(runs: &[Run], file: &MemoryFile, start: u64, expected: &[u8]) {
    let mut at = start;
    for run in runs {
        assert_eq!(run.disk.start, at, "runs leave a gap");
        let place = |offset: u64| usize::try_from(offset - start).expect("at most a piece");
        let bytes = &expected[place(run.disk.start)..place(run.disk.end)];
        match run.place {
            Place::File { at } => {
                let mut found = vec![0; bytes.len()];
                file.read_at(at, &mut found).expect("a run within the file");
                assert!(found == bytes, "a run at {at} holds other bytes");
            }
            Place::Zero => assert!(bytes.iter().all(|byte| *byte == 0), "a zero run is not"),
            Place::Replayed => {}
            Place::Parent => unreachable!("an image without a parent"),
        }
        at = run.disk.end;
    }
    assert_eq!(at, start + expected.len() as u64, "runs end too early");
}
