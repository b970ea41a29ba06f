//! Goal: what the extent tracker does not name has not changed, and it names little more than what
//! has. Method: clones on XFS and btrfs, random changes by two writers, and a naive twin that reads
//! both disks and compares them page by page.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stderr, reason = "numbers of a run")]

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use failback_engine::disk::{self, NewDisk, OpenOptions, open_source, open_target};
use failback_engine::snapshot::{Reflink, SnapshotId, SnapshotProvider};
use failback_engine::track::{ChangeTracker, Changed, Extents, ExtentsAs, Untracked};
use failback_engine::units::ByteOffset;
use failback_engine::{CancelToken, Result, Silent, Step};
use failback_tests::place::{self, Mount};
use failback_tests::qemu::{self, Format};
use failback_tests::{skip_without, tools};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const PAGE: usize = 4096;
const LEN: u64 = (24 << 20) + 512 * 3;
/// Of each pair of format and writer, on each file system.
const OWN_CASES: u64 = 60;
const QEMU_CASES: u64 = 12;

fn in_step<T>(ask: impl FnOnce(&Step<'_>) -> Result<T>) -> T {
    let cancel = CancelToken::new();
    let step = Step {
        job: "job-1",
        name: "final_delta",
        observer: &Silent,
        cancel: &cancel,
    };
    ask(&step).unwrap_or_else(|e| panic!("{}", e.chain()))
}

fn changed(then: &Path, now: &Path) -> Changed {
    in_step(|step| Extents.changed(then, now, step))
}

fn ranges(changed: Changed) -> Vec<Range<ByteOffset>> {
    match changed {
        Changed::Ranges(ranges) => ranges,
        Changed::Unknown(why) => panic!("unknown: {why}"),
    }
}

fn snapshot(image: &Path, name: &str) -> PathBuf {
    let id = SnapshotId::new("job-1", name).expect("a name");
    in_step(|step| Reflink.create(image, &id, step))
}

fn release(image: &Path, name: &str) {
    let id = SnapshotId::new("job-1", name).expect("a name");
    in_step(|step| Reflink.release(image, &id, step));
}

fn content(path: &Path) -> Vec<u8> {
    let disk = open_source(path, &OpenOptions::default()).expect("disk");
    let mut bytes = vec![0; usize::try_from(disk.info().virtual_size).expect("small")];
    disk.read(ByteOffset(0), &mut bytes).expect("read");
    bytes
}

/// Bytes that are named and bytes that differ; fails when one that differs is not named, or the
/// ranges are not as promised.
fn judged(then: &[u8], now: &[u8], named: &[Range<ByteOffset>], case: &str) -> (u64, u64) {
    assert_eq!(then.len(), now.len());
    assert!(named.iter().all(|range| range.start < range.end), "{case}");
    assert!(
        named.windows(2).all(|pair| pair[0].end < pair[1].start),
        "{case}"
    );
    assert!(
        named
            .last()
            .is_none_or(|last| last.end.0 <= then.len() as u64),
        "{case}"
    );
    let mut differing = 0;
    for (page, (old, new)) in (0_u64..).zip(then.chunks(PAGE).zip(now.chunks(PAGE))) {
        if old == new {
            continue;
        }
        differing += old.len() as u64;
        for (sector, (old, new)) in (0_u64..).zip(old.chunks(512).zip(new.chunks(512))) {
            let at = ByteOffset(page * PAGE as u64 + sector * 512);
            let end = at.advanced(old.len() as u64);
            let is_covered = |range: &Range<ByteOffset>| range.start <= at && end <= range.end;
            let is_named = named.iter().any(is_covered);
            assert!(
                old == new || is_named,
                "{case}: {at} changed and is not named"
            );
        }
    }
    let named = named.iter().map(|range| range.end.0 - range.start.0).sum();
    (named, differing)
}

/// A place of the disk in whole sectors, often beside the edge of a block or of the disk.
fn place_in(rng: &mut StdRng) -> Range<u64> {
    let sectors = LEN / 512;
    let len = match rng.random_range(0..4) {
        0 => 1,
        1 => rng.random_range(1..=8),
        2 => rng.random_range(1..=64),
        _ => rng.random_range(1..=512),
    };
    let at = match rng.random_range(0..4) {
        0 => (rng.random_range(0..24) * 2048_u64).saturating_sub(rng.random_range(0..len + 1)),
        1 => sectors - len,
        _ => rng.random_range(0..sectors - len),
    };
    let at = at.min(sectors - len);
    at * 512..(at + len) * 512
}

fn own_writer(image: &Path, rng: &mut StdRng) {
    let disk = open_target(image, &OpenOptions::default()).expect("target");
    for _ in 0..rng.random_range(1..24) {
        let range = place_in(rng);
        if rng.random_range(0..4) == 0 {
            let zeroed = ByteOffset(range.start)..ByteOffset(range.end);
            disk.zero(zeroed).expect("zero");
            continue;
        }
        let mut data = vec![0; usize::try_from(range.end - range.start).expect("small")];
        rng.fill(&mut data[..]);
        disk.write(ByteOffset(range.start), &data).expect("write");
    }
    disk.close().expect("close");
}

fn qemu_writer(image: &Path, format: Format, rng: &mut StdRng) {
    let count = rng.random_range(1..12);
    let mut commands = Vec::new();
    for _ in 0..count {
        let Range { start, end } = place_in(rng);
        let len = end - start;
        commands.push(match rng.random_range(0..6) {
            0 => format!("write -z {start} {len}"),
            _ => format!("write -P {} {start} {len}", rng.random_range(1..255)),
        });
    }
    qemu::io(image, format, &commands);
}

fn make(image: &Path, format: disk::Format) {
    let new = NewDisk {
        format,
        len: LEN,
        sector_size: 512,
        block_size: (format == disk::Format::Vhdx).then_some(1 << 20),
        is_fixed: false,
    };
    disk::create(image, &new).expect("disk");
}

/// All cases of one format on one file system. A case goes on with the disk of the one before.
fn cases(kind: &str, format: disk::Format) {
    let mount = Mount::in_file(kind, 600);
    let (name, as_qemu) = match format {
        disk::Format::Vhdx => ("disk.vhdx", Format::Dynamic(1)),
        _ => ("disk.img", Format::Raw),
    };
    let image = mount.path().join(name);
    make(&image, format);
    let (mut all_named, mut all_differing) = (0, 0);
    for case in 0..OWN_CASES + QEMU_CASES {
        let seed = 0xc1a0 + case;
        let mut rng = StdRng::seed_from_u64(seed);
        let then = snapshot(&image, "then");
        match case < OWN_CASES {
            true => own_writer(&image, &mut rng),
            false => qemu_writer(&image, as_qemu, &mut rng),
        }
        // Half of the time the other side is a snapshot as well, as in a pass before the last.
        let is_live = rng.random_range(0..2) == 0;
        let now = match is_live {
            true => image.clone(),
            false => snapshot(&image, "now"),
        };
        let named = ranges(changed(&then, &now));
        let case = format!("{kind}, {name}, seed {seed:#x}, live {is_live}");
        let (named, differing) = judged(&content(&then), &content(&now), &named, &case);
        assert!(
            named <= 4 * differing + (1 << 20),
            "{case}: {named} named of {differing}"
        );
        all_named += named;
        all_differing += differing;
        release(&image, "then");
        release(&image, "now");
    }
    eprintln!("{kind}, {name}: {all_differing} bytes differ, {all_named} named");
    assert!(all_differing > 0);
}

#[test]
fn raw_on_xfs() {
    skip_without!("root", "mkfs.xfs", "qemu-io");
    cases("xfs", disk::Format::Raw);
}

#[test]
fn vhdx_on_xfs() {
    skip_without!("root", "mkfs.xfs", "qemu-io");
    cases("xfs", disk::Format::Vhdx);
}

#[test]
fn raw_on_btrfs() {
    skip_without!("root", "mkfs.btrfs", "qemu-io");
    cases("btrfs", disk::Format::Raw);
}

#[test]
fn vhdx_on_btrfs() {
    skip_without!("root", "mkfs.btrfs", "qemu-io");
    cases("btrfs", disk::Format::Vhdx);
}

/// What nobody flushed: written over old bytes, into a hole, and into space taken ahead.
fn unflushed(kind: &str) {
    let mount = Mount::in_file(kind, 600);
    let image = mount.path().join("disk.img");
    fs::write(&image, vec![1; 4 << 20]).expect("write");
    let file = File::options().write(true).open(&image).expect("image");
    file.set_len(12 << 20).expect("grow");
    let taken = ["-n", "-o", "8MiB", "-l", "4MiB", text(&image)];
    tools::run("fallocate", taken);
    let then = snapshot(&image, "then");
    let places = [0, 4096, 3 << 20, 5 << 20, 9 << 20, (12 << 20) - 4096];
    for at in places {
        file.write_all_at(&[2; 4096], at).expect("write");
    }

    let named = ranges(changed(&then, &image));

    let (named, differing) = judged(&content(&then), &content(&image), &named, kind);
    assert_eq!(
        (named, differing),
        (6 * 4096, 6 * 4096),
        "no more and no less"
    );
}

// Goal: bytes that are in memory only are named, too. Method: writes without a flush.
#[test]
fn unflushed_bytes_are_named_on_xfs() {
    skip_without!("root", "mkfs.xfs", "fallocate");
    unflushed("xfs");
}

// The same on btrfs.
#[test]
fn unflushed_bytes_are_named_on_btrfs() {
    skip_without!("root", "mkfs.btrfs", "fallocate");
    unflushed("btrfs");
}

// Goal: compressed extents, where one place on the device is many bytes of the file, are never
// taken for unchanged. Method: btrfs with forced compression; two halves of one extent swapped,
// each by sharing the other half of the snapshot.
#[test]
fn compressed_bytes_are_in_doubt() {
    const SWAP: &str = "\
import fcntl, struct, sys
then, now = open(sys.argv[1], 'rb'), open(sys.argv[2], 'r+b')
for start, to in (0, 65536), (65536, 0):
    fcntl.ioctl(now, 0x4020940d, struct.pack('qQQQ', then.fileno(), start, 65536, to))
";
    skip_without!("root", "mkfs.btrfs", "btrfs", "python3");
    let mount = Mount::in_file("btrfs", 300);
    let image = mount.path().join("disk.img");
    File::create(&image).expect("image");
    tools::run(
        "btrfs",
        ["property", "set", text(&image), "compression", "zstd"],
    );
    fs::write(&image, [vec![1; 65_536], vec![2; 65_536]].concat()).expect("write");
    let then = snapshot(&image, "then");
    tools::run("python3", ["-c", SWAP, text(&then), text(&image)]);
    let (old, new) = (content(&then), content(&image));
    assert_eq!(
        (old[0], new[0], new[65_536]),
        (1, 2, 1),
        "the halves are swapped"
    );

    let named = ranges(changed(&then, &image));

    judged(&old, &new, &named, "swapped");
}

// Goal: where files share nothing everything that is stored is named. Method: a copy on ext4.
#[test]
fn without_shared_extents_everything_stored_is_named() {
    skip_without!("root", "mkfs.ext4");
    let mount = Mount::in_file("ext4", 200);
    let [then, now] = place::paths(mount.path(), ["then.img", "now.img"]);
    make(&now, disk::Format::Raw);
    own_writer(&now, &mut StdRng::seed_from_u64(7));
    tools::run(
        "cp",
        [
            "--sparse=always",
            "--reflink=never",
            text(&now),
            text(&then),
        ],
    );
    let bytes = content(&now);

    let named = ranges(changed(&then, &now));

    let zeros = vec![0; bytes.len()];
    judged(&zeros, &bytes, &named, "all that is stored");
}

// Goal: where the system cannot say, neither does the tracker. Method: a file system in memory.
#[test]
fn a_file_system_without_extents_is_unknown() {
    skip_without!("root");
    let mount = Mount::small(1 << 20);
    let image = mount.path().join("disk.img");
    fs::write(&image, [1; 8192]).expect("image");
    assert_eq!(changed(&image, &image), Changed::Unknown("file_system"));
    assert_eq!(
        in_step(|s| Untracked.changed(&image, &image, s)),
        Changed::Unknown("no_tracker")
    );
}

// Goal: images that cannot be compared are not. Method: another length, format, file system; a
// child; a snapshot that is damaged, or gone.
#[test]
fn what_does_not_fit_is_unknown() {
    skip_without!("root", "mkfs.xfs");
    let [mount, other] = [(); 2].map(|()| Mount::in_file("xfs", 400));
    let [raw, vhdx, child] = place::paths(mount.path(), ["a.img", "a.vhdx", "c.avhdx"]);
    make(&raw, disk::Format::Raw);
    make(&vhdx, disk::Format::Vhdx);
    let (then, then_vhdx) = (snapshot(&raw, "then"), snapshot(&vhdx, "then"));
    assert_eq!(changed(&then, &raw), Changed::Ranges(Vec::new()));
    assert_eq!(changed(&then_vhdx, &vhdx), Changed::Ranges(Vec::new()));

    assert_eq!(changed(&then_vhdx, &raw), Changed::Unknown("image_format"));
    let as_raw = ExtentsAs(disk::Format::Raw);
    let told = in_step(|step| as_raw.changed(&then_vhdx, &vhdx, step));
    assert!(matches!(told, Changed::Ranges(_)), "{told:?}");
    let elsewhere = other.path().join("a.img");
    make(&elsewhere, disk::Format::Raw);
    assert_eq!(changed(&then, &elsewhere), Changed::Unknown("file_system"));
    let options = OpenOptions {
        format: Some(disk::Format::Vhdx),
        parents: vec![vhdx.clone()],
        ..OpenOptions::default()
    };
    disk::create_child(&child, &options, None).expect("child");
    assert_eq!(
        changed(&then_vhdx, &child),
        Changed::Unknown("parent_chain")
    );
    let grown = File::options().write(true).open(&raw).expect("image");
    grown.set_len(LEN + 512).expect("grow");
    assert_eq!(changed(&then, &raw), Changed::Unknown("size"));
    place::scribble(&then_vhdx, 0, b"nothing!");
    assert_eq!(changed(&then_vhdx, &vhdx), Changed::Unknown("snapshot"));
    release(&raw, "then");
    assert_eq!(changed(&then, &raw), Changed::Unknown("snapshot"));
}

/// Seconds for the changes of 64 MiB here and there on a sparse disk of so many GiB.
fn seconds(dir: &Path, format: disk::Format, gib: u64) -> f64 {
    let suffix = if format == disk::Format::Vhdx {
        "vhdx"
    } else {
        "img"
    };
    let image = dir.join(format!("large{gib}.{suffix}"));
    let new = NewDisk {
        format,
        len: gib << 30,
        sector_size: 512,
        block_size: None,
        is_fixed: false,
    };
    disk::create(&image, &new).expect("disk");
    let write = |byte: u8| {
        let target = open_target(&image, &OpenOptions::default()).expect("target");
        for piece in 0..64 {
            let at = ByteOffset((piece * (gib << 30) / 64).next_multiple_of(1 << 20));
            target.write(at, &vec![byte; 1 << 20]).expect("write");
        }
        target.close().expect("close");
    };
    write(1);
    let then = snapshot(&image, "then");
    write(2);
    let best = (0..5).map(|_| {
        let from = Instant::now();
        let named = ranges(changed(&then, &image));
        let took = from.elapsed();
        let named: u64 = named.iter().map(|range| range.end.0 - range.start.0).sum();
        assert_eq!(named, 64 << 20);
        took
    });
    let best = best.min().expect("some runs");
    eprintln!("{suffix}, {gib} GiB: {best:?}");
    release(&image, "then");
    fs::remove_file(&image).expect("remove");
    assert!(best < Duration::from_secs(1), "{best:?}");
    best.as_secs_f64()
}

// Goal: the cost is that of what is stored, not of the disk's length. Method: 64 MiB on 4 and on
// 64 GiB, with much room for a busy machine.
#[test]
fn a_large_sparse_disk_costs_what_is_stored() {
    skip_without!("root", "mkfs.xfs");
    let mount = Mount::in_file("xfs", 1200);
    for format in [disk::Format::Raw, disk::Format::Vhdx] {
        let [small, large] = [4, 64].map(|gib| seconds(mount.path(), format, gib));
        assert!(large < 4.0 * small + 0.05, "{small} s, {large} s");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
