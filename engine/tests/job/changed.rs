//! Disks, machines and hosts that are not what the job left: each is found before it does harm, and
//! none keeps a job from an end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use failback_engine::endpoint::Endpoint;
use failback_engine::hook::Hook;
use failback_engine::job::{
    Ask, Complete, Job, JobReport, Jobs, LocalHost, Phase, Sides, ask_another, look, plan,
};
use failback_engine::machine::{Behaviour, Call, Machine, Power};
use failback_engine::operation::{SyncRequest, accept, recover, roll_back, sync};
use failback_engine::plan::Strategy;
use failback_engine::{CancelToken, Error, ErrorKind, Silent};

use super::hinted::HONEST;
use super::scene::{Copies, Scene, ask, bring_home, overwrite, run};
use super::slow_scan::SlowScan;
use super::two_hosts::{self, ANYWHERE, sides as far_sides, spec as far_spec};

fn said(report: &JobReport) -> String {
    let error = report.error.as_ref();
    error.map_or_else(String::new, |error| error.message.clone())
}

/// Somebody will write to the source once it was copied.
fn write_late(scene: &Scene, job: &mut Job) {
    let path = scene.source_of("os");
    let has_written = AtomicBool::new(false);
    job.on_record(Arc::new(move |record| {
        let is_sealing = record.position.phase == Phase::Sealing;
        if is_sealing && !has_written.swap(true, Ordering::SeqCst) {
            overwrite(&path, 0, b"a late write");
        }
    }));
}

/// Somebody writes to the source once it was copied, and it is given back.
fn complete_with_a_late_write(scene: &Scene, job: &mut Job) {
    write_late(scene, job);
    ask(job, Ask::Complete);
    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("waiting", true));
}

/// Touched and not changed.
fn touch(path: &Path) {
    std::thread::sleep(Duration::from_millis(20));
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
}

// Goal: G3: a source that somebody wrote to after the last copy is found before the target is
// started: with a hold of days, and before COMMIT, where the source is given back. Method: bytes
// written while it is held, and at the record after the copy.
#[test]
fn a_source_that_was_written_to_after_the_copy_is_found() {
    for is_tracked in [false, true] {
        let scene = Scene::new(&["os", "data"]);
        let (spec, sides) = match is_tracked {
            true => scene.tracked(HONEST),
            false => (scene.spec(), scene.sides()),
        };
        let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
        run(&mut job);
        scene.guest_writes("data", 7, 0x44);
        ask(&mut job, Ask::Hold);
        overwrite(&scene.source_of("data"), 8192, &[0x66; 4096]);

        ask(&mut job, Ask::Complete);

        let report = job.report();
        assert_eq!((report.phase, report.suspended), ("starting_target", true));
        assert!(said(&report).contains("disk `data` of the source was written to"));
        assert_eq!(scene.target.count(Call::Start), 0);
        ask(&mut job, Ask::Undo);
        assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
        assert_eq!(scene.source.real_power(), Power::On);
    }

    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    complete_with_a_late_write(&scene, &mut job);
    assert_eq!(scene.source.real_power(), Power::On);
    assert_eq!(scene.target_bytes(), scene.old_target());
    ask(&mut job, Ask::Resume);
    assert_eq!(job.position().phase, Phase::CommitPending);
    assert_eq!(scene.target_bytes(), scene.source_bytes());
}

// Goal: a mark is a suspicion and no verdict: disks of both sides that were touched and hold what
// they held are read, and started. Method: new times on all of them while it is held.
#[test]
fn disks_that_were_only_touched_are_read_and_started() {
    for is_tracked in [false, true] {
        let scene = Scene::new(&["os"]);
        let (spec, sides) = match is_tracked {
            true => scene.tracked(HONEST),
            false => (scene.spec(), scene.sides()),
        };
        let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
        run(&mut job);
        scene.guest_writes("os", 7, 0x44);
        ask(&mut job, Ask::Hold);
        touch(&scene.target_of("os"));
        touch(&scene.source_of("os"));

        ask(&mut job, Ask::Complete);

        assert_eq!(
            job.position().phase,
            Phase::CommitPending,
            "{:?}",
            job.report()
        );
        assert_eq!(scene.target_bytes(), scene.source_bytes());
    }
}

