//! What a scan with its tree costs on all cores, by the disk below it. Files are in the page cache.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use failback_benches::{SAMPLE_SEED, disk};
use failback_engine::Abort;
use failback_engine::disk::{
    Format, MemoryDisk, NewDisk, OpenOptions, PendingDisk, Source, open_source,
};
use failback_engine::hash::{Digest, HashKind, Hasher};
use failback_engine::pipeline::{BufferPool, Keep, ScanCounts, Scanned, Scanner};
use failback_engine::tree::{Leaf, TreeBuilder};
use failback_engine::units::{BlockSize, ByteOffset, Geometry};

const DISK_LEN: usize = 256 << 20;
/// Bytes written at once while an image is made.
const PIECE_LEN: usize = 1 << 20;

fn map(criterion: &mut Criterion) {
    let content = disk(DISK_LEN, SAMPLE_SEED);
    let place = tempfile::tempdir().expect("a temporary directory");
    let raw = image(&place.path().join("disk.raw"), Format::Raw, &content);
    let vhdx = image(&place.path().join("disk.vhdx"), Format::Vhdx, &content);
    let disks: [(&str, Arc<dyn Source>); 3] = [
        ("memory", Arc::new(MemoryDisk::new(content))),
        ("raw", raw),
        ("vhdx", vhdx),
    ];
    let mut group = criterion.benchmark_group("map");
    group.throughput(Throughput::Bytes(DISK_LEN as u64));
    for kind in [HashKind::Blake3, HashKind::Xxh3] {
        let hasher = Hasher::new(kind);
        for (name, disk) in &disks {
            group.bench_function(BenchmarkId::new(kind.name(), name), |bencher| {
                bencher.iter(|| root_of(disk.as_ref(), &hasher));
            });
        }
    }
}

fn root_of(disk: &dyn Source, hasher: &Hasher) -> Digest {
    let len = disk.info().virtual_size;
    let geometry = Geometry::new(len, BlockSize::DEFAULT).expect("far below 64 TiB");
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let scanner = Scanner {
        disk,
        geometry,
        hasher: Some(hasher),
        keep: Keep::Never,
        pool: &BufferPool::new(threads * 2),
        threads,
        reader: None,
        counts: &ScanCounts::default(),
    };
    let mut tree = TreeBuilder::new(hasher, geometry);
    let scan = scanner.run(&Abort::new(), |scanned| {
        match scanned {
            Scanned::Zeros { count, .. } => tree.push(Leaf::Zero, count),
            Scanned::Data { digest, .. } => {
                tree.push(Leaf::Data(digest.expect("the scan hashes")), 1);
            }
        }
        Ok(())
    });
    scan.expect("the disk reads");
    tree.finish()
}

/// An image with that content, zero pieces left out; opened again for reading.
fn image(path: &Path, format: Format, content: &[u8]) -> Arc<dyn Source> {
    let new = NewDisk {
        format,
        len: content.len() as u64,
        sector_size: 512,
        block_size: None,
        is_fixed: false,
    };
    let pending = PendingDisk::create(path, &new).expect("a new image");
    let disk = pending.disk();
    for (index, piece) in content.chunks(PIECE_LEN).enumerate() {
        if !failback_engine::hash::is_zero(piece) {
            let at = ByteOffset((index * PIECE_LEN) as u64);
            disk.write(at, piece).expect("room for the image");
        }
    }
    disk.close().expect("the image closes");
    drop(disk);
    pending.publish().expect("the name is free");
    open_source(path, &OpenOptions::default()).expect("a sound image")
}

criterion_group! {
    name = suite;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = map
}
criterion_main!(suite);
