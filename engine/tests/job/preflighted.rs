//! What a job looks at before it begins: the rules of its preflight that are no platform's.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_engine::agent::{Grants, Pair};
use failback_engine::disk::{
    Format, NewDisk, OpenOptions, create, create_child, open_source, open_target,
};
use failback_engine::hook::Hook;
use failback_engine::job::{
    Ask, Finding, Job, JobPlan, JobSpec, LocalHost, Sides, SnapshotSpec, look, plan, reverse_of,
};
use failback_engine::machine::{HookMachine, Power};
use failback_engine::operation::info;
use failback_engine::plan::Strategy;
use failback_engine::snapshot::{HookSnapshots, SnapshotId, SnapshotProvider};
use failback_engine::units::ByteOffset;
use failback_engine::{CancelToken, ErrorKind, Result, Silent, Step};

use super::scene::{Copies, DISK_LEN, Scene, ask, run};
use super::two_hosts::{self, with_agent};

/// An empty VHDX as long as the scene's disks.
fn image(scene: &Scene, name: &str) -> PathBuf {
    let image = scene.dir.path().join(name);
    let new = NewDisk {
        format: Format::Vhdx,
        len: DISK_LEN as u64,
        sector_size: 512,
        block_size: None,
        is_fixed: false,
    };
    create(&image, &new).unwrap();
    image
}

fn planned(spec: &JobSpec, sides: &Sides) -> JobPlan {
    plan(spec, sides, &Silent, &CancelToken::new()).unwrap()
}

/// Rules that do not hold, with what they said.
fn broken(spec: &JobSpec, sides: &Sides) -> Vec<(String, String)> {
    let findings = planned(spec, sides).findings.into_iter();
    let wrong = findings.filter(|finding| !finding.holds);
    wrong.map(|finding| (finding.rule, finding.said)).collect()
}

fn rules(spec: &JobSpec, sides: &Sides) -> Vec<String> {
    let broken = broken(spec, sides).into_iter();
    broken.map(|(rule, _)| rule).collect()
}

fn hook(command: &[&str]) -> Hook {
    Hook::new(command.iter().copied())
}

/// A machine by hooks that says this of its power, and has these hooks of those that may be left
/// out.
fn machine(power: &str, has: &[&str]) -> HookMachine {
    let optional = |name: &str| has.contains(&name).then(|| hook(&["true"]));
    HookMachine {
        shut_down: optional("shut_down"),
        power_off: optional("power_off"),
        delete: optional("delete"),
        ..HookMachine::new(hook(&["echo", power]), hook(&["true"]))
    }
}

fn sides(source: HookMachine, target: HookMachine) -> Sides {
    Sides {
        source: Arc::new(LocalHost::new(Arc::new(source), Some(Arc::new(Copies)))),
        target: Arc::new(target),
    }
}

const ALL: [&str; 3] = ["shut_down", "power_off", "delete"];

// Goal: a hook that the job certainly comes to, or an undo would, is missed before anything is
// done. Method: machines that lack one or the other, under policies that need them.
#[test]
fn hooks_that_will_be_needed_are_missed_at_first() {
    let scene = Scene::new(&["os"]);
    let with = |force: bool, delete: bool, source: &[&str], target: &[&str]| {
        let mut spec = scene.spec();
        spec.policy.force_stop = force;
        spec.policy.delete_source_machine = delete;
        rules(&spec, &sides(machine("on", source), machine("off", target)))
    };
    let none = Vec::<String>::new();
    assert_eq!(with(false, false, &["shut_down"], &["shut_down"]), none);
    assert_eq!(with(false, false, &["shut_down"], &["power_off"]), none);
    assert_eq!(with(true, false, &["power_off"], &ALL), none);
    assert_eq!(with(false, true, &ALL, &["power_off"]), none);
    assert_eq!(with(false, false, &["power_off"], &ALL), ["source_stops"]);
    assert_eq!(with(true, false, &["delete"], &ALL), ["source_stops"]);
    assert_eq!(with(true, false, &ALL, &["delete"]), ["target_stops"]);
    assert_eq!(with(false, true, &["shut_down"], &ALL), ["source_deletes"]);
}

