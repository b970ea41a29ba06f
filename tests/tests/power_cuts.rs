//! Goal: after a power cut at any write of a sync, under a real file system, the target is the old
//! disk, the new one, or marked as mixed by its state; `recover` or the same sync brings it to its
//! end. Method: a log of the writes below the file system; states made of its prefixes, with what
//! was not flushed lost or torn; the kernel mounts each and recovers its own journal first.
//!
//! `FAILBACK_POWER_CUTS=N` makes N states of each setting; more than there are writes takes all.
#![cfg(target_os = "linux")]
#![allow(
    clippy::print_stderr,
    reason = "the table of what was found is asked for"
)]

use std::fs;
use std::path::PathBuf;

use failback_tests::cli::{self, Run};
use failback_tests::kill::{Tally, count_from};
use failback_tests::power::PowerCuts;
use failback_tests::qemu::Format::{self, Dynamic, Raw};
use failback_tests::scene::{CLONE, LOG, NEW_FILE, args_of};
use failback_tests::{disk, qemu, skip_without, state};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

/// States of each setting in CI.
const STATES_IN_CI: usize = 16;
const DISK_LEN: u64 = 8 << 20;
/// The target has nothing from here on, the source has data.
const OLD_END: u64 = 5 << 20;
const CHANGES: usize = 60;

#[test]
fn power_cuts_on_xfs_with_a_raw_target() {
    skip_without!(
        "root",
        "qemu-img",
        "qemu-storage-daemon",
        "fusermount3",
        "mkfs.xfs"
    );
    assert_cuts_are_harmless("xfs", Raw, LOG, 80);
}

#[test]
fn power_cuts_on_xfs_with_a_growing_vhdx() {
    skip_without!(
        "root",
        "qemu-img",
        "qemu-storage-daemon",
        "fusermount3",
        "mkfs.xfs"
    );
    assert_cuts_are_harmless("xfs", Dynamic(1), LOG, 81);
}

#[test]
fn power_cuts_on_xfs_with_a_clone() {
    skip_without!(
        "root",
        "qemu-img",
        "qemu-storage-daemon",
        "fusermount3",
        "mkfs.xfs"
    );
    assert_cuts_are_harmless("xfs", Dynamic(1), CLONE, 82);
}

#[test]
fn power_cuts_on_xfs_with_a_new_file() {
    skip_without!(
        "root",
        "qemu-img",
        "qemu-storage-daemon",
        "fusermount3",
        "mkfs.xfs"
    );
    assert_cuts_are_harmless("xfs", Raw, NEW_FILE, 83);
}

#[test]
fn power_cuts_on_ext4_with_a_raw_target() {
    skip_without!(
        "root",
        "qemu-img",
        "qemu-storage-daemon",
        "fusermount3",
        "mkfs.ext4"
    );
    assert_cuts_are_harmless("ext4", Raw, LOG, 84);
}

#[test]
fn power_cuts_on_ext4_with_a_growing_vhdx() {
    skip_without!(
        "root",
        "qemu-img",
        "qemu-storage-daemon",
        "fusermount3",
        "mkfs.ext4"
    );
    assert_cuts_are_harmless("ext4", Dynamic(1), LOG, 85);
}

#[test]
fn power_cuts_on_ext4_with_a_new_file() {
    skip_without!(
        "root",
        "qemu-img",
        "qemu-storage-daemon",
        "fusermount3",
        "mkfs.ext4"
    );
    assert_cuts_are_harmless("ext4", Dynamic(1), NEW_FILE, 86);
}

#[test]
fn power_cuts_on_btrfs_with_a_growing_vhdx() {
    skip_without!(
        "root",
        "qemu-img",
        "qemu-storage-daemon",
        "fusermount3",
        "mkfs.btrfs"
    );
    assert_cuts_are_harmless("btrfs", Dynamic(1), LOG, 87);
}

#[test]
fn power_cuts_on_btrfs_with_a_clone() {
    skip_without!(
        "root",
        "qemu-img",
        "qemu-storage-daemon",
        "fusermount3",
        "mkfs.btrfs"
    );
    assert_cuts_are_harmless("btrfs", Raw, CLONE, 88);
}

