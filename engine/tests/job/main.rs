//! Failback jobs with machines that are scripts: every phase, every end, a crash at every record.

#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod asks;
mod changed;
mod crashes;
mod deleting;
mod fencing;
mod hinted;
mod holding;
mod losing;
mod preflighted;
mod relay;
mod remote_hints;
mod scene;
mod setbacks;
mod slow_scan;
mod starting;
mod telling;
mod two_hosts;
mod watched;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use failback_engine::disk::OpenOptions;
use failback_engine::endpoint::Endpoint;
use failback_engine::job::{
    Ask, Job, JobReport, LocalHost, Phase, Position, Sides, ask_another, look, reverse_of,
};
use failback_engine::machine::{Behaviour, Call, Power};
use failback_engine::operation::{SyncRequest, info, sync};
use failback_engine::transport::Apply;
use failback_engine::{CancelToken, ErrorKind, Silent};

use scene::{Copies, Scene, ask, overwrite, run};
use watched::Watched;

fn phase(job: &Job) -> Phase {
    job.position().phase
}

// Goal: the whole way home: what the guest wrote before the stop is on the target, which runs, and
// after commit nothing is left to undo. Method: one disk and two, a guest that writes between the
// passes and until it is stopped.
#[test]
fn a_machine_comes_home() {
    for disks in [&["os"][..], &["os", "data"]] {
        let scene = Scene::new(disks);
        let mut job = scene.start();
        run(&mut job);
        assert_eq!(phase(&job), Phase::Waiting, "{:?}", job.report());
        let old = scene.target_bytes();
        scene.guest_writes("os", 3, 0xaa);
        assert_eq!(scene.target_bytes(), old, "untouched before COMMIT");

        ask(&mut job, Ask::Complete);

        assert_eq!(phase(&job), Phase::CommitPending, "{:?}", job.report());
        assert_eq!(scene.target_bytes(), scene.source_bytes());
        assert_eq!(scene.target_bytes()[0][3 * 4096], 0xaa);
        let powers = (scene.source.real_power(), scene.target.real_power());
        assert_eq!(powers, (Power::Off, Power::On));
        let report = job.report();
        assert!(report.downtime.measured.is_some() && report.downtime.predicted.is_some());
        assert!(report.disks.iter().all(|disk| disk.root.is_some()));

        ask(&mut job, Ask::Commit);

        assert_eq!(phase(&job), Phase::Finished);
        assert_eq!(scene.leftovers(), Vec::<String>::new());
        let ends = (
            scene.source.count(Call::Start),
            scene.target.count(Call::Start),
        );
        assert_eq!(ends, (0, 1));
    }
}

// Goal: G5, cancel is harmless at every phase before COMMIT, and undo gives the same after it.
// Method: both, with the guest's later writes kept on the source.
#[test]
fn cancel_and_undo_give_back_what_was() {
    for (completes, give_up, end) in [
        (false, Ask::Cancel, Phase::Cancelled),
        (true, Ask::Undo, Phase::Undone),
    ] {
        let scene = Scene::new(&["os", "data"]);
        let old = scene.target_bytes();
        let mut job = scene.start();
        run(&mut job);
        scene.guest_writes("data", 5, 0x55);
        let source = scene.source_bytes();
        if completes {
            ask(&mut job, Ask::Complete);
            assert_eq!(phase(&job), Phase::CommitPending, "{:?}", job.report());
        }

        ask(&mut job, give_up);

        assert_eq!(phase(&job), end, "{:?}", job.report());
        assert_eq!(scene.target_bytes(), old);
        assert_eq!(scene.source_bytes(), source);
        let powers = (scene.source.real_power(), scene.target.real_power());
        assert_eq!(powers, (Power::On, Power::Off));
        assert_eq!(scene.leftovers(), Vec::<String>::new());
        // The pair is as it was: the same job can be done again.
        drop(job);
        let mut again = scene.start();
        run(&mut again);
        assert_eq!(phase(&again), Phase::Waiting, "{:?}", again.report());
    }
}

// Goal: a guest that ignores the request to shut down is not cut off: the job stands, says why, and
// the source runs. With a policy that says so it is forced. Method: a machine that ignores it.
#[test]
fn a_guest_that_does_not_shut_down() {
    let scene = Scene::new(&["os"]);
    scene.source.always(Call::ShutDown, Behaviour::Ignores);
    let mut job = scene.start();
    run(&mut job);
    ask(&mut job, Ask::Complete);
    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("waiting", true));
    assert!(report.error.unwrap().message.contains("did not shut down"));
    assert_eq!(scene.source.real_power(), Power::On);
    let old = scene.target_bytes();
    ask(&mut job, Ask::Cancel);
    assert_eq!((phase(&job), scene.target_bytes()), (Phase::Cancelled, old));
    assert_eq!(scene.source.count(Call::PowerOff), 0);
    drop(job);

    let mut spec = scene.spec();
    spec.policy.force_stop = true;
    let mut job = Job::start(&scene.jobs(), spec, None, scene.sides()).unwrap();
    run(&mut job);
    ask(&mut job, Ask::Complete);
    assert_eq!(phase(&job), Phase::CommitPending, "{:?}", job.report());
    assert_eq!(scene.source.count(Call::PowerOff), 1);
    assert_eq!(scene.target_bytes(), scene.source_bytes());
}

