//! Goal: a new file takes the target's place whole, with all that the old one had but its bytes,
//! and only where that can be; a first sync and a full copy that were cut off go on where they
//! were; until it is accepted the old disk comes back. Method: XFS, btrfs and ext4 in files; syncs
//! killed while they copy, at SEAL and at COMMIT; QEMU and roots as judges.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use failback_tests::agent::{Agent, Via};
use failback_tests::cli::{self, Run};
use failback_tests::place::{self, Mount};
use failback_tests::qemu::Format::{self, Dynamic, Raw};
use failback_tests::report::count;
use failback_tests::scene::{Scene, args_of, copy};
use failback_tests::{kill, qemu, skip_without, state, tools};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Enough of the copy to see what is not sent again.
const CUT_AT: u64 = 96 * MIB;
/// What is being flushed, what is written meanwhile, and what is under way.
const WINDOW: u64 = 48 * MIB;
/// Length of a disk whose copy takes long enough to be cut.
const LONG: u64 = 224 * MIB;

fn stage_of(report: &Value) -> &str {
    report["stage"].as_str().unwrap_or("none")
}

fn has_reason(report: &Value, reason: &str) -> bool {
    let reasons = report["reasons"].as_array().expect("reasons");
    reasons.iter().any(|found| found == reason)
}

#[test]
fn each_file_system_gets_the_container_it_can_have() {
    skip_without!("qemu-img", "mkfs.xfs", "mkfs.btrfs");
    for (kind, delta) in [("xfs", "clone"), ("btrfs", "clone"), ("ext4", "log")] {
        let mount = Mount::in_file(kind, 512);
        for format in [Raw, Dynamic(1)] {
            let scene = Scene::new_in(mount.path(), format, 3);
            let report = scene.assert_ends_equal(kind).json();
            assert_eq!(stage_of(&report), delta, "{kind}: {report}");
            let is_second_best = has_reason(&report, "no_clone");
            assert_eq!(is_second_best, delta == "log", "{kind}: {report}");
            scene.reset();
            let full = scene
                .sync(&["--json", "--strategy", "full"])
                .exits(0)
                .json();
            assert_eq!(stage_of(&full), "file", "{kind}: {full}");
            assert!(!has_reason(&full, "no_clone"), "{kind}: {full}");
            assert_eq!(count(&full, "/bytes/target_read"), 0, "{kind}: {full}");
            scene.assert_new(kind);
            qemu::assert_identical((&scene.source, Raw), (&scene.target, format));
            // Nothing differs now, and nothing is replaced.
            let inode = fs::metadata(&scene.target).expect("target").ino();
            let again = scene.sync(&["--json"]).exits(0).json();
            assert_eq!(stage_of(&again), "none", "{kind}: {again}");
            assert!(!has_reason(&again, "no_clone"), "{kind}: {again}");
            assert_eq!(fs::metadata(&scene.target).expect("target").ino(), inode);
        }
    }
}

// Goal: what is the old file's stays the target's. Method: six attributes, each on a clone and on a
// new file, on XFS and btrfs.
#[test]
fn attributes_of_the_old_file_are_kept() {
    skip_without!("qemu-img", "mkfs.xfs", "mkfs.btrfs", "setfattr", "setfacl");
    for kind in ["xfs", "btrfs"] {
        let mount = Mount::in_file(kind, 512);
        for more in [&["--json"][..], &["--json", "--strategy", "full"]] {
            let scene = Scene::new_in(mount.path(), Raw, 4);
            let target = scene.target.to_str().expect("UTF-8");
            fs::set_permissions(&scene.target, fs::Permissions::from_mode(0o640)).expect("mode");
            chown(&scene.target, Some(1234), Some(4321)).expect("owner");
            tools::run("setfattr", ["-n", "user.note", "-v", "kept", target]);
            tools::run("setfattr", ["-n", "user.empty", target]);
            tools::run("setfacl", ["-m", "u:99:r", target]);
            tools::run("chattr", ["+A", target]);
            let before = attributes(target);

            let report = scene.sync(more).exits(0).json();

            assert_ne!(stage_of(&report), "log", "{kind}: {report}");
            assert_eq!(attributes(target), before, "{kind} {more:?}");
            scene.assert_new(kind);
        }
    }
}

