//! Goal: a sync that is killed at any moment leaves the old disk, the new one, or one that is
//! marked as mixed; the same sync then ends equal, and a roll-back with the old disk. Method:
//! SIGKILL at seeded times, most of them after COMMIT; the state word is held against the root of
//! what the target holds.
//!
//! `FAILBACK_KILLS=N` kills N syncs in each setting. The long run kills N in all, ten thousand
//! unless told otherwise, and counts those between COMMIT and done (docs/testing.md). A kill counts
//! only if it met a process that still ran.
#![cfg(unix)]
#![allow(
    clippy::print_stderr,
    reason = "the table of what was found is asked for"
)]

use failback_tests::kill::{self, Setting, Tally};
use failback_tests::place;
use failback_tests::qemu::Format::{self, Dynamic, Raw};
use failback_tests::scene::{LOG, Scene};
use failback_tests::skip_without;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Kills of one setting in CI.
const KILLS: usize = 30;
/// Words before COMMIT.
const BEFORE_COMMIT: &[&str] = &["none", "staging", "staged"];
/// Words between COMMIT and the end.
const AFTER_COMMIT: &[&str] = &["committing", "new_unverified", "new_verified"];

#[test]
fn killed_agents_with_a_raw_target() {
    skip_without!("qemu-img");
    assert_kills_are_harmless(Raw, Setting::TwoProcesses, 1);
}

#[test]
fn killed_agents_with_a_growing_vhdx() {
    skip_without!("qemu-img");
    assert_kills_are_harmless(Dynamic(1), Setting::TwoProcesses, 2);
}

#[test]
fn killed_syncs_of_one_process_to_a_raw_target() {
    skip_without!("qemu-img");
    assert_kills_are_harmless(Raw, Setting::Local, 3);
}

#[test]
fn killed_syncs_of_one_process_to_a_growing_vhdx() {
    skip_without!("qemu-img");
    assert_kills_are_harmless(Dynamic(1), Setting::Local, 4);
}

#[test]
fn killed_roll_backs() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 5);
    let count = kill::count_from("FAILBACK_KILLS", KILLS) / 2;
    let mut rng = StdRng::seed_from_u64(5);

    let tally = kill::kill_roll_backs(&scene, count, &mut rng);

    eprintln!("roll-backs, seed 5:\n{}", tally.table());
    assert_kills_met(&tally);
    assert!(tally.of(&["rolling_back"]) > 0, "{}", tally.table());
}

#[test]
fn killed_commands_in_any_order() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 6);
    let count = kill::count_from("FAILBACK_KILLS", KILLS);
    let mut rng = StdRng::seed_from_u64(6);

    let tally = kill::kill_walks(&scene, count, &mut rng);

    eprintln!("any order, seed 6:\n{}", tally.table());
    assert_kills_met(&tally);
    // Commands were cut on both sides of COMMIT.
    assert!(tally.of(BEFORE_COMMIT) > 0, "{}", tally.table());
    assert!(tally.of(AFTER_COMMIT) > 0, "{}", tally.table());
}

#[test]
#[ignore = "takes an hour; see docs/testing.md"]
fn ten_thousand_kills() {
    skip_without!("qemu-img");
    let count = kill::count_from("FAILBACK_KILLS", 10_000);
    let formats = [Raw, Dynamic(1)];
    let settings = [Setting::Local, Setting::TwoProcesses];
    let memory = place::in_memory();
    let mut all = Tally::default();

    for (seed, (format, setting)) in (100..).zip(pairs(&formats, &settings)) {
        // Nothing here is about flushes: in memory there is time for more of it.
        let scene = Scene::new_in(memory.path(), format, seed).in_this_way(LOG);
        let mut rng = StdRng::seed_from_u64(seed);
        let tally = kill::kill_syncs(&scene, setting, count.div_ceil(4), &mut rng);
        eprintln!("{format:?}, {setting:?}, seed {seed}:\n{}", tally.table());
        all.add_all(&tally);
    }

    let (total, after) = (all.total(), all.of(AFTER_COMMIT));
    eprintln!(
        "{total} kills, {after} of them between COMMIT and done:\n{}",
        all.table()
    );
    assert_kills_met(&all);
    assert!(after * 10 >= count * 3);
}

fn pairs(formats: &[Format], settings: &[Setting]) -> Vec<(Format, Setting)> {
    let of = |format: &Format| settings.iter().map(|setting| (*format, *setting)).collect();
    formats
        .iter()
        .flat_map(|format| -> Vec<_> { of(format) })
        .collect()
}

fn assert_kills_are_harmless(format: Format, setting: Setting, seed: u64) {
    let scene = Scene::new(format, seed);
    let count = kill::count_from("FAILBACK_KILLS", KILLS);
    let mut rng = StdRng::seed_from_u64(seed);

    let tally = kill::kill_syncs(&scene, setting, count, &mut rng);

    eprintln!("{format:?}, {setting:?}, seed {seed}:\n{}", tally.table());
    assert_kills_met(&tally);
    let after = tally.of(AFTER_COMMIT);
    assert!(after * 10 >= tally.total() * 3, "{}", tally.table());
}

/// The words are of kills that met a running process; few came too late.
fn assert_kills_met(tally: &Tally) {
    assert!(tally.late() * 2 <= tally.total(), "{}", tally.table());
}
