//! Goal: a sync that was cut off goes on where it was, whatever changed meanwhile; what was applied
//! can be undone or accepted, once. Method: syncs killed while they stage; foreign writers between
//! two runs; file systems that are full; roots of known contents.
#![cfg(unix)]

use std::fs;

use failback_tests::agent::{Agent, Via};
use failback_tests::cli::{self, Run};
use failback_tests::disk::PAGE_LEN;
use failback_tests::place::{self, Mount};
use failback_tests::qemu::Format::{self, Dynamic, Fixed, Raw, VhdDynamic};
use failback_tests::report::count;
use failback_tests::scene::Scene;
use failback_tests::{disk, kill, qemu, skip_without, state, tools};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Enough that a good part is staged, old bytes included, and a good part is not.
const CUT_AT: u64 = 12 * MIB;
/// What at most is sent again.
const WINDOW: u64 = 16 * MIB;
/// Blocks of the scene that do not travel whole: zeros and changed pages.
const LIGHT_BLOCKS: u64 = 12;
/// Where the first block is that becomes another one.
const FIRST_NEW_BLOCK: u64 = 8 * MIB;

#[test]
fn a_cut_sync_sends_only_what_is_missing() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 40);
    let whole = scene.sync(&["--json"]).exits(0).json();
    kill::cut_when_staged(&scene, CUT_AT, &[]);

    let rest = scene.assert_ends_equal("cut").json();

    let resumed = count(&rest, "/blocks/resumed");
    let all = count(&whole, "/blocks/differing");
    assert!(has_reason(&rest, "resumed") && resumed > 0, "{rest}");
    assert_eq!(resumed + count(&rest, "/blocks/differing"), all, "{rest}");
    let staged = resumed.saturating_sub(LIGHT_BLOCKS) * MIB;
    let missing = count(&whole, "/bytes/sent") - staged;
    assert!(count(&rest, "/bytes/sent") <= missing + WINDOW, "{rest}");
    assert!(
        count(&rest, "/bytes/sent") < count(&whole, "/bytes/sent"),
        "{rest}"
    );
}

#[test]
fn a_source_that_changed_meanwhile_is_what_the_target_becomes() {
    skip_without!("qemu-img");
    let mut scene = Scene::new(Dynamic(1), 41);
    kill::cut_when_staged(&scene, CUT_AT, &[]);
    // Staged blocks change, one becomes what the target has, others come to it.
    disk::write_changes(&scene.source, &disk::changes(64 * MIB, 60, 5));
    scene.new_root = state::root_of(&scene.source);

    let rest = scene.assert_ends_equal("source changed").json();

    assert!(has_reason(&rest, "source_changed"), "{rest}");
    assert!(has_reason(&rest, "resumed"), "{rest}");
}

#[test]
fn a_source_that_became_the_target_leaves_nothing_to_do() {
    skip_without!("qemu-img");
    let mut scene = Scene::new(Raw, 42);
    kill::cut_when_staged(&scene, CUT_AT, &[]);
    fs::copy(&scene.template, &scene.source).expect("the old disk as source");
    scene.new_root = scene.old_root.clone();

    let rest = scene.assert_ends_equal("source is the target").json();

    assert_eq!(count(&rest, "/bytes/written"), 0, "{rest}");
}

#[test]
fn a_target_that_changed_meanwhile_is_compared_again() {
    skip_without!("qemu-img", "qemu-io");
    [Raw, Dynamic(1)].into_iter().for_each(|format| {
        let scene = Scene::new(format, 43);
        kill::cut_when_staged(&scene, CUT_AT, &[]);
        let writes = ["write -P 7 9M 64k", "write -P 9 50M 64k"];
        qemu::io(&scene.target, format, &writes.map(str::to_owned));

        let rest = scene.assert_ends_equal("target changed").json();

        assert!(has_reason(&rest, "target_changed"), "{rest}");
        assert_eq!(count(&rest, "/blocks/resumed"), 0, "{rest}");
    });
}

#[test]
fn a_target_that_changed_after_it_was_staged_is_not_committed_to() {
    skip_without!("qemu-img", "qemu-io");
    let scene = Scene::new(Raw, 44);
    kill::cut_when_sealed(&scene, &[]);
    qemu::io(&scene.target, Raw, &["write -P 7 9M 64k".to_owned()]);
    let changed = state::root_of(&scene.target);

    let run = scene.end_by("recover");

    assert_eq!(run.code, Some(3), "{}", run.stderr);
    assert_eq!(state::root_of(&scene.target), changed);
    scene.assert_ends_equal("target changed after SEAL");
}

#[test]
fn a_sealed_stage_needs_no_source() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 45);
    kill::cut_when_sealed(&scene, &[]);

    let _ = scene.end_by("recover").exits(0);

    scene.assert_new("recovered");
    assert_eq!(scene.look("recovered").name(), "done");
}