fn attributes(path: &str) -> String {
    let meta = fs::metadata(path).expect("target");
    let flags = tools::run("lsattr", [path]);
    format!(
        "{:o} {} {}\n{}{}{}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        tools::run("getfattr", ["-d", "-m", "-", "--absolute-names", path]),
        tools::run("getfacl", ["-n", "--absolute-names", path]),
        flags.split_whitespace().next().unwrap_or_default(),
    )
}

#[test]
fn a_file_with_several_names_is_written_to_and_not_replaced() {
    skip_without!("qemu-img", "mkfs.xfs");
    let mount = Mount::in_file("xfs", 512);
    let scene = Scene::new_in(mount.path(), Raw, 5);
    let other = scene.dir().join("other-name.raw");
    fs::hard_link(&scene.target, &other).expect("second name");

    for container in ["clone", "file"] {
        let strategy = if container == "file" { "full" } else { "delta" };
        let forced = scene.sync(&["--stage", container, "--strategy", strategy]);
        assert_eq!(forced.code, Some(3), "{}", forced.stderr);
        scene.assert_old("refused");
    }
    let report = scene.sync(&["--json"]).exits(0).json();

    assert_eq!(stage_of(&report), "log", "{report}");
    assert!(has_reason(&report, "target_not_replaceable"), "{report}");
    assert_eq!(state::root_of(&other), scene.new_root);
}

#[test]
fn where_no_other_file_can_stand_the_target_is_written_to() {
    skip_without!("qemu-img", "mkfs.ext4", "chattr");
    let mount = Mount::in_file("ext4", 512);
    let scene = Scene::new_in(mount.path(), Raw, 5);
    let (closed, state) = (scene.dir().join("closed"), scene.dir().join("state"));
    fs::create_dir(&closed).expect("folder");
    let target = closed.join("target.raw");
    copy(&scene.target, &target);
    tools::run("chattr", ["+i".as_ref(), closed.as_path()]);

    let mut args = args_of("sync", &[&scene.source, &target], &["--json"]);
    args.extend(args_of("--state-dir", &[&state], &[]));
    let run = cli::failback(args);
    tools::run("chattr", ["-i".as_ref(), closed.as_path()]);

    let report = run.exits(0).json();
    assert_eq!(stage_of(&report), "log", "{report}");
    assert!(has_reason(&report, "no_new_file"), "{report}");
    assert_eq!(state::root_of(&target), scene.new_root);
}

#[test]
fn a_mount_point_is_written_to_and_not_replaced() {
    skip_without!("qemu-img");
    let scene = Scene::new(Raw, 6);
    let behind = scene.dir().join("behind.raw");
    copy(&scene.target, &behind);
    tools::run(
        "mount",
        ["--bind".as_ref(), behind.as_path(), &scene.target],
    );

    let report = scene.sync(&["--json", "--strategy", "full"]);
    let root = state::root_of(&scene.target);
    tools::run("umount", [&scene.target]);

    let report = report.exits(0).json();
    assert_eq!(stage_of(&report), "log", "{report}");
    assert!(has_reason(&report, "target_not_replaceable"), "{report}");
    assert_eq!(root, scene.new_root);
    assert_eq!(state::root_of(&behind), scene.new_root);
}

#[test]
fn a_link_to_the_target_stays_a_link() {
    skip_without!("qemu-img");
    let scene = Scene::new(Raw, 7);
    let link = scene.dir().join("link.raw");
    std::os::unix::fs::symlink(&scene.target, &link).expect("link");

    let full = ["--json", "--strategy", "full"];
    let report = cli::failback(args_of("sync", &[&scene.source, &link], &full));

    assert_eq!(stage_of(&report.exits(0).json()), "file");
    assert!(fs::symlink_metadata(&link).expect("link").is_symlink());
    scene.assert_new("through a link");
}