// Goal: what only the source has is not deleted by a commit, which says so; the target is accepted
// all the same. Method: a source that was written to while the target ran, one that was touched,
// and one that is what it was.
#[test]
fn a_commit_deletes_no_source_that_was_written_to() {
    for (change, is_deleted) in [
        (
            (|path: &Path| overwrite(path, 0, b"somebody")) as fn(&Path),
            false,
        ),
        (touch, true),
        (|_| {}, true),
    ] {
        let scene = Scene::new(&["os", "data"]);
        let mut spec = scene.spec();
        spec.policy.delete_source_machine = true;
        spec.policy.delete_source_disks = true;
        let machine: Arc<dyn Machine> = Arc::new(scene.source.clone());
        let delete = Hook::new(["sh", "-c", "rm \"$FAILBACK_IMAGE\""]);
        let host = LocalHost::new(machine, Some(Arc::new(Copies))).deleting_by(delete);
        let sides = Sides {
            source: Arc::new(host),
            ..scene.sides()
        };
        let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
        bring_home(&mut job);
        let listed = job.report().commit_releases;
        assert_eq!(listed.len(), 5, "{listed:?}");
        change(&scene.source_of("data"));

        ask(&mut job, Ask::Commit);

        let report = job.report();
        assert_eq!((report.phase, report.suspended), ("finished", false));
        assert_eq!(report.commit_releases, Vec::<String>::new());
        assert_eq!(scene.source.is_deleted(), is_deleted);
        let exists = |disk| scene.source_of(disk).exists();
        assert_eq!((exists("os"), exists("data")), (!is_deleted, !is_deleted));
        let page = report.to_html(&[]);
        assert_eq!(page.contains("not deleted: disk `data` was"), !is_deleted);
    }
}

// Goal: only what no try mends is left as it is by an undo: everything else suspends it, with the
// source running, until it is mended. Method: a state directory that others may read, put right.
#[test]
fn an_undo_waits_for_what_can_be_mended() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    ask(&mut job, Ask::Hold);
    let states = fs::read_dir(scene.dir.path().join(".failback")).unwrap();
    let states: Vec<PathBuf> = states.map(|entry| entry.unwrap().path()).collect();
    let allow = |mode| {
        for state in states.iter().filter(|path| path.is_dir()) {
            fs::set_permissions(state, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    allow(0o755);

    ask(&mut job, Ask::Undo);

    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("undoing", true));
    assert_eq!(scene.source.real_power(), Power::On);
    allow(0o700);
    ask(&mut job, Ask::Resume);
    assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
    assert_eq!(scene.target_bytes(), scene.old_target());
}

// Goal: a source that was given back is its owner's: started by him it is stopped as any that runs,
// and runs again after a cancel. Method: one that was off, given back, started by its owner.
#[test]
fn a_source_that_was_given_back_is_found_as_it_is_then() {
    let scene = Scene::new(&["os"]);
    scene.source.set_power(Power::Off);
    let mut job = scene.start();
    run(&mut job);
    complete_with_a_late_write(&scene, &mut job);
    scene.source.set_power(Power::On);
    std::thread::sleep(Duration::from_millis(300));

    ask(&mut job, Ask::Resume);

    let report = job.report();
    assert_eq!(report.phase, "commit_pending", "{report:?}");
    let measured = report.downtime.measured.unwrap();
    assert!(measured < 0.3 + 0.2, "not from the first try: {measured}");
    ask(&mut job, Ask::Undo);
    assert_eq!(scene.source.real_power(), Power::On);
}

// Goal: whatever fails once the source was asked to stop, it runs in the end. Method: power that
// cannot be found out once, and cannot be taken away, each after the guest was asked.
#[test]
fn a_stop_that_fails_half_way_gives_the_source_back() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    let source = scene.source.clone();
    let fails = Behaviour::Fails(ErrorKind::Refused);
    let is_set = AtomicBool::new(false);
    job.on_record(Arc::new(move |record| {
        let is_stopping = record.position.phase == Phase::StoppingSource;
        if is_stopping && !is_set.swap(true, Ordering::SeqCst) {
            // Before the stop, as the stop begins, and after it.
            source.next(Call::Power, [Behaviour::Obeys, Behaviour::Obeys, fails]);
        }
    }));
    ask(&mut job, Ask::Complete);
    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("waiting", true));
    assert!(said(&report).ends_with("the source is in charge again"));
    assert_eq!(report.authority.as_deref(), Some("recovery"));
    assert_eq!(scene.source.real_power(), Power::On);

    let scene = Scene::new(&["os"]);
    let mut spec = scene.spec();
    spec.policy.force_stop = true;
    spec.policy.stop_timeout = Duration::from_millis(200);
    scene.source.always(Call::ShutDown, Behaviour::Ignores);
    scene.source.always(Call::PowerOff, fails);
    let mut job = Job::start(&scene.jobs(), spec, None, scene.sides()).unwrap();
    run(&mut job);
    ask(&mut job, Ask::Complete);
    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("waiting", true));
    assert_eq!(report.authority.as_deref(), Some("recovery"));
}

