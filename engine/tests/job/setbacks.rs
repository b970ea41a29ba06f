//! What goes wrong on the way, and what a machine's owner finds then: one side that runs, the disks
//! that it had, and a job that says what to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use failback_engine::hook::Hook;
use failback_engine::job::{
    Ask, Fact, Job, JobReport, LocalHost, Phase, Sides, SourceHost, Stay, ask_another,
};
use failback_engine::machine::{Behaviour, Call, FakeMachine, Power};
use failback_engine::snapshot::{SnapshotId, SnapshotProvider};
use failback_engine::system::{Access, HostFile};
use failback_engine::{CancelToken, Error, ErrorKind, Result, Silent, Step};

use super::hinted::{Concealing, HONEST, facts, large_scene};
use super::scene::{Copies, Scene, ask, overwrite, run};

fn powers(scene: &Scene) -> (Power, Power) {
    (scene.source.real_power(), scene.target.real_power())
}

fn stands(report: &JobReport) -> (&str, bool) {
    (report.phase, report.suspended)
}

/// Does something when the first such record is written.
fn at_first(
    job: &mut Job,
    is_it: impl Fn(&Fact) -> bool + Send + Sync + 'static,
    does: impl Fn() + Send + Sync + 'static,
) {
    let is_done = AtomicBool::new(false);
    job.on_record(Arc::new(move |record| {
        let is_met = record.fact.as_ref().is_some_and(&is_it);
        if is_met && !is_done.swap(true, Ordering::SeqCst) {
            does();
        }
    }));
}

/// The guest goes down, whatever was said before.
fn goes_off_after(machine: &FakeMachine, millis: u64) {
    let machine = machine.clone();
    std::thread::spawn(move || {
        sleep(Duration::from_millis(millis));
        machine.set_power(Power::Off);
    });
}

/// Something fails after the stop: the source runs again, and the job stands.
fn complete_in_vain(scene: &Scene, job: &mut Job) {
    ask(job, Ask::Complete);
    let report = job.report();
    assert_eq!(stands(&report), ("waiting", true), "{report:?}");
    assert_eq!(powers(scene), (Power::On, Power::Off));
}

// Goal: a guest that shuts down after the limit was on when the job began, and every way back leads
// there. Method: it goes off once the job stands; cancelled at once, or completed and undone.
#[test]
fn a_guest_that_shuts_down_too_late_runs_again_in_the_end() {
    for completes in [false, true] {
        let scene = Scene::in_memory(&["os"]);
        scene.source.next(Call::ShutDown, [Behaviour::Ignores]);
        let mut job = scene.start();
        run(&mut job);
        ask(&mut job, Ask::Complete);
        assert_eq!(stands(&job.report()), ("waiting", true));
        scene.source.set_power(Power::Off);

        let ends = match completes {
            false => [Ask::Cancel].as_slice(),
            true => &[Ask::Resume, Ask::Undo],
        };
        ends.iter().for_each(|end| ask(&mut job, *end));

        assert!(job.position().phase.is_end(), "{:?}", job.report());
        assert_eq!(powers(&scene), (Power::On, Power::Off));
        assert_eq!(scene.target_bytes(), scene.old_target());
    }
}

// Goal: a guest cannot be asked not to shut down after all; who cancels meanwhile has it running in
// the end. Method: cancelled while the machine is waited for, which goes off a moment later.
#[test]
fn cancelled_while_the_guest_goes_down() {
    let scene = Scene::in_memory(&["os"]);
    scene.source.next(Call::ShutDown, [Behaviour::Hangs]);
    let mut job = scene.start();
    run(&mut job);
    let jobs = scene.jobs();
    let machine = scene.source.clone();
    let is_stopping = |fact: &Fact| {
        matches!(
            fact,
            Fact::Epoch {
                authority: None,
                ..
            }
        )
    };
    at_first(&mut job, is_stopping, move || {
        let (jobs, machine) = (jobs.clone(), machine.clone());
        std::thread::spawn(move || {
            ask_another(&jobs, "web", Ask::Cancel, &CancelToken::new()).unwrap();
            goes_off_after(&machine, 300);
        });
    });

    ask(&mut job, Ask::Complete);

    assert_eq!(job.position().phase, Phase::Cancelled, "{:?}", job.report());
    assert_eq!(powers(&scene), (Power::On, Power::Off));
    assert_eq!(scene.source.count(Call::Start), 1);
}