#[test]
fn a_replaced_disk_comes_back_until_it_is_accepted() {
    skip_without!("qemu-img", "mkfs.xfs");
    let mount = Mount::in_file("xfs", 768);
    for (format, more) in [
        (Raw, &["--keep-undo"][..]),
        (Dynamic(1), &["--keep-undo"]),
        (Dynamic(1), &["--keep-undo", "--strategy", "full"]),
    ] {
        let scene = Scene::new_in(mount.path(), format, 8);
        let _ = scene.sync(more).exits(0);
        scene.assert_new("kept");
        let refused = scene.sync(&[]);
        assert_eq!(refused.code, Some(3), "{}", refused.stderr);

        let _ = scene.end_by("rollback").exits(0);

        scene.assert_old("rolled back");
        assert_eq!(scene.look("rolled back").name(), "old_restored");
        assert!(!scene.new_file().exists());
        let _ = scene.sync(more).exits(0);
        let _ = scene.end_by("commit").exits(0);
        assert!(!scene.new_file().exists());
        scene.assert_new("accepted");
        assert_eq!(scene.end_by("rollback").code, Some(3));
    }
}

// Goal: a roll-back that cannot bring the old disk back does not begin: the new one stays, with its
// word, and can be accepted. Method: the kept old file is changed, or removed, by hand.
#[test]
fn an_old_file_that_was_changed_is_not_put_back() {
    skip_without!("qemu-img", "mkfs.xfs");
    let mount = Mount::in_file("xfs", 512);
    let file = ["--keep-undo", "--stage", "file", "--strategy", "full"];
    let clone = ["--keep-undo", "--stage", "clone"];
    let change = |old: &Path| place::scribble(old, 40 * MIB, b"#");
    let remove = |old: &Path| fs::remove_file(old).expect("old file");
    let harms: [fn(&Path); 2] = [change, remove];
    for (way, format) in [(&file[..], Raw), (&clone, Raw), (&clone, Dynamic(1))] {
        for harm in harms {
            let scene = Scene::new_in(mount.path(), format, 16);
            let _ = scene.sync(way).exits(0);
            harm(&scene.new_file());

            let _ = scene.end_by("rollback").exits(3);

            let look = scene.look("refused");
            assert_eq!((look.name(), look.is_mixed), ("new_verified", false));
            scene.assert_new("refused");
            let _ = scene.end_by("rollback").exits(3);
            let _ = scene.end_by("commit").exits(0);
            scene.assert_new("accepted");
            scene.assert_ends_equal("accepted");
        }
    }
}

#[test]
fn a_replacement_that_is_in_use_is_not_rolled_back() {
    skip_without!("qemu-img", "qemu-io");
    let scene = Scene::new(Raw, 9);
    let _ = scene.sync(&["--strategy", "full", "--keep-undo"]).exits(0);
    let holder = place::Holder::qemu(&scene.target, Raw);

    let refused = scene.end_by("rollback");

    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    drop(holder);
    let _ = scene.end_by("rollback").exits(0);
    scene.assert_old("rolled back");
}

/// A scene with so much more to copy that a cut leaves more than what is not flushed.
fn long_scene(format: Format, seed: u64) -> Scene {
    let mut scene = Scene::new(format, seed);
    let source = fs::OpenOptions::new().write(true).open(&scene.source);
    let source = source.expect("source");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut bytes = vec![0; usize::try_from(MIB).expect("small")];
    for at in 64..LONG / MIB {
        rng.fill_bytes(&mut bytes);
        source.write_all_at(&bytes, at * MIB).expect("more data");
    }
    fs::remove_file(&scene.template).expect("short template");
    qemu::create(&scene.template, format, LONG);
    scene.reset();
    scene.old_root = state::root_of(&scene.target);
    scene.new_root = state::root_of(&scene.source);
    scene
}

/// Kills a full copy when the new file holds so much.
fn cut_full(scene: &Scene, more: &[&str]) {
    kill::cut(scene, "staging", more, has_enough);
}

