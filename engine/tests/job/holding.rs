//! A job that stands right before the target is started.

use std::time::Duration;

use failback_engine::ErrorKind;
use failback_engine::job::{Ask, Job, Phase, Position};
use failback_engine::machine::{Behaviour, Call, Power};

use super::scene::{Scene, ask, overwrite, run};

fn powers(scene: &Scene) -> (Power, Power) {
    (scene.source.real_power(), scene.target.real_power())
}

// Goal: `complete --hold` ends with the new disks proven, both machines off and nobody in charge,
// in whatever process that is looked at, until completing is asked for; how long it held is told
// apart from the rest of the downtime. Method: held, looked at by another process, resumed, which
// is refused, and completed; the same asked twice.
#[test]
fn a_held_job_starts_nothing_until_it_is_completed() {
    let scene = Scene::new(&["os", "data"]);
    let mut job = scene.start();
    run(&mut job);
    scene.guest_writes("os", 3, 0xaa);

    ask(&mut job, Ask::Hold);

    let held = Position::at(Phase::StartingTarget);
    assert_eq!(job.position(), held, "{:?}", job.report());
    assert_eq!(powers(&scene), (Power::Off, Power::Off));
    assert_eq!(scene.target_bytes(), scene.source_bytes());
    drop(job);
    let mut job = Job::open(&scene.jobs(), "web", scene.sides()).unwrap();
    run(&mut job);
    assert_eq!(job.position(), held, "{:?}", job.report());
    assert_eq!(powers(&scene), (Power::Off, Power::Off));
    let report = job.report();
    assert!(report.held, "{report:?}");
    assert_eq!(report.allowed, ["complete", "hold", "undo"]);
    job.ask(Ask::Hold).unwrap();
    assert_eq!(report.authority, None);
    let refused = job.ask(Ask::Resume).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    std::thread::sleep(Duration::from_millis(300));

    ask(&mut job, Ask::Complete);

    let report = job.report();
    assert_eq!(report.phase, "commit_pending", "{report:?}");
    assert!(!report.held);
    assert_eq!(powers(&scene), (Power::Off, Power::On));
    let held = report.downtime.held.unwrap();
    assert!(held >= 0.3 && report.downtime.measured.unwrap() >= held);
}

// Goal: a held job can still be given up, and what was asked last counts: completing takes a hold
// back, holding a completion, as long as the target was not started. Method: undo while it is held;
// both asked before the first pass, in either order, twice.
#[test]
fn a_hold_can_be_undone_and_taken_back() {
    let scene = Scene::new(&["os"]);
    let old = scene.target_bytes();
    let mut job = scene.start();
    run(&mut job);
    ask(&mut job, Ask::Hold);
    ask(&mut job, Ask::Undo);
    assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
    assert_eq!(scene.target_bytes(), old);
    assert_eq!(powers(&scene), (Power::On, Power::Off));

    for (asks, end) in [
        (
            [Ask::Hold, Ask::Complete, Ask::Complete],
            Phase::CommitPending,
        ),
        ([Ask::Complete, Ask::Hold, Ask::Hold], Phase::StartingTarget),
    ] {
        let scene = Scene::new(&["os"]);
        let mut job = scene.start();
        for ask in asks {
            job.ask(ask).unwrap();
        }
        run(&mut job);
        assert_eq!(job.position().phase, end, "{:?}", job.report());
    }
}

// Goal: G2, what was proven is what is started, however long the hold lasted: a target that
// somebody wrote to meanwhile is not, and the way back is open. Method: bytes written to the held
// target.
#[test]
fn a_held_target_that_was_written_to_is_not_started() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    ask(&mut job, Ask::Hold);
    overwrite(&scene.target_of("os"), 5000, b"somebody");

    ask(&mut job, Ask::Complete);

    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("starting_target", true));
    assert_eq!(report.error.unwrap().kind, "verify_failed");
    assert_eq!(powers(&scene), (Power::Off, Power::Off));
    ask(&mut job, Ask::Undo);
    assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
    assert_eq!(powers(&scene), (Power::On, Power::Off));
}

// Goal: where nothing was told to wait, completing is asked for once: a job on the way to the start
// of its target refuses it, and says what can be asked. Method: a target that does not start.
#[test]
fn nobody_completes_what_is_not_held() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    let fails = [Behaviour::Fails(ErrorKind::Io)];
    scene.target.next(Call::Start, fails);
    ask(&mut job, Ask::Complete);
    let at = job.position();
    assert_eq!((at.phase, at.is_suspended), (Phase::StartingTarget, true));
    for wanted in [Ask::Complete, Ask::Hold] {
        let refused = job.ask(wanted).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
        assert!(refused.chain().contains("now: undo, resume"), "{refused:?}");
    }
    assert!(!job.report().held);
    ask(&mut job, Ask::Resume);
    assert_eq!(job.position().phase, Phase::CommitPending);
}
