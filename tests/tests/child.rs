//! Goal: a child of a VHDX, asked for, takes what changes and is merged into the target, which is
//! old or new or says that it is neither; until it is accepted the old disk comes back; nothing is
//! left over. Method: syncs with `--stage child`, also killed; QEMU and roots as judges.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use failback_tests::cli::{self, Run};
use failback_tests::place;
use failback_tests::qemu::Format::{Dynamic, Fixed, Raw, VhdDynamic};
use failback_tests::report::count;
use failback_tests::scene::{Scene, args_of};
use failback_tests::{disk, kill, qemu, skip_without, state};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const CHILD: [&str; 2] = ["--stage", "child"];
/// Entries of a journal whose last is COMMIT.
const PAGES_AT_COMMIT: u64 = 3;
/// Enough of the copy to see what is not sent again.
const CUT_AT: u64 = 16 * MIB;
const FLUSHED: u64 = 80 * MIB;
/// What is being flushed, what is written meanwhile, and what is under way.
const WINDOW: u64 = 48 * MIB;
/// Length of a disk whose copy takes long enough to be cut.
const LONG: u64 = 192 * MIB;

fn sync(scene: &Scene, more: &[&str]) -> Run {
    scene.sync(&[&CHILD[..], &["--json"], more].concat())
}

fn has_reason(report: &Value, reason: &str) -> bool {
    let reasons = report["reasons"].as_array().expect("reasons");
    reasons.iter().any(|found| found == reason)
}

fn assert_no_images(scene: &Scene) {
    for name in ["child.avhdx", "undo.avhdx", "stage"] {
        assert!(!scene.state_file(name).exists(), "{name} is left over");
    }
}

#[test]
fn a_child_is_merged_into_a_vhdx() {
    skip_without!("qemu-img");
    for (format, more) in [
        (Dynamic(1), &[][..]),
        (Dynamic(32), &["--verify", "full"]),
        (Fixed, &["--no-undo"]),
        (Dynamic(1), &["--strategy", "full"]),
    ] {
        let scene = Scene::new(format, 60);
        let report = sync(&scene, more).exits(0).json();
        assert_eq!(report["stage"], "child", "{report}");
        scene.assert_new("merged");
        assert_eq!(scene.look("merged").name(), "done");
        qemu::assert_identical((&scene.source, Raw), (&scene.target, format));
        qemu::assert_clean(&scene.target, format);
        assert_no_images(&scene);
        // Nothing differs now, and no child is made.
        let again = sync(&scene, &[]).exits(0).json();
        assert_eq!(again["stage"], Value::Null, "{again}");
    }
}

