//! A process that dies anywhere in a job: at every record of the journal, and after everything that
//! it did to a machine or snapshot. Dying is a panic that unwinds through the job; what is on disk
//! is all that the next process has.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use failback_engine::hook::Hook;
use failback_engine::job::{Ask, Job, JobSpec, LocalHost, Phase, Sides};
use failback_engine::machine::{Call, FakeMachine, Power};
use failback_engine::snapshot::{SnapshotId, SnapshotProvider};
use failback_engine::{Result, Step};

use super::scene::{Copies, Scene, ask, count_met, overwrite, run};
use super::watched::Watched;

/// Counts what happens, and dies at one of them.
#[derive(Clone, Debug)]
pub(crate) struct Fuse {
    left: Arc<AtomicUsize>,
    is_off: Arc<AtomicBool>,
}

impl Fuse {
    pub(crate) fn at(point: usize) -> Self {
        Self {
            left: Arc::new(AtomicUsize::new(point)),
            is_off: Arc::default(),
        }
    }

    /// One more thing happened.
    pub(crate) fn burn(&self) {
        match self.left.load(Ordering::SeqCst) {
            // It went off: whoever still runs is the same process, and dies as well.
            0 => {
                self.is_off.store(true, Ordering::SeqCst);
                panic!("killed");
            }
            left => self.left.store(left - 1, Ordering::SeqCst),
        }
    }