/// Whether the new file holds enough to be cut: room that was only made ahead does not count.
fn has_enough(scene: &Scene) -> bool {
    let Ok(file) = fs::File::open(scene.new_file()) else {
        return false;
    };
    let len = file.metadata().expect("new file").len();
    let mut bytes = [0; 4096];
    let mut is_written =
        |at: &u64| file.read_at(&mut bytes, at * MIB).is_ok() && bytes.iter().any(|b| *b != 0);
    (0..len / MIB).filter(|at| is_written(at)).count() as u64 * MIB >= CUT_AT
}

#[test]
fn a_full_copy_that_was_cut_off_goes_on() {
    skip_without!("qemu-img");
    for format in [Raw, Dynamic(1)] {
        let scene = long_scene(format, 10);
        let full = ["--json", "--strategy", "full"];
        let whole = scene.sync(&full).exits(0).json();
        cut_full(&scene, &full);
        scene.assert_old("cut");

        let rest = scene.sync(&full).exits(0).json();

        scene.assert_new("gone on");
        assert!(has_reason(&rest, "resumed"), "{rest}");
        assert_eq!(stage_of(&rest), "file", "{rest}");
        let (all, sent) = (count(&whole, "/bytes/sent"), count(&rest, "/bytes/sent"));
        assert!(
            sent <= (all - CUT_AT) + WINDOW && sent < all,
            "{sent} of {all}"
        );
        assert!(!scene.new_file().exists());
    }
}

#[test]
fn a_full_copy_begins_anew_where_it_does_not_fit() {
    skip_without!("qemu-img", "qemu-io");
    let scene = long_scene(Raw, 11);
    let full = ["--json", "--strategy", "full"];
    cut_full(&scene, &full);
    qemu::io(&scene.target, Raw, &["write -P 7 9M 64k".to_owned()]);

    let rest = scene.sync(&full).exits(0).json();

    scene.assert_new("anew");
    assert!(has_reason(&rest, "target_changed"), "{rest}");
    cut_full(&scene, &full);
    let delta = scene.assert_ends_equal("another way").json();
    assert!(has_reason(&delta, "options_changed"), "{delta}");
}

#[test]
fn a_first_sync_that_was_cut_off_goes_on() {
    skip_without!("qemu-img");
    for via in [None, Some(Via::Tcp)] {
        for suffix in ["raw", "vhdx"] {
            let scene = long_scene(Raw, 12);
            let new = scene.dir().join(format!("new.{suffix}"));
            let grant = format!("disk={}:rw,max=1G", new.display());
            let whole = first_sync(&scene, &new, via, &grant);
            fs::remove_file(&new).expect("made");
            for _ in 0..50 {
                cut_first_sync(&scene, &new, via, &grant);
                assert!(!new.exists(), "a name before it is whole");
                if scene.new_file().exists() {
                    break;
                }
            }

            let rest = first_sync(&scene, &new, via, &grant);

            assert_eq!(state::root_of(&new), scene.new_root);
            assert!(has_reason(&rest, "resumed"), "{rest}");
            assert!(has_reason(&rest, "target_missing"), "{rest}");
            let (all, sent) = (count(&whole, "/bytes/sent"), count(&rest, "/bytes/sent"));
            assert!(sent <= all - CUT_AT + WINDOW, "{sent} of {all}");
            assert!(!scene.new_file().exists());
        }
    }
}

fn first_sync(scene: &Scene, new: &Path, via: Option<Via>, grant: &str) -> Value {
    let run = |target: &str| -> Run {
        let source = scene.source.to_str().expect("UTF-8");
        cli::failback(["sync", source, target, "--json"])
    };
    match via {
        None => run(new.to_str().expect("UTF-8")).exits(0).json(),
        Some(via) => {
            let agent = Agent::start(via, scene.dir(), &[grant]);
            run(&agent.endpoint("disk")).exits(0).json()
        }
    }
}