// Goal: an undo of a target that never ran does not need the target's host, which may be the reason
// for it. Method: a held job whose target cannot be asked for anything.
#[test]
fn an_undo_before_the_start_does_not_need_the_target() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    ask(&mut job, Ask::Hold);
    let fails = Behaviour::Fails(ErrorKind::Refused);
    for call in [Call::Power, Call::ShutDown, Call::PowerOff, Call::Start] {
        scene.target.always(call, fails);
    }
    ask(&mut job, Ask::Undo);
    assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
    assert_eq!(scene.source.real_power(), Power::On);
    assert_eq!(scene.target_bytes(), scene.old_target());
}

// Goal: a job that goes back by itself does so in time, whatever is still read. Method: a scan of
// the source that never ends.
#[test]
fn a_deadline_of_an_undo_does_not_wait_for_the_scan() {
    let scene = Scene::new(&["os"]);
    let (mut spec, sides) = scene.tracked(HONEST);
    spec.policy.undo_after = Some(Duration::from_millis(300));
    let slow = SlowScan::new(sides.source.clone());
    let sides = Sides {
        source: Arc::new(slow.clone()),
        ..sides
    };
    let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
    run(&mut job);
    scene.guest_writes("os", 3, 0x33);
    job.ask(Ask::Complete).unwrap();
    let from = Instant::now();

    run(&mut job);

    assert!(slow.begun.load(Ordering::SeqCst) > 0, "nothing was read");
    assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
    assert!(from.elapsed() < Duration::from_secs(20));
    assert_eq!(scene.source.real_power(), Power::On);
}

// Goal: a job that completes by itself stops nothing for longer than its budget. Method: a budget
// that no forecast meets, one that every forecast does, none.
#[test]
fn a_job_completes_by_itself_within_its_budget_alone() {
    for (budget, end) in [
        (Some(Duration::from_millis(10)), "waiting"),
        (Some(Duration::from_hours(1)), "commit_pending"),
        (None, "commit_pending"),
    ] {
        let scene = Scene::new(&["os"]);
        let mut spec = scene.spec();
        spec.policy.complete = Complete::WhenReady;
        spec.policy.downtime_budget = budget;
        let mut job = Job::start(&scene.jobs(), spec, None, scene.sides()).unwrap();
        let cancel = CancelToken::new();
        std::thread::scope(|scope| {
            let ended = scope.spawn(|| job.run(Default::default(), &Silent, &cancel));
            let until = Instant::now() + Duration::from_secs(5);
            while Instant::now() < until && !ended.is_finished() {
                std::thread::sleep(Duration::from_millis(20));
            }
            cancel.cancel();
            drop(ended.join().unwrap());
        });
        let report = job.report();
        assert_eq!(report.phase, end, "{budget:?}: {report:?}");
        assert_eq!(report.downtime.budget, budget.map(|it| it.as_secs_f64()));
    }
}

// Goal: a full copy needs no snapshots: a disk that is missing, or a copy that was asked for, comes
// home from a source that cannot be frozen. Method: both; a delta from there is refused before
// anything is stopped.
#[test]
fn a_full_copy_needs_no_snapshots() {
    let bare = |scene: &Scene| Sides {
        source: Arc::new(LocalHost::new(Arc::new(scene.source.clone()), None)),
        ..scene.sides()
    };
    for (strategy, is_missing, reason) in [
        (Strategy::Full, false, "operator_forced"),
        (Strategy::Auto, true, "target_missing"),
    ] {
        let scene = Scene::new(&["os"]);
        let mut spec = scene.spec();
        spec.policy.strategy = strategy;
        if is_missing {
            fs::remove_file(scene.target_of("os")).unwrap();
        }
        let planned = plan(&spec, &bare(&scene), &Silent, &CancelToken::new()).unwrap();
        assert_eq!((planned.strategy, planned.disks.len()), (Some("full"), 0));
        let mut job = Job::start(&scene.jobs(), spec, None, bare(&scene)).unwrap();
        bring_home(&mut job);
        assert_eq!(job.report().reasons, [reason]);
        assert_eq!(scene.target_bytes(), scene.source_bytes());
    }
    let scene = Scene::new(&["os"]);
    let mut job = Job::start(&scene.jobs(), scene.spec(), None, bare(&scene)).unwrap();
    run(&mut job);
    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("planning", true));
    assert_eq!(scene.source.count(Call::ShutDown), 0);
}