fn assert_cuts_are_harmless(kind: &str, format: Format, way: &'static [&'static str], seed: u64) {
    // The smallest that mkfs makes, and some room.
    let mib = match kind {
        "xfs" => 320,
        "btrfs" => 160,
        _ => 96,
    };
    let mut power = PowerCuts::new(kind, mib);
    let disks = Disks::new(power.mount_point().join("target"), format, way, seed);
    power.log();
    let _ = disks.sync().exits(0);
    let mut log = power.end_log();
    assert!(
        log.flushes() > 3,
        "{} flushes: a sync has more",
        log.flushes()
    );
    let wanted = count_from("FAILBACK_POWER_CUTS", STATES_IN_CI);
    let step = log.len().div_ceil(wanted.max(1)).max(1);
    let (mut tally, mut lost, mut torn) = (Tally::default(), 0, 0);

    // The last states are those of a sync that has ended.
    for cut in (0..=log.len())
        .rev()
        .step_by(step)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
    {
        let mut rng = StdRng::seed_from_u64(seed << 32 | cut as u64);
        let harm = power.mount_after(&mut log, cut, &mut rng);
        let story = format!(
            "{kind}, {format:?}, cut {cut} of {}, seed {seed}",
            log.len()
        );
        tally.add(&disks.assert_comes_to_an_end(&story, &mut rng));
        (lost, torn) = (lost + harm.0, torn + harm.1);
    }

    let (states, writes) = (tally.total(), log.len());
    eprintln!(
        "{kind}, {format:?}, {way:?}: {states} states of {writes} writes, {lost} lost, {torn} torn"
    );
    eprintln!("{}", tally.table());
    assert!(
        tally.of(&["done"]) > 0 && tally.of(&["none"]) > 0,
        "{}",
        tally.table()
    );
}

/// A source outside of the file system, a target in it.
struct Disks {
    _dir: TempDir,
    source: PathBuf,
    target: PathBuf,
    format: Format,
    way: &'static [&'static str],
    old_root: String,
    new_root: String,
}

impl Disks {
    fn new(target: PathBuf, format: Format, way: &'static [&'static str], seed: u64) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let (old, source) = (dir.path().join("old.raw"), dir.path().join("source.raw"));
        disk::write_raw(&source, DISK_LEN, 100, seed);
        fs::copy(&source, &old).expect("old disk");
        let file = fs::OpenOptions::new()
            .write(true)
            .open(&old)
            .expect("old disk");
        file.set_len(OLD_END)
            .and_then(|()| file.set_len(DISK_LEN))
            .expect("length");
        disk::write_changes(&source, &disk::changes(OLD_END, CHANGES, seed));
        qemu::convert(&old, &target, format);
        Self {
            _dir: dir,
            old_root: state::root_of(&old),
            new_root: state::root_of(&source),
            source,
            target,
            format,
            way,
        }
    }

    fn sync(&self) -> Run {
        cli::failback(args_of("sync", &[&self.source, &self.target], self.way))
    }

    /// The word, which must be true; then `recover` or the sync again, by the seed.
    fn assert_comes_to_an_end(&self, story: &str, rng: &mut StdRng) -> String {
        let look = state::look_true(&self.target, &self.old_root, &self.new_root, story);
        if rng.random() {
            let run = cli::failback(args_of("recover", &[&self.target], &[]));
            assert!(matches!(run.code, Some(0 | 3)), "{story}\n{}", run.stderr);
            let after = state::look_true(&self.target, &self.old_root, &self.new_root, story);
            assert!(!after.is_mixed, "{story}: {look:?}, then {after:?}");
            let is_ended = matches!(after.name(), "none" | "staging" | "aborted" | "done");
            assert!(is_ended, "{story}: {look:?}, then {after:?}");
        }
        let again = self.sync();
        assert_eq!(again.code, Some(0), "{story}, {look:?}\n{}", again.stderr);
        assert_eq!(state::root_of(&self.target), self.new_root, "{story}");
        // A third reader agrees (QEMU #727).
        let same = qemu::compare((&self.target, self.format), (&self.source, Raw));
        assert_eq!(same, Ok(()), "{story}");
        qemu::assert_clean(&self.target, self.format);
        look.name().to_owned()
    }
}