#[test]
fn a_stage_can_be_dropped() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 46);
    [false, true].into_iter().for_each(|sealed| {
        cut_at(&scene, sealed);

        let _ = scene.end_by("rollback").exits(0);

        assert_eq!(scene.look("dropped").name(), "aborted");
        assert_refused(&scene, &["rollback", "commit"]);
        scene.assert_ends_equal("dropped");
    });
}

#[test]
fn a_full_disk_keeps_the_state_and_the_old_target() {
    skip_without!("qemu-img", "mkfs.ext4", "root");
    let mount = Mount::in_file("ext4", 320);
    let scene = Scene::new_in(mount.path(), Raw, 47);
    let ballast = mount.fill_up_to(20 * MIB);

    let full = scene.sync(&["--json"]);

    assert_no_space(&scene, &full);
    fs::remove_file(ballast).expect("space again");
    let rest = scene.assert_ends_equal("space again").json();
    assert!(has_reason(&rest, "resumed"), "{rest}");
}

#[test]
fn a_full_disk_of_an_agent_is_named_to_the_caller() {
    skip_without!("qemu-img", "mkfs.ext4", "root");
    let mount = Mount::in_file("ext4", 320);
    let scene = Scene::new_in(mount.path(), Raw, 52);
    let _ballast = mount.fill_up_to(20 * MIB);
    let sockets = tempfile::tempdir().expect("folder of the socket");
    let agent = Agent::start(Via::Unix, sockets.path(), &[scene.grant()]);

    let full = cli::sync(&scene.source, agent.endpoint("disk"));

    drop(agent);
    assert_no_space(&scene, &full);
}

#[test]
fn a_disk_without_room_for_the_target_is_found_before_commit() {
    skip_without!("qemu-img", "mkfs.ext4", "root");
    let mount = Mount::in_file("ext4", 320);
    let scene = Scene::new_in(mount.path(), Dynamic(1), 48);
    // The stage fits, what the target grows by does not.
    let ballast = mount.fill_up_to(60 * MIB);

    let full = scene.sync(&["--json"]);

    assert_no_space(&scene, &full);
    fs::remove_file(ballast).expect("space again");
    scene.assert_ends_equal("space again");
}

#[test]
fn a_target_that_cannot_be_written_is_refused_before_commit() {
    skip_without!("qemu-img", "mkfs.ext4", "chattr", "root");
    let mount = Mount::in_file("ext4", 320);
    let scene = Scene::new_in(mount.path(), Raw, 56);
    let change = |how: &str| tools::run("chattr", [how.as_ref(), scene.target.as_path()]);
    change("+i");
    let at_once = scene.sync(&["--stage", "log"]);
    change("-i");
    kill::cut_when_sealed(&scene, &["--stage", "log"]);
    change("+a");

    let once_staged = scene.end_by("recover");

    let word = scene.look("append only").word;
    change("-a");
    assert_eq!(at_once.code, Some(3), "{}", at_once.stderr);
    assert_eq!(once_staged.code, Some(3), "{}", once_staged.stderr);
    assert_eq!(word.as_deref(), Some("staged"));
    scene.assert_ends_equal("writable again");
}

#[test]
fn an_undo_brings_the_old_disk_back_once() {
    skip_without!("qemu-img");
    undo_formats().for_each(|scene| {
        let _ = scene.sync(&["--keep-undo"]).exits(0);
        assert_eq!(scene.look("kept").name(), "new_verified");
        assert_eq!(scene.sync(&[]).code, Some(3));
        let _ = scene.end_by("recover").exits(0);

        let _ = scene.end_by("rollback").exits(0);

        assert_eq!(scene.look("undone").name(), "old_restored");
        qemu::assert_identical(
            (&scene.target, scene.format),
            (&scene.template, scene.format),
        );
        qemu::assert_clean(&scene.target, scene.format);
        assert_refused(&scene, &["rollback", "commit"]);
        scene.assert_ends_equal("undone");
    });
}

// A new file is another matter: all of the old one stands beside it.
#[test]
fn an_undo_after_the_new_disk_was_used_is_refused() {
    skip_without!("qemu-img", "qemu-io");
    [Raw, Dynamic(1)].into_iter().for_each(|format| {
        let scene = Scene::new(format, 53);
        let _ = scene.sync(&["--keep-undo", "--stage", "log"]).exits(0);
        // Nothing was staged there.
        qemu::io(&scene.target, format, &["write -P 7 60M 64k".to_owned()]);
        let used = state::root_of(&scene.target);

        let run = scene.end_by("rollback");

        assert_eq!(run.code, Some(3), "{}", run.stderr);
        assert_eq!(state::root_of(&scene.target), used);
        let _ = scene.end_by("commit").exits(0);
    });
}

#[test]
fn an_undo_after_the_new_disk_was_only_touched_is_done() {
    skip_without!("qemu-img", "qemu-io");
    [Raw, Dynamic(1)].into_iter().for_each(|format| {
        let scene = Scene::new(format, 54);
        let _ = scene.sync(&["--keep-undo", "--stage", "log"]).exits(0);
        // In a block that is staged whole: its old bytes go over it.
        qemu::io(&scene.target, format, &["write -P 7 9M 64k".to_owned()]);

        let _ = scene.end_by("rollback").exits(0);

        scene.assert_old("touched, undone");
    });
}