    fn went_off(&self) -> bool {
        self.is_off.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct Mortal(Fuse);

impl Mortal {
    fn did<R>(&self, result: R) -> R {
        self.0.burn();
        result
    }
}

impl SnapshotProvider for Mortal {
    fn create(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<PathBuf> {
        self.did(Copies.create(image, id, step))
    }

    fn release(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<()> {
        self.did(Copies.release(image, id, step))
    }

    fn list(&self, image: &Path, job: &str, step: &Step<'_>) -> Result<Vec<SnapshotId>> {
        Copies.list(image, job, step)
    }
}

fn mortal(scene: &Scene, fuse: &Fuse) -> Sides {
    mortal_deleting(scene, fuse, None)
}

/// The same with what deletes a disk of the source.
fn mortal_deleting(scene: &Scene, fuse: &Fuse, delete: Option<&Hook>) -> Sides {
    let machine = |inner: &FakeMachine| {
        let fuse = fuse.clone();
        // To be asked for its power does nothing to it.
        Watched::new(inner, move |call| match call {
            Call::Power => {}
            _ => fuse.burn(),
        })
    };
    let snapshots = Mortal(fuse.clone());
    let source = Arc::new(machine(&scene.source));
    let host = LocalHost::new(source, Some(Arc::new(snapshots)));
    Sides {
        source: Arc::new(match delete {
            Some(hook) => host.deleting_by(hook.clone()),
            None => host,
        }),
        target: Arc::new(machine(&scene.target)),
    }
}

/// What an operator wants in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Accept,
    /// The same, with a hold before the target is started.
    AcceptHeld,
    /// The same, and the source is deleted.
    AcceptAndDelete,
    /// Cancel once it waits, or undo once the target runs.
    GiveUp {
        after_commit: bool,
    },
    /// Undo once the target's guest has written.
    GiveUpWritten,
}

/// Asks what leads to the wish, until the job is over. Whoever asks again what was heard already is
/// refused, and asks for the next thing.
fn drive(job: &mut Job, scene: &Scene, wish: Wish) {
    let mut has_written = false;
    for _ in 0..20 {
        run(job);
        check(scene, job, wish);
        let at = job.position();
        assert!(!at.is_suspended, "{:?}", job.report());
        match (at.phase, wish) {
            (phase, _) if phase.is_end() => return,
            (
                Phase::Waiting,
                Wish::GiveUp {
                    after_commit: false,
                },
            ) => job.ask(Ask::Cancel).unwrap(),
            (Phase::Waiting, _) => {
                if !std::mem::replace(&mut has_written, true) {
                    scene.guest_writes(scene.disks[0], 9, 0x99);
                }
                let holds = wish == Wish::AcceptHeld;
                let ask = if holds { Ask::Hold } else { Ask::Complete };
                job.ask(ask).unwrap();
            }
            (Phase::StartingTarget, Wish::AcceptHeld) => {
                let powers = (scene.source.real_power(), scene.target.real_power());
                assert_eq!(powers, (Power::Off, Power::Off));
                job.ask(Ask::Complete).unwrap();
            }
            (Phase::CommitPending, Wish::Accept | Wish::AcceptHeld | Wish::AcceptAndDelete) => {
                job.ask(Ask::Commit).unwrap();
            }
            (Phase::CommitPending, _) => {
                if wish == Wish::GiveUpWritten {
                    overwrite(&scene.target_of(scene.disks[0]), 4096, &[0x77; 4096]);
                }
                job.ask(Ask::Undo).unwrap();
            }
            (phase, _) => panic!("rests in {phase:?}"),
        }
    }
    panic!("does not end: {:?}", job.report());
}

/// What holds at every moment: G1, one side runs at most; G2, the target runs on what the source
/// has; before COMMIT the target is old.
fn check(scene: &Scene, job: &Job, wish: Wish) {
    check_machines(scene, wish);
    let is_old = scene.target_bytes() == scene.old_target();
    let phase = job.position().phase;
    let is_before = !phase.is_committed();
    assert!(
        is_old || !is_before,
        "{phase:?}: the target was changed before COMMIT"
    );
}

fn check_machines(scene: &Scene, wish: Wish) {
    let powers = (scene.source.real_power(), scene.target.real_power());
    assert_ne!(powers, (Power::On, Power::On), "both sides run");
    let can_differ = matches!(wish, Wish::AcceptAndDelete | Wish::GiveUpWritten);
    if powers.1 == Power::On && !can_differ {
        assert_eq!(
            scene.target_bytes(),
            scene.source_bytes(),
            "started on another disk"
        );
    }
}

/// A job that dies at `point`, and one that takes it up. Whether it lived that long.
fn die_and_go_on(disks: &[&'static str], point: usize, wish: Wish) -> bool {
    let scene = Scene::small(disks);
    let fuse = Fuse::at(point);
    let sides = (mortal(&scene, &fuse), scene.sides());
    die_and_be_taken_up(&scene, scene.spec(), sides, &fuse, wish)
}

/// The same with what the job has of both sides before it dies and afterwards.
pub(crate) fn die_and_be_taken_up(
    scene: &Scene,
    spec: JobSpec,
    (mortal, next): (Sides, Sides),
    fuse: &Fuse,
    wish: Wish,
) -> bool {
    let died = catch_unwind(AssertUnwindSafe(|| {
        let mut job = Job::start(&scene.jobs(), spec, None, mortal).unwrap();
        let burning = fuse.clone();
        job.on_record(Arc::new(move |_| burning.burn()));
        drive(&mut job, scene, wish);
    }));
    assert_eq!(died.is_err(), fuse.went_off(), "{died:?}");
    check_machines(scene, wish);

    let mut job = Job::open(&scene.jobs(), "web", next).unwrap();
    drive(&mut job, scene, wish);

    let powers = (scene.source.real_power(), scene.target.real_power());
    match wish {
        Wish::Accept | Wish::AcceptHeld => {
            assert_eq!(job.position().phase, Phase::Finished);
            assert_eq!(scene.target_bytes(), scene.source_bytes(), "{fuse:?}");
            assert_eq!(powers, (Power::Off, Power::On), "{fuse:?}");
        }
        Wish::AcceptAndDelete => {
            assert_eq!(job.position().phase, Phase::Finished);
            assert_eq!(powers, (Power::Off, Power::On), "{fuse:?}");
        }
        Wish::GiveUp { .. } | Wish::GiveUpWritten => {
            assert!(matches!(
                job.position().phase,
                Phase::Cancelled | Phase::Undone
            ));
            assert_eq!(scene.target_bytes(), scene.old_target(), "{fuse:?}");
            assert_eq!(powers, (Power::On, Power::Off), "{fuse:?}");
        }
    }
    assert_eq!(scene.leftovers(), Vec::<String>::new(), "{fuse:?}");
    died.is_err()
}

/// Lets a job die at every point that `dies_at` knows.
pub(crate) fn at_every_point(dies_at: impl Fn(usize) -> bool + Sync) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&"killed") {
            usual(info);
        }
    }));
    let died = count_met(0..200, dies_at);
    drop(std::panic::take_hook());
    assert!((20..200).contains(&died), "{died} points");
}

// Goal: G1, G2, G3, G5, G7: a job whose process dies is taken up where it was and ends as it would
// have. Method: every point of a job that is accepted, cancelled, undone; one disk and two.
#[test]
fn a_job_that_dies_is_accepted_all_the_same() {
    at_every_point(|point| die_and_go_on(&["os", "data"], point, Wish::Accept));
}

#[test]
fn a_held_job_that_dies_is_accepted_all_the_same() {
    at_every_point(|point| die_and_go_on(&["os"], point, Wish::AcceptHeld));
}

#[test]
fn a_job_that_dies_is_cancelled_all_the_same() {
    let wish = Wish::GiveUp {
        after_commit: false,
    };
    at_every_point(|point| die_and_go_on(&["os", "data"], point, wish));
}

#[test]
fn a_job_that_dies_is_undone_all_the_same() {
    let wish = Wish::GiveUp { after_commit: true };
    at_every_point(|point| die_and_go_on(&["os", "data"], point, wish));
}

