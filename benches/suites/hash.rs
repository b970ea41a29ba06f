//! What one thread hashes: the cost of a block that is not zero, of one that is, and of finding its
//! dirty pages.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use failback_benches::{Content, SAMPLE_SEED, fill};
use failback_engine::hash::{HashKind, Hasher, is_zero, sub_block_sum};
use failback_engine::units::SUB_BLOCK_LEN;

const LENS: [(&str, usize); 3] = [("64K", 64 << 10), ("1M", 1 << 20), ("4M", 4 << 20)];

fn leaf(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash/leaf");
    for kind in [HashKind::Blake3, HashKind::Xxh3] {
        let hasher = Hasher::new(kind);
        for (name, len) in LENS {
            let block = block_of(Content::Random, len);
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_with_input(
                BenchmarkId::new(kind.name(), name),
                &block,
                |bencher, block| {
                    bencher.iter(|| hasher.leaf(black_box(block)));
                },
            );
        }
    }
}

fn zero_detection(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash/is_zero");
    // Random data ends it at once; a byte at the very end is the worst case of data.
    let mut late = vec![0; 1 << 20];
    late[(1 << 20) - 1] = 1;
    let cases = [
        ("zeros", block_of(Content::Zero, 1 << 20)),
        ("data", block_of(Content::Random, 1 << 20)),
        ("last byte", late),
    ];
    for (name, block) in cases {
        group.throughput(Throughput::Bytes(block.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| is_zero(black_box(&block))));
    }
}

fn sub_block_sums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash/sub_block_sums");
    for (name, len) in LENS {
        let block = block_of(Content::Random, len);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(name, &block, |bencher, block| {
            bencher.iter(|| {
                let sums = black_box(block).chunks(SUB_BLOCK_LEN);
                sums.fold(0, |all, piece| all ^ sub_block_sum(piece, SAMPLE_SEED))
            });
        });
    }
}

fn block_of(content: Content, len: usize) -> Vec<u8> {
    let mut block = vec![0; len];
    fill(&mut block, content, SAMPLE_SEED);
    block
}

criterion_group! {
    name = suite;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(900));
    targets = leaf, zero_detection, sub_block_sums
}
criterion_main!(suite);
