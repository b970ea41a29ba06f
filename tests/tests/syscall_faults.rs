//! Goal: a sync that is killed at a system call, or to which one fails, leaves the old disk, the
//! new one, or one that is marked as mixed; the same sync then ends equal. Method: strace injects
//! the fault at calls spread over the run; the state word is held against the root of the target.
//!
//! `FAILBACK_FAULTS=N` takes about N points for each kind of fault; more than there are takes all.
#![cfg(target_os = "linux")]
#![allow(
    clippy::print_stderr,
    reason = "the table of what was found is asked for"
)]

use std::collections::BTreeMap;

use failback_tests::cli::Run;
use failback_tests::kill::{Tally, count_from};
use failback_tests::place::Mount;
use failback_tests::qemu::Format::{self, Dynamic, Raw};
use failback_tests::scene::{CLONE, LOG, Scene};
use failback_tests::skip_without;
use failback_tests::trace::{self, CHANGING, Fault, Point};
use serde_json::Value;

/// Points of one kind of fault in CI.
const POINTS: usize = 5;
/// Faults of the medium, and where they can happen.
const FULL: Fault = Fault::Error("ENOSPC");
const BROKEN: Fault = Fault::Error("EIO");

#[test]
fn killed_at_a_call_with_a_raw_target() {
    skip_without!("qemu-img", "strace");
    assert_kills_are_harmless(&Scene::new(Raw, 30));
}

#[test]
fn killed_at_a_call_with_a_growing_vhdx() {
    skip_without!("qemu-img", "strace");
    assert_kills_are_harmless(&Scene::new(Dynamic(1), 31));
}

#[test]
fn killed_at_a_call_on_xfs() {
    skip_without!("qemu-img", "strace", "mkfs.xfs", "root");
    let mount = Mount::in_file("xfs", 400);
    assert_kills_are_harmless(&Scene::new_in(mount.path(), Dynamic(1), 32).in_this_way(LOG));
}

#[test]
fn killed_at_a_call_on_btrfs() {
    skip_without!("qemu-img", "strace", "mkfs.btrfs", "root");
    let mount = Mount::in_file("btrfs", 600);
    assert_kills_are_harmless(&Scene::new_in(mount.path(), Dynamic(1), 34).in_this_way(LOG));
}

#[test]
fn killed_at_a_call_on_btrfs_with_a_clone() {
    skip_without!("qemu-img", "strace", "mkfs.btrfs", "root");
    let mount = Mount::in_file("btrfs", 600);
    assert_kills_are_harmless(&Scene::new_in(mount.path(), Raw, 35).in_this_way(CLONE));
}

#[test]
fn failed_calls_on_btrfs() {
    skip_without!("qemu-img", "strace", "mkfs.btrfs", "root");
    let mount = Mount::in_file("btrfs", 600);
    let scene = Scene::new_in(mount.path(), Dynamic(1), 36).in_this_way(LOG);
    assert_errors_are_harmless_in(&scene, &["pwrite64"], FULL);
    assert_errors_are_harmless_in(&scene, &["pread64"], BROKEN);
    assert_errors_are_harmless_in(&scene, &["fsync", "fdatasync"], BROKEN);
}

#[test]
fn failed_writes() {
    skip_without!("qemu-img", "strace");
    assert_errors_are_harmless(Raw, &["pwrite64"], BROKEN);
    assert_errors_are_harmless(Dynamic(1), &["pwrite64", "pwritev2"], FULL);
}

#[test]
fn failed_flushes() {
    skip_without!("qemu-img", "strace");
    assert_errors_are_harmless(Raw, &["fsync", "fdatasync"], BROKEN);
    assert_errors_are_harmless(Dynamic(1), &["fsync", "fdatasync"], FULL);
    let scene = Scene::new(Dynamic(1), 33);
    let of_parts = &["msync", "pwritev2"];
    let points = trace::points(&scene, of_parts);
    for call in of_parts {
        assert!(points.iter().any(|point| point.call == *call), "no {call}");
    }
    assert_errors_are_harmless_in(&scene, of_parts, BROKEN);
}

#[test]
fn failed_changes_of_names_and_lengths() {
    skip_without!("qemu-img", "strace");
    assert_errors_are_harmless(Raw, &["rename", "unlink", "fallocate"], BROKEN);
    assert_errors_are_harmless(Dynamic(1), &["rename", "ftruncate", "fallocate"], FULL);
}

#[test]
fn failed_reads() {
    skip_without!("qemu-img", "strace");
    assert_errors_are_harmless(Raw, &["pread64"], BROKEN);
    assert_errors_are_harmless(Dynamic(1), &["pread64"], BROKEN);
}