// Goal: power is taken away when the time is over, and not because a question failed. Method: a
// hook that fails, and a guest that shuts down all the same.
#[test]
fn a_failed_question_is_no_reason_for_force() {
    let scene = Scene::in_memory(&["os"]);
    scene
        .source
        .always(Call::ShutDown, Behaviour::Fails(ErrorKind::Io));
    let mut spec = scene.spec();
    spec.policy.force_stop = true;
    let mut job = Job::start(&scene.jobs(), spec, None, scene.sides()).unwrap();
    run(&mut job);
    goes_off_after(&scene.source, 300);
    ask(&mut job, Ask::Complete);
    assert_eq!(
        job.position().phase,
        Phase::CommitPending,
        "{:?}",
        job.report()
    );
    assert_eq!(scene.source.count(Call::PowerOff), 0);
}

// Goal: what fails after the stop gives the source back, and what was sealed is not what the target
// gets when the guest has written since. Method: a late write after the copies of both disks, then
// writes of the guest, then once more.
#[test]
fn a_failure_after_the_stop_gives_the_source_back() {
    let scene = Scene::in_memory(&["os", "data"]);
    let mut job = scene.start();
    run(&mut job);
    let path = scene.source_of("data");
    let is_copied = |fact: &Fact| matches!(fact, Fact::Final { .. });
    at_first(&mut job, is_copied, move || {
        overwrite(&path, 0, b"a late write");
    });
    ask(&mut job, Ask::Complete);
    let report = job.report();
    assert_eq!(stands(&report), ("waiting", true), "{report:?}");
    assert_eq!(report.allowed, ["cancel", "resume"]);
    let error = report.error.unwrap();
    assert!(
        !error.is_transient && error.message.contains("in charge again"),
        "{error:?}"
    );
    assert_eq!(powers(&scene), (Power::On, Power::Off));
    assert_eq!(scene.target_bytes(), scene.old_target());
    scene.guest_writes("os", 5, 0x51);
    scene.guest_writes("data", 6, 0x52);

    ask(&mut job, Ask::Resume);

    assert_eq!(
        job.position().phase,
        Phase::CommitPending,
        "{:?}",
        job.report()
    );
    assert_eq!(scene.target_bytes(), scene.source_bytes());
    assert_eq!(powers(&scene), (Power::Off, Power::On));
}

// Goal: a disk that is sealed beside one that is not is no obstacle on the way back, nor later.
// Method: the second disk grows once the source was stopped; cancelled, or mended and resumed.
#[test]
fn one_disk_of_two_fails() {
    for gives_up in [true, false] {
        let scene = Scene::in_memory(&["os", "data"]);
        let mut job = scene.start();
        run(&mut job);
        let path = scene.source_of("data");
        let is_stopped = |fact: &Fact| matches!(fact, Fact::Stopped { .. });
        at_first(&mut job, is_stopped, move || set_len(&path, 1 << 22));
        complete_in_vain(&scene, &mut job);
        set_len(&scene.source_of("data"), 3 << 20);

        if gives_up {
            ask(&mut job, Ask::Cancel);
            assert_eq!(job.position().phase, Phase::Cancelled);
            assert_eq!(scene.target_bytes(), scene.old_target());
            assert_eq!(scene.leftovers(), Vec::<String>::new());
            continue;
        }
        scene.guest_writes("os", 5, 0x51);
        ask(&mut job, Ask::Resume);
        assert_eq!(
            job.position().phase,
            Phase::CommitPending,
            "{:?}",
            job.report()
        );
        assert_eq!(scene.target_bytes(), scene.source_bytes());
    }
}