// Goal: a job that another home overtook comes to an end, and stands in nobody's way: what is out
// of its reach is told and left. Method: two homes, one agent that tracks, so that a snapshot is
// kept; the first is cancelled once the second has the pair.
#[test]
fn a_job_that_was_overtaken_can_be_cancelled() {
    let scene = Scene::new(&["os"]);
    two_hosts::with_tracking_agent(&scene, (ANYWHERE, HONEST), |address| {
        let mut first = two_hosts::start(&scene, address);
        run(&mut first);
        let elsewhere = Jobs::below(&scene.dir.path().join("elsewhere"));
        let mut other = far_spec(&scene, address);
        other.name = "other".to_owned();
        other.pair = Some("web".to_owned());
        other.disks[0].target = scene.dir.path().join("elsewhere.raw");
        let mut second = Job::start(&elsewhere, other, None, far_sides(&scene, address)).unwrap();
        run(&mut second);

        ask(&mut first, Ask::Cancel);

        let report = first.report();
        assert_eq!(
            (report.phase, report.suspended),
            ("cancelled", false),
            "{report:?}"
        );
        assert_eq!(scene.source.real_power(), Power::On);
        assert_eq!(scene.target_bytes(), scene.old_target());
        drop(first);
        ask(&mut second, Ask::Complete);
        ask(&mut second, Ask::Commit);
        assert_eq!(second.position().phase, Phase::Finished);
        assert_eq!(scene.leftovers(), Vec::<String>::new());
    });
}

/// What the command does to a target that is named to it.
fn by_hand(scene: &Scene) -> [(&'static str, ErrorKind); 4] {
    let target = scene.target_of("os");
    let cancel = CancelToken::new();
    let request = SyncRequest::new(
        Endpoint::Path(scene.source_of("os")),
        Endpoint::Path(target.clone()),
    );
    let synced = sync(&request, &Silent, &cancel).error;
    [
        (
            "sync",
            synced.map_or(Ok(()), |e| {
                Err(Error::new(ErrorKind::of_name(e.kind), e.message))
            }),
        ),
        ("commit", accept(&target, None).map(drop)),
        ("rollback", roll_back(&target, None, &cancel).map(drop)),
        ("recover", recover(&target, None, &cancel).map(drop)),
    ]
    .map(|(what, done)| (what, done.expect_err(what).kind()))
}

// Goal: a target is the job's until that is over: nobody else commits, rolls back or syncs to it,
// whatever phase the job is in, whether a process works on it or none; then it is anybody's.
// Method: all four in each phase at which a job rests, before a cancel, a commit and an undo.
#[test]
fn nobody_else_changes_the_target_of_a_job() {
    for end in [Ask::Cancel, Ask::Commit, Ask::Undo] {
        let scene = Scene::new(&["os"]);
        let mut job = scene.start();
        let refused = |scene: &Scene| {
            for (what, kind) in by_hand(scene) {
                assert_eq!(kind, ErrorKind::Refused, "{what}");
            }
        };
        run(&mut job);
        refused(&scene);
        if end != Ask::Cancel {
            ask(&mut job, Ask::Hold);
            refused(&scene);
            ask(&mut job, Ask::Complete);
            drop(job);
            refused(&scene);
            job = Job::open(&scene.jobs(), "web", scene.sides()).unwrap();
        }
        ask(&mut job, end);
        assert!(job.position().phase.is_end(), "{:?}", job.report());
        let old = scene.target_bytes() == scene.old_target();
        assert_eq!(old, end != Ask::Commit);
        drop(job);
        let target = Endpoint::Path(scene.target_of("os"));
        let request = SyncRequest::new(Endpoint::Path(scene.source_of("os")), target);
        let report = sync(&request, &Silent, &CancelToken::new());
        assert!(report.error.is_none(), "{:?}", report.error);
    }
}

// Goal: a job whose directory is gone keeps nobody from its targets for ever. Method: removed while
// it waits.
#[test]
fn a_job_that_is_gone_keeps_nobody_out() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    drop(job);
    fs::remove_dir_all(scene.jobs().directory("web").unwrap()).unwrap();
    roll_back(&scene.target_of("os"), None, &CancelToken::new()).unwrap();
}

