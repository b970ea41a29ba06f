//! What the codec costs: a message into its frame and back, summed as on a socket and unsummed as
//! within one process.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use failback_benches::{Content, SAMPLE_SEED, fill};
use failback_transport::{
    Base, BlockData, Decoder, Digest, Encoder, Encoding, Message, RunKind, SUB_BLOCK_LEN, SubRun,
};

/// Bytes of one BLAKE3 digest.
const HASH_LEN: usize = 32;

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    // A message of hashes carries at most 2048 of them: 64 KiB.
    let messages = [
        ("hashes/2K", hashes(64)),
        ("hashes/64K", hashes(2048)),
        ("data/4K", data(4 << 10)),
        ("data/64K", data(64 << 10)),
        ("data/1M", data(1 << 20)),
    ];
    for (name, message) in &messages {
        for (sums, trusted_memory) in [("summed", false), ("unsummed", true)] {
            group.throughput(Throughput::Bytes(payload_len(message)));
            group.bench_function(BenchmarkId::new(*name, sums), |bencher| {
                bencher.iter(|| there_and_back(black_box(message), trusted_memory));
            });
        }
    }
}

/// One frame through a new encoder and a new decoder, in the parts that the encoder makes.
fn there_and_back(message: &Message, trusted_memory: bool) -> Message {
    let mut parts = Vec::new();
    let encoded = Encoder::new(trusted_memory).encode(message, &mut parts);
    encoded.expect("the message is within its limits");
    let mut decoder = Decoder::new(trusted_memory);
    parts.into_iter().for_each(|part| decoder.push(part));
    let decoded = decoder.next().expect("the frame is sound");
    decoded.expect("the frame is complete")
}

fn hashes(count: usize) -> Message {
    Message::Hashes {
        first_block: 0,
        hash_len: u8::try_from(HASH_LEN).expect("32"),
        payload: payload(count * HASH_LEN),
    }
}

fn data(len: usize) -> Message {
    let count = len / SUB_BLOCK_LEN as usize;
    Message::Data(BlockData {
        block: 7,
        base: Base::Zero,
        new_hash: Digest::from([9; HASH_LEN]),
        encoding: Encoding::Raw,
        raw_len: u32::try_from(len).expect("at most 4 MiB"),
        runs: vec![SubRun {
            first: 0,
            count: u16::try_from(count).expect("at most 1024"),
            kind: RunKind::Data,
        }],
        payload: payload(len),
    })
}

fn payload(len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    fill(&mut bytes, Content::Random, SAMPLE_SEED);
    Bytes::from(bytes)
}

fn payload_len(message: &Message) -> u64 {
    match message {
        Message::Data(data) => data.payload.len() as u64,
        Message::Hashes { payload, .. } => payload.len() as u64,
        _ => 0,
    }
}

criterion_group! {
    name = suite;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(700));
    targets = codec
}
criterion_main!(suite);
