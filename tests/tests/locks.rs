//! Goal: one job at a time has a target, and nobody else has it meanwhile. Method: many starts at
//! once; a winner that is stopped in the middle; QEMU as the other program, in both directions.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use failback_tests::cli::{self, Run, Running};
use failback_tests::place::{self, Holder};
use failback_tests::qemu::Format::{Dynamic, Raw};
use failback_tests::scene::{Scene, args_of};
use failback_tests::{disk, skip_without, state, tools};
use tempfile::TempDir;

/// Starts of small syncs, and how many at a time.
const STARTS: usize = 200;
const AT_A_TIME: usize = 25;
const SMALL_LEN: u64 = 8 << 20;

#[test]
fn of_many_starts_each_ends_well_or_is_refused() {
    let dir = TempDir::new().expect("temporary folder");
    let [source, target] = place::paths(dir.path(), ["source.raw", "target.raw"]);
    disk::write_raw(&source, SMALL_LEN, 80, 1);
    let runs = (0..STARTS / AT_A_TIME).flat_map(|wave| {
        // Something to do for each wave.
        disk::write_raw(&target, SMALL_LEN, 60, 100 + wave as u64);
        let wave = start_many(AT_A_TIME, || start(&source, &target, &[]));
        assert_eq!(state::root_of(&source), state::root_of(&target));
        wave
    });

    let codes: Vec<Option<i32>> = runs.map(|run| run.code).collect();

    assert_eq!(codes.len(), STARTS);
    assert!(
        codes.iter().all(|code| [Some(0), Some(3)].contains(code)),
        "{codes:?}"
    );
    let has_winner = |wave: &[Option<i32>]| wave.contains(&Some(0));
    assert!(codes.chunks(AT_A_TIME).all(has_winner), "{codes:?}");
}

#[test]
fn while_one_runs_all_others_are_refused() {
    skip_without!("qemu-img");
    let scene = Scene::new(Raw, 20);
    let winner = stopped_in_the_middle(&scene);

    let others = start_many(AT_A_TIME, || start(&scene.source, &scene.target, &[]));

    let name = format!("process {}", winner.id());
    others.into_iter().for_each(|run| {
        assert_in_use(&run);
        let message = run.json()["error"]["message"].to_string();
        assert!(message.contains(&name), "{message}");
    });
    assert_winner_ends(winner, &scene);
    assert_eq!(fs::read(scene.state_file("lock")).expect("lock"), b"");
}

#[test]
fn another_state_directory_is_no_way_around_the_lock() {
    skip_without!("qemu-img");
    let scene = Scene::new(Raw, 21);
    let other = scene.dir().join("other");
    let more = ["--state-dir", other.to_str().expect("UTF-8")];
    let winner = stopped_in_the_middle(&scene);

    let others = start_many(AT_A_TIME, || start(&scene.source, &scene.target, &more));

    others.into_iter().for_each(|run| assert_in_use(&run));
    assert_winner_ends(winner, &scene);
}

#[test]
fn another_name_is_no_way_around_the_lock() {
    skip_without!("qemu-img");
    let scene = Scene::new(Raw, 22);
    let [soft, hard] = place::paths(scene.dir(), ["soft.raw", "hard.raw"]);
    symlink(&scene.target, &soft).expect("symbolic link");
    fs::hard_link(&scene.target, &hard).expect("hard link");
    let winner = stopped_in_the_middle(&scene);

    let others = [soft, hard].map(|name| start(&scene.source, &name, &[]).wait());

    others.iter().for_each(assert_in_use);
    assert_winner_ends(winner, &scene);
}

#[test]
fn ends_of_a_job_are_refused_while_it_runs() {
    skip_without!("qemu-img");
    let scene = Scene::new(Raw, 23);
    let winner = stopped_in_the_middle(&scene);
    // A moment after its locks the job may not have a journal yet: it has no state then.
    let ends = ["recover", "rollback", "commit"].map(|command| scene.end_by(command));

    ends.iter()
        .for_each(|run| assert_eq!(run.code, Some(3), "{}", run.stderr));
    assert_winner_ends(winner, &scene);
}

#[test]
fn the_lock_of_a_dead_process_is_none() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 24);
    let dead = stopped_in_the_middle(&scene);
    dead.signal("KILL");
    assert_eq!(dead.wait().code, None);
    let text = fs::read_to_string(scene.state_file("lock")).expect("lock");
    assert!(text.starts_with("pid "), "{text}");

    let run = scene.assert_ends_equal("after a dead process");

    assert_eq!(run.code, Some(0));
}

#[test]
fn a_target_that_qemu_io_has_open_is_refused() {
    skip_without!("qemu-img", "qemu-io", "stdbuf");
    [Raw, Dynamic(1)].into_iter().for_each(|format| {
        let scene = Scene::new(format, 25);
        let holder = Holder::qemu(&scene.target, format);
        assert_refused_then_free(&scene, holder);
    });
}

#[test]
fn a_target_that_qemu_nbd_has_open_is_refused() {
    skip_without!("qemu-img", "qemu-nbd");
    let scene = Scene::new(Raw, 26);
    let holder = Holder::nbd(&scene.target, scene.dir());
    assert_refused_then_free(&scene, holder);
}

#[test]
fn qemu_cannot_write_to_a_target_that_is_staged_for() {
    skip_without!("qemu-img", "qemu-io");
    [(Raw, "raw"), (Dynamic(1), "vhdx")]
        .into_iter()
        .for_each(|(format, driver)| {
            let scene = Scene::new(format, 27);
            let winner = stopped_in_the_middle(&scene);

            assert_qemu_is_refused(&scene.target, driver);

            assert_winner_ends(winner, &scene);
        });
}

/// A sync that holds its locks and does not move.
fn stopped_in_the_middle(scene: &Scene) -> Running {
    let mut run = start(&scene.source, &scene.target, &[]);
    run.stop_when_it_locks(&scene.target);
    run
}

fn assert_winner_ends(winner: Running, scene: &Scene) {
    winner.signal("CONT");
    let _ = winner.wait().exits(0);
    scene.assert_new("the winner went on");
}

fn assert_refused_then_free(scene: &Scene, holder: Holder) {
    let run = scene.sync(&["--json"]);

    assert_in_use(&run);
    drop(holder);
    scene.assert_old("it was refused");
    scene.assert_ends_equal("nobody has it open any more");
}

fn assert_in_use(run: &Run) {
    assert_eq!(run.code, Some(3), "{}", run.stderr);
    assert_eq!(run.json()["error"]["kind"], "in_use", "{}", run.stdout);
}

fn assert_qemu_is_refused(target: &Path, driver: &str) {
    let target = target.to_str().expect("UTF-8");
    let done = tools::output("qemu-io", ["-f", driver, "-c", "write -P 7 0 64k", target]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success(), "{said}");
    assert!(said.contains("lock"), "{said}");
}

fn start(source: &Path, target: &Path, more: &[&str]) -> Running {
    let mut args = args_of("sync", &[source, target], more);
    args.push("--json".into());
    cli::start(args)
}

fn start_many(count: usize, start: impl Fn() -> Running) -> Vec<Run> {
    let running: Vec<Running> = (0..count).map(|_| start()).collect();
    running.into_iter().map(Running::wait).collect()
}
