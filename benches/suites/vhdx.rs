//! What the VHDX format costs over a raw file: one thread, pieces of 1 MiB, files in the page
//! cache. The raw file is the yardstick in each group; `qemu-img` reads the same VHDX where it is
//! installed, into nothing, with its start counted.
//!
//! Both files get their length before their bytes, as images do: how a file was made decides how
//! the page cache holds it, which was seen to change reads by 15 %, more than any format here.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use failback_benches::{SAMPLE_SEED, disk};
use failback_vhdx::{ChildOptions, CreateOptions, FileAt, Image, Kind};

const DISK_LEN: usize = 512 << 20;
const PIECE_LEN: usize = 1 << 20;

fn read(criterion: &mut Criterion) {
    let place = tempfile::tempdir().expect("a temporary directory");
    let content = disk(DISK_LEN, SAMPLE_SEED);
    let raw = new_file(&place.path().join("disk.raw"));
    raw.set_len(DISK_LEN as u64).expect("a length");
    write_raw(&raw, &content);
    let path = place.path().join("disk.vhdx");
    write_image(
        &Image::create(new_file(&path), &options(Kind::Dynamic)).expect("an image"),
        &content,
    );
    let image = Image::open(open_file(&path)).expect("a sound image");
    let mut buf = vec![0; PIECE_LEN];
    let mut group = criterion.benchmark_group("vhdx_read");
    group.throughput(Throughput::Bytes(DISK_LEN as u64));
    // The yardstick on both sides of what it measures: the machine drifts.
    for (before, after) in [
        ("raw_1", "dynamic_1"),
        ("raw_2", "dynamic_2"),
        ("raw_3", "dynamic_3"),
    ] {
        group.bench_function(before, |bencher| {
            bencher.iter(|| each_piece(|at| raw.read_at(at, &mut buf).expect("the file reads")));
        });
        group.bench_function(after, |bencher| {
            bencher.iter(|| each_piece(|at| image.read_at(at, &mut buf).expect("it reads")));
        });
    }
    let parent = Arc::new(image);
    let child = Image::create_child(
        new_file(&place.path().join("child.vhdx")),
        parent,
        &ChildOptions::new(".\\disk.vhdx"),
    )
    .expect("a child");
    group.bench_function("child_of_dynamic", |bencher| {
        bencher.iter(|| each_piece(|at| child.read_at(at, &mut buf).expect("the chain reads")));
    });
    if has_qemu() {
        group.bench_function("qemu-img_convert", |bencher| {
            bencher.iter(|| read_by_qemu(&path));
        });
    }
}

fn write(criterion: &mut Criterion) {
    let place = tempfile::tempdir().expect("a temporary directory");
    let content = disk(DISK_LEN, SAMPLE_SEED);
    let mut group = criterion.benchmark_group("vhdx_write");
    group.throughput(Throughput::Bytes(DISK_LEN as u64));
    let path = place.path().join("new");
    let fresh = || {
        // Gone before the clock starts, so that no run pays for the end of the one before.
        drop(std::fs::remove_file(&path));
        new_file(&path)
    };
    let sized = || {
        let file = fresh();
        file.set_len(DISK_LEN as u64).expect("a length");
        file
    };
    group.bench_function("raw", |bencher| {
        let write = |file: Arc<File>| write_raw(&file, &content);
        bencher.iter_batched(sized, write, BatchSize::PerIteration);
    });
    let image = || Image::create(fresh(), &options(Kind::Dynamic)).expect("an image");
    group.bench_function("dynamic", |bencher| {
        let write = |image: Image| {
            each_piece(|at| image.write_at(at, piece(&content, at)).expect("room"));
            image
        };
        bencher.iter_batched(image, write, BatchSize::PerIteration);
    });
}

fn options(kind: Kind) -> CreateOptions {
    CreateOptions::new(DISK_LEN as u64, kind)
}

fn write_raw(file: &File, content: &[u8]) {
    each_piece(|at| {
        file.write_at(at, piece(content, at))
            .expect("room for the file");
    });
}

fn write_image(image: &Image, content: &[u8]) {
    each_piece(|at| {
        image
            .write_at(at, piece(content, at))
            .expect("room for the image");
    });
    image.close().expect("the image closes");
}

fn each_piece(mut each: impl FnMut(u64)) {
    (0..DISK_LEN)
        .step_by(PIECE_LEN)
        .for_each(|at| each(at as u64));
}

fn piece(content: &[u8], at: u64) -> &[u8] {
    let at = usize::try_from(at).expect("inside the content");
    &content[at..at + PIECE_LEN]
}

fn has_qemu() -> bool {
    Command::new("qemu-img")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn read_by_qemu(path: &Path) {
    let nowhere = format!("driver=null-co,size={DISK_LEN}");
    let status = Command::new("qemu-img")
        .args(["convert", "-f", "vhdx", "-n", "--target-image-opts"])
        .arg(path)
        .arg(nowhere)
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "qemu-img reads the image"
    );
}

fn new_file(path: &Path) -> Arc<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path);
    Arc::new(file.expect("a new file"))
}

fn open_file(path: &Path) -> Arc<File> {
    Arc::new(File::open(path).expect("the file"))
}

criterion_group! {
    name = suite;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4));
    targets = read, write
}
criterion_main!(suite);