// Goal: a commit that has no good end takes nothing away, and the way back stays open; an undo says
// that a disk is old only when it is. Method: the target's state is gone, or was accepted behind
// the job's back, which takes a hand in its directory; the source started by hand.
#[test]
fn a_commit_that_cannot_be_leaves_the_undo() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    bring_home(&mut job);
    scene.source.set_power(Power::On);
    ask(&mut job, Ask::Commit);
    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("commit_pending", true));
    assert_eq!(report.allowed, ["undo", "resume"]);
    scene.source.set_power(Power::Off);
    ask(&mut job, Ask::Resume);
    ask(&mut job, Ask::Commit);
    assert_eq!(job.position().phase, Phase::Finished);

    for is_accepted in [true, false] {
        let scene = Scene::new(&["os"]);
        let mut job = scene.start();
        bring_home(&mut job);
        match is_accepted {
            true => {
                let open = scene.jobs().directory("web").unwrap().join("open");
                fs::remove_file(open).unwrap();
                accept(&scene.target_of("os"), None).unwrap();
            }
            false => fs::remove_dir_all(scene.dir.path().join(".failback")).unwrap(),
        }
        if !is_accepted {
            ask(&mut job, Ask::Commit);
            assert_eq!(job.report().phase, "commit_pending");
        }
        ask(&mut job, Ask::Undo);
        let report = job.report();
        assert_eq!(report.phase, "undone", "{report:?}");
        assert_eq!(report.disks[0].state.as_deref(), Some("kept"));
        assert_ne!(scene.target_bytes(), scene.old_target());
        assert_eq!(scene.source.real_power(), Power::On);
    }
}

// Goal: G3 also where the target did not start at once: a source that ran and wrote meanwhile is
// found when the start is tried again. Method: a start that fails, a source that is started by
// hand, writes and is stopped.
#[test]
fn a_source_that_ran_before_the_start_was_tried_again_is_found() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    let fails = [Behaviour::Fails(ErrorKind::Io)];
    scene.target.next(Call::Start, fails);
    ask(&mut job, Ask::Complete);
    assert_eq!(job.report().phase, "starting_target");
    scene.source.set_power(Power::On);
    scene.guest_writes("os", 5, 0x55);
    scene.source.set_power(Power::Off);

    ask(&mut job, Ask::Resume);

    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("starting_target", true));
    assert!(said(&report).contains("was written to"), "{report:?}");
    assert_eq!(scene.target.real_power(), Power::Off);
    ask(&mut job, Ask::Undo);
    assert_eq!(scene.source.real_power(), Power::On);
}

// Goal: a source that could not be given back at once is not copied from as if it had not been: a
// resume starts it. The job says that both sides are off, also while it is cancelled. Method: a
// late write, and starts of the source that fail.
#[test]
fn giving_back_is_gone_on_with() {
    for cancels in [false, true] {
        let scene = Scene::new(&["os"]);
        let mut job = scene.start();
        run(&mut job);
        let fails = [
            Behaviour::Fails(ErrorKind::Io),
            Behaviour::Fails(ErrorKind::Io),
        ];
        scene.source.next(Call::Start, fails);
        write_late(&scene, &mut job);
        ask(&mut job, Ask::Complete);
        let report = job.report();
        assert_eq!((report.phase, report.suspended), ("sealing", true));
        assert!(said(&report).contains("is not started again"), "{report:?}");
        assert!(report.off && scene.source.real_power() == Power::Off);
        let (next, stands) = match cancels {
            true => (Ask::Cancel, "cancelling"),
            false => (Ask::Resume, "sealing"),
        };
        ask(&mut job, next);
        let report = job.report();
        assert_eq!((report.phase, report.off), (stands, true), "{report:?}");
        ask(&mut job, Ask::Resume);
        let report = job.report();
        assert_eq!(scene.source.real_power(), Power::On, "{report:?}");
        assert!(!report.off);
        assert_eq!(report.phase, if cancels { "cancelled" } else { "waiting" });
        assert_eq!(scene.target_bytes(), scene.old_target());
    }
}

