//! Goal: with its state kept elsewhere a target is as safe as with its state beside it: whoever
//! does not name that place is led there, or refused. Method: syncs with `--state-dir` that keep
//! their undo, are killed, or ran to their end; then every command without it, or with another one.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use failback_tests::cli::{self, Run};
use failback_tests::qemu::Format::{Dynamic, Raw};
use failback_tests::scene::{Scene, args_of};
use failback_tests::{skip_without, state};

const KEEP_UNDO: &str = "--keep-undo";
/// Kills of a sync with its state elsewhere.
const KILLS: usize = 12;
/// Entries of a journal that says `committing`.
const PAGES_AT_COMMIT: u64 = 3;

/// A scene with its state kept elsewhere.
struct Apart {
    scene: Scene,
    base: PathBuf,
}

impl Apart {
    fn new(seed: u64) -> Self {
        let scene = Scene::new(Raw, seed);
        let base = scene.dir().join("apart");
        Self { scene, base }
    }

    /// A proven new disk with its undo.
    fn kept(seed: u64) -> Self {
        let apart = Self::new(seed);
        let run = apart.run("sync", &apart.base, &[KEEP_UNDO]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        apart
    }

    fn run(&self, command: &str, base: &Path, more: &[&str]) -> Run {
        let more = [&["--state-dir", text(base)], more].concat();
        match command {
            "sync" => self.scene.sync(&more),
            _ => cli::failback(args_of(command, &[&self.scene.target], &more)),
        }
    }

    fn marker(&self) -> PathBuf {
        self.scene.state_file("elsewhere")
    }

    /// All commands that work on a target are refused with these words, here and with another
    /// state directory; the target is as it was.
    fn assert_refused_elsewhere(&self, words: &str) {
        let other = self.scene.dir().join("other");
        let before = fs::read(&self.scene.target).expect("target");
        let none = ["sync", "recover", "rollback", "commit"].map(|command| match command {
            "sync" => self.scene.sync(&[]),
            _ => self.scene.end_by(command),
        });
        let with_other =
            ["sync", "recover", "rollback", "commit"].map(|command| self.run(command, &other, &[]));
        for run in none.iter().chain(&with_other) {
            assert_eq!(run.code, Some(3), "{}", run.stderr);
            assert!(run.stderr.contains(words), "{}", run.stderr);
        }
        assert_eq!(fs::read(&self.scene.target).expect("target"), before);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_job_that_is_not_over_is_not_passed_over() {
    skip_without!("qemu-img");
    let apart = Apart::kept(70);

    apart.assert_refused_elsewhere(text(&apart.base));

    let look = state::look(&apart.scene.target);
    assert_eq!(look.name(), "new_verified");
    assert!(state::warnings(&apart.scene.target)[0].contains(text(&apart.base)));
    let run = apart.run("rollback", &apart.base, &[]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    apart.scene.assert_old("rolled back");
    assert!(!apart.marker().exists());
    apart.scene.assert_ends_equal("the job elsewhere is over");
}

#[test]
fn a_job_that_is_over_leaves_no_marker() {
    skip_without!("qemu-img");
    for more in [&[][..], &["--apply", "in-place"], &["--no-undo"]] {
        let apart = Apart::new(71);
        let run = apart.run("sync", &apart.base, more);
        assert_eq!(run.code, Some(0), "{more:?}: {}", run.stderr);
        assert!(!apart.marker().exists(), "{more:?}");
        apart.scene.assert_new("synced");
    }
    let apart = Apart::kept(72);
    assert!(apart.marker().exists());
    assert_eq!(apart.run("commit", &apart.base, &[]).code, Some(0));
    assert!(!apart.marker().exists());
}

#[test]
fn a_stale_marker_goes() {
    skip_without!("qemu-img");
    let apart = Apart::kept(73);
    let bytes = fs::read(apart.marker()).expect("marker");
    assert_eq!(apart.run("commit", &apart.base, &[]).code, Some(0));
    fs::write(apart.marker(), bytes).expect("marker");

    assert_eq!(state::look(&apart.scene.target).name(), "none");
    let _ = apart.scene.sync(&[]).exits(0);

    apart.scene.assert_new("accepted before");
    assert!(!apart.marker().exists());
}

#[test]
fn a_state_that_is_gone_is_told_and_one_that_moved_is_taken() {
    skip_without!("qemu-img");
    let apart = Apart::kept(74);
    let moved = apart.scene.dir().join("moved");
    fs::rename(&apart.base, &moved).expect("move");

    apart.assert_refused_elsewhere("gone");
    let info = cli::failback(args_of("info", &[&apart.scene.target], &[]));
    assert_eq!(info.code, Some(3), "{}", info.stderr);

    let run = apart.run("rollback", &moved, &[]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    apart.scene.assert_old("rolled back");
    apart.scene.assert_ends_equal("the moved job is over");
}

#[test]
fn a_rotted_marker_is_damage() {
    skip_without!("qemu-img");
    let apart = Apart::kept(75);
    fs::write(apart.marker(), "{}").expect("marker");

    let runs = ["recover", "rollback", "commit"].map(|command| apart.scene.end_by(command));

    let codes = runs.map(|run| run.code);
    assert_eq!(codes, [Some(4); 3]);
    assert_eq!(apart.scene.sync(&[]).code, Some(4));
}

#[test]
fn a_job_in_the_default_place_is_not_passed_over() {
    skip_without!("qemu-img");
    let apart = Apart::new(76);
    let _ = apart.scene.sync(&[KEEP_UNDO]).exits(0);

    for command in ["sync", "recover", "rollback", "commit"] {
        let run = apart.run(command, &apart.base, &[]);
        assert_eq!(run.code, Some(3), "{}", run.stderr);
        assert!(run.stderr.contains(".failback"), "{}", run.stderr);
    }

    // The default place by its name is the default place.
    let run = apart.run("rollback", &apart.scene.dir().join(".failback"), &[]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    apart.scene.assert_old("rolled back");
}

#[test]
fn a_sync_that_is_killed_in_its_apply_leads_to_its_state() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 77);
    let base = scene.dir().join("apart");
    let apart = Apart { scene, base };
    let mut refused = 0;
    for kill in 0..KILLS {
        apart.scene.reset();
        // It may be missing.
        let _ = fs::remove_dir_all(&apart.base);
        let more = ["--state-dir", text(&apart.base)];
        let mut run = cli::start(apart.scene.sync_args(&more));
        while pages(&apart) < PAGES_AT_COMMIT && !run.has_ended() {
            thread::sleep(Duration::from_micros(50));
        }
        thread::sleep(Duration::from_millis(kill as u64));
        run.kill();
        run.wait();
        let look = apart.scene.look("killed in its apply");
        if ["committing", "new_unverified", "new_verified"].contains(&look.name()) {
            apart.assert_refused_elsewhere(text(&apart.base));
            refused += 1;
        }
        let run = apart.run("sync", &apart.base, &[]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        apart.scene.assert_new("finished from its state");
        assert!(!apart.marker().exists());
    }
    assert!(refused > 0, "never killed in its apply");
}

fn pages(apart: &Apart) -> u64 {
    let journal = state::directory_below(&apart.base, &apart.scene.target)
        .and_then(|directory| fs::metadata(directory.join("journal")).ok());
    journal.map_or(0, |meta| meta.len() / state::PAGE_LEN)
}
