//! Goal: an image is a disk. Method: random writes, zeroings, flushes and reopenings against a
//! plain vector of bytes; reads, runs and extents have to agree with it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests state and say what they find"
)]

mod support;

use std::sync::Arc;

use failback_vhdx::{ChildOptions, CreateOptions, ExtentKind, Image, Kind, MemoryFile, Place, Run};
use proptest::prelude::*;
use support::{MIB, read_all};

/// One change of the disk, in sectors, or of how it is open.
#[derive(Clone, Debug)]
enum Step {
    Write {
        sector: u64,
        count: u64,
        fill: u8,
    },
    Zero {
        sector: u64,
        count: u64,
    },
    ZeroBlock {
        block: u64,
    },
    Flush,
    /// Opened again after a close.
    Reopen,
    /// Opened again as after the end of the process: what was written is in the file.
    Drop,
}

/// Blocks of the model's disk, the last one cut in half.
const BLOCKS: u64 = 5;

fn step(sectors: u64) -> impl Strategy<Value = Step> {
    let range = (0..sectors, prop_oneof![1..9_u64, 1..sectors]);
    let range = range.prop_map(move |(sector, count)| (sector, count.min(sectors - sector)));
    prop_oneof![
        6 => (range.clone(), 1..=255_u8)
            .prop_map(|((sector, count), fill)| Step::Write { sector, count, fill }),
        3 => range.prop_map(|(sector, count)| Step::Zero { sector, count }),
        2 => (0..BLOCKS).prop_map(|block| Step::ZeroBlock { block }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Drop),
    ]
}

