//! Goal: damage to journal or stage never makes a wrong disk: what cannot be trusted is refused and
//! the target is left as it is. Method: one byte flipped at a time, of the journal in both copies
//! of an entry, in three states; `recover`, `rollback` and the same sync; the root of the target
//! before and after.
//!
//! `FAILBACK_FLIPS=N` flips about N bytes of each file in each state.
#![cfg(unix)]
#![allow(
    clippy::print_stderr,
    reason = "the table of what was found is asked for"
)]

use std::fs;
use std::path::PathBuf;

use failback_tests::cli::{self, Run};
use failback_tests::kill::{self, Tally, count_from};
use failback_tests::qemu::Format::{Dynamic, Raw};
use failback_tests::scene::{LOG, Scene};
use failback_tests::{place, qemu, skip_without, state};

/// Flips of one file in one state in CI.
const FLIPS: usize = 10;
/// Enough that the stage has a durable part.
const CUT_AT: u64 = 30 << 20;
/// Bytes of the first copy of an entry of the journal that say something, and a few more.
const ENTRY_LEN: usize = 900;
const KEEP_UNDO: &str = "--keep-undo";

#[test]
fn flips_while_staging() {
    skip_without!("qemu-img");
    assert_flips_are_harmless(60, |scene| {
        kill::cut_when_staged(scene, CUT_AT, &[KEEP_UNDO]);
    });
}

#[test]
fn flips_once_staged() {
    skip_without!("qemu-img");
    assert_flips_are_harmless(61, |scene| kill::cut_when_sealed(scene, &[KEEP_UNDO]));
}

#[test]
fn flips_once_the_new_disk_is_proven() {
    skip_without!("qemu-img");
    assert_flips_are_harmless(62, |scene| {
        scene.reset();
        let _ = scene.sync(&[KEEP_UNDO]).exits(0);
    });
}

#[test]
fn a_commit_that_rotted_makes_no_old_disk_of_a_mixed_one() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 63);
    ["recover", "rollback"].into_iter().for_each(|command| {
        cut_after_commit(&scene);
        scribble_over_last_entry(&scene);
        let before = state::root_of(&scene.target);

        let run = scene.end_by(command);

        assert!([Some(3), Some(4)].contains(&run.code), "{}", run.stderr);
        assert_eq!(state::root_of(&scene.target), before);
        assert!(scene.look(command).is_mixed);
        // The same sync is the way on; cut off, it leaves a disk that is still marked.
        kill::cut_once(&scene, &[], |scene| {
            scene.state_file("journal.new").exists()
        });
        let _ = scene.look("cut off again");
        scene.assert_ends_equal(command);
    });
}

#[test]
fn a_commit_of_which_one_copy_rotted_is_finished() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 65);
    [0, state::SECOND_COPY].into_iter().for_each(|copy| {
        cut_after_commit(&scene);
        let page = (state::journal_pages(&scene.target) - 1) * state::PAGE_LEN;
        place::scribble(&scene.state_file("journal"), page + copy + 60, b"#");
        assert!(scene.look("one copy rotted").is_mixed);
        assert!(state::warnings(&scene.target)[0].contains("one copy left"));

        let _ = scene.end_by("recover").exits(0);

        scene.assert_new("from the other copy");
    });
}

#[test]
fn a_roll_back_that_rotted_makes_no_new_disk_of_a_mixed_one() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 64);
    let _ = scene.sync(&[KEEP_UNDO]).exits(0);
    // As if a roll-back had come this far.
    qemu::io(&scene.target, Dynamic(1), &["write -P 7 9M 64k".to_owned()]);
    place::append(&scene.state_file("journal"), &[0xff; 100]);
    let warnings = state::warnings(&scene.target);
    assert!(warnings[0].contains("does not check"), "{warnings:?}");

    let runs = ["commit", "recover"].map(|command| scene.end_by(command));

    assert_eq!(runs[0].code, Some(4), "{}", runs[0].stderr);
    assert_eq!(runs[1].code, Some(8), "{}", runs[1].stderr);
    let _ = scene.end_by("rollback").exits(0);
    scene.assert_old("rolled back in the end");
}

