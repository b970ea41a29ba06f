//! Goal: the file changes when it has to and never before, and its GUIDs say so. Method: compare
//! whole files and both headers before and after each step.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests state and say what they find"
)]

mod support;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use failback_vhdx::{ErrorKind, FileAt, FileExtent, Image, Kind, LogState, MemoryFile};
use support::{MIB, header_guids, read_all, small};

#[test]
fn opening_and_closing_changes_nothing() {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    image.write_at(0, &[1; 4096]).unwrap();
    image.close().unwrap();
    let before = MemoryFile::clone(&file);
    Image::open(file.clone()).unwrap().close().unwrap();
    let image = Image::open_rw(file.clone()).unwrap();
    image.flush().unwrap();
    image.zero(4 * MIB..8 * MIB).unwrap();
    image.close().unwrap();
    assert_eq!(*file, before);
}

#[test]
fn the_first_write_changes_both_guids_in_both_headers() {
    let (file, image) = small(8 * MIB, Kind::Fixed);
    let [before, _] = header_guids(&*file);
    image.write_at(512, &[1; 512]).unwrap();
    let [first, second] = header_guids(&*file);
    assert_eq!(first, second);
    assert_ne!(before[..16], first[..16]);
    assert_ne!(before[16..32], first[16..32]);
    assert_ne!(first[32..], [0; 16]);
    image.write_at(1024, &[1; 512]).unwrap();
    assert_eq!(header_guids(&*file), [first, second]);
    assert_eq!(image.data_write_guid().to_bytes_le(), first[16..32]);
    assert_eq!(image.file_write_guid().to_bytes_le(), first[..16]);
}

#[test]
fn a_clean_close_leaves_no_log_in_either_header() {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    image.write_at(0, &[1; 512]).unwrap();
    let [open, _] = header_guids(&*file);
    image.close().unwrap();
    let [first, second] = header_guids(&*file);
    assert_eq!(first, second);
    assert_eq!(first[..32], open[..32]);
    assert_eq!(first[32..], [0; 16]);
}

#[test]
fn writing_goes_on_after_a_close_under_new_guids() {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    image.write_at(0, &[1; 512]).unwrap();
    image.close().unwrap();
    let [closed, _] = header_guids(&*file);
    image.write_at(3 * MIB, &[2; 512]).unwrap();
    image.close().unwrap();
    assert_ne!(header_guids(&*file)[0], closed);
    let bytes = read_all(&Image::open(file).unwrap());
    assert_eq!((bytes[0], bytes[3 << 20]), (1, 2));
}

#[test]
fn space_taken_in_advance_is_given_back() {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    image.write_at(0, &[1; 512]).unwrap();
    assert!(file.len().unwrap() > 60 * MIB);
    image.close().unwrap();
    assert_eq!(file.len().unwrap(), 5 * MIB);
}

#[test]
fn a_read_only_image_refuses_changes() {
    let (file, _) = small(8 * MIB, Kind::Dynamic);
    let image = Image::open(file).unwrap();
    assert_eq!(
        image.write_at(0, &[0; 512]).unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
    assert_eq!(image.zero(0..512).unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn a_read_only_image_with_a_log_in_use_is_not_settled() {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    image.write_at(0, &[1; 512]).unwrap();
    image.flush().unwrap();
    drop(image);
    let before = MemoryFile::clone(&file);
    let image = Image::open(file.clone()).unwrap();
    assert_eq!(image.settle().unwrap_err().kind(), ErrorKind::ReadOnly);
    assert!(*file == before);
    let image = Image::open_rw(file.clone()).unwrap();
    image.settle().unwrap();
    assert_eq!(Image::open(file).unwrap().log_state(), LogState::Empty);
}

#[test]
fn part_sectors_and_ranges_past_the_end_are_refused() {
    let (_, image) = small(8 * MIB, Kind::Dynamic);
    let kinds = [
        image.write_at(1, &[0; 512]).unwrap_err().kind(),
        image.write_at(0, &[0; 511]).unwrap_err().kind(),
        image.write_at(8 * MIB, &[0; 512]).unwrap_err().kind(),
        image
            .write_at(u64::MAX - 511, &[0; 512])
            .unwrap_err()
            .kind(),
        image.read_at(8 * MIB - 1, &mut [0; 2]).unwrap_err().kind(),
        image.extent_at(8 * MIB).unwrap_err().kind(),
        image
            .resolve(0..8 * MIB + 1, &mut Vec::new())
            .unwrap_err()
            .kind(),
    ];
    assert_eq!(kinds, [ErrorKind::InvalidArgument; 7]);
}

/// Fails every change from the `left`th on, once.
#[derive(Debug)]
struct Failing {
    file: MemoryFile,
    left: AtomicUsize,
}

impl Failing {
    fn step(&self) -> io::Result<()> {
        match self.left.fetch_sub(1, Ordering::Relaxed) {
            1 => Err(io::Error::other("chosen failure")),
            _ => Ok(()),
        }
    }
}

impl FileAt for Failing {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_at(at, buf)
    }
    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.step()?;
        self.file.write_at(at, data)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step()?;
        self.file.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.step()
    }
    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.step()?;
        self.file.zero(range)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.step()?;
        self.file.allocate(range)
    }
    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        self.file.extent_at(at)
    }
}