fn case() -> impl Strategy<Value = (u32, u32, Kind, Vec<Step>)> {
    let sizes = (
        prop_oneof![Just(20_u32), Just(21)],
        prop_oneof![Just(512_u32), Just(4096)],
    );
    (sizes, kind()).prop_flat_map(|((shift, sector), kind)| {
        let sectors = disk_size(1 << shift) / u64::from(sector);
        let steps = prop::collection::vec(step(sectors), 1..24);
        (Just(1 << shift), Just(sector), Just(kind), steps)
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        1 => Just(Kind::Dynamic),
        1 => Just(Kind::Fixed),
        2 => Just(Kind::Differencing)
    ]
}

/// A disk of a kind, and how to open it again.
struct Disk {
    file: Arc<MemoryFile>,
    image: Image,
    parent: Option<Arc<Image>>,
    model: Vec<u8>,
}

impl Disk {
    fn new(block_size: u32, sector: u32, kind: Kind) -> Self {
        let size = disk_size(block_size);
        let mut model = vec![0; usize::try_from(size).unwrap()];
        let file = Arc::new(MemoryFile::new());
        let options = CreateOptions {
            block_size: Some(block_size),
            logical_sector_size: sector,
            ..CreateOptions::new(size, kind)
        };
        if kind != Kind::Differencing {
            let image = Image::create(file.clone(), &options).unwrap();
            return Self {
                file,
                image,
                parent: None,
                model,
            };
        }
        let parent = Arc::new(MemoryFile::new());
        let options = CreateOptions {
            block_size: Some(4 << 20),
            kind: Kind::Dynamic,
            ..options
        };
        let image = Image::create(parent.clone(), &options).unwrap();
        for at in [0, MIB + 4096, size - 65536] {
            image.write_at(at, &[201; 65536]).unwrap();
            fill(&mut model, at, 65536, 201);
        }
        image.close().unwrap();
        let parent = Arc::new(Image::open(parent).unwrap());
        let options = ChildOptions {
            block_size: Some(block_size),
            ..ChildOptions::new(".\\parent.vhdx")
        };
        let image = Image::create_child(file.clone(), parent.clone(), &options).unwrap();
        Self {
            file,
            image,
            parent: Some(parent),
            model,
        }
    }

    fn reopen(&mut self) {
        self.image = match &self.parent {
            None => Image::open_rw(self.file.clone()).unwrap(),
            Some(parent) => Image::open_child_rw(self.file.clone(), parent.clone()).unwrap(),
        };
    }
}

fn disk_size(block_size: u32) -> u64 {
    u64::from(block_size) * BLOCKS - u64::from(block_size) / 2
}

fn fill(model: &mut [u8], at: u64, len: u64, byte: u8) {
    let at = usize::try_from(at).unwrap();
    model[at..at + usize::try_from(len).unwrap()].fill(byte);
}

fn read_run(image: &Image, run: &Run, buf: &mut [u8]) {
    match run.place {
        Place::File { at } => image.file().read_at(at, buf).unwrap(),
        Place::Replayed => image.read_at(run.disk.start, buf).unwrap(),
        Place::Parent => {
            let parent = image.parent().unwrap();
            parent.read_at(run.disk.start, buf).unwrap();
        }
        Place::Zero => {}
    }
}

fn check(image: &Image, model: &[u8]) {
    assert!(read_all(image) == model, "content differs");
    let size = model.len() as u64;
    let mut runs = Vec::new();
    image.resolve(0..size, &mut runs).unwrap();
    let mut composed = vec![0; model.len()];
    let mut at = 0;
    for run in runs {
        assert_eq!(run.disk.start, at);
        at = run.disk.end;
        let [from, to] = [run.disk.start, run.disk.end].map(|at| usize::try_from(at).unwrap());
        read_run(image, &run, &mut composed[from..to]);
    }
    assert_eq!(at, size);
    assert!(composed == model, "runs differ");
    let mut at = 0;
    while at < size {
        let extent = image.extent_at(at).unwrap();
        assert!(extent.end > at && extent.end <= size);
        let [from, to] = [at, extent.end].map(|at| usize::try_from(at).unwrap());
        let is_zero = model[from..to].iter().all(|byte| *byte == 0);
        assert!(
            is_zero || extent.kind == ExtentKind::Data,
            "{extent:?} from {at:#x}"
        );
        at = extent.end;
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn matches_naive((block_size, sector, kind, steps) in case()) {
        let size = disk_size(block_size);
        let mut disk = Disk::new(block_size, sector, kind);
        let unit = u64::from(sector);
        for step in steps {
            match step {
                Step::Write { sector, count, fill: byte } => {
                    let data = vec![byte; usize::try_from(count * unit).unwrap()];
                    disk.image.write_at(sector * unit, &data).unwrap();
                    fill(&mut disk.model, sector * unit, count * unit, byte);
                }
                Step::Zero { sector, count } => {
                    disk.image.zero(sector * unit..(sector + count) * unit).unwrap();
                    fill(&mut disk.model, sector * unit, count * unit, 0);
                }
                Step::ZeroBlock { block } => {
                    let start = block * u64::from(block_size);
                    let end = size.min(start + u64::from(block_size));
                    disk.image.zero(start..end).unwrap();
                    fill(&mut disk.model, start, end - start, 0);
                }
                Step::Flush => disk.image.flush().unwrap(),
                Step::Reopen => {
                    disk.image.close().unwrap();
                    disk.reopen();
                }
                Step::Drop => {
                    disk.image.flush().unwrap();
                    // A copy, as another process would find it.
                    disk.file = Arc::new(MemoryFile::clone(&disk.file));
                    disk.reopen();
                }
            }
            check(&disk.image, &disk.model);
        }
        disk.image.close().unwrap();
        disk.reopen();
        check(&disk.image, &disk.model);
    }
}

#[test]
fn disks_around_the_ends_of_chunks_keep_their_last_block() {
    // With 4096-byte sectors and blocks of 256 MiB a chunk has 128 blocks; with 512-byte ones 16.
    for (sector, ratio) in [(512, 16_u64), (4096, 128)] {
        let block = 256 * MIB;
        for count in [ratio - 1, ratio, ratio + 1, 2 * ratio, 2 * ratio + 1] {
            let file = Arc::new(MemoryFile::new());
            let options = CreateOptions {
                block_size: Some(256 << 20),
                logical_sector_size: sector,
                ..CreateOptions::new(count * block, Kind::Dynamic)
            };
            let image = Image::create(file.clone(), &options).unwrap();
            let marks = [0, ratio - 1, count - 1].map(|index| index.min(count - 1));
            for index in marks {
                let byte = u8::try_from(index % 251 + 1).unwrap();
                let data = vec![byte; usize::try_from(sector).unwrap()];
                image
                    .write_at((index + 1) * block - u64::from(sector), &data)
                    .unwrap();
            }
            image.close().unwrap();
            let image = Image::open(file).unwrap();
            for index in marks {
                let mut byte = [0];
                image.read_at((index + 1) * block - 1, &mut byte).unwrap();
                assert_eq!(
                    u64::from(byte[0]),
                    index % 251 + 1,
                    "{count} blocks, {sector}"
                );
            }
        }
    }
}