// Goal: a hook whose program is not there, or is none, is found without running it, also one that
// is only needed in the end. Method: each kind of a path that leads nowhere.
#[test]
fn hooks_that_lead_nowhere_are_found() {
    let scene = Scene::new(&["os"]);
    let at = |name: &str| scene.dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("text"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(at("text"), Permissions::from_mode(0o600)).unwrap();
    let absent = ["no-such-program", &at("missing"), &at("text"), &at(""), ""];
    for program in absent {
        let mut lost = machine("off", &ALL);
        lost.delete = Some(hook(&[program]));
        let good = || machine("on", &ALL);
        let found = rules(&scene.spec(), &sides(good(), lost.clone()));
        assert_eq!(found, ["target_hooks"], "{program}");
        let found = rules(&scene.spec(), &sides(lost, machine("off", &ALL)));
        assert_eq!(found, ["source_hooks"], "{program}");
        let mut spec = scene.spec();
        spec.target.probe = Some(hook(&[program]));
        spec.source.snapshots = Some(SnapshotSpec::Hooks(HookSnapshots {
            create: hook(&["true"]),
            release: hook(&[program]),
            list: None,
        }));
        let found = rules(&spec, &sides(good(), machine("off", &ALL)));
        assert_eq!(found, ["source_hooks", "target_hooks"], "{program}");
    }
    let mut own = machine("on", &ALL);
    let tool = scene.dir.path().join("tools/only-here");
    fs::create_dir(tool.parent().unwrap()).unwrap();
    fs::write(&tool, b"#!/bin/sh\n").unwrap();
    fs::set_permissions(&tool, Permissions::from_mode(0o700)).unwrap();
    let mut path = hook(&["only-here"]);
    path.env = vec![("PATH".to_owned(), at("tools"))];
    own.delete = Some(path);
    let found = rules(&scene.spec(), &sides(own, machine("off", &ALL)));
    assert_eq!(
        found,
        Vec::<String>::new(),
        "it has a search path of its own"
    );
}

// Goal: an id means the same however it is printed, and what is no id is told as that. Method: the
// id of a VHDX as it is, as Windows prints it, of another disk; a raw target, a missing one.
#[test]
fn an_identity_is_compared_as_an_id() {
    let scene = Scene::new(&["os"]);
    let image = image(&scene, "home.vhdx");
    let is = info(&image, &OpenOptions::default(), None).unwrap();
    let id = is.vhdx.unwrap().disk_id;
    let of = |target: &Path, identity: &str| {
        let mut spec = scene.spec();
        spec.disks[0].target = target.to_owned();
        spec.disks[0].identity = Some(identity.to_owned());
        broken(&spec, &scene.sides())
    };
    let none = Vec::<(String, String)>::new();
    for identity in [
        id.clone(),
        id.to_uppercase(),
        format!("{{{}}}", id.to_uppercase()),
    ] {
        assert_eq!(of(&image, &identity), none, "{identity}");
    }
    let other = "{00000000-0000-0000-0000-000000000001}";
    for (target, said) in [
        (image, "the target is "),
        (scene.target_of("os"), "the target is raw"),
        (scene.dir.path().join("none.raw"), "there is no target"),
    ] {
        let found = of(&target, other);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, "identity");
        assert!(found[0].1.starts_with(said), "{found:?}");
    }
}

// Goal: no disk is made equal to itself, or another disk of the job overwritten that is still to be
// read. Method: a target that is a source, by a link of either kind, or of another disk.
#[test]
fn a_target_is_no_source() {
    let scene = Scene::new(&["os", "data"]);
    let at = |name: &str| scene.dir.path().join(name);
    symlink(scene.source_of("os"), at("soft.raw")).unwrap();
    fs::hard_link(scene.source_of("os"), at("hard.raw")).unwrap();
    for target in [
        scene.source_of("os"),
        at("soft.raw"),
        at("hard.raw"),
        scene.source_of("data"),
    ] {
        let mut spec = scene.spec();
        spec.disks[0].target.clone_from(&target);
        let found = rules(&spec, &scene.sides());
        assert_eq!(found, ["distinct"], "{target:?}");
    }
    assert_eq!(rules(&scene.spec(), &scene.sides()), Vec::<String>::new());
}