// Goal: a machine that lies about being off is found out by nothing but its writes: the job ends
// only with equal roots, or stands before the target is started. Method: a "stopped" source whose
// disk changes during the final copy's proof.
#[test]
fn a_source_that_still_writes_is_found() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    let path = scene.source_of("os");
    job.on_record(Arc::new(move |record| {
        if format!("{:?}", record.fact).contains("Quiet") {
            overwrite(&path, 0, b"a late write");
        }
    }));
    ask(&mut job, Ask::Complete);
    let report = job.report();
    assert_eq!(
        (report.phase, report.suspended),
        ("waiting", true),
        "{report:?}"
    );
    assert_eq!(scene.target.count(Call::Start), 0);
    assert_eq!(scene.source.real_power(), Power::On, "it is given back");
}

// Goal: hooks that fail or hang stop a job where nothing is lost, and the reason is told. Method:
// each call of each machine in turn.
#[test]
fn a_machine_that_fails_suspends_the_job() {
    let failing = Behaviour::Fails(ErrorKind::Io);
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    scene.target.always(Call::Start, failing);
    ask(&mut job, Ask::Complete);
    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("starting_target", true));
    assert_eq!(report.allowed, ["undo", "resume"]);
    assert_eq!(scene.source.real_power(), Power::Off);
    scene.target.always(Call::Start, Behaviour::Obeys);
    ask(&mut job, Ask::Resume);
    assert_eq!(phase(&job), Phase::CommitPending);
    assert_eq!(scene.target_bytes(), scene.source_bytes());
}

// Goal: the same start is the same job; another is refused while it is not over. Method: keys.
#[test]
fn a_job_is_started_once() {
    let scene = Scene::new(&["os"]);
    let start = |key| Job::start(&scene.jobs(), scene.spec(), key, scene.sides());
    let mut job = start(Some("a")).unwrap();
    run(&mut job);
    assert_eq!(start(Some("a")).unwrap_err().kind(), ErrorKind::InUse);
    drop(job);
    assert_eq!(
        start(Some("a")).unwrap().position(),
        Position::at(Phase::Waiting)
    );
    assert_eq!(start(Some("b")).unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(start(None).unwrap_err().kind(), ErrorKind::Refused);
    let mut other = scene.spec();
    other.name = "other".to_owned();
    let error = Job::start(&scene.jobs(), other, None, scene.sides()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "it has the same target");
}

// Goal: a key is that of one definition, for good: what asks again with the same of both hears how
// the job ended, and never begins another by a change. Method: each, while the job waits and once
// it is over.
#[test]
fn a_key_is_of_one_definition() {
    let scene = Scene::new(&["os"]);
    let start = |spec, key| Job::start(&scene.jobs(), spec, key, scene.sides());
    let mut changed = scene.spec();
    changed.policy.force_stop = true;
    let mut job = start(scene.spec(), Some("a")).unwrap();
    run(&mut job);
    drop(job);
    let refused = || {
        let error = start(changed.clone(), Some("a")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.chain().contains("another definition"), "{error}");
    };
    refused();
    let mut job = start(scene.spec(), Some("a")).unwrap();
    ask(&mut job, Ask::Cancel);
    drop(job);
    refused();
    let job = start(scene.spec(), Some("a")).unwrap();
    assert_eq!(phase(&job), Phase::Cancelled);
    drop(job);
    let job = start(changed.clone(), Some("b")).unwrap();
    assert_eq!(phase(&job), Phase::Created);
}

// Goal: missing targets are made, after the source has stopped. Method: no disk at home.
#[test]
fn missing_disks_are_made_by_a_full_download() {
    let scene = Scene::new(&["os", "data"]);
    for disk in ["os", "data"] {
        std::fs::remove_file(scene.target_of(disk)).unwrap();
    }
    let mut job = scene.start();
    run(&mut job);
    assert_eq!(job.report().strategy, Some("full"));
    assert!(!scene.target_of("os").exists());
    ask(&mut job, Ask::Complete);
    assert_eq!(phase(&job), Phase::CommitPending, "{:?}", job.report());
    assert_eq!(scene.target_bytes(), scene.source_bytes());
    ask(&mut job, Ask::Undo);
    assert_eq!(phase(&job), Phase::Undone);
    assert!(!scene.target_of("os").exists());
}

// Goal: G8, the way back is warm: the map of the base stands for it, only what changed since the
// source was stopped travels; where the base is gone it is said, and everything does. Method: two
// pages written at home; no base.
#[test]
fn the_way_back_sends_what_changed_since_the_stop() {
    for has_base in [true, false] {
        let scene = Scene::new(&["os", "data"]);
        let mut job = scene.start();
        run(&mut job);
        scene.guest_writes("os", 3, 0xaa);
        assert_eq!(reverse_kind(&scene), ErrorKind::Refused, "not accepted yet");
        ask(&mut job, Ask::Complete);
        ask(&mut job, Ask::Commit);
        drop(job);
        overwrite(&scene.target_of("os"), 4096, &[0x77; 4096]);
        overwrite(&scene.target_of("data"), 8192, &[0x78; 4096]);
        if !has_base {
            std::fs::remove_file(scene.source_of("os")).unwrap();
            std::fs::remove_file(scene.source_of("data")).unwrap();
        }

        let back = reverse_of(&look(&scene.jobs(), "web").unwrap()).unwrap();
        let mut job = Job::start(&scene.jobs(), back, None, scene.sides_back()).unwrap();
        run(&mut job);

        let report = job.report();
        assert_eq!(report.phase, "waiting", "{report:?}");
        let (strategy, reason) = match has_base {
            true => ("delta", "map_trusted"),
            false => ("full", "target_missing"),
        };
        assert_eq!(report.strategy, Some(strategy));
        assert!(
            report.reasons.iter().any(|it| it == reason),
            "{:?}",
            report.reasons
        );
        let changed: u64 = report
            .passes
            .iter()
            .flat_map(|pass| &pass.disks)
            .map(|d| d.changed)
            .sum();
        assert_eq!(changed, if has_base { 2 * 4096 } else { 0 });
        ask(&mut job, Ask::Complete);
        assert_eq!(phase(&job), Phase::CommitPending, "{:?}", job.report());
        assert_eq!(scene.target_bytes(), scene.source_bytes());
        let powers = (scene.source.real_power(), scene.target.real_power());
        assert_eq!(powers, (Power::On, Power::Off));
    }
}

fn reverse_kind(scene: &Scene) -> ErrorKind {
    reverse_of(&look(&scene.jobs(), "web").unwrap())
        .unwrap_err()
        .kind()
}

// Goal: what an operator keeps of an earlier sync is not a job's to undo. Method: a sync that waits
// to be accepted; a job is refused in its preflight, and cancelled.
#[test]
fn the_undo_of_an_earlier_sync_is_left_alone() {
    let scene = Scene::new(&["os"]);
    let path = |path| Endpoint::Path(path);
    let earlier = scene.dir.path().join("earlier.raw");
    std::fs::write(&earlier, vec![5; scene::DISK_LEN]).unwrap();
    let request = SyncRequest {
        apply: Apply::StageKeepUndo,
        ..SyncRequest::new(path(earlier), path(scene.target_of("os")))
    };
    let report = sync(&request, &Silent, &CancelToken::new());
    assert!(report.error.is_none(), "{:?}", report.error);
    let kept = scene.target_bytes();
    let mut job = scene.start();
    run(&mut job);
    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("preflight", true));
    assert!(report.error.unwrap().message.starts_with("target_free"));

    ask(&mut job, Ask::Cancel);

    assert_eq!(phase(&job), Phase::Cancelled);
    assert_eq!(scene.target_bytes(), kept);
    let info = info(&scene.target_of("os"), &OpenOptions::default(), None).unwrap();
    assert_eq!(info.state, Some("new_verified"));
}

