//! What a job tells of itself: events on file, downtime learned, when it tries again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use failback_engine::job::{Ask, Basis, Clock, Fact, Finding, Job, Phase, Stay, events, plan};
use failback_engine::machine::{Behaviour, Call};
use failback_engine::{CancelToken, ErrorKind, Silent};

use super::scene::{Scene, ask, run};

/// A clock that goes only when somebody waits.
#[derive(Debug, Default)]
pub(crate) struct Waited(AtomicU64);

impl Clock for Waited {
    fn now_ms(&self) -> u64 {
        1_000_000 + self.0.load(Ordering::SeqCst)
    }

    fn pause(&self, _time: Duration) {
        self.0.fetch_add(10_000, Ordering::SeqCst);
    }
}

const RETRIES: Stay = Stay {
    leaves_waiting: true,
    retries: true,
    retries_while_off: false,
};

// Goal: a failure that may pass is tried again after 1, 2, 4 minutes, noted in the journal, and the
// job goes on when it passes; of another kind it stands. Method: a machine that is in use for three
// tries, and one that is broken.
#[test]
fn what_may_pass_is_tried_again() {
    let scene = Scene::new(&["os"]);
    let in_use = Behaviour::Fails(ErrorKind::InUse);
    scene.target.always(Call::Start, in_use);
    let mut job = scene.start();
    let clock = Arc::new(Waited::default());
    job.wait_by(clock.clone());
    run(&mut job);
    let target = scene.target.clone();
    job.on_record(Arc::new(move |record| {
        if matches!(record.fact, Some(Fact::Retry { attempt: 3, .. })) {
            target.always(Call::Start, Behaviour::Obeys);
        }
    }));
    job.ask(Ask::Complete).unwrap();
    job.run(RETRIES, &Silent, &CancelToken::new()).unwrap();
    assert_eq!(job.position().phase, Phase::CommitPending);
    let waited = clock.0.load(Ordering::SeqCst);
    assert_eq!(waited / 60_000, 1 + 2 + 4, "minutes");
    assert_eq!(job.report().retry, None);

    let scene = Scene::new(&["os"]);
    scene
        .target
        .always(Call::Start, Behaviour::Fails(ErrorKind::Io));
    let mut job = scene.start();
    job.wait_by(Arc::new(Waited::default()));
    run(&mut job);
    job.ask(Ask::Complete).unwrap();
    job.run(RETRIES, &Silent, &CancelToken::new()).unwrap();
    assert!(job.position().is_suspended);
    assert_eq!(job.report().retry, None);
}

// Goal: a job that waits to try again tells when, and does not move that when its process is taken
// over. Method: a caller that cancels while it waits, and another job after it.
#[test]
fn the_time_of_a_retry_is_kept() {
    let scene = Scene::new(&["os"]);
    let in_use = Behaviour::Fails(ErrorKind::InUse);
    scene.target.always(Call::Start, in_use);
    let mut job = scene.start();
    run(&mut job);
    job.ask(Ask::Complete).unwrap();
    let cancel = CancelToken::new();
    let cancelled = cancel.clone();
    job.on_record(Arc::new(move |record| {
        if matches!(record.fact, Some(Fact::Retry { .. })) {
            cancelled.cancel();
        }
    }));
    let error = job.run(RETRIES, &Silent, &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let report = job.report();
    let retry = report.retry.unwrap();
    assert_eq!((retry.attempt, report.suspended), (1, true));
    assert!(report.error.unwrap().is_transient);
    drop(job);
    let mut job = Job::open(&scene.jobs(), "web", scene.sides()).unwrap();
    let cancel = CancelToken::new();
    cancel.cancel();
    job.run(RETRIES, &Silent, &cancel).unwrap_err();
    assert_eq!(job.report().retry, Some(retry));
}

// Goal: the second job of a pair predicts with what the first measured, and says so. Method: two
// jobs, the second after the first was undone.
#[test]
fn a_pair_learns_how_long_its_machines_take() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    let bases = |job: &Job| {
        let parts = job.report().downtime.parts;
        let of = |part: &str| parts.iter().find(|it| it.part == part).unwrap().basis;
        (of("stop"), of("start"))
    };
    assert_eq!(bases(&job), (Basis::Assumed, Basis::Assumed));
    ask(&mut job, Ask::Complete);
    ask(&mut job, Ask::Undo);
    assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
    drop(job);
    let mut job = scene.start();
    run(&mut job);
    assert_eq!(bases(&job), (Basis::Measured, Basis::Measured));
    ask(&mut job, Ask::Complete);
    let downtime = job.report().downtime;
    let (predicted, measured) = (downtime.predicted.unwrap(), downtime.measured.unwrap());
    let off = (predicted - measured).abs();
    assert!(off <= 0.2 * predicted + 2.0, "{predicted} {measured}");
}

// Goal: what a job told is on file, over several runs of it, and a new job of the name begins anew.
// Method: a job in two runs, then another.
#[test]
fn events_of_a_job_are_on_file() {
    let scene = Scene::new(&["os", "data"]);
    let mut job = scene.start();
    run(&mut job);
    drop(job);
    let mut job = Job::open(&scene.jobs(), "web", scene.sides()).unwrap();
    ask(&mut job, Ask::Complete);
    ask(&mut job, Ask::Undo);
    drop(job);
    let told = events(&scene.jobs(), "web").unwrap();
    let phases: Vec<_> = told.iter().filter(|it| it.kind == "job_phase").collect();
    for phase in ["presync", "final_delta", "undone"] {
        assert!(
            phases.iter().any(|it| it.event["phase"] == phase),
            "{phase}"
        );
    }
    let last = told.iter().rfind(|it| it.kind == "job_progress").unwrap();
    assert_eq!(last.event["phase"], "final_delta");
    assert!(last.event["disks"].as_array().unwrap().len() == 2);
    assert!(last.event["disks"][0]["phase"] == "done");
    drop(scene.start());
    assert_eq!(events(&scene.jobs(), "web").unwrap(), []);
}

// Goal: limits of a platform stop a job in its preflight, with rule and source, and what holds is
// told too. Method: raw disks, which that platform does not take, in a plan and a job.
#[test]
fn a_profile_is_held_against_the_disks() {
    let scene = Scene::new(&["os"]);
    let mut spec = scene.spec();
    spec.policy.profile = Some("azure-hyperv/2020-01".to_owned());
    let plan = plan(&spec, &scene.sides(), &Silent, &CancelToken::new()).unwrap();
    let wrong: Vec<_> = plan.findings.iter().filter(|it| !it.holds).collect();
    let rules: Vec<_> = wrong.iter().map(|it| it.rule.as_str()).collect();
    assert_eq!(
        rules,
        [
            "azure-hyperv/2020-01:format",
            "azure-hyperv/2020-01:upload_size"
        ]
    );
    assert!(wrong[0].source.as_ref().unwrap().contains("2020-01"));
    let mut job = Job::start(&scene.jobs(), spec.clone(), None, scene.sides()).unwrap();
    run(&mut job);
    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("preflight", true));
    // Free space is another one each time.
    let about = |found: &[Finding]| -> Vec<_> {
        let about = |it: &Finding| (it.rule.clone(), it.holds, it.source.clone());
        found.iter().map(about).collect()
    };
    assert_eq!(about(&report.findings), about(&plan.findings));
    spec.name = "other".to_owned();
    spec.policy.profile = Some("azure-hyperv".to_owned());
    assert_eq!(spec.check().unwrap_err().kind(), ErrorKind::Usage);
}
