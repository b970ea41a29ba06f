//! Ways to read a raw file and hash what was read, on all cores: positional reads into recycled
//! buffers of several sizes, a memory map, io_uring. Hot: the file is in the page cache. Cold: it
//! was taken out of it before each run, and comes from the device.
//!
//! The engine reads by position into one small buffer for each thread: docs/decisions/0016.
#![allow(
    unsafe_code,
    reason = "maps and rings are measured here; nothing of it is in what ships"
)]

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use failback_benches::{SAMPLE_SEED, disk};
use failback_engine::hash::{HashKind, Hasher};
use io_uring::{IoUring, opcode, types};
use memmap2::{Advice, MmapOptions};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

const DISK_LEN: usize = 512 << 20;
/// Bytes that are hashed at once.
const STEP_LEN: usize = STEP_LEN_32 as usize;
const STEP_LEN_32: u32 = 128 << 10;
/// Bytes that a thread takes for itself at once, as a scan does.
const BLOCK_LEN: usize = 1 << 20;
/// Reads under way on each ring.
const DEPTH: u32 = 8;

/// Reads all of a file and hashes it.
type Way = fn(&File, &Hasher);

const WAYS: [(&str, Way); 7] = [
    ("pread_128K", |file, hasher| {
        pread(file, hasher, (STEP_LEN, 1));
    }),
    ("pread_512K", |file, hasher| {
        pread(file, hasher, (512 << 10, 1));
    }),
    ("pread_1M", |file, hasher| {
        pread(file, hasher, (BLOCK_LEN, 1));
    }),
    ("pread_1M_24_buffers", |file, hasher| {
        pread(file, hasher, (BLOCK_LEN, 24));
    }),
    ("mmap", |file, hasher| map(file, hasher, false)),
    ("mmap_populate", |file, hasher| map(file, hasher, true)),
    ("io_uring_128K_8", ring),
];

fn read(criterion: &mut Criterion) {
    let place = tempfile::tempdir().expect("a temporary directory");
    let file = new_file(&place.path().join("disk.raw"));
    for (name, is_cold) in [("read_hot", false), ("read_cold", true)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(DISK_LEN as u64));
        for kind in [HashKind::Xxh3, HashKind::Blake3] {
            let hasher = Hasher::new(kind);
            for (way, run) in WAYS {
                group.bench_function(BenchmarkId::new(kind.name(), way), |bencher| {
                    bencher.iter_custom(|rounds| {
                        let timed = |_| {
                            bring(&file, is_cold);
                            let started = Instant::now();
                            run(&file, &hasher);
                            started.elapsed()
                        };
                        (0..rounds).map(timed).sum()
                    });
                });
            }
        }
    }
}

fn new_file(path: &Path) -> File {
    let options = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path);
    let mut file = options.expect("a new file");
    file.write_all(&disk(DISK_LEN, SAMPLE_SEED))
        .expect("room for a disk");
    file.sync_all().expect("a device that works");
    file
}

fn bring(file: &File, is_cold: bool) {
    if is_cold {
        let dropped = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        dropped.expect("the file can be taken out of memory");
    }
}

/// Blocks for all threads in turn: `work` gets one after the other.
fn on_all_cores(work: impl Fn(&dyn Fn() -> Option<usize>) + Sync) {
    let next = AtomicUsize::new(0);
    let take = || {
        let at = next.fetch_add(BLOCK_LEN, Ordering::Relaxed);
        (at < DISK_LEN).then_some(at)
    };
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&take));
        }
    });
}

fn pread(file: &File, hasher: &Hasher, (len, count): (usize, usize)) {
    on_all_cores(|take| {
        let mut bufs = vec![vec![0; len]; count];
        let mut turn = 0;
        while let Some(block) = take() {
            for at in (block..block + BLOCK_LEN).step_by(len) {
                let buf = &mut bufs[turn % count];
                turn += 1;
                file.read_exact_at(buf, at as u64).expect("the file reads");
                buf.chunks(STEP_LEN).for_each(|step| hash(hasher, step));
            }
        }
    });
}

fn map(file: &File, hasher: &Hasher, is_populated: bool) {
    // SAFETY: nobody else has the file, and it is neither written nor cut while it is mapped.
    let map = unsafe { MmapOptions::new().map(file) }.expect("a map");
    on_all_cores(|take| {
        while let Some(block) = take() {
            if is_populated {
                let wanted = map.advise_range(Advice::PopulateRead, block, BLOCK_LEN);
                wanted.expect("Linux 5.14 or later");
            }
            let bytes = &map[block..block + BLOCK_LEN];
            bytes.chunks(STEP_LEN).for_each(|step| hash(hasher, step));
        }
    });
}

/// Each thread keeps [`DEPTH`] reads under way.
fn ring(file: &File, hasher: &Hasher) {
    let file = types::Fd(file.as_raw_fd());
    on_all_cores(|take| {
        // Dropped after the ring, also by a panic: the kernel writes to them.
        let mut bufs = vec![vec![0_u8; STEP_LEN]; DEPTH as usize];
        let mut ring = IoUring::new(DEPTH).expect("Linux with io_uring");
        let mut steps =
            std::iter::from_fn(take).flat_map(|block| (block..block + BLOCK_LEN).step_by(STEP_LEN));
        let mut push = |ring: &mut IoUring, slot: usize, buf: &mut Vec<u8>| -> bool {
            let Some(at) = steps.next() else {
                return false;
            };
            let read = opcode::Read::new(file, buf.as_mut_ptr(), STEP_LEN_32);
            let entry = read.offset(at as u64).build().user_data(slot as u64);
            // SAFETY: the buffer outlives the ring, and is not touched before the answer.
            unsafe { ring.submission().push(&entry) }.expect("as many places as buffers");
            true
        };
        let mut waiting = 0;
        for (slot, buf) in bufs.iter_mut().enumerate() {
            waiting += usize::from(push(&mut ring, slot, buf));
        }
        while waiting > 0 {
            ring.submit_and_wait(1).expect("the ring takes reads");
            let done: Vec<_> = ring.completion().collect();
            for entry in done {
                assert_eq!(
                    usize::try_from(entry.result()),
                    Ok(STEP_LEN),
                    "a whole read"
                );
                let slot = usize::try_from(entry.user_data()).expect("a slot");
                hash(hasher, &bufs[slot]);
                waiting -= 1;
                waiting += usize::from(push(&mut ring, slot, &mut bufs[slot]));
            }
        }
    });
}

fn hash(hasher: &Hasher, step: &[u8]) {
    black_box(hasher.leaf(black_box(step)));
}

criterion_group! {
    name = suite;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = read
}
criterion_main!(suite);
