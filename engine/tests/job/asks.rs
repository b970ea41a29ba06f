//! What another process asks of a job while a pass takes its time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use failback_engine::job::{Ask, Job, LocalHost, Phase, Sides, ask_another};
use failback_engine::snapshot::{SnapshotId, SnapshotProvider};
use failback_engine::{CancelToken, Result, Step};

use super::scene::{Copies, Scene, run};

/// Freezes for a pass only when it is let.
#[derive(Clone, Debug, Default)]
struct Slow {
    is_asked: Arc<AtomicBool>,
    may: Arc<AtomicBool>,
}

impl Slow {
    fn wait_until_asked(&self) {
        while !self.is_asked.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl SnapshotProvider for Slow {
    fn create(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<PathBuf> {
        self.is_asked.store(true, Ordering::SeqCst);
        while !self.may.load(Ordering::SeqCst) {
            step.wait(Duration::from_millis(2))?;
        }
        Copies.create(image, id, step)
    }

    fn release(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<()> {
        Copies.release(image, id, step)
    }

    fn list(&self, image: &Path, job: &str, step: &Step<'_>) -> Result<Vec<SnapshotId>> {
        Copies.list(image, job, step)
    }
}

fn job_of(scene: &Scene, slow: &Slow) -> Job {
    let machine = Arc::new(scene.source.clone());
    let sides = Sides {
        source: Arc::new(LocalHost::new(machine, Some(Arc::new(slow.clone())))),
        ..scene.sides()
    };
    Job::start(&scene.jobs(), scene.spec(), None, sides).unwrap()
}

// Goal: to complete is accepted during a pass, at once, and done at its end; to cancel ends the
// pass, also when completing was asked before. Method: a pass that takes as long as the test wants.
#[test]
fn a_pass_under_way_hears_what_is_asked() {
    for (then, end) in [
        (None, Phase::CommitPending),
        (Some(Ask::Cancel), Phase::Cancelled),
    ] {
        let (scene, slow) = (Scene::new(&["os"]), Slow::default());
        let mut job = job_of(&scene, &slow);
        let ask = |ask| ask_another(&scene.jobs(), "web", ask, &CancelToken::new()).unwrap();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| run(&mut job));
            slow.wait_until_asked();
            let started = Instant::now();
            ask(Ask::Complete);
            then.map(ask);
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{:?}",
                started.elapsed()
            );
            slow.may.store(true, Ordering::SeqCst);
            running.join().unwrap();
        });
        assert_eq!(job.position().phase, end, "{:?}", job.report());
    }
}

// Goal: what was asked of a job that is over is not asked of the next one of its name. Method: word
// that is left when nobody hears any more.
#[test]
fn a_new_job_hears_nothing_of_the_one_before() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    job.ask(Ask::Cancel).unwrap();
    run(&mut job);
    drop(job);
    let directory = scene.jobs().directory("web").unwrap();
    std::fs::write(directory.join("ask.complete"), b"").unwrap();
    let mut job = scene.start();
    run(&mut job);
    assert_eq!(job.position().phase, Phase::Waiting, "{:?}", job.report());
}