fn assert_kills_are_harmless(scene: &Scene) {
    let all = trace::points(scene, CHANGING);
    let points = trace::spread(&all, count_from("FAILBACK_FAULTS", POINTS));

    let met = meet(scene, &points, Fault::Kill, assert_killed_or_done);

    met.report(scene.format, &all);
    met.assert_injected(&points, &[]);
    let tally = &met.tally;
    assert!(tally.of(&["done"]) < tally.total(), "{}", tally.table());
}

fn assert_errors_are_harmless(format: Format, calls: &'static [&'static str], fault: Fault) {
    assert_errors_are_harmless_in(&Scene::new(format, 33), calls, fault);
}

fn assert_errors_are_harmless_in(scene: &Scene, calls: &'static [&'static str], fault: Fault) {
    let all = trace::points(scene, calls);
    let points = trace::spread(&all, count_from("FAILBACK_FAULTS", POINTS));

    let met = meet(scene, &points, fault, assert_failed_or_done);

    met.report(scene.format, &all);
    met.assert_injected(&points, calls);
    met.assert_told(calls, fault);
}

/// What came of a number of faults.
#[derive(Default)]
struct Met {
    tally: Tally,
    /// Calls that a fault was seen at, by name.
    injected: BTreeMap<&'static str, usize>,
    /// Errors of the runs that failed, one line each.
    errors: Vec<Value>,
}

impl Met {
    fn report(&self, format: Format, all: &[Point]) {
        let (total, of) = (self.tally.total(), all.len());
        let table = self.tally.table();
        eprintln!(
            "{format:?}: {total} runs, of {of} points, injected at {:?}\n{table}",
            self.injected
        );
    }

    /// Faults that were never injected say nothing: most were, and some at each kind of call that
    /// has to be there.
    fn assert_injected(&self, points: &[Point], calls: &[&'static str]) {
        let count: usize = self.injected.values().sum();
        assert!(
            count * 3 >= points.len() * 2,
            "only {count} of {}: {:?}",
            points.len(),
            self.injected
        );
        let is_used = |call: &&&str| points.iter().any(|point| point.call == **call);
        for call in calls.iter().filter(is_used) {
            assert!(
                self.injected.contains_key(call),
                "{call}: {:?}",
                self.injected
            );
        }
    }

    /// A full medium is told as that, and a broken disk with the place where.
    fn assert_told(&self, calls: &[&str], fault: Fault) {
        let is_data = calls.contains(&"pwrite64") || calls.contains(&"pread64");
        let is_told = |error: &Value| match fault.name() {
            "ENOSPC" => error["kind"] == "no_space",
            // Of an image, the message says what lies there as well.
            _ => {
                let message = error["message"].as_str().unwrap_or_default();
                error["kind"] == "io" && (error["offset"].is_u64() || message.contains(" at 0x"))
            }
        };
        assert!(
            !is_data || self.errors.iter().any(is_told),
            "{fault:?} at {calls:?} is never told: {:?}",
            self.errors
        );
    }
}

fn meet(scene: &Scene, points: &[Point], fault: Fault, judge: fn(&Run, &str)) -> Met {
    let mut met = Met::default();
    for point in points {
        let mut point = *point;
        for _ in 0..TRIES {
            let story = format!("{:?}, {fault:?} at {point:?}", scene.format);
            scene.reset();
            let (run, is_injected) = trace::sync_with(scene, point, fault);
            judge(&run, &story);
            if run.code == Some(6) {
                met.errors.push(run.json()["error"].clone());
            }
            met.tally.add(scene.look(&story).name());
            scene.assert_ends_equal(&story);
            if is_injected {
                *met.injected.entry(point.call).or_default() += 1;
                break;
            }
            // Threads share the work in another way each time, and none made so many calls.
            point.nth = point.nth.div_ceil(2);
        }
    }
    met
}

/// How often a fault is tried that no thread comes to, each time at half of the calls before it.
const TRIES: usize = 3;

/// The run may end before the point: threads share the work in another way each time.
fn assert_killed_or_done(run: &Run, story: &str) {
    assert!(
        [None, Some(0)].contains(&run.code),
        "{story}\n{}",
        run.stderr
    );
}

/// What is not essential may fail without a word.
fn assert_failed_or_done(run: &Run, story: &str) {
    assert!(
        [Some(6), Some(0)].contains(&run.code),
        "{story}: {:?}\n{}",
        run.code,
        run.stderr
    );
    assert!(!run.stderr.contains("panicked"), "{story}\n{}", run.stderr);
}