// Goal: a target that somebody writes to is found before the source is read. Method: one that is
// open.
#[test]
fn a_target_that_is_in_use_is_found() {
    let scene = Scene::new(&["os"]);
    let held = open_target(&scene.target_of("os"), &OpenOptions::default()).unwrap();
    assert_eq!(rules(&scene.spec(), &scene.sides()), ["target_unused"]);
    drop(held);
    assert_eq!(rules(&scene.spec(), &scene.sides()), Vec::<String>::new());
}

// Goal: of room only what is known is told. Method: a delta, a full copy, a target that is missing.
#[test]
fn room_is_told_as_far_as_it_is_known() {
    let scene = Scene::new(&["os"]);
    let space = |spec: &JobSpec| {
        let findings = planned(spec, &scene.sides()).findings;
        let found = findings.into_iter().find(|it| it.rule == "space");
        found.unwrap().said
    };
    let mut spec = scene.spec();
    assert!(space(&spec).contains("not known yet"), "{}", space(&spec));
    spec.policy.strategy = Strategy::Full;
    assert!(space(&spec).contains("are needed"), "{}", space(&spec));
    let mut spec = scene.spec();
    spec.disks[0].target = scene.dir.path().join("none.raw");
    assert!(space(&spec).contains("are needed"), "{}", space(&spec));
}

// Goal: half a machine does not come home, nor one with a disk that it never had. Method: an agent
// of two disks; jobs of one, of both, and of three.
#[test]
fn all_disks_of_an_agent_come_home() {
    let scene = Scene::new(&["os", "data"]);
    with_agent(&scene, |address| {
        let spec = || two_hosts::spec(&scene, address);
        let sides = || two_hosts::sides(&scene, address);
        let mut half = spec();
        half.disks.pop();
        let mut job = Job::start(&scene.jobs(), half, None, sides()).unwrap();
        run(&mut job);
        let report = job.report();
        assert_eq!((report.phase, report.suspended), ("preflight", true));
        let is_rule = |it: &&Finding| it.rule == "all_disks";
        let found = report.findings.iter().find(is_rule).unwrap();
        assert_eq!(
            (found.holds, &*found.said),
            (false, "the job leaves out: data")
        );
        assert_eq!(scene.target_bytes(), scene.old_target());

        let more = spec().agent_disk("more", scene.dir.path().join("more.raw"));
        let found = broken(&more, &sides());
        assert_eq!(found[0].0, "all_disks", "{found:?}");
        assert_eq!(found[0].1, "the machine does not have: more");
        assert_eq!(rules(&spec(), &sides()), Vec::<String>::new());
    });
}

// Goal: an agent has no machine whose disks it could not name. Method: as many as it can, and one
// more.
#[test]
fn an_agent_names_all_disks_of_a_machine() {
    let scene = Scene::new(&["os"]);
    let serve = |count: usize| {
        let machine = Arc::new(scene.source.clone());
        let pair = (0..count).fold(Pair::new("recovery", machine, None), |pair, number| {
            let image = scene.dir.path().join(format!("{number}.raw"));
            pair.disk(&format!("disk-{number}"), &image, OpenOptions::default())
        });
        let state = scene.dir.path().join(format!("agent-{count}"));
        let added = Grants::new().add_pair("web", pair, &state);
        added.map_err(|error| error.kind())
    };
    assert_eq!(serve(64), Ok(()));
    assert_eq!(serve(65), Err(ErrorKind::Usage));
}

/// Makes a checkpoint of an image: another one that stands on it.
fn checkpoint(of: &Path, name: &str) -> PathBuf {
    let at = of.with_file_name(name);
    let open = OpenOptions {
        format: Some(Format::Vhdx),
        parents: vec![of.to_owned()],
        ..OpenOptions::default()
    };
    create_child(&at, &open, None).unwrap();
    at
}