// Goal: a commit comes to an end although something of the source cannot be reached any more: asked
// once more it leaves that, and says so. A disk that is written to between a deletion that failed
// and the next try is not deleted. Method: a hook that fails always, and one that fails once.
#[test]
fn a_commit_ends_although_a_deletion_fails() {
    for is_written in [false, true] {
        let scene = Scene::new(&["os"]);
        let mut spec = scene.spec();
        spec.policy.delete_source_disks = true;
        let flag = scene.dir.path().join("may");
        let script = format!("[ -e {} ] && rm -f $FAILBACK_IMAGE", flag.display());
        let machine: Arc<dyn Machine> = Arc::new(scene.source.clone());
        let host = LocalHost::new(machine, Some(Arc::new(Copies)));
        let sides = Sides {
            source: Arc::new(host.deleting_by(Hook::new(["sh", "-c", &script]))),
            ..scene.sides()
        };
        let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
        bring_home(&mut job);
        ask(&mut job, Ask::Commit);
        let report = job.report();
        assert_eq!((report.phase, report.suspended), ("releasing", true));
        assert_eq!(report.allowed, ["commit", "resume"]);
        if is_written {
            overwrite(&scene.source_of("os"), 0, b"somebody");
            fs::write(&flag, "").unwrap();
            ask(&mut job, Ask::Resume);
        } else {
            ask(&mut job, Ask::Commit);
        }
        let report = job.report();
        assert_eq!((report.phase, report.suspended), ("finished", false));
        assert!(scene.source_of("os").exists());
        assert!(report.to_html(&[]).contains("not deleted: "));
    }
}

// Goal: who asks for a commit that cannot be is told, and not undone instead. Method: a deadline
// for an undo, a source that runs.
#[test]
fn a_refused_commit_does_not_become_an_undo() {
    let scene = Scene::new(&["os"]);
    let mut spec = scene.spec();
    spec.policy.undo_after = Some(Duration::from_secs(2));
    let mut job = Job::start(&scene.jobs(), spec, None, scene.sides()).unwrap();
    run(&mut job);
    let source = scene.source.clone();
    job.on_record(Arc::new(move |record| {
        if record.position.phase == Phase::CommitPending {
            source.set_power(Power::On);
        }
    }));
    job.ask(Ask::Complete).unwrap();
    let jobs = scene.jobs();
    std::thread::scope(|scope| {
        let runs = scope.spawn(|| run(&mut job));
        while JobReport::of(&look(&jobs, "web").unwrap()).phase != "commit_pending" {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(ask_another(&jobs, "web", Ask::Commit, &CancelToken::new()));
        runs.join().unwrap();
    });
    std::thread::sleep(Duration::from_millis(2100));
    run(&mut job);
    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("commit_pending", true));
    assert!(report.deadline.is_none());
}

// Goal: a job that an older build began, or whose directory was moved, protects its targets once it
// is taken up. Method: both markers removed.
#[test]
fn a_job_without_markers_gets_them() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    drop(job);
    let directory = scene.jobs().directory("web").unwrap();
    fs::remove_file(directory.join("open")).unwrap();
    for state in fs::read_dir(scene.dir.path().join(".failback")).unwrap() {
        drop(fs::remove_file(state.unwrap().path().join("owner")));
    }
    let mut job = Job::open(&scene.jobs(), "web", scene.sides()).unwrap();
    run(&mut job);
    for (what, kind) in by_hand(&scene) {
        assert_eq!(kind, ErrorKind::Refused, "{what}");
    }
}

// Goal: a target that is not mounted is no target that was brought back. Method: it and its state
// are elsewhere while the job is undone, then back.
#[test]
fn an_undo_waits_for_targets_that_are_not_there() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    bring_home(&mut job);
    let there = [scene.target_of("os"), scene.dir.path().join(".failback")];
    let away = there.clone().map(|path| path.with_extension("away"));
    for (from, to) in there.iter().zip(&away) {
        fs::rename(from, to).unwrap();
    }
    ask(&mut job, Ask::Undo);
    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("undoing", true));
    assert_eq!(scene.source.real_power(), Power::On);
    for (from, to) in away.iter().zip(&there) {
        fs::rename(from, to).unwrap();
    }
    ask(&mut job, Ask::Resume);
    assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
    assert_eq!(scene.target_bytes(), scene.old_target());
}

// Goal: a start that fails leaves nothing. Method: a definition that no journal's entry can hold.
#[test]
fn a_job_that_cannot_begin_leaves_nothing() {
    let scene = Scene::new(&["os"]);
    let mut spec = scene.spec();
    spec.policy.export_on_undo = Some(PathBuf::from(format!("/{}", "a/".repeat(40_000))));
    let refused = Job::start(&scene.jobs(), spec, None, scene.sides());
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Usage);
    assert!(!scene.jobs().directory("web").unwrap().exists());
}
