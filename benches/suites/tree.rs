//! What differs between two saved maps of a million blocks: from the roots down, and by walking all
//! leaves of both. Both maps are files in the page cache; questions and answers cross no link.

use std::path::Path;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use failback_engine::hash::{Digest, HashKind, Hasher};
use failback_engine::map::descent::{Descent, Step};
use failback_engine::map::{MapBuilder, MapFile, MapKey, MapWriter, Noted};
use failback_engine::tree::Leaf;
use failback_engine::units::{BlockSize, Geometry};

const BLOCK_COUNT: u64 = 1 << 20;

fn tree(criterion: &mut Criterion) {
    let place = tempfile::tempdir().expect("a temporary directory");
    let ours = saved(&place.path().join("ours"), 0);
    let mut group = criterion.benchmark_group("tree");
    for differing in [0, 16, 1024] {
        let theirs = saved(&place.path().join(differing.to_string()), differing);
        group.bench_function(BenchmarkId::new("descend", differing), |bencher| {
            bencher.iter(|| assert_eq!(descend(&ours, &theirs), differing));
        });
        group.bench_function(BenchmarkId::new("walk", differing), |bencher| {
            bencher.iter(|| assert_eq!(walk(&ours, &theirs), differing));
        });
    }
}

/// A map of that many blocks of data, of which `differing`, spread evenly, are not those of the
/// others.
fn saved(path: &Path, differing: u64) -> MapFile {
    let disk_len = BLOCK_COUNT * BlockSize::DEFAULT.len() as u64;
    let geometry = Geometry::new(disk_len, BlockSize::DEFAULT).expect("1 TiB");
    let key = MapKey::of([7; 32]);
    let writer = MapWriter::create(path, geometry, HashKind::Blake3).expect("a new map");
    let mut map = MapBuilder::new(&Hasher::new(HashKind::Blake3), geometry, Some(writer));
    let every = BLOCK_COUNT.checked_div(differing).unwrap_or(u64::MAX);
    for block in 0..BLOCK_COUNT {
        let mark = u64::from(block % every == every / 2);
        let content = (mark << 32 | block).to_le_bytes();
        map.push(
            Leaf::Data(Digest::from(*blake3::hash(&content).as_bytes())),
            1,
        );
    }
    let (root, writer) = map.finish();
    let noted = Noted {
        root,
        facts: None,
        key: &key,
    };
    let finished = writer.expect("it was begun").finish(&noted);
    finished.expect("room for the map");
    MapFile::open(path, &key).expect("a sound map")
}

fn descend(ours: &MapFile, theirs: &MapFile) -> u64 {
    let mut descent = Descent::new(ours, theirs.root()).expect("a sound map");
    let mut differing = 0;
    loop {
        let step = descent.step().expect("a sound map");
        for question in descent.questions() {
            let answer = question.answer(theirs).expect("a sound map");
            let taken = descent.answer(question.level, question.indices[0], &answer);
            taken.expect("a right answer");
        }
        match step {
            Step::Differs(_) => differing += 1,
            Step::Waits(_) => {}
            Step::Ends => return differing,
        }
    }
}

fn walk(ours: &MapFile, theirs: &MapFile) -> u64 {
    let leaves = |map: &'static str| move |leaf: failback_engine::Result<_>| leaf.expect(map);
    let ours = ours.walk().expect("a sound map").map(leaves("ours"));
    let theirs = theirs.walk().expect("a sound map").map(leaves("theirs"));
    // All blocks hold data, so each step is one block on both sides.
    ours.zip(theirs)
        .filter(|(ours, theirs)| ours != theirs)
        .count() as u64
}

criterion_group! {
    name = suite;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = tree
}
criterion_main!(suite);