// Goal: a machine with a checkpoint does not run from the disk that the job names, and a write to
// the target of one would break it: both are found before anything is done, and named. Method: a
// checkpoint of either image, which is merged; a disk without any.
#[test]
fn checkpoints_are_found_at_first() {
    let scene = Scene::new(&["os"]);
    let [cloud, home] = ["cloud.vhdx", "home.vhdx"].map(|name| image(&scene, name));
    let mut spec = scene.spec();
    spec.disks[0].source = Some(cloud.to_str().unwrap().to_owned());
    spec.disks[0].target = home.clone();
    assert_eq!(rules(&spec, &scene.sides()), Vec::<String>::new());
    for (parent, rule) in [
        (&cloud, "source_checkpoints"),
        (&home, "target_checkpoints"),
    ] {
        let child = checkpoint(parent, "later.avhdx");
        let found = broken(&spec, &scene.sides());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, rule);
        let named = child.to_str().unwrap();
        assert!(found[0].1.starts_with(named), "{found:?}");
        fs::remove_file(&child).unwrap();
    }
}

// Goal: a checkpoint that is made while the job waits is found as well, also by an agent: the
// source, stopped, is not taken for what it was, and runs again. Method: one of the source's image
// after the passes, on one host and behind an agent.
#[test]
fn a_checkpoint_made_later_gives_the_source_back() {
    let stands = |scene: &Scene, job: &mut Job, cloud: &Path| {
        run(job);
        assert_eq!(job.report().phase, "waiting", "{:?}", job.report());
        checkpoint(cloud, "later.avhdx");
        ask(job, Ask::Complete);
        let report = job.report();
        assert_eq!((report.phase, report.suspended), ("waiting", true));
        let message = report.error.unwrap().message;
        assert!(message.contains("later.avhdx stands on it"), "{message}");
        assert_eq!(scene.source.real_power(), Power::On);
    };
    let scene = Scene::new(&["os"]);
    let cloud = image(&scene, "cloud.vhdx");
    let mut spec = scene.spec();
    spec.disks[0].source = Some(cloud.to_str().unwrap().to_owned());
    let mut job = Job::start(&scene.jobs(), spec, None, scene.sides()).unwrap();
    stands(&scene, &mut job, &cloud);

    let scene = Scene::new(&["os"]);
    let cloud = image(&scene, "cloud.vhdx");
    let pair = Pair::new(
        "recovery",
        Arc::new(scene.source.clone()),
        Some(Arc::new(Copies)),
    );
    let pair = pair.disk("os", &cloud, OpenOptions::default());
    let mut grants = Grants::new();
    grants
        .add_pair("web", pair, &two_hosts::agent_state(&scene))
        .unwrap();
    two_hosts::with_agent_of(&grants, two_hosts::ANYWHERE, |address| {
        let mut job = two_hosts::start(&scene, address);
        stands(&scene, &mut job, &cloud);
    });
}

