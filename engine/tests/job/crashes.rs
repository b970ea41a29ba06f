//! A process that dies anywhere in a job: at every record of the journal, and after everything that
//! it did to a machine or snapshot. Dying is a panic that unwinds through the job; what is on disk
//! is all that the next process has.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use failback_engine::job::{Ask, Job, JobSpec, LocalHost, Phase, Sides};
use failback_engine::machine::{Call, FakeMachine, Power};
use failback_engine::snapshot::{SnapshotId, SnapshotProvider};
use failback_engine::{Result, Step};

use super::scene::{Copies, Scene, count_met, run};
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
    Sides {
        source: Arc::new(LocalHost::new(source, Some(Arc::new(snapshots)))),
        target: Arc::new(machine(&scene.target)),
    }
}

/// What an operator wants in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Accept,
    /// The same, with a hold before the target is started.
    AcceptHeld,
    /// Cancel once it waits, or undo once the target runs.
    GiveUp {
        after_commit: bool,
    },
}

/// Asks what leads to the wish, until the job is over. Whoever asks again what was heard already is
/// refused, and asks for the next thing.
fn drive(job: &mut Job, scene: &Scene, wish: Wish) {
    let mut has_written = false;
    for _ in 0..20 {
        run(job);
        check(scene, job);
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
            (Phase::CommitPending, Wish::Accept | Wish::AcceptHeld) => {
                job.ask(Ask::Commit).unwrap();
            }
            (Phase::CommitPending, _) => job.ask(Ask::Undo).unwrap(),
            (phase, _) => panic!("rests in {phase:?}"),
        }
    }
    panic!("does not end: {:?}", job.report());
}

/// What holds at every moment: G1, one side runs at most; G2, the target runs on what the source
/// has; before COMMIT the target is old.
fn check(scene: &Scene, job: &Job) {
    check_machines(scene);
    let is_old = scene.target_bytes() == scene.old_target();
    let phase = job.position().phase;
    let is_before = !phase.is_committed();
    assert!(
        is_old || !is_before,
        "{phase:?}: the target was changed before COMMIT"
    );
}

fn check_machines(scene: &Scene) {
    let powers = (scene.source.real_power(), scene.target.real_power());
    assert_ne!(powers, (Power::On, Power::On), "both sides run");
    if powers.1 == Power::On {
        assert_eq!(
            scene.target_bytes(),
            scene.source_bytes(),
            "started on another disk"
        );
    }
}

/// A job that dies at `point`, and one that takes it up. Whether it lived that long.
fn die_and_go_on(disks: &[&'static str], point: usize, wish: Wish) -> bool {
    let scene = Scene::in_memory(disks);
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
    check_machines(scene);

    let mut job = Job::open(&scene.jobs(), "web", next).unwrap();
    drive(&mut job, scene, wish);

    let powers = (scene.source.real_power(), scene.target.real_power());
    match wish {
        Wish::Accept | Wish::AcceptHeld => {
            assert_eq!(job.position().phase, Phase::Finished);
            assert_eq!(scene.target_bytes(), scene.source_bytes(), "{fuse:?}");
            assert_eq!(powers, (Power::Off, Power::On), "{fuse:?}");
        }
        Wish::GiveUp { .. } => {
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