// Goal: G5: wherever a job died, it can be given up from there at once, and source and target are
// what they were; where it cannot any more, it ends as it would have. Method: every point of a job
// that was to be accepted; then cancel, undo, or neither, as is allowed.
#[test]
fn a_job_that_dies_anywhere_is_given_up_from_there() {
    at_every_point(|point| {
        let scene = Scene::small(&["os", "data"]);
        let fuse = Fuse::at(point);
        let died = catch_unwind(AssertUnwindSafe(|| {
            let sides = mortal(&scene, &fuse);
            let mut job = Job::start(&scene.jobs(), scene.spec(), None, sides).unwrap();
            let burning = fuse.clone();
            job.on_record(Arc::new(move |_| burning.burn()));
            drive(&mut job, &scene, Wish::Accept);
        }));
        let mut job = Job::open(&scene.jobs(), "web", scene.sides()).unwrap();
        let allowed = job.report().allowed;
        let end = [("cancel", Ask::Cancel), ("undo", Ask::Undo)];
        let Some((_, end)) = end.into_iter().find(|(name, _)| allowed.contains(name)) else {
            drive(&mut job, &scene, Wish::Accept);
            assert_eq!(scene.target_bytes(), scene.source_bytes(), "{fuse:?}");
            return died.is_err();
        };

        ask(&mut job, end);

        let report = job.report();
        assert!(job.position().phase.is_end(), "{fuse:?}: {report:?}");
        let powers = (scene.source.real_power(), scene.target.real_power());
        assert_eq!(powers, (Power::On, Power::Off), "{fuse:?}");
        assert_eq!(scene.target_bytes(), scene.old_target(), "{fuse:?}");
        assert_eq!(scene.leftovers(), Vec::<String>::new(), "{fuse:?}");
        died.is_err()
    });
}

// Goal: G6: what a commit deletes is deleted, and nothing else, wherever the job dies; what was
// noted as deleted is not asked for again. Method: every point of a job that deletes its source; a
// hook that notes what it is told.
#[test]
fn a_job_that_dies_deletes_what_it_was_to_delete() {
    at_every_point(|point| {
        let scene = Scene::small(&["os", "data"]);
        let fuse = Fuse::at(point);
        let mut spec = scene.spec();
        spec.policy.delete_source_machine = true;
        spec.policy.delete_source_disks = true;
        let notes = scene.dir.path().join("deleted");
        let script = format!(
            "echo $FAILBACK_DISK >> {}; rm -f $FAILBACK_IMAGE",
            notes.display()
        );
        let delete = Hook::new(["sh", "-c", &script]);
        let host = LocalHost::new(Arc::new(scene.source.clone()), Some(Arc::new(Copies)));
        let next = Sides {
            source: Arc::new(host.deleting_by(delete.clone())),
            ..scene.sides()
        };
        let sides = (mortal_deleting(&scene, &fuse, Some(&delete)), next);
        let died = die_and_be_taken_up(&scene, spec, sides, &fuse, Wish::AcceptAndDelete);

        assert!(scene.source.is_deleted(), "{fuse:?}");
        let calls = scene.source.count(Call::Delete);
        assert!((1..=2).contains(&calls), "{fuse:?}: {calls}");
        let notes = std::fs::read_to_string(&notes).unwrap();
        for disk in &scene.disks {
            assert!(!scene.source_of(disk).exists(), "{fuse:?}");
            assert_eq!(notes.lines().filter(|it| it == disk).count(), 1, "{fuse:?}");
        }
        let mut wanted = scene.old_source();
        wanted[0][9 * 4096..][..4096].fill(0x99);
        assert_eq!(scene.target_bytes(), wanted, "{fuse:?}");
        died
    });
}

// Goal: G4: what a target's guest wrote is listed, and kept where that was asked for, wherever the
// undo dies. Method: every point of a job whose target's guest wrote a page.
#[test]
fn a_job_that_dies_loses_nothing_unseen() {
    at_every_point(|point| {
        let scene = Scene::small(&["os"]);
        let fuse = Fuse::at(point);
        let undone = scene.dir.path().join("undone");
        std::fs::create_dir(&undone).unwrap();
        let mut spec = scene.spec();
        spec.policy.export_on_undo = Some(undone.clone());
        let sides = (mortal(&scene, &fuse), scene.sides());
        let died = die_and_be_taken_up(&scene, spec, sides, &fuse, Wish::GiveUpWritten);

        let job = Job::open(&scene.jobs(), "web", scene.sides()).unwrap();
        let lost = job.report().disks[0].lost.clone().unwrap();
        assert_eq!(lost.ranges, [(0, 1 << 20)], "{fuse:?}");
        let files = std::fs::read_dir(&undone).unwrap();
        let files = files.map(|entry| entry.unwrap().path());
        let files: Vec<_> = files.filter(|path| path.is_file()).collect();
        assert_eq!(files.len(), 1, "{fuse:?}");
        let kept = std::fs::read(&files[0]).unwrap();
        assert!(
            kept[4096..8192].iter().all(|byte| *byte == 0x77),
            "{fuse:?}"
        );
        died
    });
}
