//! Goal: a clone of an image that is being written is the image of one moment, found again and let
//! go. Method: XFS, btrfs and ext4 in files; QEMU writes one place after the other, so that what a
//! clone holds has to be the first so many of its writes.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stderr, reason = "numbers of a run")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use failback_engine::disk::{self, OpenOptions, Source, open_source, open_target};
use failback_engine::snapshot::{Reflink, SnapshotId, SnapshotProvider};
use failback_engine::track::{ChangeTracker, Changed, Extents};
use failback_engine::units::ByteOffset;
use failback_engine::{CancelToken, ErrorKind, Result, Silent, Step};
use failback_tests::place::{self, Mount};
use failback_tests::qemu::{self, Format};
use failback_tests::skip_without;

const SLOT: u64 = 1 << 20;
const SLOTS: u64 = 96;
const PIECE: usize = 64 << 10;
const CLONES_MIN: usize = 8;

fn in_step<T>(ask: impl FnOnce(&Step<'_>) -> Result<T>) -> Result<T> {
    let cancel = CancelToken::new();
    ask(&Step {
        job: "job-1",
        name: "presync",
        observer: &Silent,
        cancel: &cancel,
    })
}

fn id(name: &str) -> SnapshotId {
    SnapshotId::new("job-1", name).expect("a name")
}

fn create(image: &Path, name: &str) -> Result<PathBuf> {
    in_step(|step| Reflink.create(image, &id(name), step))
}

fn list(image: &Path, job: &str) -> Vec<String> {
    let listed = in_step(|step| Reflink.list(image, job, step)).expect("list");
    listed.iter().map(|id| id.name().to_owned()).collect()
}

/// QEMU, writing slot after slot of an image; dropped, it is killed.
struct Writer {
    child: Child,
}

impl Writer {
    fn start(image: &Path) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["-f", "vhdx"])
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("qemu-io starts");
        let mut input = child.stdin.take().expect("piped");
        thread::spawn(move || {
            for slot in 0..SLOTS {
                let line = format!("write -P {} {} {PIECE}\n", slot % 255 + 1, slot * SLOT);
                if input.write_all(line.as_bytes()).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self { child }
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("qemu-io").is_some()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn open(path: &Path) -> Arc<dyn Source> {
    let opened = open_source(path, &OpenOptions::default());
    opened.unwrap_or_else(|e| panic!("{}", e.chain()))
}

fn content(path: &Path) -> Vec<u8> {
    let disk = open(path);
    let mut bytes = vec![0; usize::try_from(disk.info().virtual_size).expect("small")];
    disk.read(ByteOffset(0), &mut bytes).expect("read");
    bytes
}

/// How many slots are written; fails unless they are the first ones, and nothing is elsewhere.
fn written_slots(bytes: &[u8]) -> u64 {
    let slots = bytes.chunks(usize::try_from(SLOT).expect("small"));
    let mut count = 0;
    let mut has_ended = false;
    for (slot, bytes) in (0_u64..).zip(slots) {
        let byte = u8::try_from(slot % 255 + 1).expect("at most 255");
        let (piece, rest) = bytes.split_at(PIECE);
        assert!(
            rest.iter().all(|byte| *byte == 0),
            "slot {slot}: beside the piece"
        );
        let is_whole = piece.iter().all(|found| *found == byte);
        // The one that is being written may be there in part.
        let is_part = piece.iter().all(|found| [0, byte].contains(found));
        assert!(is_part, "slot {slot}: foreign bytes");
        assert!(
            !has_ended || piece.iter().all(|found| *found == 0),
            "slot {slot}: a gap before"
        );
        has_ended |= !is_whole;
        count += u64::from(is_whole);
    }
    count
}

/// Fails unless each page that differs is named.
fn assert_named(then: &[u8], now: &[u8], changed: &Changed) {
    let Changed::Ranges(ranges) = changed else {
        panic!("{changed:?}");
    };
    for (page, (old, new)) in (0_u64..).zip(then.chunks(4096).zip(now.chunks(4096))) {
        let at = ByteOffset(page * 4096);
        let is_named = ranges.iter().any(|range| range.contains(&at));
        assert!(old == new || is_named, "page {page} is not named");
    }
}

fn clones_of_a_live_image(kind: &str) {
    let mount = Mount::in_file(kind, 700);
    let image = mount.path().join("web.vhdx");
    qemu::create(&image, Format::Dynamic(1), SLOT * SLOTS);
    let mut writer = Writer::start(&image);
    let from = Instant::now();
    let (mut made, mut counts) = (Vec::new(), Vec::new());
    while !writer.has_ended() {
        assert!(from.elapsed() < Duration::from_secs(60), "the writer hangs");
        made.push(create(&image, &format!("pass-{}", made.len())).expect("clone"));
        thread::sleep(Duration::from_millis(20));
    }
    made.push(create(&image, "last").expect("clone"));

    let mut before = content(&made[0]);
    for pair in made.windows(2) {
        let [then, now] = [&pair[0], &pair[1]];
        let bytes = content(now);
        assert!(bytes == content(now), "two reads differ");
        counts.push(written_slots(&bytes));
        let changed = in_step(|step| Extents.changed(then, now, step)).expect("changes");
        assert_named(&before, &bytes, &changed);
        before = bytes;
    }

    assert!(made.len() > CLONES_MIN, "{} clones", made.len());
    assert!(counts.is_sorted(), "{counts:?}");
    assert_eq!(counts.last(), Some(&SLOTS));
    let between = counts
        .iter()
        .filter(|count| (1..SLOTS).contains(count))
        .count();
    assert!(between > CLONES_MIN / 2, "{counts:?}");
    eprintln!("{kind}: {} clones, slots {counts:?}", made.len());
}

#[test]
fn clones_on_xfs_are_of_one_moment() {
    skip_without!("root", "mkfs.xfs", "qemu-io", "qemu-img");
    clones_of_a_live_image("xfs");
}

#[test]
fn clones_on_btrfs_are_of_one_moment() {
    skip_without!("root", "mkfs.btrfs", "qemu-io", "qemu-img");
    clones_of_a_live_image("btrfs");
}

// Goal: what a crash left is found, for this image and job only, and all of it goes. Method: two
// whole clones, one that was cut off, another image's and another job's.
#[test]
fn orphans_are_listed_and_released() {
    skip_without!("root", "mkfs.xfs");
    let mount = Mount::in_file("xfs", 400);
    let [image, other] = place::paths(mount.path(), ["web.img", "b.web.img"]);
    fs::write(&image, [7; 8192]).expect("image");
    fs::write(&other, [8; 8192]).expect("image");
    let first = create(&image, "one").expect("clone");
    create(&image, "two").expect("clone");
    create(&other, "three").expect("clone");
    let foreign = SnapshotId::new("job-2", "four").expect("a name");
    in_step(|step| Reflink.create(&image, &foreign, step)).expect("clone");
    let cut_off = mount.path().join(".failback-part.job-1.five.web.img");
    fs::write(&cut_off, []).expect("leftover");

    assert_eq!(list(&image, "job-1"), ["five", "one", "two"]);
    assert_eq!(list(&other, "job-1"), ["three"]);
    assert_eq!(list(&image, "job-2"), ["four"]);
    assert_eq!(
        fs::metadata(&first).expect("clone").permissions().mode() & 0o777,
        0o600
    );

    fs::write(&image, [9; 4096]).expect("write");
    assert_eq!(create(&image, "one").expect("the same"), first);
    assert_eq!(
        fs::read(&first).expect("clone"),
        [7; 8192],
        "it stays as it was"
    );
    let fifth = create(&image, "five").expect("made anew");
    assert_eq!(fs::read(fifth).expect("clone"), [9; 4096]);
    assert!(!cut_off.exists());

    for name in ["one", "two", "five", "one"] {
        in_step(|step| Reflink.release(&image, &id(name), step)).expect("release");
    }
    assert_eq!(list(&image, "job-1"), [""; 0]);
    let left = [
        ".failback-snap.job-1.three.b.web.img",
        ".failback-snap.job-2.four.web.img",
        "b.web.img",
        "web.img",
    ];
    assert_eq!(place::names(mount.path()), left);
    // An image that is gone has its snapshots let go all the same, also through a link to it.
    fs::remove_file(&other).expect("remove");
    assert_eq!(list(&other, "job-1"), ["three"]);
    in_step(|step| Reflink.release(&other, &id("three"), step)).expect("release");
    assert_eq!(list(&other, "job-1"), [""; 0]);
}

// Goal: an image that is named through a link is cloned where it lies. Method: a link from another
// file system.
#[test]
fn a_link_is_followed_to_the_image() {
    skip_without!("root", "mkfs.xfs");
    let mount = Mount::in_file("xfs", 400);
    let image = mount.path().join("web.img");
    fs::write(&image, [7; 8192]).expect("image");
    let elsewhere = place::in_memory();
    let link = elsewhere.path().join("link.img");
    std::os::unix::fs::symlink(&image, &link).expect("link");

    let made = create(&link, "one").expect("clone");

    assert_eq!(made.parent(), image.canonicalize().expect("image").parent());
    assert_eq!(list(&image, "job-1"), ["one"]);
}

// Goal: where there are no clones that is said, and nothing is left. Method: ext4, and a device.
#[test]
fn other_file_systems_have_no_clones() {
    skip_without!("root", "mkfs.ext4");
    let mount = Mount::in_file("ext4", 64);
    let image = mount.path().join("web.img");
    fs::write(&image, [7; 8192]).expect("image");

    let error = create(&image, "one").expect_err("no clones");

    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("no clones"), "{error}");
    assert_eq!(place::names(mount.path()), ["lost+found", "web.img"]);
    let missing = create(&mount.path().join("none.img"), "one").expect_err("no image");
    assert_eq!(missing.kind(), ErrorKind::Io);
}

// Goal: a clone of a child is no child: its parent can be written once the child is gone, and not
// before. Method: a parent with one, cloned.
#[test]
fn a_clone_of_a_child_is_no_child() {
    skip_without!("root", "mkfs.xfs", "qemu-img");
    let mount = Mount::in_file("xfs", 400);
    let [parent, child] = place::paths(mount.path(), ["base.vhdx", "child.avhdx"]);
    qemu::create(&parent, Format::Dynamic(1), 16 << 20);
    let options = OpenOptions {
        format: Some(disk::Format::Vhdx),
        parents: vec![parent.clone()],
        ..OpenOptions::default()
    };
    disk::create_child(&child, &options, None).expect("child");
    create(&child, "one").expect("clone");
    let write = || open_target(&parent, &OpenOptions::default()).map(drop);

    assert_eq!(write().expect_err("has a child").kind(), ErrorKind::Refused);
    fs::remove_file(&child).expect("remove");
    write().expect("has none");
}