// Goal: a machine that is stopped, and whose disk somebody else has, is given back like any other
// that cannot go on. Method: another program opens the disk for writing once the machine is off.
#[test]
fn a_disk_that_is_not_let_go_of_gives_the_source_back() {
    let scene = Scene::in_memory(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    let (path, held) = (scene.source_of("os"), Arc::new(Mutex::new(None)));
    let holds = held.clone();
    let is_stopped = |fact: &Fact| matches!(fact, Fact::Stopped { .. });
    at_first(&mut job, is_stopped, move || {
        *holds.lock().unwrap() = Some(Image::open(&path));
    });
    complete_in_vain(&scene, &mut job);
    drop(held.lock().unwrap().take());
    ask(&mut job, Ask::Resume);
    assert_eq!(
        job.position().phase,
        Phase::CommitPending,
        "{:?}",
        job.report()
    );
    assert_eq!(scene.target_bytes(), scene.source_bytes());
}

fn set_len(path: &Path, len: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

// Goal: never both sides, also when somebody else starts one. Method: the other machine is started
// by hand between the copy and COMMIT, between COMMIT and the start, after the start.
#[test]
fn machines_that_somebody_else_starts() {
    for (fact, side, stands_in) in [
        ("Final", "target", "sealing"),
        ("Applied", "target", "starting_target"),
        ("Applied", "source", "starting_target"),
    ] {
        let scene = Scene::in_memory(&["os"]);
        let mut job = scene.start();
        run(&mut job);
        let machine = match side {
            "target" => scene.target.clone(),
            _ => scene.source.clone(),
        };
        job.on_record(Arc::new(move |record| {
            if format!("{:?}", record.fact).starts_with(&format!("Some({fact}")) {
                machine.set_power(Power::On);
            }
        }));
        ask(&mut job, Ask::Complete);
        let report = job.report();
        assert_eq!(stands(&report), (stands_in, true), "{report:?}");
        assert_ne!(powers(&scene), (Power::On, Power::On));
        assert_eq!(scene.target.count(Call::Start), 0);
    }
    let scene = Scene::in_memory(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    ask(&mut job, Ask::Complete);
    scene.source.set_power(Power::On);
    ask(&mut job, Ask::Commit);
    assert_eq!(stands(&job.report()), ("commit_pending", true));
    scene.source.set_power(Power::Off);
    ask(&mut job, Ask::Resume);
    ask(&mut job, Ask::Commit);
    assert_eq!(job.position().phase, Phase::Finished);
}

// Goal: what held weeks ago is looked at again before anything is stopped. Method: somebody starts
// the target, or has its disk, while the job waits; then it is as before, and the job goes on.
#[test]
fn what_has_changed_while_a_job_waited() {
    for case in ["on", "used"] {
        let scene = Scene::in_memory(&["os"]);
        let mut job = scene.start();
        run(&mut job);
        let held = match case {
            "on" => {
                scene.target.set_power(Power::On);
                None
            }
            _ => Some(Image::open(&scene.target_of("os"))),
        };
        ask(&mut job, Ask::Complete);
        let report = job.report();
        assert_eq!(stands(&report), ("stopping_source", true), "{case}");
        assert_eq!(scene.source.real_power(), Power::On);
        assert_eq!(scene.source.count(Call::ShutDown), 0, "{case}");
        drop(held);
        scene.target.set_power(Power::Off);
        ask(&mut job, Ask::Resume);
        assert_eq!(
            job.position().phase,
            Phase::CommitPending,
            "{:?}",
            job.report()
        );
    }
}

/// A disk image that another program has open for writing.
struct Image {
    _locked: HostFile,
}

impl Image {
    fn open(path: &Path) -> Self {
        Self {
            _locked: HostFile::open(path, Access::Write).unwrap(),
        }
    }
}

/// Copies that cannot be let go of for a while.
#[derive(Debug)]
struct Sticky(Arc<AtomicBool>);

impl SnapshotProvider for Sticky {
    fn create(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<PathBuf> {
        Copies.create(image, id, step)
    }

    fn release(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<()> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(Error::new(ErrorKind::Io, "the volume is busy")),
            false => Copies.release(image, id, step),
        }
    }

    fn list(&self, image: &Path, job: &str, step: &Step<'_>) -> Result<Vec<SnapshotId>> {
        Copies.list(image, job, step)
    }
}

// Goal: the service is back before what may fail for ever. Method: a snapshot that cannot be let go
// of, while a job is undone and while one is cancelled after the stop.
#[test]
fn the_source_runs_although_a_snapshot_stays() {
    for (give_up, phase, end) in [
        (Ask::Undo, "undoing", Phase::Undone),
        (Ask::Cancel, "cancelling", Phase::Cancelled),
    ] {
        let scene = Scene::in_memory(&["os"]);
        let is_stuck = Arc::new(AtomicBool::new(false));
        let (spec, _) = scene.tracked(HONEST);
        let host = LocalHost::new(
            Arc::new(scene.source.clone()),
            Some(Arc::new(Sticky(is_stuck.clone()))),
        );
        let sides = Sides {
            source: Arc::new(host.tracked_by(Arc::new(HONEST))),
            target: Arc::new(scene.target.clone()),
        };
        let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
        run(&mut job);
        if give_up == Ask::Cancel {
            scene.source.next(Call::ShutDown, [Behaviour::Ignores]);
        }
        ask(&mut job, Ask::Complete);
        is_stuck.store(true, Ordering::SeqCst);

        ask(&mut job, give_up);

        assert_eq!(stands(&job.report()), (phase, true), "{:?}", job.report());
        assert_eq!(powers(&scene), (Power::On, Power::Off));
        assert_eq!(scene.target_bytes(), scene.old_target());
        is_stuck.store(false, Ordering::SeqCst);
        ask(&mut job, Ask::Resume);
        assert_eq!(job.position().phase, end);
        assert_eq!(scene.leftovers(), Vec::<String>::new());
        let state = job.report().disks[0].state.clone();
        assert_eq!(state.as_deref(), Some("old"));
    }
}

// Goal: an undo that stood looks again whether the target is off. Method: the source cannot be
// started at first, and somebody starts the target meanwhile.
#[test]
fn an_undo_stops_the_target_each_time() {
    let scene = Scene::in_memory(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    ask(&mut job, Ask::Complete);
    scene
        .source
        .next(Call::Start, [Behaviour::Fails(ErrorKind::Io)]);
    ask(&mut job, Ask::Undo);
    assert_eq!(stands(&job.report()), ("undoing", true));
    scene.target.set_power(Power::On);
    ask(&mut job, Ask::Resume);
    assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
    assert_eq!(powers(&scene), (Power::On, Power::Off));
}

// Goal: nothing of a pass that fails, or is ended, stays on a source that runs. Method: a target
// that is a folder when it is planned; an end during a pass.
#[test]
fn snapshots_go_with_what_they_were_made_for() {
    let scene = Scene::in_memory(&["os", "data"]);
    let mut job = scene.start();
    let path = scene.target_of("data");
    job.on_record(Arc::new(move |record| {
        if record.position.phase == Phase::Planning {
            drop(fs::remove_file(&path));
            drop(fs::create_dir(&path));
        }
    }));
    run(&mut job);
    assert_eq!(stands(&job.report()), ("planning", true));
    assert_eq!(scene.leftovers(), Vec::<String>::new());

    let scene = Scene::in_memory(&["os"]);
    let mut job = scene.start();
    let cancel = CancelToken::new();
    let cancels = cancel.clone();
    job.on_record(Arc::new(move |record| {
        let is_second = matches!(record.fact, Some(Fact::PassBegins { pass: 2 }));
        if is_second {
            cancels.cancel();
        }
    }));
    let ended = job.run(Stay::default(), &Silent, &cancel);
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(scene.leftovers(), Vec::<String>::new());
}

// Goal: a policy that goes back by itself does so above all when the target is not right. Method: a
// tracker that conceals a block, caught after the start; the audit may meet it before.
#[test]
fn a_target_that_is_not_right_is_undone_in_time() {
    let was_caught_late = (0..4).any(|_| {
        let scene = large_scene();
        let (mut spec, sides) = scene.tracked(Concealing);
        // Longer than the scan takes.
        spec.policy.undo_after = Some(Duration::from_secs(2));
        let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
        run(&mut job);
        overwrite(&scene.source_of("os"), 77 << 20, &[7; 4096]);
        ask(&mut job, Ask::Complete);
        assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
        assert_eq!(powers(&scene), (Power::On, Power::Off));
        let is_late =
            |fact: &Fact| matches!(fact, Fact::Failed { kind, .. } if kind == "verify_failed");
        facts(&job).iter().any(is_late)
    });
    assert!(was_caught_late, "the scan was never needed");
}

// Goal: G6, the disks of a source that is let go of are deleted once each, by the operator's hook,
// and nothing but them. Method: a hook that notes what it is told; one that is missing; then the
// disk is gone, and the way back is a full copy.
#[test]
fn disks_of_the_source_are_deleted_when_that_is_wanted() {
    for has_hook in [true, false] {
        let scene = Scene::in_memory(&["os", "data"]);
        let notes = scene.dir.path().join("deleted");
        let script = format!(
            "echo $FAILBACK_DISK >> {}; rm -f $FAILBACK_IMAGE",
            notes.display()
        );
        let host = LocalHost::new(Arc::new(scene.source.clone()), Some(Arc::new(Copies)));
        let host = match has_hook {
            true => host.deleting_by(Hook::new(["sh", "-c", &script])),
            false => host,
        };
        let sides = Sides {
            source: Arc::new(host),
            target: Arc::new(scene.target.clone()),
        };
        let mut spec = scene.spec();
        spec.policy.delete_source_disks = true;
        let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
        run(&mut job);
        ask(&mut job, Ask::Complete);
        ask(&mut job, Ask::Commit);
        assert_eq!(job.position().phase, Phase::Finished, "{:?}", job.report());
        let items = facts(&job).into_iter().filter_map(|fact| match fact {
            Fact::Item { item, said } if item.starts_with("delete-disk:") => Some(said),
            _ => None,
        });
        let items: Vec<_> = items.collect();
        let are_there = scene
            .disks
            .iter()
            .map(|disk| scene.source_of(disk).exists());
        match has_hook {
            true => {
                assert_eq!(items, ["deleted", "deleted"]);
                assert_eq!(fs::read_to_string(&notes).unwrap(), "os\ndata\n");
                assert!(!are_there.into_iter().any(|it| it));
            }
            false => {
                let is_told = |said: &String| said.starts_with("not deleted: ");
                assert!(items.len() == 2 && items.iter().all(is_told), "{items:?}");
                assert!(are_there.into_iter().all(|it| it));
            }
        }
    }
}

// Goal: no disk is deleted of a machine that may run. Method: one whose power cannot be found out,
// and one that is on.
#[test]
fn disks_of_a_machine_that_may_run_stay() {
    let scene = Scene::in_memory(&["os"]);
    let host = LocalHost::new(Arc::new(scene.source.clone()), None).deleting_by(Hook::new([
        "rm",
        "-f",
        scene.source_of("os").to_str().unwrap(),
    ]));
    let spec = scene.spec();
    let step = Step {
        job: "web",
        name: "delete-source",
        observer: &Silent,
        cancel: &CancelToken::new(),
    };
    let delete = || {
        host.delete_disk(&spec.disks[0], false, &step)
            .unwrap_err()
            .kind()
    };
    assert_eq!(delete(), ErrorKind::Refused);
    scene.source.set_power(Power::Off);
    scene
        .source
        .next(Call::Power, [Behaviour::Fails(ErrorKind::Io)]);
    assert_eq!(delete(), ErrorKind::Io);
    assert!(scene.source_of("os").exists());
}

// Goal: more disks than move at once come home. Method: ten.
#[test]
fn many_disks_come_home() {
    let scene = Scene::in_memory(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]);
    let mut job = scene.start();
    run(&mut job);
    scene.guest_writes("j", 6, 0x52);
    ask(&mut job, Ask::Complete);
    assert_eq!(
        job.position().phase,
        Phase::CommitPending,
        "{:?}",
        job.report()
    );
    assert_eq!(scene.target_bytes(), scene.source_bytes());
}