#[test]
fn only_a_vhdx_can_have_a_child_and_only_on_request() {
    skip_without!("qemu-img");
    for format in [Raw, VhdDynamic] {
        let scene = Scene::new(format, 61);
        let refused = sync(&scene, &[]).exits(3).json();
        let message = refused["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("only a VHDX"), "{refused}");
        scene.assert_old("refused");
    }
    let scene = Scene::new(Dynamic(1), 61);
    let report = scene.assert_ends_equal("plain").json();
    assert_ne!(report["stage"], "child", "{report}");
}

#[test]
fn the_old_disk_comes_back_until_the_new_one_is_accepted() {
    skip_without!("qemu-img");
    for format in [Dynamic(1), Fixed] {
        let scene = Scene::new(format, 62);
        let _ = sync(&scene, &["--keep-undo"]).exits(0);
        assert_eq!(scene.look("kept").name(), "new_verified");
        for more in [&CHILD[..], &[], &["--apply", "in-place"]] {
            assert_eq!(scene.sync(more).code, Some(3), "{more:?}");
        }
        let _ = scene.end_by("recover").exits(0);

        let _ = scene.end_by("rollback").exits(0);

        assert_eq!(scene.look("undone").name(), "old_restored");
        qemu::assert_identical((&scene.target, format), (&scene.template, format));
        qemu::assert_clean(&scene.target, format);
        assert_no_images(&scene);
        assert_eq!(scene.end_by("rollback").code, Some(3));
        let _ = sync(&scene, &["--keep-undo"]).exits(0);
        let _ = scene.end_by("commit").exits(0);
        assert_eq!(scene.look("accepted").name(), "done");
        assert_no_images(&scene);
        assert_eq!(scene.end_by("rollback").code, Some(3));
    }
}

#[test]
fn a_target_that_was_used_since_is_not_rolled_back() {
    skip_without!("qemu-img", "qemu-io");
    let scene = Scene::new(Dynamic(1), 63);
    let _ = sync(&scene, &["--keep-undo"]).exits(0);
    let holder = place::Holder::qemu(&scene.target, scene.format);
    assert_eq!(scene.end_by("rollback").code, Some(3));
    drop(holder);
    qemu::io(
        &scene.target,
        scene.format,
        &["write -P 7 9M 64k".to_owned()],
    );
    let used = state::root_of(&scene.target);

    let refused = scene.end_by("rollback");

    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert_eq!(state::root_of(&scene.target), used);
    let _ = scene.end_by("commit").exits(0);
    assert_no_images(&scene);
}

#[test]
fn what_was_cut_at_seal_or_commit_ends_without_its_source() {
    skip_without!("qemu-img");
    for word in ["staged", "committing"] {
        for command in ["recover", "rollback"] {
            let scene = Scene::new(Dynamic(1), 64);
            match word {
                "staged" => kill::cut_when_sealed(&scene, &CHILD),
                _ => kill::cut(&scene, word, &CHILD, |scene| {
                    state::journal_pages(&scene.target) >= PAGES_AT_COMMIT
                }),
            }
            assert_eq!(scene.look(word).is_mixed, word == "committing");

            let _ = scene.end_by(command).exits(0);

            match command {
                "recover" => scene.assert_new(word),
                _ => scene.assert_old(word),
            }
            assert!(!scene.look(command).is_mixed, "{word}");
            qemu::assert_clean(&scene.target, scene.format);
            assert_no_images(&scene);
        }
    }
}

// Goal: a child that rotted after SEAL is not merged. Method: other bytes in the middle of it.
#[test]
fn a_damaged_child_is_refused() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 68);
    kill::cut_when_sealed(&scene, &CHILD);
    place::scribble(&scene.state_file("child.avhdx"), 12 * MIB, &[7; 512]);

    let refused = scene.end_by("recover");

    assert_eq!(refused.code, Some(4), "{}", refused.stderr);
    scene.assert_old("refused");
    let _ = scene.end_by("rollback").exits(0);
    assert_no_images(&scene);
    scene.assert_ends_equal("dropped");
}

/// Cuts a sync whose child holds so much.
fn cut_child(scene: &Scene) {
    kill::cut(scene, "staging", &CHILD, |scene| {
        let child = fs::metadata(scene.state_file("child.avhdx"));
        child.is_ok_and(|child| child.len() >= CUT_AT + 8 * MIB)
    });
}

/// A scene with so much more to copy that a cut leaves more than what is not flushed.
fn long_scene() -> Scene {
    let mut scene = Scene::new(Dynamic(1), 65);
    let source = fs::OpenOptions::new().write(true).open(&scene.source);
    let source = source.expect("source");
    let mut rng = StdRng::seed_from_u64(65);
    let mut bytes = vec![0; usize::try_from(MIB).expect("small")];
    for at in 64..LONG / MIB {
        rng.fill_bytes(&mut bytes);
        source.write_all_at(&bytes, at * MIB).expect("more data");
    }
    fs::remove_file(&scene.template).expect("short template");
    qemu::create(&scene.template, scene.format, LONG);
    scene.reset();
    scene.old_root = state::root_of(&scene.target);
    scene.new_root = state::root_of(&scene.source);
    scene
}

/// Whether the child holds enough to be cut: room that was only made ahead does not count.
fn has_enough(scene: &Scene) -> bool {
    let child = fs::metadata(scene.state_file("child.avhdx"));
    child.is_ok_and(|child| child.blocks() * 512 >= FLUSHED)
}