#[test]
fn an_undo_after_a_new_file_was_used_drops_what_was_written() {
    skip_without!("qemu-img", "qemu-io");
    let scene = Scene::new(Raw, 55);
    let full = ["--keep-undo", "--strategy", "full", "--stage", "file"];
    let _ = scene.sync(&full).exits(0);
    qemu::io(&scene.target, Raw, &["write -P 7 60M 64k".to_owned()]);

    let _ = scene.end_by("rollback").exits(0);

    scene.assert_old("used, undone");
}

#[test]
fn an_accepted_disk_cannot_be_undone() {
    skip_without!("qemu-img");
    undo_formats().for_each(|scene| {
        let _ = scene.sync(&["--keep-undo"]).exits(0);

        let _ = scene.end_by("commit").exits(0);

        assert_eq!(scene.look("accepted").name(), "done");
        assert!(!scene.state_file("stage").exists());
        assert_refused(&scene, &["rollback", "commit"]);
        qemu::assert_identical((&scene.target, scene.format), (&scene.source, Raw));
    });
}

#[test]
fn what_was_not_read_back_is_not_called_proven() {
    skip_without!("qemu-img");
    let log: &[&str] = &["--stage", "log"];
    let file: &[&str] = &["--stage", "file", "--strategy", "full"];
    [log, file].into_iter().for_each(|how| {
        let scene = Scene::new(Raw, 57);
        let kept = [how, &["--verify", "off", "--keep-undo"]].concat();
        ["commit", "rollback"].into_iter().for_each(|end| {
            scene.reset();
            let _ = scene.sync(&kept).exits(0);
            assert_eq!(scene.look("kept").name(), "new_unverified");
            assert_eq!(scene.sync(how).code, Some(3));
            let _ = scene.end_by("recover").exits(0);
            assert_eq!(scene.look("left").name(), "new_unverified");

            let _ = scene.end_by(end).exits(0);

            let _ = scene.look(end);
        });
        let _ = scene.sync(&[how, &["--verify", "off"]].concat()).exits(0);
        assert_eq!(scene.look("not kept").name(), "done");
    });
}

#[test]
fn without_an_undo_there_is_no_way_back() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 50);
    let _ = scene.sync(&["--no-undo"]).exits(0);

    assert_refused(&scene, &["rollback", "commit"]);

    scene.assert_new("refused");
}

#[test]
fn a_killed_sync_in_place_stays_mixed_until_one_ends() {
    skip_without!("qemu-img");
    let scene = Scene::new(Raw, 51);
    let in_place = ["--apply", "in-place"];
    let is_partly_new = |scene: &Scene| {
        let page_of = |path| place::bytes_at(path, FIRST_NEW_BLOCK, PAGE_LEN);
        page_of(&scene.target) == page_of(&scene.source)
    };
    kill::cut(&scene, "committing", &in_place, is_partly_new);

    // A staged sync that is cut as well, and given up, does not make an old disk of it.
    kill::cut_once(&scene, &[], |scene| scene.state_file("stage").exists());
    assert!(scene.look("cut again").is_mixed);
    scene.end_by("rollback");
    assert!(scene.look("given up").is_mixed);

    scene.assert_ends_equal("in place, cut, given up");
    assert_eq!(scene.look("ended").name(), "done");
}

#[test]
fn a_sync_in_place_leaves_no_stage_behind() {
    skip_without!("qemu-img");
    let scene = Scene::new(Raw, 58);
    kill::cut_when_staged(&scene, CUT_AT, &["--stage", "log"]);

    let run = scene.sync(&["--apply", "in-place", "--json"]).exits(0);

    assert!(has_reason(&run.json(), "options_changed"), "{}", run.stdout);
    assert!(!scene.state_file("stage").exists());
    scene.assert_new("in place");
}

fn undo_formats() -> impl Iterator<Item = Scene> {
    let formats: [Format; 4] = [Raw, Dynamic(1), Fixed, VhdDynamic];
    formats.into_iter().map(|format| Scene::new(format, 49))
}

fn cut_at(scene: &Scene, sealed: bool) {
    match sealed {
        true => kill::cut_when_sealed(scene, &[]),
        false => kill::cut_when_staged(scene, CUT_AT, &[]),
    }
}

fn assert_refused(scene: &Scene, commands: &[&str]) {
    for command in commands {
        let run = scene.end_by(command);
        assert_eq!(run.code, Some(3), "{command}: {}", run.stderr);
    }
}

fn assert_no_space(scene: &Scene, run: &Run) {
    assert_eq!(run.code, Some(6), "{}", run.stderr);
    assert_eq!(run.json()["error"]["kind"], "no_space", "{}", run.stdout);
    assert_eq!(scene.look("full").name(), "staging");
    scene.assert_old("full");
}

fn has_reason(report: &Value, reason: &str) -> bool {
    let reasons = report["reasons"].as_array().expect("reasons");
    reasons.iter().any(|found| found == reason)
}