#[test]
fn a_stage_that_is_lost_after_commit_leaves_the_source_as_the_way_on() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 65);
    cut_after_commit(&scene);
    fs::remove_file(scene.state_file("stage")).expect("a stage");

    let ends = ["recover", "rollback"].map(|command| scene.end_by(command));

    ends.iter()
        .for_each(|run| assert_eq!(run.code, Some(4), "{}", run.stderr));
    assert!(scene.look("the stage is lost").is_mixed);
    let copy = scene.dir().join("copy.raw");
    let run = cli::sync(&scene.target, &copy);
    assert_eq!(
        (run.code, copy.exists()),
        (Some(3), false),
        "a mixed source"
    );
    // Cut off, the next sync leaves a disk that is still marked.
    kill::cut_once(&scene, &["--stage", "log"], |scene| {
        scene.state_file("stage").exists()
    });
    assert!(scene.look("cut again").is_mixed);
    let rest = scene.assert_ends_equal("from the source").json();
    assert!(
        rest["reasons"].to_string().contains("resumed") || has_lost(&rest),
        "{rest}"
    );
}

#[test]
fn a_target_that_is_another_file_is_made_equal() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 66);
    cut_after_commit(&scene);
    let other = scene.dir().join("other");
    fs::copy(&scene.target, &other).expect("a copy");
    fs::rename(&other, &scene.target).expect("in its place");

    let run = scene.end_by("recover");

    assert_eq!(run.code, Some(3), "{}", run.stderr);
    let rest = scene.assert_ends_equal("another file").json();
    assert!(has_lost(&rest), "{rest}");
}

// Goal: an apply that was cut off does not go over what somebody else wrote meanwhile. Method: a
// page of a block that changes as a whole gets other bytes; recover and roll back are refused.
#[test]
fn an_apply_that_was_cut_off_goes_over_nobody_elses_bytes() {
    skip_without!("qemu-img");
    let scene = Scene::new(Raw, 67).in_this_way(LOG);
    cut_after_commit(&scene);
    place::scribble(&scene.target, 40 << 20, &[0xa7; 4096]);
    let before = state::root_of(&scene.target);

    let ends = ["recover", "rollback"].map(|command| scene.end_by(command));

    ends.iter().for_each(|run| {
        assert_eq!(run.code, Some(3), "{}", run.stderr);
        assert!(run.stderr.contains("somebody else wrote"), "{}", run.stderr);
    });
    assert_eq!(state::root_of(&scene.target), before);
    assert!(scene.look("refused").is_mixed);
    let rest = scene.assert_ends_equal("foreign bytes").json();
    assert!(has_lost(&rest), "{rest}");
}

fn has_lost(report: &serde_json::Value) -> bool {
    let reasons = report["reasons"].as_array().expect("reasons");
    reasons.iter().any(|reason| reason == "state_lost")
}

/// Cuts a sync when the target has begun to change.
fn cut_after_commit(scene: &Scene) {
    kill::cut(scene, "committing", &[], |scene| {
        let modified = |path: &PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
        state::journal_pages(&scene.target) >= 3
            && modified(&scene.target) > modified(&scene.state_file("stage"))
    });
}

fn scribble_over_last_entry(scene: &Scene) {
    let page = (state::journal_pages(&scene.target) - 1) * state::PAGE_LEN;
    for copy in [0, state::SECOND_COPY] {
        place::scribble(&scene.state_file("journal"), page + copy + 60, b"#");
    }
}

fn assert_flips_are_harmless(seed: u64, prepare: fn(&Scene)) {
    let scene = Scene::new(Dynamic(1), seed);
    let flips = count_from("FAILBACK_FLIPS", FLIPS);
    for (name, offsets) in [
        ("journal", in_entries as fn(usize) -> bool),
        ("stage", anywhere),
    ] {
        let mut flipper = Flipper::new(&scene, name, prepare);
        let tally = flipper.flip_all(offsets, flips);
        eprintln!("{name}:\n{}", tally.table());
    }
}

fn in_entries(at: usize) -> bool {
    at % 4096 < ENTRY_LEN
}

fn anywhere(_at: usize) -> bool {
    true
}