#[test]
fn a_child_that_was_cut_off_goes_on() {
    skip_without!("qemu-img");
    let scene = long_scene();
    let whole = sync(&scene, &[]).exits(0).json();
    kill::cut(&scene, "staging", &CHILD, has_enough);
    scene.assert_old("cut");

    let rest = sync(&scene, &[]).exits(0).json();

    scene.assert_new("gone on");
    assert!(has_reason(&rest, "resumed"), "{rest}");
    let (all, sent) = (count(&whole, "/bytes/sent"), count(&rest, "/bytes/sent"));
    assert!(sent <= all - FLUSHED + WINDOW, "{sent} of {all}");
    assert_no_images(&scene);
}

#[test]
fn a_sync_of_another_kind_drops_the_child_and_a_child_drops_its_stage() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 66);
    cut_child(&scene);
    let plain = scene.assert_ends_equal("plain").json();
    assert!(has_reason(&plain, "options_changed"), "{plain}");
    assert_no_images(&scene);
    kill::cut_when_staged(&scene, CUT_AT, &["--stage", "log"]);
    let child = sync(&scene, &[]).exits(0).json();
    assert!(has_reason(&child, "options_changed"), "{child}");
    assert_no_images(&scene);
    cut_child(&scene);
    let _ = scene.end_by("rollback").exits(0);
    assert_eq!(scene.look("dropped").name(), "aborted");
    assert_no_images(&scene);
}

#[test]
fn a_differencing_target_gets_a_child_of_its_own() {
    skip_without!("qemu-img");
    let dir = tempfile::tempdir().expect("temporary folder");
    let [base, top, old, new] =
        place::paths(dir.path(), ["base.vhdx", "top.avhdx", "old.raw", "new.raw"]);
    disk::write_raw(&old, 64 * MIB, 40, 7);
    fs::copy(&old, &new).expect("copy");
    disk::write_changes(&new, &disk::changes(64 * MIB, 60, 9));
    qemu::convert(&old, &base, Dynamic(1));
    let parent = ["--parent", base.to_str().expect("UTF-8")];
    let _ = cli::failback(args_of("create", &[&top], &parent)).exits(0);
    let before = fs::read(&base).expect("base");
    let options = [
        "--stage",
        "child",
        "--keep-undo",
        "--follow-parents",
        "--json",
    ];
    let run = || cli::failback(args_of("sync", &[&new, &top], &options)).exits(0);
    let root = || root_over(&top);
    let (old_root, new_root) = (root(), state::root_of(&new));

    assert_eq!(run().json()["stage"], "child");
    assert_eq!(root(), new_root);
    let _ = cli::failback(args_of("rollback", &[&top], &[])).exits(0);
    assert_eq!(root(), old_root);
    let _ = run();
    let _ = cli::failback(args_of("commit", &[&top], &[])).exits(0);

    assert_eq!(root(), new_root);
    assert_eq!(fs::read(&base).expect("base"), before);
}

fn root_over(image: &Path) -> String {
    let map = args_of("map", &[image], &["--follow-parents", "--json"]);
    let report = cli::failback(map).exits(0).json();
    report["root"].as_str().expect("a root").to_owned()
}

#[test]
fn a_target_without_room_for_the_merge_is_left_alone() {
    skip_without!("qemu-img", "root");
    let mount = place::Mount::in_file("ext4", 512);
    let states = tempfile::tempdir().expect("temporary folder");
    let below = states.path().to_str().expect("UTF-8");
    let scene = Scene::new_in(mount.path(), Dynamic(1), 67);
    let ballast = mount.fill_up_to(20 * MIB);

    let full = sync(&scene, &["--state-dir", below]).exits(6).json();

    assert_eq!(full["error"]["kind"], "no_space", "{full}");
    scene.assert_old("full");
    fs::remove_file(ballast).expect("space again");
    let rest = sync(&scene, &["--state-dir", below]).exits(0).json();
    assert!(has_reason(&rest, "resumed"), "{rest}");
    scene.assert_new("space again");
}