fn cut_first_sync(scene: &Scene, new: &Path, via: Option<Via>, grant: &str) {
    let source = scene.source.to_str().expect("UTF-8");
    let agent = via.map(|via| Agent::start(via, scene.dir(), &[grant]));
    let target = match &agent {
        Some(agent) => agent.endpoint("disk"),
        None => new.to_str().expect("UTF-8").to_owned(),
    };
    let mut run = cli::start(["sync", source, &target]);
    while !has_enough(scene) && !run.has_ended() {
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    match agent {
        Some(mut agent) => agent.kill(),
        None => run.kill(),
    }
    run.wait();
    // It may have come to its end before it was killed.
    let _ = fs::remove_file(new);
}

#[test]
fn a_first_sync_without_room_goes_on_once_there_is_some() {
    skip_without!("qemu-img", "root");
    let mount = Mount::in_file("ext4", 512);
    let scene = long_scene(Raw, 16);
    let new = mount.path().join("new.raw");
    let filler = mount.fill_up_to(CUT_AT);
    let args = ["sync".as_ref(), scene.source.as_os_str(), new.as_os_str()];
    let args = args.into_iter().chain(["--json".as_ref()]);

    let full = cli::failback(args.clone()).exits(6).json();
    fs::remove_file(filler).expect("filler");
    let rest = cli::failback(args).exits(0).json();

    assert_eq!(full["error"]["kind"], "no_space", "{full}");
    assert!(has_reason(&rest, "resumed"), "{rest}");
    assert!(count(&rest, "/bytes/sent") < count(&rest, "/bytes/source_read"));
    assert_eq!(state::root_of(&new), scene.new_root);
}

#[test]
fn a_first_sync_of_another_disk_begins_anew() {
    skip_without!("qemu-img");
    let scene = long_scene(Raw, 13);
    let new = scene.dir().join("new.raw");
    let grant = String::new();
    while !scene.new_file().exists() {
        cut_first_sync(&scene, &new, None, &grant);
    }
    let longer = fs::OpenOptions::new().write(true).open(&scene.source);
    longer
        .and_then(|file| file.set_len(LONG + MIB))
        .expect("longer");

    let report = first_sync(&scene, &new, None, &grant);

    assert_eq!(state::root_of(&new), state::root_of(&scene.source));
    assert!(!has_reason(&report, "resumed"), "{report}");
    assert!(!scene.new_file().exists());
}

// Goal: whatever is there at SEAL and at COMMIT is brought to its end, or back, from the state
// alone. Method: syncs killed at these words; recover and rollback.
#[test]
fn a_replacement_that_was_cut_off_ends_without_its_source() {
    skip_without!("qemu-img");
    let full = ["--strategy", "full"];
    for command in ["recover", "rollback"] {
        let scene = Scene::new(Dynamic(1), 14);
        kill::cut_when_sealed(&scene, &full);

        let _ = scene.end_by(command).exits(0);

        assert_ends(&scene, command);
    }
}

fn assert_ends(scene: &Scene, command: &str) {
    match command {
        "recover" => scene.assert_new(command),
        _ => scene.assert_old(command),
    }
    assert!(!scene.new_file().exists(), "{command}");
    let look = scene.look(command);
    assert!(!look.is_mixed, "{look:?}");
}

#[test]
fn a_new_image_is_the_same_disk_for_the_guest() {
    skip_without!("qemu-img");
    for format in [Dynamic(1), Format::VhdDynamic, Format::Fixed] {
        let scene = Scene::new(format, 15);
        let before = info(&scene.target);

        let _ = scene.sync(&["--strategy", "full"]).exits(0);

        let after = info(&scene.target);
        for field in [
            "/vhdx/disk_id",
            "/vhdx/physical_sector_size",
            "/vhdx/kind",
            "/vhd/disk_id",
            "/vhd/kind",
            "/logical_sector_size",
            "/block_size",
            "/virtual_size",
        ] {
            assert_eq!(after.pointer(field), before.pointer(field), "{field}");
        }
        scene.assert_new("full");
    }
}

fn info(image: &Path) -> Value {
    cli::failback(args_of("info", &[image], &["--json"]))
        .exits(0)
        .json()
}
