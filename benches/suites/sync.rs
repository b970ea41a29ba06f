//! What a whole local sync costs, flush and proof included: both roles in this process, raw files
//! in the page cache.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use failback_benches::{SAMPLE_SEED, change_pages, disk};
use failback_engine::endpoint::Endpoint;
use failback_engine::hash::is_zero;
use failback_engine::operation::{SyncRequest, sync};
use failback_engine::report::Outcome;
use failback_engine::{CancelToken, Silent};

const DISK_LEN: usize = 256 << 20;
const PAGE_LEN: usize = 4 << 10;
/// Share of the 64 KiB blocks that change.
const CHANGED: f64 = 0.01;

fn local_sync(criterion: &mut Criterion) {
    let place = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| place.path().join(name);
    let old = disk(DISK_LEN, SAMPLE_SEED);
    let mut new = old.clone();
    change_pages(&mut new, CHANGED, SAMPLE_SEED + 1);
    let (source, target) = (at("source.raw"), at("target.raw"));
    write_sparse(&source, &new);
    write_sparse(&target, &old);
    let old_pages = pages_that_differ(&old, &new);
    drop((old, new));
    let mut group = criterion.benchmark_group("sync");
    group.throughput(Throughput::Bytes(DISK_LEN as u64));
    group.bench_function("changed 1 %", |bencher| {
        bencher.iter_batched(
            || write_pages(&target, &old_pages),
            |()| run(&source, &target),
            BatchSize::PerIteration,
        );
    });
    // The run before has made them equal.
    run(&source, &target);
    group.bench_function("unchanged", |bencher| {
        bencher.iter(|| run(&source, &target));
    });
    for name in ["new.raw", "new.vhdx"] {
        let missing = at(name);
        group.bench_function(format!("full to {name}"), |bencher| {
            bencher.iter_batched(
                || remove(&missing),
                |()| run(&source, &missing),
                BatchSize::PerIteration,
            );
        });
    }
}

fn run(source: &Path, target: &Path) {
    let endpoint = |path: &Path| Endpoint::Path(PathBuf::from(path));
    let request = SyncRequest::new(endpoint(source), endpoint(target));
    let report = sync(&request, &Silent, &CancelToken::new());
    assert_eq!(report.outcome, Outcome::Done, "{:?}", report.error);
}

/// Position and old content of the pages in which two disks differ.
fn pages_that_differ(old: &[u8], new: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let pages = old.chunks(PAGE_LEN).zip(new.chunks(PAGE_LEN)).enumerate();
    let differing = pages.filter(|(_, (old, new))| old != new);
    differing
        .map(|(index, (old, _))| ((index * PAGE_LEN) as u64, old.to_vec()))
        .collect()
}

fn write_pages(path: &Path, pages: &[(u64, Vec<u8>)]) {
    let file = File::options().write(true).open(path);
    let mut file = file.expect("the target is there");
    for (at, page) in pages {
        write_at(&mut file, *at, page);
    }
    file.sync_all().expect("the target is flushed");
}

/// A file with holes where the disk holds zeros.
fn write_sparse(path: &Path, content: &[u8]) {
    const PIECE_LEN: usize = 64 << 10;
    let mut file = File::create(path).expect("a new file");
    file.set_len(content.len() as u64).expect("a sparse file");
    for (index, piece) in content.chunks(PIECE_LEN).enumerate() {
        if !is_zero(piece) {
            write_at(&mut file, (index * PIECE_LEN) as u64, piece);
        }
    }
    file.sync_all().expect("the file is flushed");
}

fn write_at(file: &mut File, at: u64, bytes: &[u8]) {
    let written = file
        .seek(SeekFrom::Start(at))
        .and_then(|_| file.write_all(bytes));
    written.expect("room on the disk");
}

fn remove(path: &Path) {
    // Missing the first time.
    drop(fs::remove_file(path));
}

criterion_group! {
    name = suite;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4));
    targets = local_sync
}
criterion_main!(suite);