// Goal: the base's map speaks of the base as it was when its machine was stopped, and of no image
// that took its place: a VHDX keeps its GUIDs whoever writes to its file. Method: a byte of payload
// that changes between the start of the target and the commit; the way back reads the base, and
// ends with equal disks.
#[test]
fn an_exchanged_base_is_not_believed() {
    for changes in [false, true] {
        let scene = Scene::new(&["os"]);
        let [cloud, home] = ["cloud.vhdx", "home.vhdx"].map(|name| image(&scene, name));
        let disk = open_target(&cloud, &OpenOptions::default()).unwrap();
        disk.write(ByteOffset(0), &[7; 1 << 20]).unwrap();
        disk.close().unwrap();
        drop(disk);
        let mut spec = scene.spec();
        spec.disks[0].source = Some(cloud.to_str().unwrap().to_owned());
        spec.disks[0].target = home.clone();
        let mut job = Job::start(&scene.jobs(), spec, None, scene.sides()).unwrap();
        run(&mut job);
        ask(&mut job, Ask::Complete);
        if changes {
            let mut bytes = fs::read(&cloud).unwrap();
            let payload = bytes.iter().rposition(|byte| *byte == 7).unwrap();
            bytes[payload] = 8;
            fs::write(&cloud, bytes).unwrap();
        }
        ask(&mut job, Ask::Commit);
        drop(job);
        let back = reverse_of(&look(&scene.jobs(), "web").unwrap()).unwrap();
        let mut job = Job::start(&scene.jobs(), back, None, scene.sides_back()).unwrap();
        run(&mut job);
        let reason = if changes {
            "no_base_map"
        } else {
            "map_trusted"
        };
        assert_eq!(job.report().reasons[0], reason);
        ask(&mut job, Ask::Complete);
        let report = job.report();
        assert_eq!(report.phase, "commit_pending", "{report:?}");
        let [a, b] = [&cloud, &home].map(|image| {
            let disk = open_source(image, &OpenOptions::default()).unwrap();
            let mut bytes = vec![0; DISK_LEN];
            disk.read(ByteOffset(0), &mut bytes).unwrap();
            bytes
        });
        assert!(a == b, "not the same");
    }
}

// Goal: images beside the target that cannot be looked at are counted, some are named, and a job
// begins however many there are. Method: as many as are looked at, of which none is an image.
#[test]
fn a_folder_full_of_what_is_no_image_is_no_reason_to_stand() {
    let scene = Scene::new(&["os"]);
    for number in 0..700 {
        let name = format!("a-disk-of-some-other-machine-{number:04}.vhdx");
        fs::write(scene.dir.path().join(name), b"not yet").unwrap();
    }
    let mut spec = scene.spec();
    spec.disks[0].target = image(&scene, "home.vhdx");
    let mut job = Job::start(&scene.jobs(), spec, None, scene.sides()).unwrap();
    run(&mut job);
    let report = job.report();
    assert_eq!(
        (report.phase, report.suspended),
        ("waiting", false),
        "{report:?}"
    );
    let is_it = |finding: &&Finding| finding.rule == "target_checkpoints";
    let said = &report.findings.iter().find(is_it).unwrap().said;
    assert_eq!(
        said.matches("a-disk-of-some-other-machine").count(),
        3,
        "{said}"
    );
    assert!(said.ends_with("and 697 more"), "{said}");
}

/// Snapshots whose caller gives up once one is made, as the provider does then.
#[derive(Debug)]
struct GivenUp(CancelToken);

impl SnapshotProvider for GivenUp {
    fn create(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<PathBuf> {
        let made = Copies.create(image, id, step);
        self.0.cancel();
        made
    }

    fn release(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<()> {
        step.check()?;
        Copies.release(image, id, step)
    }

    fn list(&self, image: &Path, job: &str, step: &Step<'_>) -> Result<Vec<SnapshotId>> {
        Copies.list(image, job, step)
    }
}

// Goal: a plan leaves no snapshot, however it ends, and looks at none that an earlier one left.
// Method: one that is cancelled once it has a snapshot; a stale one of another length.
#[test]
fn a_plan_leaves_no_snapshot_and_believes_none() {
    let scene = Scene::new(&["os", "data"]);
    let cancel = CancelToken::new();
    let given_up = GivenUp(cancel.clone());
    let sides = Sides {
        source: Arc::new(LocalHost::new(
            Arc::new(scene.source.clone()),
            Some(Arc::new(given_up)),
        )),
        ..scene.sides()
    };
    let error = plan(&scene.spec(), &sides, &Silent, &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(scene.leftovers(), Vec::<String>::new());

    let stale = scene.dir.path().join("os-cloud.raw.web.plan.snap");
    fs::write(&stale, b"what was there before").unwrap();
    let plans = planned(&scene.spec(), &scene.sides()).disks;
    assert!(plans.iter().all(|plan| plan.error.is_none()), "{plans:?}");
    assert_eq!(plans[0].source.virtual_size, DISK_LEN as u64);
    assert_eq!(scene.leftovers(), Vec::<String>::new());
}