/// Flips bytes of one file of the state.
struct Flipper<'a> {
    scene: &'a Scene,
    name: &'static str,
    prepare: fn(&Scene),
    path: PathBuf,
    /// The file as it should be.
    sound: Vec<u8>,
    before: Before,
}

/// What would show that something was done.
#[derive(Debug, PartialEq, Eq)]
struct Before {
    root: String,
    file: (u64, std::time::SystemTime),
    journal: Vec<u8>,
    stage_len: Option<u64>,
}

impl<'a> Flipper<'a> {
    fn new(scene: &'a Scene, name: &'static str, prepare: fn(&Scene)) -> Self {
        prepare(scene);
        let path = scene.state_file(name);
        let sound = fs::read(&path).expect("file of the state");
        let before = Before::of(scene);
        Self {
            scene,
            name,
            prepare,
            path,
            sound,
            before,
        }
    }

    fn flip_all(&mut self, is_wanted: fn(usize) -> bool, count: usize) -> Tally {
        let wanted: Vec<usize> = (0..self.sound.len()).filter(|at| is_wanted(*at)).collect();
        let step = wanted.len().div_ceil(count).max(1);
        let mut tally = Tally::default();
        // Heads of pages are where most is said; every other flip goes there, all over them.
        for (index, at) in wanted.into_iter().step_by(step).enumerate() {
            let head = at / 4096 * 4096 + index * 37 % 96;
            for (at, command) in [(at, index), (head, index + 1)] {
                // A sync that is cut off stages as much as it comes to.
                let at = at.min(self.sound.len() - 1);
                let command = ["recover", "rollback", "sync"][command % 3];
                let code = self.flip(at, command);
                tally.add(&format!("{command} exit {code}"));
            }
        }
        tally
    }

    /// One flip, one command; the state is made anew where the command did something.
    fn flip(&mut self, at: usize, command: &str) -> i32 {
        let story = format!("{} with byte {at} flipped, then {command}", self.name);
        self.scribble(at, self.sound[at] ^ 0x10);
        let journal = fs::read(self.scene.state_file("journal")).expect("journal");

        let run = match command {
            "sync" => self.scene.sync(&[KEEP_UNDO, "--json"]),
            _ => self.scene.end_by(command),
        };

        let after = Before::of(self.scene);
        let code = assert_is_an_answer(&run, &story);
        let roots = [&self.scene.old_root, &self.scene.new_root];
        assert!(roots.contains(&&after.root), "{story}");
        let is_refused = code != 0;
        assert!(
            !is_refused || after.root == self.before.root,
            "{story}: {}",
            run.stderr
        );
        let is_untouched = after.file == self.before.file
            && after.stage_len == self.before.stage_len
            && after.journal == journal;
        self.restore(at, is_untouched);
        code
    }

    /// Changes a byte wherever it is.
    fn scribble(&self, at: usize, byte: u8) {
        place::scribble(&self.path, at as u64, &[byte]);
        if self.name == "journal" {
            place::scribble(&self.path, at as u64 + state::SECOND_COPY, &[byte]);
        }
    }

    fn restore(&mut self, at: usize, is_untouched: bool) {
        if is_untouched {
            self.scribble(at, self.sound[at]);
            return;
        }
        *self = Self::new(self.scene, self.name, self.prepare);
    }
}

impl Before {
    fn of(scene: &Scene) -> Self {
        let meta = fs::metadata(&scene.target).expect("target");
        Self {
            root: state::root_of(&scene.target),
            file: (meta.len(), meta.modified().expect("time")),
            journal: fs::read(scene.state_file("journal")).unwrap_or_default(),
            stage_len: fs::metadata(scene.state_file("stage"))
                .ok()
                .map(|meta| meta.len()),
        }
    }
}

fn assert_is_an_answer(run: &Run, story: &str) -> i32 {
    let code = run.code.unwrap_or_else(|| panic!("{story}: a signal"));
    assert!([0, 3, 4].contains(&code), "{story}: {code}\n{}", run.stderr);
    assert!(!run.stderr.contains("panicked"), "{story}\n{}", run.stderr);
    code
}