#[test]
fn after_one_failure_nothing_is_written_and_the_image_still_opens() {
    let (base, _) = small(8 * MIB, Kind::Dynamic);
    for step in 1..40 {
        let left = AtomicUsize::new(step);
        let file = Arc::new(Failing {
            file: MemoryFile::clone(&base),
            left,
        });
        let image = Image::open_rw(file.clone()).unwrap();
        let result = image
            .write_at(MIB, &[1; 8192])
            .and_then(|()| image.flush())
            .and_then(|()| image.zero(0..2 * MIB))
            .and_then(|()| image.close());
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::Io, "step {step}");
            let before = file.file.clone();
            for later in [image.flush(), image.close(), image.write_at(0, &[1; 512])] {
                assert_eq!(
                    later.unwrap_err().kind(),
                    ErrorKind::Poisoned,
                    "step {step}"
                );
            }
            assert_eq!(file.file, before, "step {step}");
        } else {
            assert!(step > 20, "only {step} changes were made");
        }
        Image::open(file).unwrap();
    }
}

/// A file that loses one of its writes and says that it went well.
#[derive(Debug)]
struct Lossy {
    file: MemoryFile,
    writes_left: AtomicUsize,
    is_lost: AtomicUsize,
    syncs: AtomicUsize,
}

impl Lossy {
    fn new(file: &MemoryFile, writes_left: usize) -> Arc<Self> {
        Arc::new(Self {
            file: MemoryFile::clone(file),
            writes_left: AtomicUsize::new(writes_left),
            is_lost: AtomicUsize::new(0),
            syncs: AtomicUsize::new(0),
        })
    }
}

impl FileAt for Lossy {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_at(at, buf)
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        match self.writes_left.fetch_sub(1, Ordering::SeqCst) {
            0 => {
                let is_told = at < 3 * MIB;
                self.is_lost
                    .store(1 + usize::from(is_told), Ordering::SeqCst);
                Ok(())
            }
            _ => self.file.write_at(at, data),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.file.zero(range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.file.allocate(range)
    }

    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        self.file.extent_at(at)
    }
}

// What is read may be in memory only: a process that wrote it was killed before it flushed.
#[test]
fn a_flush_reaches_the_file_of_an_image_that_was_not_changed() {
    let (before, image) = small(8 * MIB, Kind::Dynamic);
    image.close().unwrap();
    let file = Lossy::new(&before, usize::MAX);
    let image = Image::open_rw(file.clone()).unwrap();
    image.flush().unwrap();
    assert_eq!(file.syncs.load(Ordering::SeqCst), 1);
    assert_eq!(file.file, *before);
}

// Goal: a write of header, log or BAT that was lost is noticed, or nobody misses it. Method: lose
// each write in turn; what an image opened anew reads is what was written, or the proof fails.
#[test]
fn a_lost_write_of_a_structure_is_noticed() {
    let (before, image) = small(8 * MIB, Kind::Dynamic);
    image.write_at(0, &[1; 4096]).unwrap();
    image.close().unwrap();
    let mut noticed = 0;
    for write in 0..100 {
        let file = Lossy::new(&before, write);
        let image = Image::open_rw(file.clone()).unwrap();
        image.write_at(0, &[2; 4096]).unwrap();
        image.write_at(5 * MIB, &[3; 4096]).unwrap();
        image.close().unwrap();
        let proven = image.prove_structure(file.clone());
        noticed += usize::from(proven.is_err());
        let is_structure = file.is_lost.load(Ordering::SeqCst) != 1;
        let expected = read_all(&image);
        let is_same = || Image::open(file.clone()).is_ok_and(|next| read_all(&next) == expected);
        assert!(
            proven.is_err() || !is_structure || is_same(),
            "write {write}"
        );
    }
    assert!(noticed > 0);
}

#[test]
fn threads_that_meet_in_a_new_block_lose_nothing() {
    let (_, image) = small(64 * MIB, Kind::Dynamic);
    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            let image = &image;
            scope.spawn(move || {
                for block in 0..64 {
                    let at = block * MIB + u64::from(thread) * 4096;
                    image.write_at(at, &[thread + 1; 4096]).unwrap();
                    if block % 16 == u64::from(thread) {
                        image.flush().unwrap();
                    }
                }
            });
        }
    });
    image.close().unwrap();
    let bytes = read_all(&Image::open(image.file().clone()).unwrap());
    for block in bytes.chunks(1 << 20) {
        for thread in 0..8 {
            assert!(
                block[thread * 4096..(thread + 1) * 4096]
                    .iter()
                    .all(|b| { usize::from(*b) == thread + 1 })
            );
        }
    }
    assert_eq!(image.scan_allocation().unwrap().present, 64);
}

// A session from two pages before the end of the log on: one page opens it, two say what changed.
#[test]
fn a_log_that_wraps_is_replayed() {
    let (file, image) = small(8 * MIB, Kind::Dynamic);
    image.close().unwrap();
    let image = Image::open_rw(file.clone()).unwrap();
    image.begin_log_at(MIB - 8192);
    image.write_at(0, &[7; 4096]).unwrap();
    image.flush().unwrap();
    drop(image);
    let mut signature = [0; 4];
    file.read_at(2 * MIB - 4096, &mut signature).unwrap();
    assert_eq!(&signature, b"loge");
    file.read_at(MIB, &mut signature).unwrap();
    assert_eq!(&signature, b"data");

    let image = Image::open(file).unwrap();

    assert!(matches!(image.log_state(), LogState::Replayed { entries } if entries > 0));
    assert_eq!(read_all(&image)[..4097], [&[7; 4096][..], &[0]].concat());
}