// Goal: who gives a job up while the guest shuts down does not take its power away, whatever the
// policy says of guests that do not. Method: a guest that takes its time, and a cancel.
#[test]
fn a_stop_that_is_given_up_forces_nothing() {
    let scene = Scene::new(&["os"]);
    scene.source.always(Call::ShutDown, Behaviour::Hangs);
    let mut spec = scene.spec();
    spec.policy.force_stop = true;
    let forced = Arc::new(AtomicUsize::new(0));
    let counted = forced.clone();
    let machine = Watched::new(&scene.source, move |call| {
        counted.fetch_add(usize::from(call == Call::PowerOff), Ordering::SeqCst);
    });
    let sides = Sides {
        source: Arc::new(LocalHost::new(Arc::new(machine), Some(Arc::new(Copies)))),
        ..scene.sides()
    };
    let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
    run(&mut job);
    job.ask(Ask::Complete).unwrap();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&mut job));
        while scene.source.count(Call::ShutDown) == 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        ask_another(&scene.jobs(), "web", Ask::Cancel, &CancelToken::new()).unwrap();
        running.join().unwrap();
    });
    assert_eq!(phase(&job), Phase::Cancelled, "{:?}", job.report());
    assert_eq!(
        forced.load(Ordering::SeqCst),
        0,
        "it was asked for its power"
    );
    assert_eq!(scene.source.real_power(), Power::On);
}

// Goal: a target that runs already is no target. Method: a machine that is on.
#[test]
fn a_target_that_runs_is_refused() {
    let scene = Scene::new(&["os"]);
    scene.target.set_power(Power::On);
    let mut job = scene.start();
    job.run(Default::default(), &Silent, &CancelToken::new())
        .unwrap();
    let report: JobReport = job.report();
    assert_eq!((report.phase, report.suspended), ("preflight", true));
    assert!(report.error.unwrap().message.starts_with("target_off"));
}
